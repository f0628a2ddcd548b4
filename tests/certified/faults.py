"""Faults planted in the oracle: a text of a function's source replaced by another, while a test runs."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from typing import Any, NamedTuple

import pytest


class Fault(NamedTuple):
    """What is broken: a text of module.function, and the kind of problem that must show it."""

    name: str
    place: str
    text: str
    instead: str
    kind: str = ""


def plant(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the function by one of the changed source, wherever a module of the oracle has it by name."""
    module_name, *path, name = fault.place.split(".")
    module = importlib.import_module(f"refattn.oracle.{module_name}")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(fault.text) == 1, f"{fault.place} does not say {fault.text!r} once: plant this fault elsewhere"
    made: dict[str, Any] = {}
    exec(compile(source.replace(fault.text, fault.instead), f"<{fault.name}>", "exec"), module.__dict__, made)
    monkeypatch.setattr(owner, name, made[name])
    for other, user in list(sys.modules.items()):
        if other.startswith("refattn.oracle.") and vars(user).get(name) is original:
            monkeypatch.setattr(user, name, made[name])


# By the tier that shows them.
FLOAT64 = (
    Fault("inexact products taken for exact", "float64._scores", "E * U * logit * 1.001", "0.0", "inexact"),
    Fault("products exact to 60 bits", "products.exact_rows", "< 2.0**53", "< 2.0**60", "inexact"),
    Fault("sums that do not round", "float64._sums", " + steps * U", "", "sums"),
    Fault("exponents that do not round", "float64._scores", "slope, more = U, None",
          "slope, more = 0.0, None", "drowned"),
    Fault("a scale that does not round", "float64._scores", "slope += rounding", "slope += 0.0", "near"),
    Fault("a cap that does not round", "float64._scores", "(TANH_ERROR + 1.46 * U)", "0.0", "capped"),
    Fault("a bias that does not round", "float64._scores", "slope += U", "slope += 0.0", "shifted"),
    Fault("a maximum of no size", "float64._scores", "constant += 1.01 * (slope - U) * np.abs(m)", "pass", "shifted"),
    Fault("a sink that is forgotten", "float64._answer", "L = L + p", "L = L + 0.0", "sink"),
    Fault("weights that are lost", "float64._answer", "EXP_LOST * (largest + size)", "0.0", "edge600"),
    Fault("rows that are empty by their weights", "float64._answer", "tile.empty", "~(sums.L > 0)", "extremes"),
    Fault("a factor of dropout that is forgotten", "float64._answer", "output *= factor", "pass", "dropout"),
    Fault("an lse that does not round", "float64._answer", " + 1.01 * U * np.abs(lse)", "", "shifted"),
    Fault("NaN that is seen", "float64._answer", "& ~unreadable &", "&", "poison"),
    Fault("an exponential of 20 bits less", "exponential.exp_in_place", "q += _HALF", "q += 0.5 + 2.0**-20", "pair"),
    Fault("an exponential without its rests", "exponential.exp_in_place", "r += part", "pass", "pair"),
)  # fmt: skip

DOUBLE_DOUBLE = (
    Fault("logits past the last", "double_double._logits", "known &= np.abs(m) < LARGEST_LOGIT", "pass", "top"),
    Fault("products without an error", "double_double._logits", "np.where(sliced, error, 0.0)",
          "0.0 * error", "inexact"),
    Fault("a scale that does not round", "double_double._logits", "MUL_ERROR + 1.01 * scale.error", "0.0", "top"),
    Fault("a cap that does not round", "double_double._logits", "(TANH_DD_ERROR + ", "(", "capped"),
    Fault("a bias that does not round", "double_double._logits", "error += 1.01 * ADD_FLOAT_ERROR * reach",
          "pass", "shifted"),
    Fault("an exponential without an error", "double_double._logits", "(error + EXP_DD_ERROR)", "error", "normal"),
    Fault("sums that do not round", "products.Weighted.errors", "(steps * lacking + 8 * n * ETA)",
          "np.zeros_like(lacking)", "drowned"),
    Fault("values that do not underflow", "double_double._answer", "+ 4 * ETA", "", "subn"),
    Fault("the low part of a sink", "double_double._answer", "*two_sum(p, p_low)", "p, 0 * p_low", "sink"),
    Fault("rows that are empty by their weights", "double_double._answer", "tile.empty",
          "~(sums.sum_high > 0)", "extremes"),
    Fault("the low part of a factor", "double_double._answer", "np.array(rest)", "np.array(0.0)", "dropout"),
    Fault("a polynomial with a wrong term", "exponential.exp_dd_in_place", "1 / 24", "1 / 25", "normal"),
    Fault("slices that are too wide", "products.plan", "CAPACITY - value_bits",
          "CAPACITY + 12 - value_bits", "tiles"),
)  # fmt: skip

ROUNDING = (
    Fault("ties away from zero", "rounding.round_fraction", "count % 2 == 1", "True"),
    Fault("an interval of no width", "rounding.round_interval", "-radius, -math.inf", "0 * radius, -math.inf"),
    Fault("subnormal numbers of full width", "rounding.round_floats", "if small.any()", "if False"),
    Fault("largest numbers that are passed", "rounding.round_floats", "if over.any()", "if False"),
    Fault("an exact tier without a sink", "exact.Row.__init__", "self._scores.append(0)", "self._scores.append(1)"),
    Fault("a turning point without its factor", "exact.Row._side", "turn / self._problem.kept_factor", "turn"),
    Fault("sums that turn the wrong way", "exact.Row._side", "1 if balance > 0 else -1", "-1 if balance > 0 else 1"),
    Fault("what is dropped counts", "exact.Row._values", "x = np.where(self._kept, x, 0.0)", "pass"),
)  # fmt: skip
