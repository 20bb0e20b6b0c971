"""Calibrated frames through the public interface, beside the raw frames through h5py, in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters for h5py)
import numpy as np
import pytest
import runs
from measure import best_ratio, take_turns

import gaincal

BLOCK = 10
FRAMES = 60
AT_LEAST = 0.4
"""Of h5py's raw speed while other tests run; docs/explanation/speed.md says what is reached on a quiet machine."""


def tasks(master: Path, frames: int) -> dict[str, Callable[[], object]]:
    """Read blocks of frames: calibrated (in every way that users do it), and raw by h5py into one array."""
    view = gaincal.open_calibrated(master, output="energy")
    raw = h5py.File(master.with_name(runs.RAW))["raw"]
    buffer = np.empty((BLOCK, *raw.shape[1:]), raw.dtype)

    def h5py_raw() -> None:
        for first in range(0, frames, BLOCK):
            raw.read_direct(buffer, np.s_[first : first + BLOCK])

    def calibrated() -> None:
        for first in range(0, frames, BLOCK):
            np.asarray(view[first : first + BLOCK].values)

    return {"h5py raw": h5py_raw, "calibrated": calibrated}


def single(master: Path, frames: int) -> dict[str, Callable[[], object]]:
    """Read frame by frame, and one pixel of all frames."""
    view = gaincal.open_calibrated(master, output="energy")
    raw = h5py.File(master.with_name(runs.RAW))["raw"]
    one = np.empty(raw.shape[1:], raw.dtype)

    def raw_frames() -> None:
        for k in range(frames):
            raw.read_direct(one, np.s_[k])

    def calibrated_frames() -> None:
        for k in range(frames):
            np.asarray(view[k].values)

    return {
        "h5py raw frames": raw_frames,
        "calibrated frames": calibrated_frames,
        "h5py raw pixel": lambda: raw[:frames, 300, 700],
        "calibrated pixel": lambda: np.asarray(view[:frames, 300, 700].values),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.build(tmp_path_factory.mktemp("run"), "2 % clustered", FRAMES)


@pytest.mark.parametrize("threads", [1, 2])
def test_calibrated_frames_are_read_at_no_small_part_of_the_speed_of_raw_ones(
    run: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(threads))
    found = tasks(run, FRAMES)
    assert best_ratio(found, "calibrated", "h5py raw", AT_LEAST) >= AT_LEAST


@pytest.mark.parametrize("stored", ["bitshuffle-Zstd", "gzip", "none"])
def test_other_filters(benchmark: Any, tmp_path: Path, stored: str) -> None:
    benchmark.group = f"read, {stored}"
    master = runs.build(tmp_path, "2 % clustered", BLOCK, stored)
    benchmark(tasks(master, BLOCK)["calibrated"])


def test_a_pixel_of_all_frames(run: Path) -> None:
    found = take_turns(single(run, FRAMES), rounds=1, warm=1)
    assert found["calibrated pixel"][0] < 3 * found["h5py raw pixel"][0]
