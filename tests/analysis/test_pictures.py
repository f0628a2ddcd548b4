"""The pictures draw what they say: each element's error over its bound, where they are, and a head's weights."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.analysis import pictures
from refattn.testing import KernelSpec, Readings, probe
from tests import oracle

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def inputs(L: int = 30, H: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 1, H, L, 8), dtype=np.float32)


def points(ax: Any) -> np.ndarray:
    """What was scattered, as (bound, error)."""
    return np.asarray(ax.collections[0].get_offsets())


def test_each_element_is_a_point_and_a_right_one_lies_below_the_line() -> None:
    x = inputs()
    output = ra.attention(*x, is_causal=True)
    bound, error = points(pictures.error_against_bound(output, *x, is_causal=True)).T
    assert len(bound) == output.size
    assert (error <= bound).all()


def test_a_wrong_element_lies_above_the_line_at_its_error() -> None:
    x = inputs()
    output = np.array(ra.attention(*x))
    right = float(output[0, 1, 7, 3])
    output[0, 1, 7, 3] += 1
    bound, error = points(pictures.error_against_bound(output, *x)).T
    assert np.flatnonzero(error > bound).tolist() == [np.ravel_multi_index((0, 1, 7, 3), output.shape)]
    assert error.max() == pytest.approx(abs(float(output[0, 1, 7, 3]) - right), abs=float(bound.max()))


def test_the_arguments_of_the_call_count() -> None:
    x = inputs()
    bound, error = points(pictures.error_against_bound(ra.attention(*x), *x, is_causal=True)).T
    assert (error > bound).any()


def test_many_elements_are_thinned() -> None:
    x = inputs(L=2000)
    drawn = points(
        pictures.error_against_bound(ra.attention(*x, mask=ra.masks.window(1, 1)), *x, mask=ra.masks.window(1, 1))
    )
    assert pictures.MOST_POINTS / 2 < len(drawn) <= pictures.MOST_POINTS


def test_nothing_to_draw_is_an_empty_picture() -> None:
    x = inputs(L=0)
    assert len(points(pictures.error_against_bound(ra.attention(*x), *x))) == 0


def without_a_key(x: np.ndarray, key: int) -> np.ndarray:
    """Attention whose second head does not see a key."""
    output = np.array(ra.attention(*x))
    seen = np.arange(x.shape[-2]) != key
    output[:, 1:] = ra.attention(*x[:, :, 1:], mask=np.broadcast_to(seen, (x.shape[-2],) * 2))
    return output


def ring(ax: Any) -> list[float]:
    """Where the worst element is marked, as (x, y)."""
    (line,) = ax.lines
    return [float(line.get_xdata()[0]), float(line.get_ydata()[0])]


def test_the_map_of_a_verdict_shows_the_worst_of_each_row_and_names_the_key() -> None:
    x = inputs()
    output = without_a_key(x, 16)
    ax = pictures.verdict(output, *x)
    drawn = ax.images[0].get_array()
    assert drawn.shape == (2, 30)
    assert (drawn[0] < 0).all()
    assert (drawn[1] > 0).all()
    worst = ra.testing.check(output, *x).worst
    assert ring(ax) == [worst.index[2], worst.index[1]]
    assert drawn[worst.index[1], worst.index[2]] == pytest.approx(np.log10(worst.error / worst.bound), rel=1e-12)
    assert ax.get_title().splitlines()[0].endswith(f"at batch 0, head 1, row {worst.index[2]}, column {worst.index[3]}")
    assert ax.get_title().splitlines()[1] == "key 16 takes no part"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0, 0", "0, 1"]


def test_the_map_of_one_head_shows_columns() -> None:
    x = inputs()
    output = np.array(ra.attention(*x))
    output[0, 1, 7, 3] += 1
    ax = pictures.verdict(output, *x, head=(0, 1))
    drawn = ax.images[0].get_array()
    assert drawn.shape == (8, 30)
    assert np.argwhere(drawn > 0).tolist() == [[3, 7]]
    assert ring(ax) == [7, 3]
    assert ax.get_ylabel() == "column of head 0, 1"
    assert np.argwhere(pictures.verdict(output, *x).images[0].get_array() > 0).tolist() == [[1, 7]]


def test_one_wrong_row_of_many_is_seen_and_what_is_not_judged_is_grey() -> None:
    x = inputs(L=600)
    output = np.array(ra.attention(*x, mask=ra.masks.window(1, 1)))
    output[0, 0, 599] += 1
    ax = pictures.verdict(output, *x, mask=ra.masks.window(1, 1))
    drawn = ax.images[0].get_array()
    assert drawn.shape == (2, 200)
    assert np.argwhere(drawn > 0).tolist() == [[0, 199]]
    assert ax.images[0].get_extent() == [-0.5, 599.5, 1.5, -0.5]
    x = inputs()
    unproven = pictures.verdict(ra.attention(*x, scale=1e9), *x, scale=1e9)
    assert unproven.images[0].get_array().mask.all()
    assert unproven.get_title().startswith("not judged: ")


def test_weights_are_those_of_the_head() -> None:
    query, key, value = inputs()
    ax = pictures.weights(query, key, head=(0, 1), is_causal=True)
    rows = [(0, 1, row) for row in range(query.shape[-2])]
    arrays = [x.astype(np.float64) for x in (query, key, value)]
    want = oracle.attention(*arrays, rows=rows, allowed=lambda _, i, j: j <= i)
    P, radius = np.array(want.weights), 2 * np.array(want.weights_radius)
    drawn = ax.images[0].get_array().filled(-np.inf)
    with np.errstate(divide="ignore"):
        low, high = np.log10(P - radius), np.log10(P + radius)
    rounding = 8 * np.spacing(np.where(P > 0, np.abs(high), 1.0))  # of log10 itself, as tests/oracle.py takes it
    assert (drawn[P > 0] >= (low - rounding)[P > 0]).all()
    assert (drawn[P > 0] <= (high + rounding)[P > 0]).all()
    assert (drawn[P == 0] == -np.inf).all()


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError) as caught:
        pictures.weights(*inputs()[:2], head=(0, 0))
    assert str(caught.value) == 'pictures need matplotlib, which is not installed: pip install "refattn[plot]".'


def test_every_cell_of_a_wrong_mask_has_its_colour() -> None:
    def kernel(query: Any, key: Any, value: Any) -> Any:
        return ra.attention(query, key, value, mask=masks.causal("upper_left"))

    spec = KernelSpec(kernel, computes={"mask": masks.causal("lower_right")}, dims=(16,), lengths=((20, 33),))
    ax = pictures.applied_mask(probe(spec, quick=True), head=1)
    asked, applied = (masks.causal(anchor).dense(20, 33) for anchor in ("lower_right", "upper_left"))
    assert np.array_equal(ax.images[0].get_array(), 2 * asked + applied)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"masked ({(~asked).sum()})", "left out, though asked for (260)", f"takes part ({applied.sum()})"]


@pytest.mark.parametrize(
    ("L", "head", "text"),
    [
        (3, (0, 2), r"verdict: head must be an index below \(1, 2\); got \(0, 2\)."),
        (3, (1,), r"verdict: head must be an index below \(1, 2\); got \(1,\)."),
        (0, None, r"verdict: output must have an element to draw; got shape \(1, 2, 0, 8\)."),
    ],
)
def test_what_is_not_there_is_not_drawn(L: int, head: Any, text: str) -> None:
    x = inputs(L=L)
    with pytest.raises(ValueError, match=text):
        pictures.verdict(ra.attention(*x), *x, head=head)


@pytest.mark.parametrize(
    ("readings", "head", "error", "text"),
    [
        (3, 0, TypeError, "applied_mask: readings must be a Readings; got int."),
        (Readings(), 0, ValueError, "must have a mask that differs from the one asked for; got none."),
        (
            Readings(applied_mask=np.ones((2, 3, 3), bool), asked_mask=np.zeros((2, 3, 3), bool)),
            2,
            ValueError,
            "applied_mask: head must be from 0 to 1; got 2.",
        ),
    ],
)
def test_what_has_no_picture_is_refused(readings: Any, head: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pictures.applied_mask(readings, head=head)
