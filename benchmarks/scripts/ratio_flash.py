"""Compiled flash attention against PyTorch, the machine's own rates, and itself: the table of its bars, as ratios.

Times are taken alternately in one process, the minimum of each (default 7). Rates are relative to NumPy's product of
two 2048 x 2048 float32 matrices and to a float32 sum over the same arrays, in the same run, on as many threads.
Run: python benchmarks/scripts/ratio_flash.py [--threads 2] [--repeat 7] [--only forward,decode]
On a machine that does other work, `--threads 1 --clock cpu` takes processor time in place of the wall's.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

THREADS = next((x for at, x in enumerate(sys.argv) if sys.argv[at - 1] == "--threads"), "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numba import njit  # noqa: E402

import refattn as ra  # noqa: E402

attend = torch.nn.functional.scaled_dot_product_attention
CLOCK = time.process_time if "cpu" in sys.argv else time.perf_counter
PRODUCT = 2048


def least(repeat, *functions):
    """Least seconds of each function, called in turns."""
    best = [math.inf] * len(functions)
    for _ in range(repeat):
        for at, function in enumerate(functions):
            # The threads of OpenBLAS and OpenMP go on turning for some 20 ms after their work is done.
            time.sleep(0.1)
            start = CLOCK()
            function()
            best[at] = min(best[at], CLOCK() - start)
    return best


def drawn(heads, n, E, dtype=np.float32, count=3):
    """Query, key, value, and more, N(0, 1)."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, heads, n, E), dtype=np.float64).astype(dtype) for _ in range(count)]


def ours(arrays, threads, **given):
    """A call of the compiled form."""
    return lambda: ra.flash_attention(*arrays, implementation="numba", threads=threads, **given)


def product():
    """What NumPy makes of two square matrices."""
    a, b = np.random.default_rng(1).standard_normal((2, PRODUCT, PRODUCT), dtype=np.float32)
    return lambda: a @ b


def line(what, value, bar, stretch=None, note=""):
    """One line of the table; a bar is a string with its direction."""
    limit = float(bar[2:])
    held = value >= limit if bar.startswith(">=") else value <= limit
    print(
        f"{what:58} {value:8.2f}  {bar:8} {'' if stretch is None else stretch:6} {'ok' if held else 'MISSED':7} {note}"
    )


def forward(threads, repeat):
    """Forward passes against PyTorch and the rate of a product."""
    against, shares, multiply = [], {False: [], True: []}, product()
    for n, E, causal, heads in (
        (2048, 64, False, 8), (2048, 64, True, 8), (2048, 128, False, 8), (2048, 128, True, 8), (4096, 128, True, 8),
        (8192, 64, True, 4),
    ):  # fmt: skip
        arrays = drawn(heads, n, E)
        tensors = [torch.from_numpy(x) for x in arrays]
        mine, theirs, gemm = least(
            repeat,
            ours(arrays, threads, is_causal=causal),
            lambda t=tensors, c=causal: attend(*t, is_causal=c),
            multiply,
        )
        flops = 4 * E * heads * (n * (n + 1) / 2 if causal else n * n)
        rate = 2 * PRODUCT**3 / gemm
        against.append(theirs / mine)
        shares[causal].append(flops / mine / rate)
        name = f"n {n}, E {E}, H {heads}{', causal' if causal else ''}"
        note = f"{1e-9 * flops / mine:.0f} GFLOP/s; torch {1e-9 * flops / theirs:.0f}, product {1e-9 * rate:.0f}"
        line(f"forward, {name}: over torch", against[-1], ">=0.93", 1.12, note)
    line("forward: over torch, geometric mean", math.exp(np.mean(np.log(against))), ">=1.0", 1.12)
    line("forward, full: least share of the product's rate", min(shares[False]), ">=0.74", 0.85)
    line("forward, causal: least share of the product's rate", min(shares[True]), ">=0.65", 0.85)


def gradient(threads, repeat):
    """Forward and backward passes against PyTorch."""
    against = []
    for n, E, causal in ((2048, 64, False), (2048, 64, True), (2048, 128, False), (2048, 128, True)):
        q, k, v, dO = drawn(8, n, E, count=4)
        tensors = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
        dT = torch.from_numpy(dO)

        def mine(q=q, k=k, v=v, dO=dO, causal=causal):
            ra.flash_attention_gradient(dO, q, k, v, is_causal=causal, implementation="numba", threads=threads)

        def theirs(tensors=tensors, dT=dT, causal=causal):
            attend(*tensors, is_causal=causal).backward(dT)

        a, b = least(repeat, mine, theirs)
        against.append(b / a)
        flops = 14 * E * 8 * (n * (n + 1) / 2 if causal else n * n)
        note = f"{1e-9 * flops / a:.0f} GFLOP/s; torch {1e-9 * flops / b:.0f}"
        line(
            f"forward + backward, n {n}, E {E}{', causal' if causal else ''}: over torch",
            against[-1],
            ">=1.15",
            1.3,
            note,
        )
    line("forward + backward: over torch, geometric mean", math.exp(np.mean(np.log(against))), ">=1.15", 1.3)


def window(threads, repeat):
    """A window against the causal mask, by cells, and against PyTorch with the mask as a tensor."""
    left, n = 255, 16384
    arrays, mask = drawn(2, n, 64), ra.masks.window(left, 0)
    a, b = least(repeat, ours(arrays, threads, mask=mask), ours(arrays, threads, is_causal=True))
    cells = float(mask.count(n, n)) / (n * (n + 1) / 2)
    line(
        f"window({left}, 0), n {n}: over causal time by cells",
        a / b / cells,
        "<=2.0",
        1.5,
        f"whole tiles: {(256 + left) / (left + 1):.2f}",
    )
    n = 8192
    arrays = drawn(4, n, 64)
    tensors, dense = [torch.from_numpy(x) for x in arrays], torch.from_numpy(mask.dense(n, n))
    a, b = least(min(repeat, 3), ours(arrays, threads, mask=mask), lambda: attend(*tensors, attn_mask=dense))
    line(f"window({left}, 0), n {n}: over torch with a tensor", b / a, ">=15", 25)
    documents = ra.masks.documents(np.arange(n) // 512)
    dense = torch.from_numpy(documents.dense(n, n))
    a, b = least(min(repeat, 3), ours(arrays, threads, mask=documents), lambda: attend(*tensors, attn_mask=dense))
    line(f"documents of 512, n {n}: over torch with a tensor", b / a, ">=15", 25)


def blocks(threads, repeat):
    """Block masks against the full time by density."""
    n, rng = 16384, np.random.default_rng(0)
    arrays = drawn(2, n, 64)
    for size in (64, 128):
        for density in (0.02, 0.1, 0.5):
            grid = rng.random((n // size, n // size)) < density
            mask = ra.masks.array(np.kron(grid, np.ones((size, size), bool)))
            lists = mask.blocks(n, n, 256, 128)
            # The lists are made once for all calls with a mask, and the kernel is what is measured.
            held = Listed(lists, mask)
            a, b = least(repeat, ours(arrays, threads, mask=held), ours(arrays, threads))
            line(f"blocks of {size}, density {density}: over full time by cells", a / b / grid.mean(), "<=1.4", 1.2)


class Listed(ra.masks.Mask):
    """A mask whose block lists for one size of tiles are kept."""

    def __init__(self, lists, mask):
        self.lists, self.mask = lists, mask

    def blocks(self, L, S, tile_q, tile_k):
        """The lists."""
        return (
            self.lists
            if (tile_q, tile_k) == (self.lists.tile_q, self.lists.tile_k)
            else self.mask.blocks(L, S, tile_q, tile_k)
        )

    def _tile(self, *arguments, **given):
        return self.mask._tile(*arguments, **given)


@njit(nogil=True, fastmath=True)
def total(x):
    """The sum, in float32."""
    s = np.float32(0)
    for k in range(x.size):
        s += x[k]
    return s


def decode(threads, repeat):
    """One token against a long cache."""
    S, E = 65536, 128
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 32, 1, E), dtype=np.float32)
    k, v = (rng.standard_normal((1, 8, S, E), dtype=np.float32) for _ in range(2))
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    parts = np.array_split(np.arange(threads * 2), threads)
    flat = [k.reshape(-1), v.reshape(-1)]
    pieces = [part for x in flat for part in np.array_split(x, threads)]

    def read():
        helpers = [threading.Thread(target=lambda own=own: [total(pieces[at]) for at in own]) for own in parts]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join()

    read()
    a, b, c = least(
        repeat, lambda: ra.flash_decode(q, k, v, implementation="numba", threads=threads), read,
        lambda: attend(*tensors, enable_gqa=True),
    )  # fmt: skip
    size = 1e-9 * (k.nbytes + v.nbytes)
    line(
        "decode, S 65536, GQA 32/8, E 128: share of read rate",
        b / a,
        ">=0.7",
        0.9,
        f"{size / a:.1f} GB/s of {size / b:.1f}",
    )
    line("decode: over torch", c / a, ">=4", 7, f"torch {size / c:.1f} GB/s")


def double(threads, repeat):
    """float64 against exact attention."""
    arrays = drawn(2, 4096, 64, np.float64)
    a, b = least(min(repeat, 3), ours(arrays, threads), lambda: ra.attention(*arrays))
    line("float64, n 4096: over attention", b / a, ">=2")


def memory(threads, repeat):
    """Peak memory beyond inputs and outputs, in processes of their own."""
    del repeat
    for what, bar, unit in (("forward", "<=32", "MiB beyond packed keys and values"), ("backward", "<=2", "x inputs")):
        code = f"import sys; sys.argv = ['', '--threads', '{threads}']; import ratio_flash as r; r.peak({what!r})"
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
        )  # fmt: skip
        line(f"peak memory, {what}, n 65536, E 64: {unit}", float(found.stdout.split()[-1]), bar)


def held(name):
    """One of the memories that Linux counts for this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(f"{name}:")) / 1024


def peak(what, threads=int(THREADS)):
    """Print the peak of one call."""
    n, E = 65536, 64
    q, k, v, dO = drawn(1, n, E, count=4)
    mask = ra.masks.window(2047, 0)

    def call(n):
        arrays = [x[..., :n, :] for x in (q, k, v)]
        if what == "forward":
            return ra.flash_attention(*arrays, mask=mask, implementation="numba", threads=threads)
        return ra.flash_attention_gradient(dO[..., :n, :], *arrays, mask=mask, implementation="numba", threads=threads)

    call(512)
    # Linux: the mark of the highest memory starts anew from what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    result = call(n)
    grown = held("VmHWM") - before
    outputs = sum(x.nbytes for x in ([result] if what == "forward" else result) if x is not None) / 2**20
    inputs = sum(x.nbytes for x in (q, k, v)) / 2**20
    packed = threads * (k.nbytes + v.nbytes) / 2**20
    print(grown - outputs - packed if what == "forward" else (grown - outputs) / inputs)


def plain(threads, repeat):
    """The reference form against softmax attention written out."""
    del threads
    q, k, v = (x.astype(np.float64) for x in drawn(2, 4096, 64))

    def by_hand():
        S = q @ k.swapaxes(-1, -2) / 8.0
        P = np.exp(S - S.max(axis=-1, keepdims=True))
        return (P / P.sum(axis=-1, keepdims=True)) @ v

    a, b = least(min(repeat, 3), lambda: ra.flash_attention(q, k, v), by_hand)
    line("reference form, n 4096: over three lines of NumPy", a / b, "<=2")


TABLE = (forward, gradient, window, blocks, decode, double, memory, plain)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--only", default=",".join(part.__name__ for part in TABLE))
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu adds up the processor time of all threads: pass --threads 1")
    torch.set_num_threads(given.threads)
    # The load of the machine is part of a measurement: of one that is not idle, only the ratios are worth reading.
    print(f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"NumPy {np.__version__}, torch {torch.__version__}")
    print(f"{'':58} {'ratio':>8}  {'bar':8} {'more':6}")
    for part in TABLE:
        if part.__name__ in given.only.split(","):
            part(given.threads, given.repeat)


if __name__ == "__main__":
    main()
