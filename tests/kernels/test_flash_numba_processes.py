"""Compiled kernels beside all that a process may do: fork, call from several threads, interrupt, fail."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from refattn._core import numba as workers
from refattn.methods.flash.kernel_numba import run_forward
from tests.kernels.flash_calls import assert_same_bits, backward, decode, drawn, forward

FORKED = """
import os, sys
import numpy as np
from tests.kernels.flash_calls import backward, decode, drawn, forward

arrays = drawn(0, (70, 100), heads=(4, 2))
want = [f(arrays, threads=2) for f in (forward, backward, decode)]
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        found = [f(arrays, threads=2) for f in (forward, backward, decode)]
        same = all(np.array_equal(x, y) for a, b in zip(want, found) for x, y in zip(a, b) if x is not None)
        os._exit(0 if same else 3)
    children.append(child)
found = [forward(arrays, threads=2)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_ran_kernels_may_fork():
    result = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_calls_from_several_threads():
    problems = [drawn(seed, (70, 100), heads=(4, 2)) for seed in range(3)]
    functions, found = (forward, backward, decode), {}
    want = [[f(arrays, threads=1) for f in functions] for arrays in problems]

    def calls(at):
        found[at] = [[f(problems[at], threads=2) for f in functions] for _ in range(5)]

    callers = [threading.Thread(target=calls, args=(at,)) for at in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for at in range(3):
        for results in found[at]:
            for result, expected in zip(results, want[at], strict=True):
                assert_same_bits(result, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_ends_a_long_call(threads, monkeypatch):
    arrays = drawn(1, (320, 64), heads=(4, 1), batch=(2,))
    want, running = forward(arrays, (32, 32), threads), threading.active_count()
    done, plain = [], run_forward.compiled.attend

    def attend(*arguments):
        plain(*arguments)
        time.sleep(0.005)  # a task of a real length
        done.append(arguments)
        if len(done) == 3:
            _thread.interrupt_main()

    monkeypatch.setattr(run_forward.compiled, "attend", attend)
    monkeypatch.setattr(run_forward, "TASK", 1.0)
    with pytest.raises(KeyboardInterrupt):
        forward(arrays, (32, 32), threads)
    # Each other worker may finish the task that it was at, and one that it had just taken.
    assert 3 <= len(done) <= 3 + 2 * threads < 80
    assert threading.active_count() == running
    monkeypatch.undo()
    assert_same_bits(forward(arrays, (32, 32), threads), want)


def test_an_error_in_one_worker_is_raised_by_the_call():
    def worker():
        def do(task):
            done.append(task)
            if task == 5:
                raise MemoryError("no more")

        return do

    done = []
    with pytest.raises(MemoryError, match=r"^no more$"):
        workers.share([[*range(50)], [*range(50, 100)]], worker, 3)
    assert len(done) < 100


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("runs", [[], [[]], [[1]], [[1, 2, 3]], [[1], [], [2, 3, 4, 5], [6, 7]]], ids=str)
def test_every_task_is_done_once(runs, threads):
    made, done = [], []

    def worker():
        made.append(threading.get_ident())
        return done.append

    workers.share(runs, worker, threads)
    assert sorted(done) == sorted(task for run in runs for task in run)
    assert len(made) <= max(1, min(threads, len(done)))


def test_a_worker_stays_with_its_run():
    order = {}

    def worker():
        mine = order.setdefault(threading.get_ident(), [])
        return mine.append

    workers.share([[("a", k) for k in range(4)], [("b", k) for k in range(4)]], worker, 1)
    assert [run for run, _ in next(iter(order.values()))] == ["a"] * 4 + ["b"] * 4


def test_threads_are_those_of_the_caller(monkeypatch):
    arrays = drawn(2, (320, 64), heads=(4, 1))
    plain, seen = run_forward.compiled.attend, set()

    def attend(*arguments):
        seen.add(threading.get_ident())
        plain(*arguments)

    monkeypatch.setattr(run_forward.compiled, "attend", attend)
    monkeypatch.setattr(run_forward, "TASK", 1.0)
    forward(arrays, (32, 32), 1)
    assert seen == {threading.get_ident()}
    assert workers.many(None) == workers.processors() >= 1
    assert workers.many(7) == 7
