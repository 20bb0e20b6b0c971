"""What lies in a part: the note of what went into it; and one virtual dataset over all parts."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.kernels.results import Tally
from gaincal.nexus import names
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.fields import attribute_text, read_array, read_text
from gaincal.nexus.frames import signal_group
from gaincal.nexus.group import new_group
from gaincal.nexus.trust import Resolver, reading
from gaincal.nexus.write import array_field, field
from gaincal.scatter.order import MAX_PARTS, Order, Part
from gaincal.verbs.apply import Work

Array = npt.NDArray[Any]
NOTE = "gaincal_part"
SIGNAL = names.DATA_PATH.rsplit("/", 1)[-1]
_PART_FILE = re.compile(r"(\d{6})\.nxs(\.part)?")


def write_note(file: h5py.File, part: Part, parts: int, tally: Tally) -> None:
    """What went into a part, and what the whole needs of it: the mask says which pixels are bad, not for which flag."""
    note = new_group(file, NOTE, names.COLLECTION)
    field(note, "identity", part.identity)
    field(note, "cut", np.array([part.number, parts]))
    field(note, "missing_frames", np.int64(tally.missing_frames))
    array_field(note, "counts", tally.counts)
    array_field(note, "always", tally.always, compression="gzip")


def read_note(part: Part) -> Tally:
    """What a part counted; raises FileError where it is not there, or was made from something else."""
    with Resolver(part.path) as resolver, reading(part.path):
        note = resolver.get(NOTE)
        if read_text(resolver.walk(note, "identity")) != part.identity:
            raise FileError(part.path, "", "was made from something else", code="checksum-differs")
        always = PlainDataset(resolver.walk(note, "always")).read_all()
        tally = Tally(always.shape)
        tally.always &= always
        tally.counts += read_array(resolver.walk(note, "counts"))
        tally.missing_frames = int(read_array(resolver.walk(note, "missing_frames")))
        return tally


def earlier_cut(order: Order) -> int | None:
    """How an earlier run of the same order was cut, as its parts say; another cut could use none of them."""
    for path in sorted(Path(order.folder).glob("*.nxs")):
        with suppress(FileError), Resolver(path) as resolver, reading(path):
            note = resolver.get(NOTE)
            number, parts = (int(n) for n in read_array(resolver.walk(note, "cut")))
            known = read_text(resolver.walk(note, "identity"))
            if 0 <= number < parts <= MAX_PARTS and replace(order, parts=parts).part(number).identity == known:
                return parts
    return None


def join(written: AtomicFile, entry: h5py.Group, work: Work, order: Order) -> Tally:
    """Write the signal as a virtual dataset over all parts, and add up what these counted."""
    tally = Tally(work.pixels)
    for part in order.all_parts():
        found = read_note(part)
        tally.counts += found.counts
        tally.always &= found.always
        tally.missing_frames += found.missing_frames
    group = signal_group(entry, 1 + len(work.stored))
    for name, program in zip(order.signals, (work.program, work.variance), strict=False):
        assert program is not None
        fill = np.nan if program.fill is None else program.fill
        _map(group, name, np.array(fill, program.dtype), work.stored, order)
    _copy_attributes(group, order)
    _discard_others(order)
    written.check()
    return tally


def _map(group: h5py.Group, name: str, fill: Array, pixels: tuple[int, ...], order: Order) -> None:
    """Create a virtual dataset; who has lost a part reads the fill, not zeros."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_value(fill)
    whole = h5py.h5s.create_simple((order.count, *pixels))
    for part in order.all_parts():
        target, source = whole.copy(), h5py.h5s.create_simple((part.count, *pixels))
        target.select_hyperslab((part.first - order.first, *(0,) * len(pixels)), (part.count, *pixels))
        file = f"{part.path.parent.name}/{part.path.name}"
        # A percent sign would stand for the number of a block.
        named = (text.replace("%", "%%").encode() for text in (file, f"{order.group}/{name}"))
        plist.set_virtual(target, *named, source)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(fill.dtype), whole, plist)


def _copy_attributes(group: h5py.Group, order: Order) -> None:
    """What the parts say of their errors; the signal itself is described when all is done."""
    first = order.part(0)
    with Resolver(first.path) as resolver, reading(first.path):
        for name in order.signals[1:]:
            place = resolver.get(f"{order.group}/{name}")
            for attribute in (names.UNIT_ATTRIBUTE, "long_name"):
                group[name].attrs[attribute] = attribute_text(place, attribute)


def _discard_others(order: Order) -> None:
    """Remove what an earlier run with another cut left in the folder."""
    for path in Path(order.folder).iterdir():
        named = _PART_FILE.fullmatch(path.name)
        if named and int(named[1]) >= order.parts:
            path.unlink(missing_ok=True)
