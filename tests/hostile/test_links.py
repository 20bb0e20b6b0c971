"""A file is opened only if it lies below the master's directory, or one that the user trusts."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from hostile.harness import (
    CALIBRATION,
    DETECTOR,
    FRAME,
    FRAMES,
    LIMIT_SECONDS,
    PEAK,
    RAW,
    SHAPE,
    STORED,
    WORDS,
    Case,
    Gone,
    Refused,
    Right,
    Run,
    Worker,
    put,
    put_mapping,
    put_mappings,
    run_case,
    stamp,
    words,
)

FOREIGN = Refused("TrustError", "foreign-file")
EXTERNAL = Refused("TrustError", "external-storage")


def link(run: Run, file: str | Path, path: str = "/group/data", at: str = WORDS) -> None:
    put(run.master, lambda group: group.__setitem__(at.rpartition("/")[2], h5py.ExternalLink(str(file), path)), at)


def soft(run: Run, path: str, at: str = WORDS) -> None:
    put(run.master, lambda group: group.__setitem__(at.rpartition("/")[2], h5py.SoftLink(path)), at)


def external_link_by_absolute_name(run: Run) -> None:
    link(run, run.theirs)


def external_link_by_dots(run: Run) -> None:
    link(run, "../run-of-others/their.h5")


def external_link_by_dots_behind_a_local_directory(run: Run) -> None:
    (run.home / "sub").mkdir()
    link(run, "sub/../../run-of-others/their.h5")


def external_link_to_a_symlink(run: Run) -> None:
    (run.home / "local.h5").symlink_to(run.theirs)
    link(run, "local.h5")


def external_link_through_a_symlinked_directory(run: Run) -> None:
    (run.home / "sub").symlink_to(run.foreign, target_is_directory=True)
    link(run, "sub/their.h5")


def external_link_in_the_middle(run: Run) -> None:
    link(run, run.theirs, "/group", RAW)


def external_link_behind_a_soft_link(run: Run) -> None:
    link(run, run.theirs, "/group", "/entry/elsewhere")
    soft(run, "/entry/elsewhere/data")


def external_link_behind_a_local_file(run: Run) -> None:
    with h5py.File(run.home / "between.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(run.theirs), "/group/data")
    link(run, "between.h5", "/x")


def external_link_for_a_constant(run: Run) -> None:
    link(run, run.theirs, "/group/data", f"{CALIBRATION}/gain/gain")


def external_link_for_the_checksum(run: Run) -> None:
    link(run, run.theirs, "/group/data", f"{CALIBRATION}/integrity/checksum")


def external_link_for_a_table_of_the_formula(run: Run) -> None:
    link(run, run.theirs, "/group", f"{CALIBRATION}/steps")


def external_link_beside_the_words(run: Run) -> None:
    link(run, run.theirs, "/group/data", f"{RAW}/pulse_id")


def hard_linked_copy_of_a_local_file(run: Run) -> None:
    os.link(run.raw, run.home / "same.h5")
    link(run, "same.h5", STORED)


def external_link_to_a_file_that_is_gone(run: Run) -> None:
    link(run, "gone.h5")


def external_link_to_a_file_of_the_working_directory(run: Run) -> None:
    link(run, "pyproject.toml")


def external_links_in_a_circle(run: Run) -> None:
    link(run, "other.h5", WORDS)
    with h5py.File(run.home / "other.h5", "w") as file:
        file[WORDS] = h5py.ExternalLink("master.nxs", WORDS)


def external_link_to_itself(run: Run) -> None:
    link(run, "master.nxs", WORDS)


def external_link_to_a_pipe(run: Run) -> None:
    os.mkfifo(run.home / "pipe.h5")
    link(run, "pipe.h5")


def external_link_to_a_directory(run: Run) -> None:
    (run.home / "directory.h5").mkdir()
    link(run, "directory.h5")


def external_link_with_control_characters(run: Run) -> None:
    link(run, "a\x1b[2J\n\u202e.h5")


def soft_link_to_itself(run: Run) -> None:
    soft(run, WORDS)


def soft_links_in_a_circle(run: Run) -> None:
    soft(run, f"{RAW}/b")
    soft(run, WORDS, f"{RAW}/b")


def soft_link_that_grows(run: Run) -> None:
    soft(run, "data/data")


def soft_link_to_nowhere(run: Run) -> None:
    soft(run, "/nowhere")


def soft_link_within_the_file(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file.create_dataset("/entry/moved", data=words(), chunks=(1, *SHAPE[1:]))
    soft(run, "/entry/moved")


def soft_link_to_a_name_that_is_no_text(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[WORDS]
        group = file[RAW]
        group.id.links.create_soft(b"data", b"/\xff\xfe")


def loops_of_hard_and_soft_links(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file["/entry/hard"] = file["/entry"]
        file["/entry/sample/loop"] = h5py.SoftLink("/entry")


def user_defined_link(run: Run) -> None:
    """The class byte of an external link is changed into one that nobody knows."""
    with h5py.File(run.home / "middle.h5", "w", libver="earliest") as file:
        file["data"] = h5py.ExternalLink("gone.h5", "/x")
    data = (run.home / "middle.h5").read_bytes()
    assert data.count(b"\x01\x08\x40\x04data") == 1
    (run.home / "middle.h5").write_bytes(data.replace(b"\x01\x08\x40\x04data", b"\x01\x08\x41\x04data"))
    link(run, "middle.h5", "/data")


def raw_storage(run: Run, name: str, path: str = WORDS, shape: tuple[int, ...] = SHAPE, dtype: str = "u2") -> None:
    def make(group: h5py.Group) -> None:
        size = int(h5py.h5s.create_simple(shape).get_simple_extent_npoints()) * int(dtype[1])
        group.create_dataset(path.rpartition("/")[2], shape, dtype, external=[(name, 0, size)])

    put(run.master, make, path)


def raw_storage_for_the_words(run: Run) -> None:
    raw_storage(run, str(run.foreign / "secret.bin"))


def raw_storage_in_the_own_directory(run: Run) -> None:
    shutil.copy(run.foreign / "secret.bin", run.home)
    raw_storage(run, "secret.bin")


def raw_storage_for_a_constant(run: Run) -> None:
    raw_storage(run, str(run.foreign / "secret.bin"), f"{CALIBRATION}/gain/gain", (3, *SHAPE[1:]), "f4")


def raw_storage_for_ids(run: Run) -> None:
    raw_storage(run, str(run.foreign / "secret.bin"), f"{RAW}/pulse_id", (FRAMES,), "u8")


def raw_storage_for_a_source(run: Run) -> None:
    raw_storage(run, str(run.foreign / "secret.bin"), "/entry/secret")
    put_mapping(run.master, ".", "/entry/secret")


def virtual_source_by_absolute_name(run: Run) -> None:
    put_mapping(run.master, str(run.theirs), "/group/data")


def virtual_source_by_dots(run: Run) -> None:
    put_mapping(run.master, "../run-of-others/their.h5", "/group/data")


def virtual_source_through_a_symlink(run: Run) -> None:
    (run.home / "local.h5").symlink_to(run.theirs)
    put_mapping(run.master, "local.h5", "/group/data")


def virtual_source_behind_an_external_link(run: Run) -> None:
    link(run, run.theirs, "/group", "/entry/elsewhere")
    put_mapping(run.master, ".", "/entry/elsewhere/data")


def virtual_source_that_is_gone(run: Run) -> None:
    half = slice(0, 2)
    put_mappings(
        run.master,
        (half, "raw.h5", STORED, SHAPE, half),
        (slice(2, FRAMES), "gone.h5", STORED, SHAPE, slice(2, FRAMES)),
    )


CASES = [
    *(
        Case(build, FOREIGN)
        for build in (
            external_link_by_absolute_name,
            external_link_by_dots,
            external_link_by_dots_behind_a_local_directory,
            external_link_to_a_symlink,
            external_link_through_a_symlinked_directory,
            external_link_in_the_middle,
            external_link_behind_a_soft_link,
            external_link_behind_a_local_file,
            external_link_for_a_constant,
            external_link_for_the_checksum,
            external_link_for_a_table_of_the_formula,
            external_link_beside_the_words,
            virtual_source_by_absolute_name,
            virtual_source_by_dots,
            virtual_source_through_a_symlink,
            virtual_source_behind_an_external_link,
        )
    ),
    *(
        Case(build, EXTERNAL)
        for build in (
            raw_storage_for_the_words,
            raw_storage_in_the_own_directory,
            raw_storage_for_a_constant,
            raw_storage_for_ids,
            raw_storage_for_a_source,
        )
    ),
    *(
        Case(build, Refused("TrustError", "link-cycle"))
        for build in (
            external_links_in_a_circle,
            external_link_to_itself,
            soft_link_to_itself,
            soft_links_in_a_circle,
            soft_link_that_grows,
        )
    ),
    Case(hard_linked_copy_of_a_local_file, Right()),
    Case(soft_link_within_the_file, Right()),
    Case(loops_of_hard_and_soft_links, Right()),
    Case(external_link_to_a_file_that_is_gone, Refused("FileError", "not-found")),
    Case(external_link_to_a_file_of_the_working_directory, Refused("FileError", "not-found")),
    Case(external_link_to_a_pipe, Refused("TrustError", "not-a-file")),
    Case(external_link_to_a_directory, Refused("TrustError", "not-a-file")),
    Case(external_link_with_control_characters, Refused("TrustError", "bad-name")),
    Case(soft_link_to_nowhere, Refused("FileError", "not-found")),
    Case(soft_link_to_a_name_that_is_no_text, Refused("TrustError", "bad-name")),
    Case(user_defined_link, Refused("TrustError", "odd-link")),
    Case(virtual_source_that_is_gone, Gone(4 * FRAME)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_leads_out_of_the_trusted_directories(
    case: Case, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run_case(worker, unharmed, tmp_path, case)


def virtual_text(run: Run, path: str, file: str, source: str) -> None:
    layout = h5py.VirtualLayout((1,), "S71")
    layout[:] = h5py.VirtualSource(file, source, (1,))
    put(run.master, lambda group: group.create_virtual_dataset(path.rpartition("/")[2], layout), path)


def text_of_a_foreign_file(run: Run, path: str) -> None:
    with h5py.File(run.foreign / "text.h5", "w") as file:
        file.create_dataset("text", data=np.array([b"TOP-SECRET-TEXT"], "S71"))
    virtual_text(run, path, str(run.foreign / "text.h5"), "text")


def text_that_leads_to_itself(run: Run, path: str) -> None:
    virtual_text(run, path, ".", path)


def text_in_foreign_raw_storage(run: Run, path: str) -> None:
    def make(group: h5py.Group) -> None:
        external = [(str(run.foreign / "secret.bin"), 0, 71)]
        group.create_dataset(path.rpartition("/")[2], (1,), "S71", external=external)

    put(run.master, make, path)


def text_in_a_chunk_shorter_than_its_checksum(run: Run, path: str) -> None:
    def make(group: h5py.Group) -> None:
        data = np.array([b"x"], "S71")
        dataset = group.create_dataset(path.rpartition("/")[2], data=data, chunks=(1,), fletcher32=True)
        dataset.id.write_direct_chunk((0,), b"ab")

    put(run.master, make, path)


def text_that_inflates_to_much(run: Run, path: str) -> None:
    def make(group: h5py.Group) -> None:
        data = np.array([b"x"], "S71")
        dataset = group.create_dataset(path.rpartition("/")[2], data=data, chunks=(1,), compression="gzip")
        # HDF5 1.10 cannot even write a stored chunk of more than 65,535 bytes for so small a one.
        size = 1 << 28 if h5py.version.hdf5_version_tuple >= (1, 14) else 1 << 25
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(size), 9))

    put(run.master, make, path)


def text_behind_a_malformed_bitshuffle_header(run: Run, path: str) -> None:
    def make(group: h5py.Group) -> None:
        data = np.array([b"x" * 71] * 1, "S71")
        options = dict(hdf5plugin.Bitshuffle())
        dataset = group.create_dataset(path.rpartition("/")[2], data=data, chunks=(1,), **options)
        dataset.id.write_direct_chunk((0,), struct.pack(">QI", 71, 8192) + b"\x7f" * 16)

    put(run.master, make, path)


TEXTS = [
    text_of_a_foreign_file,
    text_that_leads_to_itself,
    text_in_foreign_raw_storage,
    text_in_a_chunk_shorter_than_its_checksum,
    text_that_inflates_to_much,
    text_behind_a_malformed_bitshuffle_header,
]


@pytest.mark.parametrize("path", [f"{CALIBRATION}/integrity/checksum", "/entry/sample/name"])
@pytest.mark.parametrize("make", TEXTS)
def test_a_text_is_read_with_the_care_of_words(
    make: Callable[[Run, str], None], path: str, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run = unharmed.copy(tmp_path)
    make(run, path)
    request = {"do": "command", "foreign": str(run.foreign)}
    for verb in (["info"], ["validate"], ["apply", "-o", str(run.home / "applied.nxs")]):
        answer = worker.ask({**request, "arguments": [verb[0], str(run.master), *verb[1:]]})
        assert answer.get("foreign") == [], answer
        assert "Traceback" not in answer["err"]
        assert answer["cpu"] < LIMIT_SECONDS
        assert answer["peak"] < PEAK
    applied = run.home / "applied.nxs"
    assert not applied.exists() or b"TOP-SECRET" not in applied.read_bytes()


@pytest.mark.parametrize("name", ["text", "attribute"])
def test_metadata_that_lead_out_are_left_out_of_what_is_applied(
    name: str, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run = unharmed.copy(tmp_path)
    link(run, run.theirs, "/group", f"/entry/{name}")
    raw_storage(run, str(run.foreign / "secret.bin"), f"/entry/sample/{name}", (64,), "u1")
    target = run.home / "applied.nxs"
    arguments = ["apply", str(run.master), "-o", str(target)]
    answer = worker.ask({"do": "command", "arguments": arguments, "foreign": str(run.foreign)})
    assert (answer["exit"], answer["foreign"]) == (0, [])
    with h5py.File(target) as file:
        assert name not in file["/entry"]
        assert name not in file["/entry/sample"]


# --- embed writes into an untrusted file, too --------------------------------------------------


def embedded_in_place(worker: Worker, run: Run, *settings: str) -> dict[str, object]:
    """Embed into the raw file itself, and say what became of the foreign directory."""
    for name, values in (("pedestal", 1000.0), ("gain", 40.0)):
        with h5py.File(run.home / f"{name}.h5", "w") as file:
            file.create_dataset("gains", (3, *SHAPE[1:]), "f4", fillvalue=values)[...] = values
    arguments = ["embed", f"{run.raw}::{STORED}", "--in-place", "--formula", "jungfrau"]
    arguments += [f"--constant={n}={run.home / n}.h5" for n in ("pedestal", "gain")]
    arguments += [f"--set={s}" for s in settings]
    before = {p.name: p.read_bytes() for p in run.foreign.iterdir()}
    answer = worker.ask({"do": "command", "arguments": arguments, "foreign": str(run.foreign)})
    assert "crash" not in answer, answer
    assert "Traceback" not in answer["err"]
    assert {p.name: p.read_bytes() for p in run.foreign.iterdir()} == before
    result: dict[str, object] = answer
    return result


def raw_entry(run: Run) -> None:
    """Give the raw file an NXmx entry, which `embed --in-place` completes."""
    with h5py.File(run.raw, "r+") as file:
        for path, kind in (("entry", "NXentry"), ("entry/instrument", "NXinstrument")):
            file.create_group(path).attrs["NX_class"] = kind
        file.create_group("entry/instrument/detector").attrs["NX_class"] = "NXdetector"


PLACES = {
    "/entry/sample": "sample_name=x",
    "/entry/source": "source_name=x",
    "/entry/data": "sample_name=x",
    "/entry/sample/name": "sample_name=x",
    f"{DETECTOR}/calibration": "sample_name=x",
    f"{DETECTOR}/raw": "sample_name=x",
    f"{DETECTOR}/pixel_mask": "sample_name=x",
    f"{DETECTOR}/calibration/jungfrau": "sample_name=x",
}


@pytest.mark.parametrize("path", PLACES)
def test_embedding_in_place_writes_through_no_link(path: str, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    raw_entry(run)
    with h5py.File(run.theirs, "r+") as file:
        file["group/name"] = "theirs"
    with h5py.File(run.raw, "r+") as file:
        file[path] = h5py.ExternalLink(str(run.theirs), "/group")
    answer = embedded_in_place(worker, run, PLACES[path])
    assert answer["foreign"] == []


def test_embedding_in_place_looks_behind_no_entry_of_another_file(
    worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run = unharmed.copy(tmp_path)
    with h5py.File(run.raw, "r+") as file:
        file["/entry"] = h5py.ExternalLink(str(run.theirs), "/group")
    assert embedded_in_place(worker, run)["foreign"] == []


def test_embedding_never_changes_the_words(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    raw_entry(run)
    assert embedded_in_place(worker, run, "sample_name=x")["exit"] == 0
    with h5py.File(run.raw) as file:
        assert (file[STORED][()] == words()).all()


def test_the_checksum_of_this_folder_is_that_of_gaincal(unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    with h5py.File(run.master, "r+") as file:
        before = file[f"{CALIBRATION}/integrity/checksum"][()]
        stamp(file)
        assert file[f"{CALIBRATION}/integrity/checksum"][()] == before
