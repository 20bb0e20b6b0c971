"""The mappings of a virtual dataset, each from one box to one box."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import h5py

from gaincal.errors import TrustError
from gaincal.nexus.boxes import Box
from gaincal.nexus.trust import Place

MAX_MAPPINGS = 200_000
_PERCENT = re.compile(r"%(.)")
_UNLIMITED = h5py.h5s.UNLIMITED


@dataclass(frozen=True)
class Mapping:
    """One mapping of a virtual dataset; a `source` of None is the whole dataset, whatever its shape."""

    target: Box
    file: str
    path: str
    source: Box | None


def mappings(place: Place) -> list[Mapping]:
    """The mappings of a virtual dataset, each from one box to one box; raises TrustError for any other."""
    plist = place.dataset.id.get_create_plist()
    if plist.get_virtual_count() > MAX_MAPPINGS:
        problem = f"has {plist.get_virtual_count()} mappings, at most {MAX_MAPPINGS} are allowed"
        raise TrustError(place.file, place.path, problem, code="over-budget")
    found: list[Mapping] = []
    shape = place.dataset.shape
    for k in range(plist.get_virtual_count()):
        file, path = plist.get_virtual_filename(k), plist.get_virtual_dsetname(k)
        if any(c != "%" for c in _PERCENT.findall(file + "\n" + path)):
            raise place.error("has sources with numbered names (%b)", code="odd-layout")
        target = _box(place, plist.get_virtual_vspace(k), shape)
        source = _box(place, plist.get_virtual_srcspace(k), None)
        assert target is not None
        found.append(Mapping(target, file.replace("%%", "%"), path.replace("%%", "%"), source))
    return found


def _box(place: Place, space: Any, shape: tuple[int, ...] | None) -> Box | None:
    """A selection as one box; None for all of a source whose shape is not stated."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        extent = space.get_simple_extent_dims() or shape
        return ((0,) * len(extent), tuple(int(n) for n in extent)) if extent else None
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        raise place.error("has a mapping that is not one box", code="odd-layout")
    start, stride, count, block = space.get_regular_hyperslab()
    if _UNLIMITED in count or _UNLIMITED in block:
        raise place.error("has a mapping without an end", code="odd-layout")
    lengths = []
    for step, n, width in zip(stride, count, block, strict=True):
        if n != 1 and step != width:
            raise place.error("has a mapping with gaps", code="odd-layout")
        lengths.append(int(n * width))
    return tuple(int(s) for s in start), tuple(lengths)
