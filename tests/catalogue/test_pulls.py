"""The variance of JUNGFRAU, against a million simulated pixels in every stage, through the kernel.

``known N`` tests noise, pedestal and gain (without the shot term), ``together`` all four; see `pulls`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pulls import NOISES, PHOTONS, Simulation, pull, pull_together, simulate

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.formulas import catalog
from gaincal.kernels import blocks

pytestmark = pytest.mark.slow
Array = npt.NDArray[Any]
STAGES = (0, 1, 2)
ERRORS = ("noise", "pedestal_error", "gain_error")
FRAMES = {
    "range": simulate,
    "bright": lambda stage: simulate(stage, (PHOTONS[stage][1],) * 2),
    "dark": lambda stage: simulate(stage, (0.0, 0.0)),
    "pedestal": lambda stage: simulate(stage, (0.0, 0.0), pedestal_error=NOISES[stage]),
}


@cache
def frame(name: str, stage: int) -> Simulation:
    return FRAMES[name](stage)


def bound(s: Simulation, one_photon: float, without: str = "") -> Calibration:
    """The formula of the catalogue; without a term if told so."""
    constants = {"pedestal": s.pedestal, "gain": s.gain, **{n: getattr(s, n) for n in ERRORS if n != without}}
    maps = {n: ConstantMap(values, ((0, 1, 2),)) for n, values in constants.items()}
    maps["one_photon"] = ConstantMap(np.array(one_photon), ())
    inputs = {"photon_energy": np.array(s.photon_energy)}
    layout = RawLayout(len(s.raw), s.raw.shape[1:])
    return bind(catalog.get("jungfrau"), layout, {"raw": s.raw.dtype}, inputs, maps)


def computed(s: Simulation, output: str, one_photon: float = 1.0, without: str = "") -> Array:
    calibration = bound(s, one_photon, without)
    program = calibration.program(output)
    value = np.empty((len(s.raw), s.raw[0].size), program.dtype)
    flags = np.empty(value.shape, np.uint32)
    blocks.evaluate(program, calibration.block(program, {"raw": s.raw}, slice(None)), value, flags, 2)
    assert not flags.any()
    return value.reshape(s.raw.shape).astype(np.float64)


def check(found: tuple[float, float]) -> None:
    mean, width = found
    assert abs(mean) <= 0.01
    assert abs(width - 1) <= 0.01


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FRAMES)
def test_noise_pedestal_and_gain(name: str, stage: int) -> None:
    s = frame(name, stage)
    assert s.raw.size == 10**6
    check(pull(computed(s, "energy") - s.actual, computed(s, "energy_variance", one_photon=0)))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["range", "bright"])
def test_all_four_terms(name: str, stage: int) -> None:
    s = frame(name, stage)
    check(pull_together(computed(s, "energy") - s.expected, computed(s, "energy_variance")))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "term"), [("dark", "noise"), ("pedestal", "pedestal_error"), ("bright", "gain_error")]
)
def test_without_a_term_the_pulls_are_too_wide(name: str, term: str, stage: int) -> None:
    s = frame(name, stage)
    difference = computed(s, "energy") - s.actual
    _, width = pull(difference, computed(s, "energy_variance", one_photon=0, without=term))
    assert width > 1.1


@pytest.mark.parametrize("stage", STAGES)
def test_without_the_shot_term_the_pulls_are_too_wide(stage: int) -> None:
    s = frame("range", stage)
    difference = computed(s, "energy") - s.expected
    _, width = pull_together(difference, computed(s, "energy_variance", one_photon=0))
    assert width > 1.1


@pytest.mark.parametrize("stage", STAGES)
def test_the_shot_term_comes_from_the_signal_of_the_stage_and_not_from_the_word(stage: int) -> None:
    s = frame("range", stage)
    energy = computed(s, "energy")
    shot = computed(s, "energy_variance") - computed(s, "energy_variance", one_photon=0)
    wanted = np.maximum(energy, 0) * s.photon_energy
    rest = computed(s, "energy_variance", one_photon=0)
    assert np.abs(shot - wanted).max() <= 4 * np.finfo(np.float32).eps * (wanted + rest).max()
    # In stages 1 and 2 the word falls where the signal rises: from the word the shot term would fall too.
    word = (s.raw & 0x3FFF).astype(np.float64)
    slope = np.corrcoef(word.ravel(), shot.ravel())[0, 1]
    assert slope > 0.5 if stage == 0 else slope < -0.5


@pytest.mark.parametrize(("stage", "width"), [(0, 0.26), (1, 0.47), (2, 0.89)])
def test_at_zero_signal_the_shot_term_overestimates(stage: int, width: float) -> None:
    """Noise above zero counts as signal; the docs state these numbers."""
    s = frame("dark", stage)
    _, found = pull_together(computed(s, "energy") - s.expected, computed(s, "energy_variance"))
    assert found == pytest.approx(width, abs=0.006)
