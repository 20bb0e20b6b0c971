"""Make the conformance files.  Run it only to add files: those that exist are never changed.

python nexus/conformance/make.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.constants import ConstantMap
from gaincal.formulas import catalog
from gaincal.formulas.formula import Constant, Formula, Input
from gaincal.kernels import reference
from gaincal.nexus import names
from gaincal.nexus.group import Provenance, fields_checksum, new_group, write_calibration
from gaincal.nexus.read import open_master
from gaincal.nexus.write import write_skeleton
from gaincal.verbs.embed import embed

HERE = Path(__file__).parent
SHAPE = (16, 64)
GROUP = "/entry/instrument/detector/calibration"
SPECIAL = np.array([0, -0.0, np.nan, np.inf, -np.inf, 1e-42, -1e-40, 1e-3, -1.44, 41, 3e38, -7.5], np.float32)
Array = npt.NDArray[Any]

OPERATIONS = """
[formula]
format = 1
name = "every_operation"
version = 1
title = "Every operation of the format, on awkward numbers"

[inputs]
raw = { dims = ["frame", "y", "x"], units = "1", dtype = "uint16" }

[constants]
a = { dims = ["y", "x"], units = "1" }
b = { dims = ["y", "x"], units = "1" }
small = { dims = ["cell", "y", "x"], units = "1", dtype = "uint8" }

[tables]
short = [3, -1, 2]
long = [5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -12]

[steps]
low = "bits(raw, 0, 4)"
high = "bits(raw, 12, 4)"
joined = "join(low, 4, high)"
found = "lookup(short, bits(raw, 4, 3))"
listed = "lookup(long, bits(raw, 4, 5))"
label = "small[low]"
word = "raw / 1.0"
x = "a + where(low > 7, 2.5, -0.5) * b"
integers = "max(min(joined - listed, 40), abs(found) - label)"
smooth = "where(finite(sqrt(x)), sqrt(x), exp(-abs(x))) + log(abs(x) + 1)"
powers = "power(x, 3) - power(x, -2) + power(a, 0)"
limited = "clip(x, -b, b) * min(a, b) / max(a, x)"
down = "floor(x) + trunc(b * 0.5)"
rounded = "round_half_away(x * 0.5)"
even = "round_half_even(word * 0.125)"

[outputs]
smooth = { units = "1", dtype = "float32", default = true }
powers = { units = "1", dtype = "float32" }
limited = { units = "1", dtype = "float32" }
down = { units = "1", dtype = "float32" }
x = { units = "1", dtype = "float32" }
rounded = { units = "1", dtype = "int32", fill = -2147483648, alternatives = { int8 = 127 } }
even = { units = "1", dtype = "uint16", fill = 65535, alternatives = { uint8 = 0 } }

[flags]
few = { when = "integers <= 3 and not (label == 2 or high > 12)", voids = false }
odd = { when = "found < 0 or listed >= 5 or x != x" }
"""

CELLS = """
[formula]
format = 1
name = "cells"
version = 1
title = "Sparse labels, a value per frame, integers as a map, in double precision"
compute = "float64"

[inputs]
adc = { dims = ["frame", "y", "x"], units = "ADU", dtype = "uint16" }
cell = { dims = ["frame"], units = "1", dtype = "uint8" }
photon_energy = { dims = [], units = "keV/photon" }
pixel_mask = { dims = ["y", "x"], units = "1", dtype = "uint32" }

[constants]
threshold = { dims = ["cell", "y", "x"], units = "ADU", dtype = "uint16" }
offset = { dims = ["stage", "cell", "y", "x"], units = "ADU" }
slope = { dims = ["stage", "cell"], units = "ADU/keV" }

[steps]
stage = "where(adc > threshold[cell], 1, 0)"
energy = "(adc - offset[stage, cell]) / slope[stage, cell]"
photons = "round_half_even(energy / photon_energy)"

[outputs]
energy = { units = "keV", dtype = "float64", default = true, alternatives = { } }
photons = { units = "photon", dtype = "int16", fill = -32768 }

[flags]
no_cell = { when = "threshold[cell] < 0", pixel_mask_bit = 1 }
masked = { when = "bits(pixel_mask, 0, 16) != 0" }
"""


def all_words() -> Array:
    """Every word once, in frames."""
    return np.arange(65_536, dtype=np.uint16).reshape(-1, *SHAPE)


def write_raw(path: Path, words: Array, skip: tuple[int, ...] = (), **fields: Array) -> str:
    """A raw file; the frames in `skip` are never written."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        data = file.create_dataset(
            "words", words.shape, words.dtype, chunks=(1, *words.shape[1:]), compression="gzip", fletcher32=True
        )
        for frame in range(len(words)):
            if frame not in skip:
                data[frame] = words[frame]
        for name, values in fields.items():
            file[name] = values
    return f"{path}::/words"


def jungfrau(directory: Path, target: Path) -> None:
    """Every word of the catalogue formula, on awkward constants, with a mask."""
    random = np.random.default_rng(1)
    constants = {n: random.choice(SPECIAL, (3, *SHAPE)) for n in ("pedestal", "gain")}
    constants["pedestal"][:, ::2] = np.array([3000, 14500, 14200], np.float32)[:, None, None]
    constants["gain"][:, :, ::2] = np.array([41, -1.44, -0.1145], np.float32)[:, None, None]
    mask = np.zeros(SHAPE, np.uint32)
    mask[3, 5], mask[4, 6], mask[5, 7] = 1, 1 << 8, 1 << 31
    np.save(directory / "mask.npy", mask)
    raw = write_raw(directory / "raw.h5", all_words())
    settings = {"photon_energy": 12.4}
    embed(
        raw,
        target,
        formula=catalog.get("jungfrau"),
        constants=constants,
        settings=settings,
        mask=directory / "mask.npy",
        copy_raw=True,
    )


def operations(directory: Path, target: Path) -> None:
    """Every operation."""
    random = np.random.default_rng(2)
    numbers = np.concatenate([SPECIAL, random.normal(0, 30, 30).astype(np.float32), [0.5, 1.5, 2.5, -0.5, 0.49999997]])
    constants = {n: random.choice(numbers, SHAPE).astype(np.float32) for n in "ab"}
    constants["small"] = random.integers(0, 4, (11, *SHAPE)).astype(np.uint8)
    raw = write_raw(directory / "raw.h5", all_words()[::7])
    embed(raw, target, formula=Formula.from_toml(OPERATIONS), constants=constants, copy_raw=True)


def missing(directory: Path, target: Path) -> None:
    """Frames that were never written."""
    words = all_words()[:6] & np.uint16(0x0FFF)
    raw = write_raw(directory / "raw.h5", words, skip=(1, 4))
    constants = {"pedestal": np.full((3, *SHAPE), 100, np.float32), "gain": np.full((3, *SHAPE), 41, np.float32)}
    embed(raw, target, formula=catalog.get("jungfrau"), constants=constants, copy_raw=True)


def cells(directory: Path, target: Path) -> None:
    """Labels, values per frame, integers as a map, double precision."""
    random = np.random.default_rng(3)
    frames = 12
    formula = Formula.from_toml(CELLS)
    words = random.integers(0, 65_536, (frames, *SHAPE)).astype(np.uint16)
    labels = (3, 0, 17, 40)
    with h5py.File(directory / "constants.h5", "w") as file:
        for name, shape in (("threshold", (4, *SHAPE)), ("offset", (2, 4, *SHAPE)), ("slope", (2, 4))):
            group = file.create_group(name)
            group[name] = random.integers(1, 40_000, shape).astype(np.uint16 if name == "threshold" else np.float64)
            group["cell"], group["stage"] = np.array(labels), np.array([0, 1])
    cell = random.choice(np.array([*labels, 1, 255], np.uint8), frames)
    energy = random.uniform(6, 13, frames)
    raw = write_raw(directory / "raw.h5", words, cell=cell, energy=energy)
    constants = {n: f"{directory / 'constants.h5'}::/{n}/{n}" for n in ("threshold", "offset", "slope")}
    embed(
        raw,
        target,
        formula=formula,
        constants=constants,
        inputs={"cell": directory / "raw.h5::/cell", "photon_energy": directory / "raw.h5::/energy"},
        copy_raw=True,
    )


DIMS = {"frame": 40, "module": 2, "y": 4, "x": 6}
LABELS = {"stage": (0, 1, 2, 3), "cell": (40, 3), "threshold": (1, 0)}
NUMBERS = {
    "cell": (3, 40, 5, 255, 65_535),
    "high_gain": (0, 1, 1, 255),
    "gain_code": (0, 1, 2, 3, 3, 200),
    "trbit": (0, 1, 1, 0, 1, 2),
}
"""What an input of integers may be, where not every number of its dtype tells something."""
SPECIAL_WORDS = (0xC000, 0xFFFF, 0x4000, 0x3FFF, 0x0000, 0x8123, 0x1FFF, 0x2000)
ABSENT = ("gain_error", "relative_gain_error", "offset_error", "scaling_factor_error", "one_photon")
"""Constants that are left to their default."""
WRITTEN = Provenance("make.py", "1", "2026-01-01T00:00:00+00:00")


def family(name: str) -> Callable[[Path, Path], None]:
    """A formula of the catalogue, in small, on awkward constants; maps and words lie where files have them."""

    def write(directory: Path, target: Path) -> None:  # noqa: ARG001
        formula = catalog.get(name)
        random = np.random.default_rng(list(name.encode()))
        constants = {c.name: _constant(c, formula, random) for c in formula.constants if c.name not in ABSENT}
        inputs = {i.name: _input(i, random) for i in formula.inputs}
        pixels = [DIMS[d] for d in formula.checked.pixel_dims]
        with h5py.File(target, "w", libver=("v110", "v110")) as file:
            detector = write_skeleton(file, {}, tuple(pixels))["instrument/detector"]
            raw = new_group(detector, names.RAW_GROUP, names.DATA)
            paths, given = {}, {}
            for item in formula.inputs:
                values = inputs[item.name]
                if item.dims == ("frame", *formula.checked.pixel_dims):
                    chunks = (values.shape[0] // 2, *values.shape[1:])
                    raw.create_dataset(item.name, data=values, chunks=chunks, compression="gzip", fletcher32=True)
                    paths[item.name] = f"{raw.name}/{item.name}"
                elif item.dims:
                    detector[item.name] = values
                    paths[item.name] = f"{detector.name}/{item.name}"
                else:
                    given[item.name] = (values, item.units)
                    paths[item.name] = f"{names.GIVEN}/{item.name}"
            collection = new_group(detector, names.CALIBRATION_GROUP, names.COLLECTION)
            notes = dict.fromkeys(constants, WRITTEN)
            write_calibration(collection, name, formula, paths, constants, given, notes, WRITTEN)

    return write


def _constant(item: Constant, formula: Formula, random: np.random.Generator) -> ConstantMap:
    """Numbers of a usual size, some of them awkward."""
    axes = [d for d in item.dims if d not in formula.checked.pixel_dims]
    labels = tuple(tuple(range(7)) if formula.name == "epix10ka" else LABELS[a] for a in axes)
    shape = [*(len(axis) for axis in labels), *(DIMS[d] for d in item.dims[len(axes) :])]
    usual = 30_000 if item.name == "thresholds" else {"ADU": 500.0, "ADU/keV": 20.0}.get(item.units, 1.5)
    values = random.normal(1, 0.5, shape) * usual
    values = np.where(random.random(shape) < 0.1, random.choice(SPECIAL, shape), values) if shape else np.array(usual)
    return ConstantMap(values.astype(np.float32), labels)


def _input(item: Input, random: np.random.Generator) -> Array:
    if item.dtype is None:
        return np.array({"photon_energy": 12.4, "adu_per_kev": 7.5}[item.name])
    shape = [DIMS[d] for d in item.dims]
    if item.name == "pixel_mask":
        return random.choice(np.array([0] * 9 + [1, 1 << 8, 1 << 31], np.uint32), shape)
    known = np.array([n for n in NUMBERS.get(item.name, ()) if n < 256 or item.dtype != "uint8"])
    if len(known):
        return random.choice(known, shape).astype(item.dtype)
    words = random.integers(0, 256 if item.dtype == "uint8" else 65_536, shape).astype(item.dtype)
    return np.where(random.random(shape) < 0.1, random.choice(SPECIAL_WORDS, shape), words).astype(item.dtype)


def write_expected(master: Path, target: Path) -> None:
    """What the reference evaluator makes of a file, for every output in every dtype."""
    opened = open_master(master)
    with opened.resolver, h5py.File(target, "w", libver=("v110", "v110")) as file:
        calibration = opened.calibration
        shape = calibration.layout.shape
        read = {name: w.read((0,) * len(shape), shape) for name, w in opened.words.items()}
        words = {name: values for name, (values, _) in read.items()}
        gone = np.zeros(shape, bool)
        for _, absent in read.values():
            gone |= absent if absent is not None else False
        for name in calibration.available_outputs():
            output = calibration.formula.output(name)
            for dtype in (output.dtype, *(d for d, _ in output.alternatives)):
                program = calibration.program(name, dtype)
                values, flags = reference.evaluate(program, calibration.block(program, words, slice(None)))
                values, flags = values.reshape(shape).copy(), flags.reshape(shape).copy()
                values[gone] = np.nan if program.fill is None else program.fill
                flags[gone] = np.uint32(1 << 31)
                key = name if dtype == output.dtype else f"{name}.{dtype}"
                file.create_dataset(key, data=values, compression="gzip", chunks=(1, *shape[1:]), fletcher32=True)
                file.create_dataset(f"{key}_flags", data=flags, compression="gzip", chunks=(1, *shape[1:]))


def spoil(source: Path, target: Path, change: Callable[[h5py.Group], None], mend: bool) -> None:
    """A copy of a file with one change; with `mend` the checksum is made right again."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        group = next(iter(file[GROUP].values()))
        change(group)
        if mend:
            fields: dict[str, Array] = {}
            group.visititems(lambda n, i: fields.update({n: i[()]}) if isinstance(i, h5py.Dataset) else None)
            del fields[names.CHECKSUM]
            fields = {n: v for n, v in fields.items() if n.split("/")[0] != n.split("/")[-1]}  # not constants' values
            arrays = {n: np.asarray(v, group[n].dtype) for n, v in fields.items()}
            del group[names.CHECKSUM]
            group[names.CHECKSUM] = np.bytes_(fields_checksum(arrays))


def _put(path: str, value: Any) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        group[path][0] = value

    return change


def _drop(path: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[path]

    return change


FAMILIES = (
    *("agipd", "cspad", "epix10ka", "gotthard2", "gotthard2_split", "jungfrau_cells_modules", "jungfrau_hg0"),
    *("jungfrau_split", "jungfrau_wide", "linear", "lpd", "moench", "mpccd", "percival"),
)
REFUSALS: dict[str, tuple[Callable[[h5py.Group], None], bool]] = {
    "refuse_version": (_put("formula/format_version", 2), True),
    "refuse_operation": (_put("formula/required_operations", b"magic"), True),
    "refuse_checksum": (_put("tables/stage_of_code", 2), False),
    "refuse_missing_constant": (_drop("gain"), True),
    "refuse_missing_column": (_drop("steps/argument_2"), True),
}
CASES: dict[str, Callable[[Path, Path], None]] = {
    "jungfrau": jungfrau,
    "operations": operations,
    "missing": missing,
    "cells": cells,
    **{f"family_{name}": family(name) for name in FAMILIES},
}


def main() -> None:
    """Make what is not there yet."""
    import tempfile

    for name, case in CASES.items():
        target = HERE / f"{name}.nxs"
        if not target.exists():
            with tempfile.TemporaryDirectory() as directory:
                case(Path(directory), target)
        expected = HERE / f"{name}.expected.h5"
        if not expected.exists():
            write_expected(target, expected)
    for name, (change, mend) in REFUSALS.items():
        if not (HERE / f"{name}.nxs").exists():
            spoil(HERE / "missing.nxs", HERE / f"{name}.nxs", change, mend)


if __name__ == "__main__":
    main()
