"""Gains from photons: factors of modules and pixels are those that were put in, and calibrate the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from broken_runs import make_run

from gaincal.cli import main
from gaincal.errors import OutputError, RequestError
from gaincal.lazy import open_calibrated
from gaincal.nexus.constantsfile import read_constants
from gaincal.quality.refine import MODULE, NOTHING, PIXEL, half_window, untruncated
from gaincal.quality.statistics import collect
from gaincal.simulate import NOISE, PHOTON_ENERGY, TYPICAL_GAIN, make_module
from gaincal.verbs.constants import diff
from gaincal.verbs.embed import embed
from gaincal.verbs.refine import Refined, refine

Array = npt.NDArray[Any]
SHAPE, FRAMES = (24, 32), 600
OFF = 1.05
"""The gains of all pixels are so much higher than the file says."""
SPREAD = 0.02
SHIFT = 4.0
"""ADU by which all pedestals have moved."""


def simulate(directory: Path, shared: float) -> tuple[Path, Array]:
    """A master with old gains, and by how much each pixel's is off."""
    random = np.random.default_rng(8)
    module = make_module(SHAPE, seed=4)
    truth = OFF * (1 + random.normal(0, SPREAD, SHAPE))
    photons = random.poisson(0.2 * (1 - shared), (FRAMES, *SHAPE))
    halves = random.poisson(0.4 * shared, (FRAMES, *SHAPE))
    energy = PHOTON_ENERGY * (photons + np.where(halves > 0, halves * random.random(halves.shape), 0))
    adc = module.pedestal[0] + SHIFT + module.gain[0] * truth * energy + random.normal(0, NOISE[0], energy.shape)
    words = np.rint(adc).astype(np.uint16)
    words[:, 0, 0] = 0x3FFF
    with h5py.File(directory / "raw.h5", "w") as file:
        file.create_dataset("data", data=words, chunks=(50, *SHAPE), fletcher32=True)
    _embed(directory, "old.nxs", module.pedestal, module.gain)
    return directory / "old.nxs", truth


def _embed(directory: Path, name: str, pedestal: Any, gain: Any, constants_from: Path | None = None) -> None:
    constants = {"pedestal": pedestal} | ({"gain": gain} if gain is not None else {})
    embed(
        directory / "raw.h5",
        directory / name,
        formula="jungfrau",
        constants=constants,
        constants_from=constants_from,
        settings={"photon_energy": PHOTON_ENERGY, "start_time": "2026-03-01T12:00:00Z", "module_serials": "049"},
    )


@pytest.fixture(scope="module", params=[0.0, 0.4], ids=["whole", "shared"])
def refined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Refined, Array]:
    directory = tmp_path_factory.mktemp("refined")
    master, truth = simulate(directory, request.param)
    return directory, refine(master, directory / "gain.nxs"), truth


def factors(directory: Path) -> dict[str, Array]:
    with h5py.File(directory / "gain.nxs") as file:
        group = file["entry/constants/gain_factor"]
        return {name: np.asarray(group[name]) for name in ("gain_factor", "error", "photons", "origin")}


def test_the_factor_of_a_module_is_that_of_its_pixels(refined: tuple[Path, Refined, Array]) -> None:
    _, done, _ = refined
    (module,) = done.modules
    assert (done.output, done.units, done.stage, done.frames) == ("energy", "keV", 0, FRAMES)
    assert module.factor is not None
    assert module.error is not None
    assert module.zero == pytest.approx(SHIFT / TYPICAL_GAIN[0], abs=0.01)
    assert abs(module.factor - OFF) < 0.002 + 4 * module.error
    assert module.pixels == pytest.approx(SHAPE[0] * SHAPE[1], abs=2)


def test_factors_of_pixels_are_right_within_their_errors(refined: tuple[Path, Refined, Array]) -> None:
    directory, _, truth = refined
    found = factors(directory)
    own = found["origin"] == PIXEL
    assert own.mean() > 0.99
    relative = found["gain_factor"][own] / truth[own]
    pulls = (relative / relative.mean() - 1) / found["error"][own]
    assert abs(relative.mean() - 1) < 0.003
    assert 0.7 < pulls.std() < 1.6
    assert found["error"][own].max() <= 0.01
    assert np.std(relative) < 0.4 * SPREAD
    dead = found["origin"][0, 0]
    assert dead == MODULE
    assert found["photons"][0, 0] == 0


def test_refined_gains_calibrate_the_run(refined: tuple[Path, Refined, Array]) -> None:
    """The file is an ordinary file of constants for `embed`."""
    directory, done, _ = refined
    with h5py.File(directory / "old.nxs") as file:
        pedestal = np.asarray(file["entry/instrument/detector/calibration/jungfrau/pedestal/pedestal"])
    _embed(directory, "new.nxs", pedestal, f"{directory / 'gain.nxs'}::/entry/constants/gain/gain")
    again = refine(directory / "new.nxs")
    (before,), (after,) = done.modules, again.modules
    assert after.factor == pytest.approx(1, abs=0.002)
    assert again.path is None
    old, new = (open_calibrated(directory / name).values for name in ("old.nxs", "new.nxs"))
    spread = [
        np.nanstd(np.where(np.abs(v - p) < 1.5, v, np.nan)) for v, p in ((old, before.photon), (new, after.photon))
    ]
    assert spread[1] < spread[0]
    with h5py.File(directory / "gain.nxs") as file:
        gain, stages = file["entry/constants/gain/gain"], file["entry/constants/gain/stage"]
        assert stages[()].tolist() == [0, 1, 2]
        assert gain.attrs["units"] == "ADU/keV"
        np.testing.assert_array_equal(gain[1:], make_module(SHAPE, seed=4).gain[1:])


def test_the_file_says_how_it_was_made(refined: tuple[Path, Refined, Array]) -> None:
    with h5py.File(refined[0] / "gain.nxs") as file:
        parameters = file["entry/constants/parameters"]
        assert parameters["frames"][()] == FRAMES
        assert b"Redford" in parameters["method"][()]
        assert parameters["expected"][()] == pytest.approx(PHOTON_ENERGY)
        assert parameters["expected_units"][()] == b"keV"
        assert parameters["refined_stage"][()] == 0
        assert file["entry/constants/modules/factor"].shape == (1,)
        assert file["entry/constants/modules/zero_over_time"].shape[0] == 1


def test_the_file_is_a_set_of_constants(refined: tuple[Path, Refined, Array]) -> None:
    directory, _, _ = refined
    held = read_constants(directory / "gain.nxs")
    assert held.validity == {"start_time": "2026-03-01T12:00:00Z", "module_serials": "049"}
    assert held.labels("gain") == {"stage": (0, 1, 2)}
    assert held.pixel_mask is None
    assert not diff(directory / "gain.nxs", directory / "gain.nxs").lacking
    with h5py.File(directory / "old.nxs") as file:
        pedestal = np.asarray(file["entry/instrument/detector/calibration/jungfrau/pedestal/pedestal"])
    _embed(directory, "by_hand.nxs", pedestal, f"{directory / 'gain.nxs'}::/entry/constants/gain/gain")
    _embed(directory, "from_set.nxs", pedestal, None, directory / "gain.nxs")
    values = [open_calibrated(directory / name).values for name in ("by_hand.nxs", "from_set.nxs")]
    np.testing.assert_array_equal(*values)


def test_modules_alone_can_be_asked_for(tmp_path: Path) -> None:
    master, _ = simulate(tmp_path, 0.0)
    refine(master, tmp_path / "gain.nxs", per_pixel=False, frames=200)
    found = factors(tmp_path)
    assert (found["origin"] == MODULE).all()
    assert len(np.unique(found["gain_factor"])) == 1


def test_each_module_has_its_own_factor(tmp_path: Path) -> None:
    master = make_run(tmp_path, gain=1.08)
    done = refine(master, tmp_path / "gain.nxs")
    wanted = [1.0, 1.08, 1.0]
    assert [m.factor for m in done.modules] == pytest.approx(wanted, abs=0.004)
    found = factors(tmp_path)
    np.testing.assert_allclose(found["gain_factor"].mean((1, 2)), wanted, atol=0.004)


def test_a_module_without_photons_keeps_its_gain(tmp_path: Path) -> None:
    done = refine(make_run(tmp_path, missing=lambda _, module: module == 0), tmp_path / "gain.nxs")
    assert done.modules[0].factor is None
    assert any("module 0" in note for note in done.notes)
    found = factors(tmp_path)
    assert (found["gain_factor"][0] == 1).all()
    assert (found["origin"][0] == NOTHING).all()
    assert np.isnan(found["error"][0]).all()


def test_a_drift_is_told_slice_by_slice(tmp_path: Path) -> None:
    step = 12.0
    path = make_run(
        tmp_path, spoil=lambda w, _: w + np.uint16(step) * np.arange(len(w), dtype=np.uint16)[:, None, None]
    )
    (_, odd, _) = refine(path).modules
    places = np.array([centre for _, _, centre, _ in odd.zero_over_time], float)
    np.testing.assert_allclose(places, step / TYPICAL_GAIN[0] * np.arange(len(places)), atol=0.06)
    assert odd.drift == pytest.approx(places.max() - places.min())


def test_progress_is_told_twice(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    refine(make_run(tmp_path), frames=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


# --- refusals, and the command --------------------------------------------------------------


def test_without_photons_there_is_nothing_to_refine(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="photon_energy"):
        refine(make_run(tmp_path, "a", settings={}))
    with pytest.raises(RequestError, match="no module shows a peak"):
        refine(make_run(tmp_path, "b", missing=lambda *_: True), tmp_path / "gain.nxs")
    assert not (tmp_path / "gain.nxs").exists()


def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "gain.nxs").write_bytes(b"precious")
    master = make_run(tmp_path)
    with pytest.raises(OutputError):
        refine(master, tmp_path / "gain.nxs")
    with pytest.raises(RequestError, match="which is read"):
        refine(master, master, overwrite=True)
    assert (tmp_path / "gain.nxs").read_bytes() == b"precious"


def test_the_command_prints_expected_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    master = make_run(tmp_path, gain=1.08)
    for options, check in (([], "module 1"), (["--json", "--per-module"], "")):
        with pytest.raises(SystemExit) as caught:
            main(["refine", str(master), "-o", str(tmp_path / "g.nxs"), "--overwrite", *options], prog_name="gaincal")
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert check in shown
    found = json.loads(shown)
    assert found["modules"][1]["factor"] == pytest.approx(1.08, abs=0.005)


# --- windows --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3])
def test_a_window_does_not_draw_a_mean_to_its_centre(shift: float) -> None:
    random = np.random.default_rng(1)
    values = random.normal(shift, 0.3, 400_000)
    inside = values[np.abs(values) < 0.8]
    assert untruncated(np.array([inside.mean()]), 0.3, 0.8)[0] == pytest.approx(shift, abs=0.003)
    assert inside.mean() != pytest.approx(shift, abs=0.003) or shift == 0


def test_windows_of_two_peaks_stay_apart(tmp_path: Path) -> None:
    from gaincal.nexus.read import open_master
    from gaincal.quality.found import find_peaks

    master = open_master(make_run(tmp_path))
    with master.resolver:
        zero = find_peaks(collect(master))[0].zero
    assert zero is not None
    assert half_window(zero, PHOTON_ENERGY) < PHOTON_ENERGY / 2
    assert half_window(zero, 0.1) == pytest.approx(0.045)
