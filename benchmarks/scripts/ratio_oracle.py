"""The certified oracle against plain NumPy attention in float64: ratios, taken alternately in one process, one thread.

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/scripts/ratio_oracle.py
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from functools import partial

import ml_dtypes
import numpy as np

import refattn as ra

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def plain(query, key, value):
    """Softmax attention of one head, in place where it can be."""
    S = query @ key.T
    S *= query.shape[1] ** -0.5
    S -= S.max(axis=1, keepdims=True)
    np.exp(S, out=S)
    total = S.sum(axis=1, keepdims=True)
    return (S @ value) / total


def seconds(function):
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def ratios(n, dtype, repeat):
    """Times of the oracle's functions over that of plain attention, minima of each; and the median radius."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((1, n, 64)).astype(DTYPES[dtype]) for _ in range(3)]
    wide = [array[0].astype(np.float64) for array in x]
    calls = {
        "plain": partial(plain, *wide),
        "certified": partial(ra.oracle.certified, *x),
        "double-double": partial(ra.oracle.certified, *x, tier="double-double"),
        **{f"rounded {name}": partial(ra.oracle.rounded, *x, dtype=name) for name in DTYPES},
    }
    times = {name: seconds(call) for name, call in calls.items()}
    for _ in range(repeat):
        for name, call in calls.items():
            times[name] = min(times[name], seconds(call))
    radius = float(np.median(ra.oracle.certified(*x).radius))
    return {name: t / times["plain"] for name, t in times.items() if name != "plain"}, radius


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="calls of each, alternately (default 5)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096], help="queries and keys")
    options = parser.parse_args()
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, {threads} BLAS thread(s)")
    print("| n | inputs | certified | double-double | rounded bfloat16 | rounded float32 | rounded float64 | radius |")
    print("|---|---|---|---|---|---|---|---|")
    for n in options.sizes:
        for dtype in DTYPES:
            found, radius = ratios(n, dtype, options.repeat)
            print(f"| {n} | {dtype} | " + " | ".join(f"{x:.1f}" for x in found.values()) + f" | {radius:.1e} |")


if __name__ == "__main__":
    main()
