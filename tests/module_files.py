"""Files of single modules, whose pixels say which frame, module and row they are, with everything that goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FIRST_PULSE = 9_000_000_000
STEP, BLOCK = 10, 50
WORDS, PULSES = "/entry/data", "/entry/pulse_id"


def pulse(frame: Array) -> Array:
    return FIRST_PULSE + STEP * frame.astype(np.uint64)


def stamped(frames: Array, module: int, pixels: tuple[int, int], first_row: int = 0) -> Array:
    """Words whose first four pixels are frame (two words), module and row; others tell the module."""
    words = np.full((len(frames), *pixels), 2000 + 10 * module, np.uint16)
    words[:, 0, 0], words[:, 0, 1], words[:, 0, 2] = frames & 0xFFF, frames >> 12, module
    words[:, 0, 3] = np.arange(first_row, first_row + len(frames)) & 0xFFF
    return words


@dataclass(frozen=True, eq=False)
class ModuleFiles:
    """Files `m00.h5` ... in a folder, and which frame each of their rows is."""

    folder: Path
    rows: dict[int, Array]
    pixels: tuple[int, int]
    frames: int

    def file(self, module: int) -> Path:
        return self.folder / f"m{module:02d}.h5"

    @property
    def pattern(self) -> str:
        return f"{self.folder}/m{{module:02d}}.h5"

    def first_rows(self, module: int, table: Array) -> Array:
        """The first row of each frame in the file of a module, -1 where there is none."""
        first = np.full(self.frames, -1)
        rows = self.rows[module]
        first[rows[::-1]] = np.arange(len(rows))[::-1]
        return first[table]

    def expected(self, table: Array, modules: int) -> tuple[Array, Array]:
        """Words (frame, module, y, x) of some frames, and where they are missing (frame, module)."""
        words = np.zeros((len(table), modules, *self.pixels), np.uint16)
        missing = np.ones(words.shape[:2], bool)
        for module, rows in self.rows.items():
            at = self.first_rows(module, table)
            missing[:, module] = at < 0
            words[at >= 0, module] = stamped(rows, module, self.pixels)[at[at >= 0]]
        return words, missing


def write_modules(
    folder: Path,
    frames: int,
    modules: int,
    pixels: tuple[int, int] = (4, 8),
    *,
    lost: float = 0.01,
    repeated: float = 0.001,
    shuffled: float = 0.001,
    seed: int = 0,
    noise: bool = False,
    **storage: Any,
) -> ModuleFiles:
    """Modules that each lack some frames, recorded some again, and others out of order; noise compresses as such."""
    rng = np.random.default_rng(seed)
    rows = {}
    for module in range(modules):
        own = np.flatnonzero(rng.random(frames) >= lost)
        again = rng.choice(len(own), max(1, round(frames * repeated)), replace=False)
        own = np.insert(own, np.minimum(again + 3, len(own)), own[again])
        for start in rng.choice(len(own) - 4, max(1, round(frames * shuffled)), replace=False):
            own[start : start + 4] = own[start : start + 4][::-1].copy()
        rows[module] = own
        with h5py.File(folder / f"m{module:02d}.h5", "w") as file:
            file[PULSES] = pulse(own)
            words = file.create_dataset(WORDS, (len(own), *pixels), "u2", chunks=(1, *pixels), **storage)
            for first in range(0, len(own), BLOCK):
                block = stamped(own[first : first + BLOCK], module, pixels, first)
                words[first : first + BLOCK] = block + rng.integers(0, 128, pixels, np.uint16) if noise else block
    return ModuleFiles(folder, rows, pixels, frames)


def truncate(path: Path, part: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
