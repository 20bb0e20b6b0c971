"""Where the command runs: the order is given, the tasks are followed, and the result is put together."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from gaincal.errors import OutputError, RequestError
from gaincal.kernels.results import Tally
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.frames import Progress
from gaincal.nexus.read import open_master
from gaincal.scatter.cluster import POLL, check_patience, count_threads
from gaincal.scatter.order import Order, Part, cut, identity
from gaincal.scatter.parts import SIGNAL, earlier_cut, join
from gaincal.scatter.worker import forget, make
from gaincal.verbs.apply import Applied, beside, prepare, write_whole

if TYPE_CHECKING:
    from distributed import Client, Future


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
    reader: str | None = None,
    jobs: int | None = None,
    max_memory: int | None = None,
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
    reader : str, optional
        As for `gaincal.apply`.
    max_memory : int, optional
        As for `gaincal.apply`, for each thread of a worker.
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
    request |= {"max_memory": max_memory, "reader": reader}
    master = open_master(path, trust=trust, **options)
    with master.resolver:
        work = prepare(master, frames=frames, **request)
        chosen = Path(target) if target is not None else beside(Path(path), work)
        # What this process trusts: the environment of a worker may name other directories.
        options["trust"] = tuple(str(root) for root in master.resolver.roots)
        options["calibration"] = master.located.group.path

        def fill(written: AtomicFile, entry: h5py.Group) -> Tally:
            folder, group = _folder(chosen), f"{entry.name}/{SIGNAL}"
            seen = identity(work)
            order = Order(os.path.abspath(path), str(folder), options, request, group, work.first, work.count, seen)
            order = replace(order, parts=earlier_cut(order) or cut(order.count, jobs or count_threads(client)))
            if overwrite:  # it may be a result over the very parts that are about to be replaced
                chosen.unlink(missing_ok=True)
            _compute(client, order, chosen, progress)
            return join(written, entry, work, order)

        return write_whole(work, chosen, overwrite, fill)


def _folder(target: Path) -> Path:
    """Where the parts lie, made if it is not there; ``run.nxs`` and ``run.h5`` have folders of their own."""
    absolute = Path(os.path.abspath(target))
    folder = absolute.with_name(f"{target.stem if target.suffix == '.nxs' else target.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(folder, "", f"cannot be made: {error.strerror}", code="write-failed") from None
    return folder


def _compute(client: Client, order: Order, target: Path, progress: Progress | None) -> None:
    """Have all parts made; whatever ends this early, the tasks that are left do not begin."""
    # The order goes with each task: kept on one worker, it would die with that one.
    tasks = {client.submit(make, order, part.number, pure=False): part for part in order.all_parts()}
    try:
        _follow(client, tasks, order.count, target, progress)
    finally:
        with suppress(Exception):  # the cluster may be gone; how it went has been told already
            if left := [future for future in tasks if not future.done()]:
                client.cancel(left)
            client.run(forget, on_error="ignore")


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
            check_patience(client, alive)
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
