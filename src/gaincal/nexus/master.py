"""Write a master: the tree of an NXmx entry, the words, the calibration, and a picture instead of raw words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as field_of
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

from gaincal._version import __version__
from gaincal.calibration import Calibration
from gaincal.constants import ConstantMap
from gaincal.errors import FileError
from gaincal.geometry.arm import STILL, Arm
from gaincal.geometry.panels import Geometry
from gaincal.nexus import names
from gaincal.nexus.account import Account, write_account
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.geometry import write_geometry
from gaincal.nexus.goniometer import state_axes
from gaincal.nexus.group import Provenance, new_group, write_calibration
from gaincal.nexus.preview import write_preview
from gaincal.nexus.read import of_class
from gaincal.nexus.run import copy_frames, map_words, outside, relative_name
from gaincal.nexus.scaling import write_scaling
from gaincal.nexus.sweeps import Direction, Motion
from gaincal.nexus.trust import Place, Resolver
from gaincal.nexus.words import Readable, Words
from gaincal.nexus.write import (
    array_field,
    copy_tree,
    discard,
    field,
    has_own,
    members_of_class,
    missing_metadata,
    own,
    write_metadata,
    write_skeleton,
)

Array = npt.NDArray[Any]


class Placement(Enum):
    """Where the words of a master lie."""

    LINKED = "linked"
    COPIED = "copied"
    IN_PLACE = "in place"


@dataclass(frozen=True)
class Content:
    """Everything that goes into a master, read and checked beforehand.

    ``place`` is the dataset of the words where a file has them all in one; None for a run of several.
    """

    place: Place | None
    words: Mapping[str, Readable]
    calibration: Calibration
    constants: Mapping[str, ConstantMap]
    provenance: Mapping[str, Provenance]
    inputs: Mapping[str, tuple[Array, str]]
    metadata: Mapping[str, str | float]
    mask: Array | None
    ids: Mapping[str, Array]
    geometry: Geometry | None = None
    arm: Arm = STILL
    account: Account | None = None
    lies: Arrangement | None = None
    axes: Mapping[str, Motion] = field_of(default_factory=dict)
    directions: Mapping[str, Direction] = field_of(default_factory=dict)

    @property
    def stored(self) -> dict[str, Words]:
        """The words that lie in datasets, which a master can link or map."""
        return {name: words for name, words in self.words.items() if isinstance(words, Words)}


def write_master(
    written: AtomicFile,
    resolver: Resolver,
    template: Place | None,
    content: Content,
    image: Array | None,
    placement: Placement,
) -> tuple[str, list[str]]:
    """Write everything into an open file.

    Parameters
    ----------
    written : AtomicFile
        Empty, or a copy of the raw file for `Placement.IN_PLACE`.
    resolver : Resolver
        Of the raw file.
    template : Place or None
        The raw file's NXentry, whose metadata are carried over.
    content : Content
    image : ndarray or None
        The preview; None if no output is available.
    placement : Placement

    Returns
    -------
    checksum : str
    notes : list of str
        What the user should know.
    """
    file = written.file
    entry, notes = _tree(file, resolver, template, content, placement)
    detector = _detector(entry)
    raw_paths = _write_words(written, detector, entry, content, placement)
    if placement is not Placement.COPIED:
        notes += outside(written.target, content.stored.values(), content.place)
    for name, values in content.ids.items():
        array_field(detector[names.RAW_GROUP], name, values)
    if content.account is not None and content.lies is not None:
        write_account(detector, content.account, content.lies)
    if content.mask is not None:
        _replace(detector, names.PIXEL_MASK, content.mask)
    _write_preview(entry, image, content)
    if content.geometry is not None:
        write_geometry(detector, content.geometry, content.arm)
    state_axes(entry, content.axes, content.directions, content.calibration.layout.frames)
    checksum = _write_calibration(detector, raw_paths, content)
    write_scaling(detector, content.calibration.formula, content.constants)
    lacking = missing_metadata(partial(has_own, entry), detector.name.removeprefix(f"{entry.name}/"))
    if lacking:
        notes.append("NXmx needs, and nobody stated: " + ", ".join(lacking))
    return checksum, notes


def _tree(
    file: h5py.File, resolver: Resolver, template: Place | None, content: Content, placement: Placement
) -> tuple[h5py.Group, list[str]]:
    """The entry to write into: the raw file's own, a copy of it, or a new one."""
    notes: list[str] = []
    if template is None:
        if file.get(names.ENTRY_PATH, getlink=True) is not None:
            raise FileError(resolver.named, names.ENTRY_PATH, "exists, but holds no NXdetector", code="no-detector")
        return write_skeleton(file, content.metadata, content.calibration.layout.pixels), notes
    if placement is Placement.IN_PLACE:
        entry = file[template.path]
    else:
        entry = new_group(file, template.path, names.ENTRY)
        notes += _copy_template(resolver, template, entry, content)
    file.attrs[names.DEFAULT_ATTRIBUTE] = entry.name.strip("/")
    if own(entry, "definition") is None:
        discard(entry, "definition")
        field(entry, "definition", names.APPLICATION)
    homeless = write_metadata(entry, _detector(entry), content.metadata)
    notes += [f"{name} is ignored: the raw file has its own geometry" for name in homeless]
    return entry, notes


def _copy_template(resolver: Resolver, template: Place, entry: h5py.Group, content: Content) -> list[str]:
    """Carry metadata over, but neither words nor images nor calibrations."""
    skip = {d.path for d in of_class(resolver, template, names.DATA)}
    skip |= {content.place.path} if content.place else set()
    notes = []
    for instrument in of_class(resolver, template, names.INSTRUMENT):
        for detector in of_class(resolver, instrument, names.DETECTOR):
            skip |= {f"{detector.path}/{names.RAW_GROUP}", f"{detector.path}/{names.CALIBRATION_GROUP}"}
            for collection in of_class(resolver, detector, names.COLLECTION):
                found = of_class(resolver, collection, names.CALIBRATION)
                notes += [f"calibration {c.path} of the raw file is not carried over" for c in found]
    words = frozenset().union(*(w.identities for w in content.stored.values()))
    left_out = copy_tree(resolver, template, entry, frozenset(skip), words=words)
    return notes + [f"not copied from the raw file: {path}" for path in left_out]


def _detector(entry: h5py.Group) -> h5py.Group:
    for instrument in members_of_class(entry, names.INSTRUMENT):
        for detector in members_of_class(instrument, names.DETECTOR):
            return detector
    raise FileError(entry.file.filename, entry.name, "has no NXdetector", code="no-detector")


def _replace(group: h5py.Group, name: str, values: Array) -> None:
    discard(group, name)
    array_field(group, name, values, compression="gzip")


def _write_words(
    written: AtomicFile, detector: h5py.Group, entry: h5py.Group, content: Content, placement: Placement
) -> dict[str, str]:
    """Put the words (or links to them) into the detector; returns their paths."""
    target = Path(os.path.realpath(written.target))
    place = content.place
    words = written.file[place.path] if placement is Placement.IN_PLACE and place and place.file == target else None
    discard(detector, names.RAW_GROUP)
    raw = new_group(detector, names.RAW_GROUP, names.DATA)
    fields = {n: names.RAW_FIELD if len(content.words) == 1 else n for n in content.words}
    raw.attrs[names.SIGNAL_ATTRIBUTE] = next(iter(fields.values()))
    raw.attrs[names.AXES_ATTRIBUTE] = ["."] * len(content.calibration.layout.shape)
    if words is not None:
        raw[names.RAW_FIELD] = words
        _withdraw(entry, detector, words)
    else:
        for name, field_name in fields.items():
            _place_words(written, raw, field_name, content.words[name], place, placement)
    return {name: f"{raw.name}/{field_name}" for name, field_name in fields.items()}


def _place_words(
    written: AtomicFile, raw: h5py.Group, name: str, words: Readable, place: Place | None, placement: Placement
) -> None:
    if not isinstance(words, Words):
        copy_frames(raw, name, words, written.check)
    elif placement is Placement.COPIED:
        _copy_words(written, raw, name, words, place)
    elif place is not None:
        raw[name] = h5py.ExternalLink(relative_name(written, place.file), place.path)
    else:
        map_words(raw, name, words, partial(relative_name, written))


def _withdraw(entry: h5py.Group, detector: h5py.Group, words: h5py.Dataset) -> None:
    """Take the words out of the places where a reader looks for an image."""
    for group in (*members_of_class(entry, names.DATA), detector):
        for name in list(group):
            member = group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(member, h5py.Dataset) and member.id == words.id:
                del group[name]


def _copy_words(written: AtomicFile, raw: h5py.Group, name: str, words: Words, place: Place | None) -> None:
    """Copy the words as they are stored, without decoding them."""
    source = words.pieces[0].source if len(words.pieces) == 1 else None
    if source is None or source.dataset.shape != words.shape or (place and source.place.item != place.item):
        problem = "is a virtual dataset, whose pieces cannot be copied as they are"
        problem = problem if place else "is one of several datasets, whose pieces cannot be copied as they are"
        raise words.place.error(problem, "link it, without --copy-raw", code="virtual")
    source.copy_to(raw, name, written.check)


def _write_preview(entry: h5py.Group, image: Array | None, content: Content) -> None:
    """The only image that a reader is offered."""
    path = names.DATA_PATH.rsplit("/", 1)[-1]
    for group in members_of_class(entry, names.DATA):
        group.attrs.pop(names.SIGNAL_ATTRIBUTE, None)
    group = own(entry, path)
    if not isinstance(group, h5py.Group):
        discard(entry, path)
        group = new_group(entry, path, names.DATA)
    entry.attrs[names.DEFAULT_ATTRIBUTE] = path
    discard(group, names.PREVIEW)
    write_preview(group, image, content.calibration)


def _write_calibration(detector: h5py.Group, raw_paths: Mapping[str, str], content: Content) -> str:
    formula = content.calibration.formula
    collection = own(detector, names.CALIBRATION_GROUP)
    if not isinstance(collection, h5py.Group):
        discard(detector, names.CALIBRATION_GROUP)
        collection = new_group(detector, names.CALIBRATION_GROUP, names.COLLECTION)
    discard(collection, formula.name)
    paths = {**raw_paths} | {name: f"{names.GIVEN}/{name}" for name in content.inputs}
    if names.PIXEL_MASK in content.calibration.arrays:
        paths[names.PIXEL_MASK] = f"{detector.name}/{names.PIXEL_MASK}"
    written = Provenance("gaincal", __version__, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    return write_calibration(
        collection, formula.name, formula, paths, content.constants, content.inputs, content.provenance, written
    )
