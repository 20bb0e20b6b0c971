"""A frame of an assembled run takes no longer to read than the files of its modules."""

from __future__ import annotations

from pathlib import Path

from assembling import PIXELS, build, opening, tasks
from measure import best_ratio
from module_files import PULSES

from gaincal import assemble

FRAMES = 20
AT_LEAST = 0.5
"""Of the speed of reading the module files, while other tests run; assembling.py tells what a quiet machine reaches."""


def test_frames_of_an_assembled_run_are_read_like_those_of_its_modules(tmp_path: Path) -> None:
    files = build(tmp_path, FRAMES, PIXELS)
    done = assemble([files.pattern], tmp_path / "run.nxs", ids={"pulse_id": PULSES})
    found = tasks(files, done.path)
    compared = {name: found[name] for name in ("module files", "1 thread")}
    assert best_ratio(compared, "1 thread", "module files", AT_LEAST) >= AT_LEAST


def test_thousands_of_mappings_are_opened_in_no_time(tmp_path: Path) -> None:
    files = build(tmp_path, 3000, (4, 8))
    done = assemble([files.pattern], tmp_path / "run.nxs", ids={"pulse_id": PULSES})
    assert opening(done.path) < 1
