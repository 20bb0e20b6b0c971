"""The oracle for dark frames: windows, sums and histograms in plain NumPy, one pixel tile after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.kernels.dark_rules import BINS, COVER, ENOUGH, TILE, WARM, Stage

Array = npt.NDArray[Any]


def within(words: Array, limits: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where words lie within limits, both ends included."""
    found: npt.NDArray[np.bool_] = (words >= limits[0]) & (words <= limits[1])
    return found


def centres(words: Array, stage: Stage) -> tuple[Array, Array, Array, npt.NDArray[np.bool_]]:
    """Middle word of the first frames, distance between their 16 % and 84 % quantiles, and that of most pixels.

    Parameters
    ----------
    words : ndarray (frame, pixel) of uint16
        The first `WARM` frames.
    stage : Stage

    Returns
    -------
    middle, spread, pooled : ndarray (pixel,) of int64
    found : ndarray (pixel,) of bool
        False where there are too few good words.
    """
    good = within(words, stage.good)
    number = good.sum(axis=0)
    ordered = np.sort(np.where(good, words.astype(np.int64), 1 << 20), axis=0)
    pixels = np.arange(words.shape[1])
    found = number >= ENOUGH
    middle = ordered[np.where(found, number // 2, 0), pixels]
    cut = number * 5 // 32
    spread = ordered[np.where(found, number - 1 - cut, 0), pixels] - ordered[np.where(found, cut, 0), pixels]
    pooled = np.zeros_like(spread)
    for first in range(0, len(pooled), TILE):
        own = np.sort(spread[first : first + TILE][found[first : first + TILE]])
        pooled[first : first + TILE] = own[len(own) // 2] if len(own) else 0
    return middle, spread, pooled, found


def windows(words: Array, stage: Stage, clip: float) -> tuple[Array, Array]:
    """The window of every pixel: its first word, and how many follow; all good words without enough frames."""
    first, last = stage.good
    low, high = np.full(words.shape[1], first), np.full(words.shape[1], last)
    if len(words) >= WARM:
        middle, spread, pooled, found = centres(words[:WARM], stage)
        half = (round(2 * clip) * np.maximum(spread, pooled) + 3) // 4 + 1
        low = np.where(found, np.maximum(middle - half, first), low)
        high = np.where(found, np.minimum(middle + half, last), high)
    return low.astype(np.uint16), (high - low).astype(np.uint16)


def sums(words: Array, stage: Stage, low: Array, width: Array) -> dict[str, Array]:
    """Number, sum and sum of squares of (word - low) of the words in the window, and how many tell which stage."""
    distance = words.astype(np.int64) - low
    inside = (distance >= 0) & (distance <= width)
    kept = np.where(inside, distance, 0).astype(np.uint64)
    return {
        "used": inside.sum(axis=0).astype(np.uint32),
        "right": within(words, stage.right).sum(axis=0).astype(np.uint32),
        "undefined": within(words, stage.undefined).sum(axis=0).astype(np.uint32),
        "total": kept.sum(axis=0, dtype=np.uint64),
        "squares": (kept * kept).sum(axis=0, dtype=np.uint64),
    }


def grids(words: Array, stage: Stage) -> tuple[Array, Array]:
    """First word of each pixel's histogram, and the power of two that a bin holds."""
    first, last = stage.good
    whole = next(k for k in range(17) if BINS << k > last - first)
    base, shift = np.full(words.shape[1], first, np.int64), np.full(words.shape[1], whole)
    if len(words) >= WARM:
        middle, spread, pooled, found = centres(words[:WARM], stage)
        span = COVER * np.maximum(spread, pooled // 2) + 2
        fitting = np.array([next(k for k in range(17) if BINS << k >= n) for n in span.tolist()], np.int64)
        shift = np.where(found, fitting, shift)
        base = np.where(found, middle - np.left_shift(BINS // 2, shift), base)
    return base.astype(np.int32), shift.astype(np.uint8)


def histograms(words: Array, stage: Stage, base: Array, shift: Array) -> dict[str, Array]:
    """Histogram of the good words of each pixel, and how many lie outside or tell which stage."""
    good = within(words, stage.good)
    place = (words.astype(np.int64) - base) >> shift
    inside = good & (place >= 0) & (place < BINS)
    counts = np.zeros((words.shape[1], BINS), np.uint16)
    for frame, taken in zip(place, inside, strict=True):
        counts[np.flatnonzero(taken), frame[taken]] += 1
    return {
        "counts": counts,
        "below": (good & (place < 0)).sum(axis=0).astype(np.uint32),
        "above": (good & (place >= BINS)).sum(axis=0).astype(np.uint32),
        "right": within(words, stage.right).sum(axis=0).astype(np.uint32),
        "undefined": within(words, stage.undefined).sum(axis=0).astype(np.uint32),
    }
