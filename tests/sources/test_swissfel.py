"""JUNGFRAU runs of SwissFEL: modules, what is said of frames, and everything that can be wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError, TrustError
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words
from gaincal.sources.run import RawRun
from gaincal.sources.swissfel import recognise

Array = npt.NDArray[Any]
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
FRAMES = DATA / "jungfrau_module" / "frames.h5"
BITSHUFFLE = dict(hdf5plugin.Bitshuffle(cname="lz4"))
PULSE = 21_000_000_000
CELL_15 = 0xF00
NAME = "JF07T03V01"


def stripes(frames: int, modules: int, seed: int = 0) -> Array:
    shape = (frames, modules * 512, 1024)
    return np.random.default_rng(seed).integers(0, 1 << 16, shape, np.uint16)


def write(path: Path, words: Array, name: str = NAME, **changes: Any) -> Path:
    """A file as SwissFEL writes it; a change of None leaves something out."""
    frames = len(words)
    pulses = PULSE + 10 * np.arange(frames, dtype=np.uint64)
    content = {
        "data": words,
        "pulse_id": pulses[:, None],
        "frame_index": np.arange(frames, dtype=np.uint64)[:, None] + 77,
        "daq_rec": np.full((frames, 1), CELL_15, np.uint32),
        "is_good_frame": np.ones((frames, 1), np.uint8),
        "meta/module_map": np.arange(int(name[5:7]), dtype=np.int64),
    } | {key.replace("__", "/"): values for key, values in changes.items()}
    with h5py.File(path, "a") as file:
        if "general" not in file:
            file["general/detector_name"] = name
        for key, values in content.items():
            if values is not None:
                storage = {"chunks": (1, *words.shape[1:]), **BITSHUFFLE} if values is words and words.size else {}
                file.create_dataset(f"data/{name}/{key}", data=values, **storage)
    return path


def found(path: Path, inside: str | None = None) -> RawRun:
    run = recognise(path, inside)
    assert run is not None
    return run


def read(run: RawRun) -> tuple[Array, Array]:
    """The words as the parts say, and where there are none."""
    raw = run.words["raw"]
    assert raw.read is None
    words, missing = np.zeros((run.frames, *run.pixels), raw.dtype), np.ones((run.frames, *run.pixels), bool)
    for part in raw.parts:
        assert part.file.is_absolute()
        assert [n for n in part.source[1] if n > 1] == [n for n in part.target[1] if n > 1]
        target = tuple(slice(s, s + n) for s, n in zip(*part.target, strict=True))
        with Resolver(part.file) as resolver:
            got, gone = Words(resolver, resolver.get(part.path)).read(*part.source)
        words[target] = got.reshape(part.target[1])
        missing[target] = False if gone is None else gone.reshape(part.target[1])
    return words, missing


# --- modules ---------------------------------------------------------------------------------


@pytest.mark.skipif(not FRAMES.is_file(), reason=f"no real frames: {FRAMES} is not there")
def test_real_words_of_one_module(tmp_path: Path) -> None:
    with h5py.File(FRAMES) as file:
        raw = file["raw"][()]
    run = found(write(tmp_path / "run.h5", raw, "JF01T01V01"))
    assert (run.kind, run.detector, run.formula) == ("swissfel", "JF01T01V01", "jungfrau")
    assert (run.frames, run.pixels, run.notes) == (10, (512, 1024), ())
    words, missing = read(run)
    assert words.tobytes() == raw.tobytes()
    assert not missing.any()


def test_three_modules(tmp_path: Path) -> None:
    raw = stripes(2, 3)
    path = write(tmp_path / "run.h5", raw)
    run = found(path)
    assert run.pixels == (3, 512, 1024)
    assert read(run)[0].tobytes() == raw.tobytes()
    assert (run.notes, run.files) == ((), (path,))
    assert {n: v.tolist() for n, v in run.ids.items()} == {
        "pulse_id": [PULSE, PULSE + 10],
        "frame_index": [77, 78],
        "is_good_frame": [1, 1],
    }
    assert run.ids["pulse_id"].dtype == np.uint64


@pytest.mark.parametrize("where", ["meta__module_map", "module_map"])
@pytest.mark.parametrize("dtype", [np.int8, np.int64, ">i4"])
def test_an_absent_module_is_missing_and_named(tmp_path: Path, where: str, dtype: Any) -> None:
    raw = stripes(2, 2)
    changes = {"meta__module_map": None, where: np.array([0, -1, 1], dtype)}
    run = found(write(tmp_path / "run.h5", raw, **changes))
    words, missing = read(run)
    assert missing[:, 1].all()
    assert not missing[:, [0, 2]].any()
    np.testing.assert_array_equal(words[:, [0, 2]], raw.reshape(2, 2, 512, 1024))
    assert run.notes == ("absent modules: 1",)


def test_an_absent_module_can_have_an_empty_stripe(tmp_path: Path) -> None:
    raw = stripes(1, 3)
    run = found(write(tmp_path / "run.h5", raw, meta__module_map=np.array([-1, 0, 1])))
    words, missing = read(run)
    assert missing[:, 0].all()
    np.testing.assert_array_equal(words[:, 1:], raw.reshape(1, 3, 512, 1024)[:, 1:])


def test_one_module_of_three_keeps_its_place(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(1, 1), meta__module_map=np.array([-1, -1, 0])))
    assert run.pixels == (3, 512, 1024)
    assert [p.target[0] for p in run.words["raw"].parts] == [(0, 2, 0, 0)]
    assert run.notes == ("absent modules: 0, 1",)


def test_stripes_are_where_the_map_says(tmp_path: Path) -> None:
    raw = stripes(1, 2)
    run = found(write(tmp_path / "run.h5", raw, meta__module_map=np.array([1, -1, 0])))
    np.testing.assert_array_equal(read(run)[0][:, [2, 0]], raw.reshape(1, 2, 512, 1024))


def test_old_maps_have_a_row_per_frame(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(3, 2), meta__module_map=np.tile([0, 1, -1], (3, 1))))
    assert run.notes == ("absent modules: 2",)


def test_without_a_map_all_modules_are_there(tmp_path: Path) -> None:
    raw = stripes(1, 3)
    assert read(found(write(tmp_path / "run.h5", raw, meta__module_map=None)))[0].tobytes() == raw.tobytes()


def test_words_in_no_file_are_told(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((2, 1536, 1024), np.uint16)
    layout[0] = h5py.VirtualSource("lost.h5", "data", (1536, 1024))
    path = write(tmp_path / "run.h5", stripes(2, 3), data=None)
    with h5py.File(path, "a") as file:
        file[f"data/{NAME}"].create_virtual_dataset("data", layout)
    assert found(path).notes[0].startswith("parts of the words are missing: ")


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(0, 3)))
    assert (run.frames, run.words["raw"].parts, run.ids["pulse_id"].shape) == (0, (), (0,))
    assert run.inputs["high_gain"].shape == (0,)


# --- what is said of frames ------------------------------------------------------------------


def test_high_gain_is_that_of_every_frame(tmp_path: Path) -> None:
    daq = np.array([[0], [1], [0], [3]], np.uint32) | CELL_15
    run = found(write(tmp_path / "run.h5", stripes(4, 3), daq_rec=daq))
    assert run.formula == "jungfrau_hg0"
    assert (run.inputs["high_gain"].dtype, run.inputs["high_gain"].tolist()) == (np.dtype(np.uint8), [0, 1, 0, 1])


def test_without_high_gain_it_is_the_plain_formula(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(2, 3)))
    assert (run.formula, list(run.inputs), run.inputs["high_gain"].tolist()) == ("jungfrau", ["high_gain"], [0, 0])


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, ">u8"])
def test_modules_that_agree_are_one_number(tmp_path: Path, dtype: Any) -> None:
    daq = np.tile(np.array([[0], [1]]), 3).astype(dtype)
    assert found(write(tmp_path / "run.h5", stripes(2, 3), daq_rec=daq)).inputs["high_gain"].tolist() == [0, 1]


def test_modules_can_disagree_in_gain(tmp_path: Path) -> None:
    daq = np.array([[0, 0, 1], [1, 1, 1]])
    run = found(write(tmp_path / "run.h5", stripes(2, 3), daq_rec=daq))
    assert (run.formula, run.inputs["high_gain"].tolist()) == ("jungfrau_hg0", daq.tolist())


@pytest.mark.parametrize("columns", [[0, 1], [0, 9, 1]])
def test_absent_modules_say_nothing(tmp_path: Path, columns: list[int]) -> None:
    daq = np.array([columns, columns])
    good = np.array([[1, 0, 1][:: 4 - len(columns)]] * 2, np.uint8)
    ids = np.array([[5, 5], [6, 6]]) if len(columns) == 2 else np.array([[5, 0, 5], [6, 0, 6]])
    changes = {"meta__module_map": np.array([0, -1, 1]), "daq_rec": daq, "is_good_frame": good, "pulse_id": ids}
    run = found(write(tmp_path / "run.h5", stripes(2, 2), **changes))
    assert run.inputs["high_gain"].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert run.ids["pulse_id"].tolist() == [5, 6]
    assert run.ids["is_good_frame"].tolist() == [1, 1]


def test_storage_cells_are_an_input_where_there_are_several(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(2, 3), daq_rec=np.array([[0xE00], [0xF00]], np.uint32)))
    assert run.inputs["cell"].tolist() == [14, 15]


def test_forced_gain_is_told(tmp_path: Path) -> None:
    daq = np.array([0, 1 << 12, 1 << 13, 3 << 14], np.uint32)
    run = found(write(tmp_path / "run.h5", stripes(4, 3), daq_rec=daq))
    assert run.notes == ("the gain was forced in 2 of 4 frames: is it a pedestal run?",)


def test_bad_frames_stay(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(3, 3), is_good_frame=np.array([[True], [False], [True]])))
    assert (run.frames, run.ids["is_good_frame"].tolist()) == (3, [1, 0, 1])
    assert run.ids["is_good_frame"].dtype == np.uint8
    assert run.notes == ("1 of 3 frames are marked bad; they stay, with is_good_frame 0",)


def test_a_bad_module_may_lack_its_pulse(tmp_path: Path) -> None:
    ids = np.array([[7, 7, 7], [0, 8, 8]], np.uint64)
    good = np.array([[1, 1, 1], [0, 1, 1]], np.uint8)
    run = found(write(tmp_path / "run.h5", stripes(2, 3), pulse_id=ids, is_good_frame=good))
    assert run.ids["pulse_id"].tolist() == [7, 8]
    assert run.ids["is_good_frame"].tolist() == [1, 0]


def test_frame_counters_of_modules_may_differ(tmp_path: Path) -> None:
    run = found(write(tmp_path / "run.h5", stripes(2, 3), frame_index=np.array([[1, 1, 1], [2, 2, 9]])))
    assert run.ids["frame_index"].tolist() == [1, 2]
    assert "frame_index differs between modules in 1 of 2 frames" in run.notes[0]


def test_only_the_words_are_needed(tmp_path: Path) -> None:
    changes = dict.fromkeys(("pulse_id", "frame_index", "daq_rec", "is_good_frame", "meta__module_map"))
    run = found(write(tmp_path / "run.h5", stripes(1, 3), **changes))
    assert (dict(run.ids), dict(run.inputs), run.formula) == ({}, {}, None)
    assert run.notes == ("no daq_rec: whether frames were taken with high gain is not known",)


# --- which detector --------------------------------------------------------------------------


def test_one_of_two_detectors_must_be_named(tmp_path: Path) -> None:
    raw = stripes(1, 1)
    path = write(tmp_path / "run.h5", raw, "JF01T01V01")
    write(path, stripes(2, 3))
    with pytest.raises(FileError, match=r"JF01T01V01, JF07T03V01; name one: .*run\.h5::/data/JF01T01V01") as caught:
        recognise(path)
    assert caught.value.code == "ambiguous"
    assert read(found(path, "/data/JF01T01V01"))[0].tobytes() == raw.tobytes()
    assert found(path, f"data/{NAME}/data").frames == 2


def test_a_detector_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        recognise(write(tmp_path / "run.h5", stripes(1, 3)), "/data/JF02T09V02")
    assert caught.value.code == "not-found"


@pytest.mark.parametrize("inside", ["/entry/data", "/data/other", "/", ""])
def test_other_paths_are_something_else(tmp_path: Path, inside: str) -> None:
    assert recognise(write(tmp_path / "run.h5", stripes(1, 3)), inside) is None


@pytest.mark.parametrize("members", [{}, {"data": np.zeros(3)}, {"data/other/data": np.zeros(3)}, {"entry": 1}])
def test_other_hdf5_is_something_else(tmp_path: Path, members: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        for name, values in members.items():
            file[name] = values
    assert recognise(tmp_path / "run.h5") is None


@pytest.mark.parametrize("content", [b"", b"x", b'{"Detector Type": "Jungfrau"}', bytes(4096)])
def test_other_files_are_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").write_bytes(content)
    assert recognise(tmp_path / "run") is None
    assert recognise(tmp_path) is None


# --- what is damaged -------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "pulse ids differ": ("frames-differ", lambda: {"pulse_id": np.array([[5, 5, 5], [6, 7, 6]])}),
    "pulse ids of too few modules": ("wrong-shape", lambda: {"pulse_id": np.zeros((2, 2), np.uint64)}),
    "pulse ids of too few frames": ("wrong-shape", lambda: {"pulse_id": np.zeros((1, 1), np.uint64)}),
    "pulse ids in floats": ("wrong-shape", lambda: {"pulse_id": np.zeros((2, 1))}),
    "pulse ids of three dimensions": ("wrong-shape", lambda: {"pulse_id": np.zeros((2, 1, 1), np.uint64)}),
    "pulse ids of a scalar": ("wrong-shape", lambda: {"pulse_id": np.uint64(3)}),
    "daq records of another run": ("wrong-shape", lambda: {"daq_rec": np.zeros((5, 1), np.uint32)}),
    "daq records in text": ("wrong-shape", lambda: {"daq_rec": np.zeros((2, 1), "S4")}),
    "good frames in a compound": ("odd-type", lambda: {"is_good_frame": np.zeros((2, 1), [("a", "u1")])}),
    "no words": ("not-found", lambda: {"data": None}),
    "words of a group": ("not-a-dataset", lambda: {"data": None, "data__data": np.zeros(3, np.uint16)}),
    "calibrated": ("not-words", lambda: {"data": np.zeros((2, 1536, 1024), np.float32)}),
    "signed words": ("not-words", lambda: {"data": np.zeros((2, 1536, 1024), np.int16)}),
    "words of 32 bits": ("not-words", lambda: {"data": np.zeros((2, 1536, 1024), np.uint32)}),
    "assembled with gaps": ("wrong-shape", lambda: {"data": np.zeros((2, 1614, 1030), np.uint16)}),
    "half a module": ("wrong-shape", lambda: {"data": np.zeros((2, 1280, 1024), np.uint16)}),
    "no rows": ("wrong-shape", lambda: {"data": np.zeros((2, 0, 1024), np.uint16)}),
    "a single frame without an axis": ("wrong-shape", lambda: {"data": np.zeros((1536, 1024), np.uint16)}),
    "fewer stripes than the map": ("wrong-shape", lambda: {"data": np.zeros((2, 1024, 1024), np.uint16)}),
    "more stripes than modules": ("wrong-shape", lambda: {"data": np.zeros((2, 2048, 1024), np.uint16)}),
    "fewer stripes and no map": (
        "wrong-shape",
        lambda: {"data": np.zeros((2, 1024, 1024), np.uint16), "meta__module_map": None},
    ),
    "a map that names a stripe twice": (
        "wrong-shape",
        lambda: {"data": np.zeros((2, 1024, 1024), np.uint16), "meta__module_map": np.array([0, 0, -1])},
    ),
    "a map that contradicts whole words": ("wrong-shape", lambda: {"meta__module_map": np.array([1, 0, 2])}),
    "a map of another detector": ("wrong-shape", lambda: {"meta__module_map": np.arange(9)}),
    "a map with a negative stripe": ("wrong-shape", lambda: {"meta__module_map": np.array([0, 1, -2])}),
    "a map in floats": ("wrong-shape", lambda: {"meta__module_map": np.arange(3.0)}),
    "a map that changes": ("frames-differ", lambda: {"meta__module_map": np.array([[0, 1, 2], [0, 1, -1]])}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    code, changes = DAMAGES[damage]
    with pytest.raises(FileError) as caught:
        recognise(write(tmp_path / "run.h5", stripes(2, 3), **changes()))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "run.h5") in str(caught.value)


def test_the_frame_is_named_where_pulses_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", stripes(3, 3), pulse_id=np.array([[5, 5, 5], [6, 6, 6], [7, 7, 8]]))
    with pytest.raises(FileError, match=rf"/data/{NAME}/pulse_id: of frame 2 differs between modules: \[7, 8\]"):
        recognise(path)


def test_a_file_that_was_cut_is_no_other_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", stripes(2, 3))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FileError) as caught:
        recognise(path)
    assert caught.value.code == "not-hdf5"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        recognise(tmp_path / "run.h5")
    assert caught.value.code == "not-found"


@pytest.mark.parametrize("member", ["data", "pulse_id", "daq_rec", "meta/module_map"])
def test_nothing_is_read_from_other_directories(tmp_path: Path, member: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = write(tmp_path / "b" / "run.h5", stripes(2, 3))
    path = write(tmp_path / "a" / "run.h5", stripes(2, 3), **{member.replace("/", "__"): None})
    with h5py.File(path, "a") as file:
        file[f"data/{NAME}/{member}"] = h5py.ExternalLink(str(other), f"/data/{NAME}/{member}")
    with pytest.raises(TrustError) as caught:
        recognise(path)
    assert caught.value.code == "foreign-file"


def test_words_can_lie_in_a_file_beside(tmp_path: Path) -> None:
    raw = stripes(2, 3)
    write(tmp_path / "other.h5", raw)
    path = write(tmp_path / "run.h5", raw, data=None)
    with h5py.File(path, "a") as file:
        file[f"data/{NAME}/data"] = h5py.ExternalLink("other.h5", f"/data/{NAME}/data")
    run = found(path)
    assert read(run)[0].tobytes() == raw.tobytes()
    assert run.files == (path, tmp_path / "other.h5")


def test_a_detector_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file[f"data/{NAME}"] = h5py.SoftLink(f"/data/{NAME}")
    with pytest.raises(FileError) as caught:
        recognise(tmp_path / "run.h5")
    assert caught.value.code == "link-cycle"
