"""exp, tanh and log of both tiers against balls of python-flint: no error exceeds its proven bound."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flint import arb, ctx, fmpz
from hypothesis import given
from hypothesis import strategies as st

from refattn.oracle import exponential
from refattn.oracle.arithmetic import U
from refattn.oracle.exponential import (
    EXP_DD_ERROR,
    EXP_ERROR,
    EXP_HIGHEST,
    EXP_LOST,
    EXP_LOWEST,
    TANH_DD_ERROR,
    TANH_ERROR,
    exp,
    exp_dd,
    exp_dd_in_place,
    exp_in_place,
    log,
    log_dd,
    tanh,
    tanh_dd,
)
from refattn.oracle.tables import OCTAVE, tables

STEP = math.log(2) / OCTAVE
BITS = 200
# Where the errors of exp were largest among 42 million arguments, at up to 1.00405 u, and where they would be with the
# Taylor coefficients, at up to 1.0188 u.
HARD = (
    "0x1.633482ce6f462p-14", "0x1.624ba3bdd1f6dp-14", "0x1.611fc147dc4e6p-14", "0x1.618e1ff671932p-14",
    "0x1.0a1dd4a345625p-12", "0x1.09b46fd8ef433p-12", "0x1.62e3c4a1ee57cp-14", "0x1.624107e11466ap-14",
    "0x1.65332ad7cc142p-14", "0x1.60a46c8ad167ep-14", "0x1.65828ba4a697ep-14", "0x1.64d80d37d2daap-14",
)  # fmt: skip


def _ball(x):
    return arb(float(x))


def _bound(ball):
    """A float64 that a ball's magnitude does not exceed, but for its last place."""
    return float(ball.abs_upper())


def _worst(results, exact, arguments, *, relative=True):
    """The largest error of results, each a sum of parts, against a function of balls."""
    worst = 0.0
    with ctx.workprec(BITS):
        for result, argument in zip(zip(*results, strict=True), zip(*arguments, strict=True), strict=True):
            truth = exact(sum(map(_ball, argument), arb(0)))
            error = sum(map(_ball, result), -truth)
            worst = max(worst, _bound(error / truth if relative else error))
    return worst


def _points(rng, count):
    """Arguments of exp: everywhere, as scores are, at the ends and edges of the cells, tiny, and at the limits."""
    cells = np.concatenate([rng.integers(-3_545_000, 4_130_000, count), rng.integers(-20_000, 20_000, count)])
    edges = (cells + 0.5) * STEP
    few = np.array([0.0, -0.0, STEP / 2, -STEP / 2, STEP, -STEP, 1.5 * STEP, -1.5 * STEP, 5e-324, -2.2e-308, 2.0**-9])
    return np.concatenate([
        rng.uniform(EXP_LOWEST, EXP_HIGHEST, count),
        rng.standard_normal(count) * 8,
        rng.standard_normal(count) * 2.0 ** rng.integers(-80, 0, count),
        cells * STEP,
        edges,
        np.nextafter(edges, np.inf),
        np.nextafter(edges, -np.inf),
        few,
        np.nextafter(few, np.inf),
        np.nextafter(few, -np.inf),
        [EXP_LOWEST, EXP_HIGHEST],
        [float.fromhex(x) for x in HARD],
    ])  # fmt: skip


def _lows(rng, high):
    """Low parts of the double-doubles, and now and then one as large as is allowed."""
    low = rng.uniform(-1, 1, high.size) * np.spacing(np.abs(high)) / 2
    return np.where(rng.random(high.size) < 0.1, rng.choice([-(2.0**-43), 2.0**-43], high.size), low)


def test_table_is_what_the_lemma_says():
    constants = tables()
    for first, unit in ((constants.first, 2.0**-43), (constants.second, 2.0**-74)):
        assert first / unit == round(first / unit)
        assert abs(first / unit) < 2**31
    powers = (constants.bits + (np.arange(OCTAVE) << 40)).view(np.float64)
    assert np.array_equal(powers * 2**32, np.rint(powers * 2**32))
    assert abs(constants.rests).max() <= 2.0**-33
    with ctx.workprec(BITS):
        step = arb(2).log() / OCTAVE
        first, second, third = map(_ball, (constants.first, constants.second, constants.third))
        assert _bound(step - first) <= 2.0**-44
        assert _bound(step - first - second) <= 2.0**-75
        assert _bound(step - first - second - third) <= 2.0**-127
        assert _bound(_ball(constants.after_first) - second - third) <= 2.0**-97
        for j, (power, rest) in enumerate(zip(powers, constants.rests, strict=True)):
            assert _bound(_ball(power).log() + _ball(rest) - step * j) <= 2.0**-86.9


def test_exp_keeps_its_bound():
    x = _points(np.random.default_rng(0), 500)
    assert _worst([exp(x)], arb.exp, [x]) <= EXP_ERROR


@given(st.floats(EXP_LOWEST, EXP_HIGHEST))
def test_exp_keeps_its_bound_anywhere(x):
    x = np.array([x])
    assert _worst([exp(x)], arb.exp, [x]) <= EXP_ERROR
    low = np.spacing(np.abs(x)) / 2
    assert _worst(exp_dd(x, low), arb.exp, [x, low]) <= EXP_DD_ERROR


def test_exp_dd_keeps_its_bound():
    rng = np.random.default_rng(1)
    x = _points(rng, 500)
    low = _lows(rng, x)
    result = exp_dd(x, low)
    assert _worst(result, arb.exp, [x, low]) <= EXP_DD_ERROR
    high, low = result
    assert (np.abs(low) <= (1 + 2.0**-12) * np.spacing(high) / 2).all()


def test_what_is_lost_below_the_lowest_argument():
    with ctx.workprec(BITS):
        assert arb(EXP_LOWEST).exp() < arb(2) ** fmpz(math.frexp(EXP_LOST)[1] - 1)


def test_an_array_is_its_elements():
    # Longer than a chunk of either form, and not a multiple of it.
    x = np.random.default_rng(2).standard_normal(max(exponential._CHUNK, exponential._CHUNK_DD) + 3)
    some = [0, 7, exponential._CHUNK_DD - 1, exponential._CHUNK_DD, exponential._CHUNK - 1, exponential._CHUNK, -1]
    low = 2.0**-60 * x
    for function, arguments in ((exp, [x]), (exp_dd, [x, low]), (tanh, [x]), (tanh_dd, [x, low])):
        whole = np.atleast_2d(function(*arguments))
        for i in some:
            one = np.atleast_2d(function(*(argument[i].reshape(1) for argument in arguments)))
            assert np.array_equal(whole[:, i], one[:, 0])


def test_in_place_forms_write_arrays_of_any_shape():
    x = np.random.default_rng(3).standard_normal((3, 5, 7))
    low = 2.0**-60 * x
    y = x.copy()
    exp_in_place(y)
    assert np.array_equal(y, exp(x))
    high, rest = x.copy(), low.copy()
    exp_dd_in_place(high, rest)
    assert np.array_equal([high, rest], exp_dd(x, low))
    assert np.array_equal(x[:, ::2], np.random.default_rng(3).standard_normal((3, 5, 7))[:, ::2])
    for empty in (np.zeros((0, 4)), np.zeros(0)):
        exp_in_place(empty)
        assert exp(empty).shape == tanh(empty).shape == exp_dd(empty, empty)[0].shape == empty.shape


def test_arrays_that_do_not_flatten_are_refused():
    wide = np.zeros((4, 6))
    with pytest.raises(ValueError, match="copy"):
        exp_in_place(wide[:, :5])
    with pytest.raises(ValueError, match="copy"):
        exp_dd_in_place(np.zeros((4, 5)), wide[:, :5])
    exp_in_place(wide[:, ::2])
    assert np.array_equal(wide, np.tile([1.0, 0.0], (4, 3)))
    assert np.array_equal(exp(np.zeros((4, 6))[:, :5]), np.ones((4, 5)))


def test_nan_stays_nan_and_alone():
    x = np.array([1.0, math.nan, -2.0])
    for result in (exp(x), exp_dd(x, np.zeros(3))[0], tanh(x)):
        assert np.array_equal(np.isnan(result), [False, True, False])


def test_threads_do_not_share_their_buffers():
    arrays = [np.random.default_rng(seed).standard_normal(20_000) for seed in range(2)]
    start = threading.Barrier(len(arrays))

    def answers(x):
        start.wait()
        return {function(x).tobytes() for _ in range(40) for function in (exp, lambda x: exp_dd(x, 0 * x)[0])}

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(arrays)) as pool:
            results = list(pool.map(answers, arrays))
    finally:
        sys.setswitchinterval(interval)
    for x, result in zip(arrays, results, strict=True):
        assert result == {exp(x).tobytes(), exp_dd(x, 0 * x)[0].tobytes()}


def _tanh_points(rng):
    x = _points(rng, 200)
    return np.concatenate([x, rng.standard_normal(500), rng.uniform(-20, 20, 500), [-299.99, 300.0, 300.1, 1e5, 1e300]])


def test_tanh_keeps_its_bound():
    x = _tanh_points(np.random.default_rng(4))
    y = tanh(x)
    assert _worst([y], arb.tanh, [x], relative=False) <= TANH_ERROR
    assert np.array_equal(tanh(-x), -y)
    assert np.array_equal(tanh(np.array([math.inf, -math.inf])), [1.0, -1.0])


def test_tanh_dd_keeps_its_bound():
    rng = np.random.default_rng(5)
    x = _tanh_points(rng)
    low = rng.uniform(-1, 1, x.size) * np.spacing(np.abs(x)) / 2
    result = tanh_dd(x, low)
    assert _worst(result, arb.tanh, [x, low], relative=False) <= TANH_DD_ERROR
    assert np.array_equal(tanh_dd(-x, -low), np.negative(result))


def _log_points(rng):
    sizes = rng.standard_normal(400) * 2.0 ** rng.integers(-60, 0, 400)
    return np.concatenate([
        rng.uniform(0.4, 2, 400), 2.0 ** rng.uniform(-721, 721, 400), 1 + sizes, [0.4, 1.0, 1 - U, 1 + 2 * U, 2.0],
    ])  # fmt: skip


def _certified_logs(x, low, guess):
    """Errors of both forms in units of what they claim, at most 1, where np.log is replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "log", guess)
        (value, error), (high, rest, error_dd) = log(x), log_dd(x, low)
    shares = []
    for parts, claimed, arguments in (((value,), error, (x,)), ((high, rest), error_dd, (x, low))):
        assert np.isfinite(claimed).all()
        shares += [
            _worst([[p] for p in part], arb.log, [[a] for a in argument], relative=False) / bound
            for *part, bound, argument in zip(*parts, claimed, zip(*arguments, strict=True), strict=True)
        ]
    return max(shares)


def test_log_keeps_the_bound_that_it_gives():
    rng, true_log = np.random.default_rng(6), np.log
    x = _log_points(rng)
    low = rng.uniform(-1, 1, x.size) * np.spacing(x) / 2
    assert _certified_logs(x, low, true_log) <= 1
    # Guesses that are off by far more than what is claimed, and still near enough.
    assert _certified_logs(x, low, lambda y: true_log(y) + rng.uniform(-0.9, 0.9, y.size) * 2.0**-40) <= 1
    assert (log(x)[1] <= 2.1 * U + 1.01 * U * np.abs(true_log(x)) * (1 + 2.0**-20)).all()
    assert (log_dd(x, low)[2] <= 1.13 * EXP_DD_ERROR).all()


@pytest.mark.parametrize("off", [2.0**-39, -(2.0**-39), 0.1, -3.0, math.nan])
def test_log_claims_nothing_from_a_bad_guess(off):
    x, true_log = np.array([0.4, 1.0, 3.0, 1e5]), np.log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "log", lambda y: true_log(y) + off)
        assert np.array_equal(log(x)[1], np.full(4, np.inf))
        assert np.array_equal(log_dd(x, np.zeros(4))[2], np.full(4, np.inf))


def test_log_claims_nothing_outside_its_range():
    x = np.array([1e-230, 1e230])
    assert np.array_equal(log(x)[1], [np.inf, np.inf])
    assert np.array_equal(log_dd(x, np.zeros(2))[2], [np.inf, np.inf])


def test_no_library_function_enters_a_value(monkeypatch):
    x = np.random.default_rng(7).standard_normal(50) * 8
    low = 2.0**-60 * x
    functions = ((exp, [x]), (exp_dd, [x, low]), (tanh, [x]), (tanh_dd, [x, low]))
    expected = [function(*arguments) for function, arguments in functions]
    for name in ("exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "sinh", "cosh", "power"):
        monkeypatch.setattr(np, name, None)
    tables.cache_clear()
    for (function, arguments), result in zip(functions, expected, strict=True):
        assert np.array_equal(function(*arguments), result)
