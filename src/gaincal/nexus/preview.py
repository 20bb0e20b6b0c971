"""A small picture of calibrated frames, so that who opens a master sees something that is no raw word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.formulas.program import RESERVED_FLAGS
from gaincal.kernels.threads import available_threads
from gaincal.nexus import names
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.words import Readable
from gaincal.nexus.write import array_field

Array = npt.NDArray[Any]
PREVIEW_FRAMES = 8
PREVIEW_EDGE = 512
MOSTLY = 0.5
"""Where less than this part of the pixels has a value, something is probably mixed up."""


def make_preview(
    calibration: Calibration, words: Mapping[str, Readable], frames: Array | None = None
) -> tuple[Array | None, list[str]]:
    """Mean of some frames in the default output, binned to a small picture; NaN where nothing is valid.

    Parameters
    ----------
    calibration : Calibration
    words : mapping of str to Readable
    frames : ndarray of int, optional
        Which frames; a few of all if None.

    Returns
    -------
    image : ndarray or None
        None if no output is available.
    notes : list of str
        The commonest reasons, where most of what was looked at has no value.
    """
    output = calibration.preferred_output()
    if output is None:
        return None, []
    program = calibration.program(output)
    evaluation = Evaluation(calibration, words, program, available_threads())
    pixels = evaluation.shape[1:]
    total, seen = _binned(np.zeros(pixels)), _binned(np.zeros(pixels))
    counts, looked_at = np.zeros(32, np.int64), 0
    for frame in some_of(np.arange(evaluation.shape[0])) if frames is None else frames:
        start = (int(frame), *(0 for _ in pixels))
        values, flags = evaluation.read(start, (1, *pixels), with_flags=True)
        assert flags is not None
        valid = (flags[0] == 0) & np.isfinite(values[0])
        total += _binned(np.where(valid, values[0], 0))
        seen += _binned(valid)
        looked_at += valid.size
        raised = flags[flags != 0]
        counts += [int(np.count_nonzero(raised & np.uint32(1 << bit))) for bit in range(32)]
    with np.errstate(invalid="ignore"):
        picture = (total / seen).astype(np.float32)
    return picture, _doubts(calibration, looked_at, int(seen.sum()), counts)


def some_of(frames: Array, most: int = PREVIEW_FRAMES) -> Array:
    """A few frames, evenly spread."""
    return np.asarray(frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), most)).astype(int))])


def _doubts(calibration: Calibration, looked_at: int, valid: int, counts: Array) -> list[str]:
    """What a user should know before a run is calibrated that will have hardly any value."""
    if looked_at == 0 or valid >= MOSTLY * looked_at:
        return []
    bits = {flag.name: bit for bit, flag in enumerate(calibration.formula.flags)} | RESERVED_FLAGS
    worst = sorted(((int(counts[bit]), name) for name, bit in bits.items()), reverse=True)[:3]
    listed = ", ".join(f"{name} {100 * n / looked_at:.0f} %" for n, name in worst if n)
    return [f"{100 - 100 * valid / looked_at:.0f} % of the pixels looked at have no value: {listed}"]


def _binned(image: Array) -> Array:
    """Sums over squares, so that no edge is longer than a preview's; modules are laid below each other."""
    flat = image.reshape(-1, image.shape[-1])
    step = -(-max(flat.shape) // PREVIEW_EDGE)
    rows, columns = (-(-n // step) * step for n in flat.shape)
    if flat.shape != (rows, columns):
        padded = np.zeros((rows, columns), image.dtype)
        padded[: flat.shape[0], : flat.shape[1]] = flat
        flat = padded
    # Rows first: whole rows are added at a time.
    summed = flat.reshape(rows // step, step, columns).sum(axis=1, dtype=np.float64)
    return np.asarray(summed.reshape(rows // step, columns // step, step).sum(axis=2))


def write_preview(group: h5py.Group, image: Array | None, calibration: Calibration) -> None:
    """Make a picture the image that an NXdata offers; None for none."""
    output = calibration.preferred_output()
    if image is None or output is None:
        return
    dataset = array_field(group, names.PREVIEW, image)
    dataset.attrs["long_name"] = "mean of some calibrated frames, binned"
    dataset.attrs[names.UNIT_ATTRIBUTE] = calibration.formula.output(output).units
    group.attrs[names.SIGNAL_ATTRIBUTE] = names.PREVIEW
    group.attrs[names.AXES_ATTRIBUTE] = [".", "."]
