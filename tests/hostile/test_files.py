"""What is no file, no HDF5, or not all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostile.harness import Case, Refused, Run, Worker, run_case

NOT_HDF5 = Refused("FileError", "not-hdf5")


def truncated(run: Run) -> None:
    data = run.master.read_bytes()
    run.master.write_bytes(data[: len(data) * 2 // 3])


def truncated_by_a_byte(run: Run) -> None:
    run.master.write_bytes(run.master.read_bytes()[:-1])


def truncated_to_the_signature(run: Run) -> None:
    run.master.write_bytes(run.master.read_bytes()[:8])


def junk_behind_the_signature(run: Run) -> None:
    run.master.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8)


def text(run: Run) -> None:
    run.master.write_text("[formula]\n")


def empty(run: Run) -> None:
    run.master.write_bytes(b"")


def pipe(run: Run) -> None:
    run.master.unlink()
    os.mkfifo(run.master)


def directory(run: Run) -> None:
    run.master.unlink()
    run.master.mkdir()


def gone(run: Run) -> None:
    run.master.unlink()


def symlink_to_itself(run: Run) -> None:
    run.master.unlink()
    run.master.symlink_to(run.master.name)


def symlink_to_nowhere(run: Run) -> None:
    run.master.unlink()
    run.master.symlink_to("gone.nxs")


def device(run: Run) -> None:
    """Nothing to build."""


CASES = [
    *(Case(build, NOT_HDF5) for build in (
        truncated,
        truncated_by_a_byte,
        truncated_to_the_signature,
        junk_behind_the_signature,
        text,
        empty,
    )),
    Case(pipe, Refused("TrustError", "not-a-file")),
    Case(directory, Refused("TrustError", "not-a-file")),
    *(Case(build, Refused("FileError", "not-found")) for build in (gone, symlink_to_itself, symlink_to_nowhere)),
    Case(device, Refused("TrustError", "not-a-file"), lambda _: Path("/dev/zero")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_no_file_is_refused_in_one_line(case: Case, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run_case(worker, unharmed, tmp_path, case)


def test_a_raw_file_that_is_cut_off_is_refused(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    def build(run: Run) -> None:
        run.raw.write_bytes(run.raw.read_bytes()[:3000])

    run_case(worker, unharmed, tmp_path, Case(build, NOT_HDF5))


def test_names_with_control_characters_are_shown_on_one_line(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    odd = run.home / "a\x1b[2J\nb\u202e.nxs"
    odd.write_bytes(b"")
    answer = worker.ask({"do": "command", "arguments": ["info", str(odd)], "foreign": str(run.foreign)})
    assert answer["exit"] == 4
    assert answer["err"].count("\n") == 1
    assert answer["err"].rstrip("\n").isprintable()
