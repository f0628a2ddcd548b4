"""What tiled softmax attention costs: exact counts over the loops of FlashAttention and FlashAttention-2.

Pairs of tiles in which the mask lets no cell take part are skipped, and the mask is asked in partial ones only. A query
tile holds its positions of all query heads that share a key head, so that keys and values are read once for these;
`work.pack_gqa` False gives every query head tiles of its own.
"""

from __future__ import annotations

from types import MappingProxyType

from refattn._core.cost import STATISTIC, Cost, Tally, Work
from refattn.methods.flash.visits import Visits, visits

TILE = (128, 128)  # the larger of the sizes that FlashAttention-2 tunes over, section 3.3


def flash(work: Work) -> Cost:
    """FlashAttention-2, Algorithm 1: for each query tile, all key tiles; the output is written once."""
    tile = tile_of(work, "flash")
    seen, tally, r, Ev = visits(work, tile), Tally(), work.rows, work.features[1]
    q, _, _, o = work.operand_bytes
    tally.moves(q, o)  # lines 4, 14
    tally.moves(seen.all.keys * _key_bytes(work))  # line 7
    _scores(tally, work, seen)  # line 8
    c, rows = seen.all.cells, seen.all.rows
    tally.does(compare=c + rows, add=2 * c + 2 * rows, exp=c + rows, multiply=rows)  # line 9
    tally.does(multiply_add=c * Ev, multiply=rows * Ev)  # line 10
    _dropped(tally, work, seen)
    tally.does(divide=r * Ev)  # line 12
    tally.moves(seen.strips * seen.heads * work.sinks)  # a sink is where m and l begin: m = sink, l = 1
    lse = STATISTIC * r if work.return_lse else 0
    if work.return_lse:
        tally.does(log=r, add=r)  # line 13
        tally.moves(0, lse)  # line 15
    return tally.cost(work, "flash", o + lse, on_chip_bytes=_on_chip(work, tile), tile=tile)


def flash_2022(work: Work) -> Cost:
    """FlashAttention, Algorithm 1: for each key tile, all query tiles; O, l and m are read and rewritten each time."""
    tile = tile_of(work, "flash_2022")
    seen, tally, r, (E, Ev) = visits(work, tile), Tally(), work.rows, work.features
    iq, _, _, io = work.dtype_bytes
    state = Ev * io + 2 * STATISTIC
    tally.moves(work.sinks * work.heads[0], r * state)  # line 2
    tally.moves(seen.columns * _key_bytes(work))  # line 6
    c, rows = seen.all.cells, seen.all.rows
    tally.moves(rows * (E * iq + state))  # line 8
    _scores(tally, work, seen)  # line 9
    tally.does(compare=c, add=2 * c, exp=c)  # line 10
    tally.does(compare=rows, add=3 * rows, exp=2 * rows, multiply=2 * rows)  # line 11
    tally.does(multiply_add=c * Ev, multiply=2 * rows * Ev, add=rows * Ev, divide=rows * Ev)  # line 12
    tally.moves(0, rows * state)  # lines 12, 13
    _dropped(tally, work, seen)
    if work.return_lse:
        tally.does(log=r, add=r)
        tally.moves(2 * STATISTIC * r, STATISTIC * r)
    peak = r * (state + (STATISTIC if work.return_lse else 0))
    return tally.cost(work, "flash_2022", peak, on_chip_bytes=_on_chip(work, tile), tile=tile)


def flash_gradient(work: Work) -> Cost:
    """FlashAttention-2, Algorithm 2: for each key tile, all query tiles; the query's gradient is read and rewritten.

    The output and its log-sum-exp are operands. Line 9 of the paper also loads the output, which no line below it
    uses, and the query's gradient, which line 15 loads: they are counted where they are used.
    """
    tile = tile_of(work, "flash")
    seen, tally, r, (E, Ev) = visits(work, tile), Tally(), work.rows, work.features
    iq, _, _, io = work.dtype_bytes
    q, k, v, o = work.operand_bytes
    tally.moves(0, q)  # line 3
    tally.does(multiply=r * Ev, add=r * Ev)
    tally.moves(2 * o, STATISTIC * r)  # line 4
    tally.moves(seen.columns * _key_bytes(work))  # line 6
    c, rows = seen.all.cells, seen.all.rows
    tally.moves(rows * (2 * E * iq + Ev * io + 2 * STATISTIC), rows * E * iq)  # lines 9, 15
    _scores(tally, work, seen)  # line 10
    tally.does(add=c, exp=c)  # line 11
    tally.does(multiply_add=2 * c * Ev + 2 * c * E)  # lines 12, 13, 15, 16
    tally.does(add=c, multiply=2 * c)  # line 14, and the scale
    if work.dropout is not None:
        tally.does(select=2 * c, multiply=2 * c)
        tally.moves(seen.read(work.dropout, seen.all))
    if work.softcap:
        tally.does(multiply=2 * c, add=c)  # 1 - tanh^2
    if work.bias is not None and not work.bias.rule:
        tally.does(add=c)
        tally.moves(seen.read(work.bias, seen.all), seen.read(work.bias, seen.all))
    if work.sinks:
        tally.does(add=2 * r, exp=r, multiply=r)
        tally.moves(STATISTIC * r + work.heads[0] * work.sinks, work.heads[0] * work.sinks)
    shared = work.heads[0] // work.heads[1] // seen.heads  # gradients of each key, by query heads with own tiles
    tally.moves(0, shared * (k + v))  # line 18
    if shared > 1:
        tally.does(add=shared * (work.elements[1] + work.elements[2]))
        tally.moves(shared * (k + v), k + v)
    peak = q + k + v + STATISTIC * r + (shared * (k + v) if shared > 1 else 0)
    return tally.cost(work, "flash", peak, on_chip_bytes=_on_chip(work, tile), tile=tile)


def tile_of(work: Work, form: str) -> tuple[int, int]:
    """Query positions and keys in a tile: as given, or by FlashAttention's rule for a memory on chip.

    Line 1 of Algorithm 1 is B_c = ceil(M / 4d), B_r = min(B_c, d): a quarter of the M elements for each of the tiles
    of Q, K, V and O, and for that of the scores. For E and Ev features d is their mean.
    """
    if work.return_weights:
        raise ValueError(
            f"cost: return_weights must be False for form={form!r}, which never holds the weights; got True."
        )
    if work.tile is not None and work.on_chip is not None:
        raise ValueError(
            f"cost: tile and on_chip must not both be given; got tile={work.tile} and on_chip={work.on_chip}. "
            "on_chip is what tile follows from."
        )
    if work.on_chip is None:
        return TILE if work.tile is None else work.tile
    twice = sum(work.features)
    keys = -(-(work.on_chip // work.dtype_bytes[0]) // (2 * twice))
    rows = min(keys, -(-twice // 2))
    heads = work.heads[0] // work.heads[1] if work.pack_gqa else 1
    return max(1, rows // heads), max(1, keys)


def _key_bytes(work: Work) -> int:
    """Bytes of a key and its value."""
    (E, Ev), (_, k, v, _) = work.features, work.dtype_bytes
    return E * k + Ev * v


def _scores(tally: Tally, work: Work, seen: Visits) -> None:
    """The scores of the visited cells, and the operands that change them."""
    c, partial = seen.all.cells, seen.partial.cells
    tally.does(multiply_add=c * work.features[0])
    work.changes_scores(tally, c, partial)
    tally.moves(seen.read(work.masked, seen.partial) + seen.read(work.bias, seen.all))


def _dropped(tally: Tally, work: Work, seen: Visits) -> None:
    """Dropout of the weights; its factor goes into the row's divisor."""
    if work.dropout is not None:
        tally.does(select=seen.all.cells, multiply=work.rows)
        tally.moves(seen.read(work.dropout, seen.all))


def _on_chip(work: Work, tile: tuple[int, int]) -> int:
    """Bytes of the tiles of Q, K and V, and in float32 those of scores and output with the rows' m and l."""
    (E, Ev), (L, S) = work.features, work.lengths
    heads = work.heads[0] // work.heads[1] if work.pack_gqa else 1
    rows, keys = heads * min(tile[0], L), min(tile[1], S)
    return rows * E * work.dtype_bytes[0] + keys * _key_bytes(work) + STATISTIC * rows * (keys + Ev + 2)


FORMS = MappingProxyType({"flash": flash, "flash_2022": flash_2022})
GRADIENT_FORMS = MappingProxyType({"flash": flash_gradient})
