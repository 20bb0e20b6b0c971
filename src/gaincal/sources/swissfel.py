"""JUNGFRAU runs of SwissFEL: one HDF5 file, the modules of a detector as stripes of one tall image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.fields import read_array
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.nexus.words import Words
from gaincal.sources.run import Part, RawRun, RawWords, by_frame, jungfrau_formula, jungfrau_maps

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ROWS, COLUMNS = 512, 1024
ABSENT = -1

COLUMNS_OF_FRAMES = ("is_good_frame", "pulse_id", "frame_index", "daq_rec")

_NAME = re.compile(r"JF\d+T(?P<modules>\d{1,3})V\d+")
_INSIDE = re.compile(r"/*data/+(?P<name>[^/]+)(?:/+data)?/*")


def recognise(path: Path, inside: str | None = None) -> RawRun | None:
    """Recognise a JUNGFRAU run of SwissFEL.

    Parameters
    ----------
    path : Path
    inside : str, optional
        ``/data/NAME``, where the file holds several detectors.

    Returns
    -------
    RawRun or None
        None if it is something else.

    Raises
    ------
    FileError
        If it is such a run, but damaged, contradicts itself, or holds several detectors.
    """
    if path.is_dir():
        return None
    try:
        resolver = Resolver(path)
    except FileError as error:
        if error.code == "not-hdf5" and not _is_hdf5(path):
            return None
        raise
    with resolver, reading(path):
        detector = _detector(resolver, inside)
        return None if detector is None else _run(resolver, *detector)


def _is_hdf5(path: Path) -> bool:
    with reading(path), path.open("rb") as stream:
        return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC


def _detector(resolver: Resolver, inside: str | None) -> tuple[str, Place] | None:
    """Name and group of the detector that is meant; None if there is none."""
    data = resolver.find("/data")
    if data is None or not isinstance(data.item, h5py.Group):
        return None
    names = [n for n in resolver.members(data) if _NAME.fullmatch(n)]
    if inside is not None:
        named = _INSIDE.fullmatch(inside)
        if named is None or not _NAME.fullmatch(named["name"]):
            return None
        return named["name"], resolver.get(f"/data/{named['name']}")
    if len(names) > 1:
        remedy = f"name one: {resolver.named}::/data/{names[0]}"
        raise FileError(
            resolver.named, "/data", f"holds several detectors: {', '.join(names)}", remedy, code="ambiguous"
        )
    return (names[0], resolver.get(f"/data/{names[0]}")) if names else None


def _run(resolver: Resolver, name: str, group: Place) -> RawRun:
    words = _words(resolver, group)
    stripes = _stripes(resolver, group, int(_NAME.sub(r"\g<modules>", name)), words)
    frames, modules = words.shape[0], len(stripes)
    columns = _columns(resolver, group, frames, stripes != ABSENT)
    good = columns.get("is_good_frame", np.ones((frames, 1), bool)) != 0
    inputs = _inputs(columns, stripes != ABSENT)
    present = np.count_nonzero(stripes != ABSENT)
    pixels = (ROWS, COLUMNS) if modules == 1 else (modules, ROWS, COLUMNS)
    return RawRun(
        kind="swissfel",
        description=f"SwissFEL JUNGFRAU {name}: {frames} frames, {present} of {modules} module(s)",
        detector=name,
        formula=jungfrau_formula(inputs),
        frames=frames,
        pixels=pixels,
        maps=jungfrau_maps(pixels),
        words={"raw": RawWords(words.dtype, tuple(_parts(words, stripes)))},
        inputs=inputs,
        ids=_ids(group, columns, good),
        files=tuple(resolver.opened),
        notes=(*_notes(stripes, words), *_notes_of_frames(columns, good)),
        forced=_forced(columns, stripes != ABSENT),
        facts={"detector_name": name},
    )


def _words(resolver: Resolver, group: Place) -> Words:
    """The words of all modules; raises FileError if they are not whole stripes of 16 bits."""
    words = Words(resolver, resolver.walk(group, "data"))
    if words.dtype != np.uint16:
        raise words.place.error(f"has words of type {words.dtype}", "only uint16 is raw", code="not-words")
    if len(words.shape) != 3 or words.shape[2] != COLUMNS or words.shape[1] % ROWS or not words.shape[1]:
        problem = f"has shape {words.shape}, raw frames are (frames, modules * {ROWS}, {COLUMNS})"
        raise words.place.error(problem, "was it assembled already?", code="wrong-shape")
    return words


def _stripes(resolver: Resolver, group: Place, modules: int, words: Words) -> Array:
    """Which stripe of the words each module is; -1 for a module that is absent."""
    height, numbers = words.shape[1] // ROWS, np.arange(modules)
    place = resolver.find("meta/module_map", group) or resolver.find("module_map", group)
    if place is None:
        if height != modules:
            problem = f"has {height} stripes for {modules} modules, and no module_map says which"
            raise words.place.error(problem, "is the file complete?", code="wrong-shape")
        return numbers
    stated = read_array(place)
    if stated.ndim == 2 and len(stated):
        if (stated != stated[0]).any():
            frame = int((stated != stated[0]).any(axis=1).argmax())
            raise place.error(f"changes at frame {frame}", "split the run there", code="frames-differ")
        stated = stated[0]
    if stated.shape != (modules,) or stated.dtype.kind not in "iu":
        problem = f"is {stated.dtype}{stated.shape}, the detector has {modules} modules"
        raise place.error(problem, "is the file complete?", code="wrong-shape")
    stripes = stated.astype(np.int64)
    if height == modules:  # absent modules have a stripe too, with nothing in it
        stripes = np.where(stripes == ABSENT, ABSENT, numbers)
        fits = (stripes == ABSENT).any() or (stated == numbers).all()
    else:
        fits = np.array_equal(np.sort(stripes[stripes != ABSENT]), np.arange(height))
    if not fits:
        problem = f"is {stated.tolist()}, which does not name {height} stripes"
        raise place.error(problem, "is the file complete?", code="wrong-shape")
    return stripes


def _columns(resolver: Resolver, group: Place, frames: int, present: Flags) -> dict[str, Array]:
    """What is stated of every frame: (frame, 1) or (frame, present module), by name."""
    columns = {}
    for name in COLUMNS_OF_FRAMES:
        place = resolver.find(name, group)
        if place is None:
            continue
        values = read_array(place)
        widths = {1, len(present), int(np.count_nonzero(present))}
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or len(values) != frames or values.shape[1] not in widths or values.dtype.kind not in "biu":
            problem = f"is {values.dtype}{values.shape}, there are {frames} frames of {len(present)} modules"
            raise place.error(problem, "is the file complete?", code="wrong-shape")
        columns[name] = values[:, present] if 1 < values.shape[1] == len(present) else values
    return columns


def _ids(group: Place, columns: Mapping[str, Array], good: Flags) -> dict[str, Array]:
    """What identifies frames; of several modules, the first that is not marked bad says it."""
    ids: dict[str, Array] = {}
    for name in ("pulse_id", "frame_index"):
        if name not in columns:
            continue
        ids[name], differs = _agreed(columns[name], good)
        if name == "pulse_id" and differs.any():
            frame = int(differs.argmax())
            problem = f"of frame {frame} differs between modules: {np.unique(columns[name][frame]).tolist()}"
            where = Place(group.file, f"{group.path}/{name}", group.item)
            raise where.error(problem, "modules that are out of step cannot be put together", code="frames-differ")
    if "is_good_frame" in columns:
        ids["is_good_frame"] = np.asarray(good.all(axis=1), np.uint8)
    return ids


def _agreed(values: Array, good: Flags) -> tuple[Array, Flags]:
    """The value of the first good module of every frame, and where another good module has another."""
    usable = np.broadcast_to(good, (len(values), max(values.shape[1], good.shape[1])))
    values = np.broadcast_to(values, usable.shape)
    agreed = np.take_along_axis(values, usable.argmax(axis=1)[:, None], axis=1)
    return agreed[:, 0], np.asarray(((values != agreed) & usable).any(axis=1))


def _inputs(columns: Mapping[str, Array], present: Flags) -> dict[str, Array]:
    """High gain of every frame, and the storage cell where more than one was used."""
    if "daq_rec" not in columns:
        return {}
    info = _info(columns, present)
    high, cells = (info & 1).astype(np.uint8), (info >> 8 & 15).astype(np.uint8)
    several = {"cell": by_frame(cells)} if (cells != cells[:1, :1]).any() else {}
    return {"high_gain": by_frame(high)} | several


def _info(columns: Mapping[str, Array], present: Flags) -> Array:
    """The DAQ record of every frame and module."""
    stated = columns["daq_rec"].astype(np.int64)
    # A module that is absent counts as the first that is not: no word of it will be read.
    column = np.maximum(np.cumsum(present) - 1, 0) if stated.shape[1] > 1 else np.zeros(len(present), np.int64)
    return np.asarray(stated[:, column])


def _forced(columns: Mapping[str, Array], present: Flags) -> Array | None:
    """The gain code that was forced in every frame, where the files have a DAQ record."""
    return by_frame((_info(columns, present) >> 12 & 3).astype(np.uint8)) if "daq_rec" in columns else None


def _parts(words: Words, stripes: Array) -> Iterator[Part]:
    frames = words.shape[0]
    for module, stripe in enumerate(stripes.tolist()):
        if stripe == ABSENT or not frames:
            continue
        source = ((0, stripe * ROWS, 0), (frames, ROWS, COLUMNS))
        target = ((0, 0, 0), source[1]) if len(stripes) == 1 else ((0, module, 0, 0), (frames, 1, ROWS, COLUMNS))
        yield Part(target, words.place.file, words.place.path, source)


def _notes(stripes: Array, words: Words) -> Iterator[str]:
    absent = np.flatnonzero(stripes == ABSENT).tolist()
    if absent:
        yield f"absent modules: {', '.join(str(n) for n in absent)}"
    if words.gaps:
        yield f"parts of the words are missing: {words.gaps[0].reason}"


def _notes_of_frames(columns: Mapping[str, Array], good: Flags) -> Iterator[str]:
    frames, bad = len(good), np.count_nonzero(~good.all(axis=1))
    if bad:
        yield f"{bad} of {frames} frames are marked bad; they stay, with is_good_frame 0"
    if "frame_index" in columns and (differs := _agreed(columns["frame_index"], good)[1]).any():
        count = np.count_nonzero(differs)
        yield f"frame_index differs between modules in {count} of {frames} frames; that of the first is given"
    if "daq_rec" not in columns:
        yield "no daq_rec: whether frames were taken with high gain is not known"
    elif forced := np.count_nonzero((columns["daq_rec"].astype(np.int64) >> 12 & 3).any(axis=1)):
        yield f"the gain was forced in {forced} of {frames} frames: is it a pedestal run?"
