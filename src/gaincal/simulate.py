"""A small JUNGFRAU run with known truth: for the demo, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PHOTON_ENERGY = 12.4
TYPICAL_GAIN = (41.0, -1.44, -0.1145)
TYPICAL_PEDESTAL = (3000.0, 14_500.0, 14_200.0)
GAIN_SPREAD = 0.02
NOISE = (15.0, 3.0, 2.0)
SWITCH_AT = (15_800, 2_600)
"""The ADC leaves G0 above the first and G1 below the second of these."""
CHIP = 256
ADC_MAX = 0x3FFF
CODES = (0x0000, 0x4000, 0xC000)
SATURATED = 0xC000
DEAD = 0x3FFF
DEAD_FRACTION = 2e-5


@dataclass(frozen=True)
class Module:
    """A simulated module.

    Parameters
    ----------
    pedestal : ndarray (stage, y, x)
        ADU
    gain : ndarray (stage, y, x)
        ADU/keV, signed as PSI writes it.
    dead : ndarray (y, x) of bool
        Pixels that always deliver the end of the ADC.
    """

    pedestal: Array
    gain: Array
    dead: Array


def make_module(shape: tuple[int, int] = (512, 1024), seed: int = 1) -> Module:
    """Simulate the constants of a module: spread from pixel to pixel and from chip to chip."""
    random = np.random.default_rng(seed)
    chips = tuple(-(-n // CHIP) for n in shape)
    pedestal, gain = np.empty((3, *shape), np.float32), np.empty((3, *shape), np.float32)
    for stage in range(3):
        steps = np.kron(random.normal(0, 80, chips), np.ones((CHIP, CHIP)))[: shape[0], : shape[1]]
        pedestal[stage] = TYPICAL_PEDESTAL[stage] + steps + random.normal(0, 100, shape)
        gain[stage] = TYPICAL_GAIN[stage] * (1 + random.normal(0, GAIN_SPREAD, shape))
    return Module(pedestal, gain, random.random(shape) < DEAD_FRACTION)


def make_frames(module: Module, frames: int, seed: int = 2) -> Iterator[tuple[Array, Array]]:
    """Simulate frames one by one.

    Yields
    ------
    words : ndarray (y, x) of uint16
    photons : ndarray (y, x)
        The truth.
    """
    random = np.random.default_rng(seed)
    shape = module.dead.shape
    background = _background(shape)
    for _ in range(frames):
        photons = random.poisson(background + _spots(shape, random))
        yield digitise(module, photons, random), photons


def digitise(module: Module, photons: Array, random: np.random.Generator) -> Array:
    """Words of a frame: each pixel in the first stage that holds its signal, with noise."""
    energy = photons * PHOTON_ENERGY
    adc = [module.pedestal[s] + module.gain[s] * energy + random.normal(0, NOISE[s], energy.shape) for s in range(3)]
    stage = np.where(adc[0] < SWITCH_AT[0], 0, np.where(adc[1] > SWITCH_AT[1], 1, 2))
    value = np.choose(stage, adc)
    words = np.clip(np.rint(value), 0, ADC_MAX).astype(np.uint16) | np.array(CODES, np.uint16)[stage]
    words[(stage == 2) & (value <= 0)] = SATURATED
    words[module.dead] = DEAD
    return np.asarray(words)


def _background(shape: tuple[int, int]) -> Array:
    """Scattering that falls off from the beam, with a water ring."""
    y, x = np.indices(shape)
    radius = np.hypot(y - 0.5 * shape[0], x + 0.1 * shape[1])
    ring = np.exp(-(((radius - 0.45 * shape[1]) / (0.05 * shape[1])) ** 2))
    return np.asarray(0.12 * np.exp(-radius / (0.5 * shape[1])) + 0.1 * ring)


def _spots(shape: tuple[int, int], random: np.random.Generator, count: int = 250) -> Array:
    """Reflections of a few pixels, from one photon to beyond the second switch."""
    image = np.zeros(shape)
    half = 4
    grid = np.arange(-half, half + 1)
    profile = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.2**2))
    peaks = 10 ** random.uniform(0, 3.6, count)
    rows = random.integers(half, shape[0] - half, count)
    columns = random.integers(half, shape[1] - half, count)
    for peak, row, column in zip(peaks, rows, columns, strict=True):
        image[row - half : row + half + 1, column - half : column + half + 1] += peak * profile
    return image


@dataclass(frozen=True)
class DarkTruth:
    """A module in the dark, with everything that can be wrong with it.

    Parameters
    ----------
    pedestal : ndarray (stage, y, x)
        ADU
    noise : ndarray (y, x)
        ADU
    dead, noisy, switching : ndarray (y, x) of bool
        Pixels that always deliver the same word, with far too much noise, and now and then in the next stage.
    """

    pedestal: Array
    noise: Array
    dead: Array
    noisy: Array
    switching: Array

    @property
    def good(self) -> Array:
        """Pixels with nothing wrong."""
        return ~(self.dead | self.noisy | self.switching)


def make_dark_truth(shape: tuple[int, int] = (512, 1024), seed: int = 5) -> DarkTruth:
    """Pedestals of a module, noise of 10 to 30 ADU, 0.5 % dead, 0.3 % noisy and 0.1 % switching pixels."""
    random = np.random.default_rng(seed)
    kind = random.random(shape)
    dead, noisy, switching = kind < 0.005, (kind >= 0.005) & (kind < 0.008), (kind >= 0.008) & (kind < 0.009)
    noise = random.uniform(10, 30, shape)
    noise[dead] = 0
    noise[noisy] = random.uniform(150, 400, shape)[noisy]
    return DarkTruth(make_module(shape, seed).pedestal, noise, dead, noisy, switching)


def make_darks(
    truth: DarkTruth, stage: int, frames: int, seed: int = 6, wrong: float = 0.02, leak: float = 0.01
) -> Iterator[Array]:
    """Simulate dark frames one by one: some in a wrong stage as a whole, photons in some others.

    Yields
    ------
    words : ndarray (y, x) of uint16
    """
    random = np.random.default_rng((seed, stage))
    chosen = random.permutation(frames)
    in_other, leaking = chosen[: round(wrong * frames)], chosen[len(chosen) - round(leak * frames) :]
    for frame in range(frames):
        own = (stage + 1) % 3 if frame in in_other else stage
        adc = random.normal(truth.pedestal[own], truth.noise)
        if frame in leaking:
            adc += ~truth.dead * random.poisson(0.3, adc.shape) * PHOTON_ENERGY * TYPICAL_GAIN[own]
        words = np.clip(np.rint(adc), 1, ADC_MAX - 1).astype(np.uint16) | np.uint16(CODES[own])
        switched = truth.switching & (random.random(adc.shape) < 0.1)
        words[switched] = np.uint16(CODES[(own + 1) % 3]) | np.uint16(5000)
        yield words
