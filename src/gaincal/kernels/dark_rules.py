"""What is measured of dark frames, pixel by pixel, and how: every number that the evaluators share.

All sums are of integers, so they are exact: neither threads nor blocks nor the order of frames change them.  One
formula in float64 at the end makes means and variances of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WARM = 16
"""Frames of a pixel from which its window is found; they are kept until there are so many."""
ENOUGH = 8
"""A window needs so many good words among them, else all words of the stage are taken."""
TILE = 4096
"""Pixels whose scatter is pooled: a pixel that scatters less than most gets their window."""
GROUP = 16
"""Frames summed in 32 bits: the squares of so many 14-bit numbers fit."""
NARROW = (1 << 14) - 1
BINS = 64
"""Of a pixel's histogram."""
BELOW, ABOVE, OUTSIDE = BINS, BINS + 1, BINS + 2
"""Where good words on either side of the bins are counted, and those that are not good."""
PLACES = BINS + 4
"""Counters of a pixel: whole cache lines for eight of them."""
COVER = 5
"""A histogram spans at least so many times the distance between the 16 % and 84 % quantiles, as first found."""
MOST_COUNTED = (1 << 16) - 1
"""Frames that a histogram can count."""
ONE_SIGMA = 0.15865525393145707
"""Part of a normal distribution below one standard deviation."""


@dataclass(frozen=True)
class Stage:
    """The words of a gain stage, all of them neighbours.

    Parameters
    ----------
    label : int
        Of the stage.
    right : (int, int)
        First and last word that tells this stage.
    good : (int, int)
        First and last of these that carry a value; special words lie outside.
    undefined : (int, int)
        First and last word that tells no stage at all; first above last if every word tells one.
    zero : int
        The word that stands for 0 ADU.
    """

    label: int
    right: tuple[int, int]
    good: tuple[int, int]
    undefined: tuple[int, int] = (1, 0)
    zero: int = 0

    @property
    def limits(self) -> tuple[int, ...]:
        """As the kernels take them."""
        return (*self.right, *self.good, *self.undefined)


@dataclass(frozen=True)
class Moments:
    """Number, mean and standard deviation of the words of each pixel.

    Parameters
    ----------
    used : ndarray of uint32
        Words that entered.
    mean, noise : ndarray of float64
        ADU; NaN where too few words entered (one for the mean, two for the noise).
    """

    used: Array
    mean: Array
    noise: Array


def moments(used: Array, total: Array, squares: Array, low: Array, zero: int) -> Moments:
    """Means and standard deviations from sums.

    Parameters
    ----------
    used : ndarray of uint32
    total, squares : ndarray of uint64
        Sums of (word - low) and of its square.
    low : ndarray of uint16
        The word that was taken as 0 in the sums of a pixel.
    zero : int
        The word that stands for 0 ADU.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        count = used.astype(np.float64)
        mean = total.astype(np.float64) / count
        spread = np.maximum(squares.astype(np.float64) - total.astype(np.float64) * mean, 0.0)
        noise = np.sqrt(spread / np.where(used > 1, count - 1.0, np.nan))
    return Moments(used, (low.astype(np.float64) - zero) + mean, noise)


def quantile(part: float, below: Array, counts: Array, above: Array, base: Array, shift: Array, zero: int) -> Array:
    """A quantile of every pixel, from its histogram: linear within a bin, as for grouped data.

    Parameters
    ----------
    part : float
        0.5 for the median.
    below, above : ndarray (pixel,) of uint32
        Words outside of the histogram.
    counts : ndarray (pixel, BINS) of uint16
    base : ndarray (pixel,) of int32
        First word of the first bin.
    shift : ndarray (pixel,) of uint8
        A bin holds 2**shift words.
    zero : int
        The word that stands for 0 ADU.

    Returns
    -------
    ndarray (pixel,) of float64
        ADU; NaN where the quantile lies outside of the histogram.
    """
    reached = np.cumsum(counts, axis=1, dtype=np.int64)
    total = below.astype(np.int64) + reached[:, -1] + above
    wanted = part * total - below
    place = np.minimum((reached < wanted[:, None]).sum(axis=1), BINS - 1)[:, None]
    own = np.take_along_axis(counts, place, axis=1)[:, 0].astype(np.float64)
    before = np.take_along_axis(reached, place, axis=1)[:, 0] - own
    inside = (total > 0) & (wanted >= 0) & (wanted <= reached[:, -1]) & (own > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        position = place[:, 0] + (wanted - before) / own
    width = np.left_shift(1, shift.astype(np.int64))
    return np.where(inside, base + position * width - 0.5 - zero, np.nan)


def gate(middle: Array, noise: Array, widths: float, stage: Stage) -> tuple[Array, Array]:
    """First word of each pixel's gate and how many follow: ``middle`` and ``noise`` in ADU, good words only.

    A pixel without a middle takes all good words.
    """
    first, last = stage.good
    known = np.isfinite(middle) & np.isfinite(noise)
    half = widths * np.where(known, noise, 0.0) + 1.0
    low = np.clip(np.ceil(np.where(known, middle, 0.0) - half) + stage.zero, first, last)
    high = np.clip(np.floor(np.where(known, middle, 0.0) + half) + stage.zero, first, last)
    low, high = np.where(known, low, first), np.where(known, high, last)
    return low.astype(np.uint16), (high - low).astype(np.uint16)
