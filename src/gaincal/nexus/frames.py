"""Calibrated frames into a file, block by block, their reasons counted on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import zip_longest
from typing import Any

import h5py
import numpy as np

from gaincal.errors import RequestError
from gaincal.kernels.libraries import plugins
from gaincal.kernels.packed import BLOCK
from gaincal.kernels.results import Chunks, Tally, can_compress
from gaincal.kernels.threads import run_all
from gaincal.nexus import names
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.evaluate import Evaluation, Frames, stretches
from gaincal.nexus.group import new_group

Progress = Callable[[int, int], None]
FRAMES_AT_ONCE = 32
BLOCKS_AT_ONCE = 2
"""Values, and what is stored of them."""
FLAGS_BYTES = 4
HANDOVER = 1e-4
"""Seconds in which other threads get hold of the interpreter, before writing takes it again and again."""
MAX_MEMORY = 1024
"""MiB."""


def write_frames(
    written: AtomicFile,
    entry: h5py.Group,
    evaluation: Evaluation,
    spread: Evaluation | None,
    cut: tuple[int, int, int],
    stored: tuple[int, ...],
    progress: Progress | None,
) -> Tally:
    """Write calibrated frames as the signal of an entry.

    Parameters
    ----------
    written : AtomicFile
    entry : h5py.Group
        Receives the NXdata group.
    evaluation : Evaluation
    spread : Evaluation, optional
        What computes the variance; its root is written as the errors of the signal.
    cut : (int, int, int)
        First frame, how many, and how many of them at a time.
    stored : tuple of int
        Shape of a frame in the file, with the pixels in the same order.
    progress : callable (done, total) -> None, optional

    Returns
    -------
    Tally
        Reasons of all written pixels.
    """
    pixels, (first, count, _) = evaluation.shape[1:], cut
    group = signal_group(entry, 1 + len(stored))
    dataset = group.create_dataset(
        names.IMAGE,
        (count, *stored),
        evaluation.dtype,
        chunks=(1, *stored),
        fletcher32=True,
        **_compression(evaluation),
    )
    deviations = None if spread is None else _create_errors(group, spread, (count, *stored))
    tally, done = Tally(pixels), 0
    with closing(_computed(evaluation, cut, tally)) as computed:
        for frames, chunks in computed:
            for k, (frame, chunk) in enumerate(zip(frames, chunks.stored(), strict=True)):
                if _shrinks(evaluation) and not chunks.compressed:
                    assert chunks.values is not None
                    dataset[int(frame) - first] = chunks.values[k].reshape(stored)
                else:
                    dataset.id.write_direct_chunk((int(frame) - first, *(0,) * len(stored)), chunk)
                written.check()
            if spread is not None and deviations is not None:
                for begin, number in stretches(frames):
                    found, _ = spread.read((begin, *(0,) * len(pixels)), (number, *pixels))
                    deviations[begin - first : begin - first + number] = np.sqrt(found).reshape(number, *stored)
                    written.check()
            written.push()
            done += len(frames)
            if progress is not None:
                progress(done, count)
    return tally


def signal_group(entry: h5py.Group, rank: int) -> h5py.Group:
    """Create the group whose signal are the calibrated frames."""
    group = new_group(entry, names.DATA_PATH.rsplit("/", 1)[-1], names.DATA)
    group.attrs[names.SIGNAL_ATTRIBUTE] = names.IMAGE
    group.attrs[names.AXES_ATTRIBUTE] = ["."] * rank
    entry.attrs[names.DEFAULT_ATTRIBUTE] = group.name.rsplit("/", 1)[-1]
    return group


def _computed(evaluation: Evaluation, cut: tuple[int, int, int], tally: Tally) -> Generator[tuple[Frames, Chunks]]:
    """Blocks of frames and their chunks; while the caller writes one, two more are computed and read."""
    pixels = int(np.prod(evaluation.shape[1:]))
    blocks = evaluation.blocks(*cut)
    fetch = evaluation.fetch(blocks[0])
    run_all(fetch.jobs, evaluation.threads)
    ready: list[tuple[Frames, Chunks]] = []
    for block, following in zip_longest(blocks, blocks[1:]):
        chunks = Chunks(len(block), pixels, evaluation.dtype, _shrinks(evaluation) and can_compress())
        ahead = None if following is None else evaluation.fetch(following)
        with evaluation.storing(fetch, chunks, tally, ahead.jobs if ahead else ()):
            time.sleep(HANDOVER)
            yield from ready
        ready = [(block, chunks)]
        fetch = ahead or fetch
    yield from ready


def frames_at_once(evaluation: Evaluation, spread: Evaluation | None, max_memory: int | None) -> int:
    """How many frames are on their way at a time, computed or written.

    Parameters
    ----------
    evaluation, spread : Evaluation
        As for `write_frames`.
    max_memory : int, optional
        MiB that they may take; `MAX_MEMORY` if None.

    Raises
    ------
    RequestError
        If that is not enough for one frame.
    """
    allowed = MAX_MEMORY if max_memory is None else max_memory
    words = sum(w.dtype.itemsize for w in evaluation.words.values())
    values = sum(e.dtype.itemsize for e in (evaluation, spread) if e is not None)
    one = int(np.prod(evaluation.shape[1:])) * (words + values + FLAGS_BYTES) * BLOCKS_AT_ONCE
    if one > allowed << 20 and max_memory is not None:
        raise RequestError(f"a frame on its way takes {-(-one >> 20)} MiB, which is more than --max-memory {allowed}")
    return max(1, min(FRAMES_AT_ONCE, (allowed << 20) // one))


def _create_errors(group: h5py.Group, spread: Evaluation, shape: tuple[int, ...]) -> h5py.Dataset:
    """Where the standard deviations go: NXdata's name for the errors of its signal."""
    dataset = group.create_dataset(names.ERRORS, shape, spread.dtype, chunks=(1, *shape[1:]), fletcher32=True)
    variance = spread.calibration.formula.output(spread.program.value)
    of = spread.calibration.formula.output(variance.variance_of)
    dataset.attrs[names.UNIT_ATTRIBUTE] = of.units
    dataset.attrs["long_name"] = f"standard deviation of {of.name} ({of.units})"
    return dataset


def _shrinks(evaluation: Evaluation) -> bool:
    """Counts shrink twenty-fold; the mantissas of calibrated floats are noise that no filter shrinks."""
    return evaluation.dtype.kind != "f"


def _compression(evaluation: Evaluation) -> dict[str, Any]:
    if not _shrinks(evaluation):
        return {}
    return dict(plugins().Bitshuffle(nelems=BLOCK, cname="lz4"))
