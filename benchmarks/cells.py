"""A run of AGIPD on disk, as the European XFEL writes it, with constants for every memory cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
DETECTOR = "SPB_DET_AGIPD1M-1"
MODULES, SLAB = 16, (512, 128)
DISTINCT = 32
SWITCHED, SPOT = 0.001, (8, 8)
"""Centres of switched spots among pixels: 6 % of the pixels, in clusters."""
LEVELS = {"thresholds": (8000.0, 12000.0), "offset": (4000.0, 3500.0, 3000.0), "relative_gain": (1.0, 30.0, 100.0)}


def build(directory: Path, cells: int, trains: int, present: int = MODULES) -> Path:
    """Write words of the modules that are present, constants of all of them, and the master; returns it."""
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    (directory / "run").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(12)
    analog = rng.normal(4000, 30, (DISTINCT, *SLAB))
    spots = rng.random((DISTINCT, SLAB[0] // SPOT[0], SLAB[1] // SPOT[1])) < SWITCHED * SPOT[0] * SPOT[1]
    digital = rng.normal(5000, 20, analog.shape) + 4000 * spots.repeat(SPOT[0], axis=1).repeat(SPOT[1], axis=2)
    words = np.stack([analog, digital], axis=1).astype(np.uint16)
    for module in range(present):
        path = directory / "run" / f"RAW-R0001-AGIPD{module:02d}-S00000.h5"
        device = AGIPDModule(f"{DETECTOR}/DET/{module}CH0", frames_per_train=cells)
        write_file(str(path), [device], trains, format_version="1.2", chunksize=32)
        with h5py.File(path, "r+") as file:
            image = file[f"INSTRUMENT/{DETECTOR}/DET/{module}CH0:xtdf/image"]
            image["cellId"][...] = np.tile(np.arange(cells), trains).reshape(image["cellId"].shape)
            for first in range(0, cells * trains, DISTINCT):
                part = words[: cells * trains - first]
                image["data"][first : first + len(part)] = part
    _write_constants(directory / "constants.h5", cells, rng)
    constants = {name: f"{directory / 'constants.h5'}::/{name}/{name}" for name in LEVELS}
    settings = {"adu_per_kev": 7.0, "photon_energy": 9.3}
    embed(directory / "run", directory / "master.nxs", constants=constants, settings=settings, overwrite=True)
    return directory / "master.nxs"


def tasks(master: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Write all values; read all words, of both kinds, as h5py does, module by module."""
    files = [h5py.File(path) for path in sorted((master.parent / "run").glob("*.h5"))]
    raw = [file[f"INSTRUMENT/{DETECTOR}/DET/{k}CH0:xtdf/image/data"] for k, file in enumerate(files)]
    buffer = np.empty((DISTINCT, 2, *SLAB), np.uint16)
    target = master.with_name("out.nxs")

    def h5py_raw() -> None:
        for dataset in raw:
            for first in range(0, len(dataset), DISTINCT):
                part = np.s_[first : min(first + DISTINCT, len(dataset))]
                dataset.read_direct(buffer[: part.stop - first], part)

    return {
        "h5py raw": h5py_raw,
        "signal": lambda: apply(master, target, output="signal", jobs=threads, overwrite=True),
        "counts": lambda: apply(master, target, output="counts", dtype="int16", jobs=threads, overwrite=True),
    }


def _write_constants(path: Path, cells: int, rng: np.random.Generator) -> None:
    with h5py.File(path, "w") as file:
        for name, levels in LEVELS.items():
            dataset = file.create_dataset(f"{name}/{name}", (len(levels), cells, MODULES, *SLAB), np.float32)
            for (plane, level), cell in ((own, c) for own in enumerate(levels) for c in range(cells)):
                dataset[plane, cell] = level * rng.uniform(0.98, 1.02, (MODULES, *SLAB))
            file[f"{name}/cell"] = np.arange(cells)
            file[f"{name}/{'threshold' if name == 'thresholds' else 'stage'}"] = np.arange(len(levels))
