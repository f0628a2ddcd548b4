"""Violations of certified radii, and wrong roundings, hunted with ball arithmetic over any range of seeds.

Every output and log-sum-exp of both tiers of `refattn.oracle.certified` is held against balls in an exact inequality;
with --rounding, `refattn.oracle.rounded` is held against the nearest number of each format. The table goes to
benchmarks/results/. A range is continued where it ended with the same --state file: --seeds 0:500, then 500:2000.
Run: python benchmarks/scripts/hunt_radii.py --seeds 0:2000 --state hunt.npz
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.certified import corners, hunting, kinds, ties  # noqa: E402
from tests.certified.hunting import TIERS, Tally  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def restored(path, first):
    """Tallies of the seeds before `first`, by kind and tier, and the seconds that they took."""
    if path is None or not path.exists():
        if first:
            sys.exit(f"--seeds begins at {first}: pass the --state file of the seeds before.")
        return {}, 0.0
    with np.load(path) as held:
        if int(held["stop"]) != first:
            sys.exit(f"{path} ends at seed {int(held['stop'])}; got --seeds from {first}.")
        tallies = {}
        for name in held.files:
            kind, _, rest = name.partition("|")
            if rest:
                tier, _, counted = rest.partition("|")
                tally, x = tallies.setdefault((kind, tier), Tally()), held[name]
                setattr(tally, counted, x.tolist())
        return tallies, float(held["seconds"])


def store(path, tallies, stop, seconds):
    """Keep tallies for a later range."""
    arrays = {}
    for (kind, tier), tally in tallies.items():
        arrays |= {f"{kind}|{tier}|{name}": np.array(x) for name, x in vars(tally).items()}
    np.savez_compressed(path, stop=stop, seconds=seconds, **arrays)


def number(x):
    """Three digits."""
    return f"{x:.3g}"


def row(name, by_tier):
    """One line of the table."""
    cells = [name, str(by_tier[0].elements), " / ".join(str(len(t.wrong)) for t in by_tier)]
    cells.append(" / ".join(str(t.infinite_inside) for t in by_tier))
    for t in by_tier:
        for x in (t.ratios, t.lse_ratios):
            cells.append(f"{number(np.min(x))}, {number(np.median(x))}" if x else "-")
        cells.append(number(np.median(t.widths)) if t.widths else "-")
    return "| " + " | ".join(cells) + " |"


def table(tallies):
    """Kinds line by line, and all of them."""
    columns = ["kind", "elements", "violations A / B", "infinite in the domain A / B"]
    for tier in "AB":
        columns += [f"R/err {tier}: min, median", f"of lse {tier}", f"R_{tier} / max abs v"]
    lines = [f"| {' | '.join(columns)} |", "|---" * 10 + "|"]
    whole = {tier: Tally() for tier in TIERS}
    for kind in dict.fromkeys(kind for kind, _ in tallies):
        by_tier = [tallies[kind, tier] for tier in TIERS]
        lines.append(row(kind, by_tier))
        for tier, tally in zip(TIERS, by_tier, strict=True):
            whole[tier].add(tally)
    lines.append(row("**all**", list(whole.values())))
    return lines, whole


def hunt(chosen, seeds, tallies):
    """Add the cases of a range of seeds to the tallies."""
    for kind in chosen:
        name = kind.__name__
        start = time.process_time()
        for seed in seeds:
            case = kind(kinds.kind_rng(kind, seed))
            try:
                found = hunting.hunt(case, f"{name} {seed}")
            except Exception as error:
                tallies[name, TIERS[0]].wrong.append(f"{name} {seed}: {error!r}")
                continue
            for tier, tally in found.items():
                tallies[name, tier].add(tally)
        wrong = [line for tier in TIERS for line in tallies[name, tier].wrong]
        print(f"{name}: {tallies[name, TIERS[0]].elements} elements, {len(wrong)} violations, "
              f"{time.process_time() - start:.0f} s", *wrong[:5], sep="\n  ", flush=True)  # fmt: skip


def rounding(seeds):
    """The table of correctly rounded results."""
    lines = ["| format | elements | ties | wrong | undecided without softcap |", "|---|---|---|---|---|"]
    for name in (*ties.NAMES, *ties.OTHERS):
        found = ties.verdict(name, seeds)
        lines.append(f"| {name} | {found.elements} | {found.ties} | {len(found.wrong)} | {len(found.undecided)} |")
        print(lines[-1], *found.wrong[:5], *found.undecided[:5], sep="\n  ", flush=True)
    return lines


def main():
    """Hunt, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:100", help="first:stop, of every kind (default 0:100)")
    parser.add_argument("--kinds", nargs="*", help="names of kinds (default all)")
    parser.add_argument("--state", type=Path, help="file that holds the tallies of the seeds so far")
    parser.add_argument("--rounding", action="store_true", help="correct rounding instead of radii")
    given = parser.parse_args()
    first, stop = map(int, given.seeds.split(":"))
    where = f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    start = time.process_time()
    if given.rounding:
        lines = rounding(range(first, stop))
        title, file = "Correct rounding against balls", f"rounding_{day}.md"
        seconds = time.process_time() - start
    else:
        chosen = [kind for kind in corners.KINDS if not given.kinds or kind.__name__ in given.kinds]
        tallies, before = restored(given.state, first)
        for kind in chosen:
            for tier in TIERS:
                tallies.setdefault((kind.__name__, tier), Tally())
        hunt(chosen, range(first, stop), tallies)
        seconds = before + time.process_time() - start
        if given.state:
            store(given.state, tallies, stop, seconds)
        lines, whole = table(tallies)
        title, file = "Certified radii against balls", f"hunt_radii_{day}.md"
        lines += [""] + [f"- {line}" for tally in whole.values() for line in tally.wrong[:50]]
        first = 0 if given.state else first
    command = f"python benchmarks/scripts/hunt_radii.py --seeds {first}:{stop}{' --rounding' * given.rounding}"
    head = [f"# {title}, {day}", "", f"`{command}`: {seconds:.0f} s of one core; {where}.", ""]
    text = "\n".join([*head, *lines]).rstrip() + "\n"
    (RESULTS / file).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
