"""Three right kernels and a wrong one on real queries, keys and values, judged; and a picture of it.

Run: python docs/examples/demo.py [--picture FILE.png]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from matplotlib.figure import Figure
from tiled import tiled_attention, without_rescale

import refattn as ra
from refattn.analysis import pictures


def torch_attention(query, key, value):
    """PyTorch's own fused attention on the CPU, in bfloat16; None where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    query, key, value = (ra.from_numpy(x, library="torch") for x in (query, key, value))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def main():
    """Judge, print, draw; the exit code says whether every verdict is the one it has to be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), help="where to write the picture")
    picture = parser.parse_args().picture
    capture = ra.data.smollm2()
    # Three layers, each one key head with its three query heads, seen as one layer of nine and three.
    real = [x.reshape(1, -1, *x.shape[-2:]) for x in (capture.query, capture.key, capture.value)]
    float32 = [x.astype(np.float32) for x in real]
    bfloat16 = [x.astype(ml_dtypes.bfloat16) for x in real]
    print(f"Real input: {capture.description}\n")
    cases = [
        ("tiled NumPy, float32", float32, tiled_attention(*float32), True),
        ("tiled NumPy, bfloat16", bfloat16, tiled_attention(*bfloat16), True),
        ("PyTorch SDPA, bfloat16", bfloat16, (torch_attention(*bfloat16), None), True),
        ("no rescale, float32", float32, without_rescale(*float32), False),
    ]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    as_expected = True
    for name, inputs, (output, lse), is_right in cases:
        if output is None:
            print(f"{name}\n  not run: PyTorch is not installed\n")
            continue
        verdict = ra.testing.check(output, *inputs, lse=lse, is_causal=True)
        print(f"{name}\n{verdict.text}\n")
        as_expected &= verdict.passed == is_right
        pictures.error_against_bound(output, *inputs, is_causal=True, label=name, ax=left)
    left.set_title("error of each element against its bound")
    for handle in left.legend(loc="lower right", markerscale=4).legend_handles:
        handle.set_alpha(1)
    pictures.weights(*real[:2], head=(0, 6), is_causal=True, ax=right)
    right.set_title("weights of one real head")
    figure.savefig(picture, dpi=110)
    print(f"Picture: {picture}")
    print("Every verdict is as it should be." if as_expected else "A verdict is not as it should be.")
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
