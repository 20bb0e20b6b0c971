"""Real frames of a JUNGFRAU module: the photons of another program, found again from raw words."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.cli import main
from gaincal.formulas.catalog import get
from gaincal.lazy import open_calibrated, open_calibrated_dataset
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
FRAMES = DATA / "jungfrau_module" / "frames.h5"
COMPARABLE = 5_242_669

pytestmark = pytest.mark.skipif(not FRAMES.is_file(), reason=f"no real frames: {FRAMES} is not there")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "frames.h5"
    shutil.copyfile(FRAMES, path)
    return path


@pytest.fixture(scope="module")
def content(frames: Path) -> dict[str, Array]:
    with h5py.File(frames) as file:
        return {name: file[name][()] for name in ("raw", "reference_photons", "gain")}


@pytest.fixture(scope="module")
def master(frames: Path) -> Path:
    """Made by the command of the tutorial."""
    target = frames.with_name("master.nxs")
    constants = [f"--constant={name}={frames}::/{name}" for name in ("pedestal", "gain")]
    command = ["embed", f"{frames}::/raw", "-o", str(target), "--formula", "jungfrau", *constants]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--set", "photon_energy=12.4"], prog_name="gaincal")
    assert not caught.value.code, sys.exc_info()
    return target


@pytest.fixture(scope="module")
def comparable(content: dict[str, Array]) -> npt.NDArray[np.bool_]:
    """Words that both programs calibrate: neither saturated nor at the end of the ADC, with a gain."""
    raw, reference = content["raw"], content["reference_photons"]
    good = (raw != 0xC000) & (raw != 0x3FFF) & _with_gain(content) & np.isfinite(reference)
    assert np.count_nonzero(good) == COMPARABLE
    return np.asarray(good)


def _with_gain(content: dict[str, Array]) -> npt.NDArray[np.bool_]:
    stage = np.array([0, 1, 0, 2])[content["raw"] >> 14]
    return np.asarray(np.isfinite(np.choose(stage, list(content["gain"]))))


def furthest(found: Array, content: dict[str, Array], comparable: npt.NDArray[np.bool_]) -> float:
    difference = found.astype(np.float64) - content["reference_photons"]
    return float(np.abs(difference[comparable]).max())


def test_the_view_finds_the_photons_of_another_program(
    master: Path, content: dict[str, Array], comparable: npt.NDArray[np.bool_]
) -> None:
    assert furthest(open_calibrated(master, output="photons").values, content, comparable) < 1e-3


def test_the_applied_file_holds_the_bits_of_the_view(master: Path) -> None:
    done = apply(master, output="photons")
    with h5py.File(done.path) as file:
        applied = file["/entry/data/data"][()]
    assert applied.tobytes() == open_calibrated(master, output="photons").values.tobytes()


def test_double_precision_comes_closer(
    frames: Path, content: dict[str, Array], comparable: npt.NDArray[np.bool_]
) -> None:
    embed(
        f"{frames}::/raw",
        frames.with_name("double.nxs"),
        formula=get("jungfrau").with_compute("float64"),
        constants={name: f"{frames}::/{name}" for name in ("pedestal", "gain")},
        settings={"photon_energy": 12.4},
    )
    photons = open_calibrated(frames.with_name("double.nxs"), output="photons").values
    assert furthest(photons, content, comparable) < 7e-4


def test_flags_are_exactly_those_of_the_words_and_gains(master: Path, content: dict[str, Array]) -> None:
    raw = content["raw"]
    flags = open_calibrated_dataset(master, "photons")["flags"]
    bits = dict(zip(flags.attrs["flag_meanings"].split(), flags.attrs["flag_masks"], strict=True))
    expected = np.zeros(raw.shape, np.uint32)
    reasons = {"saturated": raw == 0xC000, "adc_limit": raw == 0x3FFF, "no_calibration": ~_with_gain(content)}
    for name, raised in reasons.items():
        expected[raised] |= bits[name]
    assert np.count_nonzero(raw == 0xC000) == 31
    assert np.count_nonzero(raw == 0x3FFF) == 10
    np.testing.assert_array_equal(flags.values, expected)


def test_applied_counts_are_the_photons_rounded(master: Path) -> None:
    done = apply(master, output="counts")
    with h5py.File(done.path) as file:
        counts = file["/entry/data/data"][()]
    photons = open_calibrated(master, output="photons").values
    good = np.isfinite(photons)
    np.testing.assert_array_equal(counts[good], np.rint(photons[good]).astype(np.int32))
    assert set(counts[~good].tolist()) == {-(2**31)}
    assert (done.flags["saturated"], done.flags["adc_limit"]) == (31, 10)
