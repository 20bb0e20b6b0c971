"""The calibration group: formula, constants and inputs as fields of an NXcalibration.

The layout and the checksum are those of section 8 of ``docs/formula-spec.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.constants import SLAB_DIMS, ConstantMap, Slabs
from gaincal.errors import FileError, FormulaError, TrustError
from gaincal.formulas.columns import LAYOUT, TABLES, from_columns, to_columns
from gaincal.formulas.formula import Constant, Formula
from gaincal.formulas.program import Labels
from gaincal.nexus import names
from gaincal.nexus.dataset import check_budget
from gaincal.nexus.fields import MAX_FIELD_INFLATION, MIN_CHECKED_FIELD, read_array, read_column, read_text
from gaincal.nexus.origin import Origin, find_origin
from gaincal.nexus.slabs import (
    StoredSlabs,
    array_digest,
    array_header,
    checksums_shape,
    little_endian,
    slab,
    slab_places,
)
from gaincal.nexus.trust import Place, Resolver

Array = npt.NDArray[Any]
MAX_CONSTANT_BYTES = 16 << 30
MAX_LOADED_BYTES = 512 << 20
"""A constant beyond this is read where it is needed, and with it those that are chosen from in the same way."""
MAX_FIELDS = 2048
TABLE_CHUNK = 65_536
PATH_COLUMN = "path"


@dataclass(frozen=True)
class Provenance:
    """Where a constant came from.

    Parameters
    ----------
    file_name, description, date : str
        Name of the file, how it was read, when (ISO 8601).
    note : str
        What the user should know; not stored.
    """

    file_name: str
    description: str
    date: str
    note: str = ""


@dataclass(frozen=True)
class StoredCalibration:
    """Everything in a calibration group, checked against its checksum but not yet against any raw data.

    Parameters
    ----------
    place : Place
    formula : Formula
    paths : mapping of str to str
        Where each input lies; empty where it is not there.
    constants : mapping of str to ConstantMap
    inputs : mapping of str to ndarray
        Inputs kept in the group.
    sources : mapping of str to str
        One line per constant: where it came from.
    checksum : str
    origin : Origin, optional
        The calibration that this one refers to, in a view of a run.
    """

    place: Place
    formula: Formula
    paths: Mapping[str, str]
    constants: Mapping[str, ConstantMap]
    inputs: Mapping[str, Array]
    sources: Mapping[str, str]
    checksum: str
    origin: Origin | None = None


# --- checksum ------------------------------------------------------------------------------


def array_checksum(values: Array | Slabs) -> str:
    """Checksum of one array: type, shape and little-endian values."""
    digest = hashlib.sha256(array_header(values.dtype, values.shape))
    for place in slab_places(values.shape):
        digest.update(little_endian(slab(values, place)))
    return f"sha256:{digest.hexdigest()}"


def fields_checksum(fields: Mapping[str, Array]) -> str:
    """Checksum over the fields of a calibration group, by path; for the values of constants stand their slabs'."""
    digest = hashlib.sha256()
    for path in sorted(fields, key=str.encode):
        values = fields[path]
        digest.update(path.encode() + b"|" + array_header(values.dtype, values.shape))
        digest.update(little_endian(values))
    return f"sha256:{digest.hexdigest()}"


# --- writing -------------------------------------------------------------------------------


def write_calibration(
    parent: h5py.Group,
    name: str,
    formula: Formula,
    paths: Mapping[str, str],
    constants: Mapping[str, ConstantMap],
    inputs: Mapping[str, tuple[Array, str]],
    provenance: Mapping[str, Provenance],
    written: Provenance,
) -> str:
    """Write a calibration group.

    Parameters
    ----------
    parent : h5py.Group
        The NXcollection that receives it.
    name : str
    formula : Formula
    paths : mapping of str to str
        Where each input lies.
    constants : mapping of str to ConstantMap
    inputs : mapping of str to (ndarray, str)
        Inputs to keep in the group, with their units.
    provenance : mapping of str to Provenance
        Of the constants.
    written : Provenance
        Program (as ``file_name``), its version (as ``description``) and date of writing.

    Returns
    -------
    checksum : str
    """
    group = new_group(parent, name, names.CALIBRATION)
    fields: dict[str, Array] = {
        "applied": np.array(False),
        "description": text_field(formula.title),
        "fit_formula_description": text_field(formula.to_toml()),
        "program": text_field(written.file_name),
        "version": text_field(written.description),
        "date": text_field(written.date),
    }
    fields |= formula_fields(formula, paths)
    units = {n: u for n, (_, u) in inputs.items()}
    fields |= {f"{names.GIVEN}/{n}": values for n, (values, _) in inputs.items()}
    fields |= integrity_fields()
    kept = [c for c in formula.constants if c.name in constants]
    _create_groups(group, formula, kept)
    for constant in kept:
        bound = constants[constant.name]
        axes = [d for d in constant.dims if d not in formula.checked.pixel_dims]
        for axis, labels in zip(axes, bound.labels, strict=True):
            fields[f"{constant.name}/{axis}"] = np.array(labels, np.int32)
        path = f"{constant.name}/{constant.name}"
        fields[f"{constant.name}/{names.SLAB_CHECKSUMS}"] = _write_slabs(group, path, bound.values, constant.units)
        note = f"{constant.name}{names.SOURCE_SUFFIX}"
        fields |= _note_fields(note, provenance[constant.name], array_checksum(bound.values))
    for path, values in fields.items():
        create_field(group, path, values, units.get(path.rsplit("/", 1)[-1]))
    checksum = fields_checksum(fields)
    group.create_dataset(names.CHECKSUM, data=np.bytes_(checksum))
    return checksum


def new_group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """Create a group of a NeXus class (a variable-length string: pynxtools fails on others)."""
    group = parent.create_group(name, track_order=True)
    group.attrs[names.NX_CLASS] = nx_class
    return group


def text_field(text: str) -> Array:
    """A text as it is stored in a calibration."""
    return np.array(text.encode("ascii", "backslashreplace") or b"\0", np.bytes_)


def _column(values: object) -> Array:
    """A column as it is stored; a column of text has at least one byte per cell."""
    assert isinstance(values, list)
    if not values or isinstance(values[0], str):
        width = max((len(v) for v in values), default=1) or 1
        return np.array([v.encode("ascii") for v in values], f"S{width}")
    return np.array(values, np.float64 if isinstance(values[0], float) else np.int32)


def formula_fields(formula: Formula, paths: Mapping[str, str]) -> dict[str, Array]:
    """The tables of a formula, as they are stored."""
    columns = to_columns(formula)
    columns["inputs"][PATH_COLUMN] = [paths.get(i.name, "") for i in formula.inputs]
    empty = {"integer": np.int32, "real": np.float64}
    fields = {}
    for group, content in columns.items():
        for name, values in content.items():
            kind = LAYOUT.get(group, {}).get(name, "text")
            fields[f"{group}/{name}"] = np.empty(0, empty[kind]) if not values and kind in empty else _column(values)
    return fields


def _note_fields(name: str, provenance: Provenance, checksum: str) -> dict[str, Array]:
    return {
        f"{name}/file_name": text_field(provenance.file_name),
        f"{name}/description": text_field(provenance.description),
        f"{name}/date": text_field(provenance.date),
        f"{name}/checksum": text_field(checksum),
        f"{name}/algorithm": text_field("sha256"),
    }


def _create_groups(group: h5py.Group, formula: Formula, constants: Iterable[Constant]) -> None:
    for part in (*LAYOUT, TABLES, names.GIVEN):
        new_group(group, part, names.PARAMETERS)
    new_group(group, names.INTEGRITY, names.NOTE)
    for constant in constants:
        data = new_group(group, constant.name, names.DATA)
        data.attrs[names.SIGNAL_ATTRIBUTE] = constant.name
        pixel_dims = formula.checked.pixel_dims
        data.attrs[names.AXES_ATTRIBUTE] = ["." if d in pixel_dims else d for d in constant.dims]
        new_group(group, f"{constant.name}{names.SOURCE_SUFFIX}", names.NOTE)


def _write_slabs(group: h5py.Group, path: str, values: Array | Slabs, units: str) -> Array:
    """Write a constant slab by slab; returns the checksums."""
    kind = values.dtype.newbyteorder("=")
    if values.ndim == 0 if isinstance(values, np.ndarray) else not values.shape:
        dataset = group.create_dataset(path, data=slab(values, ()))
    else:
        chunks = (*(1,) * (len(values.shape) - SLAB_DIMS), *values.shape[-SLAB_DIMS:])
        stored: dict[str, Any] = {"chunks": chunks, "fletcher32": True} if 0 not in values.shape else {}
        dataset = group.create_dataset(path, values.shape, kind, **stored)
    dataset.attrs[names.UNIT_ATTRIBUTE] = units
    checksums = np.zeros(checksums_shape(values.shape), np.uint8)
    for place in slab_places(values.shape):
        part = slab(values, place).astype(kind, copy=False)
        if values.shape:
            dataset[place] = part
        checksums[place] = np.frombuffer(array_digest(part), np.uint8)
    return checksums


def create_field(group: h5py.Group, path: str, values: Array, units: str | None) -> None:
    """Create a field; with a checksum of its own wherever HDF5 can (not for scalars)."""
    if values.ndim == 0 or values.size == 0:
        dataset = group.create_dataset(path, data=values)
    else:
        chunks = values.shape if values.ndim == 1 else (*(1,) * (values.ndim - 2), *values.shape[-2:])
        chunks = (min(chunks[0], TABLE_CHUNK), *chunks[1:])
        dataset = group.create_dataset(path, data=values, chunks=chunks, fletcher32=True)
    if units is not None:
        dataset.attrs[names.UNIT_ATTRIBUTE] = units


def integrity_fields() -> dict[str, Array]:
    """What is said about the checksum of a calibration."""
    about = {"algorithm": "sha256", "description": "over all fields of this calibration"}
    return {f"{names.INTEGRITY}/{name}": text_field(text) for name, text in about.items()}


# --- reading -------------------------------------------------------------------------------


def read_calibration(resolver: Resolver, place: Place) -> StoredCalibration:
    """Read a calibration group and check everything that needs no raw data.

    Raises
    ------
    FileError
        If a field is missing, odd, or the checksum differs.
    TrustError
        If a field leads where it must not, or is beyond all measure.
    """
    origin = find_origin(resolver, place)
    found = dict(walk_fields(resolver, place))
    if names.CHECKSUM not in found:
        raise place.error("has no checksum: it is not a calibration of gaincal, or incomplete", code="no-checksum")
    checksum = read_text(found.pop(names.CHECKSUM))
    columns = {g: _group_columns(found, g) for g in (*LAYOUT, TABLES)}
    held = {f"{name}/{name}": name for name in columns["constants"].get("name", [])}
    fields = {path: read_array(field) for path, field in found.items() if path not in held}
    if fields_checksum(fields) != checksum:
        where = f", here or in {origin.file}" if origin else ""
        problem = f"its checksum differs: a constant or the formula was changed after it was written{where}"
        raise place.error(problem, "embed it again", code="checksum-differs")
    paths = columns["inputs"].pop(PATH_COLUMN, None)
    try:
        formula = from_columns(columns)
    except FormulaError as error:
        raise place.error(f"formula: {error}", code="formula") from error
    kept = [c for c in formula.constants if c.default is None or f"{c.name}/{c.name}" in found]
    constants = _loaded(formula, {c.name: _constant(place, found, fields, formula, c) for c in kept})
    inputs = {i.name: fields[path] for i in formula.inputs if (path := f"{names.GIVEN}/{i.name}") in fields}
    if paths is None or len(paths) != len(formula.inputs) or not all(isinstance(p, str) for p in paths):
        where = f"{place.path}/inputs/{PATH_COLUMN}"
        raise FileError(place.file, where, "must be a text for every input", "embed it again", code="formula")
    listed = dict(zip((i.name for i in formula.inputs), paths, strict=True))
    sources = {c.name: _source_line(fields, c.name) for c in kept}
    return StoredCalibration(place, formula, listed, constants, inputs, sources, checksum, origin)


def walk_fields(resolver: Resolver, place: Place) -> Iterator[tuple[str, Place]]:
    """Every field below a group, two levels deep, by its path."""
    count = 0
    for name in resolver.members(place):
        member = resolver.walk(place, name)
        if isinstance(member.item, h5py.Dataset):
            yield name, member
            continue
        for inner in resolver.members(member):
            count += 1
            if count > MAX_FIELDS:
                raise TrustError(place.file, place.path, f"has more than {MAX_FIELDS} fields", code="too-many-members")
            field = resolver.walk(member, inner)
            if not isinstance(field.item, h5py.Dataset):
                raise field.error("does not belong into a calibration", code="odd-layout")
            yield f"{name}/{inner}", field


def _group_columns(found: Mapping[str, Place], group: str) -> dict[str, Any]:
    prefix = f"{group}/"
    return {p.removeprefix(prefix): read_column(f) for p, f in found.items() if p.startswith(prefix)}


def _constant(
    place: Place, found: Mapping[str, Place], fields: Mapping[str, Array], formula: Formula, declared: Constant
) -> tuple[StoredSlabs, Labels]:
    name = declared.name
    axes = [d for d in declared.dims if d not in formula.checked.pixel_dims]
    for wanted in (f"{name}/{n}" for n in (name, names.SLAB_CHECKSUMS, *axes)):
        if wanted not in found:
            where = f"{place.path}/{wanted}"
            raise FileError(place.file, where, "is missing", "embed the calibration again", code="not-found")
    labels = []
    for axis in axes:
        values = fields[f"{name}/{axis}"]
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise FileError(
                place.file, f"{place.path}/{name}/{axis}", "labels must be a list of integers", code="odd-type"
            )
        labels.append(tuple(int(v) for v in values))
    field = found[f"{name}/{name}"]
    if field.dataset.is_virtual:
        raise TrustError(field.file, field.path, "is a virtual dataset, which is not allowed here", code="odd-layout")
    check_budget(field, MAX_CONSTANT_BYTES, MIN_CHECKED_FIELD, MAX_FIELD_INFLATION)
    return StoredSlabs(field, fields[f"{name}/{names.SLAB_CHECKSUMS}"]), tuple(labels)


def _loaded(formula: Formula, stored: Mapping[str, tuple[StoredSlabs, Labels]]) -> dict[str, ConstantMap]:
    """Constants in memory, but for those that are too large, and all that are chosen from by the same inputs."""
    axes = {c.name: c.dims for c in formula.constants}
    inputs = {i.name for i in formula.inputs}
    chosen = {
        (step.arguments[0], axis)
        for step in formula.steps
        if step.operation == "select"
        for axis, index in zip(axes[step.arguments[0]], step.arguments[1:], strict=False)
        if index in inputs
    }
    large = {name for name, (slabs, _) in stored.items() if slabs.nbytes > MAX_LOADED_BYTES}
    shared = {axis for name, axis in chosen if name in large}
    slab_dims = formula.checked.pixel_dims[-SLAB_DIMS:]
    maps = {c.name for c in formula.constants if c.dtype is None and c.dims[-SLAB_DIMS:] == slab_dims}
    kept = large | {name for name, axis in chosen if axis in shared and name in maps}
    return {
        name: ConstantMap(slabs if name in kept else slabs.whole(), labels) for name, (slabs, labels) in stored.items()
    }


def _source_line(fields: Mapping[str, Array], name: str) -> str:
    parts = (fields.get(f"{name}{names.SOURCE_SUFFIX}/{key}") for key in ("file_name", "description", "date"))
    texts = (p.reshape(-1)[0] for p in parts if p is not None and p.size and p.dtype.kind == "S")
    return ", ".join(bytes(t).decode("utf-8", "replace") for t in texts)
