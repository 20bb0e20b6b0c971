"""Where a worker runs: a part is made, unless it is there already.

Dask sends functions by their name: `make` and `forget` must stay where a worker can import them.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import h5py

from gaincal import constants
from gaincal.errors import FileError, OutputError
from gaincal.kernels.memory import available_memory
from gaincal.kernels.results import Tally
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.trust import Resolver, reading
from gaincal.scatter.cluster import PATIENCE, POLL
from gaincal.scatter.order import Order, Part, checksum, identity
from gaincal.scatter.parts import read_note, write_note
from gaincal.verbs.apply import prepare, write_applied


class _Masters:
    """The masters that this process has open, so that their constants are read once.

    One that nobody uses is closed before another is opened, and when a run ends: HDF5 would lock it,
    and show a file that has changed as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Master] = {}
        self._users: Counter[str] = Counter()
        self._keep = False

    @contextmanager
    def use(self, order: Order) -> Iterator[Master]:
        """The master of an order, for as long as the context lasts."""
        key = checksum([order.master, order.options, order.identity])
        with self._lock:
            self._keep = True
            if key not in self._open:
                self._close_unused()
                self._open[key] = open_master(order.master, **order.options)
            self._users[key] += 1
            master = self._open[key]
        try:
            yield master
        finally:
            with self._lock:
                self._users[key] -= 1
                if not self._keep:
                    self._close_unused()

    def forget(self) -> None:
        """Close all masters, those in use when they no longer are."""
        with self._lock:
            self._keep = False
            self._close_unused()

    def _close_unused(self) -> None:
        for key in [k for k in self._open if not self._users[k]]:
            self._open.pop(key).resolver.close()


_masters = _Masters()


def forget() -> None:
    """Close the masters of this process, when a run has ended."""
    _masters.forget()


def make(order: Order, number: int) -> None:
    """Make a part, unless it is there; a task that was begun on two workers is done by the first of them."""
    part = order.part(number)
    begin = time.monotonic()
    try:
        while not _is_whole(part, order):
            try:
                _write(part, order)
            except OutputError as error:
                if error.code != "busy" or time.monotonic() - begin > PATIENCE:
                    raise
                time.sleep(POLL)
            else:
                return
    except FileError as error:
        problem = f"{error.problem}, on worker {socket.gethostname()}"
        raise type(error)(error.file, error.place, problem, error.remedy, code=error.code) from None


def _is_whole(part: Part, order: Order) -> bool:
    """Whether a part is there that was made from the same, with every chunk as it was written."""
    try:
        read_note(part)
        with Resolver(part.path) as resolver, reading(part.path):
            for name in order.signals:
                dataset = PlainDataset(resolver.get(f"{order.group}/{name}"))
                if dataset.unwritten() or any(True for _ in dataset.damaged()):
                    return False
    except FileError:
        return False
    return True


def _bound_memory() -> None:
    """Hold no more constants than suits this worker's part of the memory: its limit, or one for each processor."""
    from distributed import get_worker

    limit = None
    with suppress(ValueError):  # nobody's worker
        limit = getattr(getattr(get_worker(), "memory_manager", None), "memory_limit", None)
    constants.CACHE.most = constants.cache_bytes(limit or available_memory() // (os.cpu_count() or 1))


def _write(part: Part, order: Order) -> None:
    _bound_memory()
    with _masters.use(order) as master:
        _check_same(order, master)
        work = prepare(master, frames=(part.first, part.first + part.count), **order.request)
        compute = work.fill(1)  # the other threads of a worker have tasks of their own

        def fill(written: AtomicFile, entry: h5py.Group) -> Tally:
            tally = compute(written, entry)
            write_note(written.file, part, order.parts, tally)
            return tally

        write_applied(work, part.path, True, fill)


def _check_same(order: Order, master: Master) -> None:
    """Raise FileError if this worker sees other files, or computes otherwise, than who gave the order."""
    found = identity(prepare(master, frames=(order.first, order.first + order.count), **order.request))
    for name in order.identity["words"]:
        if name not in found["words"]:
            file = os.path.normpath(os.path.join(os.path.dirname(order.master), name))
            raise FileError(file, "", "cannot be found, or not read", code="not-found")
    differing = ", ".join(key for key, value in order.identity.items() if found[key] != value)
    if differing:
        problem = f"does not have the same {differing} as where the command runs"
        raise FileError(
            order.master, "", problem, "run it again when nothing changes any more", code="checksum-differs"
        )
