"""A dask cluster: one that is there, or one on this machine; and how long its workers are waited for."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gaincal.errors import RequestError
from gaincal.kernels.threads import available_threads

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
PATIENCE = 300.0
"""Seconds to wait for a first worker, for workers that all went away, and for whoever else writes a part."""
POLL = 2.0


@contextmanager
def connected(scheduler: str, jobs: int | None = None) -> Iterator[Client]:
    """Connect to a dask scheduler, or start one with workers on this machine.

    Parameters
    ----------
    scheduler : str
        Address, or ``local``.
    jobs : int, optional
        Local workers, each a process with one thread; as many as the process may use CPUs if None.

    Raises
    ------
    RequestError
        If dask.distributed is not installed, or there is no such scheduler.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RequestError("--scheduler needs dask.distributed: pip install 'gaincal[dask]'") from None
    if scheduler != LOCAL:
        _check_address(scheduler)
    workers = jobs or available_threads()
    with _quiet(), _local_cluster(workers) if scheduler == LOCAL else nullcontext(scheduler) as cluster:
        try:
            client = Client(cluster, set_as_default=False)
        except (OSError, ValueError) as error:
            raise RequestError(f"no dask scheduler at {scheduler}: {error}") from error
        with client:
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask from logging what arrives here as an error of one line."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_address(scheduler: str) -> None:
    """Raise RequestError for what cannot be an address: a client would only notice when it has tried for long."""
    from distributed.comm import get_address_host_port

    try:
        get_address_host_port(scheduler)
    except (ValueError, NotImplementedError) as error:
        raise RequestError(f"--scheduler {scheduler}: {error}; write tcp://HOST:PORT, or {LOCAL}") from None


@contextmanager
def _local_cluster(workers: int) -> Iterator[Any]:
    """Processes on this machine; a Ctrl-C is for this process alone, which then ends the others."""
    from distributed import LocalCluster

    resource_tracker.ensure_running()  # it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (
            TemporaryDirectory(prefix="gaincal-") as folder,
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # blocks of frames bound it already
                dashboard_address="127.0.0.1:0",  # without one it takes dask's usual port, and all interfaces
                silence_logs="CRITICAL",
                local_directory=folder,
            ) as cluster,
        ):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield cluster
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_threads(client: Client) -> int:
    """Threads of all workers; waits for a first one."""
    begin = time.monotonic()
    while not (found := client.nthreads()):
        check_patience(client, begin)
        time.sleep(POLL / 10)
    return sum(found.values())


def check_patience(client: Client, since: float) -> None:
    """Raise RequestError if there have been no workers for too long; `since` as `time.monotonic` counts."""
    if time.monotonic() - since > PATIENCE:
        problem = f"the dask scheduler has had no workers for {PATIENCE:.0f} seconds"
        raise RequestError(f"{problem}; start some: dask worker {client.scheduler.address}")
