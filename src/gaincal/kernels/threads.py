"""The threads that all of gaincal computes with: one pool, and serial kernels without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache


def available_threads() -> int:
    """Threads that this process may use: what Slurm granted, else the CPU affinity."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(granted) if granted.isdecimal() and int(granted) > 0 else len(os.sched_getaffinity(0))


def run_all(jobs: Sequence[Callable[[], object]], threads: int) -> None:
    """Run jobs, at most so many at a time; raises what the first of them raised.

    Returns only when none of them runs any more: they write into arrays that must outlive them.
    Jobs must not call this themselves.
    """
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            job()
        return
    started = []
    try:
        for job in jobs:
            started.append(_pool(os.getpid(), threads).submit(job))
        wait(started)
    finally:
        wait(started)  # interrupted or not
    for ended in started:
        ended.result()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """One pool per process: a forked child needs its own, so the process is part of the key."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gaincal")
