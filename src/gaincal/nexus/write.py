"""Write NXmx: fields, transformations, the skeleton around an image, and copies of what a file has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal._version import __version__
from gaincal.errors import FileError, RequestError, TrustError
from gaincal.nexus import names
from gaincal.nexus.fields import (
    MAX_ATTRIBUTE_BYTES,
    MAX_FIELD_BYTES,
    MIN_CHECKED_FIELD,
    attribute_size,
    attribute_text,
    read_array,
    read_text,
)
from gaincal.nexus.group import new_group
from gaincal.nexus.trust import Place, Resolver

Array = npt.NDArray[Any]
MAX_DEPTH = 16
MAX_COPIED = 10_000
LENGTH = "m"


@dataclass(frozen=True, slots=True)
class Known:
    """A fact that a user may state: where it goes, in which unit, whether NXmx requires it."""

    path: str
    units: str
    text: bool
    required: bool
    meaning: str


METADATA: Mapping[str, Known] = MappingProxyType(
    {
        "start_time": Known("start_time", "", True, True, "start of data collection, ISO 8601 with zone"),
        "end_time": Known("end_time_estimated", "", True, True, "end of data collection, ISO 8601 with zone"),
        "source_name": Known("source/name", "", True, True, "light source"),
        "instrument_name": Known("instrument/name", "", True, True, "beamline"),
        "sample_name": Known("sample/name", "", True, True, "sample"),
        "wavelength": Known("instrument/beam/incident_wavelength", "angstrom", False, True, "wavelength"),
        "sensor_material": Known("instrument/detector/sensor_material", "", True, True, "sensor material: Si, CdTe"),
        "sensor_thickness": Known("instrument/detector/sensor_thickness", LENGTH, False, True, "sensor thickness"),
        "pixel_size": Known("", LENGTH, False, True, "edge of a pixel"),
        "distance": Known("instrument/detector/distance", LENGTH, False, True, "sample to detector"),
        "beam_center_x": Known("", "pixel", False, True, "where the beam hits, along x"),
        "beam_center_y": Known("", "pixel", False, True, "where the beam hits, along y"),
        "exposure_time": Known("instrument/detector/count_time", "s", False, False, "exposure of a frame"),
        "frame_time": Known("instrument/detector/frame_time", "s", False, False, "period of the frames"),
        "two_theta": Known("", "deg", False, False, "angle of the detector's arm; with a geometry"),
        "two_theta_axis": Known("", "", True, False, "axis of this arm in the laboratory: 0,1,0; with a geometry"),
        "detector_x": Known("", LENGTH, False, False, "shift of the detector along x; with a geometry"),
        "detector_y": Known("", LENGTH, False, False, "shift of the detector along y; with a geometry"),
        "detector_name": Known("instrument/detector/description", "", True, False, "detector"),
        "module_serials": Known("instrument/detector/serial_number", "", True, False, "serial numbers of its modules"),
        "gain_mode": Known("instrument/detector/gain_setting", "", True, False, "gain setting"),
    }
)
NOT_BY_FRAME = (names.DETECTOR_MODULE, names.DETECTOR_GROUP)
GEOMETRY = ("pixel_size", "distance", "beam_center_x", "beam_center_y")


def parse_metadata(given: Mapping[str, str]) -> dict[str, str | float]:
    """Turn texts into the types of `METADATA`; raises RequestError for an unknown name or a bad number."""
    parsed: dict[str, str | float] = {}
    for name, text in given.items():
        if name not in METADATA:
            raise RequestError(f"nothing is called '{name}'; there are {', '.join(METADATA)}")
        parsed[name] = text if METADATA[name].text else parse_number(name, text)
    return parsed


def parse_number(name: str, text: str) -> float:
    """A finite number; raises RequestError."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise RequestError(f"{name}={text}: not a finite number")
    return number


def write_metadata(entry: h5py.Group, detector: h5py.Group, metadata: Mapping[str, str | float]) -> list[str]:
    """State facts in an existing entry, replacing what it says; returns those that have no place in it."""
    homeless = []
    for name, value in metadata.items():
        known = METADATA[name]
        if not known.path:
            homeless.append(name)
            continue
        group = _home(entry, detector, known.path)
        leaf = known.path.rsplit("/", 1)[-1]
        discard(group, leaf)
        field(group, leaf, value, known.units)
    return homeless


def _home(entry: h5py.Group, detector: h5py.Group, path: str) -> h5py.Group:
    """The group that a fact belongs into, whatever the file calls it; created with its class if it lacks."""
    if path.startswith("instrument/detector/"):
        return detector
    if path.startswith("instrument/beam/"):
        return _only_of_class(detector.parent, "beam", "NXbeam")
    if path.startswith("instrument/"):
        return detector.parent
    name = path.partition("/")[0]
    return entry if name == path else _only_of_class(entry, name, {"source": "NXsource", "sample": "NXsample"}[name])


def _only_of_class(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    for candidate in parent:
        member = own(parent, candidate)
        if isinstance(member, h5py.Group) and member.attrs.get(names.NX_CLASS) in (nx_class, nx_class.encode()):
            return member
    found = own(parent, name)
    if found is None and parent.get(name, getlink=True) is not None:
        del parent[name]  # a link, which would lead our writing elsewhere
    return found if found is not None else new_group(parent, name, nx_class)


def own(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """A member that lies in the file itself: nothing is ever written through a link."""
    try:
        link = group.get(name, getlink=True)
    except TypeError:  # a link class that h5py does not know
        return None
    return group[name] if isinstance(link, h5py.HardLink) else None


def members_of_class(group: h5py.Group, nx_class: str) -> list[h5py.Group]:
    """Groups of a NeXus class in a group of the file that is being written."""
    members = [own(group, name) for name in group]
    return [m for m in members if isinstance(m, h5py.Group) and _own_class(m) == nx_class]


def _own_class(group: h5py.Group) -> str:
    value = group.attrs.get(names.NX_CLASS, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def has_own(group: h5py.Group, path: str) -> bool:
    """Whether a group has something at a path, without following links."""
    item: h5py.Group | h5py.Dataset | None = group
    for name in path.split("/"):
        item = own(item, name) if isinstance(item, h5py.Group) else None
    return item is not None


def discard(group: h5py.Group, name: str) -> None:
    """Take a member (or a link) out of a group."""
    if group.id.links.exists(name.encode()):
        del group[name]


def missing_metadata(has: Callable[[str], bool], detector: str = "instrument/detector") -> list[str]:
    """Facts that NXmx requires (or a reader cannot do without) and an entry does not have.

    Parameters
    ----------
    has : callable (path) -> bool
        Whether the entry has something at a path relative to it.
    detector : str
        Relative path of the detector.
    """
    lacking = []
    for name, known in METADATA.items():
        path = known.path.replace("instrument/detector", detector)
        if known.required and path and not has(path):
            lacking.append(name)
    if not any(has(f"{detector}/{place}") for place in ("depends_on", names.MODULE)):
        lacking += [n for n in GEOMETRY if n not in lacking]
    return lacking


def new_process(entry: h5py.Group) -> h5py.Group:
    """A record of what was done to an entry, behind those that it has."""
    name = names.PROCESS_PATH.rsplit("/", 1)[-1]
    number = 1
    while f"{name}_{number}" in entry or (number == 1 and name in entry):
        number += 1
    process = new_group(entry, name if number == 1 else f"{name}_{number}", names.PROCESS)
    field(process, "program", "gaincal")
    field(process, "version", __version__)
    field(process, "date", datetime.now(timezone.utc).isoformat(timespec="seconds"))
    field(process, "sequence_index", np.int32(number))
    return process


def field(group: h5py.Group, path: str, value: Any, units: str | None = None) -> h5py.Dataset:
    """Create a scalar or small field (text of variable length: pynxtools fails on dates of fixed length)."""
    dataset = group.create_dataset(path, data=value)
    if units:
        dataset.attrs[names.UNIT_ATTRIBUTE] = units
    return dataset


def array_field(group: h5py.Group, name: str, values: Array, compression: str | None = None) -> h5py.Dataset:
    """Create an array field with a checksum; an empty one can have neither chunks nor a checksum.

    What is large is not compressed: it could shrink further than a reader, who trusts nobody, believes.
    """
    if values.size == 0:
        return group.create_dataset(name, data=values)
    compression = compression if values.nbytes <= MIN_CHECKED_FIELD else None
    return group.create_dataset(name, data=values, chunks=values.shape, compression=compression, fletcher32=True)


def axis(
    group: h5py.Group,
    name: str,
    value: float,
    vector: Sequence[float],
    depends_on: str,
    offset: Sequence[float] = (0.0, 0.0, 0.0),
) -> h5py.Dataset:
    """Create a translation of NXtransformations, in metres."""
    dataset = field(group, name, float(value), LENGTH)
    dataset.attrs["transformation_type"] = "translation"
    dataset.attrs["vector"] = np.asarray(vector, np.float64)
    dataset.attrs["offset"] = np.asarray(offset, np.float64)
    dataset.attrs["offset_units"] = LENGTH
    dataset.attrs["depends_on"] = depends_on
    return dataset


def write_skeleton(file: h5py.File, metadata: Mapping[str, str | float], pixels: tuple[int, ...]) -> h5py.Group:
    """Write an NXmx entry around a detector, with the facts that are known and no others.

    Parameters
    ----------
    file : h5py.File
    metadata : mapping of str to str or float
        By the names of `METADATA`.
    pixels : tuple of int
        (y, x) of a frame.

    Returns
    -------
    entry : h5py.Group
    """
    file.attrs[names.DEFAULT_ATTRIBUTE] = names.ENTRY_PATH.strip("/")
    entry = new_group(file, names.ENTRY_PATH, names.ENTRY)
    field(entry, "definition", names.APPLICATION)
    for path, nx_class in (("source", "NXsource"), ("sample", "NXsample"), ("instrument", names.INSTRUMENT)):
        new_group(entry, path, nx_class)
    field(entry, "sample/depends_on", ".")
    new_group(entry, "instrument/beam", "NXbeam")
    detector = new_group(entry, "instrument/detector", names.DETECTOR)
    for name, value in metadata.items():
        known = METADATA[name]
        if known.path:
            field(entry, known.path, value, known.units)
    if len(pixels) == 2 and all(name in metadata for name in GEOMETRY):
        _write_geometry(detector, {n: float(metadata[n]) for n in GEOMETRY}, pixels)
    return entry


def _write_geometry(detector: h5py.Group, known: Mapping[str, float], pixels: tuple[int, ...]) -> None:
    """One flat module, perpendicular to the beam; NeXus's z runs along the beam, x to the left."""
    size = known["pixel_size"]
    path = f"{detector.name}/{names.TRANSFORMATIONS}/translation"
    field(detector, "depends_on", path)
    transformations = new_group(detector, names.TRANSFORMATIONS, "NXtransformations")
    axis(transformations, "translation", known["distance"], (0, 0, 1), ".")
    for direction in "xy":
        field(detector, f"{direction}_pixel_size", size, LENGTH)
        field(detector, f"beam_center_{direction}", known[f"beam_center_{direction}"] * size, LENGTH)
    module = new_group(detector, names.MODULE, "NXdetector_module")
    field(module, "data_origin", np.zeros(2, np.int64))
    field(module, "data_size", np.array(pixels, np.int64))
    corner = (known["beam_center_x"] * size, known["beam_center_y"] * size, 0.0)
    axis(module, "module_offset", 0.0, (1, 0, 0), path, corner)
    for name, vector in (("fast_pixel_direction", (-1, 0, 0)), ("slow_pixel_direction", (0, -1, 0))):
        axis(module, name, size, vector, f"{detector.name}/{names.MODULE}/module_offset")


def copy_tree(
    resolver: Resolver,
    place: Place,
    group: h5py.Group,
    skip: frozenset[str],
    frames: tuple[int, int, int] | None = None,
    words: frozenset[tuple[Path, int]] = frozenset(),
) -> list[str]:
    """Copy groups, small fields and attributes of an untrusted file.

    Parameters
    ----------
    resolver : Resolver
    place : Place
        The group to copy.
    group : h5py.Group
        Receives the members.
    skip : frozenset of str
        HDF5 paths that are left out.
    frames : (int, int, int), optional
        Frames of the run, and first and number of those to keep: lists with one value per frame are cut.
    words : frozenset of (Path, int), optional
        File and address of the raw words: left out under whatever name.

    Returns
    -------
    left_out : list of str
        Paths of fields too large, too odd or too untrusted to copy.
    """
    left_out: list[str] = []
    pending = [(place, group, 0)]
    copied = 0
    seen = {place.identity}
    while pending:
        source, target, depth = pending.pop()
        _copy_attributes(source, target)
        for name in resolver.members(source):
            path = f"{source.path.rstrip('/')}/{name}"
            copied += 1
            if copied > MAX_COPIED:
                raise TrustError(place.file, place.path, f"has more than {MAX_COPIED} members", code="too-many-members")
            if path in skip:
                continue
            try:
                member = resolver.walk(source, name)
                if isinstance(member.item, h5py.Dataset):
                    if member.identity in words:
                        continue
                    cut = None if _counts_no_frames(source) else frames
                    _copy_attributes(member, target.create_dataset(name, **_contents(member, cut)))
                elif not isinstance(member.item, h5py.Group):
                    left_out.append(path)  # a committed datatype
                elif depth < MAX_DEPTH and (address := member.identity) not in seen:
                    seen.add(address)
                    pending.append((member, target.create_group(name, track_order=True), depth + 1))
                else:
                    left_out.append(path)
            except FileError:
                left_out.append(path)
    return left_out


def _counts_no_frames(place: Place) -> bool:
    """Whether lists in a group have one value for each of other things, however many frames there are."""
    return place.path.endswith(f"/{names.ACCOUNT_GROUP}") or attribute_text(place, names.NX_CLASS) in NOT_BY_FRAME


def _contents(place: Place, frames: tuple[int, int, int] | None) -> dict[str, Any]:
    """Arguments of create_dataset that repeat a small field; raises FileError for any other."""
    if place.dataset.id.get_type().get_class() == h5py.h5t.STRING and place.dataset.size == 1:
        return {"data": read_text(place)}
    values = read_array(place, MAX_FIELD_BYTES)
    if frames is not None and values.ndim == 1 and len(values) == frames[0]:
        values = values[frames[1] : frames[1] + frames[2]]
    if values.ndim < 2:
        return {"data": values}
    return {"data": values, "chunks": values.shape if values.size else None, "fletcher32": bool(values.size)}


def _copy_attributes(source: Place, target: h5py.Group | h5py.Dataset) -> None:
    if len(source.item.attrs) > MAX_COPIED:
        raise TrustError(source.file, source.path, "has too many attributes", code="too-many-members")
    for name in source.item.attrs:
        if not isinstance(name, str) or not name.isprintable():
            continue
        size = attribute_size(source, name)
        if size is None or size > MAX_ATTRIBUTE_BYTES:
            continue
        try:
            value = source.item.attrs[name]
        except (TypeError, ValueError, OSError, RuntimeError):  # of a type that h5py cannot express
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            value = value.tolist()
        texts = value if isinstance(value, list) else [value]
        numeric = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufbS"
        if numeric or all(isinstance(t, str) and t.isprintable() for t in texts):
            target.attrs[name] = value
