"""LPD, JUNGFRAU and Gotthard-II of the European XFEL: from a run folder to values that an independent NumPy gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from catalogue import independent

from gaincal import embed, open_calibrated_dataset
from gaincal.formulas.program import MISSING_BIT

pytestmark = pytest.mark.slow
Array = npt.NDArray[Any]
LPD, JF, STRIPS = "FXE_DET_LPD1M-1", "SPB_IRDA_JF1M", "SA1_XTD9_HIREX/DET/GOTTHARD2_MASTER"
MISSING = 1 << MISSING_BIT


@pytest.fixture(scope="module")
def write() -> Callable[..., None]:
    """The mock writer of extra-data."""
    pytest.importorskip("extra_data", reason="extra-data, which writes the facility's layout, is not installed")
    from extra_data.tests.mockdata import write_file

    def write(path: Path, device: Any, trains: int, chunksize: int) -> None:
        write_file(str(path), [device], trains, format_version="1.2", chunksize=chunksize)

    return write


def maps(rng: np.random.Generator, shape: tuple[int, ...], gain: str) -> dict[str, Array]:
    level = "pedestal" if gain == "gain" else "offset"
    return {level: rng.normal(900, 50, shape), gain: rng.uniform(0.8, 1.2, shape)}


def save(folder: Path, constants: dict[str, Array], cells: Array | None) -> dict[str, str]:
    with h5py.File(folder / "constants.h5", "w") as file:
        for name, values in constants.items():
            file[f"{name}/{name}"] = values
            if cells is not None:
                file[f"{name}/cell"] = cells
    return {name: f"{folder}/constants.h5::/{name}" for name in constants}


def check(found: Any, name: str, wanted: independent.Calibrated) -> None:
    """The same stages and values wherever nothing is wrong, and no value where the other has none."""
    values = found[name].values
    good = np.isfinite(wanted.value) & (found["flags"].values == 0)
    assert good.mean() > 0.5
    np.testing.assert_array_equal(found["stage"].values[good], wanted.stage[good])
    np.testing.assert_allclose(values[good], wanted.value[good], rtol=1e-4, atol=1e-2)
    assert np.isnan(values[~np.isfinite(wanted.value)]).all()


def test_lpd(tmp_path: Path, write: Callable[..., None]) -> None:
    from extra_data.tests.mockdata.detectors import LPDModule

    rng = np.random.default_rng(1)
    words = rng.integers(0, 1 << 14, (8, 16, 256, 256), dtype=np.uint16)
    (tmp_path / "run").mkdir()
    for module in (0, 3):
        path = tmp_path / "run" / f"RAW-R0001-LPD{module:02d}-S00000.h5"
        write(path, LPDModule(f"{LPD}/DET/{module}CH0", frames_per_train=4), 2, 32)
        with h5py.File(path, "r+") as file:
            image = file[f"INSTRUMENT/{LPD}/DET/{module}CH0:xtdf/image"]
            image["data"][...] = words[:, module].reshape(image["data"].shape)
            image["cellId"][...] = np.tile([5, 2, 9, 7], 2).reshape(image["cellId"].shape)
    labels = np.array([2, 5, 9])
    constants = maps(rng, (3, 3, 16, 256, 256), "relative_gain")
    given = save(tmp_path, constants, labels)
    embed(tmp_path / "run", tmp_path / "m.nxs", constants=given)
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        assert found["signal"].shape == (8, 16, 256, 256)
        assert (found["flags"].isel(module=[1, 2, 15]).values == MISSING).all()
        for module in (0, 3):
            own = {n: v[:, :, module] for n, v in constants.items()}
            cell = np.tile([5, 2, 9, 7], 2)
            wanted = independent.lpd(words[:, module], cell, own["offset"], own["relative_gain"], labels)
            check(found.isel(module=module), "signal", wanted)


def test_jungfrau(tmp_path: Path, write: Callable[..., None]) -> None:
    from extra_data.tests.mockdata.jungfrau import JUNGFRAUModule

    rng = np.random.default_rng(2)
    adc = rng.integers(1, 1 << 14, (8, 16, 512, 1024), dtype=np.uint16)
    code = rng.choice(np.array([0, 1, 3], np.uint8), adc.shape)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "RAW-R0001-JNGFR02-S00000.h5"
    write(path, JUNGFRAUModule(f"{JF}/DET/JNGFR02", raw=True), 1, 1)
    cells = (np.arange(16) + 15) % 16
    cells[4] = 255
    with h5py.File(path, "r+") as file:
        data = file[f"INSTRUMENT/{JF}/DET/JNGFR02:daqOutput/data"]
        data["memoryCell"][:] = cells
        data["adc"][0, :8], data["gain"][0, :8] = adc[:, 0], code[:, 0]
        data["adc"][0, 8:], data["gain"][0, 8:] = 0, 0
    labels = np.arange(16)
    modules = 2
    pedestal = rng.normal(900, 50, (3, 16, 1, 512, 1024)).astype(np.float32)
    gain = rng.uniform(0.8, 1.2, pedestal.shape).astype(np.float32)
    constants = {"pedestal": pedestal, "gain": gain}
    for name, values in constants.items():
        with h5py.File(tmp_path / f"{name}1.h5", "w") as file:  # one file per module; the others have none
            file[name], file["cell"] = values[:, :, 0], labels
    given = {n: f"{tmp_path}/{n}{{module}}.h5::/{n}" for n in constants}
    done = embed(tmp_path / "run", tmp_path / "m.nxs", constants=given, settings={"photon_energy": 9.3})
    assert any("jungfrau_split_modules" in note for note in done.notes)
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        assert found["energy"].shape[1] == modules
        frames = found.isel(module=1, frame=slice(0, 7))
        kept = np.delete(np.arange(8), 4)  # the place without a cell was received by nobody
        wanted = independent.jungfrau_split(
            adc[kept, 0], code[kept, 0], cells[kept], pedestal[:, :, 0], gain[:, :, 0], labels
        )
        check(frames, "energy", wanted)
        assert (found["flags"].isel(module=0, frame=0).values == MISSING).all()


def test_gotthard2(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    trains, frames = 3, 4
    adc = rng.integers(0, 1 << 12, (trains, frames, 1280), dtype=np.uint16)
    code = rng.choice(np.array([0, 1, 3], np.uint8), adc.shape)
    folder = tmp_path / "run"
    folder.mkdir()
    source = f"{STRIPS}:daqOutput"
    with h5py.File(folder / "RAW-R0001-GH201-S00000.h5", "w") as file:
        ids = np.arange(10, 10 + trains, dtype="u8")
        file["INDEX/trainId"] = ids
        file.create_group("METADATA")
        for name, values in {"first": np.arange(trains), "count": np.ones(trains)}.items():
            file[f"INDEX/{source}/data/{name}"] = values.astype("u8")
        data = file.create_group(f"INSTRUMENT/{source}/data")
        data["trainId"], data["adc"], data["gain"] = ids, adc, code
        data["frameNumber"] = np.arange(1, trains * frames + 1, dtype="u8").reshape(trains, frames)
    constants = {"pedestal": rng.normal(900, 50, (4, 1280)), "gain": rng.uniform(0.8, 1.2, (4, 1280))}
    given = save(tmp_path, constants, None)
    done = embed(folder, tmp_path / "m.nxs", constants=given, settings={"photon_energy": 9.3})
    assert any("gotthard2_split" in note for note in done.notes)
    words = (code.astype(np.uint16) << 12 | adc).reshape(-1, 1280)
    wanted = independent.gotthard2(words, constants["pedestal"][:3], constants["gain"][:3])
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        check(found, "energy", wanted)
        assert found["train_id"].values.tolist() == np.repeat(ids, frames).tolist()
