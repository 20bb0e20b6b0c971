"""A calibration group comes back as it was written, and every change of it is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hostile.harness import CHECKSUM

from gaincal.calibration import ConstantMap
from gaincal.errors import FileError
from gaincal.formulas.catalog import get
from gaincal.formulas.formula import Formula
from gaincal.nexus.group import (
    Provenance,
    StoredCalibration,
    array_checksum,
    fields_checksum,
    read_calibration,
    write_calibration,
)
from gaincal.nexus.trust import Resolver

Array = npt.NDArray[Any]
LABELS = ((0, 1, 2),)
MAPS = {
    "pedestal": ConstantMap(np.random.default_rng(1).normal(1000, 9, (3, 4, 6)), LABELS),
    "gain": ConstantMap(np.random.default_rng(2).normal(40, 1, (3, 4, 6)).astype(">f4"), ((7, 0, 65_535),)),
}
PATHS = {"raw": "/entry/instrument/detector/raw/data", "photon_energy": "given/photon_energy"}
NOTE = Provenance("gain.h5", "HDF5 /gains", "2026-01-01T00:00:00+00:00")
EXTRA = """
[formula]
name = "extra"
version = 3
title = "tables, plain constants, labels of two axes; no flags"
compute = "float64"
[inputs.raw]
dims = ["frame", "y", "x"]
units = "ADU"
dtype = "uint32"
[inputs.cell]
dims = ["frame"]
units = "1"
dtype = "uint16"
[constants.scale]
dims = []
units = "1"
[constants.count]
dims = ["cell", "stage", "y", "x"]
units = "1"
dtype = "uint8"
[tables]
stages = [0, -1, 2147483647]
[steps]
stage = "lookup(stages, bits(raw, 0, 2))"
energy = "raw * scale * count[cell, stage]"
[outputs]
energy = { units = "ADU", dtype = "float64", default = true }
"""


def write(path: Path, formula: Formula | None = None, **changed: Any) -> str:
    given: dict[str, Any] = {
        "paths": PATHS,
        "constants": MAPS,
        "inputs": {"photon_energy": (np.array(12.4), "keV/photon")},
    } | changed
    formula = formula or get("jungfrau")
    notes = {c.name: NOTE for c in formula.constants}
    with h5py.File(path, "w") as file:
        return write_calibration(
            file, "mine", formula, given["paths"], given["constants"], given["inputs"], notes, NOTE
        )


def read(path: Path) -> StoredCalibration:
    with Resolver(path) as resolver:
        return read_calibration(resolver, resolver.get("mine"))


def fields(path: Path) -> dict[str, Any]:
    """All fields below the group, with types as they are stored."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.empty(item.shape, item.dtype)
            if values.size:
                item.read_direct(values)
            found[name] = values

    with h5py.File(path) as file:
        file["mine"].visititems(visit)
    return found


def defined_checksum(found: dict[str, Array]) -> str:
    """Section 8 of the specification, once more."""
    digest = hashlib.sha256()
    for path in sorted(found, key=lambda p: p.encode()):
        if path == CHECKSUM or path in {f"{n}/{n}" for n in MAPS}:
            continue
        values = found[path]
        kind = "b1" if values.dtype == np.bool_ else values.dtype.kind + str(values.dtype.itemsize)
        shape = ",".join(map(str, values.shape))
        little = values.astype(values.dtype.newbyteorder("<")) if values.dtype.kind in "iuf" else values
        digest.update(f"{path}|{kind}|{shape}|".encode() + little.tobytes("C"))
    return f"sha256:{digest.hexdigest()}"


def test_everything_comes_back(tmp_path: Path) -> None:
    checksum = write(tmp_path / "f.h5")
    stored = read(tmp_path / "f.h5")
    assert stored.formula == get("jungfrau")
    assert stored.checksum == checksum
    assert {n: p for n, p in stored.paths.items() if p} == PATHS
    assert stored.inputs == {"photon_energy": np.array(12.4)}
    for name, constant in MAPS.items():
        np.testing.assert_array_equal(stored.constants[name].values, constant.values)
        assert stored.constants[name].labels == constant.labels
        assert stored.sources[name] == "gain.h5, HDF5 /gains, 2026-01-01T00:00:00+00:00"


def test_formulas_of_every_kind_come_back(tmp_path: Path) -> None:
    formula = Formula.from_toml(EXTRA)
    count = np.arange(2 * 3 * 24, dtype=np.uint8).reshape(2, 3, 4, 6)
    given = {"scale": ConstantMap(np.array(0.5), ()), "count": ConstantMap(count, ((4, 9), (0, 1, 2)))}
    cells = np.array([4, 9, 4], np.uint16)
    write(tmp_path / "f.h5", formula, constants=given, inputs={"cell": (cells, "1")}, paths={"cell": "given/cell"})
    stored = read(tmp_path / "f.h5")
    assert stored.formula == formula
    np.testing.assert_array_equal(stored.inputs["cell"], cells)
    np.testing.assert_array_equal(stored.constants["count"].values, count)
    assert stored.constants["count"].labels == ((4, 9), (0, 1, 2))
    assert stored.constants["scale"].values == 0.5


def test_the_checksum_is_the_defined_one(tmp_path: Path) -> None:
    checksum = write(tmp_path / "f.h5")
    found = fields(tmp_path / "f.h5")
    assert found[CHECKSUM][()].decode() == checksum
    assert defined_checksum(found) == checksum
    for name in MAPS:
        values = found.pop(f"{name}/{name}")
        for k, slab in enumerate(values):
            text = f"f{slab.dtype.itemsize}|4,6|".encode() + slab.astype(slab.dtype.newbyteorder("<")).tobytes()
            assert found[f"{name}/checksums"][k].tobytes() == hashlib.sha256(text).digest()
    del found[CHECKSUM]
    assert fields_checksum(found) == checksum


def test_the_checksum_of_a_note_is_that_of_its_constant(tmp_path: Path) -> None:
    write(tmp_path / "f.h5")
    found = fields(tmp_path / "f.h5")
    for name in MAPS:
        values = found[f"{name}/{name}"]
        text = f"f{values.dtype.itemsize}|3,4,6|".encode() + values.astype(values.dtype.newbyteorder("<")).tobytes()
        wanted = "sha256:" + hashlib.sha256(text).hexdigest()
        assert found[f"{name}_source/checksum"][()].decode() == wanted
        assert array_checksum(values) == wanted


@pytest.mark.parametrize("values", [np.array(True), np.array([b"a", b"bc"]), np.array(3, ">i4"), np.zeros((0, 2))])
def test_checksums_know_no_byte_order(values: Array) -> None:
    assert fields_checksum({"a": values}) == defined_checksum({"a": values})
    if values.dtype.kind in "if":
        assert array_checksum(values) == array_checksum(values.astype(values.dtype.newbyteorder("=")))


@pytest.mark.parametrize(("a", "b"), [
    ({"a": np.array([1, 2], np.int32)}, {"a": np.array([[1, 2]], np.int32)}),
    ({"a": np.array([1], np.int32)}, {"a": np.array([1], np.uint32)}),
    ({"a": np.array(1, np.int32)}, {"b": np.array(1, np.int32)}),
    ({"a": np.array([b"ab"])}, {"a": np.array([b"ab"], "S3")}),
    ({"a": np.zeros(0, np.int32)}, {}),
])  # fmt: skip
def test_fields_that_differ_have_another_checksum(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert fields_checksum(a) != fields_checksum(b)


def test_only_plain_types_are_stored(tmp_path: Path) -> None:
    write(tmp_path / "f.h5")
    for path, values in fields(tmp_path / "f.h5").items():
        assert values.dtype.kind in "iufSb", path
        if values.dtype.kind == "S":
            assert all(bytes(v).isascii() for v in values.reshape(-1))
    with h5py.File(tmp_path / "f.h5") as file:
        assert not file["mine/applied"][()]
        for path in ("mine", "mine/steps", "mine/gain", "mine/gain_source", "mine/given"):
            assert file[path].attrs["NX_class"].startswith("NX")


def edit_every_field(path: Path) -> list[str]:
    return [name for name, values in fields(path).items() if values.size]


def test_a_change_of_any_field_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "f.h5")
    original = (tmp_path / "f.h5").read_bytes()
    for name in edit_every_field(tmp_path / "f.h5"):
        (tmp_path / "f.h5").write_bytes(original)
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            values = file[f"mine/{name}"][()]
            changed = np.array(values).reshape(-1).copy()
            raw = bytearray(changed.tobytes())
            raw[0] ^= 1
            edited = np.frombuffer(bytes(raw), changed.dtype).reshape(np.shape(values))
            file[f"mine/{name}"][...] = edited
        with pytest.raises(FileError):
            read(tmp_path / "f.h5")


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_added_removed_and_renamed_fields_are_noticed(change: str, tmp_path: Path) -> None:
    write(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        group = file["mine"]
        if change == "added":
            group["remark"] = np.bytes_(b"x")
        elif change == "removed":
            del group["description"]
        else:
            group.move("description", "remark")
    with pytest.raises(FileError) as caught:
        read(tmp_path / "f.h5")
    assert caught.value.code == "checksum-differs"


def test_a_title_is_stored_as_text_of_fixed_length(tmp_path: Path) -> None:
    write(tmp_path / "f.h5")
    assert fields(tmp_path / "f.h5")["description"][()].decode() == get("jungfrau").title


def test_attributes_and_order_of_members_do_not_matter(tmp_path: Path) -> None:
    checksum = write(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["mine"].attrs["remark"] = "x"
        file["mine/gain/gain"].attrs["units"] = "furlong"
        values = file["mine/applied"][()]
        del file["mine/applied"]
        file["mine/applied"] = values
    assert read(tmp_path / "f.h5").checksum == checksum
