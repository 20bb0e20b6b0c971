"""Constants cell by cell: medians of modules, of which maps show the first cell only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.nexus.constantsfile import CELL, COUNTS, REASONS, ConstantsSet
from gaincal.quality.parts import parts_of_pixels
from gaincal.quality.planes import FIRST, STAGE, plane_values

Array = npt.NDArray[Any]
EVERY = 4
"""Of so many rows one is looked at: medians of thousands of pixels are good enough for a line."""


@dataclass(frozen=True, eq=False)
class Cells:
    """A constant of a stage in all memory cells.

    Parameters
    ----------
    name, units : str
    stage : int or None
    cells : tuple of int
        Labels.
    medians : ndarray (module, cell)
        NaN where a module has no value.
    """

    name: str
    units: str
    stage: int | None
    cells: tuple[int, ...]
    medians: Array

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}{'' if self.stage is None else f', stage {self.stage}'}, all cells"


def cells_of_set(found: ConstantsSet) -> Iterator[Cells]:
    """Constants of a set that differ from memory cell to memory cell, stage by stage."""
    kept = [n for n in found.constants if n not in (COUNTS, REASONS)]
    for name in sorted(kept, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST)):
        labels = found.labels(name)
        cells = labels.get(CELL, ())
        if len(cells) < 2 or set(labels) - {STAGE, CELL}:
            continue
        for stage in labels.get(STAGE, (None,)):
            columns = []
            for cell in range(len(cells)):
                at = {CELL: cell, STAGE: 0 if stage is None else labels[STAGE].index(stage)}
                columns.append(_medians(plane_values(found.constants[name], tuple(at[a] for a in labels))))
            yield Cells(name, found.units[name], stage, cells, np.stack(columns, axis=1))


def _medians(plane: Array) -> Array:
    """Of every module, from some of its rows."""
    rows = (plane[part.index][..., ::EVERY, :] for part in parts_of_pixels(plane.shape))
    return np.array([np.median(own) if (own := r[np.isfinite(r)]).size else np.nan for r in rows])
