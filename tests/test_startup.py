"""The first frames need no compiler, and what is compiled then has the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, build_run

SCRIPT = """
import json, sys
import numpy as np
import gaincal
from gaincal.kernels import pipeline
path, most, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pipeline.UNCOMPILED_WORDS = most
loaded = ["numba" in sys.modules]
view = gaincal.open_calibrated(path)
loaded.append("numba" in sys.modules)
for k, part in enumerate((slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 12))):
    np.save(f"{folder}/{k}.npy", view[part].values)
    loaded.append("numba" in sys.modules)
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("startup"), (12, 16, 32))


@pytest.mark.parametrize(
    ("frames", "loaded"),
    [(0, [False, False, True, True, True, True]), (2, [False] * 4 + [True] * 2), (99, [False] * 6)],
)
def test_numba_is_imported_when_there_is_enough_to_compute(
    run: Run, tmp_path: Path, frames: int, loaded: list[bool]
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(run.master), str(frames * 16 * 32), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == loaded
    wanted = run.expected("energy")[0]
    for k, part in enumerate((slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 12))):
        found = np.load(tmp_path / f"{k}.npy")
        np.testing.assert_array_equal(found.view(np.uint32), wanted[part].view(np.uint32))


def test_opening_a_file_and_reading_a_frame_needs_no_compiler(run: Run) -> None:
    """As it is for users, whose runs are larger than those of the tests."""
    script = """
import sys
import gaincal
assert gaincal.open_calibrated(sys.argv[1])[3].values.shape == (16, 32)
assert not {"numba", "llvmlite"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, str(run.master)], check=True)
