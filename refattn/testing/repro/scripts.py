"""The short script beside a saved problem: it needs NumPy, the kernel and the kernel's library, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How an array gets into a library and comes back, and what is imported for that.
IMPORTS = {"numpy": [], "torch": ["import torch"], "jax": ["import jax.numpy as jnp"], "cupy": ["import cupy"]}
PUT = {
    "numpy": "x",
    "torch": "torch.from_numpy(x)",
    "jax": "jnp.asarray(x)",
    "cupy": "cupy.asarray(x)",
}
GET = {"numpy": "y", "torch": "y.detach().cpu().double().numpy()", "jax": "np.asarray(y)", "cupy": "y.get()"}


def script(bundle: str, about: Mapping[str, Any], arrays: Sequence[str]) -> str:
    """The text of the script; `arrays` are the arguments by name that the bundle holds as arrays."""
    module, _, name = about["kernel"].partition(":")
    first, *rest = name.split(".")
    library, dtypes = about["arrays"], about["dtypes"]
    own = {key: dtypes[f"handed.{key}"] for key in ("query", "key", "value", *arrays) if f"handed.{key}" in dtypes}
    put = PUT[library]
    imports = ["import numpy as np", *IMPORTS[library]]
    if own and library == "torch":
        cast = "torch.from_numpy(x.view(f'i{x.itemsize}')).view(getattr(torch, DTYPES[name]))"
        put = f"{cast} if name in DTYPES else {put}"
    elif own:
        imports.insert(0, "import ml_dtypes")
        put = put.replace("x", "(x.view(getattr(ml_dtypes, DTYPES[name])) if name in DTYPES else x)")
    if about["device"] is not None and library == "torch":
        put = f"({put}).to({about['device']!r})"
    numbers = about["numbers"]["handed"]
    importable = "<" not in name and module not in ("", "__main__")
    kernel = f"from {module} import {first}" if importable else f"{first} = ...  # the kernel: {about['kernel']}"
    called = ".".join([first, *rest]) if importable else first
    problem = f": {about['case']}" if about["case"] else ""
    lines = [
        f'"""{about["check"]} of {about["name"]}{problem}',
        "",
        *(line.replace("\\", "/").replace('"""', "'''") for line in about["verdict"].splitlines()),
        '"""',
        "",
        *imports,
        kernel,
        "",
        f"data = np.load({bundle!r}, allow_pickle=False)",
        *([f"DTYPES = {own!r}"] if own else []),
        "",
        "",
        "def put(name):",
        '    x = data["handed." + name]',
        f"    return {put}",
        "",
        "",
        f"named = {{name: put(name) for name in {arrays!r}}}",
        *([f"named |= {numbers!r}"] if numbers else []),
        f'result = {called}(put("query"), put("key"), put("value"), **named)',
        "y = result[0] if isinstance(result, tuple) else result",
        f"output = np.asarray({GET[library]}).astype(np.float64)",
        'error = np.abs(output - data["expected"])',
        'wrong = ~(error <= data["bound"]) & ~np.isnan(data["expected"])',
        "print(f'{wrong.sum()} of {wrong.size} numbers are wrong; largest error {np.nanmax(error):.3g}')",
        "for place in np.argwhere(wrong)[:5]:",
        "    at = tuple(place)",
        "    print(at, 'got', output[at], 'expected', data['expected'][at], 'within', data['bound'][at])",
    ]
    return "\n".join(lines) + "\n"
