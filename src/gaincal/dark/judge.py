"""Why a pixel is bad, judged from dark frames: robust thresholds, all of them stated and adjustable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError

Array = npt.NDArray[Any]
CONVENTION = "gaincal-darks"
"""The table in ``mask_bits.toml`` that says what these bits mean and which bits of NXmx stand for them."""
REASONS = MappingProxyType(
    {
        "too_few_frames": 0,
        "dead": 1,
        "noisy": 2,
        "wrong_gain": 3,
        "undefined_code": 4,
        "switching": 5,
        "pedestal_low": 6,
        "pedestal_high": 7,
    }
)
NORMAL_MAD = 1.482602218505602
"""Standard deviations of a normal distribution in its median absolute deviation."""
LEAST_SCATTER = 0.25
"""ADU; pixels of a module that hardly differ do not make each other outliers."""


@dataclass(frozen=True)
class Thresholds:
    """When a pixel is bad.

    Parameters
    ----------
    min_frames : float
        Fewer words than this give no pedestal (``too_few_frames``).
    dead : float
        Noise below this part of the median of its module.
    noisy : float
        Noise beyond the median of its module by so many robust standard deviations.
    clipped : float
        More than this part of its words outside of its window: noisy.
    wrong_gain : float
        More than this part of its words in other stages.
    switching : float
        More than this part of its words in other stages, if it is not ``wrong_gain``.
    undefined : float
        More than this part of its words without a stage.
    outlier : float
        Pedestal away from the median of its module by so many robust standard deviations.
    """

    min_frames: float = 5.0
    dead: float = 0.1
    noisy: float = 6.0
    clipped: float = 0.05
    wrong_gain: float = 0.5
    switching: float = 0.005
    undefined: float = 0.0
    outlier: float = 8.0

    def changed(self, given: Mapping[str, float]) -> Thresholds:
        """With other values; raises RequestError for a name that there is not, or a negative value."""
        names = [f.name for f in fields(self)]
        for name, value in given.items():
            if name not in names:
                raise RequestError(f"no threshold is called '{name}'; there are {', '.join(names)}")
            if value < 0:
                raise RequestError(f"threshold {name}={value}: must not be negative")
        return replace(self, **given)

    def stated(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What the dark frames of a module say, in one stage and cell; arrays are (pixel,).

    Parameters
    ----------
    frames : int
        Words that each pixel had.
    right, undefined, used : ndarray of uint32
        Words that tell this stage, or none; words that entered the pedestal.
    pedestal, noise : ndarray of float64
        ADU; NaN where there is none.
    """

    frames: int
    right: Array
    undefined: Array
    used: Array
    pedestal: Array
    noise: Array


def judge(found: Evidence, limits: Thresholds) -> npt.NDArray[np.uint32]:
    """The reasons of every pixel, as bits of `REASONS`.

    Median and scatter of the module are those of pixels for which nothing else speaks against.
    """
    frames = max(found.frames, 1)
    other = found.frames - found.right.astype(np.int64) - found.undefined
    wrong = other > limits.wrong_gain * frames
    special = found.right.astype(np.int64) > 0.5 * frames
    few = found.used < limits.min_frames
    valued = ~few & np.isfinite(found.pedestal) & np.isfinite(found.noise)
    quiet = valued & ~wrong
    middle = float(np.median(found.noise[quiet])) if quiet.any() else np.nan
    clipped = (found.right.astype(np.int64) - found.used) > limits.clipped * np.maximum(found.right, 1)
    dead = (valued & ((found.noise <= limits.dead * middle) | (found.noise == 0))) | (few & special)
    sound = quiet & ~dead
    low, high = _beyond(found.pedestal, sound, limits.outlier)
    reasons = {
        "too_few_frames": few & ~special,
        "dead": dead,
        "noisy": sound & (_beyond(found.noise, sound, limits.noisy)[1] | clipped),
        "wrong_gain": wrong,
        "undefined_code": found.undefined > limits.undefined * frames,
        "switching": ~wrong & (other > limits.switching * frames),
        "pedestal_low": low,
        "pedestal_high": high,
    }
    bits = np.zeros(found.used.shape, np.uint32)
    for name, bad in reasons.items():
        bits |= bad.astype(np.uint32) << np.uint32(REASONS[name])
    return bits if found.frames else np.zeros_like(bits)


def _beyond(values: Array, sound: Array, widths: float) -> tuple[Array, Array]:
    """Which sound values lie below and above the others."""
    none = np.zeros(values.shape, bool)
    if not sound.any():
        return none, none
    middle = np.median(values[sound])
    scatter = max(NORMAL_MAD * float(np.median(np.abs(values[sound] - middle))), LEAST_SCATTER)
    with np.errstate(invalid="ignore"):
        return sound & (values < middle - widths * scatter), sound & (values > middle + widths * scatter)
