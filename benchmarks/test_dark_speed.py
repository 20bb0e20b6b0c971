"""``darks`` from file to file, beside reading the words, in one run."""

from __future__ import annotations

from pathlib import Path

import dark_runs
import pytest
from measure import best_ratio

FRAMES = 960  # shorter runs measure what a run costs once: judging, writing, fsync
AT_LEAST = {"none": ("h5py raw", 0.2), "bitshuffle-LZ4": ("decoded", 0.35)}
"""While other tests run, and below what is aimed at; docs/explanation/speed.md says what is reached."""


@pytest.mark.slow
@pytest.mark.parametrize("stored", AT_LEAST)
@pytest.mark.parametrize("threads", [1, 2])
def test_darks_keep_up_with_reading(stored: str, threads: int, tmp_path: Path) -> None:
    run = dark_runs.build(tmp_path / "dark.h5", FRAMES, stored)
    yardstick, enough = AT_LEAST[stored]
    assert best_ratio(dark_runs.tasks(run, FRAMES, threads), "darks", yardstick, enough) >= enough
