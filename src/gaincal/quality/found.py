"""Peaks of every module: where photons are expected and found, and how the pedestal drifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.quality.peaks import Peak, photon_peak, zero_peak
from gaincal.quality.statistics import Statistics

Array = npt.NDArray[Any]
SIGNIFICANT = 4.0
"""Standard deviations that a drift must exceed."""


@dataclass(frozen=True)
class Slice:
    """The zero-photon peak in a slice of time.

    Parameters
    ----------
    first, last : int
        Frame numbers.
    zero : Peak or None
    """

    first: int
    last: int
    zero: Peak | None


@dataclass(frozen=True)
class PartPeaks:
    """Peaks of a module.

    Parameters
    ----------
    name : str
    zero, photon : Peak or None
        Over all frames that were looked at.
    slices : tuple of Slice
    """

    name: str
    zero: Peak | None
    photon: Peak | None
    slices: tuple[Slice, ...]

    def gain(self, expected: float | None) -> float | None:
        """Distance of the two peaks over what a photon should give: above 1 if values come out too large."""
        if expected is None or self.zero is None or self.photon is None:
            return None
        return (self.photon.centre - self.zero.centre) / expected

    def gain_error(self, expected: float | None) -> float | None:
        """Standard deviation of `gain`, of the fits alone."""
        if expected is None or self.zero is None or self.photon is None:
            return None
        return float(np.hypot(self.photon.error, self.zero.error)) / abs(expected)

    @property
    def drift(self) -> float | None:
        """Highest minus lowest zero-photon peak of all slices; 0 where it is not significant."""
        found = [s.zero for s in self.slices if s.zero is not None]
        if len(found) < 2:
            return None
        low, high = min(found, key=lambda p: p.centre), max(found, key=lambda p: p.centre)
        distance = high.centre - low.centre
        return distance if distance > SIGNIFICANT * float(np.hypot(low.error, high.error)) else 0.0


def find_peaks(statistics: Statistics) -> tuple[PartPeaks, ...]:
    """Peaks of every module, and of the whole if there are several modules (the last)."""
    spectra = statistics.spectrum
    found = [_peaks(statistics, part.name, spectra[:, k]) for k, part in enumerate(statistics.parts)]
    if len(found) > 1:
        found.append(_peaks(statistics, "all", spectra.sum(1)))
    return tuple(found)


def _peaks(statistics: Statistics, name: str, spectra: Array) -> PartPeaks:
    edges, expected = statistics.edges, statistics.photon
    total = spectra.sum(0)
    zero = zero_peak(total, edges, expected)
    photon = None
    if zero is not None and expected is not None:
        photon = photon_peak(total, edges, expected, zero.width)
    slices = []
    for k, counts in enumerate(spectra):
        frames = statistics.frames[statistics.first[k] : statistics.first[k + 1]]
        slices.append(Slice(int(frames[0]), int(frames[-1]), zero_peak(counts, edges, expected)))
    return PartPeaks(name, zero, photon, tuple(slices))
