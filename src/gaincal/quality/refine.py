"""Gains from data: the distance of the peaks of one photon and of none, for each module and for each pixel.

For modules the peaks are fitted (`gaincal.quality.peaks`).  For pixels there are too few photons to fit anything: the
mean of what lies within a window around each peak of the module says where that of the pixel is.  A window draws a
mean towards its own centre; for a Gaussian that is known exactly (the mean of a truncated normal distribution) and
taken back.  What is left is the same for all pixels, such as photons that share their charge: the pixels of a module
are scaled so that their mean gain is that of its fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.kernels.threads import available_threads
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import Master
from gaincal.quality.found import PartPeaks
from gaincal.quality.peaks import Peak
from gaincal.quality.statistics import Progress, Statistics, void_bits

Array = npt.NDArray[Any]
MAX_ERROR = 0.01
"""Of the factor of a pixel; beyond, it has that of its module."""
MIN_PHOTONS = 20
WINDOW, SPREAD = 2.5, 0.06
"""Half of a window: so many widths of the zero peak, and this part of a photon for pixels whose gain is off."""
MODULE, PIXEL, NOTHING = 1, 2, 0


@dataclass(frozen=True, eq=False)
class Factors:
    """What gains are to be multiplied by, if values are divided by them.

    Parameters
    ----------
    factor : ndarray (*pixels) of float32
        1 where nothing is known.
    error : ndarray (*pixels) of float32
        Standard deviation; NaN where nothing is known.
    origin : ndarray (*pixels) of uint8
        0 nothing known, 1 from the fit of the module, 2 from the pixel itself.
    photons : ndarray (*pixels) of uint32
        In the window of the photon peak.
    """

    factor: Array
    error: Array
    origin: Array
    photons: Array


def refine(
    master: Master, found: Statistics, peaks: Sequence[PartPeaks], per_pixel: bool, progress: Progress | None = None
) -> Factors:
    """Factors of the gain of the first stage.

    Parameters
    ----------
    master : Master
    found : Statistics
        Of the frames that are used.
    peaks : sequence of PartPeaks
        Of each module.
    per_pixel : bool
        Look at the frames once more, for the pixels.
    progress : callable (done, total) -> None, optional

    Raises
    ------
    RequestError
        If nobody stated the photon energy.
    """
    photon = found.photon
    if photon is None:
        raise RequestError("where a photon must be follows from its energy: --set photon_energy=KEV")
    shape = found.mean.shape
    factors = Factors(
        np.ones(shape, np.float32),
        np.full(shape, np.nan, np.float32),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint32),
    )
    known: list[tuple[tuple[slice, ...], Peak, Peak]] = []
    for part, peak in zip(found.parts, peaks, strict=False):
        gain, error = peak.gain(photon), peak.gain_error(photon)
        if gain is None or error is None or peak.zero is None or peak.photon is None:
            continue
        factors.factor[part.index], factors.error[part.index], factors.origin[part.index] = gain, error, MODULE
        known.append((part.index, peak.zero, peak.photon))
    if per_pixel and known:
        windows = _Windows(shape)
        windows.look(master, found, known, progress)
        for index, zero, one in known:
            _of_pixels(factors, windows, index, (zero, one), photon)
    return factors


class _Windows:
    """Numbers and sums of the values around two peaks, pixel by pixel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = np.zeros((2, *shape), np.uint32)
        self.sum = np.zeros((2, *shape), np.float64)

    def look(
        self,
        master: Master,
        found: Statistics,
        known: Sequence[tuple[tuple[slice, ...], Peak, Peak]],
        progress: Progress | None,
    ) -> None:
        """Go through the frames."""
        program = master.calibration.program(found.output)
        evaluation = Evaluation(master.calibration, master.words, program, available_threads())
        void, pixels = void_bits(program), evaluation.shape[1:]
        for done, frame in enumerate(found.frames):
            values, flags = evaluation.read((int(frame), *(0 for _ in pixels)), (1, *pixels), with_flags=True)
            assert flags is not None
            valid = flags[0] & void == 0
            for index, zero, one in known:
                half = half_window(zero, found.photon or 1.0)
                for k, peak in enumerate((zero, one)):
                    off = values[0][index] - peak.centre
                    inside = (np.abs(off) < half) & valid[index]
                    self.count[k][index] += inside
                    np.add(self.sum[k][index], off, out=self.sum[k][index], where=inside)
            if progress is not None:
                progress(done + 1, len(found.frames))


def half_window(zero: Peak, photon: float) -> float:
    """Half of a window around a peak; at most as wide as leaves the two apart."""
    return min(WINDOW * zero.width + SPREAD * abs(photon), 0.45 * abs(photon))


def _of_pixels(
    factors: Factors, windows: _Windows, index: tuple[slice, ...], peaks: tuple[Peak, Peak], photon: float
) -> None:
    """Put in the factors of those pixels of a module that have photons enough."""
    zero, one = peaks
    half = half_window(zero, photon)
    shifts, errors = [], []
    for k in range(2):
        count, total = windows.count[k][index].astype(np.float64), windows.sum[k][index]
        with np.errstate(invalid="ignore", divide="ignore"):
            shifts.append(untruncated(total / count, zero.width, half))
            errors.append(zero.width / np.sqrt(count))
    distance = (one.centre + shifts[1]) - (zero.centre + shifts[0])
    factor, error = distance / photon, np.hypot(errors[0], errors[1]) / abs(photon)
    photons = windows.count[1][index]
    good = (photons >= MIN_PHOTONS) & (error <= MAX_ERROR) & np.isfinite(factor)
    factors.photons[index] = photons
    if not good.any():
        return
    weights = 1 / error[good] ** 2
    usual = float((factor[good] * weights).sum() / weights.sum())
    scale = (one.centre - zero.centre) / photon / usual
    for target, values in ((factors.factor, factor * scale), (factors.error, error)):
        target[index] = np.where(good, values, target[index])
    factors.origin[index] = np.where(good, PIXEL, factors.origin[index])


def untruncated(mean: Array, width: float, half: float) -> Array:
    """Where a Gaussian is, of which only what lies within a window around 0 was averaged.

    Parameters
    ----------
    mean : ndarray
        Of what lies in the window.
    width : float
        Standard deviation of the Gaussian.
    half : float
        Half of the window.
    """
    places = np.linspace(-half, half, 401)
    table = np.array([_truncated(place, width, half) for place in places])
    return np.asarray(np.interp(mean, table, places, left=np.nan, right=np.nan))


def _truncated(place: float, width: float, half: float) -> float:
    low, high = (-half - place) / width, (half - place) / width
    inside = 0.5 * (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2)))
    bell = (math.exp(-0.5 * low**2) - math.exp(-0.5 * high**2)) / math.sqrt(2 * math.pi)
    return place + width * bell / inside
