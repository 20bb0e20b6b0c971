"""Frozen benchmark cases: data like a detector's, switched in clusters as real frames are."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, ConstantMap, RawLayout, bind
from gaincal.formulas import catalog
from gaincal.simulate import CODES, make_module

Array = npt.NDArray[Any]
SHAPE = (512, 1024)
NOISE = 15.0
PHOTONS = 0.01
DISTINCT = 20
SPOT = 6
SWITCHED = {"0 %": 0.0, "2 % clustered": 0.02, "10 % random": 0.1, "33 % random": 1 / 3}


@lru_cache(maxsize=1)
def calibration(frames: int) -> Calibration:
    """The catalogue's jungfrau with all its flags, on one module."""
    module = make_module(SHAPE)
    labels = ((0, 1, 2),)
    constants = {"pedestal": ConstantMap(module.pedestal, labels), "gain": ConstantMap(module.gain, labels)}
    inputs = {"photon_energy": np.array(12.4), "pixel_mask": np.zeros(SHAPE, np.uint32)}
    return bind(catalog.get("jungfrau"), RawLayout(frames, SHAPE), {"raw": np.dtype("u2")}, inputs, constants)


def words(case: str, frames: int, seed: int = 2) -> Array:
    """Raw words (frame, y, x): a dark background, rare photons, and pixels in G1 and G2 as the case says."""
    random = np.random.default_rng(seed)
    module = make_module(SHAPE)
    distinct = [_frame(case, module.pedestal[0], random) for _ in range(min(frames, DISTINCT))]
    return np.stack([distinct[k % len(distinct)] for k in range(frames)])


def _frame(case: str, pedestal: Array, random: np.random.Generator) -> Array:
    adc = pedestal + 41 * 12.4 * random.poisson(PHOTONS, SHAPE) + random.normal(0, NOISE, SHAPE)
    frame = np.clip(np.rint(adc), 0, 0x3FFE).astype(np.uint16)
    share = SWITCHED[case]
    if "clustered" in case:
        for _ in range(int(share * frame.size / SPOT**2)):
            y, x = random.integers(0, SHAPE[0] - SPOT), random.integers(0, SHAPE[1] - SPOT)
            spot = frame[y : y + SPOT, x : x + SPOT]
            spot[...] = (spot & 0x1FFF) | CODES[random.integers(1, 3)]
    elif share:
        switched = random.random(SHAPE) < share
        frame[switched] |= np.array(CODES, np.uint16)[random.integers(1, 3, int(switched.sum()))]
    return frame
