"""What an entry of the bug catalogue is: words, links, the steps that it replaces, and where it can be made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refattn._call import AttentionResult
from refattn.testing.bugs.engine import Change, Floats, Head, Some, State, run
from refattn.testing.bugs.problems import SIZES, TILES, Problem

REPOSITORIES = {
    "ATOM": "ROCm/ATOM",
    "FA": "Dao-AILab/flash-attention",
    "FI": "flashinfer-ai/flashinfer",
    "MLX": "ml-explore/mlx",
    "Megatron-LM": "NVIDIA/Megatron-LM",
    "SageAttention": "thu-ml/SageAttention",
    "NVTE": "NVIDIA/TransformerEngine",
    "TensorRT-LLM": "NVIDIA/TensorRT-LLM",
    "Wan2GP": "deepbeepmeep/Wan2GP",
    "aotriton": "ROCm/aotriton",
    "aprender": "paiml/aprender",
    "ik_llama.cpp": "ikawrakow/ik_llama.cpp",
    "imp": "kekzl/imp",
    "jax": "jax-ml/jax",
    "llama.cpp": "ggml-org/llama.cpp",
    "maxtext": "AI-Hypercomputer/maxtext",
    "miles": "radixark/miles",
    "mirage": "mirage-project/mirage",
    "mlc-llm": "mlc-ai/mlc-llm",
    "native-sparse-attention-triton": "XunhaoLai/native-sparse-attention-triton",
    "ollama": "ollama/ollama",
    "onnx": "onnx/onnx",
    "onnxruntime": "microsoft/onnxruntime",
    "pytorch": "pytorch/pytorch",
    "rocm-libraries": "ROCm/rocm-libraries",
    "sgl-kernel-xpu": "sgl-project/sgl-kernel-xpu",
    "sglang": "sgl-project/sglang",
    "transformers": "huggingface/transformers",
    "unsloth-zoo": "unslothai/unsloth-zoo",
    "vllm": "vllm-project/vllm",
    "vllm-metal": "vllm-project/vllm-metal",
    "vllm-xpu-kernels": "vllm-project/vllm-xpu-kernels",
    "xformers": "facebookresearch/xformers",
}
# Rows of a head on which a change of its mask is looked for, and cells of them; rows and heads for other changes.
LOOKED_AT, CELLS = 64, 2**21
FEWEST, HEADS = 16, 16
# Relative to the largest number of a step: what rounding in float64 does not reach.
ALIKE = 1e-9


def always(problem: Problem) -> bool:
    """Every problem has it."""
    return True


def once(problem: Problem) -> tuple[None]:
    """No choice."""
    return (None,)


class Seen(NamedTuple):
    """What a kernel returned for some rows, from which a bug's choice can be read."""

    rows: Some
    output: Floats  # (R, Ev)
    lse: Floats | None  # (R,)


@dataclass(frozen=True, eq=False)
class Variant:
    """A bug with its choice made.

    Parameters
    ----------
    bug : Bug
        The bug.
    label : str
        What was chosen, in words: "key tiles of 64"; "" where there is no choice.
    problem : Problem
        What it is computed on.
    choice : object
        What was chosen.
    """

    bug: Bug
    label: str
    problem: Problem
    choice: Any

    def apply(self, rows: Some | None = None) -> AttentionResult:
        """Compute what the wrong kernel computes.

        Parameters
        ----------
        rows : sequence of (int, int, numpy.ndarray of int), optional
            Batch entry, query head, and rows of it. Default: all.

        Returns
        -------
        AttentionResult
            Float64 output (B, H, L, Ev) and lse (B, H, L); with `rows` (R, Ev) and (R,), in their order.
        """
        return run(self.problem, self.bug.steps, self.choice, rows)

    def of(self, right: Head, unit: float) -> Head:
        """Make rows of the wrong kernel from those of the right one.

        Parameters
        ----------
        right : Head
            Rows of a head without a bug.
        unit : float
            Unit roundoff of the kernel's sums.

        Returns
        -------
        Head
            The same rows with the bug.
        """
        return right.changed(self.bug.steps, self.choice, unit)


@dataclass(frozen=True, eq=False, kw_only=True)
class Bug:
    """One mistake that attention kernels had, as a change of a few steps of one attention.

    Parameters
    ----------
    id : str
        Of the entry in the catalogue, "A1"; a word where it is none of the catalogue.
    name : str
        What is wrong, in a line that stands alone.
    family : str
        The part of a kernel that it concerns.
    symptom : str
        What a user sees.
    formula : str
        What the wrong kernel computes.
    links : tuple of str
        Public threads and commits.
    steps : mapping of str to callable
        Rules in place of those of the engine's steps, each a function of a head.
    needs : callable, optional
        Whether a problem has what the bug is about. Default: every problem has.
    choices : callable, optional
        What the bug can be tried with on a problem, such as sizes of tiles. Default: once.
    reads : callable, optional
        Choices that what a kernel returned leaves; where it leaves some, they are tried in the place of `choices`.
        None where too little was returned to tell.
    label : str, default "{}"
        Words for a choice.
    seen_in : str, optional
        Step that must differ from the right one in some row, where the rest costs nothing to look at.
    leftover : bool, default False
        Whether NaN in a result stands for what was in memory before: any number.
    """

    id: str
    name: str
    family: str
    symptom: str
    formula: str
    links: tuple[str, ...] = ()
    steps: Mapping[str, Change] = field(repr=False)
    needs: Callable[[Problem], bool] = field(default_factory=lambda: always, repr=False)
    choices: Callable[[Problem], Iterable[Any]] = field(default_factory=lambda: once, repr=False)
    reads: Callable[[Problem, Seen], Iterable[Any] | None] | None = field(default=None, repr=False)
    label: str = field(default="{}", repr=False)
    seen_in: str | None = field(default=None, repr=False)
    leftover: bool = field(default=False, repr=False)

    def variants(self, problem: Problem, seen: Seen | None = None) -> Iterator[Variant]:
        """Return the bug with each choice that changes something on a problem.

        Parameters
        ----------
        problem : Problem
            What it is to be tried on.
        seen : Seen, optional
            What a kernel returned: the choices of bugs that can be read from it are read.

        Yields
        ------
        Variant
            The bug with one choice.
        """
        if not self.needs(problem):
            return
        read: Iterable[Any] | None = [] if self.reads is None or seen is None else self.reads(problem, seen)
        if read is None:
            return
        for choice in list(read) or self.choices(problem):
            if self.seen_in is None or differs(problem, self.seen_in, self.steps, choice):
                yield Variant(self, "" if choice is None else self.label.format(choice), problem, choice)

    def applies(self, problem: Problem) -> bool:
        """Return whether a problem has the feature that the bug is about.

        Parameters
        ----------
        problem : Problem
            What it is to be tried on.

        Returns
        -------
        bool
            False where the bug would change nothing.
        """
        return next(self.variants(problem), None) is not None

    def apply(self, problem: Problem, rows: Some | None = None) -> AttentionResult:
        """Compute what a kernel with this bug computes, with the first of its choices.

        Parameters
        ----------
        problem : Problem
            What it is computed on.
        rows : sequence of (int, int, numpy.ndarray of int), optional
            Batch entry, query head, and rows of it. Default: all.

        Returns
        -------
        AttentionResult
            Float64 output (B, H, L, Ev) and lse (B, H, L); with `rows` (R, Ev) and (R,), in their order.

        Raises
        ------
        ValueError
            If the bug does not apply to the problem.
        """
        variant = next(self.variants(problem), None)
        if variant is None:
            raise ValueError(f"bugs.Bug.apply: problem must have what {self.id} needs, {self.name!r}; it has not.")
        return variant.apply(rows)


def threads(short: str) -> tuple[str, ...]:
    """Links of threads "FA#282" and commits "FA@9e5e8bc9"."""
    links = []
    for word in short.split():
        repository, _, commit = word.partition("@")
        name, _, number = repository.partition("#")
        kind, at = ("commit", commit) if commit else ("issues", number)
        links.append(f"https://github.com/{REPOSITORIES[name]}/{kind}/{at}")
    return tuple(links)


def sample(problem: Problem) -> Iterator[tuple[int, int, Any]]:
    """A few rows of heads that may differ in what they see: both ends, and some between."""
    B, (H, _) = len(problem.query), problem.heads
    lead = () if problem.mask is None else problem.mask.lead
    heads = range(H if lead and lead[-1] > 1 else problem.group)
    for b, h in itertools.product(range(B), heads):
        yield from some_rows(problem, b, h, min(LOOKED_AT, max(FEWEST, CELLS // max(1, problem.lengths[1]))))


def of_all_heads(problem: Problem) -> Iterator[tuple[int, int, Any]]:
    """A few rows of heads up to a number, evenly over batch and heads."""
    B, (H, _) = len(problem.query), problem.heads
    for n in np.unique(np.linspace(0, B * H - 1, min(B * H, HEADS)).astype(int)):
        yield from some_rows(problem, *divmod(int(n), H), FEWEST)


def some_rows(problem: Problem, b: int, h: int, most: int) -> Iterator[tuple[int, int, Any]]:
    """Rows of a head up to a number, evenly; nothing where it has none."""
    if (L := int(problem.sequences[0][b])) > 0:
        yield b, h, np.unique(np.linspace(0, L - 1, min(L, most)).astype(np.int64))


def differs(problem: Problem, name: str, changes: Mapping[str, Change], choice: Any) -> bool:
    """Whether a step is another one in some of a few rows of each head."""
    with np.errstate(all="ignore"):
        for at in sample(problem) if name == "keep" else of_all_heads(problem):
            wrong, right = (getattr(Head(problem, *at, given, choice), name) for given in (changes, None))
            if not same(wrong, right):
                return True
    return False


def same(a: Any, b: Any) -> bool:
    """Whether two values of a step are alike."""
    if isinstance(a, State):
        return same(a.output, b.output) and same(a.lse, b.lse)
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    with np.errstate(all="ignore"):
        size = np.abs(np.where(np.isfinite(b), b, 0.0)).max(initial=0.0)
        near = (np.abs(a - b) <= ALIKE * size) | (a == b) | ((a != a) & (b != b))
    return bool(near.all())


def spans(problem: Problem, size: int, least: int) -> bool:
    """Whether some row sees keys in at least so many tiles of a size."""
    S = problem.lengths[1]
    if problem.mask is None:
        return -(-int(problem.sequences[1].max()) // size) >= least
    for at in sample(problem):
        keep = Head(problem, *at).keep
        keep = np.pad(keep, ((0, 0), (0, -(-S // size) * size - keep.shape[1])))
        if (keep.reshape(len(keep), -1, size).any(axis=-1).sum(axis=-1) >= least).any():
            return True
    return False


def tile_sizes(problem: Problem) -> tuple[int, ...]:
    """Sizes of key tiles of which the keys need more than one."""
    sizes = TILES if problem.tile_k is None else (problem.tile_k,)
    return tuple(n for n in sizes if n < problem.lengths[1])


def tile_keys(problem: Problem) -> tuple[int, ...]:
    """Sizes of key tiles of which some row sees more than one."""
    return tuple(n for n in tile_sizes(problem) if spans(problem, n, 2))


def tile_rows(problem: Problem) -> tuple[int, ...]:
    """Sizes of query tiles."""
    return SIZES if problem.tile_q is None else (problem.tile_q,)


def tile_pairs(problem: Problem, keys: int | None = None) -> Iterator[tuple[int, ...]]:
    """Sizes of query tiles by sizes of key tiles, each up to the first that holds all, or so many keys."""
    known, (L, S) = (problem.tile_q, problem.tile_k), problem.lengths
    most = (L, S if keys is None else keys)
    return itertools.product(
        *(
            [n for n in SIZES if n - SIZES[0] < m] if size is None else [size]
            for size, m in zip(known, most, strict=True)
        )
    )


def several_keys(problem: Problem) -> tuple[int, ...]:
    """Sizes of key tiles, in small steps, of which the keys need more than one."""
    sizes = SIZES if problem.tile_k is None else (problem.tile_k,)
    return tuple(n for n in sizes if n < problem.lengths[1])


def ragged_tiles(problem: Problem) -> tuple[int, ...]:
    """Sizes of key tiles, in small steps, that do not divide the number of keys."""
    sizes = SIZES if problem.tile_k is None else (problem.tile_k,)
    return tuple(n for n in sizes if np.any(problem.sequences[1] % n))


def has_empty_rows(problem: Problem) -> bool:
    """Whether some row, of those that are looked at, sees no key."""
    return any(not Head(problem, *at).keep.any(axis=-1).all() for at in sample(problem))
