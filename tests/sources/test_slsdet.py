"""JUNGFRAU ``.raw`` files: the real ones, whole and lossy runs of several modules, and everything that can be wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError, TrustError
from gaincal.sources.run import RawRun
from gaincal.sources.slsdet import recognise

Array = npt.NDArray[Any]
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
DARK = DATA / "jungfrau_dark_raw"
real = pytest.mark.skipif(not DARK.is_dir(), reason=f"no real frames: {DARK} is not there")

CELL_15 = 0xF00
FIRST = 100


def written(words: Array, number: int, **said: Any) -> bytes:
    """A frame of a port as a receiver writes it; `lost` packets keep the 0xFF of the padding."""
    packets, lost = words.shape[0] // 4, said.get("lost", ())
    words = words.copy()
    for packet in lost:
        words[4 * packet : 4 * packet + 4] = 0xFFFF
    mask = sum(1 << p for p in range(packets) if p not in lost) if "mask" not in said else said["mask"]
    count = said.get("packets", packets - len(set(lost)))
    info, bunch = said.get("info", CELL_15), said.get("bunch", 0)
    kind, version = said.get("type", 3), said.get("version", 2)
    place = (said.get("module", 0), said.get("row", 0), said.get("column", 0), 0)
    header = struct.pack("<QIIQQ4HIH2B", number, 25600, count, bunch, 10_000 * number, *place, info, 0, kind, version)
    return header + mask.to_bytes(64, "little") + words.astype("<u2").tobytes()


class At(NamedTuple):
    """A frame of a port."""

    port: int
    frame: int


@dataclass
class Run:
    """A run of random words: what is written, and what must be found."""

    modules: int = 1
    interfaces: int = 1
    frames: int = 4
    per_file: int = 3
    seed: int = 0
    absent: dict[int, Sequence[int]] = field(default_factory=dict)
    said: Callable[[At], dict[str, Any]] = lambda _: {}
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rows = 512 // self.interfaces
        self.ports = self.modules * self.interfaces
        self.words = rng.integers(0, 1 << 16, (self.frames, self.ports, self.rows, 1024)).astype(np.uint16)

    @property
    def image(self) -> Array:
        """The words as modules."""
        shape = (512, 1024) if self.modules == 1 else (self.modules, 512, 1024)
        return self.words.reshape(self.frames, *shape)

    def write(self, directory: Path, stem: str = "run") -> Path:
        """All files; returns the master."""
        counts = []
        for port in range(self.ports):
            kept = [f for f in range(self.frames) if f not in self.absent.get(port, ())]
            counts.append(len(kept))
            step = self.per_file or len(kept)
            for piece, first in enumerate(range(0, max(len(kept), 1), step)):
                frames = kept[first : first + step]
                content = [written(self.words[f, port], FIRST + f, **self._said(port, f)) for f in frames]
                (directory / f"{stem}_d{port}_f{piece}_0.raw").write_bytes(b"".join(content))
        master = directory / f"{stem}_master_0.json"
        master.write_text(json.dumps(self._facts(counts[0]) | self.facts))
        return master

    def _said(self, port: int, frame: int) -> dict[str, Any]:
        return {"row": port, "column": 0} | self.said(At(port, frame))

    def _facts(self, frames: int) -> dict[str, Any]:
        return {
            "Version": 7.2,
            "Detector Type": "Jungfrau",
            "Geometry": {"x": 1, "y": self.ports},
            "Image Size in bytes": 2048 * self.rows,
            "Pixels": {"x": 1024, "y": self.rows},
            "Max Frames Per File": self.per_file,
            "Total Frames": self.frames,
            "Receiver Roi": dict.fromkeys(("xmin", "xmax", "ymin", "ymax"), 0xFFFFFFFF),
            "Number of UDP Interfaces": self.interfaces,
            "Number of rows": 512,
            "Frames in File": frames,
        }


def found(path: Path) -> RawRun:
    run = recognise(path)
    assert run is not None
    return run


def read(run: RawRun, first: int = 0, count: int | None = None) -> tuple[Array, Array | None]:
    reader = run.words["raw"].read
    assert reader is not None
    words, missing = reader(first, run.frames - first if count is None else count)
    assert words.dtype == run.words["raw"].dtype == np.uint16
    assert missing is None or (missing.dtype == bool and missing.shape == words.shape)
    return words, missing


# --- real frames -----------------------------------------------------------------------------


@real
def test_ten_real_dark_frames() -> None:
    run = found(DARK / "jungfrau_single_master_0.json")
    assert (run.kind, run.formula, run.frames, run.pixels) == ("slsdet", "jungfrau", 10, (512, 1024))
    np.testing.assert_array_equal(run.ids["frame_number"], np.arange(1, 11))
    assert run.ids["timestamp"][[0, 1, 9]].tolist() == [0, 10_000, 90_004]
    assert set(run.ids) == {"frame_number", "timestamp"}
    assert run.inputs.keys() == {"high_gain"}
    assert not run.inputs["high_gain"].any()
    assert (run.notes, len(run.files)) == ((), 5)
    words, missing = read(run)
    assert missing is None
    assert (words >> 14).max() == 0
    assert words.mean() == pytest.approx(2912, abs=1)
    assert words.std(axis=0).mean() == pytest.approx(27, abs=0.5)


@real
def test_a_real_file_stands_for_its_run_and_so_does_the_directory() -> None:
    run = found(DARK)
    assert found(DARK / "jungfrau_single_d0_f3_0.raw").files == run.files


@real
def test_real_words_lie_behind_their_headers() -> None:
    words, _ = read(found(DARK), 4, 1)
    stored = (DARK / "jungfrau_single_d0_f1_0.raw").read_bytes()[112 + 1048576 :][112 : 112 + 1048576]
    assert words.tobytes() == stored


@real
@pytest.mark.parametrize("cut", [1, 111, 1048576, 1048688])
def test_a_real_run_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    for file in DARK.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    last = tmp_path / "jungfrau_single_d0_f3_0.raw"
    last.write_bytes(last.read_bytes()[:-cut])
    with pytest.raises(FileError) as caught:
        recognise(tmp_path)
    assert caught.value.code == "incomplete"


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("per_file", [0, 1, 3, 4, 10])
def test_pieces_follow_each_other(tmp_path: Path, per_file: int) -> None:
    made = Run(per_file=per_file)
    run = found(made.write(tmp_path))
    words, missing = read(run)
    assert missing is None
    assert words.tobytes() == made.image.tobytes()
    for first, count in ((0, 0), (1, 1), (2, 2), (4, 0)):
        assert read(run, first, count)[0].tobytes() == made.image[first : first + count].tobytes()


@pytest.mark.parametrize(("modules", "interfaces"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_ports_become_modules(tmp_path: Path, modules: int, interfaces: int) -> None:
    made = Run(modules, interfaces)
    run = found(made.write(tmp_path))
    assert run.pixels == made.image.shape[1:]
    words, missing = read(run)
    assert missing is None
    np.testing.assert_array_equal(words, made.image)
    assert run.notes == ()
    assert len(run.files) == 1 + 2 * made.ports


def test_modules_beside_each_other_count_down_the_columns(tmp_path: Path) -> None:
    said = [{"row": n % 2, "column": n // 2} for n in range(4)]
    made = Run(4, frames=1, said=lambda at: said[at.port], facts={"Geometry": {"x": 2, "y": 2}})
    run = found(made.write(tmp_path))
    assert run.pixels == (4, 512, 1024)
    assert run.notes == ()


def test_a_reader_can_go_to_another_process(tmp_path: Path) -> None:
    made = Run(frames=1)
    run = pickle.loads(pickle.dumps(found(made.write(tmp_path))))
    assert read(run)[0].tobytes() == made.image.tobytes()


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 5), (5, 0), (2, -1)])
def test_frames_that_are_not_there_cannot_be_read(tmp_path: Path, first: int, count: int) -> None:
    with pytest.raises(IndexError, match="of 4"):
        read(found(Run().write(tmp_path)), first, count)


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    run = found(Run(frames=0, per_file=1).write(tmp_path))
    assert (run.frames, read(run)[0].shape, run.notes) == (0, (0, 512, 1024), ())


def test_masters_of_version_8_use_other_names(tmp_path: Path) -> None:
    master = Run(frames=1).write(tmp_path)
    facts = json.loads(master.read_text())
    facts |= {"Version": 8.0, "Image Size": facts.pop("Image Size in bytes")}
    facts["Receiver Rois"] = [{"xmin": 0, "xmax": 1023, "ymin": 0, "ymax": 511}]
    del facts["Receiver Roi"]
    master.write_text(json.dumps(facts))
    assert found(master).description.startswith("slsDetectorPackage 8,")


def test_trusted_directories_may_hold_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Run(frames=1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    master = made.write(tmp_path / "a")
    (tmp_path / "a" / "run_d0_f0_0.raw").rename(tmp_path / "b" / "run_d0_f0_0.raw")
    (tmp_path / "a" / "run_d0_f0_0.raw").symlink_to(tmp_path / "b" / "run_d0_f0_0.raw")
    with pytest.raises(TrustError) as caught:
        recognise(master)
    assert caught.value.code == "foreign-file"
    monkeypatch.setenv("GAINCAL_TRUST_DIRS", str(tmp_path / "b"))
    assert read(found(master))[0].tobytes() == made.image.tobytes()


# --- what is missing -------------------------------------------------------------------------


def test_frames_are_matched_by_number_and_never_by_place(tmp_path: Path) -> None:
    made = Run(2, frames=4, absent={0: [2], 1: [0]})
    run = found(made.write(tmp_path))
    assert run.frames == 4
    np.testing.assert_array_equal(run.ids["frame_number"], FIRST + np.arange(4))
    words, missing = read(run)
    gone = np.zeros(words.shape, bool)
    gone[2, 0] = gone[0, 1] = True
    np.testing.assert_array_equal(missing, gone)
    np.testing.assert_array_equal(words, np.where(gone, 0, made.image))
    assert [n.split(" (")[0] for n in run.notes] == ["d0 lacks 1 of 4 frames", "d1 lacks 1 of 4 frames"]
    assert "frame_number 102" in run.notes[0]
    assert read(run, 1, 1)[1] is None


def test_half_a_module_can_be_missing(tmp_path: Path) -> None:
    made = Run(1, 2, frames=2, absent={1: [1]})
    words, missing = read(found(made.write(tmp_path)))
    gone = np.zeros(words.shape, bool)
    gone[1, 256:] = True
    np.testing.assert_array_equal(missing, gone)
    np.testing.assert_array_equal(words, np.where(gone, 0, made.image))


def test_a_frame_that_no_module_has_is_told(tmp_path: Path) -> None:
    run = found(Run(frames=4, absent={0: [1]}, per_file=0).write(tmp_path))
    assert run.frames == 3
    assert run.notes == ("3 of 4 frames were recorded", "1 frame numbers between 100 and 103 are in no file")


def test_a_port_without_any_frame_is_missing(tmp_path: Path) -> None:
    run = found(Run(2, frames=2, absent={1: [0, 1]}).write(tmp_path))
    assert "d1 lacks 2 of 2 frames (first: frame_number 100)" in run.notes
    _, missing = read(run)
    assert missing is not None
    assert missing[:, 1].all()
    assert not missing[:, 0].any()


@pytest.mark.parametrize(("interfaces", "lost"), [(1, (0,)), (1, (127,)), (1, (3, 64, 65)), (2, (63,)), (2, range(64))])
def test_lost_packets_are_missing_rows(tmp_path: Path, interfaces: int, lost: Sequence[int]) -> None:
    made = Run(1, interfaces, frames=2, said=lambda at: {"lost": lost} if at == (0, 1) else {})
    run = found(made.write(tmp_path))
    words, missing = read(run)
    gone = np.zeros(words.shape, bool)
    for packet in lost:
        gone[1, 4 * packet : 4 * packet + 4] = True
    np.testing.assert_array_equal(missing, gone)
    np.testing.assert_array_equal(words, np.where(gone, 0, made.image))
    assert run.notes == (f"d0 lost {len(lost)} packets in 1 of 2 frames (first: frame_number 101)",)


def test_a_packet_that_came_twice_does_not_hide_a_lost_one(tmp_path: Path) -> None:
    run = found(Run(frames=1, said=lambda _: {"lost": (5,), "packets": 128}).write(tmp_path))
    _, missing = read(run)
    assert missing is not None
    assert missing[0, 20:24].all()
    assert missing.sum() == 4 * 1024
    assert "lost 1 packets" in run.notes[0]


def test_an_empty_header_says_nothing_of_its_frame(tmp_path: Path) -> None:
    empty = {"lost": range(128), "info": 0, "bunch": 0}
    made = Run(2, frames=2, said=lambda at: empty if at == (0, 1) else {"bunch": 7 + at.frame})
    run = found(made.write(tmp_path))
    assert run.ids["bunch_id"].tolist() == [7, 8]
    assert "cell" not in run.inputs
    assert run.notes == ("d0 lost 128 packets in 1 of 2 frames (first: frame_number 101)",)


def test_rows_that_were_not_read_out_are_missing_but_not_lost(tmp_path: Path) -> None:
    lost = (*range(32), *range(96, 128))
    made = Run(frames=1, said=lambda _: {"lost": lost}, facts={"Number of rows": 256})
    run = found(made.write(tmp_path))
    _, missing = read(run)
    assert missing is not None
    np.testing.assert_array_equal(~missing[0].all(axis=1), np.repeat([False, True, True, False], 128))
    assert run.notes == ("256 of 512 rows were read out: the others are missing",)


# --- what headers say ------------------------------------------------------------------------


def test_storage_cells_are_an_input_where_there_are_several(tmp_path: Path) -> None:
    made = Run(2, frames=3, said=lambda at: {"info": (13 + at.frame) << 8 | 0xF0})
    cell = found(made.write(tmp_path)).inputs["cell"]
    assert (cell.dtype, cell.tolist()) == (np.dtype(np.uint8), [13, 14, 15])


def test_modules_can_have_other_storage_cells(tmp_path: Path) -> None:
    made = Run(2, 2, frames=2, said=lambda at: {"info": (at.frame + at.port // 2) << 8})
    assert found(made.write(tmp_path)).inputs["cell"].tolist() == [[0, 1], [1, 2]]


def test_the_cell_of_a_missing_frame_is_that_of_the_others(tmp_path: Path) -> None:
    made = Run(2, frames=3, absent={0: [1]}, said=lambda at: {"info": at.frame << 8})
    assert found(made.write(tmp_path)).inputs["cell"].tolist() == [0, 1, 2]


def test_high_gain_needs_other_constants(tmp_path: Path) -> None:
    run = found(Run(frames=2, said=lambda at: {"info": CELL_15 | at.frame}).write(tmp_path))
    assert (run.formula, run.inputs["high_gain"].tolist()) == ("jungfrau_hg0", [0, 1])


def test_forced_gain_is_told(tmp_path: Path) -> None:
    run = found(Run(frames=3, said=lambda at: {"info": CELL_15 | at.frame << 12}).write(tmp_path))
    assert run.notes == ("the gain was forced in 2 of 3 frames (first: frame_number 101): is it a pedestal run?",)


def test_bunches_that_differ_between_modules_are_told(tmp_path: Path) -> None:
    run = found(Run(2, frames=2, said=lambda at: {"bunch": 50 + at.frame * (at.port + 1)}).write(tmp_path))
    assert run.ids["bunch_id"].tolist() == [50, 51]
    assert "bunch_id differs between ports in 1 of 2 frames (first: frame_number 101)" in run.notes[0]


def test_files_of_swapped_ports_are_told(tmp_path: Path) -> None:
    run = found(Run(1, 2, frames=1, said=lambda at: {"row": 1 - at.port}).write(tmp_path))
    assert [n[:20] for n in run.notes] == ["the headers of d0 st", "the headers of d1 st"]


# --- what is something else ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.h5", "run_master_0.h5", "run_master.json", "run_d0_0.raw", "run_master_0.raw"])
def test_other_names_are_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert recognise(tmp_path / name) is None
    assert recognise(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"Geometry": {"x": 1, "y": 1}}'])
def test_other_json_is_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "run_master_0.json").write_text(content)
    assert recognise(tmp_path) is None


def test_a_directory_of_two_runs_is_ambiguous(tmp_path: Path) -> None:
    first = Run(frames=1).write(tmp_path, "one")
    Run(frames=1).write(tmp_path, "two")
    with pytest.raises(FileError, match=r"one_master_0\.json, two_master_0\.json") as caught:
        recognise(tmp_path)
    assert caught.value.code == "ambiguous"
    assert len(found(first).files) == 2


# --- what is damaged -------------------------------------------------------------------------


def edit(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def first_file(master: Path) -> Path:
    return master.with_name("run_d0_f0_0.raw")


def second_header(master: Path, offset: int, content: bytes) -> None:
    edit(first_file(master), 112 + 1048576 + offset, content)


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def replaced_by_a_pipe(master: Path) -> None:
    first_file(master).unlink()
    os.mkfifo(first_file(master))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "master empty": ("unreadable", lambda m: m.write_text("")),
    "master cut": ("unreadable", lambda m: m.write_text(m.read_text()[:200])),
    "master not text": ("unreadable", lambda m: m.write_bytes(b"\xff\xfe\x00" * 20)),
    "master too deep": ("unreadable", lambda m: m.write_text("[" * 100_000)),
    "master huge number": ("unreadable", lambda m: m.write_text('{"Detector Type": ' + "9" * 5000 + "}")),
    "master too large": ("over-budget", lambda m: m.write_text(" " * (1 << 20) + m.read_text())),
    "no master": ("not-found", lambda m: m.rename(m.with_name("run_master_1.json"))),
    "first piece gone": ("incomplete", lambda m: first_file(m).unlink()),
    "middle piece gone": ("incomplete", lambda m: m.with_name("run_d0_f1_0.raw").unlink()),
    "last piece gone": ("incomplete", lambda m: m.with_name("run_d0_f2_0.raw").unlink()),
    "second module gone": ("incomplete", lambda m: [f.unlink() for f in m.parent.glob("run_d1_*")]),
    "last piece of second module gone": ("incomplete", lambda m: m.with_name("run_d1_f2_0.raw").unlink()),
    "a third module": ("wrong-shape", lambda m: shutil.copy(first_file(m), m.with_name("run_d2_f0_0.raw"))),
    "cut in the words": ("incomplete", lambda m: os.truncate(first_file(m), 2 * 1048688 - 1000)),
    "cut in a header": ("incomplete", lambda m: os.truncate(first_file(m), 1048688 + 50)),
    "cut between frames": ("incomplete", lambda m: os.truncate(first_file(m), 1048688)),
    "bytes behind": ("incomplete", lambda m: append(first_file(m), b"\0")),
    "a frame too many": ("incomplete", lambda m: append(first_file(m), bytes(46) + b"\x03\x02" + bytes(1048640))),
    "a frame twice": ("frames-differ", lambda m: second_header(m, 0, struct.pack("<Q", FIRST))),
    "header of zeros": ("wrong-shape", lambda m: second_header(m, 0, bytes(112))),
    "other detector": ("unsupported", lambda m: edit(first_file(m), 46, b"\x05")),
    "other header version": ("unsupported", lambda m: edit(first_file(m), 47, b"\x01")),
    "too many packets": ("wrong-shape", lambda m: second_header(m, 12, struct.pack("<I", 129))),
    "mask of a larger image": ("wrong-shape", lambda m: second_header(m, 48 + 16, b"\x01")),
    "fewer packets than the mask": ("unreadable", lambda m: second_header(m, 12, struct.pack("<I", 3))),
    "a pipe": ("not-a-file", replaced_by_a_pipe),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    master = Run(2, frames=5, per_file=2).write(tmp_path)
    code, change = DAMAGES[damage]
    change(master)
    with pytest.raises(FileError) as caught:
        recognise(master if master.exists() else first_file(master))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        ("unsupported", {"Detector Type": "Eiger"}),
        ("unsupported", {"Detector Type": ["Jungfrau"]}),
        ("unsupported", {"Version": 6.4}),
        ("unsupported", {"Version": 9.0}),
        ("unsupported", {"Version": float("nan")}),
        ("unsupported", {"Version": "7.2"}),
        ("unsupported", {"Version": None}),
        ("unsupported", {"Receiver Roi": {"xmin": 0, "xmax": 99, "ymin": 0, "ymax": 99}}),
        ("unsupported", {"Receiver Rois": [{"xmin": 4}]}),
        ("unsupported", {"Receiver Roi": 7}),
        ("wrong-shape", {"Dynamic Range": 32}),
        ("wrong-shape", {"Dynamic Range": 16.0}),
        ("wrong-shape", {"Image Size in bytes": 524288}),
        ("wrong-shape", {"Image Size in bytes": True}),
        ("wrong-shape", {"Pixels": {"x": 1024, "y": 256}}),
        ("wrong-shape", {"Pixels": [1024, 512]}),
        ("wrong-shape", {"Geometry": {"x": 1}}),
        ("wrong-shape", {"Geometry": {"x": 0, "y": 1}}),
        ("wrong-shape", {"Geometry": {"x": 1000, "y": 1000}}),
        ("wrong-shape", {"Geometry": {"x": 10**400, "y": 1}}),
        ("wrong-shape", {"Number of UDP Interfaces": 3}),
        ("wrong-shape", {"Number of UDP Interfaces": 2}),
        ("wrong-shape", {"Number of rows": 0}),
        ("wrong-shape", {"Frames in File": -1}),
        ("wrong-shape", {"Total Frames": "2"}),
        ("wrong-shape", {"Max Frames Per File": None}),
        ("incomplete", {"Max Frames Per File": 1}),
        ("incomplete", {"Frames in File": 3}),
        ("incomplete", {"Frames in File": 1}),
        ("incomplete", {"Geometry": {"x": 2, "y": 1}}),
    ],
)
def test_masters_that_do_not_fit_are_refused(tmp_path: Path, code: str, facts: dict[str, Any]) -> None:
    master = Run(frames=2, facts=facts).write(tmp_path)
    with pytest.raises(FileError) as caught:
        recognise(master)
    assert caught.value.code == code


def test_interfaces_must_divide_the_ports(tmp_path: Path) -> None:
    master = Run(1, 2, frames=1, facts={"Geometry": {"x": 2, "y": 1}}).write(tmp_path)
    with pytest.raises(FileError, match="2 x 1 ports, and 2 in each module"):
        recognise(master)


def test_frames_of_half_modules_are_no_whole_ones(tmp_path: Path) -> None:
    Run(1, 2, frames=2, per_file=0).write(tmp_path)
    facts = Run(frames=1).write(tmp_path).read_text()
    Run(1, 2, frames=2, per_file=0).write(tmp_path)
    (tmp_path / "run_d1_f0_0.raw").unlink()
    (tmp_path / "run_master_0.json").write_text(facts)
    with pytest.raises(FileError, match="frames of another size") as caught:
        recognise(tmp_path)
    assert caught.value.code == "incomplete"


def test_a_file_that_changes_before_it_is_read_is_refused(tmp_path: Path) -> None:
    master = Run(frames=2).write(tmp_path)
    run = found(master)
    second_header(master, 0, struct.pack("<Q", 9))
    assert read(run, 0, 1)[1] is None
    with pytest.raises(FileError, match="no longer holds frame_number 101"):
        read(run)
    os.truncate(first_file(master), 1048688 - 1)
    with pytest.raises(FileError, match="no longer holds frame_number 100") as caught:
        read(run)
    assert caught.value.code == "incomplete"


def test_a_sparse_file_of_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    master = Run(frames=1, per_file=0).write(tmp_path)
    os.truncate(first_file(master), 1048688 << 20)
    with pytest.raises(FileError, match="frame 1 has a header of detector type 0"):
        recognise(master)


@pytest.mark.parametrize(("interfaces", "told"), [(1, "307,49"), (2, "307,49")])
def test_modules_state_their_numbers(interfaces: int, told: str, tmp_path: Path) -> None:
    made = Run(2, interfaces, frames=3, said=lambda at: {"module": (307, 49)[at.port // interfaces]})
    assert found(made.write(tmp_path)).facts["module_serials"] == told


def test_numbers_that_change_or_lack_are_none(tmp_path: Path) -> None:
    for name, said in {
        "changing": lambda at: {"module": 1 + at.frame},
        "lacking": lambda at: {"module": at.port},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        assert "module_serials" not in found(Run(2, frames=3, said=said).write(folder)).facts
