"""``apply`` to a run of AGIPD: the same whether constants of every memory cell are held or not; speed: run.py."""

from __future__ import annotations

from pathlib import Path

import cells
import h5py
import numpy as np
import pytest

from gaincal import constants
from gaincal.nexus import group


def test_a_run_with_more_constants_than_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("extra_data", reason="extra-data, which writes the facility's layout, is not installed")
    monkeypatch.setattr(group, "MAX_LOADED_BYTES", 8 << 20)
    master, found = cells.build(tmp_path, cells=3, trains=2, present=2), []
    for held in (1 << 30, 8 << 20):
        monkeypatch.setattr(constants, "CACHE", constants.Cache(held))
        tasks = cells.tasks(master, 2)
        tasks["h5py raw"]()
        tasks["signal"]()
        with h5py.File(tmp_path / "out.nxs") as file:
            found.append(file["entry/data/data"][()])
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0][:, :2]).all()
    assert np.isnan(found[0][:, 2:]).all()
