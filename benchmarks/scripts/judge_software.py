"""Other people's attention before the judge: one line for each software, backend and dtype that is installed here.

    python benchmarks/scripts/judge_software.py [--only WORD] [--quick] [--examples N] [--reports FOLDER]

Prints a Markdown table. Each kernel runs in `check_kernel` and in `run_checks` (N problems a law, 2 of them where none
is given) under the contract that its software documents; what differs by a convention is an expected failure of the
spec, and listed. The texts of the reports go to FOLDER. All of it takes about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from software import SOFTWARE
from software.record import Entry

from refattn.testing import LawResult, Report, check_kernel, run_checks

HEAD = ("software", "version", "backend", "dtype", "contract", "verdict", "budget used", "conventions that differ")


def main() -> None:
    """Judge what is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="software, backend and dtype whose name has this")
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--examples", type=int, default=2, metavar="N", help="problems a law")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="where the texts of the reports go")
    options = parser.parse_args()
    print(*(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD))), sep="\n")
    for name, entries in SOFTWARE.items():
        try:
            chosen = [found for found in entries() if options.only in found.spec.name]
        except ImportError as error:
            print(f"| {name} | - | - | - | - | not run: {error} | - | - |")
            continue
        for found in chosen:
            start = time.perf_counter()
            report, laws = judged(found, quick=options.quick, examples=options.examples)
            print(f"| {' | '.join(row(found, report, laws))} |", flush=True)
            if options.reports is not None:
                write(options.reports, found, report, laws, time.perf_counter() - start)


def judged(found: Entry, *, quick: bool, examples: int) -> tuple[Report, tuple[LawResult, ...]]:
    """The verdict on values, and on laws."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_kernel(found.spec, quick=quick), run_checks(found.spec, max_examples=examples)


def row(found: Entry, report: Report, laws: tuple[LawResult, ...]) -> tuple[str, ...]:
    """The cells of a line."""
    verdict = fault(report, laws)
    met = {check.reason for check in report.checks if check.outcome == "expected failure"}
    met |= {law.message for law in laws if law.outcome == "expected failure"}
    conventions = "; ".join([*found.conventions, *sorted(met)]) or "none"
    return (
        found.software,
        found.version,
        found.backend,
        found.dtype,
        found.contract,
        verdict,
        share(report),
        conventions,
    )


def share(report: Report) -> str:
    """The largest share of the budget."""
    words = []
    for name in ("budget_used", "lse_budget_used"):
        used = [
            x
            for check in report.checks
            if check.outcome != "expected failure" and (x := getattr(check, name)) is not None
        ]
        if used:
            words.append(f"{'lse ' if name.startswith('lse') else ''}{max(used):.3g}")
    return ", ".join(words) or "-"


def fault(report: Report, laws: tuple[LawResult, ...]) -> str:
    """What is wrong, in a line, and where it shows."""
    broken = [law for law in laws if law.outcome == "WRONG"]
    if report.passed and not broken:
        return "right"
    names = [explanation.name for explanation in report.diagnosis[:1]]
    texts = [finding.text.splitlines()[0] for finding in report.findings]
    texts += [law.message.splitlines()[0] for law in broken]
    shown = [check.name for check in report.checks if check.outcome == "WRONG"] + [law.name for law in broken]
    return f"WRONG: {(names or texts or ['nothing could be judged'])[0]} ({', '.join(shown)})"


def write(folder: Path, found: Entry, report: Report, laws: tuple[LawResult, ...], seconds: float) -> None:
    """The whole texts, for a person."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{seconds:.0f} s", report.text, *(f"{law.name}: {law.outcome}: {law.message}" for law in laws)]
    name = "".join(c if c.isalnum() else "-" for c in found.spec.name)
    (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
