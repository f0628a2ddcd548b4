"""How well the statistical bound of `check` is calibrated: errors of right kernels, emulated, in units of sigma.

    python benchmarks/scripts/calibrate_judge.py [elements]

For bfloat16 and float16 kernels on several input laws: the root mean square of error / sigma, which must lie between
0.3 and 1, and the share of elements beyond z sigma + bias + half an ulp beside 2 exp(-z^2 / 2), which it must not
exceed; its deviation counts a row as one draw, because the columns of a row have their weights' errors in common. Ten
million elements (the default) take about fifteen seconds on one core.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from refattn import contract
from tests.bounds.cases import Case, gaussian
from tests.bounds.emulator import Kernel, rounded
from tests.bounds.test_statistics import ratios

ROWS, EV = 256, 64
LAWS = {"normal": (1.0, 0.0), "peaked": (4.0, 0.0), "cold": (0.2, 0.0), "offset": (1.0, 4.0)}
Z = (2.0, 3.0, 4.0)


def main() -> None:
    """Print one line for each dtype and law."""
    elements = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**7
    cells = max(1, elements // (2 * len(LAWS) * ROWS * EV))
    print(f"{'dtype':10}{'law':9}{'elements':>12}{'rms':>7}{'max':>7}", *(f"{f'> {z:g} sigma':>28}" for z in Z))
    for dtype in ("bfloat16", "float16"):
        claim = replace(contract.flash(dtype), output="float32")
        for law, (hot, offset) in LAWS.items():
            rng = np.random.default_rng(0)
            count, squares, most, rows, beyond, beyond_squares = 0, 0.0, 0.0, 0, np.zeros(len(Z)), np.zeros(len(Z))
            for n in range(cells):
                S = (128, 300, 1024)[n % 3]
                q, k, v = gaussian(rng, ROWS, S, 64, EV, dtype)
                q, v = (rounded(x, dtype).astype(float) for x in (hot * q, v + offset))
                kernel = Kernel(
                    operand=dtype, weights=dtype, tile=(32, 64, 128)[n % 3], sum_of_rounded=bool(n % 2),
                    exponential=("exp", "exp2_fma")[n % 2], splits=1 + n % 2, lazy=5.5 * (n // 6 % 2),
                )  # fmt: skip
                past, plain = ratios(Case(q, k, v, 1 / 8), kernel, claim)
                count += plain.size
                squares += float((plain**2).sum())
                most = max(most, float(plain.max(initial=0.0)))
                shares = np.stack([(past > z).mean(axis=1) for z in Z])
                rows += len(past)
                beyond += shares.sum(axis=1)
                beyond_squares += (shares**2).sum(axis=1)
            mean = beyond / rows
            deviation = np.sqrt((beyond_squares / rows - mean**2) / rows)
            told = (
                f"{x:.1e} +- {d:.0e} of {2 * math.exp(-z * z / 2):.1e}"
                for x, d, z in zip(mean, deviation, Z, strict=True)
            )
            print(
                f"{dtype:10}{law:9}{count:12,}{math.sqrt(squares / count):7.3f}{most:7.2f}",
                *(f"{x:>28}" for x in told),
                flush=True,
            )


if __name__ == "__main__":
    main()
