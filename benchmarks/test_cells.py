"""``apply`` to a run of AGIPD: constants of every memory cell are read once, whatever is held of them."""

from __future__ import annotations

from pathlib import Path

import cells
import pytest
from measure import best_ratio

from gaincal import constants
from gaincal.nexus import group

AT_LEAST = 0.02
"""Of h5py's raw speed with so few frames that opening files and compiling count; whole runs: run.py."""


def test_a_run_with_more_constants_than_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("extra_data", reason="extra-data, which writes the facility's layout, is not installed")
    monkeypatch.setattr(group, "MAX_LOADED_BYTES", 8 << 20)
    monkeypatch.setattr(constants, "CACHE", constants.Cache(64 << 20))
    found = cells.tasks(cells.build(tmp_path, cells=3, trains=8, present=2), 2)
    del found["signal"]
    assert best_ratio(found, "counts", "h5py raw", AT_LEAST) >= AT_LEAST
