"""Parts of a problem: some of its batch entries, heads, queries, keys or features, with what belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.cases import asked_of, put_together
from refattn.testing.inputs.problems import Inputs
from refattn.testing.spec import KernelSpec

Index = npt.NDArray[np.int64]


def cut(
    spec: KernelSpec,
    given: Inputs,
    *,
    batch: Index | None = None,
    key_heads: Index | None = None,
    members: Index | None = None,
    rows: Index | None = None,
    keys: Index | None = None,
    features: int | None = None,
    columns: int | None = None,
) -> Inputs:
    """The problem of these batch entries, key heads, members of each group, queries, keys, and first features.

    Of sequences the queries and keys must be the first ones.
    """
    B, H, L, E = given.query.shape
    _, Hk, S, Ev = given.value.shape
    group = H // Hk
    b = np.arange(B) if batch is None else batch
    hk = np.arange(Hk) if key_heads is None else key_heads
    h = (hk[:, None] * group + (np.arange(group) if members is None else members)).reshape(-1)
    i = np.arange(L) if rows is None else rows
    j = np.arange(S) if keys is None else keys
    q = given.query[np.ix_(b, h, i)][..., : E if features is None else features]
    k = given.key[np.ix_(b, hk, j)][..., : E if features is None else features]
    v = given.value[np.ix_(b, hk, j)][..., : Ev if columns is None else columns]
    asked: dict[str, Any] = {}
    for name, x in asked_of(spec, given).items():
        if not isinstance(x, np.ndarray):
            asked[name] = x
        else:
            asked[name] = x[h] if name == "sinks" else x[np.ix_(b, h, i, j)]
    held = None
    if given.batch is not None:
        queries, lengths = (np.minimum(x[b], n) for x, n in ((given.batch.queries, len(i)), (given.batch.keys, len(j))))
        held = Batch(queries, lengths, given.batch.seed, given.batch.prefix if batch is None and keys is None else None)
        i, j = np.arange(int(queries.max(initial=1))), np.arange(int(lengths.max(initial=1)))
        q, k, v = q[:, :, i], k[:, :, j], v[:, :, j]
        cells = ("mask", "bias", "dropout_mask")
        asked = {name: x[..., i, :][..., j] if name in cells else x for name, x in asked.items()}
    return put_together(spec, q, k, v, asked, held)
