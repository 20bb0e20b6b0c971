"""Pull tests of the variance: JUNGFRAU words of pixels whose energy is known, in numbers.

A pull is (value - truth) / sigma. If value and variance are right, pulls have mean 0 and width 1. Four definitions:

``as stored``   truth = expected energy; sigma of each pixel from its *measured* value. Biased at low counts: a pixel
                that got few photons also claims a small sigma (the mean is near -1/2 / sqrt(photons)).
``known N``     truth = energy of the photons that came; the shot term is left out. Tests the other three terms.
``expected``    truth = expected energy; sigma at the *expected* value. Right at any count, but tests the formula, not
                the variance that a file would give.
``together``    truth = expected energy; the differences of all pixels against the *mean* variance of all. Measured
                values, and yet no bias, since the variance is nearly linear in the value. What a test should use.

``python tests/catalogue/pulls.py`` prints all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from independent import Floats, jungfrau, variance

PHOTON_ENERGY = 12.4
"""keV"""
CODES = (0, 1, 3)
PEDESTALS = (2500.0, 15000.0, 15000.0)
"""ADU"""
GAINS = (41.0, -1.44, -0.1145)
"""ADU per keV"""
NOISES = (15.0, 2.0, 2.0)
"""ADU, before rounding"""
PHOTONS = ((0.0, 10.0), (100.0, 650.0), (2000.0, 9000.0))
"""Expected photons of each stage: what fits into 14 bits with these pedestals and gains, and 5 Poisson sigma more."""
PEDESTAL_ERROR = 0.3
"""ADU"""
GAIN_ERROR = 0.005
"""Of the gain"""
SPREAD = (200.0, 0.02)
"""Of the true pedestals (uniform, +- ADU) and gains (uniform, +- of the gain) over the pixels."""
ROUNDING = 1 / 12
"""Variance of rounding to whole ADU, ADU^2"""


@dataclass(frozen=True)
class Simulation:
    """Words of one frame, the constants as *measured* (3, y, x), the sigmas of all that is random, and the truth."""

    raw: npt.NDArray[np.uint16]
    pedestal: Floats
    gain: Floats
    noise: Floats
    pedestal_error: Floats
    gain_error: Floats
    photon_energy: float
    expected: Floats
    """Energy that the beam brings on average, keV"""
    actual: Floats
    """Energy of the photons that came, keV"""
    clipped: int
    """Words that did not fit into 14 bits"""


def simulate(
    stage: int,
    photons: tuple[float, float] | None = None,
    *,
    shape: tuple[int, int] = (1000, 1000),
    noise: float | None = None,
    pedestal_error: float = PEDESTAL_ERROR,
    gain_error: float = GAIN_ERROR,
    rounding_in_noise: bool = True,
    seed: int = 1,
) -> Simulation:
    """One frame, all of whose pixels are in one stage, with expected photons drawn evenly from a range.

    The sigma of the noise includes the rounding, as the rms of dark frames would, unless told otherwise. The sigma of
    the gain is the given part of the *measured* gain, since nobody knows the true one.
    """
    rng = np.random.default_rng([seed, stage])
    low, high = PHOTONS[stage] if photons is None else photons
    sigma = NOISES[stage] if noise is None else noise
    full = (3, *shape)
    column = (3, 1, 1)
    true_pedestal = np.reshape(PEDESTALS, column) + rng.uniform(-SPREAD[0], SPREAD[0], full)
    true_gain = np.reshape(GAINS, column) * (1 + rng.uniform(-SPREAD[1], SPREAD[1], full))
    pedestal = true_pedestal + pedestal_error * rng.standard_normal(full)
    gain = true_gain * (1 + gain_error * rng.standard_normal(full))

    mean = rng.uniform(low, high, (1, *shape))
    came = rng.poisson(mean).astype(np.float64)
    volts = true_pedestal[stage] + true_gain[stage] * came * PHOTON_ENERGY + sigma * rng.standard_normal((1, *shape))
    adc = np.rint(volts).astype(np.int64)
    fits = np.clip(adc, 1, 0x3FFE)  # the first and the last number are special words
    return Simulation(
        raw=(fits | CODES[stage] << 14).astype(np.uint16),
        pedestal=pedestal,
        gain=gain,
        noise=np.full(full, np.sqrt(sigma**2 + (ROUNDING if rounding_in_noise else 0.0))),
        pedestal_error=np.full(full, pedestal_error),
        gain_error=gain_error * np.abs(gain),
        photon_energy=PHOTON_ENERGY,
        expected=mean * PHOTON_ENERGY,
        actual=came * PHOTON_ENERGY,
        clipped=int(np.count_nonzero(fits != adc)),
    )


def pull(difference: Floats, var: Floats) -> tuple[float, float]:
    """Mean and width of the pulls of single pixels."""
    pulls = difference / np.sqrt(var)
    return float(np.mean(pulls)), float(np.std(pulls))


def pull_together(difference: Floats, var: Floats) -> tuple[float, float]:
    """Mean and width of all differences, in units of the square root of the mean variance of all."""
    sigma = np.sqrt(np.mean(var))
    return float(np.mean(difference) / sigma), float(np.std(difference) / sigma)


def definitions(simulation: Simulation) -> dict[str, tuple[float, float]]:
    """Mean and width by each definition, with the value and the variance of `independent`."""
    s = simulation
    result = jungfrau(s.raw, s.pedestal, s.gain)
    if any(np.any(where) for where in result.bad.values()):
        raise AssertionError("a simulated word is bad")
    stage, value = result.stage, result.value
    rest = variance(value, stage, s.gain, s.noise, s.pedestal_error, s.gain_error)
    stored = variance(value, stage, s.gain, s.noise, s.pedestal_error, s.gain_error, s.photon_energy)
    at_truth = variance(s.expected, stage, s.gain, s.noise, s.pedestal_error, s.gain_error, s.photon_energy)
    return {
        "as stored": pull(value - s.expected, stored),
        "known N": pull(value - s.actual, rest),
        "expected": pull(value - s.expected, at_truth),
        "together": pull_together(value - s.expected, stored),
    }


def shares(simulation: Simulation) -> dict[str, float]:
    """What part each term has of the mean variance: shot of all of it, the others of what is left without shot.

    Without a term, pulls of ``known N`` are wider by about half of its share: a share under 0.02 is not tested.
    """
    s = simulation
    result = jungfrau(s.raw, s.pedestal, s.gain)
    terms = {
        "noise": variance(result.value, result.stage, s.gain, noise=s.noise),
        "pedestal": variance(result.value, result.stage, s.gain, pedestal_error=s.pedestal_error),
        "gain": variance(result.value, result.stage, s.gain, gain_error=s.gain_error),
    }
    means = {name: float(np.mean(term)) for name, term in terms.items()}
    rest = sum(means.values())
    shot = float(np.mean(variance(result.value, result.stage, s.gain, photon_energy=s.photon_energy)))
    return {**{name: mean / rest for name, mean in means.items()}, "shot": shot / (rest + shot)}


def scenarios() -> dict[str, Simulation]:
    """The frames of the table; each term of the variance is large in at least one of every stage."""
    frames = {}
    for stage, (low, high) in enumerate(PHOTONS):
        frames[f"G{stage} {low:g}-{high:g} photons"] = simulate(stage)
        frames[f"G{stage} {high:g} photons"] = simulate(stage, (high, high))
        frames[f"G{stage} dark"] = simulate(stage, (0.0, 0.0))
        frames[f"G{stage} dark, noise without 1/12"] = simulate(stage, (0.0, 0.0), rounding_in_noise=False)
        frames[f"G{stage} dark, pedestal error = noise"] = simulate(stage, (0.0, 0.0), pedestal_error=NOISES[stage])
    return frames


def main() -> None:
    """Print mean and width of each definition, * where not within 0.01 of 0 and 0.01 of 1, and the shares."""
    first = True
    for name, simulation in scenarios().items():
        found, parts = definitions(simulation), shares(simulation)
        if first:
            print(f"{simulation.raw.size} pixels each; mean / width by definition")
            print("shares in %: shot of all, the others of what is left without shot")
            print(
                " " * 35 + "".join(f"{d:>18}" for d in found) + "  |" + "".join(f"{p:>9}" for p in parts) + "  clipped"
            )
            first = False
        cells = ""
        for mean, width in found.values():
            good = abs(mean) <= 0.01 and abs(width - 1) <= 0.01
            cells += f"{mean:+9.4f} /{width:.4f}{' ' if good else '*'}"
        percent = "".join(f"{100 * part:9.2f}" for part in parts.values())
        print(f"{name:35}{cells}  |{percent}{simulation.clipped:9}")


if __name__ == "__main__":
    main()
