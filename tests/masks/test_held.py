"""A mask that keeps its array where it is answers as one that has read it."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest

from refattn import masks
from refattn._core.arrays import array_namespace
from refattn.masks.held import Held
from tests.namespaces import Library

RNG = np.random.default_rng(0)
SHAPES = [(4, 5), (1, 5), (4, 1), (1, 1), (2, 4, 5), (2, 1, 5), (3, 2, 1, 5), (3, 1, 4, 1)]
POSITIONS: list[Any] = [slice(0, 4), slice(1, 3), slice(2, 2), np.array([3, 0, 0]), np.array([], np.int64)]


def pair(shape: tuple[int, ...], lib: Library) -> tuple[Held, masks.Mask]:
    """The same cells held in a library, and read."""
    cells = RNG.random(shape) < 0.5
    return Held(lib.array(cells)), masks.array(cells)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("i", POSITIONS, ids=str)
def test_tiles_of_what_is_held_are_those_of_what_was_read(namespace: Library, shape: tuple[int, ...], i: Any) -> None:
    held, read = pair(shape, namespace)
    xp = array_namespace("test", x=held.cells)
    assert held.lead == read.lead == shape[:-2]
    assert repr(held) == repr(read) == f"masks.array(<bool array {shape}>)"
    for j in POSITIONS:
        want = read.tile(i, j, 4, 5, xp=np)
        np.testing.assert_array_equal(namespace.values(held.tile(i, j, 4, 5, xp=xp)), want)
        # Asked for in another namespace, it is read after all.
        np.testing.assert_array_equal(held.tile(i, j, 4, 5, xp=np), want)


@pytest.mark.parametrize("device", [None, array_api_strict.Device("device1")], ids=str)
def test_what_is_read_after_all_is_copied_to_the_device(device: Any) -> None:
    cells = np.ones((2, 2), bool)
    tile = Held(cells).tile(slice(0, 2), slice(0, 2), 2, 2, xp=array_api_strict, device=device)
    assert tile.device == (device or array_api_strict.Device("CPU_DEVICE"))
    cells[...] = False
    assert tile._array.all()


def test_in_its_own_namespace_it_is_not_read() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    held = Held(torch.ones((4, 5), dtype=torch.bool, device="meta"))  # which has no values
    tile = held.tile(slice(1, 3), slice(0, 5), 4, 5, xp=array_namespace("test", x=held.cells))
    assert (tile.device.type, tuple(tile.shape)) == ("meta", (2, 5))


def test_one_batch_entry_and_head(namespace: Library) -> None:
    held, read = pair((3, 2, 4, 5), namespace)
    for index in np.ndindex(3, 2):
        one = held.at(index)
        assert isinstance(one, Held)
        np.testing.assert_array_equal(one.dense(4, 5), read.at(index).dense(4, 5))


def test_what_is_held_cannot_be_read_now(namespace: Library) -> None:
    held, read = pair((4, 5), namespace)
    assert (held.readable, read.readable) == (False, True)
    for made in (held & masks.causal("lower_right"), masks.lengths(3) | held, ~held):
        assert not made.readable
    for made in (read & read, read | read, ~read):
        assert made.readable


@pytest.mark.parametrize(("L", "S"), [(3, 5), (4, 4), (3, 4)])
def test_lengths_that_do_not_fit(namespace: Library, L: int, S: int) -> None:
    held, _ = pair((2, 4, 5), namespace)
    held.check("attention", 4, 5)
    with pytest.raises(ValueError, match="must have the shape") as caught:
        held.check("attention", L, S)
    assert str(caught.value) == (
        f"attention: mask must have the shape (..., L, S), or 1 for either, with L={L} and S={S}; got (2, 4, 5)."
    )


def test_an_axis_of_one_fits_every_length(namespace: Library) -> None:
    held, _ = pair((2, 1, 1), namespace)
    held.check("attention", 7, 9)
    for shape in ((2, 2, 1), (2, 1, 2)):
        with pytest.raises(ValueError, match="must have the shape"):
            pair(shape, namespace)[0].check("attention", 7, 9)
