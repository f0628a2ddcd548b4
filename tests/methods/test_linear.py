"""Linear attention: its feature maps, its three forms, its state, and normalisers that are 0 or negative."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import masks
from refattn.methods.linear.features import NAMED
from tests import linear_oracle as oracle
from tests.agreement import assert_agree
from tests.namespaces import COSTLY, NAMES, Library, name_of

FORMS = ("quadratic", "recurrent", "chunked")
W = np.random.default_rng(5).standard_normal((4, 3))
MAPS: dict[str, tuple[Any, oracle.Similarity]] = {
    **{name: (name, similarity) for name, similarity in oracle.SIMILARITIES.items()},
    "cosformer": ("cosformer", oracle.cosformer(6)),
    "cosformer of 9": (ra.cosformer_features(9), oracle.cosformer(9)),
    "fourier": (ra.fourier_features(W, scale=0.6), oracle.fourier(W, 0.6)),
    "callable": (lambda x: x * x, lambda q, k, i, j: oracle.dot([a * a for a in q], [a * a for a in k])),
}


def drawn(seed: int = 0, L: int = 6, S: int = 6, batch: tuple[int, ...] = (2,)) -> list[np.ndarray]:
    """Query of 4 heads, key and value of 2, (*batch, heads, n, 3); values of 2 features."""
    rng = np.random.default_rng(seed)
    shapes = ((4, L, 3), (2, S, 3), (2, S, 2))
    return [rng.standard_normal((*batch, *shape)) for shape in shapes]


def radius(arrays: list[np.ndarray], **arguments: Any) -> np.ndarray:
    """How far a float64 evaluation may be from another: the proven bound."""
    return ra.linear_error_bound(*arrays, contract=ra.contract.flash("float64"), **arguments)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("name", MAPS)
def test_feature_maps_have_the_products_that_they_are_named_after(name: str, causal: bool) -> None:
    feature_map, similarity = MAPS[name]
    arrays = drawn(batch=())
    keep = np.broadcast_to(np.tri(6, dtype=bool) if causal else np.ones((6, 6), bool), (4, 6, 6))
    given: dict[str, Any] = {"feature_map": feature_map, "is_causal": causal}
    scale = 3**-0.5 if name in ("taylor", "squared") else 1.0
    want = oracle.attention(*arrays, keep, similarity, scale=scale)
    for form in FORMS:
        got = ra.linear_attention(*arrays, **given, form=form, chunk=4)
        assert_agree(got, want, 2 * radius(arrays, **given), what=form)


def test_efficient_attention_normalises_features_over_all_keys() -> None:
    q, k, v = drawn(batch=(), S=5)
    phi_q = np.exp(q) / np.exp(q).sum(axis=-1, keepdims=True)
    phi_k = np.repeat(np.exp(k) / np.exp(k).sum(axis=-2, keepdims=True), 2, axis=0)
    want = phi_q @ (phi_k.swapaxes(-1, -2) @ np.repeat(v, 2, axis=0))
    given: dict[str, Any] = {"feature_map": "efficient"}
    for form in FORMS:  # features of a query add up to 1, and so do those of all keys: the normaliser is 1
        for normalize in (True, False):
            got = ra.linear_attention(q, k, v, **given, form=form, normalize=normalize)
            assert_agree(got, want, 2 * radius([q, k, v], **given))


OPTIONS: dict[str, dict[str, Any]] = {
    "eps": {"eps": 0.5},
    "clamp": {"eps": 4.0, "eps_rule": "clamp"},
    "sums": {"normalize": False, "eps": 7.0},
    "scale": {"scale": -0.7},
    "position": {"position": 3, "feature_map": ra.cosformer_features(9)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    options, arrays = OPTIONS[name], drawn(1, batch=())
    eps = options.get("eps", 0.0)
    divisor = (lambda z: max(z, eps)) if options.get("eps_rule") == "clamp" else (lambda z: z + eps)
    want = oracle.attention(
        *arrays,
        np.broadcast_to(np.tri(6, dtype=bool), (4, 6, 6)),
        oracle.cosformer(9) if name == "position" else oracle.SIMILARITIES["elu+1"],
        scale=options.get("scale", 1.0),
        normalize=options.get("normalize", True),
        divisor=divisor,
        position=options.get("position", 0),
    )
    for form in FORMS:
        got = ra.linear_attention(*arrays, is_causal=True, **options, form=form)
        assert_agree(got, want, 2 * radius(arrays, is_causal=True, **options), what=form)


@given(data=st.data())
@settings(max_examples=40)
def test_the_forms_agree_for_any_chunk_and_a_state_carries_over_any_cut(data: st.DataObject) -> None:
    L, causal = data.draw(st.integers(0, 40)), data.draw(st.booleans())
    chunk, cut = data.draw(st.integers(1, 45)), data.draw(st.integers(0, L))
    name = data.draw(st.sampled_from(["elu+1", "identity", "softmax", "taylor"]))
    arrays = drawn(data.draw(st.integers(0, 999)), L, L, data.draw(st.sampled_from([(), (2,), (1, 2)])))
    given: dict[str, Any] = {"feature_map": name, "is_causal": causal, "return_state": True}
    whole = ra.linear_attention(*arrays, **given)
    allowed = 2 * radius(arrays, feature_map=name, is_causal=causal)
    for form in FORMS:
        other = ra.linear_attention(*arrays, **given, form=form, chunk=chunk)
        assert_agree(other.output, whole.output, allowed, what=form)
        for got, want in zip(other.state, whole.state, strict=True):
            assert_agree(got, want, state_radius(arrays, name, want.shape), what=form)
    if causal:
        forms = [data.draw(st.sampled_from(FORMS)) for _ in range(2)]
        head, tail = ([x[..., part, :] for x in arrays] for part in (slice(0, cut), slice(cut, L)))
        one = ra.linear_attention(*head, **given, form=forms[0], chunk=chunk)
        two = ra.linear_attention(*tail, **given, form=forms[1], chunk=chunk, state=one.state)
        assert_agree(np.concatenate([one.output, two.output], axis=-2), whole.output, allowed, what="cut")
        assert_agree(two.state.S, whole.state.S, state_radius(arrays, name, whole.state.S.shape), what="cut")


def state_radius(arrays: list[np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Two sums over the keys, in any order, of features that are the same numbers in both."""
    _, k, v = arrays
    phi_k, S = np.abs(NAMED[name](k)), k.shape[-2]
    sums = phi_k.swapaxes(-1, -2) @ np.abs(v) if len(shape) == v.ndim else phi_k.sum(axis=-2)
    found: np.ndarray = 2 * (S + 2) * 2.0**-53 * sums
    return found


@pytest.mark.parametrize("step", [1, 4])
def test_decoding_is_causal_attention_with_a_state_of_one_size(step: int) -> None:
    arrays, state = drawn(2, 9, 9), None
    whole = ra.linear_attention(*arrays, is_causal=True, return_normalizer=True)
    allowed = 2 * radius(arrays, is_causal=True)
    for t in range(0, 9, step):
        at = slice(t, t + step)
        got = ra.linear_decode(state, *(x[..., at, :] for x in arrays))
        assert_agree(got.output, whole.output[..., at, :], allowed[..., at, :])
        roundings = 2 * (9 + 3 + 2) * 2.0**-53  # two sums over at most 9 keys and 3 features
        assert_agree(got.normalizer, whole.normalizer[..., at], roundings * whole.normalizer[..., at])
        state = got.state
        assert (state.S.shape, state.z.shape) == ((2, 2, 3, 2), (2, 2, 3))


def test_a_decoder_of_cosformer_counts_positions() -> None:
    arrays, phi, state, outputs = drawn(3), ra.cosformer_features(6), None, []
    for t in range(6):
        output, state, _ = ra.linear_decode(
            state, *(x[..., t : t + 1, :] for x in arrays), feature_map=phi, position=t, eps=0.5
        )
        outputs.append(output)
    given: dict[str, Any] = {"feature_map": "cosformer", "is_causal": True, "eps": 0.5}
    want = ra.linear_attention(*arrays, **given)
    assert_agree(np.concatenate(outputs, axis=-2), want, 2 * radius(arrays, **given))


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_keys_that_are_masked_are_not_read(namespace: Library, causal: bool, poison: float) -> None:
    q, k, v = drawn(4)
    keys = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 0]], bool)[:, None, None, :]
    keep = np.broadcast_to(keys & (np.tri(6, dtype=bool) if causal else True), (2, 4, 6, 6))
    want = oracle.attention(q, k, v, keep, oracle.SIMILARITIES["elu+1"], scale=1.0)
    allowed = 2 * radius([q, k, v], mask=keys, is_causal=causal)
    hidden = ~np.broadcast_to(keys[:, :, 0, :], (2, 2, 6))
    k[hidden], v[hidden] = poison, poison
    arrays, states = [namespace.array(x) for x in (q, k, v)], []
    for form in FORMS:
        got = ra.linear_attention(
            *arrays, mask=namespace.array(keys), is_causal=causal, form=form, chunk=4, return_state=True
        )
        assert_agree(namespace.values(got.output), want, allowed, what=form)
        states.append(namespace.values(got.state.z))
    for state in states[1:]:  # two sums of 6 features, in any order
        assert_agree(state, states[0], 2 * 6 * 2.0**-53 * states[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_comes_later_is_not_felt_in_any_form(value: float) -> None:
    arrays = drawn(6)
    given: dict[str, Any] = {"is_causal": True, "chunk": 4}
    clean = {form: ra.linear_attention(*arrays, **given, form=form) for form in FORMS}
    for x in arrays:
        x[..., 3, :] = value
    for form in FORMS:
        got = ra.linear_attention(*arrays, **given, form=form)
        assert np.array_equal(got[..., :3, :], clean[form][..., :3, :]), form
        assert np.isnan(got[..., 3, :]).all(), form


def test_the_quadratic_form_takes_any_mask() -> None:
    arrays = drawn(7, 5, 6)
    mask = masks.window(1, 2, "upper_left")
    keep = np.broadcast_to(mask.dense(5, 6), (2, 4, 5, 6))
    want = oracle.attention(*arrays, keep, oracle.SIMILARITIES["elu+1"], scale=1.0)
    assert_agree(ra.linear_attention(*arrays, mask=mask), want, 2 * radius(arrays, mask=mask))


def test_a_row_that_sees_nothing_is_0_and_a_state_is_something() -> None:
    q, k, v = drawn(8, 3, 3)
    nothing = np.zeros((1, 3), bool)
    for form in FORMS:
        assert not ra.linear_attention(q, k, v, mask=nothing, form=form).any(), form
        got = ra.linear_attention(q, k[..., :0, :], v[..., :0, :], form=form, return_state=True)
        assert not got.output.any()
        assert not got.state.S.any()
        state = ra.linear_attention(q, k, v, return_state=True, form=form).state
        seen = ra.linear_attention(q, k[..., :0, :], v[..., :0, :], state=state, form=form)
        assert_agree(seen, ra.linear_attention(q, k, v), 2 * radius([q, k, v]))


NEGATIVE = -np.ones((1, 2, 3))


@pytest.mark.parametrize("form", FORMS)
def test_a_normaliser_of_0_is_what_ieee_says_unless_eps_keeps_it_off(form: str) -> None:
    # relu features of a negative query are 0, and so are its weights: the mean over no weight at all.
    _, k, v = drawn(9, 2, 2, ())
    given: dict[str, Any] = {"feature_map": "relu", "form": form, "return_normalizer": True}
    got = ra.linear_attention(NEGATIVE, k[:1], v[:1], **given)
    assert np.isnan(got.output).all()
    assert not got.normalizer.any()
    for rule in ("add", "clamp"):
        assert not ra.linear_attention(NEGATIVE, k[:1], v[:1], **given, eps=1e-6, eps_rule=rule).output.any()
    # Weights 1 and -1 of values 1 and 0: 1 / 0.
    k, v = np.array([[[1.0], [-1.0]]]), np.array([[[1.0], [0.0]]])
    got = ra.linear_attention(np.ones((1, 1, 1)), k, v, **given | {"feature_map": "identity"})
    assert (got.output.item(), got.normalizer.item()) == (math.inf, 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_a_negative_normaliser_add_up_to_1_but_leave_the_hull(form: str) -> None:
    q, k = np.ones((1, 1, 1)), np.array([[[1.0], [-3.0]]])
    v = np.array([[[1.0, 5.0], [0.0, 5.0]]])
    got = ra.linear_attention(q, k, v, feature_map="identity", form=form, return_normalizer=True)
    assert got.normalizer.item() == -2.0
    assert got.output.tolist() == [[[-0.5, 5.0]]]  # weights -1/2 and 3/2
    clamped = ra.linear_attention(q, k, v, feature_map="identity", form=form, eps=0.5, eps_rule="clamp")
    assert clamped.tolist() == [[[2.0, -20.0]]]


@pytest.mark.parametrize("name", ["elu+1", "relu", "taylor", "squared", "cosformer", "fourier", "softmax"])
def test_every_feature_map_on_other_libraries(namespace: Library, name: str) -> None:
    arrays = drawn(10, batch=())
    given: dict[str, Any] = {"feature_map": MAPS[name][0], "is_causal": True, "eps": 0.5}
    want, allowed = ra.linear_attention(*arrays, **given), 2 * radius(arrays, **given)
    for form in FORMS:
        got = ra.linear_attention(*map(namespace.array, arrays), **given, form=form, chunk=4)
        assert name_of(got.dtype) == "float64"
        assert_agree(namespace.values(got), want, allowed, what=form)


def test_states_on_every_library(every: Library) -> None:
    arrays = [x.astype(np.float32) for x in drawn(11, batch=())]

    def in_two(*x: Any) -> Any:
        one = ra.linear_attention(*(a[:, :4, :] for a in x), is_causal=True, return_state=True, form="chunked", chunk=3)
        return ra.linear_decode(one.state, *(a[:, 4:5, :] for a in x))

    got = every.call(in_two, *map(every.array, arrays))
    assert name_of(got.output.dtype) == "float32"
    assert {name_of(x.dtype) for x in got.state} == {"float64"}
    want = ra.linear_attention(*arrays, is_causal=True, dtype="float64")[:, 4:5]
    allowed = ra.linear_error_bound(*arrays, is_causal=True)[:, 4:5]
    assert_agree(every.values(got.output), want, allowed, dtype="float32")


def test_what_is_promised_is_tested() -> None:
    names = {getattr(name, "values", (name,))[0] for name in (*NAMES, *COSTLY)} - {"read-only numpy"}
    for function in (ra.linear_attention, ra.linear_attention_gradient, ra.linear_decode):
        assert set(function.capabilities.namespaces) == names


def test_frequencies_are_drawn_by_the_caller_alone() -> None:
    one = ra.fourier_frequencies(5, 3, rng=7)
    assert np.array_equal(one, ra.fourier_frequencies(5, 3, rng=np.random.default_rng(7)))
    assert not np.array_equal(one, ra.fourier_frequencies(5, 3, rng=8))
