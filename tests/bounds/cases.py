"""Problems that are hard on a kernel's arithmetic, their answers in extended precision, and kernels to draw from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from refattn import contract
from refattn._core.score import Dropout, Score
from tests.bounds.emulator import Eager, Kernel, cut, rounded


class Whole:
    """A mask or bias given as one (L, S) array, as a score asks for it."""

    lead = ()
    readable = True

    def __init__(self, values):
        self.values = values

    def tile(self, i, j, L, S, *, xp, device=None):
        return self.values[i][:, j]

    def hull(self, L, S):
        return None

    interval = hull


@dataclass(frozen=True)
class Case:
    """One head's inputs, exactly as the kernel gets them."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float
    softcap: float | None = None
    bias: np.ndarray | None = None
    keep: np.ndarray | None = None
    sink: float | None = None
    kept: np.ndarray | None = None
    dropout_p: float = 0.0

    def __repr__(self):
        parts = [name for name in ("softcap", "bias", "keep", "sink", "kept") if getattr(self, name) is not None]
        return f"Case(q {self.q.shape}, k {self.k.shape}, v {self.v.shape}, scale {self.scale}, {' '.join(parts)})"

    def run(self, kernel):
        """The kernel's output and log-sum-exp."""
        names = ("scale", "softcap", "bias", "keep", "sink", "kept", "dropout_p")
        arguments = {name: getattr(self, name) for name in names}
        return kernel(self.q, self.k, self.v, **arguments)

    def exact(self, dtype=np.longdouble):
        """Output and log-sum-exp from the definition."""
        q, k, v = (x.astype(dtype) for x in (self.q, self.k, self.v))
        s = q @ k.T * dtype(self.scale)
        s = s if self.softcap is None else dtype(self.softcap) * np.tanh(s / dtype(self.softcap))
        s = s if self.bias is None else s + self.bias
        s = s if self.keep is None else np.where(self.keep, s, -np.inf)
        z = dtype(-np.inf if self.sink is None else self.sink)
        m = np.maximum(s.max(axis=1, keepdims=True), z)
        m = np.where(m > -np.inf, m, 0)
        P = np.exp(s - m)
        l = P.sum(axis=1, keepdims=True) + np.exp(z - m)
        P = P if self.kept is None else P * self.kept / (1 - dtype(self.dropout_p))
        with np.errstate(divide="ignore"):
            return np.where(l > 0, P @ v / np.where(l > 0, l, 1), 0), (m + np.log(l))[:, 0]

    def bound(self, claim, exact=None):
        """What the contract allows, around the exact answer."""
        o, lse = (x.astype(np.float64) for x in exact or self.exact())
        whole = {name: None if x is None else Whole(x) for name, x in (("bias", self.bias), ("mask", self.keep))}
        sink = None if self.sink is None else np.float64(self.sink)
        if self.kept is not None:
            whole["dropout"] = Dropout(Whole(self.kept), self.dropout_p)
        score = Score((len(self.q), len(self.k)), self.scale, self.softcap, sink=sink, **whole)
        rows = np.arange(len(self.q))
        return contract.softmax_bound(claim, contract.Problem(self.q, self.k, self.v, score, rows, o, lse))

    def used(self, kernel, claim):
        """Largest error over bound, of output and log-sum-exp; inf where a promised number is not finite."""
        return self.judged(*self.run(kernel), claim)

    def judged(self, output, lse, claim):
        """The same for an answer that is already there."""
        exact = self.exact()
        bound = self.bound(claim, exact)
        pairs = zip((output, lse), exact, (bound.output, bound.lse), strict=True)
        return [_share(np.asarray(x, dtype=np.longdouble), y, b) for x, y, b in pairs]


def _share(got, exact, bound):
    """max |got - exact| / bound over the elements for which there is a claim."""
    claimed = np.isfinite(bound)
    got, exact, bound = got[claimed], exact[claimed], bound[claimed]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(got == exact, 0, np.abs(got - exact) / bound)
    return float(np.nan_to_num(share, nan=np.inf).max(initial=0))


def gaussian(rng, R, S, E, Ev, dtype):
    """Independent N(0, 1), in the dtype."""
    return tuple(
        rounded(rng.standard_normal(shape), dtype).astype(float) for shape in ((R, E), (S, E), (S, Ev))
    )  # fmt: skip


LAWS = (
    "normal", "hot", "cold", "rising", "falling", "offset_v", "offset_k", "same", "tiny", "huge", "cancel", "sign",
    "one_hot", "tie",
)  # fmt: skip


def inputs(rng, law, R, S, E, Ev, dtype):
    """Query, key, value and scale by one of LAWS."""
    q, k, v = gaussian(rng, R, S, E, Ev, "float64")
    scale = float(rng.choice([E**-0.5, E**-0.5, 1.0, 0.1, -0.3]))
    wide = dtype in ("float32", "bfloat16")
    match law:
        case "hot":
            q *= rng.choice([4, 20, 100])
        case "cold":
            q *= rng.choice([1e-1, 1e-3, 1e-8])
        case "rising" | "falling":
            k[:] = 0
            k[:, 0] = np.arange(S) * rng.choice([0.01, 0.5, 3.0]) * (1 if law == "rising" else -1)
            q[:, 0] = np.abs(q[:, 0]) * np.sign(scale)
        case "offset_v":
            v = v * rng.choice([1e-4, 1e-2, 1]) + rng.choice([1, 100])
        case "offset_k":
            k += rng.choice([3, 10, 30])
        case "same":
            k[:] = k[:1]
        case "tiny":
            q *= 1e-20
            v *= rng.choice([1e-3, 1e-30, 1e-38, 1e-42])
        case "huge":
            v *= 1e15 if wide else 100
        case "cancel":
            v[1::2] = -v[: 2 * (S // 2) : 2]
        case "sign":
            v = np.sign(v)
        case "one_hot":
            v = np.eye(max(S, Ev))[:S, :Ev]
        case "tie":
            return beside_ties(rng, R, S, E, Ev, dtype)
    return (*(rounded(x, dtype).astype(float) for x in (q, k, v)), scale)


def beside_ties(rng, R, S, E, Ev, dtype):
    """Weights that lie just beside the middle of two neighbours of their format, on the side that its value favours."""
    p = {"float16": 11, "float8_e4m3fn": 4}.get(dtype, 8)
    middle = (1 + (2 * rng.integers(0, 2 ** (p - 1), S) + 1) / 2**p) * 2.0 ** -rng.integers(1, 4, S)
    side = rng.choice([-1.0, 1.0], S)
    q, k = np.zeros((R, E)), np.zeros((S, E))
    q[:, 0], k[1:, 0] = 1, (np.log(middle) + side * 2.0**-18)[1:]
    v = (side if rng.random() < 0.5 else np.ones(S))[:, None] * np.ones((1, Ev))
    return (*(rounded(x, "float32").astype(float) for x in (q, k, v)), 1.0)


@st.composite
def cases(draw, dtype):
    """A problem of some law, with some of the features that change a score."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    R, S, E, Ev = (
        draw(st.sampled_from(sizes)) for sizes in ((1, 4, 7), (1, 2, 5, 16, 33, 64, 130), (1, 2, 8, 64), (1, 3, 16))
    )
    q, k, v, scale = inputs(rng, draw(st.sampled_from(LAWS)), R, S, E, Ev, dtype)
    case = Case(q, k, v, scale, softcap=draw(st.sampled_from([None, None, None, 0.5, 5.0, 50.0])))
    distance = np.abs(np.arange(R)[:, None] + S - R - np.arange(S))
    most = 6e4 if dtype == "float16" else 1e9
    match draw(st.sampled_from(["none", "none", "none", "slope", "large", "hide"])):
        case "slope":
            case = replace(case, bias=-rng.random() * distance)
        case "large":
            case = replace(case, bias=1e4 - rng.random() * distance)
        case "hide":
            case = replace(case, bias=np.where(rng.random((R, S)) < 0.3, -most, 0.0))
    if case.bias is not None:
        kept = dtype if dtype in ("float16", "bfloat16") else "float32"
        case = replace(case, bias=rounded(case.bias, kept).astype(float))
    match draw(st.sampled_from(["all", "all", "causal", "random"])):
        case "causal":
            case = replace(case, keep=np.tril(np.ones((R, S), dtype=bool), S - R))
        case "random":
            case = replace(case, keep=rng.random((R, S)) < 0.5)
    sink = draw(st.sampled_from([None, None, -5.0, 0.0, 2.75, 30.0]))
    p = draw(st.sampled_from([None, None, None, 0.1, 0.5, 0.9]))
    if p is not None:
        case = replace(case, kept=rng.random((R, S)) >= p, dropout_p=p)
    return replace(case, sink=sink)


FAMILIES = ("bfloat16", "float16", "float32", "tf32", "float8_e4m3fn")
# Dtype of the operands of those families that are not called by it.
OPERANDS = {"tf32": "float32", "mxfp8": "float8_e4m3fn", "nvfp4": "float8_e4m3fn"}


@st.composite
def kernels(draw, family):
    """A tiled kernel, and the contract that it claims."""
    pick = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    kernel = Kernel(
        tile=pick(16, 17, 32, 64),
        order=pick("forward", "backward", "shuffled"),
        splits=pick(1, 1, 2, 3),
        combine=pick("total", "sum", "chain"),
        exponential=pick("exp", "exp2_fma", "exp2_separate"),
        rescale_noise=pick(0.0, 2.0**-22, -(2.0**-22)),
        one_sided=pick(False, True),
        sum_of_rounded=pick(False, True),
        sink_first=pick(False, True),
        reciprocal=pick(False, True),
        dropout=pick("weights", "rounded", "output"),
        seed=draw(st.integers(0, 999)),
    )
    prescale = pick("none", "none", "query", "log2", "sqrt")
    match family:
        case "bfloat16" | "float16":
            claim = contract.flash(family)
            kernel = replace(
                kernel,
                operand=family,
                prescale=prescale,
                weights=pick(family, family, "float32"),
                output=family,
                matmul=pick("blas", "sequential", "fused", "pairwise", "tensor_core_4", "tensor_core_16"),
                scores=pick("float32", "float32", "float32", family),
                lazy=pick(0.0, 5.5),
                noise=pick(0.0, 2.0**-22, 2.0**-12),
            )
            claim = replace(claim, scores=kernel.scores)
            if prescale != "none":
                claim = replace(claim, rounded=("query", "key") if prescale == "sqrt" else ("query",))
        case "float32":
            kernel = replace(
                kernel,
                prescale=prescale,
                matmul=pick("blas", "sequential", "fused", "pairwise"),
                lazy=pick(0.0, 5.5),
                noise=pick(0.0, 2.0**-22, -(2.0**-20)),
            )
            claim = replace(contract.flash("float32"), lazy=kernel.lazy)
        case "tf32":
            way = pick("nearest", "toward_zero")
            claim = replace(contract.tf32(), rounding=way)
            kernel = replace(
                kernel,
                operand="tf32",
                recast=True,
                cast=rounded if way == "nearest" else cut,
                weights="tf32",
                prescale=prescale,
                matmul=pick("blas", "sequential", "tensor_core_4"),
            )
        case "mxfp8" | "nvfp4":
            claim = getattr(contract, family)(output=pick("bfloat16", "float32"))
            scale = pick("e8m0 down", "e8m0 up") if family == "mxfp8" else pick("e4m3", "e4m3 up")
            weights = pick("float8_e4m3fn", "float8_e5m2") if family == "mxfp8" else "float4_e2m1fn"
            factor = pick(1.0, 128.0) if family == "nvfp4" else 1.0
            claim = replace(
                claim,
                probabilities=weights,
                probability_scale=scale.removesuffix(" up") if family == "nvfp4" else scale,
                rounded_sum=kernel.sum_of_rounded,
            )
            kernel = replace(
                kernel,
                weights=weights,
                tile=pick(32, 64),
                block=claim.probability_block,
                block_scale=scale,
                factor=factor,
                lazy=pick(0.0, 5.5) if factor == 1 else 0.0,
                noise=pick(0.0, 2.0**-12),
                matmul="tensor_core_16",
                output=claim.output,
            )
        case _:
            claim = contract.fp8(output=pick("bfloat16", "float32"))
            kernel = replace(
                kernel,
                operand=family,
                weights=family,
                matmul="hopper_fp8",
                shift=pick(0, 8),
                output=claim.output,
            )
    if kernel.splits > 1 and kernel.combine == "chain":
        claim = replace(claim, merges=kernel.splits)
    return kernel, claim


@st.composite
def eager_kernels(draw, dtype):
    """A plain implementation, and its contract."""
    matmul = draw(st.sampled_from(["blas", "sequential", "tensor_core_4"]))
    return Eager(dtype, draw(st.booleans()), matmul), contract.eager(dtype)
