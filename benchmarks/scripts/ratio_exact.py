"""Exact attention against the same three lines of NumPy, and the cost of `import refattn` beyond NumPy's own.

Ratios of times taken alternately in one process (for imports: in alternating fresh processes), minimum of each.
Run: python benchmarks/scripts/ratio_exact.py
"""

from __future__ import annotations

import argparse
import math
import platform
import subprocess
import sys
import time

import numpy as np

import refattn as ra


def three_lines(query, key, value):
    """Softmax attention as one writes it by hand."""
    S = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    P = np.exp(S - S.max(axis=-1, keepdims=True))
    return (P / P.sum(axis=-1, keepdims=True)) @ value


def seconds(function, *arguments):
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def import_seconds(statement):
    """Time that a statement takes in a fresh process which has NumPy already."""
    program = f"import numpy, time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def main():
    """Print the two figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=15, help="calls of each, alternately (default 15)")
    repeat = parser.parse_args().repeat
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 1, 8, 1024, 64))
    ours, by_hand = [], []
    for _ in range(repeat):
        ours.append(seconds(ra.attention, query, key, value))
        by_hand.append(seconds(three_lines, query, key, value))
    ratio = min(ours) / min(by_hand)
    flops = ra.cost(ra.attention, query, key, value).flops
    imports = [import_seconds("import refattn") for _ in range(repeat)]
    first_use = [import_seconds("import refattn; refattn.attention") for _ in range(repeat)]
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"attention 1x8x1024x64 float64 / three NumPy lines: {ratio:.2f} (minimum of {repeat}, alternating)")
    print(f"attention 1x8x1024x64 float64: {1e-9 * flops / min(ours):.1f} Gflop/s")
    print(
        f"import refattn, NumPy loaded: {1e3 * min(imports):.1f} ms; with its first use: {1e3 * min(first_use):.1f} ms"
    )


if __name__ == "__main__":
    main()
