"""How the pixels of a frame are laid out in a picture: as they are stored, or in the laboratory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EDGE = 1200
"""Longest edge of a picture of pixels."""
GAP = 8
"""Pixels between modules that are laid beside each other."""
BEST_ASPECT = 1.3


class Canvas(Protocol):
    """Lays out pixels."""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top, as `matplotlib` takes it."""

    @property
    def labels(self) -> tuple[str, str]:
        """Of the axes."""

    @property
    def step(self) -> int:
        """Edge in pixels of the squares that become one point of the picture."""

    def image(self, values: Array, reduce: Callable[..., Any] = np.fmax.reduce) -> Array:
        """A picture (row, column) of pixels; NaN where there is none."""


@dataclass(frozen=True)
class Stored:
    """Pixels as they lie in the file; modules of a stack beside each other.

    Parameters
    ----------
    pixels : tuple of int
        Shape of a frame.
    edge : int
        Longest edge of a picture.
    """

    pixels: tuple[int, ...]
    edge: int = EDGE

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of modules, so that the whole is about as wide as a screen."""
        modules = math.prod(self.pixels[:-2])
        rows, columns = (1, *self.pixels)[-2:]

        def off(across: int) -> float:
            width, height = across * (columns + GAP), -(-modules // across) * (rows + GAP)
            return abs(math.log(width / height / BEST_ASPECT))

        across = min(range(1, modules + 1), key=off) if modules > 1 else 1
        return -(-modules // across), across

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns before binning."""
        rows, columns = (1, *self.pixels)[-2:]
        down, across = self._grid
        return down * (rows + GAP) - GAP, across * (columns + GAP) - GAP

    @property
    def step(self) -> int:
        """Edge of the squares that become one point."""
        return max(1, -(-max(self.shape) // self.edge))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Columns to the right, rows downwards."""
        rows, columns = self.shape
        return (-0.5, columns - 0.5, rows - 0.5, -0.5)

    @property
    def labels(self) -> tuple[str, str]:
        """Of the axes."""
        return ("column", "row") if math.prod(self.pixels[:-2]) == 1 else ("modules in order, left to right", "")

    def image(self, values: Array, reduce: Callable[..., Any] = np.fmax.reduce) -> Array:
        """A picture (row, column) of pixels, binned."""
        rows, columns = (1, *self.pixels)[-2:]
        stack = values.reshape(-1, rows, columns)
        whole = np.full(self.shape, np.nan, np.float32)
        for k, module in enumerate(stack):
            top, left = (place * (n + GAP) for place, n in zip(divmod(k, self._grid[1]), (rows, columns), strict=True))
            whole[top : top + rows, left : left + columns] = module
        return binned(whole, self.step, reduce)


def binned(image: Array, step: int, reduce: Callable[..., Any]) -> Array:
    """One value for every square of `step` x `step` points; those at the edges may be cut."""
    if step == 1:
        return image
    rows, columns = (-(-n // step) * step for n in image.shape)
    padded = np.full((rows, columns), np.nan, np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    squares = padded.reshape(rows // step, step, columns // step, step).swapaxes(1, 2)
    return np.asarray(reduce(squares.reshape(rows // step, columns // step, step * step), axis=2))


def mean_of(values: Array, axis: int) -> Array:
    """The mean of those values that there are, NaN where there are none."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, values, 0).sum(axis) / there.sum(axis))
