"""Small simulated runs of several modules, and ways to break one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.simulate import ADC_MAX, PHOTON_ENERGY, SWITCH_AT, Module, make_module
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
MODULES, FRAMES, SHAPE = 3, 12, (48, 64)
FLUX = 0.15
ODD = 1
"""The module that is broken."""
Breaks = Callable[[Array, np.random.Generator], Array]


def words_of(module: Module, frames: int, seed: int, gain: float = 1.0, noise: float = 15.0) -> Array:
    """Poisson photons, some of them many, as words of a module."""
    random = np.random.default_rng(seed)
    shape = (frames, *module.dead.shape)
    photons = random.poisson(FLUX, shape) + np.where(random.random(shape) < 0.01, random.integers(20, 3000, shape), 0)
    energy = photons * PHOTON_ENERGY * gain
    adc = [
        module.pedestal[s] + module.gain[s] * energy + random.normal(0, n, shape) for s, n in enumerate((noise, 3, 2))
    ]
    stage = np.where(adc[0] < SWITCH_AT[0], 0, np.where(adc[1] > SWITCH_AT[1], 1, 2))
    value = np.clip(np.rint(np.choose(stage, adc)), 1, ADC_MAX - 1).astype(np.uint16)
    return np.asarray(value | np.array([0, 0x4000, 0xC000], np.uint16)[stage])


def make_run(
    directory: Path,
    name: str = "run",
    *,
    spoil: Breaks | None = None,
    missing: Callable[[int, int], bool] | None = None,
    settings: dict[str, Any] | None = None,
    mask: Array | None = None,
    **odd: float,
) -> Path:
    """A master of three modules; `spoil` and `odd` (see `words_of`) change the middle one."""
    directory.mkdir(parents=True, exist_ok=True)
    modules = [make_module(SHAPE, seed=10 + k) for k in range(MODULES)]
    random = np.random.default_rng(5)
    with h5py.File(directory / f"{name}.h5", "w") as file:
        data = file.create_dataset("data", (FRAMES, MODULES, *SHAPE), np.uint16, chunks=(1, 1, *SHAPE), fletcher32=True)
        file["pulse_id"] = 700 + 4 * np.arange(FRAMES, dtype=np.uint64)
        for k, module in enumerate(modules):
            words = words_of(module, FRAMES, 20 + k, **(odd if k == ODD else {}))
            words = spoil(words, random) if spoil is not None and k == ODD else words
            for frame in range(FRAMES):
                if missing is None or not missing(frame, k):
                    data[frame, k] = words[frame]
    if mask is not None:
        np.save(directory / f"{name}_mask.npy", mask)
    embed(
        f"{directory / f'{name}.h5'}::/data",
        directory / f"{name}.nxs",
        formula="jungfrau_modules",
        constants={
            "pedestal": np.stack([m.pedestal for m in modules], 1),
            "gain": np.stack([m.gain for m in modules], 1),
        },
        settings={"photon_energy": PHOTON_ENERGY} if settings is None else settings,
        ids={"pulse_id": f"{directory / f'{name}.h5'}::/pulse_id"},
        mask=None if mask is None else str(directory / f"{name}_mask.npy"),
    )
    return directory / f"{name}.nxs"
