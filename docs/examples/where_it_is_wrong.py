"""A kernel that loses a key at the edge of a tile, and the pictures that show where.

Run: python docs/examples/where_it_is_wrong.py [--picture FILE.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import refattn as ra
from refattn.analysis import pictures


def loses_a_key(query, key, value):
    """Causal attention whose second key head never sees key 64, the first of a tile."""
    output = np.array(ra.attention(query, key, value, is_causal=True))
    S = key.shape[-2]
    seen = np.tri(S, dtype=bool) & (np.arange(S) != 64)
    output[:, 2:] = ra.attention(query[:, 2:], key[:, 1:], value[:, 1:], mask=seen)
    return output


def main():
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("verdict.png"), help="where to write the picture")
    picture = parser.parse_args().picture
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, h, 200, 32), dtype=np.float32) for h in (4, 2, 2))
    output = loses_a_key(query, key, value)
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    pictures.verdict(output, query, key, value, is_causal=True, ax=above)
    pictures.verdict(output, query, key, value, is_causal=True, head=(0, 2), ax=below)
    below.set_title("")
    figure.savefig(picture, dpi=110)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
