"""Break the code in every small way that mutmut knows, and hold the survivors against the list of equivalent ones.

`make mutants` runs it. Names of mutants, with ``*``, as arguments run these alone, on what `mutants/` holds already.

Fails where a mutant survives that `equivalent.toml` does not list, and where it lists one that is killed or is no more.
A mutant is named by its function and its change, so that the list outlives every edit of other lines.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import os
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import libcst as cst
from hypothesis import HealthCheck, Phase, settings
from mutmut import __main__ as mutmut
from mutmut.mutation import file_mutation
from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData, read_line_spans
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import mangled_name_from_mutant_name, orig_function_and_class_names_from_key
from mutmut.workers import isolation

LIST = Path(__file__).with_name("equivalent.toml")
KILLED = ("killed", "timeout", "crashed")

# mutmut leaves every decorated function alone. These decorators do not mind that what they decorate calls a copy.
HARMLESS = ("property", "cached_property", "declare", "quiet")

# Each room is held by its own tests, not by those of all who stand on it: a mutant that survives meets every test.
TESTS = {
    "refattn._core": (
        "tests/core/",
        "tests/house/",
        "tests/methods/test_exact.py",
        "tests/methods/test_exact_devices.py",
        "tests/methods/test_flash_cost.py",
    ),
    "refattn.masks": ("tests/masks/",),
    "refattn.methods.exact": ("tests/core/", "tests/house/", "tests/methods/"),
}
EXAMPLES = 25  # of a property, at most
PATIENCE = 10


class Mutant(NamedTuple):
    """One mutant: mutmut's name for it, the name that it has in the list, and what became of it."""

    name: str
    change: str
    status: str

    @property
    def package(self) -> str:
        """The package that its module is in."""
        return self.change.partition(":")[0].rpartition(".")[0]


def mutate_decorated_functions() -> None:
    """Let mutmut into the functions whose decorators are harmless: the copies that it makes go without them."""
    skip, arrange = file_mutation.MutationVisitor._skip_node_and_children, file_mutation.function_trampoline_arrangement

    def harmless(function: cst.FunctionDef) -> bool:
        return bool(function.decorators) and all(_name(x.decorator) in HARMLESS for x in function.decorators)

    def skip_node(self: Any, node: cst.CSTNode) -> bool:
        return False if isinstance(node, cst.FunctionDef) and harmless(node) else skip(self, node)

    def arranged(function: cst.FunctionDef, *args: Any, **kwargs: Any) -> Any:
        before, (trampoline, *copies), after, names = arrange(function, *args, **kwargs)
        if harmless(function):
            copies = [copy.with_changes(decorators=[]) for copy in copies]
        return before, [trampoline, *copies], after, names

    file_mutation.MutationVisitor._skip_node_and_children = skip_node
    file_mutation.function_trampoline_arrangement = arranged


def few_examples() -> None:
    """The same few examples every time, also where a test says how many; a mutant needs one, and not the simplest."""
    make = settings.__init__

    def made(self: settings, *args: Any, **kwargs: Any) -> None:
        if "max_examples" in kwargs:
            kwargs["max_examples"] = min(kwargs["max_examples"], EXAMPLES)
        make(self, *args, **kwargs)

    settings.__init__ = made
    # mutmut runs tests more than once in a process, and a test class is then another one each time.
    settings.register_profile(
        "mutants", max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )  # fmt: skip


def own_tests() -> None:
    """Run the tests of a mutant's own room alone."""
    collect = mutmut.collect_or_load_stats

    def collected(*args: Any, **kwargs: Any) -> None:
        collect(*args, **kwargs)
        for function, tests in state().tests_by_mangled_function_name.items():
            (rooms,) = (rooms for package, rooms in TESTS.items() if function.startswith(f"{package}."))
            tests.intersection_update([test for test in tests if test.startswith(rooms)])

    mutmut.collect_or_load_stats = collected


def count_processor_time() -> None:
    """Leave the end of an endless loop to the limit on processor time: a busy machine is no endless loop."""
    register = isolation.register_timeout
    isolation.register_timeout = lambda pid, timeout_s: register(pid, PATIENCE * timeout_s)


def _name(decorator: cst.BaseExpression) -> str:
    """The last name of a decorator."""
    while isinstance(decorator, cst.Call):
        decorator = decorator.func
    return decorator.attr.value if isinstance(decorator, cst.Attribute) else cst.ensure_type(decorator, cst.Name).value


def mutants(patterns: list[str]) -> Iterator[Mutant]:
    """All mutants that `mutants/` holds, or those that are asked for."""
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        spans = MutantLineSpans.load(path)
        seen: Counter[str] = Counter()
        for name, exit_code in data.exit_code_by_key.items():
            assert spans is not None
            change = _change(name, spans)
            seen[change] += 1
            if seen[change] > 1:
                change = f"{change}  ({seen[change]})"
            if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                crashed = exit_code is not None and exit_code < 0  # by a signal
                yield Mutant(name, change, "crashed" if crashed else status_by_exit_code[exit_code])


def _change(name: str, spans: MutantLineSpans) -> str:
    """Module, function, and the lines that the mutation changes, before and after."""
    generated = name.rpartition(".")[2]
    original = mangled_name_from_mutant_name(generated) + "__mutmut_orig"
    function, class_name = orig_function_and_class_names_from_key(name)
    before, after = (
        read_line_spans(spans.mutants_path, [spans.span_by_function_name[x]])[0].replace(x, function).splitlines()
        for x in (original, generated)
    )
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    changed = [at for at in matcher.get_opcodes() if at[0] != "equal"]
    old = " ".join(line.strip() for at in changed for line in before[at[1] : at[2]])
    new = " ".join(line.strip() for at in changed for line in after[at[3] : at[4]])
    module = name.rpartition(".")[0]
    return f"{module}:{function if class_name is None else f'{class_name}.{function}'}: {old}  ->  {new}"


def listed() -> dict[str, str]:
    """The equivalent mutants, each with its reason."""
    groups = tomllib.loads(LIST.read_text("utf-8"))["equivalent"]
    changes = list(itertools.chain.from_iterable(group["mutants"] for group in groups))
    twice = [change for change, n in Counter(changes).items() if n > 1]
    if twice:
        raise SystemExit(f"Listed twice: {twice}")
    return {change: group["reason"] for group in groups for change in group["mutants"]}


def report(found: list[Mutant], equivalent: dict[str, str], *, whole: bool) -> Iterator[str]:
    """What is wrong, a line for each."""
    for x in found:
        killed, known = x.status in KILLED, x.change in equivalent
        if killed == known:
            yield f"{'is listed and was killed' if killed else 'survives'} ({x.status}): {x.name}\n    {x.change}"
    if whole:
        for change in equivalent.keys() - {x.change for x in found}:
            yield f"is listed and is no more:\n    {change}"


def scores(found: list[Mutant], equivalent: dict[str, str]) -> Iterator[str]:
    """The share of mutants that were killed, of those that are not equivalent, a line for each package."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for x in found:
        kind = "killed" if x.status in KILLED else "equivalent" if x.change in equivalent else "alive"
        counts[x.package][kind] += 1
    for package, n in sorted(counts.items()):
        score = n["killed"] / max(1, n["killed"] + n["alive"])
        yield f"{package:24}{n.total():6} mutants{n['equivalent']:5} equivalent{n['alive']:5} alive  {score:.1%}"


def main(patterns: list[str]) -> int:
    """Run, compare, print; the exit code."""
    # A forked process must not wait for its parent's other threads.
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")})
    mutate_decorated_functions()
    few_examples()
    own_tests()
    count_processor_time()
    mutmut._run(patterns, os.cpu_count())
    found, equivalent = list(mutants(patterns)), listed()
    wrong = list(report(found, equivalent, whole=not patterns))
    print("\n".join(["", *wrong, "", *scores(found, equivalent)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
