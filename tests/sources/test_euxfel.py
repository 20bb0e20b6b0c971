"""European XFEL: every frame of every module is where its train and pulse say, whatever the files look like."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError, TrustError
from gaincal.nexus.trust import TRUST_VARIABLE, Resolver
from gaincal.nexus.words import Words
from gaincal.sources import euxfel_constants, matching
from gaincal.sources.euxfel import recognise
from gaincal.sources.euxfel_constants import load
from gaincal.sources.files import Spec
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]
AGIPD = "SPB_DET_AGIPD1M-1"
JF = "FXE_XAD_JF1M"
STRIPS = "SA1_XTD9_HIREX/DET/GOTTHARD2_MASTER"
DAMAGE_FILL = 7
Ids = Sequence[tuple[int, int]]


def source_of(module: int, detector: str = AGIPD) -> str:
    return f"{detector}/DET/{module}CH0:xtdf"


def file_of(folder: Path, module: int, sequence: int = 0, name: str = "AGIPD") -> Path:
    return folder / f"RAW-R0001-{name}{module:02}-S{sequence:05}.h5"


def value(module: int, train: int, pulse: int) -> int:
    """What stands in the analog words of a frame; the digital ones are 10,000 higher."""
    return module * 500 + train % 10 * 50 + pulse


def index(file: h5py.File, source: str, trains: Array, count: Array) -> None:
    first = np.cumsum(count) - count
    file["METADATA/dataSources/dataSourceId"] = np.array([f"INSTRUMENT/{source}".encode()])
    file["INDEX/trainId"] = trains
    file[f"INDEX/{source}/first"] = first.astype("u8")
    file[f"INDEX/{source}/count"] = count.astype("u8")


def agipd(
    folder: Path, module: int, ids: Ids, sequence: int = 0, cells: Sequence[int] | None = None, detector: str = AGIPD
) -> Path:
    """A file of one module with frames of consecutive trains, in this order; chunks as the facility writes them."""
    train, pulse = np.array(ids, "u8").reshape(-1, 2).T
    starts = np.flatnonzero(np.diff(train, prepend=np.uint64(0)) != 0)
    path = file_of(folder, module, sequence)
    with h5py.File(path, "w") as file:
        index(file, f"{source_of(module, detector)}/image", train[starts], np.diff(starts, append=len(train)))
        group = file.create_group(f"INSTRUMENT/{source_of(module, detector)}/image")
        group["trainId"], group["pulseId"] = train[:, None], pulse[:, None]
        group["cellId"] = np.array(pulse if cells is None else cells, "u2")[:, None]
        shape = (len(train), 2, 512, 128)
        words = group.create_dataset("data", shape, "u2", maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]))
        for k, (t, p) in enumerate(ids):
            words[k, 0], words[k, 1] = value(module, t, p), value(module, t, p) + 10_000
    return path


def split(folder: Path, source: str, trains: Sequence[int], state: Array, pixels: tuple[int, ...], name: str) -> Path:
    """A file of a detector with whole trains; the words are the place in the train, plus ten for every train."""
    field = "frameNumber" if len(pixels) == 1 else "memoryCell"
    path = folder / f"RAW-R0001-{name}-S00000.h5"
    with h5py.File(path, "w") as file:
        index(file, f"{source}/data", np.array(trains, "u8"), np.ones(len(trains), int))
        group = file.create_group(f"INSTRUMENT/{source}/data")
        group["trainId"], group[field] = np.array(trains, "u8"), state
        for word, kind in (("adc", "u2"), ("gain", "u1")):
            words = group.create_dataset(word, (*state.shape, *pixels), kind, chunks=(1, *state.shape[1:], *pixels))
            for t, c in np.ndindex(*state.shape):
                words[t, c] = 10 * t + c
    return path


def assembled(run: RawRun, word: str) -> tuple[Array, Array]:
    """The first word of every frame and module, and how many parts hold it; checks that the boxes agree."""
    modules = run.pixels[0] if len(run.pixels) == 3 else 1
    values, times = np.zeros((run.frames, modules), np.int64), np.zeros((run.frames, modules), int)
    for part in run.words[word].parts:
        (start, count), (at, lengths) = part.target, part.source
        assert [n for n in count if n != 1] == [n for n in lengths if n != 1]
        assert count[-len(run.pixels[-2:]) :] == run.pixels[-2:]
        where = start[1] if len(run.pixels) == 3 else 0
        box = tuple(slice(s, s + n) for s, n in zip(at, lengths, strict=True))
        with h5py.File(part.file) as file:
            read = file[part.path][box].reshape(count[0], -1)
        assert (read == read[:, :1]).all()
        values[start[0] : start[0] + count[0], where] = read[:, 0]
        times[start[0] : start[0] + count[0], where] += 1
    return values, times


def frames_of(run: RawRun) -> list[tuple[int, int]]:
    return list(zip(run.ids["train_id"].tolist(), run.ids["pulse_id"].tolist(), strict=True))


def recognised(path: Path, inside: str | None = None) -> RawRun:
    run = recognise(path, inside)
    assert run is not None
    assert run.kind == "euxfel"
    assert all(values.shape == (run.frames,) for values in run.ids.values())
    return run


def check(run: RawRun, recorded: dict[int, Ids]) -> None:
    """The run holds exactly these frames of these modules, once and in order."""
    wanted = sorted({i for ids in recorded.values() for i in ids})
    assert frames_of(run) == wanted
    analog, times = assembled(run, "analog")
    digital, _ = assembled(run, "digital")
    for module in range(16):
        has = np.array([i in set(recorded.get(module, ())) for i in wanted])
        np.testing.assert_array_equal(times[:, module], has)
        expected = np.array([value(module, *i) for i in wanted])[has]
        np.testing.assert_array_equal(analog[has, module], expected)
        np.testing.assert_array_equal(digital[has, module], expected + 10_000)
        assert (run.inputs["cell"][~has, module] == 65_535).all()
        assert (run.inputs["cell"][has, module] < 65_535).all()


def grid(trains: Sequence[int], pulses: Sequence[int]) -> list[tuple[int, int]]:
    return [(t, p) for t in trains for p in pulses]


# What other programs write and read


@pytest.fixture(scope="module")
def mock() -> Callable[..., Path]:
    """Writes a file with the mock writer of extra-data."""
    reason = "extra-data, which writes and reads the facility's layout, is not installed"
    pytest.importorskip("extra_data", reason=reason)
    from extra_data.tests.mockdata import write_file

    def write(path: Path, device: Any, trains: int, **options: Any) -> Path:
        write_file(str(path), [device], trains, format_version="1.2", **options)
        return path

    return write


def fill(path: Path, dataset: str, start: int) -> None:
    """Count through the frames of a mock file, which are not written."""
    with h5py.File(path, "r+") as file:
        words = file[dataset]
        for k in range(len(words)):
            words[k] = start + k


def test_agipd_as_extra_data_reads_it(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data import RunDirectory
    from extra_data.components import AGIPD1M
    from extra_data.tests.mockdata.detectors import AGIPDModule

    for module in range(16):
        path = file_of(tmp_path, module)
        mock(path, AGIPDModule(f"{AGIPD}/DET/{module}CH0", frames_per_train=2), 3, chunksize=32)
        fill(path, f"INSTRUMENT/{source_of(module)}/image/data", 100 * module)
    run = recognised(tmp_path)
    peer = AGIPD1M(RunDirectory(str(tmp_path)), raw=True)
    theirs = peer["image.data"].ndarray()
    assert run.frames == 6
    assert run.pixels == (16, 512, 128)
    assert run.formula == "agipd"
    assert (run.detector, run.notes) == (AGIPD, ())
    np.testing.assert_array_equal(run.ids["train_id"], peer.train_ids_perframe)
    np.testing.assert_array_equal(run.ids["pulse_id"], peer["image.data"].pulse_id_coordinates())
    np.testing.assert_array_equal(run.inputs["cell"].T, peer["image.cellId"].ndarray().reshape(16, -1))
    np.testing.assert_array_equal(assembled(run, "analog")[0].T, theirs[:, :, 0, 0, 0])
    assert len(run.words["analog"].parts) == 16


def test_lpd_as_extra_data_reads_it(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data import RunDirectory
    from extra_data.components import LPD1M
    from extra_data.tests.mockdata.detectors import LPDModule

    for module in (0, 3):
        path = file_of(tmp_path, module, name="LPD")
        mock(path, LPDModule(f"FXE_DET_LPD1M-1/DET/{module}CH0", frames_per_train=4), 2, chunksize=32)
        fill(path, f"INSTRUMENT/{source_of(module, 'FXE_DET_LPD1M-1')}/image/data", 100 * module)
    run = recognised(tmp_path)
    peer = LPD1M(RunDirectory(str(tmp_path)), raw=True)
    assert (run.formula, run.pixels, run.frames) == ("lpd", (16, 256, 256), 8)
    np.testing.assert_array_equal(run.ids["train_id"], peer.train_ids_perframe)
    values, times = assembled(run, "raw")
    np.testing.assert_array_equal(values[:, [0, 3]].T, peer["image.data"].ndarray().reshape(2, 8, -1)[:, :, 0])
    assert (times == np.isin(np.arange(16), [0, 3])).all()


def test_jungfrau_as_extra_data_reads_it(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data import RunDirectory
    from extra_data.components import JUNGFRAU
    from extra_data.tests.mockdata.jungfrau import JUNGFRAUModule

    for module in (1, 2):
        path = tmp_path / f"RAW-R0001-JNGFR{module:02}-S00000.h5"
        mock(path, JUNGFRAUModule(f"{JF}/DET/JNGFR{module:02}", raw=True), 2, chunksize=1)
        with h5py.File(path, "r+") as file:
            group = file[f"INSTRUMENT/{JF}/DET/JNGFR{module:02}:daqOutput/data"]
            group["memoryCell"][:] = (np.arange(16) + 15) % 16
            for t, c in np.ndindex(2, 16):
                group["adc"][t, c], group["gain"][t, c] = 100 * module + 20 * t + c, 10 * module + t
    run = recognised(tmp_path)
    peer = JUNGFRAU(RunDirectory(str(tmp_path)), raw=True)
    assert (run.formula, run.pixels, run.frames) == ("jungfrau_split", (2, 512, 1024), 32)
    np.testing.assert_array_equal(run.ids["train_id"], np.repeat(peer.train_ids, 16))
    np.testing.assert_array_equal(run.inputs["cell"][:16, 0], peer.cell_ids())
    for word, key in (("adc", "data.adc"), ("gain_code", "data.gain")):
        theirs = peer[key].ndarray()[..., 0, 0].reshape(2, 32)
        np.testing.assert_array_equal(assembled(run, word)[0].T, theirs)
        assert len(run.words[word].parts) == 4


def test_a_train_that_index_does_not_name(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data import RunDirectory
    from extra_data.components import LPD1M
    from extra_data.tests import make_examples

    make_examples.make_lpd_run_mini_missed_train(str(tmp_path))
    run = recognised(tmp_path)
    peer = LPD1M(RunDirectory(str(tmp_path)), raw=True)
    np.testing.assert_array_equal(run.ids["train_id"], peer.train_ids_perframe)
    assert [(p.target[0][0], p.source[0][0], p.target[1][0]) for p in run.words["raw"].parts if p.target[0][1]] == [
        (0, 0, 20),
        (30, 20, 20),
    ]
    assert any("another train than INDEX" in note for note in run.notes)


def test_runs_without_a_detector_say_so(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data.tests.mockdata.xgm import XGM

    mock(tmp_path / "RAW-R0001-DA01-S00000.h5", XGM("SA1_XTD2_XGM/DOOCS/MAIN"), 4)
    with pytest.raises(FileError, match="no detector that gaincal knows") as caught:
        recognise(tmp_path)
    assert caught.value.code == "ambiguous"


def test_corrected_data_are_no_words(tmp_path: Path, mock: Callable[..., Path]) -> None:
    from extra_data.tests.mockdata.detectors import AGIPDModule

    device = AGIPDModule(f"{AGIPD}/DET/0CH0", raw=False, frames_per_train=2)
    mock(tmp_path / "CORR-R0001-AGIPD00-S00000.h5", device, 2, chunksize=32)
    with pytest.raises(FileError, match=r"holds float32.*name the raw run"):
        recognise(tmp_path)


# Runs that are not perfect


def test_two_absent_modules(tmp_path: Path) -> None:
    recorded = {m: grid([10, 11], [0, 4]) for m in range(16) if m not in (3, 7)}
    for module, ids in recorded.items():
        agipd(tmp_path, module, ids)
    run = recognised(tmp_path)
    check(run, recorded)
    assert run.notes == ("absent modules: 3, 7",)
    assert "14 of 16 modules, 4 frames of 2 trains" in run.description
    assert len(run.words["analog"].parts) == 14
    assert run.files == tuple(file_of(tmp_path, m) for m in sorted(recorded))


def test_sparse_cells_in_changed_order(tmp_path: Path) -> None:
    ids = grid([10, 11], [0, 2, 4])
    agipd(tmp_path, 0, ids, cells=[300, 2, 351] * 2)
    agipd(tmp_path, 1, ids, cells=[5, 300, 7] * 2)
    run = recognised(tmp_path)
    check(run, {0: ids, 1: ids})
    np.testing.assert_array_equal(run.inputs["cell"][:3, :2], [[300, 5], [2, 300], [351, 7]])
    assert run.inputs["cell"].dtype == np.uint16


def test_trains_that_a_module_lacks(tmp_path: Path) -> None:
    recorded = {0: grid([10, 11, 12, 13], [0, 4]), 1: grid([10, 13], [0, 4])}
    for module, ids in recorded.items():
        agipd(tmp_path, module, ids)
    run = recognised(tmp_path)
    check(run, recorded)
    assert "frames that modules lack: module 1: 4" in run.notes
    assert len([p for p in run.words["analog"].parts if p.target[0][1] == 1]) == 2


def test_pulses_that_a_module_lacks_are_not_shifted(tmp_path: Path) -> None:
    recorded = {0: grid([10, 11], [0, 2, 4, 6]), 1: [(10, 0), (10, 4), (11, 2), (11, 6)], 2: [(10, 3)]}
    for module, ids in recorded.items():
        agipd(tmp_path, module, ids)
    check(recognised(tmp_path), recorded)


def test_of_frames_recorded_twice_the_first_holds(tmp_path: Path) -> None:
    ids = [(10, 0), (10, 2), (10, 0), (11, 0)]
    path = agipd(tmp_path, 0, ids)
    with h5py.File(path, "r+") as file:
        file[f"INSTRUMENT/{source_of(0)}/image/data"][2] = 9
    run = recognised(tmp_path)
    check(run, {0: [(10, 0), (10, 2), (11, 0)]})
    assert "frames recorded again, of which the first is kept: module 0: 1" in run.notes


def test_sequences_that_overlap(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10, 11], [0, 1]), sequence=0)
    path = agipd(tmp_path, 0, grid([11, 12], [0, 1]), sequence=1)
    with h5py.File(path, "r+") as file:
        file[f"INSTRUMENT/{source_of(0)}/image/data"][:2] = 9
    run = recognised(tmp_path)
    check(run, {0: grid([10, 11, 12], [0, 1])})
    assert any(note.endswith("module 0: 2") for note in run.notes)


def test_parts_end_where_their_file_ends(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10], [0, 1]), sequence=0)
    agipd(tmp_path, 0, grid([10, 11], [0, 1]), sequence=1)
    run = recognised(tmp_path)
    check(run, {0: grid([10, 11], [0, 1])})
    assert [p.source[0][0] for p in run.words["analog"].parts] == [0, 2]


def test_the_first_file_is_the_first_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [agipd(tmp_path, 0, grid([10], [0]), sequence=k) for k in (1, 0)]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(files))
    run = recognised(tmp_path)
    assert [p.file for p in run.words["analog"].parts] == files[1:]


def test_trains_and_pulses_out_of_order(tmp_path: Path) -> None:
    recorded = {0: [(12, 4), (12, 0), (10, 0), (10, 4), (11, 0)], 1: grid([10, 11, 12], [0, 4])}
    for module, ids in recorded.items():
        agipd(tmp_path, module, ids)
    check(recognised(tmp_path), recorded)


def test_several_sequences(tmp_path: Path) -> None:
    recorded: dict[int, Ids] = {}
    for module in (0, 15):
        recorded[module] = grid(range(10, 16), [0, 8])
        for k in range(3):
            agipd(tmp_path, module, grid([10 + 2 * k, 11 + 2 * k], [0, 8]), sequence=k)
    run = recognised(tmp_path)
    check(run, recorded)
    assert len(run.words["digital"].parts) == 6


def test_a_sequence_that_a_module_lacks(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10, 11], [0]), sequence=0)
    agipd(tmp_path, 0, grid([12], [0]), sequence=1)
    agipd(tmp_path, 1, grid([12], [0]), sequence=1)
    check(recognised(tmp_path), {0: grid([10, 11, 12], [0]), 1: grid([12], [0])})


def test_trains_without_frames(tmp_path: Path) -> None:
    path = agipd(tmp_path, 0, grid([10, 12], [0, 1]))
    with h5py.File(path, "r+") as file:
        group = file[f"INDEX/{source_of(0)}/image"]
        for name, place, values in (("trainId", file["INDEX"], [10, 11, 12, 0]), ("first", group, [0, 99, 2, 0])):
            del place[name]
            place[name] = np.array(values, "u8")
        del group["count"]
        group["count"] = np.array([2, 0, 2, 0], "u8")
    check(recognised(tmp_path), {0: grid([10, 12], [0, 1])})


def test_the_index_of_early_files(tmp_path: Path) -> None:
    path = agipd(tmp_path, 0, grid([10, 11], [0, 1]))
    with h5py.File(path, "r+") as file:
        group = file[f"INDEX/{source_of(0)}/image"]
        del group["count"]
        group["last"], group["status"] = np.array([1, 3], "u8"), np.array([1, 0], "u4")
    check(recognised(tmp_path), {0: grid([10], [0, 1])})


def test_no_frames_at_all(tmp_path: Path) -> None:
    agipd(tmp_path, 0, [])
    with pytest.raises(FileError, match="has no frame in this run"):
        recognise(tmp_path)


def test_a_source_without_images(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10], [0]))
    with h5py.File(agipd(tmp_path, 1, grid([10], [0])), "r+") as file:
        del file[f"INDEX/{source_of(1)}/image"]
    check(recognised(tmp_path), {0: grid([10], [0])})


def test_one_file_of_a_run(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10], [0]))
    run = recognised(agipd(tmp_path, 5, grid([11], [3])))
    check(run, {5: grid([11], [3])})


def test_too_many_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agipd(tmp_path, 0, [(10, p) for p in (5, 3, 1)])
    monkeypatch.setattr(matching, "MAX_PARTS", 3)
    recognised(tmp_path)
    monkeypatch.setattr(matching, "MAX_PARTS", 2)
    with pytest.raises(FileError, match="lies in 3 pieces") as caught:
        recognise(tmp_path)
    assert caught.value.code == "over-budget"


def test_a_virtual_dataset_of_the_parts_is_read(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10, 11], [0, 1]))
    agipd(tmp_path, 2, grid([11], [0, 1]))
    run = recognised(tmp_path)
    layout = h5py.VirtualLayout((run.frames, *run.pixels), "u2")
    for part in run.words["digital"].parts:
        target, source = (
            tuple(slice(s, s + n) for s, n in zip(*box, strict=True)) for box in (part.target, part.source)
        )
        with h5py.File(part.file) as file:
            layout[target] = h5py.VirtualSource(str(part.file), part.path, file[part.path].shape)[source]
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    with Resolver(tmp_path / "master.h5") as resolver:
        words = Words(resolver, resolver.get("/raw"))
        values, missing = words.read((0, 0, 0, 0), words.shape)
    assert missing is not None
    present = np.zeros((4, 16), bool)
    present[:, 0], present[2:, 2] = True, True
    assert (missing == ~present[:, :, None, None]).all()
    assert values[3, 2].min() == values[3, 2].max() == value(2, 11, 1) + 10_000


# Several detectors


def test_a_detector_is_chosen_by_name(tmp_path: Path) -> None:
    agipd(tmp_path, 0, grid([10], [0]))
    agipd(tmp_path, 1, grid([11], [0]), detector="MID_DET_AGIPD500K")
    with pytest.raises(FileError, match=f"MID_DET_AGIPD500K, {AGIPD}") as caught:
        recognise(tmp_path)
    assert caught.value.code == "ambiguous"
    assert frames_of(recognised(tmp_path, AGIPD)) == [(10, 0)]
    other = recognised(tmp_path, "MID_DET_AGIPD500K")
    assert (other.detector, other.pixels, frames_of(other)) == ("MID_DET_AGIPD500K", (8, 512, 128), [(11, 0)])
    with pytest.raises(FileError, match="is no detector of this run"):
        recognise(tmp_path, "SPB_DET_AGIPD1M-2")


def test_a_module_that_the_detector_cannot_have(tmp_path: Path) -> None:
    agipd(tmp_path, 16, grid([10], [0]))
    with pytest.raises(FileError, match="has modules 16, but should have 16"):
        recognise(tmp_path)


# JUNGFRAU and Gotthard-II


def jungfrau(folder: Path, module: int, trains: Sequence[int], cells: Array, domain: str = JF) -> Path:
    name = f"JNGFR{module:02}"
    return split(folder, f"{domain}/DET/{name}:daqOutput", trains, cells.astype("u1"), (512, 1024), name)


def test_cells_that_were_not_received(tmp_path: Path) -> None:
    cells = np.tile(np.arange(4), (2, 1))
    first, second = cells.copy(), cells.copy()
    first[0, 2:], second[0, 3] = 255, 255
    jungfrau(tmp_path, 1, [10, 11], first)
    jungfrau(tmp_path, 2, [10, 11], second)
    run = recognised(tmp_path)
    assert list(zip(run.ids["train_id"], run.ids["cell_index"], strict=True)) == [
        (t, c) for t in (10, 11) for c in range(4) if (t, c) != (10, 3)
    ]
    np.testing.assert_array_equal(run.inputs["cell"][:, 0], [0, 1, 255, 0, 1, 2, 3])
    np.testing.assert_array_equal(run.inputs["cell"][:, 1], [0, 1, 2, 0, 1, 2, 3])
    assert run.inputs["cell"].dtype == np.uint8
    assert any("which were not received: module 1: 2, module 2: 1" in note for note in run.notes)
    assert "frames that modules lack: module 1: 1" in run.notes
    for word in ("adc", "gain_code"):
        words, times = assembled(run, word)
        np.testing.assert_array_equal(words[:, 1], [0, 1, 2, 10, 11, 12, 13])
        np.testing.assert_array_equal(words[:, 0], [0, 1, 0, 10, 11, 12, 13])
        np.testing.assert_array_equal(times[:, 0], [1, 1, 0, 1, 1, 1, 1])  # what was not received are no words
    assert [w.dtype for w in run.words.values()] == [np.uint16, np.uint8]
    assert len(run.words["adc"].parts) == 4


def test_one_cell_per_train_is_one_part(tmp_path: Path) -> None:
    jungfrau(tmp_path, 3, [10, 11, 12], np.full((3, 1), 15), "FXE_XAD_JF500K")
    run = recognised(tmp_path)
    assert (run.pixels, run.frames, run.notes) == ((512, 1024), 3, ())
    (part,) = run.words["adc"].parts
    assert part.target == ((0, 0, 0), (3, 512, 1024))
    assert part.source == ((0, 0, 0, 0), (3, 1, 512, 1024))
    np.testing.assert_array_equal(run.inputs["cell"], [15, 15, 15])


def test_the_same_cell_of_every_train_is_one_part(tmp_path: Path) -> None:
    cells = np.full((3, 4), 255)
    cells[:, 2] = 7
    jungfrau(tmp_path, 1, [10, 11, 12], cells, "FXE_XAD_JF500K")
    run = recognised(tmp_path)
    (part,) = run.words["adc"].parts
    assert part.source == ((0, 2, 0, 0), (3, 1, 512, 1024))
    np.testing.assert_array_equal(assembled(run, "adc")[0][:, 0], [2, 12, 22])


def test_an_absent_jungfrau_module(tmp_path: Path) -> None:
    jungfrau(tmp_path, 2, [10], np.arange(2)[None])
    run = recognised(tmp_path)
    assert run.pixels == (2, 512, 1024)
    assert run.notes == ("absent modules: 1",)
    np.testing.assert_array_equal(run.inputs["cell"], [[255, 0], [255, 1]])


def test_strips_have_no_cells(tmp_path: Path) -> None:
    received = np.array([[1, 2, 0], [3, 4, 5]], "u8")
    split(tmp_path, f"{STRIPS}:daqOutput", [10, 11], received, (1280,), "GH201")
    run = recognised(tmp_path)
    assert (run.detector, run.formula, run.pixels) == (STRIPS, "gotthard2_split", (1280,))
    assert run.inputs == {}
    np.testing.assert_array_equal(run.ids["cell_index"], [0, 1, 0, 1, 2])
    assert [p.target for p in run.words["adc"].parts] == [((0, 0), (2, 1280)), ((2, 0), (3, 1280))]
    assert [p.source for p in run.words["adc"].parts] == [((0, 0, 0), (1, 2, 1280)), ((1, 0, 0), (1, 3, 1280))]


# What is not a run, or damaged


def test_other_things_are_not_recognised(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "nothing") is None
    (tmp_path / "notes.txt").write_text("no run")
    assert recognise(tmp_path / "notes.txt") is None
    assert recognise(tmp_path) is None
    with h5py.File(tmp_path / "RAW-R0001-X-S00000.h5", "w") as file:
        file["data"] = 1
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "RAW-R0001-X-S00000.h5") is None


def test_a_file_cut_off_is_left_out_and_named(tmp_path: Path) -> None:
    ids = grid([10], [0, 1])
    agipd(tmp_path, 0, ids)
    broken = agipd(tmp_path, 1, ids)
    os.truncate(broken, 2000)
    run = recognised(tmp_path)
    check(run, {0: ids})
    assert any("left out" in note and broken.name in note for note in run.notes)
    file_of(tmp_path, 0).unlink()
    with pytest.raises(FileError) as caught:
        recognise(tmp_path)
    assert caught.value.code == "not-hdf5"


def replaced(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        path = name.format(index=f"INDEX/{source_of(0)}/image", image=f"INSTRUMENT/{source_of(0)}/image")
        del file[path]
        if values is not None:
            file[path] = values

    return change


def unwritten(file: h5py.File) -> None:
    group = file[f"INSTRUMENT/{source_of(0)}/image"]
    del group["cellId"]
    group.create_dataset("cellId", (4, 1), "u2", chunks=(1, 1))[0] = DAMAGE_FILL


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (replaced("{index}/count", np.array([2, 2**63], "u8")), "wrong-shape"),
        (replaced("{index}/count", np.array([4, 4], "u8")), "wrong-shape"),
        (replaced("{index}/first", np.array([2, 3], "u8")), "wrong-shape"),
        (replaced("{index}/count", np.array([2], "u8")), "wrong-shape"),
        (replaced("{index}/count", np.array([2, -1])), "wrong-shape"),
        (replaced("{index}/count", np.array([2.0, 2.0])), "wrong-shape"),
        (replaced("{index}/count", np.uint64(2)), "wrong-shape"),
        (replaced("{index}/count", None), "not-found"),
        (replaced("{index}/first", np.array([0, 2**64 - 1], "u8")), "wrong-shape"),
        (replaced("{index}/first", np.array([0], "u8")), "wrong-shape"),
        (replaced("INDEX/trainId", np.array([10, 11, 12], "u8")), "wrong-shape"),
        (replaced("{image}/pulseId", np.zeros((4, 2), "u8")), "wrong-shape"),
        (replaced("{image}/pulseId", np.zeros((3, 1), "u8")), "wrong-shape"),
        (replaced("{image}/pulseId", np.full((4, 1), -1)), "wrong-shape"),
        (replaced("{image}/pulseId", None), "not-found"),
        (replaced("{image}/cellId", np.full((4, 1), 70_000, "u4")), "wrong-shape"),
        (replaced("{image}/data", None), "not-found"),
        (replaced("{image}/data", np.zeros((4, 512, 128), "u2")), "not-words"),
        (replaced("{image}/data", np.zeros((4, 2, 128, 512), "u2")), "not-words"),
        (replaced("{image}/data", np.zeros((4, 3, 512, 128), "u2")), "not-words"),
        (replaced("{image}/data", np.zeros((4, 2, 512, 128), "i2")), "not-words"),
        (replaced("{image}/data", np.zeros((2, 2, 512, 128), "u2")), "wrong-shape"),
        (replaced("{image}/data", h5py.ExternalLink("/nowhere/else.h5", "/data")), "foreign-file"),
        (unwritten, "incomplete"),
    ],
)
def test_damage_is_refused_in_one_line(tmp_path: Path, damage: Callable[[h5py.File], None], code: str) -> None:
    with h5py.File(agipd(tmp_path, 0, grid([10, 11], [0, 1])), "r+") as file:
        damage(file)
    with pytest.raises(FileError) as caught:
        recognise(tmp_path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_entries_that_belong_to_many_trains_are_refused(tmp_path: Path) -> None:
    with h5py.File(agipd(tmp_path, 0, grid([10, 11], [0, 1])), "r+") as file:
        replaced("{index}/first", np.array([0, 0], "u8"))(file)
        replaced("{index}/count", np.array([4, 4], "u8"))(file)
    with pytest.raises(FileError, match="points to more entries than the 4"):
        recognise(tmp_path)


def test_memory_cells_must_fit_the_words(tmp_path: Path) -> None:
    path = jungfrau(tmp_path, 1, [10, 11], np.zeros((2, 3)))
    with h5py.File(path, "r+") as file:
        group = file[f"INSTRUMENT/{JF}/DET/JNGFR01:daqOutput/data"]
        del group["memoryCell"]
        group["memoryCell"] = np.zeros((2, 4), "u1")
    with pytest.raises(FileError, match="for trains of 3 frames"):
        recognise(tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    agipd(run, 0, grid([10], [0]))
    path = agipd(elsewhere, 1, grid([10], [0]))
    (run / path.name).symlink_to(path)
    with pytest.raises(TrustError, match="outside the folder") as caught:
        recognise(run)
    assert caught.value.code == "foreign-file"
    monkeypatch.setenv(TRUST_VARIABLE, str(elsewhere))
    check(recognised(run), {0: grid([10], [0]), 1: grid([10], [0])})


# Constants

DIMS = ("stage", "cell", "module", "y", "x")
OF_MODULE = ("stage", "cell", "y", "x")
SHAPE = {"stage": 3, "cell": 5, "y": 4, "x": 6}


def constants(path: Path, axes: Any, order: Sequence[str] | None = None, name: str = "offset", seed: int = 0) -> Array:
    """Write constants with their axes in an order; returns them in the declared order."""
    values = np.random.default_rng(seed).normal(size=tuple(SHAPE.values())).astype(np.float32)
    order = order or [euxfel_constants.ALIASES.get(a, a) for a in axes]
    with h5py.File(path, "a") as file:
        file[name] = values.transpose([OF_MODULE.index(a) for a in order])
        if axes is not None:
            file[name].attrs["dims"] = axes
    return values


@pytest.mark.parametrize(
    "axes",
    [
        ["cell", "y", "x", "stage"],
        ["slow_scan", "fast_scan", "memory_cells", "gain"],
        ["fast_scan", "slow_scan", "cell", "gain"],
        np.array(["stage", "cell", "y", "x"], "S5"),
    ],
)
def test_constants_come_in_the_declared_order(tmp_path: Path, axes: Any) -> None:
    names = [a.decode() if isinstance(a, bytes) else str(a) for a in axes]
    expected = constants(tmp_path / "c.h5", axes, [euxfel_constants.ALIASES.get(n, n) for n in names])
    values, labels = load(tmp_path / "c.h5", None, OF_MODULE, (4, 6))
    np.testing.assert_array_equal(values, expected)
    assert labels == ((0, 1, 2), (0, 1, 2, 3, 4))
    assert values.base is not None


def test_constants_in_a_group_of_a_database(tmp_path: Path) -> None:
    expected = constants(tmp_path / "c.h5", ["cell", "y", "x", "gain"], name="AGIPD_SIV1/Offset/0/data")
    for path in ("AGIPD_SIV1/Offset/0", "AGIPD_SIV1/Offset/0/data", None):
        np.testing.assert_array_equal(load(tmp_path / "c.h5", path, OF_MODULE, (4, 6))[0], expected)


@pytest.mark.parametrize(
    ("axes", "wanted", "message"),
    [
        (["cell", "y", "x", "threshold"], OF_MODULE, "unknown: threshold; missing: stage"),
        (["cell", "y", "x", "cells"], OF_MODULE, "missing: stage"),
        (["cell", "y", "x", "gain"], DIMS, "missing: module"),
        (["cell", "y", "gain"], OF_MODULE, "4 dimensions and names 3"),
        (None, OF_MODULE, "no attribute 'dims'"),
        ("cell,y,x,stage", OF_MODULE, "is not a list of names"),
        (np.arange(4), OF_MODULE, "is not a list of names"),
        (["cell", "x", "y", "gain"], OF_MODULE, r"y: 6, x: 4\), the frames are"),
    ],
)
def test_axes_are_never_guessed(tmp_path: Path, axes: Any, wanted: tuple[str, ...], message: str) -> None:
    constants(tmp_path / "c.h5", axes, ["cell", "y", "x", "stage"])
    pixels = (16, 4, 6) if wanted == DIMS else (4, 6)
    with pytest.raises(FileError, match=message):
        load(tmp_path / "c.h5", "offset", wanted, pixels)


def test_an_axis_named_twice_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["offset"] = np.zeros((5, 4, 6, 3, 5))
        file["offset"].attrs["dims"] = ["cell", "y", "x", "gain", "memory_cells"]
    with pytest.raises(FileError, match="one of them twice"):
        load(tmp_path / "c.h5", None, OF_MODULE, (4, 6))


def test_several_constants_in_a_file_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be opened"):
        load(tmp_path / "c.h5", None, OF_MODULE, (4, 6))
    constants(tmp_path / "c.h5", ["cell", "y", "x", "gain"])
    constants(tmp_path / "c.h5", ["cell", "y", "x", "gain"], name="gain")
    with pytest.raises(FileError, match="/gain, /offset") as caught:
        load(tmp_path / "c.h5", None, OF_MODULE, (4, 6))
    assert caught.value.code == "ambiguous"


def test_constants_never_written_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("offset", (5, 4, 6, 3), "f4", chunks=(1, 4, 6, 3))
        file["offset"].attrs["dims"] = ["cell", "y", "x", "gain"]
    spec = Spec(tmp_path / "c.h5", "offset")
    with pytest.raises(FileError, match="never written"):
        load(spec.file, spec.path, OF_MODULE, (4, 6))
