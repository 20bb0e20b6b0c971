"""Small runs with known truth: words rich in trouble, their constants, and what plain NumPy makes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
import numpy.typing as npt
import pytest

from gaincal import progress
from gaincal.cli import main
from gaincal.formulas.catalog import source
from gaincal.formulas.formula import Formula
from gaincal.kernels import pipeline
from gaincal.kernels.libraries import plugins
from gaincal.verbs.embed import embed

hypothesis.settings.register_profile("gaincal", deadline=None)
hypothesis.settings.load_profile("gaincal")

LONGEST = (
    "test_compiler",
    "test_catalogue",
    "test_scatter",
    "test_dials",
    "test_mutations",
    "test_lazy",
    "test_chunks",
)
"""Files that a worker takes first, so that none of them is left alone at the end."""

# Small as the runs of tests are, they are worth compiling here; tests of NumPy's own way say so.
pipeline.UNCOMPILED_WORDS = -1
# A machine with other work would show progress where others have nothing to say yet; tests of progress ask for it.
progress.LOG_INTERVAL = math.inf

Array = npt.NDArray[Any]
PHOTON_ENERGY = 12.4
FIRST_PULSE = 7_000_000_000
DETECTORS = {"module": '"y", "x"', "strip": '"x"', "modules": '"module", "y", "x"'}
FLAG_BITS = {
    "invalid_gain_code": 0,
    "saturated": 1,
    "error_word": 2,
    "adc_limit": 3,
    "no_calibration": 4,
    "masked": 5,
    "no_value": 29,
    "clipped": 30,
    "missing": 31,
}
INT_FILLS = {"int32": -(2**31), "int16": -(2**15)}
BITSHUFFLE = dict(plugins().Bitshuffle(cname="lz4"))


def pytest_configure(config: pytest.Config) -> None:
    """A worker takes a whole file (``--dist loadfile``): what it makes and compiles, it makes once; in our order."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def few(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases of which all but some go through code that has been taken already: the oldest set leaves them out."""
    return [c if k < count else pytest.param(c, marks=pytest.mark.exhaustive) for k, c in enumerate(cases)]


def detector_formula(detector: str = "module") -> Formula:
    """The catalogue's JUNGFRAU formula, for pixels laid out in another way."""
    return Formula.from_toml(source("jungfrau").replace('"y", "x"', DETECTORS[detector]))


def make_words(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Words of all gain codes and of every special kind; the first pixel has never a stage, the last always G0."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 16, shape).astype(np.uint16)
    special = rng.choice(np.array([0xC000, 0xFFFF, 0x4000, 0x3FFF, 0x0000, 0x8000], np.uint16), shape)
    mixed: Array = np.where(rng.random(shape) < 0.1, special, words)
    pixels = mixed.reshape(len(mixed), int(np.prod(shape[1:])))
    pixels[:, 0], pixels[:, -1] = 0x8123, 0x0BCD
    return mixed


def make_constants(pixels: tuple[int, ...], seed: int = 1) -> tuple[Array, Array]:
    """Pedestal and gain (stage, *pixels), here and there NaN, zero, infinite, or so small that counts overflow.

    The last pixel has no gain at all.
    """
    rng = np.random.default_rng(seed)
    shape = (3, *pixels)
    per_stage = (3, *(1 for _ in pixels))
    pedestal = rng.normal(0, 100, shape) + np.array([3000.0, 14_500.0, 14_200.0]).reshape(per_stage)
    gain = rng.normal(1, 0.02, shape) * np.array([41.0, -1.44, -0.1145]).reshape(per_stage)
    odd = rng.choice(np.array([np.nan, 0.0, np.inf, 1e-3, -1e-9]), shape)
    gain = np.where(rng.random(shape) < 0.15, odd, gain)
    gain.reshape(3, -1)[:, -1] = np.nan
    pedestal[rng.random(shape) < 0.02] = np.nan
    return pedestal.astype(np.float32), gain.astype(np.float32)


def make_mask(pixels: tuple[int, ...], seed: int = 2) -> Array:
    """An NXmx pixel mask: some pixels dead, noisy or virtual (which is no reason to flag them)."""
    rng = np.random.default_rng(seed)
    bits = rng.choice(np.array([0, 1 << 1, 1 << 4, 1 << 31], np.uint32), pixels, p=[0.85, 0.05, 0.05, 0.05])
    return np.asarray(bits, np.uint32)


@dataclass(frozen=True, eq=False)
class Run:
    """A master, and everything that is in it."""

    master: Path
    raw: Path
    words: Array
    missing: npt.NDArray[np.bool_]
    pedestal: Array
    gain: Array
    mask: Array
    pulses: Array

    @cached_property
    def steps(self) -> dict[str, Array]:
        """Every step of the formula in NumPy, in float32."""
        adc, code = self.words & 0x3FFF, self.words >> 14
        stage = np.array([0, 1, -1, 2])[code]
        pedestal, slope = self._selected(self.pedestal, stage), self._selected(self.gain, stage)
        with np.errstate(all="ignore"):
            energy = (adc.astype(np.float32) - pedestal) / slope
            photons = energy / np.float32(PHOTON_ENERGY)
        return {"stage": stage, "slope": slope, "energy": energy, "photons": photons, "counts": np.rint(photons)}

    def _selected(self, constant: Array, stage: Array) -> Array:
        planes = [np.broadcast_to(plane, stage.shape) for plane in constant]
        return np.where(stage < 0, np.float32(np.nan), np.choose(np.maximum(stage, 0), planes))

    @cached_property
    def reasons(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Where each declared flag is raised."""
        words, stage = self.words, self.steps["stage"]
        known = np.isfinite(self.steps["slope"]) & np.isfinite(self.steps["energy"])
        return {
            "invalid_gain_code": stage < 0,
            "saturated": words == 0xC000,
            "error_word": (words == 0xFFFF) | (words == 0x4000),
            "adc_limit": words == 0x3FFF,
            "no_calibration": (stage >= 0) & ~known,
            "masked": np.broadcast_to((self.mask & 0xFFFF) != 0, words.shape),
        }

    def expected(self, output: str, dtype: str = "float32", fill: float | None = None) -> tuple[Array, Array]:
        """Values and flags that section 6 of the specification asks for."""
        real = self.steps[output]
        flags = np.zeros(real.shape, np.uint32)
        for name, raised in self.reasons.items():
            flags |= raised.astype(np.uint32) << np.uint32(FLAG_BITS[name])
        void, empty = flags != 0, ~np.isfinite(real)
        flags[~void & empty] |= np.uint32(1 << FLAG_BITS["no_value"])
        values = real
        if dtype in INT_FILLS:
            low, high = INT_FILLS[dtype] + 1, -(INT_FILLS[dtype] + 1)
            exact = np.where(empty, 0, real).astype(np.float64)
            limited = (exact < low) | (exact > high)
            flags[~void & ~empty & limited] |= np.uint32(1 << FLAG_BITS["clipped"])
            values = np.clip(exact, low, high).astype(dtype)
        flags[self.missing] = np.uint32(1 << FLAG_BITS["missing"])
        declared = INT_FILLS.get(dtype, np.nan)
        filled = np.where(void | empty | self.missing, np.dtype(dtype).type(declared if fill is None else fill), values)
        return filled.astype(dtype), flags


def write_raw(path: Path, words: Array, name: str = "data", **storage: Any) -> None:
    """Words in an HDF5 file, one chunk per frame with a checksum unless told otherwise."""
    options = storage or ({"chunks": (1, *words.shape[1:]), "fletcher32": True} if words.size else {})
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=words, **options)


def build_run(directory: Path, shape: tuple[int, ...], detector: str = "module", **storage: Any) -> Run:
    """A master that links a plain raw file."""
    directory.mkdir(parents=True, exist_ok=True)
    words = make_words(shape)
    write_raw(directory / "raw.h5", words, **storage)
    return _embedded(directory, "raw.h5", words, np.zeros(shape, bool), detector)


def build_virtual_run(directory: Path, shape: tuple[int, ...] = (12, 16, 32)) -> Run:
    """A master over a virtual dataset of two files, with frames in neither, a lost file and a chunk never written."""
    directory.mkdir(parents=True, exist_ok=True)
    words, missing = make_words(shape), np.zeros(shape, bool)
    half = shape[2] // 2
    write_raw(directory / "first.h5", words[:4])
    with h5py.File(directory / "second.h5", "w") as file:
        late = file.create_dataset("data", (4, *shape[1:]), np.uint16, chunks=(1, shape[1], half))
        late[:, :, :half] = words[8:, :, :half]
        late[1:, :, half:] = words[9:, :, half:]
    layout = h5py.VirtualLayout(shape, np.uint16)
    for first, name in ((0, "first.h5"), (6, "lost.h5"), (8, "second.h5")):
        count = 2 if name == "lost.h5" else 4
        layout[first : first + count] = h5py.VirtualSource(name, "data", (count, *shape[1:]))
    with h5py.File(directory / "virtual.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    missing[4:8], missing[8, :, half:] = True, True
    return _embedded(directory, "virtual.h5", words, missing, "module")


def _embedded(directory: Path, raw: str, words: Array, missing: npt.NDArray[np.bool_], detector: str) -> Run:
    pedestal, gain = make_constants(words.shape[1:])
    mask = make_mask(words.shape[1:])
    pulses = FIRST_PULSE + 4 * np.arange(len(words), dtype=np.uint64)
    np.save(directory / "mask.npy", mask)
    with h5py.File(directory / "pulses.h5", "w") as file:
        file["pulse_id"] = pulses
    embed(
        f"{directory / raw}::/data",
        directory / "master.nxs",
        formula=detector_formula(detector),
        constants={"pedestal": pedestal, "gain": gain},
        settings={"photon_energy": PHOTON_ENERGY},
        mask=directory / "mask.npy",
        ids={"pulse_id": f"{directory / 'pulses.h5'}::/pulse_id"} if len(words) else {},
    )
    return Run(directory / "master.nxs", directory / raw, words, missing, pedestal, gain, mask, pulses)


RUN_KINDS: dict[str, Callable[[Path], Run]] = {
    "plain": lambda d: build_run(d, (12, 16, 32)),
    "virtual": build_virtual_run,
    "odd": lambda d: build_run(d, (5, 7, 13), chunks=(2, 4, 5), fletcher32=True, **BITSHUFFLE),
    "strip": lambda d: build_run(d, (9, 40), "strip", chunks=(4, 40), compression="gzip", shuffle=True),
    "modules": lambda d: build_run(d, (4, 3, 6, 8), "modules"),
    "empty": lambda d: build_run(d, (0, 6, 8)),
    "single": lambda d: build_run(d, (1, 6, 8)),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Runs by kind; made once, never to be changed."""
    made: dict[str, Run] = {}

    def run(kind: str) -> Run:
        if kind not in made:
            made[kind] = RUN_KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return run


@pytest.fixture(scope="session")
def plain(runs: Callable[[str], Run]) -> Run:
    return runs("plain")


@pytest.fixture(scope="session")
def virtual(runs: Callable[[str], Run]) -> Run:
    return runs("virtual")


@pytest.fixture
def own(tmp_path: Path) -> Run:
    """A run that a test may change."""
    return build_run(tmp_path, (6, 8, 16))


@pytest.fixture(scope="session")
def spawned() -> Iterator[ProcessPoolExecutor]:
    """Another process, which shares nothing with this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


# --- the command line -----------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a command ended with, and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


Command = Callable[..., Result]


@pytest.fixture
def gaincal(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments], prog_name="gaincal")
        out, err = capfd.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run
