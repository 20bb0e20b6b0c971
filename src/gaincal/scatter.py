"""``apply`` on many machines: parts of a run as dask tasks, and one virtual dataset over what they wrote.

A part is what plain `apply` writes for some of the frames, and a note of what went into it.  The note
alone decides whether a part is used again: a task can run twice, die in the middle or be begun anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal._version import __version__
from gaincal.errors import FileError, OutputError, RequestError
from gaincal.kernels.results import Tally
from gaincal.kernels.threads import available_threads
from gaincal.nexus import names
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.fields import attribute_text, read_array, read_text
from gaincal.nexus.frames import Progress
from gaincal.nexus.group import fields_checksum, new_group
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.trust import Resolver, reading
from gaincal.nexus.write import array_field, field
from gaincal.verbs.apply import Applied, Work, beside, prepare, write_applied

if TYPE_CHECKING:
    from distributed import Client, Future

Array = npt.NDArray[Any]
LOCAL = "local"
MIN_FRAMES, MAX_PARTS, PARTS_PER_THREAD = 50, 2000, 4
PATIENCE = 300.0
"""Seconds to wait for a first worker, for workers that all went away, and for whoever else writes a part."""
POLL = 2.0
NOTE = "gaincal_part"
SIGNAL = names.DATA_PATH.rsplit("/", 1)[-1]
_PART_FILE = re.compile(r"(\d{6})\.nxs(\.part)?")


# --- what is done --------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Some frames of a run, and the file that holds them.

    Parameters
    ----------
    path : Path
    number : int
        Among all parts, from 0.
    first, count : int
        Frames, counted in the run.
    identity : str
        Checksum of all that its content depends on.
    """

    path: Path
    number: int
    first: int
    count: int
    identity: str


@dataclass(frozen=True)
class Order:
    """What all tasks of a run have in common; it travels to the workers.

    Parameters
    ----------
    master, folder : str
        Absolute paths of the master, and of the folder for the parts.
    options, request : mapping
        Arguments of `open_master`, and of `prepare` except the frames.
    group : str
        HDF5 path of the signal's group.
    first, count : int
        Frames.
    identity : mapping
        See `identity`.
    parts : int
        Into how many the frames are cut.
    """

    master: str
    folder: str
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    group: str
    first: int
    count: int
    identity: Mapping[str, Any]
    parts: int = 1

    @property
    def signals(self) -> list[str]:
        """Names of the datasets with a value for every pixel and frame."""
        return [names.IMAGE, names.ERRORS] if self.request["errors"] else [names.IMAGE]

    def part(self, number: int) -> Part:
        """One of the parts."""
        begin, end = (self.first + self.count * k // self.parts for k in (number, number + 1))
        checksum = _checksum([self.identity, number, self.parts])
        return Part(Path(self.folder) / f"{number:06}.nxs", number, begin, end - begin, checksum)

    def all_parts(self) -> list[Part]:
        """All of them, in order."""
        return [self.part(number) for number in range(self.parts)]


def identity(work: Work) -> dict[str, Any]:
    """All that the written frames depend on: the same identity, the same bits."""
    master, program = work.master, work.program
    formula = master.calibration.formula
    constants = {c.name for c in formula.constants}
    inputs = {name: array for name, array in master.calibration.arrays.items() if name not in constants}
    return {
        "version of gaincal": __version__,
        "calibration": [master.located.group.path, master.stored.checksum],
        "formula": formula.digest,
        "inputs": fields_checksum(inputs),
        "output": [program.value, program.dtype, program.fill, work.variance is not None],
        "reasons": None if master.reasons is None else list(master.reasons),
        "frames": [work.first, work.count],
        "words": _sources(master),
    }


def _sources(master: Master) -> dict[str, list[int]]:
    """Size and time of the files that hold the words, named as seen from the master; hashing them would take long."""
    found = {}
    for file in sorted({source.place.file for words in master.words.values() for source in words.sources}):
        status = file.stat()
        found[os.path.relpath(file, master.resolver.master.parent)] = [status.st_size, status.st_mtime_ns]
    return found


def _checksum(content: Any) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"


# --- where the command runs ------------------------------------------------------------------


def apply_on(
    client: Client,
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    output: str | None = None,
    dtype: str | None = None,
    flagged: float | None = None,
    frames: tuple[int | None, int | None] | None = None,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
    errors: bool = False,
    jobs: int | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Applied:
    """Do what `gaincal.apply` does, on the workers of a dask cluster.

    The frames lie in parts in the folder ``<stem of target>.parts``, and the signal of the target is a
    virtual dataset over them: without that folder the target is of no use.  Parts that an earlier run
    left are kept if they are whole and what they were made from is the same.

    Parameters
    ----------
    client : distributed.Client
        Its workers must have the same gaincal, and see all files under the same absolute paths.
    path, target, output, dtype, flagged, frames, inputs, calibration, profile, reasons, errors, overwrite, trust
        As for `gaincal.apply`.
    jobs : int, optional
        Threads of the workers to cut the work for; those that there are now if None.
    progress : callable (done, total) -> None, optional
        Told, in frames, after every part.

    Returns
    -------
    Applied

    Raises
    ------
    FileError, TrustError, BindError, RequestError
        As for `gaincal.apply`; what a worker has to say about a file names its host.
    OutputError
        If the result or a part cannot be written, or the workers are lost.
    """
    given = dict(inputs or {})
    options: dict[str, Any] = {"calibration": calibration, "inputs": given, "profile": profile}
    options["reasons"] = None if reasons is None else tuple(reasons)
    request: dict[str, Any] = {"output": output, "dtype": dtype, "flagged": flagged, "inputs": given, "errors": errors}
    master = open_master(path, trust=trust, **options)
    with master.resolver:
        work = prepare(master, frames=frames, **request)
        chosen = Path(target) if target is not None else beside(Path(path), work.program.value)
        # What this process trusts: the environment of a worker may name other directories.
        options["trust"] = tuple(str(root) for root in master.resolver.roots)
        options["calibration"] = master.located.group.path

        def fill(written: AtomicFile, entry: h5py.Group) -> Tally:
            folder, group = _folder(chosen), f"{entry.name}/{SIGNAL}"
            seen = identity(work)
            order = Order(os.path.abspath(path), str(folder), options, request, group, work.first, work.count, seen)
            order = replace(order, parts=_earlier_cut(order) or _cut(order.count, jobs or _threads(client)))
            if overwrite:  # it may be a result over the very parts that are about to be replaced
                chosen.unlink(missing_ok=True)
            _compute(client, order, chosen, progress)
            return _join(written, entry, work, order)

        return write_applied(work, chosen, overwrite, fill)


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


def _folder(target: Path) -> Path:
    """Where the parts lie, made if it is not there; ``run.nxs`` and ``run.h5`` have folders of their own."""
    absolute = Path(os.path.abspath(target))
    folder = absolute.with_name(f"{target.stem if target.suffix == '.nxs' else target.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(folder, "", f"cannot be made: {error.strerror}", code="write-failed") from None
    return folder


def _cut(frames: int, threads: int) -> int:
    """How many parts: some for every thread, so that slow ones hold nobody up, and none of them tiny."""
    return max(1, min(frames // MIN_FRAMES, PARTS_PER_THREAD * threads, MAX_PARTS))


def _earlier_cut(order: Order) -> int | None:
    """How an earlier run of the same order was cut, as its parts say; another cut could use none of them."""
    for path in sorted(Path(order.folder).glob("*.nxs")):
        with suppress(FileError), Resolver(path) as resolver, reading(path):
            note = resolver.get(NOTE)
            number, parts = (int(n) for n in read_array(resolver.walk(note, "cut")))
            known = read_text(resolver.walk(note, "identity"))
            if 0 <= number < parts <= MAX_PARTS and replace(order, parts=parts).part(number).identity == known:
                return parts
    return None


def _threads(client: Client) -> int:
    """Threads of all workers; waits for a first one."""
    begin = time.monotonic()
    while not (found := client.nthreads()):
        _check_patience(client, begin)
        time.sleep(POLL / 10)
    return sum(found.values())


def _check_patience(client: Client, since: float) -> None:
    if time.monotonic() - since > PATIENCE:
        problem = f"the dask scheduler has had no workers for {PATIENCE:.0f} seconds"
        raise RequestError(f"{problem}; start some: dask worker {client.scheduler.address}")


def _compute(client: Client, order: Order, target: Path, progress: Progress | None) -> None:
    """Have all parts made; whatever ends this early, the tasks that are left do not begin."""
    shared = client.submit(_same, order, pure=False)  # a task: it may be large, and outlives any worker
    tasks = {client.submit(_make, shared, part.number, pure=False): part for part in order.all_parts()}
    try:
        _follow(client, tasks, order.count, target, progress)
    finally:
        with suppress(Exception):  # the cluster may be gone; how it went has been told already
            if left := [future for future in tasks if not future.done()]:
                client.cancel(left)
            client.run(_forget, on_error="ignore")


def _follow(client: Client, tasks: Mapping[Future, Part], total: int, target: Path, progress: Progress | None) -> None:
    """Wait for all tasks; raises what the first one raises that fails."""
    ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
    for future in tasks:
        future.add_done_callback(ended.put)
    done, alive = 0, time.monotonic()
    while done < total:
        try:
            future = ended.get(timeout=POLL)
        except queue.Empty:
            if client.nthreads():
                alive = time.monotonic()
            _check_patience(client, alive)
            continue
        part, alive = tasks[future], time.monotonic()
        _check_ended(future, part, target)
        future.release()  # or it would be done again if the worker that did it dies
        done += part.count
        if progress is not None:
            progress(done, total)


def _check_ended(future: Future, part: Part, target: Path) -> None:
    """Raise what went wrong with a task that has ended."""
    from distributed import KilledWorker

    if future.status == "finished":
        return
    if future.status != "error":
        problem, remedy = "not written: the dask scheduler was lost", "run it again: finished parts are kept"
        raise OutputError(target, "", problem, remedy, code="write-failed")
    error = future.exception()
    if isinstance(error, KilledWorker):
        problem = f"not written: workers died one after another at frames {part.first}:{part.first + part.count}"
        raise OutputError(target, "", problem, "give them more memory and run it again", code="write-failed")
    if isinstance(error, ImportError):
        raise RequestError(f"the workers need the same gaincal as this process: {error}")
    raise error


# --- where a worker runs ---------------------------------------------------------------------


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
        key = _checksum([order.master, order.options, order.identity])
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


def _forget() -> None:
    _masters.forget()


def _same(order: Order) -> Order:
    return order


def _make(order: Order, number: int) -> None:
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
        _read_note(part)
        with Resolver(part.path) as resolver, reading(part.path):
            for name in order.signals:
                dataset = PlainDataset(resolver.get(f"{order.group}/{name}"))
                if dataset.unwritten() or any(True for _ in dataset.damaged()):
                    return False
    except FileError:
        return False
    return True


def _write(part: Part, order: Order) -> None:
    with _masters.use(order) as master:
        _check_same(order, master)
        work = prepare(master, frames=(part.first, part.first + part.count), **order.request)
        compute = work.fill(1)  # the other threads of a worker have tasks of their own

        def fill(written: AtomicFile, entry: h5py.Group) -> Tally:
            tally = compute(written, entry)
            _write_note(written.file, part, order.parts, tally)
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


# --- what lies in a part ---------------------------------------------------------------------


def _write_note(file: h5py.File, part: Part, parts: int, tally: Tally) -> None:
    """What went into a part, and what the whole needs of it: the mask says which pixels are bad, not for which flag."""
    note = new_group(file, NOTE, names.COLLECTION)
    field(note, "identity", part.identity)
    field(note, "cut", np.array([part.number, parts]))
    field(note, "missing_frames", np.int64(tally.missing_frames))
    array_field(note, "counts", tally.counts)
    array_field(note, "always", tally.always, compression="gzip")


def _read_note(part: Part) -> Tally:
    """What a part counted; raises FileError where it is not there, or was made from something else."""
    with Resolver(part.path) as resolver, reading(part.path):
        note = resolver.get(NOTE)
        if read_text(resolver.walk(note, "identity")) != part.identity:
            raise FileError(part.path, "", "was made from something else", code="checksum-differs")
        always = PlainDataset(resolver.walk(note, "always")).read_all()
        tally = Tally(always.shape)
        tally.always &= always
        tally.counts += read_array(resolver.walk(note, "counts"))
        tally.missing_frames = int(read_array(resolver.walk(note, "missing_frames")))
        return tally


def _join(written: AtomicFile, entry: h5py.Group, work: Work, order: Order) -> Tally:
    """Write the signal as a virtual dataset over all parts, and add up what these counted."""
    tally = Tally(work.pixels)
    for part in order.all_parts():
        found = _read_note(part)
        tally.counts += found.counts
        tally.always &= found.always
        tally.missing_frames += found.missing_frames
    group = new_group(entry, SIGNAL, names.DATA)
    group.attrs[names.SIGNAL_ATTRIBUTE] = names.IMAGE
    group.attrs[names.AXES_ATTRIBUTE] = ["."] * (1 + len(work.pixels))
    entry.attrs[names.DEFAULT_ATTRIBUTE] = SIGNAL
    for name, program in zip(order.signals, (work.program, work.variance), strict=False):
        assert program is not None
        fill = np.nan if program.fill is None else program.fill
        _map(group, name, np.array(fill, program.dtype), work.pixels, order)
    _copy_attributes(group, order)
    _discard_others(order)
    written.check()
    return tally


def _map(group: h5py.Group, name: str, fill: Array, pixels: tuple[int, ...], order: Order) -> None:
    """Create a virtual dataset; who has lost a part reads the fill, not zeros."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_value(fill)
    whole = h5py.h5s.create_simple((order.count, *pixels))
    for part in order.all_parts():
        target, source = whole.copy(), h5py.h5s.create_simple((part.count, *pixels))
        target.select_hyperslab((part.first - order.first, *(0,) * len(pixels)), (part.count, *pixels))
        file = f"{part.path.parent.name}/{part.path.name}"
        # A percent sign would stand for the number of a block.
        named = (text.replace("%", "%%").encode() for text in (file, f"{order.group}/{name}"))
        plist.set_virtual(target, *named, source)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(fill.dtype), whole, plist)


def _copy_attributes(group: h5py.Group, order: Order) -> None:
    """What the parts say of their errors; the signal itself is described when all is done."""
    first = order.part(0)
    with Resolver(first.path) as resolver, reading(first.path):
        for name in order.signals[1:]:
            place = resolver.get(f"{order.group}/{name}")
            for attribute in (names.UNIT_ATTRIBUTE, "long_name"):
                group[name].attrs[attribute] = attribute_text(place, attribute)


def _discard_others(order: Order) -> None:
    """Remove what an earlier run with another cut left in the folder."""
    for path in Path(order.folder).iterdir():
        named = _PART_FILE.fullmatch(path.name)
        if named and int(named[1]) >= order.parts:
            path.unlink(missing_ok=True)
