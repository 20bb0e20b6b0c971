"""The threads that all of gaincal computes with: one pool, and serial kernels without the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache

from gaincal.kernels.arithmetic import ieee

Job = Callable[[], object]


def available_threads() -> int:
    """Threads that this process may use: what Slurm granted, else the CPU affinity."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(granted) if granted.isdecimal() and int(granted) > 0 else len(os.sched_getaffinity(0))


class Work:
    """Jobs that threads of the pool have begun with, and that the calling thread ends.

    As a context, the calling thread does something else before it helps.  Jobs own all that they touch, so that
    work may be abandoned.

    Parameters
    ----------
    jobs : sequence of callables
        They compute as IEEE 754 says; after an error no further one begins.
    threads : int
        Most of them at a time, one of which in the thread that ends it.
    afterwards : callable, optional
        What to do when all jobs are done.
    halt : callable, optional
        Has jobs end that have begun, if nobody wants what they do.
    """

    def __init__(
        self, jobs: Sequence[Job], threads: int, afterwards: Job | None = None, halt: Job | None = None
    ) -> None:
        self._left, self._errors = deque(enumerate(jobs)), dict[int, BaseException]()
        self._afterwards, self._halt = afterwards, halt
        pool = _pool(os.getpid(), threads)
        self._helpers = list[Future[None]]()
        try:
            for _ in range(min(threads, len(jobs)) - 1):
                self._helpers.append(pool.submit(self._help))
        except BaseException:  # nobody can end what the caller never got
            self.stop()
            raise

    def finish(self) -> None:
        """Help, wait for those who still run, and raise an interruption, or what the first job that failed raised."""
        try:
            self._help()
        finally:
            self.stop()
        errors, afterwards = self._errors, self._afterwards
        self._forget()
        try:
            if errors:
                raise errors[min(errors, key=lambda number: (isinstance(errors[number], Exception), number))]
        finally:
            errors = {}  # else it would be referred to by its own traceback
        if afterwards is not None:
            afterwards()

    def stop(self) -> None:
        """Begin no further job; returns when none runs, and only then raises an interruption."""
        self._left.clear()
        running, interrupted = True, None
        while running:
            try:
                wait([h for h in self._helpers if not h.cancel()])
                running = False
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def abandon(self) -> None:
        """Nobody will finish it: its threads are free as soon as may be."""
        self._left.clear()
        for helper in self._helpers:
            helper.cancel()
        if self._halt is not None:
            self._halt()
        self._forget()

    def _forget(self) -> None:
        """Let go of arrays: a helper that was called off stays in the queue of a busy pool, and refers to this."""
        self._errors, self._afterwards, self._halt = {}, None, None

    def __enter__(self) -> None:
        """Go on with something else."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End it."""
        if error is None:
            self.finish()
        else:
            self.stop()

    @ieee()
    def _help(self) -> None:
        """Do what nobody has begun with."""
        while self._left:
            try:
                number, job = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                job()
            except BaseException as error:
                self._errors[number] = error
                self._left.clear()


def run_all(jobs: Sequence[Job], threads: int) -> None:
    """Run jobs as `Work`, in the calling thread where that is enough."""
    if threads == 1 or len(jobs) == 1:
        with ieee():
            for job in jobs:
                job()
        return
    Work(jobs, threads).finish()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """One pool per process: a forked child needs its own, so the process is part of the key.

    It has room for the helpers of one caller: they take up work in the order in which it was begun.
    """
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="gaincal")
