"""How the modules of a detector lie in a frame: stacked, or all in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.nexus.boxes import Box

Array = npt.NDArray[Any]
STACKED, ASSEMBLED = "stacked", "assembled"
LAYOUTS = (STACKED, ASSEMBLED)
GAP = 1
"""Bit 0 of NXmx's pixel_mask: there is no pixel."""


@dataclass(frozen=True)
class Arrangement:
    """How modules lie in a frame.

    Parameters
    ----------
    modules : int
        With those that are absent.
    pixels : tuple of int
        Of a module.
    layout : {'stacked', 'assembled'}
        (module, y, x), or modules below each other in one image (y, x).  One module alone is a frame either way.
    gap : int
        Rows between modules of an image, which have no pixels.

    Raises
    ------
    RequestError
        If there is no such layout, or it is none for such modules.
    """

    modules: int
    pixels: tuple[int, ...]
    layout: str = STACKED
    gap: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise RequestError(f"no layout '{self.layout}'; there are {', '.join(LAYOUTS)}")
        if self.gap < 0 or (self.gap and self.layout == STACKED):
            raise RequestError(f"gap {self.gap}: rows between modules of the layout '{ASSEMBLED}', 0 or more")
        if self.layout == ASSEMBLED and len(self.pixels) != 2:
            raise RequestError(f"modules of {self.pixels} pixels cannot be assembled to an image: stack them")

    @property
    def in_one_image(self) -> bool:
        """Whether several modules share the dims of an image."""
        return self.layout == ASSEMBLED and self.modules > 1

    @property
    def stack(self) -> tuple[int, ...]:
        """The shape that the pixels of all modules have when they are stacked."""
        return (self.modules, *self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame."""
        if self.modules == 1:
            return self.pixels
        if self.layout == STACKED:
            return self.stack
        return (self.modules * self._step - self.gap, self.pixels[1])

    @property
    def _step(self) -> int:
        return self.pixels[0] + self.gap

    def box(self, first: int, count: int, module: int) -> Box:
        """Where some frames of a module lie in the words (frame, *pixels)."""
        origin = (0,) * len(self.pixels)
        if self.modules == 1:
            return (first, *origin), (count, *self.pixels)
        if self.layout == STACKED:
            return (first, module, *origin), (count, 1, *self.pixels)
        return (first, module * self._step, 0), (count, *self.pixels)

    def arranged(self, values: Array, fill: float = 0) -> Array:
        """Values (..., module, *pixels) as they lie in a frame: (..., *shape)."""
        lead = values.shape[: values.ndim - 1 - len(self.pixels)]
        if not self.in_one_image or not self.gap:
            return values.reshape(*lead, *self.shape)
        whole = np.full((*lead, self.modules, self._step, self.pixels[1]), fill, values.dtype)
        whole[..., : self.pixels[0], :] = values
        return whole.reshape(*lead, -1, self.pixels[1])[..., : self.shape[0], :]

    @property
    def mask(self) -> Array | None:
        """The pixel mask (uint32) of rows without pixels, None if there are none."""
        if not self.in_one_image or not self.gap:
            return None
        return self.arranged(np.zeros(self.stack, np.uint32), GAP)
