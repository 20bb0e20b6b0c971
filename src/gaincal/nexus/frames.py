"""Calibrated frames into a file, block by block, their reasons counted on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import MISSING_BIT
from gaincal.nexus import names
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.evaluate import Evaluation, split_frames
from gaincal.nexus.group import new_group

Progress = Callable[[int, int], None]
FRAMES_AT_ONCE = 16
ALL_BITS = np.uint32(0xFFFFFFFF)


class Tally:
    """Counts reasons, and remembers which a pixel has in every frame."""

    def __init__(self, pixels: tuple[int, ...]) -> None:
        self.counts = np.zeros(32, np.int64)
        self.always = np.full(pixels, ALL_BITS)
        self.missing_frames = 0

    def add(self, flags: npt.NDArray[np.uint32]) -> None:
        """Count the flags (frame, *pixels) of some frames."""
        raised = flags[flags != 0]
        for bit in range(32):
            self.counts[bit] += int(np.count_nonzero(raised & np.uint32(1 << bit)))
        self.always &= np.bitwise_and.reduce(flags, axis=0)
        lacking = (flags >> np.uint32(MISSING_BIT)).astype(bool)
        self.missing_frames += int(lacking.reshape(len(flags), -1).all(axis=1).sum())


def write_frames(
    written: AtomicFile,
    entry: h5py.Group,
    evaluation: Evaluation,
    spread: Evaluation | None,
    first: int,
    count: int,
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
    first, count : int
        Frames.
    progress : callable (done, total) -> None, optional

    Returns
    -------
    Tally
        Reasons of all written pixels.
    """
    pixels = evaluation.shape[1:]
    group = new_group(entry, names.DATA_PATH.rsplit("/", 1)[-1], names.DATA)
    group.attrs[names.SIGNAL_ATTRIBUTE] = names.IMAGE
    group.attrs[names.AXES_ATTRIBUTE] = ["."] * len(evaluation.shape)
    entry.attrs[names.DEFAULT_ATTRIBUTE] = group.name.rsplit("/", 1)[-1]
    dataset = group.create_dataset(
        names.IMAGE,
        (count, *pixels),
        evaluation.dtype,
        chunks=(1, *pixels),
        fletcher32=True,
        **_compression(evaluation),
    )
    deviations = None if spread is None else _create_errors(group, spread, count)
    tally = Tally(pixels)
    origin = (0,) * len(pixels)
    for begin, number in split_frames(first, count, FRAMES_AT_ONCE):
        values, flags = evaluation.read((begin, *origin), (number, *pixels), with_flags=True)
        assert flags is not None
        here = slice(begin - first, begin - first + number)
        dataset[here] = values
        if spread is not None and deviations is not None:
            deviations[here] = np.sqrt(spread.read((begin, *origin), (number, *pixels))[0])
        written.check()
        tally.add(flags)
        if progress is not None:
            progress(begin - first + number, count)
    return tally


def _create_errors(group: h5py.Group, spread: Evaluation, count: int) -> h5py.Dataset:
    """Where the standard deviations go: NXdata's name for the errors of its signal."""
    shape = (count, *spread.shape[1:])
    dataset = group.create_dataset(names.ERRORS, shape, spread.dtype, chunks=(1, *shape[1:]), fletcher32=True)
    variance = spread.calibration.formula.output(spread.program.value)
    of = spread.calibration.formula.output(variance.variance_of)
    dataset.attrs[names.UNIT_ATTRIBUTE] = of.units
    dataset.attrs["long_name"] = f"standard deviation of {of.name} ({of.units})"
    return dataset


def _compression(evaluation: Evaluation) -> dict[str, Any]:
    """Counts shrink twenty-fold; the mantissas of calibrated floats are noise that no filter shrinks."""
    if evaluation.dtype.kind == "f":
        return {}
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname="lz4"))
