"""Files of modules become one run: every frame accounted for, none in the wrong place, gaps flagged and never zeros."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from module_files import PULSES, WORDS, ModuleFiles, pulse, stamped, truncate, write_modules

from gaincal import apply, assemble, embed, open_calibrated_dataset
from gaincal.cli import main
from gaincal.errors import FileError, GaincalError, OutputError, RequestError, TrustError
from gaincal.formulas.program import MISSING_BIT
from gaincal.nexus.read import open_master
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words
from gaincal.sources.recognise import recognise
from gaincal.verbs.assemble import Assembled
from gaincal.verbs.inspect import info, validate

Array = npt.NDArray[Any]
MODULES, PIXELS = 4, (4, 8)
IDS = {"pulse_id": PULSES}
RAW = "/entry/instrument/detector/raw"
ACCOUNT = "/entry/instrument/detector/account"
MISSING = 1 << MISSING_BIT
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
DARK = DATA / "jungfrau_dark_raw"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("m*.h5")}


def read(path: Path) -> tuple[Array, Array]:
    """Words, and where they are missing, as gaincal reads them."""
    with Resolver(path) as resolver:
        words = Words(resolver, resolver.get(f"{RAW}/data"))
        values, missing = words.read((0,) * len(words.shape), words.shape, 2)
    return values, np.zeros(values.shape, bool) if missing is None else missing


def read_by_hdf5(path: Path) -> tuple[Array, Array]:
    """Words as HDF5 reads them, which does not know what is missing, and where gaincal knows that they are."""
    with h5py.File(path) as file:
        values = file[f"{RAW}/data"][...]
    with Resolver(path) as resolver:
        missing = np.ones(values.shape, bool)
        for piece in Words(resolver, resolver.get(f"{RAW}/data")).pieces:
            missing[tuple(slice(s, s + n) for s, n in zip(*piece.box, strict=True))] = piece.source is None
    return values, missing


def check(
    made: Assembled, files: ModuleFiles, modules: int, read: Callable[[Path], tuple[Array, Array]] = read
) -> None:
    """Every word is where its frame and module are; what nobody recorded is missing; all is accounted for."""
    table = np.unique(np.concatenate(list(files.rows.values())))
    with h5py.File(made.path) as file:
        np.testing.assert_array_equal(file[f"{RAW}/pulse_id"][...], pulse(table))
        stored = {name: file[f"{ACCOUNT}/{name}"][...] for name in file[ACCOUNT]}
    words, missing = files.expected(table, modules)
    found, lacking = read(made.path)
    np.testing.assert_array_equal(lacking, np.broadcast_to(missing[..., None, None], lacking.shape))
    np.testing.assert_array_equal(found, words)
    for row in made.account.modules:
        rows = files.rows.get(row.module, np.empty(0, int))
        assert row.recorded == len(rows)
        assert row.written == len(np.unique(rows))
        assert row.duplicate == len(rows) - len(np.unique(rows))
        assert (row.missing, row.rejected) == (len(table) - row.written, 0)
        assert row.expected == row.written + row.missing + row.duplicate + row.rejected
    for name in ("recorded", "written", "missing", "duplicate", "rejected", "expected"):
        assert stored[name].tolist() == [getattr(row, name) for row in made.account.modules]


def constants(shape: tuple[int, ...]) -> dict[str, Any]:
    """Pedestals and gains of every stage, different in every pixel."""
    rng = np.random.default_rng(5)
    gain = np.array([41.0, -1.44, -0.1145]).reshape(3, *(1,) * len(shape)) * rng.uniform(0.9, 1.1, (3, *shape))
    return {"pedestal": rng.normal(1000, 50, (3, *shape)).astype("f4"), "gain": gain.astype("f4")}


@pytest.fixture
def files(tmp_path: Path) -> ModuleFiles:
    return write_modules(tmp_path, 300, MODULES, PIXELS, lost=0.05, repeated=0.01, shuffled=0.02)


# --- matching ------------------------------------------------------------------------------


def test_every_frame_is_accounted_for(files: ModuleFiles) -> None:
    before = digests(files.folder)
    made = assemble([files.file(m) for m in range(MODULES)], files.folder / "run.nxs", ids=IDS)
    check(made, files, MODULES)
    assert digests(files.folder) == before
    assert not list(files.folder.glob("*.part"))


@pytest.mark.slow
def test_sixteen_modules_of_ten_thousand_frames(tmp_path: Path) -> None:
    files = write_modules(tmp_path, 10_000, 16, PIXELS)
    files.file(5).unlink()
    truncate(files.file(11))
    del files.rows[5], files.rows[11]
    began = time.process_time()  # which other processes do not make longer
    made = assemble([files.pattern], tmp_path / "run.nxs", ids=IDS)
    assert time.process_time() - began < 10
    check(made, files, 16, read_by_hdf5)
    problems = {row.module: row.problem for row in made.account.modules if row.problem}
    assert problems.keys() == {5, 11}
    assert problems[5] == "absent"
    assert "truncated" in problems[11]
    embed(made.path, tmp_path / "m.nxs", formula="jungfrau_modules", constants=constants((16, *PIXELS)))
    began = time.process_time()
    with open_master(tmp_path / "m.nxs").resolver:
        assert time.process_time() - began < 2


def test_hdf5_itself_reads_the_same_words(files: ModuleFiles) -> None:
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    check(made, files, MODULES, read_by_hdf5)


def test_the_last_of_repeated_frames_or_none(files: ModuleFiles) -> None:
    last = assemble([files.pattern], files.folder / "last.nxs", ids=IDS, duplicates="last")
    none = assemble([files.pattern], files.folder / "none.nxs", ids=IDS, duplicates="reject")
    rows = files.rows[1]
    values, counts = np.unique(rows, return_counts=True)
    for made, kept in ((last, np.arange(len(values))), (none, np.flatnonzero(counts == 1))):
        with h5py.File(made.path) as file:
            table = (file[f"{RAW}/pulse_id"][...] - pulse(np.array(0))) // 10
        found, missing = read(made.path)
        has = np.isin(table, values[kept])
        np.testing.assert_array_equal(~missing[:, 1, 0, 0], has)
        wanted = [np.flatnonzero(rows == f)[-1] for f in table[has]]
        np.testing.assert_array_equal(found[has, 1, 0, 3], wanted)
    assert none.account.modules[1].duplicate == counts[counts > 1].sum()


def test_frames_that_enough_modules_have(files: ModuleFiles) -> None:
    counts = np.bincount(np.concatenate([np.unique(r) for r in files.rows.values()]), minlength=files.frames)
    for options, needed in (({"require": 3}, 3), ({"select": "intersection"}, MODULES)):
        made = assemble([files.pattern], files.folder / f"{needed}.nxs", ids=IDS, **options)  # type: ignore[arg-type]
        assert made.frames == np.count_nonzero(counts >= needed)
        assert made.account.required == needed
        for row in made.account.modules:
            kept = np.unique(files.rows[row.module])
            assert row.rejected == np.count_nonzero(counts[kept] < needed)
            assert row.recorded == row.written + row.duplicate + row.rejected
            assert row.expected == row.written + row.missing + row.duplicate + row.rejected
    assert not read(made.path)[1].any()


def test_times_are_matched_within_a_tolerance(files: ModuleFiles) -> None:
    rng = np.random.default_rng(3)
    for module, rows in files.rows.items():
        with h5py.File(files.file(module), "r+") as file:
            file["time"] = 1e9 + rows * 0.01 + rng.uniform(0, 1e-4, files.frames)[rows] + 1e-5 * module
    where = {"time": "/time", "pulse_id": PULSES}
    made = assemble([files.pattern], files.folder / "run.nxs", ids=where, tolerance=2e-4)
    check(made, files, MODULES)
    assert (made.account.matched_by, made.account.tolerance) == ("time", 2e-4)
    with pytest.raises(RequestError, match="choose a smaller one"):
        assemble([files.pattern], files.folder / "wide.nxs", ids=where, tolerance=0.02)
    with pytest.raises(RequestError, match="say how close is equal"):
        assemble([files.pattern], files.folder / "none.nxs", ids=where)
    assert sorted(p.name for p in files.folder.glob("*.nxs*")) == ["run.nxs"]


def test_other_ids_come_along_and_differences_are_said(files: ModuleFiles) -> None:
    for module, rows in files.rows.items():
        with h5py.File(files.file(module), "r+") as file:
            file["index"] = (rows * 2 + (module == 2)).astype("u4")
    made = assemble([files.pattern], files.folder / "run.nxs", ids={**IDS, "frame_index": "/index"})
    with h5py.File(made.path) as file:
        table = (file[f"{RAW}/pulse_id"][...] - pulse(np.array(0))) // 10
        index = file[f"{RAW}/frame_index"][...]
    first = [min(m for m in files.rows if f in files.rows[m]) for f in table]
    np.testing.assert_array_equal(index, table * 2 + (np.array(first) == 2))
    assert any(note.startswith("frame_index differs between modules") for note in made.notes)


def test_ids_in_files_of_their_own(files: ModuleFiles) -> None:
    for module, rows in files.rows.items():
        np.save(files.folder / f"ids{module}.npy", pulse(rows))
        with h5py.File(files.folder / "ids.h5", "a") as file:
            file[f"m{module}/id"] = pulse(rows)[:, None]
    for where in (f"{files.folder}/ids{{module}}.npy", f"{files.folder}/ids.h5::/m{{module}}/id"):
        check(
            assemble([files.pattern], files.folder / "r.nxs", ids={"pulse_id": where}, overwrite=True), files, MODULES
        )


# --- what is not there ---------------------------------------------------------------------


def test_rows_without_words_or_ids_are_rejected(files: ModuleFiles) -> None:
    with h5py.File(files.file(0), "r+") as file:
        words = file[WORDS][:200]
        del file[WORDS]
        file.create_dataset(WORDS, data=words, chunks=(1, *PIXELS))
    with h5py.File(files.file(1), "r+") as file:
        ids = file[PULSES][:250]
        del file[PULSES]
        file[PULSES] = ids
    with h5py.File(files.file(2), "r+") as file:
        words = file[WORDS][...]
        del file[WORDS]
        holes = file.create_dataset(WORDS, words.shape, words.dtype, chunks=(1, *PIXELS))
        for k in range(10, len(words)):  # the first ten were never written
            holes[k] = words[k]
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    rows = made.account.modules
    recorded = [len(files.rows[m]) for m in range(MODULES)]
    assert [row.recorded for row in rows] == recorded
    assert [row.rejected for row in rows] == [recorded[0] - 200, recorded[1] - 250, 10, 0]
    assert rows[0].problem == f"{recorded[0] - 200} rows without words"
    assert rows[1].problem == f"{recorded[1] - 250} rows without ids"
    for row in rows:
        assert row.expected == row.written + row.missing + row.duplicate + row.rejected
    kept = {0: files.rows[0][:200], 1: files.rows[1][:250], 3: files.rows[3]}
    found, missing = read(made.path)
    table = np.unique(np.concatenate([*kept.values(), files.rows[2][10:]]))
    assert len(found) == len(table)
    for module, own in kept.items():
        np.testing.assert_array_equal(~missing[:, module].any(axis=(1, 2)), np.isin(table, own))
        has = np.isin(table, own)
        np.testing.assert_array_equal(found[has, module, 0, 0], table[has])


@pytest.mark.parametrize("gone", ["removed", "truncated", "emptied"])
def test_a_file_that_goes_later_is_missing_and_not_zero(files: ModuleFiles, gone: str) -> None:
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    embed(made.path, files.folder / "m.nxs", formula="jungfrau_modules", constants=constants((MODULES, *PIXELS)))
    table = np.unique(np.concatenate(list(files.rows.values())))
    path = files.file(2)
    path.unlink() if gone == "removed" else truncate(path, 0.7 if gone == "truncated" else 0)
    words, missing = files.expected(table, MODULES)
    missing[:, 2] = True
    with open_calibrated_dataset(files.folder / "m.nxs") as found:
        flags, raw, energy = found["flags"].values, found["raw"].values, found["energy"].values
    np.testing.assert_array_equal(flags == MISSING, np.broadcast_to(missing[..., None, None], flags.shape))
    assert np.isnan(energy[missing]).all()
    np.testing.assert_array_equal(raw[~missing], words[~missing])
    assert any("m02.h5" in f.problem for f in validate(files.folder / "m.nxs") if f.code == "words-missing")


def test_a_dataset_that_becomes_shorter_lacks_its_last_frames_only(tmp_path: Path) -> None:
    for module in range(2):
        with h5py.File(tmp_path / f"m{module}.h5", "w") as file:
            file[PULSES] = pulse(np.arange(10))
            words = stamped(np.arange(10), module, PIXELS)
            file.create_dataset(WORDS, data=words, chunks=(1, *PIXELS), maxshape=(None, *PIXELS))
    made = assemble([tmp_path / "m0.h5", tmp_path / "m1.h5"], tmp_path / "run.nxs", ids=IDS)
    with h5py.File(tmp_path / "m1.h5", "r+") as file:
        file[WORDS].resize(7, axis=0)
    found, missing = read(made.path)
    np.testing.assert_array_equal(missing[:, 1, 0, 0], np.arange(10) >= 7)
    assert not missing[:, 0].any()
    np.testing.assert_array_equal(found[:7, 1], stamped(np.arange(7), 1, PIXELS))


def test_modules_by_number_and_absent_ones(files: ModuleFiles) -> None:
    named = {3: files.file(1), 1: None, 4: files.folder / "m99.h5"}
    made = assemble([files.file(0)], files.folder / "run.nxs", modules=named, ids=IDS)
    assert made.shape[1:] == (5, *PIXELS)
    assert [row.problem for row in made.account.modules] == ["", "absent", "absent", "", "does not exist"]
    found, missing = read(made.path)
    np.testing.assert_array_equal(missing[0, :, 0, 0], [False, True, True, False, True])
    assert set(found[:, 3, 1, 1].tolist()) <= {0, 2010}
    longer = assemble([files.pattern], files.folder / "longer.nxs", modules={2: None, 6: None}, ids=IDS)
    assert [row.problem for row in longer.account.modules] == ["", "", "absent", "", "absent", "absent", "absent"]


# --- layouts -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0, 3])
def test_the_modules_of_one_image_are_calibrated_alike(files: ModuleFiles, gap: int) -> None:
    folder = files.folder
    files.file(2).unlink()
    given = constants((MODULES, *PIXELS))
    for name, values in given.items():
        for module in range(MODULES):
            np.save(folder / f"{name}{module}.npy", values[:, module])
        np.save(folder / f"{name}.npy", values)
    (mask := np.zeros((MODULES, *PIXELS), bool))[1, 2, 3] = True
    np.save(folder / "mask.npy", mask)
    stacked = assemble([files.pattern], folder / "s.nxs", ids=IDS)
    image = assemble([files.pattern], folder / "i.nxs", ids=IDS, layout="assembled", gap=gap)
    height = MODULES * (PIXELS[0] + gap) - gap
    assert image.shape == (stacked.frames, height, PIXELS[1])
    options: dict[str, Any] = {"settings": {"photon_energy": 12.4}, "mask": folder / "mask.npy"}
    embed(stacked.path, folder / "sm.nxs", formula="jungfrau_modules", constants=given, **options)
    per_module = {n: f"{folder}/{n}{{module}}.npy" for n in given}
    embed(image.path, folder / "im.nxs", formula="jungfrau", constants=per_module, **options)
    whole = {n: folder / f"{n}.npy" for n in given}
    embed(image.path, folder / "im2.nxs", formula="jungfrau", constants=whole, **options)
    rows = np.concatenate([np.arange(PIXELS[0]) + m * (PIXELS[0] + gap) for m in range(MODULES)])
    between = np.setdiff1d(np.arange(height), rows)
    with open_calibrated_dataset(folder / "sm.nxs") as wanted, open_calibrated_dataset(folder / "im.nxs") as found:
        assert wanted["energy"].shape[1:] == (MODULES, *PIXELS)
        for name in ("energy", "flags", "stage", "raw"):
            flat = wanted[name].values.reshape(stacked.frames, -1, PIXELS[1])
            np.testing.assert_array_equal(found[name].values[:, rows], flat)
        assert (found["flags"].values[:, between] == MISSING).all()
        assert np.isnan(found["energy"].values[:, between]).all()
    with h5py.File(folder / "im.nxs") as first, h5py.File(folder / "im2.nxs") as second:
        place = "/entry/instrument/detector/pixel_mask"
        assert (first[place][:][between] & 1 == 1).all()
        np.testing.assert_array_equal(first[place][:][rows].reshape(mask.shape) != 0, mask)
        place = "/entry/instrument/detector/calibration/jungfrau/gain/gain"
        np.testing.assert_array_equal(first[place][:], second[place][:])
    counts = [
        apply(folder / f"{name}.nxs", folder / f"{name}_counts.nxs", output="counts", dtype="int32").path
        for name in ("sm", "im")
    ]
    with h5py.File(counts[0]) as first, h5py.File(counts[1]) as second:
        wanted_counts = first["/entry/data/data"][:].reshape(stacked.frames, -1, PIXELS[1])
        np.testing.assert_array_equal(second["/entry/data/data"][:][:, rows], wanted_counts)
        assert (second["/entry/data/data"][:][:, between] == -(2**31)).all()


def test_gaps_of_an_image_are_in_its_mask(files: ModuleFiles) -> None:
    made = assemble([files.pattern], files.folder / "i.nxs", ids=IDS, layout="assembled", gap=2)
    with h5py.File(made.path) as file:
        mask = file["/entry/instrument/detector/pixel_mask"][...]
    between = np.arange(len(mask)) % (PIXELS[0] + 2) >= PIXELS[0]
    np.testing.assert_array_equal(mask, np.repeat(between[:, None], PIXELS[1], axis=1).astype(np.uint32))
    given = constants(mask.shape)
    embed(made.path, files.folder / "m.nxs", formula="jungfrau", constants=given)
    assert info(files.folder / "m.nxs")["masked"] == {"gap": int(mask.sum())}


# --- the master ----------------------------------------------------------------------------


def test_the_master_tells_what_the_assembled_run_tells(files: ModuleFiles) -> None:
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    given = constants((MODULES, *PIXELS))
    done = embed(made.path, files.folder / "m.nxs", formula="jungfrau_modules", constants=given)
    assert "4 of 4 modules" in done.notes[0]
    with h5py.File(made.path) as first, h5py.File(files.folder / "m.nxs") as second:
        link = second[RAW].get("data", getlink=True)
        assert (link.filename, link.path) == ("run.nxs", f"{RAW}/data")
        np.testing.assert_array_equal(first[f"{RAW}/pulse_id"][...], second[f"{RAW}/pulse_id"][...])
        for name in set(first[ACCOUNT]) - {"words", "formula"}:
            np.testing.assert_array_equal(first[f"{ACCOUNT}/{name}"][()], second[f"{ACCOUNT}/{name}"][()])
    told = info(files.folder / "m.nxs")
    assert told["ids"].keys() == {"pulse_id"}
    assert told["account"] == info(made.path)["account"] == asdict(made.account)
    totals = {n: sum(getattr(row, n) for row in made.account.modules) for n in ("recorded", "written", "missing")}
    line = "  account     4 of 4 modules, by pulse_id: " + ", ".join(f"{k} {n}" for n, k in totals.items())
    for path in (made.path, files.folder / "m.nxs"):
        assert line in run("info", path).output
    assert [f for f in validate(files.folder / "m.nxs") if f.severity == "error"] == []


def test_some_frames_are_applied_and_the_account_stays_whole(tmp_path: Path) -> None:
    files = write_modules(tmp_path, 9, MODULES, PIXELS, lost=0, repeated=0, shuffled=0)
    few = {m: rows[:4] for m, rows in files.rows.items()}  # as many frames as modules
    for module, rows in few.items():
        with h5py.File(files.file(module), "w") as file:
            file[PULSES], file[WORDS] = pulse(rows), stamped(rows, module, PIXELS)
    made = assemble([files.pattern], tmp_path / "run.nxs", ids=IDS)
    embed(made.path, tmp_path / "m.nxs", formula="jungfrau_modules", constants=constants((MODULES, *PIXELS)))
    done = apply(tmp_path / "m.nxs", tmp_path / "out.nxs", output="energy", frames=(1, 3))
    with h5py.File(done.path) as file:
        assert len(file["/entry/data/pulse_id"]) == 2
        assert file[f"{ACCOUNT}/written"][...].tolist() == [4] * MODULES


def test_an_assembled_run_needs_a_master_of_its_own(files: ModuleFiles) -> None:
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    with pytest.raises(RequestError, match="not in place"):
        embed(made.path, None, formula="jungfrau_modules", constants={}, in_place=True)
    with pytest.raises(RequestError, match="name a formula"):
        embed(made.path, files.folder / "m.nxs", constants={})


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ({"written": np.arange(3)}, "wrong-shape"),
        ({"missing": np.zeros(MODULES)}, "odd-type"),
        ({"gap": 7}, "wrong-shape"),
        ({"layout": "heap"}, "wrong-shape"),
        ({"words": "nothing, here"}, "not-found"),
        ({"required": np.nan}, "odd-type"),
    ],
)
def test_an_account_that_was_tampered_with_is_refused(files: ModuleFiles, damage: dict[str, Any], code: str) -> None:
    made = assemble([files.pattern], files.folder / "run.nxs", ids=IDS)
    with h5py.File(made.path, "r+") as file:
        for name, value in damage.items():
            del file[f"{ACCOUNT}/{name}"]
            file[f"{ACCOUNT}/{name}"] = value
    with pytest.raises(FileError) as caught:
        embed(made.path, files.folder / "m.nxs", formula="jungfrau_modules", constants={})
    assert caught.value.code == code


# --- sources -------------------------------------------------------------------------------


def test_module_files_of_swissfel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(0, 1 << 14, (3, 5, 512, 1024), dtype=np.uint16)
    rows = [np.arange(5), np.array([0, 2, 3, 1]), np.array([1, 2, 3, 4])]
    for module, own in enumerate(rows):
        with h5py.File(tmp_path / f"JF{module}.h5", "w") as file:
            group = file.create_group("data/JF01T01V01")
            group.create_dataset("data", data=words[module, own], chunks=(1, 512, 1024))
            large = pulse(own)[:, None] + np.uint64(1 << 60)  # more digits than a float has
            group["pulse_id"], group["frame_index"] = large.astype("i8" if module else "u8"), own[:, None]
            group["daq_rec"] = (own >= 3).astype("u4")[:, None]
            group["is_good_frame"] = np.ones((len(own), 1), "u1")
    made = assemble([tmp_path / f"JF{m}.h5" for m in range(3)], tmp_path / "run.nxs")
    assert made.account.matched_by == "pulse_id"
    flat = {name: np.ones((4, 3, 512, 1024), np.float32) for name in ("pedestal", "gain")}
    embed(made.path, tmp_path / "m.nxs", constants=flat)
    with h5py.File(tmp_path / "m.nxs") as file:
        given = file["/entry/instrument/detector/calibration/jungfrau_hg0_modules/given"]
        np.testing.assert_array_equal(given["high_gain"][...].reshape(5, -1)[:, 0], [0, 0, 0, 1, 1])
    found, missing = read(made.path)
    for module, own in enumerate(rows):
        np.testing.assert_array_equal(np.flatnonzero(~missing[:, module, 0, 0]), np.sort(own))
        np.testing.assert_array_equal(found[np.sort(own), module], words[module, np.sort(own)])


def test_npy_files_are_copied_frame_by_frame(tmp_path: Path) -> None:
    rows = {0: np.array([0, 1, 2, 5, 4]), 1: np.array([1, 3, 2, 2, 5])}
    for module, own in rows.items():
        np.save(tmp_path / f"m{module}.npy", stamped(own, module, PIXELS))
        np.save(tmp_path / f"i{module}.npy", pulse(own))
    where = {"pulse_id": f"{tmp_path}/i{{module}}.npy"}
    for options in ({}, {"layout": "assembled", "gap": 1}):
        out = tmp_path / f"run{len(options)}.nxs"
        made = assemble([f"{tmp_path}/m{{module}}.npy"], out, ids=where, **options)  # type: ignore[arg-type]
        found, missing = read(made.path)
        for module, own in rows.items():
            first = module * 5 if options else slice(None)
            box = np.s_[:, first : first + 4] if options else np.s_[:, module]  # type: ignore[operator]
            has = ~missing[box].any(axis=(1, 2))
            np.testing.assert_array_equal(np.flatnonzero(has), np.unique(own))
            wanted = stamped(own, module, PIXELS)[[np.flatnonzero(own == f)[0] for f in np.unique(own)]]
            np.testing.assert_array_equal(found[box][has], wanted)


def test_npy_files_of_times_and_of_no_module(tmp_path: Path) -> None:
    np.save(tmp_path / "m0.npy", stamped(np.arange(3), 0, PIXELS))
    np.save(tmp_path / "i0.npy", np.array([0.5, np.nan, 0.25]))
    made = assemble([tmp_path / "m0.npy"], tmp_path / "r.nxs", ids={"time": f"{tmp_path}/i0.npy"}, tolerance=0)
    assert made.shape == (2, *PIXELS)
    assert made.account.modules[0].rejected == 1
    np.testing.assert_array_equal(read(made.path)[0][:, 0, 0], [2, 0])


@pytest.mark.skipif(not DARK.is_dir(), reason=f"no real frames: {DARK} is not there")
def test_real_raw_files_of_two_modules(tmp_path: Path) -> None:
    for module in range(2):
        shutil.copytree(DARK, tmp_path / f"m{module}")
    masters = [next((tmp_path / f"m{m}").glob("*_master_*.json")) for m in range(2)]
    made = assemble(masters, tmp_path / "run.nxs")
    assert made.account.matched_by == "frame_number"
    assert made.shape == (10, 2, 512, 1024)
    alone = recognise(masters[0], None)
    assert alone is not None
    reads = alone.words["raw"].read
    assert reads is not None
    words, lost = reads(0, 10)
    found, missing = read(made.path)
    for module in range(2):
        np.testing.assert_array_equal(found[:, module], words)
        np.testing.assert_array_equal(missing[:, module], np.zeros(words.shape, bool) if lost is None else lost)
    flat = {name: np.ones((3, 2, 512, 1024), np.float32) for name in ("pedestal", "gain")}
    done = embed(made.path, tmp_path / "m.nxs", constants=flat)
    assert "formula jungfrau_modules" in done.notes[0]


def test_files_of_the_european_xfel_say_themselves_which_module_they_are(tmp_path: Path) -> None:
    pytest.importorskip("extra_data", reason="extra-data, which writes the facility's layout, is not installed")
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    for module in (2, 0):
        path = tmp_path / f"RAW-R0001-AGIPD{module:02d}-S00000.h5"
        device = AGIPDModule(f"SPB_DET_AGIPD1M-1/DET/{module}CH0", frames_per_train=4)
        write_file(str(path), [device], 3 - module // 2, format_version="1.2", chunksize=32)
    paths = sorted(tmp_path.glob("*.h5"))
    folder = recognise(tmp_path, None)
    assert folder is not None
    made = assemble(paths, tmp_path / "run.nxs")
    assert made.account == folder.account
    assert made.account.matched_by == "train_id, pulse_id"
    rows = made.account.modules
    assert [row.module for row in rows if not row.problem] == [0, 2]
    assert [(rows[m].written, rows[m].missing) for m in (0, 2, 5)] == [(12, 0), (8, 4), (0, 12)]
    image = assemble(paths, tmp_path / "image.nxs", layout="assembled", gap=1, select="intersection")
    assert image.shape == (8, 16 * 513 - 1, 128)
    in_one = recognise(image.path, None)
    assert in_one is not None
    assert in_one.inputs["cell"].shape == (8,)
    found = recognise(made.path, None)
    assert found is not None
    assert found.words.keys() == {"analog", "digital"}
    assert (found.formula, found.pixels, found.ids.keys()) == ("agipd", (16, 512, 128), {"train_id", "pulse_id"})
    np.testing.assert_array_equal(found.inputs["cell"], folder.inputs["cell"])
    with pytest.raises(RequestError, match="matched by train and pulse"):
        assemble(paths, tmp_path / "other.nxs", ids={"pulse_id": "/x"})


# --- interrupted ---------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
from gaincal.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_and_inputs_as_they_were(files: ModuleFiles) -> None:
    before, out = digests(files.folder), files.folder / "run.nxs"
    command = ["assemble", files.pattern, "-o", str(out), "--id", f"pulse_id={PULSES}"]
    size = assemble([files.pattern], out, ids=IDS).path.stat().st_size
    out.unlink()
    for part in (0, 0.3, 0.9):
        script = [sys.executable, "-c", LIMITED, str(int(size * part)), *command]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == OutputError.exit_code, done.stderr
        assert "cannot be written" in done.stderr
        assert not list(files.folder.glob("run.nxs*"))
    assert digests(files.folder) == before


@pytest.mark.slow
def test_killed_at_any_time_the_file_is_whole_or_absent(files: ModuleFiles) -> None:
    before, out = digests(files.folder), files.folder / "run.nxs"
    start = [sys.executable, "-c", "from gaincal.cli import main; main()"]
    command = [*start, "assemble", files.pattern, "-o", str(out), "--id", f"pulse_id={PULSES}"]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - began
    out.unlink()
    ends = []
    for delay in np.linspace(0.5, 1, 10) * whole:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        ends.append(process.wait())
        if out.exists():
            read(out)
            out.unlink()
    assert -signal.SIGKILL in ends
    check(assemble([files.pattern], out, ids=IDS), files, MODULES)
    assert digests(files.folder) == before


# --- requests ------------------------------------------------------------------------------


def test_the_command_prints_the_account(files: ModuleFiles) -> None:
    files.file(1).unlink()
    named = [files.file(m) for m in (0, 2, 3)]
    out = files.folder / "run.nxs"
    done = run("assemble", *named, "--module", "1=absent", "-o", out, "--id", f"pulse_id={PULSES}")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "matched by pulse_id" in lines[0]
    table = {line.split()[0]: line.split()[1:7] for line in lines[2:7]}
    rows = files.rows[0]
    assert table["0"][0] == str(len(rows))
    assert table["1"][:2] == ["0", "0"]
    assert all(int(r[5]) == sum(map(int, r[1:5])) for r in table.values())
    assert "(absent)" in done.output
    machine = run("assemble", *named, "-o", out, "--id", f"pulse_id={PULSES}", "--overwrite", "--json")
    assert json.loads(machine.stdout)["account"]["modules"][0]["recorded"] == len(rows)


def no_ids(files: ModuleFiles) -> dict[str, Any]:
    return {"ids": None}


def other_pixels(files: ModuleFiles) -> dict[str, Any]:
    with h5py.File(files.file(1), "r+") as file:
        del file[WORDS]
        file[WORDS] = np.zeros((len(files.rows[1]), 4, 9), np.uint16)
    return {}


def several_modules(files: ModuleFiles) -> dict[str, Any]:
    with h5py.File(files.file(1), "r+") as file:
        del file[WORDS]
        file["all"] = np.zeros((2, 3, 4, 8), np.uint16)
    return {"files": [f"{files.file(1)}::/all"]}


def negative(files: ModuleFiles) -> dict[str, Any]:
    with h5py.File(files.file(1), "r+") as file:
        file["bad"] = -np.arange(5)
    return {"files": [files.file(1)], "ids": {"pulse_id": "/bad"}}


def wrong_path(files: ModuleFiles) -> dict[str, Any]:
    return {"ids": {"pulse_id": "/nothing"}}


def no_overlap(files: ModuleFiles) -> dict[str, Any]:
    with h5py.File(files.file(1), "r+") as file:
        file[PULSES][...] = np.arange(len(files.rows[1]))
    return {"files": [files.file(0), files.file(1)], "select": "intersection"}


def mixed(files: ModuleFiles) -> dict[str, Any]:
    with h5py.File(files.file(1), "r+") as file:
        ids = file[PULSES][...]
        del file[PULSES]
        file[PULSES] = ids.astype("f8")
    return {"tolerance": 0.0}


def link_outside(files: ModuleFiles) -> dict[str, Any]:
    (files.folder / "far").mkdir()
    (files.folder / "in").mkdir()
    files.file(0).rename(files.folder / "far" / "x.h5")
    with h5py.File(files.folder / "in" / "m.h5", "w") as file:
        file["words"] = h5py.ExternalLink("../far/x.h5", WORDS)
        file["pulse_id"] = pulse(files.rows[0])
    return {"files": [f"{files.folder}/in/m.h5::/words"], "ids": {"pulse_id": "/pulse_id"}}


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (no_ids, RequestError, "say what identifies the frames"),
        (other_pixels, FileError, "only modules of one kind"),
        (several_modules, FileError, "not of one module"),
        (negative, FileError, "negative numbers"),
        (wrong_path, FileError, "does not exist"),
        (no_overlap, RequestError, "no pulse_id is in all modules"),
        (mixed, RequestError, "whole number in some files"),
        (link_outside, TrustError, "outside the directory"),
        (lambda _: {"files": []}, RequestError, "name the files"),
        (lambda _: {"files": [], "modules": {0: None}}, RequestError, "name the files"),
        (lambda f: {"files": [], "modules": {-1: f.file(0)}}, RequestError, "counted from 0"),
        (lambda f: {"files": [], "modules": {5000: f.file(0)}}, RequestError, "1 to 1024 modules"),
        (lambda f: {"files": [f.folder / "a.h5"]}, FileError, "no other module has a file"),
        (lambda f: {"files": [f"{f.folder}/m{{module}}{{module}}.h5"]}, RequestError, "once, in the name"),
        (lambda f: {"files": [f"{f.folder}/none{{module}}.h5"]}, RequestError, "no such file"),
        (lambda _: {"select": "some"}, RequestError, "union, intersection"),
        (lambda _: {"layout": "heap"}, RequestError, "stacked, assembled"),
        (lambda _: {"gap": 2}, RequestError, "gap 2"),
        (lambda _: {"ids": {"no id": PULSES}}, RequestError, "cannot be called"),
        (lambda _: {"ids": {"pulse_id": None}}, RequestError, "not known to have ids"),
    ],
)
def test_what_cannot_be_assembled_is_said_in_one_line(
    files: ModuleFiles, prepare: Any, error: type[GaincalError], message: str
) -> None:
    options = {"files": [files.pattern], "ids": IDS} | prepare(files)
    with pytest.raises(error, match=message) as caught:
        assemble(options.pop("files"), files.folder / "run.nxs", **options)
    assert "\n" not in str(caught.value)
    assert not list(files.folder.glob("run.nxs*"))


def test_an_input_is_never_written_over(files: ModuleFiles) -> None:
    with pytest.raises(OutputError, match="exists"):
        assemble([files.pattern], files.file(0), ids=IDS)
    before = digests(files.folder)
    with pytest.raises(RequestError, match="which is read"):
        assemble([files.pattern], files.file(0), ids=IDS, overwrite=True)
    os.link(files.file(1), files.folder / "other.nxs")
    with pytest.raises(RequestError, match="which is read"):
        assemble([files.pattern], files.folder / "other.nxs", ids=IDS, overwrite=True)
    assert digests(files.folder) == before
