"""How numba's kernels are run: workers that share the tasks of a call.

No threading layer of numba is used: one of them kills a process that forks after it ran, another one that calls from
two threads (numba, "Threading layers"). Workers are Python threads that live as long as the call, and kernels that
release the interpreter's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Task = TypeVar("Task")


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def many(threads: int | None) -> int:
    """Threads of a call: those asked for, or one for each processor."""
    return processors() if threads is None else threads


class Tasks:
    """Tasks in runs: a worker goes on with its run, then begins one that nobody has, then helps with the longest."""

    def __init__(self, runs: list[list[Any]]) -> None:
        self.left = [list(reversed(run)) for run in runs if run]
        self.fresh = list(range(len(self.left)))
        self.lock = threading.Lock()

    def taken(self) -> Iterator[Any]:
        """The tasks that one worker gets."""
        mine = -1
        while True:
            with self.lock:
                if mine < 0 or not self.left[mine]:
                    longest = max(range(len(self.left)), key=lambda at: len(self.left[at]), default=-1)
                    mine = self.fresh.pop(0) if self.fresh else longest
                    if mine < 0 or not self.left[mine]:
                        return
                task = self.left[mine].pop()
            yield task

    def stop(self) -> None:
        """Leave nothing to take."""
        with self.lock:
            for run in self.left:
                run.clear()
            self.fresh.clear()


def share(runs: list[list[Task]], worker: Callable[[], Callable[[Task], None]], threads: int) -> None:
    """Do every task once, on at most so many threads, the caller's among them.

    `worker()` makes what one thread does with a task. An exception, KeyboardInterrupt among them, is raised after all
    threads have ended, each at the end of its task.
    """
    tasks, failed = Tasks(runs), list[BaseException]()

    def work() -> None:
        try:
            do = worker()
            for task in tasks.taken():
                do(task)
        except BaseException as error:
            failed.append(error)
            tasks.stop()

    helpers = [threading.Thread(target=work) for _ in range(min(threads, sum(map(len, runs))) - 1)]
    try:
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
    except BaseException:
        tasks.stop()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
        raise
    if failed:
        raise failed[0]
