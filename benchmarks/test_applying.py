"""``apply`` from file to file, beside the raw frames through h5py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the filters for h5py)
import numpy as np
import runs
from measure import best_ratio

from gaincal.verbs.apply import apply

BLOCK = 10
FRAMES = 100
AT_LEAST = 0.08
"""Of h5py's raw speed with so few frames that opening files counts, while other tests run; whole runs: run.py."""


def tasks(master: Path, frames: int, threads: int) -> dict[str, Callable[[], object]]:
    """Write counts as int16, and energies as float32; read the raw words as h5py does, in blocks."""
    raw = h5py.File(master.with_name(runs.RAW))["raw"]
    buffer = np.empty((BLOCK, *raw.shape[1:]), raw.dtype)
    target = master.with_name("out.nxs")

    def h5py_raw() -> None:
        for first in range(0, frames, BLOCK):
            raw.read_direct(buffer, np.s_[first : first + BLOCK])

    return {
        "h5py raw": h5py_raw,
        "counts": lambda: apply(master, target, output="counts", dtype="int16", jobs=threads, overwrite=True),
        "energy": lambda: apply(master, target, output="energy", jobs=threads, overwrite=True),
    }


def test_counts_are_written_while_raw_frames_are_read(tmp_path: Path) -> None:
    found = tasks(runs.build(tmp_path, "2 % clustered", FRAMES), FRAMES, 2)
    del found["energy"]
    assert best_ratio(found, "counts", "h5py raw", AT_LEAST) >= AT_LEAST
