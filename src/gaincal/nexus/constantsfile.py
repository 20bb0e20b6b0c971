"""Constants files: constants with labels, bad pixels and their reasons, when they hold, and what made them.

The layout is described in ``docs/reference/constants-files.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.constants import SLAB_DIMS, ConstantMap
from gaincal.errors import FileError
from gaincal.nexus import names
from gaincal.nexus.dataset import check_budget
from gaincal.nexus.fields import MAX_FIELD_INFLATION, MIN_CHECKED_FIELD, attribute_text, read_array, read_text
from gaincal.nexus.group import (
    MAX_CONSTANT_BYTES,
    MAX_LOADED_BYTES,
    fields_checksum,
    new_group,
)
from gaincal.nexus.slabs import StoredSlabs, array_digest, checksums_shape, slab_places
from gaincal.nexus.trust import Place, Resolver, reading

Array = npt.NDArray[Any]
Fact = str | float | int
STAGE, CELL, THRESHOLD = "stage", "cell", "threshold"
AXES = (STAGE, THRESHOLD, CELL)
REASONS, COUNTS = "reasons", "counts"
NAMES_FIELD, BITS_FIELD = "reason_names", "reason_bits"
UNITS = {"exposure_time": "s", "temperature": "K", "high_voltage": "V"}
"""Of facts that are numbers."""


@dataclass(frozen=True, eq=False)
class ConstantsSet:
    """A constants file, checked.

    Parameters
    ----------
    file : Path
    constants : mapping of str to ConstantMap
        pedestal (or offset), noise, counts, reasons ... along their axes and the pixels.
    axes : mapping of str to tuple of str
        Named axes of each of them.
    units : mapping of str to str
    pixel_mask : ndarray (*pixels) of uint32, or None
        In the bits of NXmx.
    reason_names : mapping of int to str
        What the bits of ``reasons`` mean.
    validity : mapping of str to str or number
        What is known of the darks: start_time, end_time, detector_name ...
    parameters : mapping of str to str or number
        How the constants were made.
    checksum : str
    """

    file: Path
    constants: Mapping[str, ConstantMap]
    axes: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    pixel_mask: Array | None
    reason_names: Mapping[int, str]
    validity: Mapping[str, Fact]
    parameters: Mapping[str, Fact]
    checksum: str

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of a frame; () of a set without constants."""
        return next((tuple(c.values.shape[len(self.axes[n]) :]) for n, c in self.constants.items()), ())

    def labels(self, name: str) -> dict[str, tuple[int, ...]]:
        """Labels along each named axis of a constant."""
        return dict(zip(self.axes[name], self.constants[name].labels, strict=True))


# --- writing -------------------------------------------------------------------------------


class ConstantsWriter:
    """Writes a constants file slab by slab, in a file that is being written.

    Parameters
    ----------
    file : h5py.File
    pixels : tuple of int
        Shape of a frame.
    """

    def __init__(self, file: h5py.File, pixels: tuple[int, ...]) -> None:
        self.pixels, self.fields = pixels, dict[str, Array]()
        file.attrs[names.DEFAULT_ATTRIBUTE] = names.ENTRY_PATH.strip("/")
        entry = new_group(file, names.ENTRY_PATH, names.ENTRY)
        entry.attrs[names.DEFAULT_ATTRIBUTE] = names.CONSTANTS_GROUP
        self.group = new_group(entry, names.CONSTANTS_GROUP, names.COLLECTION)
        self._labels: dict[str, dict[str, list[int]]] = {}

    def create(self, name: str, dtype: npt.DTypeLike, units: str | None, labels: Mapping[str, tuple[int, ...]]) -> None:
        """Begin a constant.

        Parameters
        ----------
        name : str
        dtype : dtype
        units : str or None
        labels : mapping of str to tuple of int
            Along each of its named axes; the first axis grows with what is put in.
        """
        lengths = [len(values) for values in labels.values()]
        shape, grown = (*lengths, *self.pixels), (*([None] if labels else []), *lengths[1:], *self.pixels)
        if not self.group.attrs.get(names.DEFAULT_ATTRIBUTE):
            self.group.attrs[names.DEFAULT_ATTRIBUTE] = name
        data = new_group(self.group, name, names.DATA)
        data.attrs[names.SIGNAL_ATTRIBUTE] = name
        data.attrs[names.AXES_ATTRIBUTE] = [*labels, *("." for _ in self.pixels)]
        chunks = (*(1,) * len(lengths), *(1,) * (len(self.pixels) - SLAB_DIMS), *self.pixels[-SLAB_DIMS:])
        empty = np.nan if np.dtype(dtype).kind == "f" else 0
        dataset = data.create_dataset(
            name, shape, dtype, maxshape=grown, chunks=chunks, fletcher32=True, fillvalue=empty
        )
        if units is not None:
            dataset.attrs[names.UNIT_ATTRIBUTE] = units
        self._labels[name] = {axis: list(values) for axis, values in labels.items()}

    def put(self, name: str, labels: tuple[int, ...], values: Array) -> None:
        """Write the values of some labels; ``values`` has the shape of a frame."""
        dataset, known = self.group[f"{name}/{name}"], list(self._labels[name].values())
        if labels and labels[0] not in known[0]:
            known[0].append(labels[0])
            dataset.resize(len(known[0]), axis=0)
        place = tuple(axis.index(label) for axis, label in zip(known, labels, strict=True))
        dataset[place] = values.reshape(self.pixels)

    def attach(self, path: str, values: Array, units: str | None = None) -> h5py.Dataset:
        """Write what stands beside the constants; returns the dataset."""
        self._field(path, values)
        if units is not None:
            self.group[path].attrs[names.UNIT_ATTRIBUTE] = units
        return self.group[path]

    def get(self, name: str, labels: tuple[int, ...]) -> Array:
        """What was written for some labels; NaN, or 0, where nothing was."""
        known = self._labels[name].values()
        place = tuple(axis.index(label) for axis, label in zip(known, labels, strict=True))
        return np.asarray(self.group[f"{name}/{name}"][place])

    def _close(self, name: str) -> None:
        """Write labels and checksums of a constant, and what is empty so that it is not missing."""
        dataset = self.group[f"{name}/{name}"]
        checksums = np.zeros(checksums_shape(dataset.shape), np.uint8)
        for place in slab_places(dataset.shape):
            part = dataset[place]
            if not np.any(np.isfinite(part) & (part != 0)):
                dataset[place] = part
            checksums[place] = np.frombuffer(array_digest(part), np.uint8)
        for axis, values in self._labels[name].items():
            self._field(f"{name}/{axis}", np.array(values, np.int32))
        self._field(f"{name}/{names.SLAB_CHECKSUMS}", checksums)

    def finish(
        self,
        pixel_mask: Array | None,
        reason_names: Mapping[str, int],
        validity: Mapping[str, Fact],
        parameters: Mapping[str, Fact],
    ) -> str:
        """Write everything else; returns the checksum."""
        for name in self._labels:
            self._close(name)
        if REASONS in self._labels:
            width = max(len(n) for n in reason_names)
            self._field(f"{REASONS}/{NAMES_FIELD}", np.array([n.encode() for n in reason_names], f"S{width}"))
            self._field(f"{REASONS}/{BITS_FIELD}", np.array(list(reason_names.values()), np.int32))
        if pixel_mask is not None:
            self._field(names.PIXEL_MASK, pixel_mask.astype(np.uint32))
        for group, facts in ((names.VALIDITY, validity), (names.PARAMETERS_GROUP, parameters)):
            new_group(self.group, group, names.PARAMETERS)
            for name, value in facts.items():
                self._fact(f"{group}/{name}", value)
        new_group(self.group, names.INTEGRITY, names.NOTE)
        self._fact(f"{names.INTEGRITY}/algorithm", "sha256")
        checksum = fields_checksum(self.fields)
        self.group.create_dataset(names.CHECKSUM, data=np.bytes_(checksum))
        return checksum

    def _fact(self, path: str, value: Fact) -> None:
        if isinstance(value, str):
            self._field(path, np.array(value.encode("ascii", "backslashreplace") or b"\0", np.bytes_))
            return
        self._field(path, np.array(value, np.int64 if isinstance(value, int) else np.float64))
        units = UNITS.get(path.rsplit("/", 1)[-1])
        if units:
            self.group[path].attrs[names.UNIT_ATTRIBUTE] = units

    def _field(self, path: str, values: Array) -> None:
        if values.ndim == 0 or values.size == 0:
            self.group.create_dataset(path, data=values)
        else:
            chunks = (*(1,) * max(0, values.ndim - SLAB_DIMS), *values.shape[-SLAB_DIMS:])
            self.group.create_dataset(path, data=values, chunks=chunks, fletcher32=True)
        self.fields[path] = values


# --- reading -------------------------------------------------------------------------------


def is_constants_file(resolver: Resolver) -> bool:
    """Whether a file has the group of a constants file."""
    return resolver.find(f"{names.CONSTANTS_PATH}/{names.CHECKSUM}") is not None


def read_constants(path: str | os.PathLike[str]) -> ConstantsSet:
    """Read a constants file and compare its checksum.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    ConstantsSet
        Constants beyond `MAX_LOADED_BYTES` are read, and checked, slab by slab where they are needed.

    Raises
    ------
    FileError
        If it is no constants file, damaged, or was changed.
    TrustError
        If a field leads where it must not.
    """
    resolver = Resolver(path)
    found: ConstantsSet | None = None
    try:
        with reading(path):
            found = _read(resolver)
        return found
    finally:
        if found is None or all(isinstance(c.values, np.ndarray) for c in found.constants.values()):
            resolver.close()


def held_constants(path: str | os.PathLike[str]) -> list[str]:
    """What constants a file has, and `names.PIXEL_MASK` if it has that; raises FileError if it is no constants file."""
    with Resolver(path) as resolver, reading(path):
        group = _group(resolver)
        return [n for n in resolver.members(group) if n == names.PIXEL_MASK or resolver.find(f"{n}/{n}", group)]


def read_validity(path: str | os.PathLike[str]) -> dict[str, Fact]:
    """When the constants of a file hold, without reading them; raises FileError if it is no constants file."""
    with Resolver(path) as resolver, reading(path):
        return _facts(resolver, _group(resolver), names.VALIDITY)


def _group(resolver: Resolver) -> Place:
    if not is_constants_file(resolver):
        remedy = "gaincal darks writes such files"
        raise FileError(resolver.named, names.CONSTANTS_PATH, "is no constants file", remedy, code="no-constants")
    return resolver.get(names.CONSTANTS_PATH)


def _read(resolver: Resolver) -> ConstantsSet:
    group = _group(resolver)
    stored = read_text(resolver.walk(group, names.CHECKSUM))
    constants, axes, units = dict[str, ConstantMap](), dict[str, tuple[str, ...]](), dict[str, str]()
    fields: dict[str, Array] = {}
    for name in resolver.members(group):
        member = resolver.walk(group, name)
        if isinstance(member.item, h5py.Dataset):
            fields[name] = read_array(member)
            continue
        signal = resolver.find(name, member)
        own = {n: resolver.walk(member, n) for n in resolver.members(member) if n != name}
        fields |= {f"{name}/{n}": read_array(p) for n, p in own.items() if f"{name}/{n}" != names.CHECKSUM}
        if signal is not None:
            axes[name] = tuple(n for n in AXES if n in own)
            units[name] = attribute_text(signal, names.UNIT_ATTRIBUTE) or ""
            constants[name] = _constant(signal, fields, name, axes[name])
    if fields_checksum(fields) != stored:
        problem = "its checksum differs: it was changed after it was written"
        raise group.error(problem, "take the darks again", code="checksum-differs")
    listed = zip(fields.get(f"{REASONS}/{BITS_FIELD}", ()), fields.get(f"{REASONS}/{NAMES_FIELD}", ()), strict=True)
    return ConstantsSet(
        Path(resolver.named),
        constants,
        axes,
        units,
        fields.get(names.PIXEL_MASK),
        {int(bit): bytes(name).decode("ascii", "replace") for bit, name in listed},
        _facts(resolver, group, names.VALIDITY),
        _facts(resolver, group, names.PARAMETERS_GROUP),
        stored,
    )


def _constant(place: Place, fields: Mapping[str, Array], name: str, axes: tuple[str, ...]) -> ConstantMap:
    check_budget(place, MAX_CONSTANT_BYTES, MIN_CHECKED_FIELD, MAX_FIELD_INFLATION)
    labels = []
    for axis, length in zip(axes, place.dataset.shape, strict=False):
        values = fields[f"{name}/{axis}"]
        if values.dtype.kind != "i" or values.shape != (length,):
            raise place.error(f"has labels {axis} that do not fit", "take the darks again", code="wrong-shape")
        labels.append(tuple(int(v) for v in values))
    checksums = fields.get(f"{name}/{names.SLAB_CHECKSUMS}", np.empty(0, np.uint8))
    slabs = StoredSlabs(place, checksums)
    return ConstantMap(slabs.whole() if slabs.nbytes <= MAX_LOADED_BYTES else slabs, tuple(labels))


def _facts(resolver: Resolver, group: Place, name: str) -> dict[str, Fact]:
    """The facts of a group: texts and numbers."""
    found: dict[str, Fact] = {}
    place = resolver.find(name, group)
    for key in resolver.members(place) if place else ():
        assert place is not None
        field = resolver.walk(place, key)
        if field.dataset.size != 1:
            raise field.error("is not one text or number", "take the darks again", code="wrong-shape")
        found[key] = read_text(field) if field.dataset.dtype.kind in "SO" else read_array(field).reshape(-1)[0].item()
    return found
