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

from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula
from gaincal.kernels import reference
from gaincal.nexus import names
from gaincal.nexus.group import fields_checksum
from gaincal.nexus.read import open_master
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
