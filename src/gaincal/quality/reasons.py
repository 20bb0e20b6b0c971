"""Bad pixels by reason: those of the mask, and those that frames show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.nexus import names
from gaincal.quality.statistics import Statistics

Array = npt.NDArray[Any]
MASK, FRAMES = "mask", "frames"


@dataclass(frozen=True, eq=False)
class Reason:
    """Why pixels are bad.

    Parameters
    ----------
    name : str
    source : {'mask', 'frames'}
        Who says so: the pixel mask of the file, or flags of the formula.
    pixels : ndarray (*pixels) of bool
        In every frame that was looked at.
    share : float
        Of the pixels of all frames.
    voids : bool
        Whether such pixels have no value.
    """

    name: str
    source: str
    pixels: Array
    share: float
    voids: bool

    @property
    def count(self) -> int:
        """Pixels that are so in every frame."""
        return int(np.count_nonzero(self.pixels))


def reasons_of(calibration: Calibration, found: Statistics) -> list[Reason]:
    """All reasons that there are, most pixels first; those of the mask stand for the flag that asks it."""
    listed = []
    mask = calibration.arrays.get(names.PIXEL_MASK)
    for bit, name in names.PIXEL_MASK_BITS.items():
        if mask is None:
            break
        pixels = (mask >> np.uint32(bit) & np.uint32(1)).astype(bool)
        if pixels.any():
            listed.append(Reason(name, MASK, pixels, float(pixels.mean()), bit < names.BAD_BITS))
    bits = calibration.flag_bits()
    looked_at = max(1, int(found.looked_at.sum()))
    for name, counts in found.flags.items():
        if not counts.sum() or (name == names.MASKED and mask is not None):
            continue
        pixels = (found.always >> np.uint32(bits[name]) & np.uint32(1)).astype(bool)
        listed.append(Reason(name, FRAMES, pixels, float(counts.sum() / looked_at), name in found.voiding))
    return sorted(listed, key=lambda r: -r.share)
