"""A file appears whole or not at all, and nothing of a failure stays behind."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile.harness import Run, constants, make_run

from gaincal.errors import GaincalError, OutputError
from gaincal.nexus import atomic
from gaincal.nexus.atomic import PART, atomic_output, refuse_existing
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("atomic"))


def write(target: Path, value: int = 1, overwrite: bool = False) -> None:
    with atomic_output(target, overwrite=overwrite) as written:
        written.file["x"] = value


def value(target: Path) -> int:
    with h5py.File(target) as file:
        return int(file["x"][()])


def left(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    with atomic_output(target) as written:
        written.file["x"] = 7
        assert left(tmp_path) == ["out.h5" + PART]
        assert written.target == target
    assert left(tmp_path) == ["out.h5"]
    assert value(target) == 7


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        with pytest.raises(OutputError, match="is not a regular file; choose another name"):
            write(target, overwrite=True)
    assert (tmp_path / "link").is_fifo()


def test_a_link_that_leads_nowhere_is_there(tmp_path: Path) -> None:
    (tmp_path / "out.h5").symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "out.h5")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_copy_is_for_those_whom_its_file_was_for(mode: int, tmp_path: Path) -> None:
    source = tmp_path / "private.h5"
    write(source)
    source.chmod(mode)
    with atomic_output(source, overwrite=True, start_from=source) as written:
        written.file["y"] = 2
    assert source.stat().st_mode & 0o777 == mode


def test_hdf5_of_the_oldest_kind_that_all_readers_know(tmp_path: Path) -> None:
    write(tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.id.get_create_plist().get_version()[0] <= 3


@pytest.mark.parametrize("known", [True, False])
def test_writing_may_begin_early_where_the_system_can(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(atomic, "_sync_file_range", None)
    target = tmp_path / "out.h5"
    with atomic_output(target) as written:
        for name in "abc":
            written.file[name] = np.arange(100_000)
            written.push()
    with h5py.File(target) as file:
        assert all((file[name][()] == np.arange(100_000)).all() for name in "abc")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_nothing_is_left_of_a_failure(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_output(tmp_path / "out.h5") as written:
            written.file["x"] = np.zeros(100_000)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert left(tmp_path) == []


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written: No space left on device") as caught,
        atomic_output(tmp_path / "out.h5"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (caught.value.code, caught.value.exit_code) == ("write-failed", 7)
    assert left(tmp_path) == []


def test_a_failure_of_the_disk_is_told_early_and_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail() -> None:
        with atomic_output(tmp_path / "out.h5") as written:
            monkeypatch.setattr(os, "pwrite", full)
            written.file.create_dataset("x", data=np.zeros((4, 100)), chunks=(1, 100))
            written.file.flush()
            with pytest.raises(OSError, match="No space left"):
                written.check()

    with pytest.raises(OutputError, match="No space left"):
        fail()
    assert left(tmp_path) == []


def test_existing_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    write(target, 1)
    with pytest.raises(OutputError, match=r"exists already.*--overwrite") as caught:
        write(target, 2)
    assert caught.value.code == "exists"
    with pytest.raises(OutputError):
        refuse_existing(target, overwrite=False)
    assert value(target) == 1
    write(target, 2, overwrite=True)
    assert value(target) == 2


def test_a_failed_overwriting_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    write(target, 1)
    with suppress(KeyboardInterrupt), atomic_output(target, overwrite=True) as written:
        written.file["x"] = 2
        raise KeyboardInterrupt
    assert value(target) == 1


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ("out.h5" + PART)).write_bytes(b"rest of a file" * 10_000)
    write(tmp_path / "out.h5", 3)
    assert left(tmp_path) == ["out.h5"]
    assert value(tmp_path / "out.h5") == 3


def test_the_second_of_two_writers_is_told(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    with atomic_output(target) as written:
        written.file["x"] = 1
        with pytest.raises(OutputError, match="is being written by another process") as caught:
            write(target, 2)
        assert caught.value.code == "busy"
    assert value(target) == 1


class Overtaken:
    """Locks like ``fcntl.flock``, but the first time another writer finishes just before."""

    def __init__(self, target: Path) -> None:
        self.target, self.late, self.flock = target, True, fcntl.flock

    def __call__(self, descriptor: int, how: int) -> None:
        if self.late:
            self.late = False
            part = self.target.with_name(self.target.name + PART)
            with h5py.File(part, "w") as file:
                file["x"] = 1
            part.replace(self.target)
        self.flock(descriptor, how)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_writer_that_is_overtaken_harms_no_finished_file(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the part file another writer may rename it to the finished file."""
    target = tmp_path / "out.h5"
    monkeypatch.setattr(fcntl, "flock", Overtaken(target))
    try:
        write(target, 2, overwrite)
    except OutputError:
        assert value(target) == 1
    else:
        assert overwrite
        assert value(target) == 2
    assert left(tmp_path) == ["out.h5"]


def test_a_file_that_appears_while_another_is_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    with suppress(OutputError), atomic_output(target) as written:
        written.file["x"] = 2
        with h5py.File(target, "w") as file:
            file["x"] = 1
    assert value(target) == 1
    assert left(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("kind", ["directory", "missing", "symlink", "pipe"])
def test_a_place_that_cannot_be_written_is_named(kind: str, tmp_path: Path) -> None:
    target, part = tmp_path / "out.h5", tmp_path / ("out.h5" + PART)
    if kind == "directory":
        part.mkdir()
    elif kind == "missing":
        target = tmp_path / "gone" / "out.h5"
    elif kind == "symlink":
        (tmp_path / "precious").write_text("precious")
        part.symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(part)
    with pytest.raises(OutputError) as caught:
        write(target)
    assert caught.value.exit_code == 7
    assert kind != "symlink" or (tmp_path / "precious").read_text() == "precious"


def test_a_copy_is_where_writing_begins(tmp_path: Path) -> None:
    write(tmp_path / "old.h5", 5)
    with atomic_output(tmp_path / "new.h5", start_from=tmp_path / "old.h5") as written:
        assert written.file["x"][()] == 5
        written.file["y"] = 6
    assert value(tmp_path / "old.h5") == 5
    with h5py.File(tmp_path / "new.h5") as file:
        assert (file["x"][()], file["y"][()]) == (5, 6)
    with h5py.File(tmp_path / "old.h5") as file:
        assert "y" not in file


# --- no verb replaces what it reads -------------------------------------------------------------


@pytest.mark.parametrize("target", ["master.nxs", "raw.h5"])
def test_applying_never_replaces_its_inputs(target: str, run: Run, tmp_path: Path) -> None:
    mine = run.copy(tmp_path)
    before = mine.raw.read_bytes(), mine.master.read_bytes()
    with pytest.raises(GaincalError):
        apply(mine.master, mine.home / target, overwrite=True)
    assert (mine.raw.read_bytes(), mine.master.read_bytes()) == before


@pytest.mark.parametrize("target", ["raw.h5", "gain.h5", "link.h5", "source.h5"])
def test_embedding_never_replaces_its_inputs(target: str, run: Run, tmp_path: Path) -> None:
    mine = run.copy(tmp_path)
    given = constants()
    with h5py.File(mine.home / "gain.h5", "w") as file:
        file["gains"] = given["gain"]
    (mine.home / "link.h5").symlink_to("raw.h5")
    mine.raw.rename(mine.home / "source.h5")
    with h5py.File(mine.home / "source.h5") as file, h5py.File(mine.raw, "w") as raw:
        shape = file["/data/words"].shape
        layout = h5py.VirtualLayout(shape, np.uint16)
        layout[...] = h5py.VirtualSource("source.h5", "/data/words", shape)
        raw.create_virtual_dataset("words", layout)
    before = {name: (mine.home / name).read_bytes() for name in ("raw.h5", "source.h5", "gain.h5")}
    constant: dict[str, Any] = {"pedestal": given["pedestal"], "gain": mine.home / "gain.h5"}
    with pytest.raises(GaincalError):
        embed(mine.raw, mine.home / target, formula="jungfrau", constants=constant, overwrite=True)
    assert {name: (mine.home / name).read_bytes() for name in before} == before
