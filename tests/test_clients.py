"""Frames of a master for other programs: what an applied file holds, without one; also in forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from conftest import Run
from contract import same_bits

from gaincal.clients.frames import Frames, has_calibration
from gaincal.errors import FileError
from gaincal.nexus.readers import READERS
from gaincal.verbs.apply import apply

READER = READERS["crystfel"]


@pytest.mark.parametrize("kind", ["plain", "virtual", "modules"])
def test_images_are_those_of_an_applied_file(runs: Callable[[str], Run], tmp_path: Path, kind: str) -> None:
    run = runs(kind)
    apply(run.master, tmp_path / "applied.h5", reader="crystfel")
    frames = Frames(run.master, READER)
    with h5py.File(tmp_path / "described.h5", "w") as described, h5py.File(tmp_path / "applied.h5") as applied:
        shape = frames.describe(described)
        signal = applied["/entry/data/data"]
        assert described["/entry/data/data"].shape == shape == signal.shape
        assert described["/entry/data/data"].id.get_storage_size() == 0
        for index in range(shape[0]):
            same_bits(frames.image(index), signal[index])
        stated, known = _names(described), _names(applied)
    assert stated <= known
    assert all(name.startswith(("entry/process", "entry/data/")) for name in known - stated)


def _names(file: h5py.File) -> set[str]:
    found = set[str]()
    file.visit(found.add)
    return found


def test_a_forked_process_reads_what_its_parent_reads(plain: Run) -> None:
    frames, wanted = Frames(plain.master, READER), plain.expected("counts", "int32")[0]
    same_bits(frames.image(0), wanted[0])
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = all((frames.image(k) == wanted[k]).all() for k in range(len(wanted)))
        finally:
            os._exit(0 if good else 1)
    for k in range(len(wanted)):
        same_bits(frames.image(k), wanted[k])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_file_is_kept_open_by_a_description(own: Run, tmp_path: Path) -> None:
    frames = Frames(own.master, READER)
    with h5py.File(tmp_path / "described.h5", "w") as file:
        frames.describe(file)
    held = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    assert not held & {str(own.master), str(own.raw)}


def test_only_files_with_a_calibration_are_understood(plain: Run, tmp_path: Path) -> None:
    apply(plain.master, tmp_path / "applied.h5")
    assert [has_calibration(p) for p in (plain.master, plain.raw, tmp_path / "applied.h5")] == [True, False, False]
    with pytest.raises(FileError):
        has_calibration(tmp_path / "absent.h5")


def test_nobody_but_dxtbx_imports_the_format_class() -> None:
    code = "import gaincal, gaincal.cli, gaincal.verbs.apply, gaincal.lazy, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {m for m in done.stdout.split() if m.startswith(("gaincal.clients", "dxtbx"))}
