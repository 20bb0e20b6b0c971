"""Views of an acquisition: masters that hold some of its frames, and link all that they share with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.formulas.checks import FRAME, is_words
from gaincal.formulas.formula import Input
from gaincal.nexus import names
from gaincal.nexus.atomic import OBJECT_FORMAT, AtomicFile
from gaincal.nexus.boxes import Box, intersection
from gaincal.nexus.fields import read_array
from gaincal.nexus.goniometer import Axis, Goniometer, find_sample, read_axes
from gaincal.nexus.group import (
    create_field,
    fields_checksum,
    formula_fields,
    integrity_fields,
    new_group,
    walk_fields,
)
from gaincal.nexus.origin import FIELDS as ORIGIN_FIELDS
from gaincal.nexus.origin import Origin
from gaincal.nexus.preview import write_preview
from gaincal.nexus.read import Master, descend, input_place
from gaincal.nexus.run import map_words, relative_name
from gaincal.nexus.scaling import FIELDS
from gaincal.nexus.sweeps import Frames, Sweep
from gaincal.nexus.trust import Place
from gaincal.nexus.words import Words
from gaincal.nexus.write import NOT_BY_FRAME, array_field, copy_tree, field, new_process

Array = npt.NDArray[Any]
OWN = (names.INPUTS, names.GIVEN, names.INTEGRITY, names.VIEW_OF)
"""Parts of a calibration that a view has for itself; it links all others."""
SMALL = 4096
"""Values of an input that are copied rather than linked."""


@dataclass(frozen=True)
class _List:
    """A field with a value for every frame of the run."""

    path: str
    values: Array
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class _Input:
    """An input of the formula that is no words: values of a view, or a place to link."""

    item: Input
    values: Array
    place: Place
    by_frame: bool

    @property
    def linked(self) -> bool:
        return not self.by_frame and self.values.size > SMALL


class Acquisition:
    """What all views of a run have in common, read and checked once.

    Parameters
    ----------
    master : Master
        The run, open.

    Attributes
    ----------
    axes : mapping of str to Axis
        Of the sample's goniometer.
    origin : Origin
        The run; of a view, the run behind it.
    numbers : ndarray of int (frame,)
        Numbers of the frames in that run.
    left_out : list of str
        Paths of fields of the run that views do not get.
    """

    axes: Mapping[str, Axis]

    def __init__(self, master: Master) -> None:
        self.master, self.resolver = master, master.resolver
        self.frames = master.calibration.layout.frames
        stored, group = master.stored, master.located.group
        self.origin = stored.origin or Origin(group.file, group.path, stored.checksum)
        known = master.ids.get(names.RUN_FRAME) if stored.origin else None
        self.numbers: Frames = np.arange(self.frames) if known is None else known.astype(np.int64)
        # HDF5 takes two files in memory of one name for the same.
        self._file = h5py.File(f"template-{uuid4()}", "w", driver="core", backing_store=False, libver=OBJECT_FORMAT)
        self._prepare_entry()
        self._prepare_calibration()
        self._words = {name: _Cut(self.resolver, words) for name, words in master.words.items()}

    def close(self) -> None:
        """Let go of the template."""
        self._file.close()

    @property
    def files(self) -> set[Path]:
        """The files that views refer to."""
        linked = {place.file for place in (*self._shared.values(), *self._maps.values())}
        return {self.origin.file} | linked | {s.place.file for w in self.master.words.values() for s in w.sources}

    def has_words(self, sweep: Sweep) -> bool:
        """Whether there are words of any frame of a sweep."""
        return all(cut.parts(sweep) for cut in self._words.values())

    # --- prepared once ---------------------------------------------------------------------

    def _prepare_entry(self) -> None:
        """A copy of the run's entry without words, images and calibrations; what has a value per frame apart."""
        entry, detector = self.master.entry, self.master.detector
        skip = {place.path for place in descend(self.resolver, entry, names.DATA)}
        for collection in descend(self.resolver, detector, names.COLLECTION):
            skip |= {collection.path} if descend(self.resolver, collection, names.CALIBRATION) else set()
        self._maps = self._find_maps()
        skip |= {f"{detector.path}/{name}" for name in (names.RAW_GROUP, *self._maps)}
        words = frozenset().union(*(w.identities for w in self.master.words.values()))
        template = self._file.create_group(entry.path, track_order=True)
        self.left_out = copy_tree(self.resolver, entry, template, frozenset(skip), words=words)
        self.axes = read_axes(find_sample(template))
        self._lists = _take_lists(template, self.frames)

    def _find_maps(self) -> dict[str, Place]:
        """Maps of the detector's pixels, which views link."""
        found = {}
        for name in (names.PIXEL_MASK, *FIELDS.values()):
            place = self.resolver.find(name, self.master.detector)
            if place is not None and getattr(place.item, "shape", None) == self.master.calibration.layout.pixels:
                found[name] = place
        return found

    def _prepare_calibration(self) -> None:
        """What views link of the calibration, with the fields behind it, and the inputs that they may have to cut."""
        group, formula = self.master.located.group, self.master.stored.formula
        if any(c.name == names.VIEW_OF for c in formula.constants):
            raise RequestError(f"formula '{formula.name}' has a constant '{names.VIEW_OF}': views need that name")
        members = [name for name in self.resolver.members(group) if name not in OWN]
        self._shared = {name: self.resolver.walk(group, name) for name in members}
        held = {f"{c.name}/{c.name}" for c in formula.constants}
        self._fields = {
            path: read_array(place)
            for path, place in walk_fields(self.resolver, group)
            if path not in held and path.split("/")[0] not in OWN
        }
        self._inputs = {}
        for item in formula.inputs:
            place = input_place(self.resolver, self.master.stored, item)
            if place is None or is_words(item, formula.checked.pixel_dims):
                continue
            values = self.master.stored.inputs.get(item.name)
            values = read_array(place) if values is None else values
            by_frame = bool(values.ndim) and (FRAME in item.dims or not item.dims)
            self._inputs[item.name] = _Input(item, values, place, by_frame)

    # --- one view --------------------------------------------------------------------------

    def write(
        self,
        written: AtomicFile,
        sweep: Sweep,
        goniometer: Goniometer,
        image: Array | None,
        facts: Mapping[str, object],
    ) -> str:
        """Write a view into an open, empty file.

        Parameters
        ----------
        written : AtomicFile
        sweep : Sweep
        goniometer : Goniometer
        image : ndarray or None
            The preview.
        facts : mapping of str to object
            What is told of the sweep in the record of the process.

        Returns
        -------
        checksum : str
            Of the calibration.
        """
        file, path = written.file, self.master.entry.path
        self._file.copy(path, file, name=path)
        entry = file[path]
        file.attrs[names.DEFAULT_ATTRIBUTE] = path.strip("/")
        for kept in self._lists:
            file.create_dataset(kept.path, data=kept.values[sweep.frames])
            for key, value in kept.attributes.items():
                file[kept.path].attrs[key] = value
        sample = find_sample(entry)
        goniometer.write(sample if sample is not None else new_group(entry, "sample", names.SAMPLE), sweep)
        detector = file[self.master.detector.path]
        for name, place in self._maps.items():
            detector[name] = _link(written, place)
        paths = self._write_words(written, detector, sweep)
        self._write_preview(entry, image)
        self._write_process(written, entry, facts)
        return self._write_calibration(written, detector, paths, sweep)

    def _write_words(self, written: AtomicFile, detector: h5py.Group, sweep: Sweep) -> dict[str, str]:
        raw = new_group(detector, names.RAW_GROUP, names.DATA)
        fields = {n: names.RAW_FIELD if len(self._words) == 1 else n for n in self._words}
        raw.attrs[names.SIGNAL_ATTRIBUTE] = next(iter(fields.values()))
        raw.attrs[names.AXES_ATTRIBUTE] = ["."] * len(self.master.calibration.layout.shape)
        for name, cut in self._words.items():
            map_words(raw, fields[name], cut.words(sweep), partial(_relative, written))
        ids = {n: values[sweep.frames] for n, values in self.master.ids.items() if n != names.RUN_FRAME}
        for name, values in {names.RUN_FRAME: self.numbers[sweep.frames], **ids}.items():
            array_field(raw, name, values)
        return {name: f"{raw.name}/{field_name}" for name, field_name in fields.items()}

    def _write_preview(self, entry: h5py.Group, image: Array | None) -> None:
        path = names.DATA_PATH.rsplit("/", 1)[-1]
        group = new_group(entry, path, names.DATA)
        entry.attrs[names.DEFAULT_ATTRIBUTE] = path
        write_preview(group, image, self.master.calibration)

    def _write_process(self, written: AtomicFile, entry: h5py.Group, facts: Mapping[str, object]) -> None:
        parameters = new_group(new_process(entry), "parameters", names.PARAMETERS)
        field(parameters, "run", _relative(written, self.origin.file))
        field(parameters, "run_calibration_checksum", self.origin.checksum)
        for name, value in facts.items():
            field(parameters, name, value)

    def _write_calibration(self, written: AtomicFile, detector: h5py.Group, paths: dict[str, str], sweep: Sweep) -> str:
        """Links to all that the run's calibration has in common with this one, and what is its own."""
        formula = self.master.stored.formula
        collection = new_group(detector, names.CALIBRATION_GROUP, names.COLLECTION)
        group = new_group(collection, self.master.located.name, names.CALIBRATION)
        for name in OWN:
            new_group(group, name, names.NOTE if name == names.INTEGRITY else names.PARAMETERS)
        for name, place in self._shared.items():
            group[name] = _link(written, place)
        fields = {}
        for name, given in self._inputs.items():
            if self._maps.get(name) is not None and given.place.identity == self._maps[name].identity:
                paths[name] = f"{detector.name}/{name}"
                continue
            paths[name] = f"{names.GIVEN}/{name}"
            fields[paths[name]] = given.values[sweep.frames] if given.by_frame else given.values
            if given.linked:
                group[paths[name]] = _link(written, given.place)
            else:
                create_field(group, paths[name], fields[paths[name]], given.item.units)
        own = {p: v for p, v in formula_fields(formula, paths).items() if p.startswith(f"{names.INPUTS}/")}
        own |= integrity_fields() | self._origin_fields(written)
        for path, values in own.items():
            create_field(group, path, values, None)
        checksum = fields_checksum({**self._fields, **fields, **own})
        group.create_dataset(names.CHECKSUM, data=np.bytes_(checksum))
        return checksum

    def _origin_fields(self, written: AtomicFile) -> dict[str, Array]:
        texts = (_relative(written, self.origin.file), self.origin.path, self.origin.checksum)
        noted = zip(ORIGIN_FIELDS, texts, strict=True)
        return {f"{names.VIEW_OF}/{name}": np.array(text.encode("utf-8"), np.bytes_) for name, text in noted}


class _Cut:
    """The pieces of words, to take frames from."""

    def __init__(self, resolver: Any, words: Words) -> None:
        self.resolver, self.whole = resolver, words
        self.starts = np.array([p.box[0][0] for p in words.pieces], np.int64)
        self.stops = self.starts + np.array([p.box[1][0] for p in words.pieces], np.int64)

    def parts(self, sweep: Sweep) -> list[tuple[Box, Place, Box]]:
        """Boxes of a view, each with the dataset and the box of it that holds its words."""
        found, begin = [], 0
        pixels = self.whole.shape[1:]
        for first, count in sweep.ranges:
            wanted = (first, *(0,) * len(pixels)), (count, *pixels)
            for k in np.flatnonzero((self.starts < first + count) & (self.stops > first)):
                piece = self.whole.pieces[k]
                part = intersection(piece.box, wanted)
                if part is not None and piece.source is not None:
                    target = (part[0][0] - first + begin, *part[0][1:])
                    found.append(((target, part[1]), piece.source.place, piece.source_part(part)))
            begin += count
        return found

    def words(self, sweep: Sweep) -> Words:
        """The words of a sweep."""
        shape = (sweep.count, *self.whole.shape[1:])
        return Words.of_parts(self.resolver, shape, self.whole.dtype, self.parts(sweep))


def _take_lists(template: h5py.Group, frames: int) -> list[_List]:
    """Take the fields with a value for every frame out of a template."""
    found: list[h5py.Dataset] = []

    def look(_: str, item: h5py.Group | h5py.Dataset) -> None:
        by_frame = isinstance(item, h5py.Dataset) and item.shape == (frames,)
        if by_frame and item.parent.attrs.get(names.NX_CLASS) not in NOT_BY_FRAME:
            found.append(item)

    template.visititems(look)
    lists = [_List(item.name, item[()], dict(item.attrs)) for item in found]
    for kept in lists:
        del template.file[kept.path]
    return lists


def _link(written: AtomicFile, place: Place) -> h5py.ExternalLink:
    return h5py.ExternalLink(_relative(written, place.file), place.path)


def _relative(written: AtomicFile, file: Path) -> str:
    """How a view names a file."""
    name = relative_name(written, file)
    if not name.isprintable():
        raise RequestError(f"a view cannot name the file {name!r}: rename it")
    return name
