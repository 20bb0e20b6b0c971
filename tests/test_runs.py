"""Runs as facilities write them, from the files of the DAQ to calibrated frames."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
from catalogue import independent
from click.testing import CliRunner, Result

from gaincal import apply, embed, open_calibrated, open_calibrated_dataset
from gaincal.cli import main
from gaincal.errors import FileError, RequestError
from gaincal.formulas.program import MISSING_BIT

Array = npt.NDArray[Any]
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
DARK = DATA / "jungfrau_dark_raw"
PIXELS = (512, 1024)
GAIN = np.array([41.0, -1.44, -0.1145, 100.0], np.float32)
MISSING = 1 << MISSING_BIT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def maps(stages: int, modules: int | None = None, seed: int = 0) -> tuple[Array, Array]:
    """Pedestals and gains (stage, [module,] y, x)."""
    rng = np.random.default_rng(seed)
    shape = (stages, *(() if modules is None else (modules,)), *PIXELS)
    level = np.array([2900, 15000, 15200, 2500], np.float32)[:stages].reshape(-1, *(1,) * (len(shape) - 1))
    gain = GAIN[:stages].reshape(level.shape)
    pedestal = level + rng.normal(0, 20, shape).astype(np.float32)
    return pedestal.astype(np.float32), (gain * rng.uniform(0.98, 1.02, shape).astype(np.float32)).astype(np.float32)


# slsDetectorPackage


@pytest.mark.skipif(not DARK.is_dir(), reason=f"no real frames: {DARK} is not there")
def test_real_dark_frames_of_slsdet(tmp_path: Path) -> None:
    pedestal, gain = maps(3)
    np.save(tmp_path / "pedestal.npy", pedestal)
    np.save(tmp_path / "gain.npy", gain)
    constants = [f"--constant={n}={tmp_path / n}.npy" for n in ("pedestal", "gain")]
    made = run("embed", DARK, "-o", tmp_path / "m.nxs", *constants, "--set", "photon_energy=12.4")
    assert made.exit_code == 0, made.output
    assert "recognised: slsDetectorPackage" in made.output
    with open_calibrated_dataset(tmp_path / "m.nxs") as frames:
        raw, energy = frames["raw"].values, frames["energy"].values
        assert frames["frame_number"].values.tolist() == list(range(1, 11))
    assert abs(raw.mean() - 2912) < 1
    assert abs(raw.std(axis=0).mean() - 27) < 3
    first = (raw >> 14 == 0) & (raw != 0x3FFF)
    assert np.count_nonzero(~first) < 100
    np.testing.assert_array_equal(energy[first], ((raw.astype(np.float32) - pedestal[0]) / gain[0])[first])
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not DARK.is_dir(), reason=f"no real frames: {DARK} is not there")
def test_wide_pixels_of_a_run(tmp_path: Path) -> None:
    pedestal, gain = maps(3)
    given = {"pedestal": pedestal, "gain": gain}
    settings = {"photon_energy": 12.4, "largest_area": 1}
    embed(DARK, tmp_path / "m.nxs", formula="jungfrau_wide", constants=given, settings=settings)
    area = np.ones(PIXELS)
    area[[255, 256]] *= 2
    area[:, [255, 256, 511, 512, 767, 768]] *= 2
    reasons = ["wide"]
    with (
        open_calibrated(tmp_path / "m.nxs", "energy", reasons=[]) as whole,
        open_calibrated(tmp_path / "m.nxs", "energy_per_area", reasons=[]) as share,
        open_calibrated(tmp_path / "m.nxs", "energy", reasons=reasons) as masked,
    ):
        np.testing.assert_array_equal(share[0].values * area, whole[0].values)
        np.testing.assert_array_equal(np.isnan(masked[0].values), (area > 1) | np.isnan(whole[0].values))


# SwissFEL

JF = "JF07T16V01"


def swissfel(path: Path, words: Array, high: Array, good: Array, modules: Array) -> None:
    frames = len(words)
    with h5py.File(path, "w") as file:
        file["general/detector_name"] = JF
        group = file.create_group(f"data/{JF}")
        storage = dict(hdf5plugin.Bitshuffle(cname="lz4"))
        group.create_dataset("data", data=words, chunks=(1, *words.shape[1:]), **storage)
        group["pulse_id"] = (9_000_000_000 + 10 * np.arange(frames, dtype=np.uint64))[:, None]
        group["frame_index"] = np.arange(frames, dtype=np.uint64)[:, None]
        group["daq_rec"] = (np.uint32(0xF00) | high.astype(np.uint32))[:, None]
        group["is_good_frame"] = good.astype(np.uint8)[:, None]
        group["meta/module_map"] = modules


def test_sixteen_modules_change_their_gain_mode_in_the_middle(tmp_path: Path) -> None:
    frames, modules, change = 6, 16, 4
    rng = np.random.default_rng(1)
    words = rng.integers(2000, 5000, (frames, (modules - 1) * 512, 1024), dtype=np.uint16)
    switched = rng.random(words.shape) < 0.02
    words[switched] |= rng.choice(np.array([0x4000, 0x8000, 0xC000], np.uint16), int(switched.sum()))
    high, good = np.arange(frames) >= change, np.arange(frames) != 2
    present = np.arange(modules)
    present[5] = -1
    present[6:] -= 1
    swissfel(tmp_path / "run.h5", words, high, good, present)
    pedestal, gain = maps(4, modules)
    for name, values in (("pedestal", pedestal), ("gain", gain)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:  # PSI: /gains, modules below each other
            file["gains"] = values.reshape(4, modules * 512, 1024)
    given = {n: tmp_path / f"{n}.h5" for n in ("pedestal", "gain")}
    done = embed(tmp_path / "run.h5", tmp_path / "m.nxs", constants=given, settings={"photon_energy": 12.4})
    assert any("jungfrau_hg0_modules" in note for note in done.notes)
    whole = np.insert(words.reshape(frames, modules - 1, *PIXELS), 5, 0, axis=1)
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        assert found["pulse_id"].values[3] == 9_000_000_030
        assert found["is_good_frame"].values.tolist() == good.tolist()
        assert found["high_gain"].dims == ("frame", "module")
        assert found["high_gain"].values[:, 3].tolist() == high.tolist()
        for module in (0, 4, 6, 15):
            wanted = independent.jungfrau_hg0(whole[:, module], high.astype(int), pedestal[:, module], gain[:, module])
            part = found.isel(module=module)
            np.testing.assert_array_equal(part["stage"].values, wanted.stage)
            voided = (wanted.value != wanted.value) | np.logical_or.reduce(list(wanted.bad.values()))
            energy = part["energy"].values
            voided |= part["flags"].values != 0
            np.testing.assert_allclose(energy[~voided], wanted.value[~voided], rtol=2e-5, atol=1e-3)
            assert set(np.unique(part["stage"].values[change:])) <= {-1, 1, 2, 3}
            assert set(np.unique(part["stage"].values[:change])) <= {-1, 0, 1, 2}
        assert (found["flags"].isel(module=5).values == MISSING).all()
        assert np.isnan(found["energy"].isel(module=5).values).all()
    result = apply(tmp_path / "m.nxs", tmp_path / "out.nxs", output="counts", dtype="int16")
    assert result.frames == frames


def test_what_is_not_used_of_a_run_is_said(tmp_path: Path) -> None:
    words = np.zeros((2, 16 * 512, 1024), np.uint16)
    swissfel(tmp_path / "run.h5", words, np.ones(2), np.ones(2), np.arange(16))
    pedestal, gain = maps(3, 16)
    given = {"pedestal": pedestal, "gain": gain}
    done = embed(tmp_path / "run.h5", tmp_path / "m.nxs", formula="jungfrau_modules", constants=given)
    assert any("records high_gain" in note for note in done.notes)


@pytest.mark.parametrize(("source", "error"), [("euxfel", RequestError), ("nobody", RequestError)])
def test_a_run_of_another_facility_is_refused(tmp_path: Path, source: str, error: type[Exception]) -> None:
    swissfel(tmp_path / "run.h5", np.zeros((1, 16 * 512, 1024), np.uint16), np.zeros(1), np.ones(1), np.arange(16))
    with pytest.raises(error, match=source):
        embed(tmp_path / "run.h5", tmp_path / "m.nxs", constants={}, source=source)
    assert not (tmp_path / "m.nxs").exists()


def test_a_folder_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="name the file of the words"):
        embed(tmp_path, tmp_path / "m.nxs", formula="jungfrau", constants={})


def test_without_a_formula_a_plain_file_needs_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = np.zeros((1, *PIXELS), np.uint16)
    with pytest.raises(RequestError, match="name a formula"):
        embed(tmp_path / "raw.h5", tmp_path / "m.nxs", constants={})


def test_a_run_has_no_place_for_a_calibration(tmp_path: Path) -> None:
    swissfel(tmp_path / "run.h5", np.zeros((1, 16 * 512, 1024), np.uint16), np.zeros(1), np.ones(1), np.arange(16))
    with pytest.raises(RequestError, match="not in place"):
        embed(tmp_path / "run.h5", None, constants={}, in_place=True)


# European XFEL

AGIPD = "SPB_DET_AGIPD1M-1"
LABELS = np.random.default_rng(7).permutation(352)[:24]
READ = (0, 3, 17, 200, 351)
ABSENT = (4, 11)
TRAINS = 2
RANGES = {"thresholds": (2, 4000, 8000), "offset": (3, 3500, 4500), "relative_gain": (3, 0.9, 40)}
AGIPD_SCRIPT = """
import json, sys
import numpy as np
from gaincal import embed, open_calibrated_dataset
import gaincal.nexus.group, gaincal.sources.constants
gaincal.nexus.group.MAX_LOADED_BYTES = gaincal.sources.constants.MAX_LOADED_BYTES = 128 << 20
folder, read = sys.argv[1], json.loads(sys.argv[2])
constants = {n: f"{folder}/constants.h5::/{n}/{n}" for n in ("thresholds", "offset", "relative_gain")}
done = embed(f"{folder}/run", f"{folder}/m.nxs", constants=constants, settings={"adu_per_kev": 0.8})
with open_calibrated_dataset(f"{folder}/m.nxs") as found:
    for name in ("signal", "flags", "stage"):
        np.save(f"{folder}/{name}.npy", np.stack([found[name][k].values for k in read]))
    ids = {n: found[n].values[read].tolist() for n in ("train_id", "pulse_id", "cell")}
status = open("/proc/self/status").read()  # getrusage would tell the peak of the parent
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"notes": done.notes, "ids": ids, "peak": peak}))
"""


@pytest.fixture(scope="module")
def agipd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trains of 352 cells of fourteen modules, written by extra-data; words in the frames that are read."""
    pytest.importorskip("extra_data", reason="extra-data, which writes the facility's layout, is not installed")
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    folder = tmp_path_factory.mktemp("agipd")
    (folder / "run").mkdir()
    rng = np.random.default_rng(2)
    cells = np.resize(LABELS, 352)  # sparse labels, in changed order
    cells[17] = next(c for c in range(352) if c not in LABELS)  # a cell without constants
    words = rng.integers(3000, 9000, (len(READ), 16, 2, 512, 128), dtype=np.uint16)
    for module in set(range(16)) - set(ABSENT):
        path = folder / "run" / f"RAW-R0001-AGIPD{module:02d}-S00000.h5"
        device = AGIPDModule(f"{AGIPD}/DET/{module}CH0", frames_per_train=352)
        write_file(str(path), [device], TRAINS, format_version="1.2", chunksize=32)
        with h5py.File(path, "r+") as file:
            image = file[f"INSTRUMENT/{AGIPD}/DET/{module}CH0:xtdf/image"]
            image["cellId"][...] = np.tile(cells, TRAINS).reshape(image["cellId"].shape)
            for place, frame in enumerate(READ):
                image["data"][frame] = words[place, module]
    held = {}
    with h5py.File(folder / "constants.h5", "w") as file:
        for name, planes, low, high in (
            ("thresholds", 2, 4000, 8000),
            ("offset", 3, 3500, 4500),
            ("relative_gain", 3, 0.9, 40),
        ):
            values = rng.uniform(low, high, (planes, len(LABELS), 16, 512, 128)).astype(np.float32)
            values = np.sort(values, axis=0) if name == "thresholds" else values
            file[f"{name}/{name}"] = values
            file[f"{name}/cell"], held[name] = LABELS, values
            file[f"{name}/{'threshold' if planes == 2 else 'stage'}"] = np.arange(planes)
    script = [sys.executable, "-c", AGIPD_SCRIPT, str(folder), json.dumps(READ)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = {n: np.load(folder / f"{n}.npy") for n in ("signal", "flags", "stage")}
    return {"words": words, "cells": cells, **held, **results, **json.loads(done.stdout)}


@pytest.mark.slow
def test_agipd_has_the_right_values(agipd: dict[str, Any]) -> None:
    words, cell = agipd["words"], np.broadcast_to(agipd["cells"][list(READ)][:, None], (len(READ), 16))
    present = [m for m in range(16) if m not in ABSENT]
    wanted = independent.agipd(
        words[:, present, 0],
        words[:, present, 1],
        cell[:, present],
        agipd["thresholds"][:, :, present],
        agipd["offset"][:, :, present],
        agipd["relative_gain"][:, :, present],
        LABELS,
    )
    bad = wanted.bad["no_calibration"]
    assert bad[READ.index(17)].all()
    assert not bad[READ.index(200)].any()
    signal, flags = agipd["signal"][:, present], agipd["flags"][:, present]
    np.testing.assert_array_equal(flags != 0, bad)
    np.testing.assert_array_equal(np.isnan(signal), bad)
    np.testing.assert_allclose(signal[~bad], wanted.value[~bad], rtol=1e-5, atol=1e-2)
    np.testing.assert_array_equal(agipd["stage"][:, present], wanted.stage)
    assert set(np.unique(wanted.stage)) == {-1, 0, 1, 2}


@pytest.mark.slow
def test_absent_modules_of_agipd_are_missing_and_named(agipd: dict[str, Any]) -> None:
    assert (agipd["flags"][:, list(ABSENT)] == MISSING).all()
    assert np.isnan(agipd["signal"][:, list(ABSENT)]).all()
    assert any("4" in note and "11" in note and "module" in note for note in agipd["notes"])


@pytest.mark.slow
def test_agipd_fits_into_memory(agipd: dict[str, Any]) -> None:
    assert agipd["peak"] < 2 << 30


@pytest.mark.slow
def test_frames_of_agipd_have_their_ids(agipd: dict[str, Any]) -> None:
    assert len(set(agipd["ids"]["train_id"])) == 1
    assert agipd["ids"]["pulse_id"] == sorted(agipd["ids"]["pulse_id"])
    assert len(set(agipd["ids"]["pulse_id"])) == len(READ)
    for place, cells in enumerate(agipd["ids"]["cell"]):
        wanted = [65535 if m in ABSENT else int(agipd["cells"][READ[place]]) for m in range(16)]
        assert cells == wanted
