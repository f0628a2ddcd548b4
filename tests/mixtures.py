"""Calls of the public functions in which good and bad arguments are mixed, and what the oracle says of those that pass.

A call begins as a good problem; then up to three of its arguments are put in the place of others, most of them bad.
"""

from __future__ import annotations

import importlib.util
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import scipy.sparse
from hypothesis import strategies as st

import refattn as ra
from refattn import biases, masks
from tests import oracle
from tests import strategies as draws
from tests.namespaces import Library
from tests.strategies import NONE, Choice, Problem, cell
from tests.tiny import tiny_problems

TORCH = importlib.util.find_spec("torch") is not None
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int8", "uint64",
    "bool", "complex128", "object", "U3", "M8[s]", "longdouble", ">f8", "i4,f4",
)  # fmt: skip
NO_ARRAYS = (None, 1.0, "x", [[[1.0]]], (), np.float64(1), object(), np.zeros, Ellipsis, {}, math.nan)
NUMBERS = (
    None, 0, 1, -1, -0.0, 0.5, 1e4, 5e-324, 1e308, True, np.True_, math.nan, math.inf, -math.inf, "1", 10**400,
    -(10**400), np.float32(2), np.int8(-3), np.longdouble(1.5), Fraction(1, 3), Fraction(10**400), Decimal("0.5"), 1j,
    np.complex64(1), np.array(0.5), [1.0], ml_dtypes.bfloat16(1.5),
)  # fmt: skip
FLAGS = (True, False, np.True_, np.False_, 1, 0, None, "yes", [], np.ones(2), np.array(True))
OUTPUTS = (
    None, "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e8m0fnu", "float99",
    "", "int8", np.float32, np.dtype("float16"), np.float64(1), ml_dtypes.bfloat16, float, int, complex, bool, str,
    object, np.floating, 3, [1], Problem, np.dtype("i4,f4"),
)  # fmt: skip
ROWS = (
    None, 3, "rows", [], (), {}, {(0, 0)}, [[]], [(0,)], [(0, 0)], [(0, 0, 0)], [(0.5, 0)], [(-1, 0)], [(0, 10**30)],
    [(0, 0), (0,)], [("0", "0")], [(True, False)], np.zeros((0, 3)), np.zeros((2, 2, 2), int),
    np.full((1, 2), 2**63, np.uint64), np.array(0), np.array([[0, 0]], dtype=object), math.nan,
)  # fmt: skip


SIZES = (None, 1, 2, 7, 10**9, np.int64(3), 0, -1, True, 1.5, "2", math.nan, [1])


def reshaped(draw: st.DrawFn, x: np.ndarray) -> Any:
    """The array with an axis or a length that is wrong, or that only looks wrong."""
    if x.ndim == 0:
        return x[None]
    options: list[Any] = [
        x[..., :0], x[..., :1], x[..., ::-1], x[:0], x[:1], x[..., None], x[None], x.ravel(), np.asfortranarray(x),
        np.concatenate([x, x], axis=0), np.concatenate([x, x], axis=-1), np.swapaxes(x, 0, -1),
    ]  # fmt: skip
    if x.ndim > 1:
        options += [x[..., :1, :], x[..., :0, :], np.concatenate([x, x], axis=-2), np.swapaxes(x, -1, -2)]
    if x.size:
        options += [x[0], x.ravel()[0:1].reshape(()), np.broadcast_to(x[..., :1], x.shape)]
    return draw(st.sampled_from(options))


def recast(draw: st.DrawFn, x: np.ndarray) -> Any:
    """The array in another dtype."""
    name = draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        if name == "i4,f4":
            return np.zeros(x.shape, dtype=name)
        if name in ("M8[s]", "uint64", "int8", "bool"):
            return np.zeros(x.shape, dtype=name)
        return x.astype(np.float64).astype(getattr(ml_dtypes, name, name))


def wrapped(draw: st.DrawFn, x: np.ndarray) -> Any:
    """The array of another library, or in the clothes of something that is no array."""
    strict = importlib.import_module("array_api_strict")
    options = [
        lambda: strict.asarray(x), lambda: np.ma.masked_array(x), lambda: x.tolist(), lambda: memoryview(x.copy()),
        lambda: scipy.sparse.coo_array(x.reshape(1, -1)) if x.size else x,
    ]  # fmt: skip
    if TORCH:
        options.append(lambda: importlib.import_module("torch").tensor(x))
    return draw(st.sampled_from(options))() if x.dtype.name in ("float64", "bool") else x


def other_array(draw: st.DrawFn, x: np.ndarray) -> Any:
    """What stands in the place of an array."""
    match draw(st.sampled_from(["shape", "shape", "dtype", "dtype", "library", "no array", "values"])):
        case "shape":
            return reshaped(draw, x)
        case "dtype":
            return recast(draw, x)
        case "library":
            return wrapped(draw, x)
        case "values":
            return np.full(x.shape, draw(st.sampled_from(draws.EXTREME)))
    return draw(st.sampled_from(NO_ARRAYS))


def other_mask(draw: st.DrawFn, problem: Problem) -> Any:
    """What stands in the place of a mask."""
    (H, _), (L, S), batch = problem.heads, problem.lengths, problem.batch
    if draw(st.booleans()):
        return draw(draws.problem_masks(batch, H, L, S))
    cells = np.random.default_rng(problem.seed).random((*batch, H, L, S)) < 0.5
    options: list[Any] = [
        masks.causal(), masks.causal("lower_right"), masks.window(0, None), masks.lengths(S + 1),
        masks.lengths([0, S, 0]), masks.causal([0] * (len(batch) + 2)), masks.array(np.ones((3, 3), bool)),
        masks.from_function(lambda b, h, q, kv: 1), masks.from_function(lambda b, h, q, kv: None),
        masks.from_function(lambda b, h, q, kv: np.ones((7, 7, 7), bool)),
        masks.from_function(lambda b, h, q, kv: q >= kv, heads=H + 1), ~masks.lengths(0), "causal", len,
        biases.alibi(H),
    ]  # fmt: skip
    return draw(st.sampled_from(options)) if draw(st.booleans()) else other_array(draw, cells)


def other_bias(draw: st.DrawFn, problem: Problem) -> Any:
    """What stands in the place of a bias."""
    (H, _), (L, S) = problem.heads, problem.lengths
    if draw(st.booleans()):
        return draw(draws.problem_biases(problem.batch, H, L, S))
    if draw(st.booleans()):
        options = [
            biases.alibi(H + 1),
            biases.alibi(H),
            biases.alibi(np.ones((2, 3, H))),
            biases.relative(np.zeros((H + 1, 3)), anchor=0),
            biases.alibi(H, anchor=[0] * (len(problem.batch) + 2)),
            biases.from_function(lambda b, h, q, kv: np.where(q == kv, math.nan, 0.0)),
            biases.from_function(lambda b, h, q, kv: q >= kv),
            biases.from_function(lambda b, h, q, kv: None),
            biases.from_function(lambda b, h, q, kv: np.ones((7, 7, 7))),
            masks.causal("upper_left"),
            0.0,
        ]
        return draw(st.sampled_from(options))
    return other_array(draw, np.random.default_rng(problem.seed).standard_normal((H, L, S)))


@st.composite
def calls(draw: st.DrawFn, function: str) -> dict[str, Any]:
    """Arguments of a function by name; a mask or bias whose rule the oracle knows as a Choice."""
    dtypes = ("float64", "float64", "float32", "bfloat16", "float8_e4m3fn", "int8")
    problem = draw(draws.problems(dtypes, most=9) | draws.problems(dtypes, most=9) | tiny_problems())
    query, key, value = problem.arrays
    call: dict[str, Any] = {
        "query": query, "key": key, "value": value, "mask": problem.mask, "bias": problem.bias,
        "is_causal": problem.is_causal, "scale": problem.scale, "softcap": problem.softcap,
        "sinks": None if problem.sinks is None else np.array(problem.sinks), "dropout_mask": problem.dropout_mask,
        "dropout_p": problem.dropout_p, "dtype": problem.to, "return_lse": True,
    }  # fmt: skip
    others: dict[str, Any] = {
        **{name: lambda name=name: other_array(draw, call[name]) for name in ("query", "key", "value")},
        "mask": lambda: other_mask(draw, problem),
        "bias": lambda: other_bias(draw, problem),
        "is_causal": lambda: draw(st.sampled_from(FLAGS)),
        "scale": lambda: draw(st.sampled_from(NUMBERS)),
        "softcap": lambda: draw(st.sampled_from(NUMBERS)),
        "sinks": lambda: other_array(draw, np.zeros(problem.heads[0])),
        "dropout_mask": lambda: other_mask(draw, problem),
        "dropout_p": lambda: draw(st.sampled_from(NUMBERS)),
        "dtype": lambda: draw(st.sampled_from(OUTPUTS)),
        "return_lse": lambda: draw(st.sampled_from(FLAGS)),
    }
    rows = (*problem.batch, problem.heads[0], problem.lengths[0])
    match function:
        case "attention":
            others["return_weights"] = lambda: draw(st.sampled_from(FLAGS))
        case "attention_rows":
            call["rows"] = problem.rows(4)
            others["rows"] = lambda: draw(st.sampled_from(ROWS))
        case "attention_gradient" | "flash_attention_gradient":
            call |= {"grad_output": np.ones((*rows, problem.features[1])), "grad_lse": np.ones(rows)}
            for name in ("grad_output", "grad_lse"):
                others[name] = lambda name=name: other_array(draw, call[name])
        case "attention_scores":
            stages = ["raw", "softcapped", "weights", "log_weights", "", 3, None]
            others["stage"] = lambda: draw(st.sampled_from(stages))
    for name in ("tile_q", "tile_k", "splits"):
        call[name] = draw(st.sampled_from(SIZES[:6]))
        others[name] = lambda: draw(st.sampled_from(SIZES))
    if function != "attention_rows":
        others["implementation"] = lambda: draw(
            st.sampled_from([None, "reference", "numba", "", 3, ["reference"], np.ones(2)])
        )
    declared = getattr(ra, function).capabilities
    known = {*declared.inputs, *declared.arguments, "implementation"}
    call, others = ({name: x for name, x in of.items() if name in known} for of in (call, others))
    number = draw(st.sampled_from([0, 1, 1, 2, 3]))
    for name in draw(st.lists(st.sampled_from(sorted(others)), unique=True, min_size=number, max_size=number)):
        call[name] = others[name]()
    if any(np.shape(call[name]) != x.shape for name, x in (("query", query), ("key", key))):
        # The rules of the masks and biases know the lengths that they were drawn for.
        call |= {name: x.given for name, x in call.items() if isinstance(x, Choice)}
    return call


def given_arguments(call: dict[str, Any], library: Library | None = None) -> dict[str, Any]:
    """The arguments as refattn gets them, NumPy arrays moved to a library if there is one."""
    plain = {name: x.given if isinstance(x, Choice) else x for name, x in call.items()}
    if library is None:
        return plain
    held = {"bool", *library.dtypes}
    return {
        name: library.array(x) if isinstance(x, np.ndarray) and x.dtype.name in held and name != "rows" else x
        for name, x in plain.items()
    }


def answer(call: dict[str, Any], rows: list[tuple[int, ...]], tiles: int = 1) -> oracle.Answer | None:
    """What the oracle says of some rows of a call that passed; None where the rule of its mask or bias isn't known."""
    mask, bias, kept = (_ruled(call.get(name)) for name in ("mask", "bias", "dropout_mask"))
    if mask is None or bias is None or kept is None:
        return None
    causal = bool(call.get("is_causal", False))
    with np.errstate(all="ignore"):
        arrays = [np.asarray(call[name]).astype(np.float64) for name in ("query", "key", "value")]
        sinks = call.get("sinks")
        return oracle.attention(
            *arrays,
            rows=rows,
            allowed=lambda index, i, j: (not causal or j <= i) and (mask.rule is None or mask.rule(index, i, j)),
            bias=bias.rule,
            scale=None if call.get("scale") is None else float(call["scale"]),
            softcap=None if call.get("softcap") is None else float(call["softcap"]),
            sinks=None if sinks is None else np.asarray(sinks).astype(np.float64),
            kept=kept.rule,
            dropout_p=float(call.get("dropout_p", 0.0)),
            tiles=tiles,
        )


def _ruled(x: Any) -> Choice | None:
    """A mask or bias with its rule; None where it is not known."""
    if x is None or isinstance(x, Choice):
        return x or NONE
    return Choice("array", x, lambda *at: float(cell(x, *at))) if isinstance(x, np.ndarray) else None
