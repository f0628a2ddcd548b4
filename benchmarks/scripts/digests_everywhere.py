"""The golden digests under every BLAS kernel that this processor runs, and with less of NumPy's vector code.

Prints a line for each setting: which kernel OpenBLAS took, how many digests are the golden ones, and the hash of plain
float64 attention beside them, which need not be the same. Run: python benchmarks/scripts/digests_everywhere.py
"""

from __future__ import annotations

import os
import subprocess
import sys

# Those that OpenBLAS is built with for x86_64 in NumPy's wheels; what a processor lacks it replaces or refuses.
CORES = ("PRESCOTT", "NEHALEM", "SANDYBRIDGE", "HASWELL", "ZEN", "SKYLAKEX", "COOPERLAKE", "SAPPHIRERAPIDS")
FEATURES = ("AVX512F", "AVX512F AVX2 FMA3")
PLAIN = """
import hashlib, io, contextlib
import numpy as np
from refattn.__main__ import main
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 512, 64))
S = q @ k.T / 8
P = np.exp(S - S.max(axis=1, keepdims=True))
plain = hashlib.sha256(((P @ v) / P.sum(axis=1, keepdims=True)).tobytes()).hexdigest()
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = main(["digest"])
lines = out.getvalue().splitlines()
core = "?"
with contextlib.suppress(ImportError):
    from threadpoolctl import threadpool_info
    core = next(info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas")
golden = sum(line.endswith(" ok") for line in lines)
print(f"NumPy {np.__version__}, kernel {core}: {golden} of {len(lines)} golden, exit {code}; plain {plain[:8]}")
"""


def main():
    """Run every setting in a process of its own."""
    settings = [
        {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": threads} for core in CORES for threads in ("1", "2")
    ]
    settings += [{"NPY_DISABLE_CPU_FEATURES": names} for names in FEATURES]
    for setting in settings:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PLAIN],
            capture_output=True, text=True, check=False, env=os.environ | setting,
        )  # fmt: skip
        last = run.stdout.strip() or run.stderr.strip().splitlines()[-1]
        print(" ".join(f"{name}={x}" for name, x in setting.items()), "|", last, flush=True)


if __name__ == "__main__":
    main()
