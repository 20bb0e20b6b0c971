"""The threads that all of gaincal computes with: one pool, and serial kernels without the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache, partial

from gaincal.kernels.arithmetic import ieee

Job = Callable[[], object]


def available_threads() -> int:
    """Threads that this process may use: what Slurm granted, else the CPU affinity."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(granted) if granted.isdecimal() and int(granted) > 0 else len(os.sched_getaffinity(0))


def run_all(jobs: Sequence[Job], threads: int) -> None:
    """Run jobs, at most so many at a time, one of which in the calling thread; raises what the first of them raised.

    After an error no further job begins.  Returns only when none of them runs any more: they write
    into arrays that must outlive them.  All of them compute as IEEE 754 says.
    """
    if threads == 1 or len(jobs) == 1:
        with ieee():
            for job in jobs:
                job()
        return
    with running(jobs, threads):
        pass


@contextmanager
def running(jobs: Sequence[Job], threads: int, then: Job | None = None) -> Iterator[None]:
    """As `run_all`, while the calling thread does something else before it helps.

    After an error of its own no further job begins, either.  Where more than one thread has something to do, another
    one than this goes on with `then`, for which nobody waits: it must own all that it touches.
    """
    left, errors = deque(enumerate(jobs)), dict[int, BaseException]()

    @ieee()
    def work() -> None:
        while left:
            try:
                number, job = left.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                job()
            except BaseException as error:
                errors[number] = error
                left.clear()

    helpers = []
    try:
        for _ in range(min(threads, len(jobs)) - 1):
            helpers.append(_pool(os.getpid(), threads).submit(work))
        if then is not None and helpers:
            helpers[0].add_done_callback(partial(_go_on, then, threads))  # called when who waits has been told
        yield
        work()
    finally:
        left.clear()
        wait([h for h in helpers if not h.cancel()])  # interrupted or not
    if errors:
        raise errors[min(errors)]


def _go_on(then: Job, threads: int, helper: Future[None]) -> None:
    """Do something in the thread of a helper that is done, or in another one if none was awake in time to help."""
    if helper.cancelled():
        _pool(os.getpid(), threads).submit(then)
    else:
        then()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """One pool per process: a forked child needs its own, so the process is part of the key."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gaincal")
