"""Which reasons count, and how uncertain a value is: chosen when somebody reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from catalogue import independent
from click.testing import CliRunner

from gaincal import apply, embed, open_calibrated, open_calibrated_dataset
from gaincal.cli import main
from gaincal.errors import BindError, RequestError
from gaincal.simulate import make_module

Array = npt.NDArray[Any]
SHAPE = (16, 48)
FRAMES = 4
MAPS = ("pedestal", "gain")
DEAD, NOISY = 1 << 1, 1 << 4
NOISE = np.array([15.0, 2.0, 2.0], np.float32).reshape(3, 1, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reasons")
    rng = np.random.default_rng(11)
    module = make_module(SHAPE)
    words = rng.integers(2000, 9000, (FRAMES, *SHAPE), dtype=np.uint16)
    words[:, 3] |= rng.choice(np.array([0x4000, 0xC000], np.uint16), (FRAMES, SHAPE[1]))
    words[:, 0, :4], words[:, 0, 4:6] = 0xC000, 0x3FFF
    words[0, 1, :] = 0x8000
    mask = np.zeros(SHAPE, np.uint32)
    mask[5, :10], mask[6, :10], mask[7, 0] = DEAD, NOISY, DEAD | NOISY
    with h5py.File(folder / "raw.h5", "w") as file:
        file["raw"] = words
    np.save(folder / "mask.npy", mask)
    maps = {"pedestal": module.pedestal, "gain": module.gain}
    maps |= {"noise": np.broadcast_to(NOISE, (3, *SHAPE)).copy(), "gain_error": np.abs(module.gain) * np.float32(0.005)}
    master = folder / "master.nxs"
    embed(
        folder / "raw.h5",
        master,
        formula="jungfrau",
        constants=maps,
        settings={"photon_energy": 12.4},
        mask=folder / "mask.npy",
    )
    return {"master": master, "words": words, "mask": mask, **maps}


def values(made: dict[str, Any], *reasons: str, output: str = "energy", **options: Any) -> Array:
    with open_calibrated(made["master"], output, reasons=list(reasons), **options) as array:
        return np.asarray(array.values)


def test_all_reasons_count_if_none_is_chosen(made: dict[str, Any]) -> None:
    with open_calibrated_dataset(made["master"]) as found:
        bad = np.isnan(found["energy"].values)
        np.testing.assert_array_equal(bad, found["flags"].values != 0)
    assert bad[:, 5, :10].all()
    assert bad[:, 0, :6].all()


def test_only_the_chosen_flags_count(made: dict[str, Any]) -> None:
    found = values(made, "saturated", "no_calibration")
    assert np.isnan(found[:, 0, :4]).all()
    assert not np.isnan(found[:, 0, 4:6]).any()
    assert not np.isnan(found[:, 5:8]).any()


def test_reasons_of_the_mask_are_told_apart(made: dict[str, Any]) -> None:
    bad = np.isnan(values(made, "dead"))
    np.testing.assert_array_equal(bad[:, 5:8], np.broadcast_to((made["mask"] & DEAD != 0)[5:8], (FRAMES, 3, SHAPE[1])))
    assert np.isnan(values(made, "masked"))[:, 5:8].sum() == FRAMES * 21
    assert np.isnan(values(made, "dead", "noisy"))[:, 5:8].sum() == FRAMES * 21


def test_what_has_no_value_has_none_whatever_counts(made: dict[str, Any]) -> None:
    found = values(made, "saturated")
    assert np.isnan(found[0, 1]).all()  # code 2: no stage, no number


def test_no_reason_at_all(made: dict[str, Any]) -> None:
    found = values(made)
    assert not np.isnan(found[:, 5:8]).any()
    assert np.isnan(found[0, 1]).all()


def test_an_unknown_reason_is_refused_and_all_are_listed(made: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"'hot'.*saturated.*noisy"):
        values(made, "hot")


def test_a_file_without_a_mask_cannot_tell_its_reasons(made: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = made["words"]
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau", constants={n: made[n] for n in MAPS})
    with pytest.raises(RequestError, match="no pixel mask"):
        open_calibrated(tmp_path / "m.nxs", reasons=["dead"])
    with pytest.raises(RequestError, match="'virtual'"):
        values(made, "virtual")


def test_hardly_any_value_is_worth_a_note(made: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = made["words"]
    maps = {"pedestal": made["pedestal"], "gain": np.zeros_like(made["gain"])}
    done = embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau", constants=maps)
    assert any("100 % of the pixels looked at have no value: no_calibration" in note for note in done.notes)


def test_apply_takes_reasons_and_gives_the_same_bits(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.nxs"
    arguments = ["apply", made["master"], "-o", out, "--reasons", "dead,saturated"]
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    with h5py.File(out) as file:
        assert file["/entry/data/data"][()].tobytes() == values(made, "dead", "saturated").tobytes()
        assert file["/entry/process/parameters/reasons"][()].decode() == "dead saturated"


# uncertainty


def test_the_variance_is_that_of_the_terms_that_are_there(made: dict[str, Any]) -> None:
    with open_calibrated_dataset(made["master"]) as found:
        variance, stage = found["energy_variance"].values, found["stage"].values
        energy, flags = found["energy"].values, found["flags"].values
        assert found["energy_variance"].attrs["units"] == "keV^2"
    good = flags == 0
    wanted = independent.variance(
        energy.astype(float),
        stage,
        made["gain"],
        noise=made["noise"],
        gain_error=made["gain_error"],
        photon_energy=12.4,
    )
    np.testing.assert_allclose(variance[good], wanted[good], rtol=1e-4)
    assert np.isnan(variance[~good]).all()
    assert set(np.unique(stage[good])) == {0, 1, 2}


def test_apply_writes_standard_deviations(made: dict[str, Any], tmp_path: Path) -> None:
    apply(made["master"], tmp_path / "out.nxs", errors=True)
    with open_calibrated_dataset(made["master"]) as found, h5py.File(tmp_path / "out.nxs") as file:
        np.testing.assert_array_equal(file["/entry/data/data_errors"][()], np.sqrt(found["energy_variance"].values))
        assert file["/entry/data/data_errors"].attrs["units"] == "keV"
        assert file["/entry/data"].attrs["signal"] == "data"


def test_errors_of_what_has_no_variance_are_refused(made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no variance of counts.*energy"):
        apply(made["master"], tmp_path / "out.nxs", output="counts", errors=True)
    assert not (tmp_path / "out.nxs").exists()


def test_without_photon_energy_there_is_no_variance(made: dict[str, Any], tmp_path: Path) -> None:
    maps = {n: made[n] for n in ("pedestal", "gain")}
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = made["words"]
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau", constants=maps)
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        assert "energy_variance" not in found
    with pytest.raises(RequestError, match="'energy_variance' needs photon_energy"):
        apply(tmp_path / "m.nxs", tmp_path / "out.nxs", errors=True)


def test_info_counts_pixels_per_reason(made: dict[str, Any]) -> None:
    shown = CliRunner().invoke(main, ["info", str(made["master"])])
    assert "11 pixels dead" in shown.output
    assert "11 pixels noisy" in shown.output
    assert "gap" not in shown.output


# other programs


def test_a_profile_gives_what_another_program_makes_of_the_words(made: dict[str, Any], tmp_path: Path) -> None:
    with open_calibrated(made["master"], profile="aare") as array:
        found = np.asarray(array.values)
        assert array.attrs["units"] == "keV"
    words = made["words"]
    stage = np.array([0, 1, 0, 2])[words >> 14]  # that program takes code 2 for G0
    place = (stage, *np.indices(SHAPE))
    pedestal, gain = made["pedestal"].astype(float)[place], made["gain"].astype(float)[place]
    np.testing.assert_array_equal(found, ((words & 0x3FFF) - pedestal) / gain)
    apply(made["master"], tmp_path / "out.nxs", profile="aare")
    with h5py.File(tmp_path / "out.nxs") as file:
        assert file["/entry/data/data"][()].tobytes() == found.tobytes()
        assert file["/entry/process/parameters/formula"][()].decode().startswith("aare")


def test_an_unknown_profile_is_refused_and_all_are_listed(made: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"'xds'.*aare.*jungfrau_utils"):
        open_calibrated(made["master"], profile="xds")


def test_a_profile_of_another_detector_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = np.zeros((1, *SHAPE), np.uint16)
    maps = {"scaling_factor": np.ones(SHAPE)}
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="linear", constants=maps)
    with pytest.raises((RequestError, BindError), match=r"profile 'aare'|needs pedestal"):
        open_calibrated(tmp_path / "m.nxs", profile="aare")
