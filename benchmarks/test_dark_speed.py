"""``darks`` from file to file, beside reading the words, in one run."""

from __future__ import annotations

from pathlib import Path

import dark_runs
import pytest
from measure import speed_ratio, take_turns

FRAMES, TRIES = 960, 3  # shorter runs measure what a run costs once: judging, writing, fsync
AT_LEAST = {"none": ("h5py raw", 0.3), "bitshuffle-LZ4": ("decoded", 0.45)}
"""While other tests run, and below what is reached at full size; docs/explanation/speed.md says what that is."""


@pytest.mark.slow
@pytest.mark.parametrize("stored", AT_LEAST)
@pytest.mark.parametrize("threads", [1, 2])
def test_darks_keep_up_with_reading(stored: str, threads: int, tmp_path: Path) -> None:
    run = dark_runs.build(tmp_path / "dark.h5", FRAMES, stored)
    yardstick, enough = AT_LEAST[stored]
    every = dark_runs.tasks(run, FRAMES, threads)
    tasks = {name: every[name] for name in ("darks", yardstick)}
    best = 0.0
    for _ in range(TRIES):
        best = max(best, speed_ratio(take_turns(tasks, 3, 1), "darks", yardstick))
        if best >= enough:
            break
    assert best >= enough
