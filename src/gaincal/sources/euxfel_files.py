"""One file of a European XFEL run: which modules it holds, and which frames of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.nexus.dataset import element_type
from gaincal.nexus.fields import read_array
from gaincal.nexus.trust import Place, Resolver
from gaincal.sources.matching import Store, Stretch

Array = npt.NDArray[Any]
MAX_FIELD_BYTES = 256 << 20
GAIN_MODE = "MDL/FPGA_COMP/gainModeIndex/value"
GAIN_MODES = {0: "adaptive", 1: "fixed_high", 2: "fixed_medium", 3: "fixed_low"}
_SIZE = re.compile(r"_(?:AGIPD|LPD|JF)(\d+)([MK])")


@dataclass(frozen=True)
class Family:
    """How the files of a kind of detector are laid out.

    An entry is a frame that names its pulse, or a train, whose frames are told apart by their place in it.

    Parameters
    ----------
    name, formula, group : str
    source : pattern
        Of a path below INDEX; finds the detector and the module.
    pixels : tuple of int
        Of a module.
    planes : int
        Words of a pixel in an entry of one frame; 0 where an entry is a train.
    words : mapping of str to (str, str, int)
        Field, element type and plane.
    cell, no_cell : str and int
        Field with the memory cells, if any, and what stands for none.
    received : (str, int), optional
        Field of a train, and its value where no frame was received.
    """

    name: str
    formula: str
    group: str
    source: re.Pattern[str]
    pixels: tuple[int, ...]
    planes: int
    words: Mapping[str, tuple[str, str, int]]
    cell: str | None
    no_cell: int = 65_535
    received: tuple[str, int] | None = None

    @property
    def second(self) -> str:
        """What tells the frames of a train apart."""
        return "pulse_id" if self.planes else "cell_index"

    def modules(self, detector: str) -> int | None:
        """How many modules a detector has, if its name says so: ``AGIPD1M``, ``JF500K`` ..."""
        size = _SIZE.search(detector)
        if size is None:
            return None
        return round(int(size[1]) * (1 if size[2] == "M" else 1e-3) * 2**20 / int(np.prod(self.pixels)))


_PULSED = r"(?P<detector>[^/]+_%s[^/]*)/DET/(?P<module>\d{1,4})CH\d+:xtdf"
_JUNGFRAU = r"(?P<detector>[^/]+_(?:JF|JNGFR|JUNGF)[^/]*)/DET/(?:JNGFR|MODULE_|RECEIVER-)(?P<module>\d{1,4}):daqOutput"
_STRIPS = r"(?P<detector>[^/]+/DET/GOTTHARD2[^/:]*|[^/]*GOTTHARD2[^/]*/DET/RECEIVER[^/:]*)(?P<module>):daqOutput"
_PLANES = {"analog": ("data", "u2", 0), "digital": ("data", "u2", 1)}
_SPLIT = {"adc": ("adc", "u2", 0), "gain_code": ("gain", "u1", 0)}
# The receivers count the frames that they got from 1, and give memory cells of JUNGFRAU only.
FAMILIES = (
    Family("AGIPD", "agipd", "image", re.compile(_PULSED % "AGIPD"), (512, 128), 2, _PLANES, "cellId"),
    Family("LPD", "lpd", "image", re.compile(_PULSED % "LPD1M"), (256, 256), 1, {"raw": ("data", "u2", 0)}, "cellId"),
    Family(
        *("JUNGFRAU", "jungfrau_split", "data", re.compile(_JUNGFRAU), (512, 1024), 0, _SPLIT),
        *("memoryCell", 255, ("memoryCell", 255)),
    ),
    Family(
        *("Gotthard-II", "gotthard2_split", "data", re.compile(_STRIPS), (1280,), 0, _SPLIT),
        *(None, 255, ("frameNumber", 0)),
    ),
)


@dataclass(frozen=True)
class Source:
    """A module in a file: ``SPB_DET_AGIPD1M-1/DET/3CH0:xtdf``."""

    family: Family
    detector: str
    number: int
    path: str


def sources(resolver: Resolver) -> list[Source] | None:
    """The modules in a file, None if the European XFEL did not write it."""
    # METADATA lists them too, but as chunked text of variable length, which is not read from untrusted files.
    index = resolver.find("/INDEX")
    if resolver.find("/METADATA") is None or index is None or resolver.find("/INDEX/trainId") is None:
        return None
    found = []
    for domain in resolver.members(index):
        place = resolver.walk(index, domain)
        group = resolver.find("DET", place) if isinstance(place.item, h5py.Group) else None
        for name in resolver.members(group) if group else ():
            path = f"{domain}/DET/{name}"
            matches = ((f, f.source.fullmatch(path)) for f in FAMILIES)
            found += [Source(f, m["detector"], int(m["module"] or 0), path) for f, m in matches if m]
    return found


def gain_modes(resolver: Resolver) -> list[str]:
    """The gain modes of AGIPD that a file with what was set in a run states."""
    run = resolver.find("/RUN")
    found = []
    for domain in resolver.members(run) if run else ():
        place = resolver.find(f"/RUN/{domain}/{GAIN_MODE}") if "AGIPD" in domain else None
        stated = read_array(place, MAX_FIELD_BYTES).reshape(-1).tolist() if place else []
        found += [GAIN_MODES.get(mode, f"mode {mode}") for mode in stated]
    return found


def read_stretch(resolver: Resolver, source: Source) -> Stretch | None:
    """The frames of a source, None if it has no words here; raises FileError if they and INDEX do not agree."""
    family = source.family
    index = resolver.find(f"/INDEX/{source.path}/{family.group}")
    group = resolver.find(f"/INSTRUMENT/{source.path}/{family.group}")
    if index is None or group is None:
        return None
    words = {name: _words(resolver, group, family, *stated) for name, stated in family.words.items()}
    shapes = {place.dataset.shape for place in words.values()}
    if len({s[:2] for s in shapes}) > 1:
        raise group.error(f"has words of different shapes: {sorted(shapes)}", code="not-words")
    trains, first, count = _index(resolver, index)
    fields = _fields(resolver, group, family)
    stored = min(shapes.pop()[0], *(len(values) for values in fields.values()))
    # In unsigned numbers: a sum of both could wrap around.
    if np.any(first > stored) or np.any(count > stored - first) or count.sum(dtype=float) > stored:
        problem = f"points to more entries than the {stored} that {group.path} holds"
        raise index.error(problem, "is the file complete?", code="wrong-shape")
    planes = {name: plane for name, (_, _, plane) in family.words.items()}
    corner = (0,) * len(family.pixels)
    places = {n: Store(p.file, p.path, corner, family.pixels, planes[n]) for n, p in words.items()}
    return _expanded(source, places, fields, trains, first.astype(np.int64), count.astype(np.int64))


def _expanded(source: Source, places: Mapping[str, Store], fields: Mapping[str, Array], *index: Array) -> Stretch:
    """The frames that INDEX names, one after the other."""
    trains, first, count = index
    train = np.repeat(trains, count)
    entry = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(train))
    doubtful = int(np.count_nonzero(fields["trainId"][entry] != train)) if "trainId" in fields else 0
    family = source.family
    if family.received is None:
        inner, usable = np.broadcast_to(np.uint16(0), len(train)), np.broadcast_to(True, len(train))
        cell = fields[family.cell][entry] if family.cell else inner
        second = fields["pulseId"][entry]
    else:
        name, missing = family.received
        state = fields[name][entry]
        second = inner = np.tile(np.arange(state.shape[1], dtype=np.uint16), len(entry))
        train, entry, cell = np.repeat(train, state.shape[1]), np.repeat(entry, state.shape[1]), state.reshape(-1)
        usable = cell != missing
    file = next(iter(places.values())).file.name
    columns = {"cell": cell}
    return Stretch(source.number, places, (train, second), entry, inner, usable, columns, doubtful, file)


def _words(resolver: Resolver, group: Place, family: Family, field: str, kind: str, _: int) -> Place:
    """A dataset of words, checked for its type and for the dims that its family has."""
    place = resolver.walk(group, field)
    found = element_type(place).newbyteorder("=")
    if found != np.dtype(kind):
        problem = f"holds {found.name}, words of {family.name} are {np.dtype(kind).name}"
        raise place.error(problem, "name the raw run" if found.kind == "f" else "", code="not-words")
    shape: tuple[int, ...] = place.dataset.shape or ()
    if len(shape) < 2 or shape[2:] != family.pixels or shape[1] != (family.planes or shape[1]):
        wanted = ", ".join(str(n) for n in ("entry", family.planes or "frame", *family.pixels))
        raise place.error(f"has shape {shape}, words of {family.name} are ({wanted})", code="not-words")
    return place


def _index(resolver: Resolver, index: Place) -> tuple[Array, Array, Array]:
    """Trains with entries, the first of these and their number."""
    trains = _numbers(resolver.get("/INDEX/trainId"))
    first = _numbers(resolver.walk(index, "first"))
    count = resolver.find("count", index)
    if count is None:
        # Files of 2017 say where the entries end, and whether there are any.
        last, status = (_numbers(resolver.walk(index, name)) for name in ("last", "status"))
        if not len(first) == len(last) == len(status):
            raise index.error("has columns of different lengths", code="wrong-shape")
        counts = np.where((status > 0) & (last >= first), last - first + np.uint64(1), np.uint64(0))
    else:
        counts = _numbers(count)
    # Lists of trains were padded with zeros.
    known = int(np.flatnonzero(trains)[-1]) + 1 if trains.any() else 0
    if len(first) != len(counts) or len(first) < known:
        problem = f"has {len(first)} and {len(counts)} rows for {known} trains"
        raise index.error(problem, "is the file complete?", code="wrong-shape")
    trains, first, counts = trains[:known], first[:known], counts[:known]
    used = (trains != 0) & (counts > 0)
    return trains[used], first[used], counts[used]


def _fields(resolver: Resolver, group: Place, family: Family) -> dict[str, Array]:
    """What is said about every entry."""
    if family.received is None:
        fields = {name: _numbers(resolver.walk(group, name)) for name in ("trainId", "pulseId", family.cell) if name}
        if family.cell and np.any(fields[family.cell] > family.no_cell):
            raise group.error(f"has memory cells beyond {family.no_cell}", code="wrong-shape")
        return fields
    place = resolver.walk(group, family.received[0])
    state = read_array(place, MAX_FIELD_BYTES)
    frames = resolver.walk(group, "adc").dataset.shape[1]
    odd = state.dtype.kind != "u" or (family.cell is not None and state.dtype != np.uint8)
    if odd or state.ndim != 2 or state.shape[1] != frames:
        raise place.error(f"is {state.dtype}{state.shape} for trains of {frames} frames", code="wrong-shape")
    train = resolver.find("trainId", group)
    return {family.received[0]: state} | ({} if train is None else {"trainId": _numbers(train)})


def _numbers(place: Place) -> Array:
    """Values of a field (n,) or (n, 1) of whole numbers that are not negative."""
    values = read_array(place, MAX_FIELD_BYTES)
    if values.ndim not in (1, 2) or values.size != values.shape[0] or values.dtype.kind not in "iu":
        raise place.error(f"is {values.dtype}{values.shape}, not one whole number per row", code="wrong-shape")
    if values.dtype.kind == "i" and np.any(values < 0):
        raise place.error("holds negative numbers", code="wrong-shape")
    return values.reshape(-1).astype(np.uint64)
