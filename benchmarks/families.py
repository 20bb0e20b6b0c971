"""One block of words for every formula of the catalogue: in the first stage, with rare photons, as in a dark run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, ConstantMap, RawLayout, bind
from gaincal.formulas import catalog
from gaincal.formulas.checks import FRAME, is_words
from gaincal.formulas.formula import Formula

Array = npt.NDArray[Any]
LENGTHS = {"module": 2, "y": 512, "x": 512}
STRIPS = 1280
LABELS = {"cell": (0, 1, 2, 3), "threshold": (0, 1)}
LEVELS = {"thresholds": 9000.0, "pedestal": 2500.0, "offset": 2500.0, "noise": 10.0}
"""Typical numbers of constants; all others are around 1.5."""
WORDS = {"gain_code": 0, "digital": 5000, "raw": 3000, "adc": 3000, "analog": 3000}
NARROW = {"gotthard2": 1000, "gotthard2_split": 1000, "lpd": 1000, "percival": 500}
"""Words of detectors whose ADC has fewer bits than 14."""


def frames_of(name: str, frames: int) -> int:
    """Frames with as many pixels in all as `frames` of a panel: a frame of strips is soon computed."""
    strips = catalog.get(name).checked.pixel_dims == ("x",)
    return frames * LENGTHS["y"] * LENGTHS["x"] // STRIPS if strips else frames


def block(name: str, frames: int) -> tuple[Calibration, dict[str, Array]]:
    """A bound formula and its words (frame, *pixels)."""
    formula = catalog.get(name)
    dims = formula.checked.pixel_dims
    pixels = tuple(STRIPS if dims == ("x",) else LENGTHS[d] for d in dims)
    rng = np.random.default_rng(4)
    words, inputs = {}, {}
    for item in formula.inputs:
        if is_words(item, dims):
            level = NARROW.get(name.removesuffix(catalog.MODULES), WORDS[item.name]) if WORDS[item.name] else 0
            spread = rng.normal(0, 15, (frames, *pixels)) if level else np.zeros((frames, *pixels))
            words[item.name] = np.clip(np.rint(level + spread), 0, 16000).astype(item.dtype)
        else:
            inputs[item.name] = _input(item.name, item.dims, item.dtype, frames, pixels)
    dtypes = {n: w.dtype for n, w in words.items()}
    return bind(formula, RawLayout(frames, pixels), dtypes, inputs, _constants(formula, pixels, rng)), words


def _input(name: str, dims: tuple[str, ...], dtype: str | None, frames: int, pixels: tuple[int, ...]) -> Array:
    shape = ((frames,) if FRAME in dims else ()) + pixels[: len(set(dims) - {FRAME})]
    if name == "cell":
        cells = np.resize(np.array(LABELS["cell"]), shape[0]) if shape else np.array(0)
        return np.broadcast_to(cells.reshape(-1, *(1,) * (len(shape) - 1)), shape).astype(dtype)
    if name == "config":
        return np.full(shape, 12, dtype or np.float64)
    return np.zeros(shape, dtype) if dtype else np.full(shape, 12.4)


def _constants(formula: Formula, pixels: tuple[int, ...], rng: np.random.Generator) -> dict[str, ConstantMap]:
    dims = formula.checked.pixel_dims
    found = {}
    for constant in formula.constants:
        if constant.default is not None:
            continue
        axes = [d for d in constant.dims if d not in dims]
        labels = tuple(LABELS.get(axis, tuple(range(7 if formula.name.startswith("epix") else 4))) for axis in axes)
        shape = (*(len(axis) for axis in labels), *pixels[: len(constant.dims) - len(axes)])
        level = LEVELS.get(constant.name, 1.5)
        found[constant.name] = ConstantMap(np.asarray(level * rng.uniform(0.98, 1.02, shape), np.float32), labels)
    return found
