"""How many planted bugs the judge detects and names, and how often it speaks against a kernel that is right.

Each bug of tests/judge is planted in a tiled kernel that `check_kernel(spec, quick=True)` judges, with arguments and
lengths that show what the bug needs. The table has, for each dtype and number of keys, the share detected and named at
rank one, bugs given a name that is not theirs, and false alarms: over the same kernels without their bugs, and over
drawn variants of right ones.
Run: python benchmarks/scripts/judge_power.py --dtypes bfloat16 float32 --sizes 128
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from refattn.testing.diagnosis import fitting  # noqa: E402
from tests.judge import measure  # noqa: E402
from tests.judge.planted import EVERY, OUTSIDE, PLANTED  # noqa: E402

HEAD = (
    "| dtype | n | planted: detected | named | wrong name | outside: detected | placed | wrong name "
    "| right: false alarms | wrong name | s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def share(found):
    """How many of how many, and per cent."""
    found = list(found)
    return f"{sum(found)} of {len(found)} ({100 * sum(found) / len(found):.0f} %)" if found else "-"


def run(dtype, n, keys, variants, seed, *, quick, drawn):
    """Outcomes of planted bugs, of bugs outside the catalogue, and of variants without a bug."""
    rng = np.random.default_rng([seed, n])
    planted, outside = (
        [
            measure.of_bug(key, dtype, n, measure.numerics(rng, dtype, bug) if drawn else {}, seed=seed, quick=quick)
            for key, bug in registry.items()
            if not keys or key in keys
        ]
        for registry in (PLANTED, OUTSIDE)
    )
    right = [measure.of_control(key, dtype, n, seed=seed, quick=quick) for key in measure.controls(keys or EVERY)]
    right += [measure.of_variant(rng, dtype, n, seed=seed, quick=quick) for _ in range(variants)]
    return planted, outside, right


def line(dtype, n, planted, outside, variants):
    """A row of the table."""
    seconds = sum(found.seconds for found in (*planted, *outside, *variants))
    wrong = [str(sum(x.wrong_name is not None for x in group)) for group in (planted, outside, variants)]
    cells = (
        dtype, str(n), share(x.detected for x in planted), share(x.named for x in planted), wrong[0],
        share(x.detected for x in outside), share(x.placed for x in outside if x.placed is not None), wrong[1],
        share(x.detected for x in variants), wrong[2], f"{seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def details(dtype, n, planted, outside, variants):
    """What was missed, misnamed, or raised without cause."""
    where = f"{dtype}, n = {n}"
    for title, found in (
        ("the judge raised", [f"{x.key}: {x.raised}" for x in (*planted, *outside, *variants) if x.raised]),
        ("found by one check alone", [f"{x.key} ({x.checks[0]})" for x in (*planted, *outside) if len(x.checks) == 1]),
        ("not detected", [x.key for x in (*planted, *outside) if not x.detected]),
        ("detected, not named", [x.key for x in planted if x.detected and not x.named]),
        ("named at a later rank", [x.key for x in planted if x.listed and not x.named]),
        ("wrong name", [f"{x.key} as {x.wrong_name}" for x in (*planted, *outside, *variants) if x.wrong_name]),
        ("not placed", [x.key for x in outside if x.detected and x.placed is False]),
        ("false alarms", [x.key for x in variants if x.detected]),
    ):
        if found:
            yield f"- {where}, {title}: {'; '.join(found)}"


def main():
    """Measure, and print the table and what lies behind it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"], help="dtypes (default bfloat16 float32)"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="numbers of keys (default 128)")
    parser.add_argument("--bugs", nargs="*", default=[], help="keys of bugs (default all)")
    parser.add_argument("--variants", type=int, default=20, help="variants without a bug (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default 0)")
    parser.add_argument("--full", action="store_true", help="all problems of each check, not the quick few")
    parser.add_argument("--without-fit", action="store_true", help="diagnose without the fit of bugs to the numbers")
    parser.add_argument("--drawn", action="store_true", help="plant each bug in a kernel of drawn numerics")
    given = parser.parse_args()
    if given.without_fit:
        fitting.fits = lambda samples: []
    unknown = [key for key in given.bugs if key not in EVERY]
    if unknown:
        parser.error(f"no such bug: {', '.join(unknown)}")
    print(HEAD, flush=True)
    lines = []
    for dtype in given.dtypes:
        for n in given.sizes:
            found = run(dtype, n, given.bugs, given.variants, given.seed, quick=not given.full, drawn=given.drawn)
            print(line(dtype, n, *found), flush=True)
            lines += details(dtype, n, *found)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
