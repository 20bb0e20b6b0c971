"""JUNGFRAU frames as the receivers of slsDetectorPackage write them: ``.raw`` files and their JSON master.

Frames of different ports belong together if their frame numbers are equal, and never for any other reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.trust import reading
from gaincal.sources.run import RawRun, RawWords, by_frame, jungfrau_formula, jungfrau_maps
from gaincal.sources.slsdet_master import COLUMNS, ROWS, ROWS_PER_PACKET, Master, find_master, load_master, open_file
from gaincal.sources.slsdet_ports import HEADER, Port, load_ports, packets_caught

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reader:
    """Reads frames, which lie at `places` (port, frame) in the files of the ports; -1 where a port has none."""

    master: Master
    files: tuple[tuple[Path, ...], ...]
    places: Array
    numbers: Array

    def __call__(self, first: int, count: int) -> tuple[Array, Flags | None]:
        """Read frames; see `RawWords`."""
        if not 0 <= first <= first + count <= len(self.numbers):
            raise IndexError(f"frames {first} to {first + count} of {len(self.numbers)}")
        words = np.zeros((count, self.master.ports, self.master.rows, COLUMNS), "<u2")
        lost = np.ones(words.shape[:3], bool)
        for port, files in enumerate(self.files):
            places = self.places[port, first : first + count]
            pieces = places // self.master.per_file
            for piece in np.unique(pieces[places >= 0]):
                with open_file(files[piece], self.master.file.parent) as stream, reading(files[piece]):
                    for k in np.flatnonzero(pieces == piece):
                        lost[k, port] = self._frame(stream, files[piece], port, first + int(k), words[k, port])
        words[lost] = 0
        shape = (count, *self.master.pixels)
        missing = np.broadcast_to(lost[..., None], words.shape).reshape(shape) if lost.any() else None
        return words.astype(np.uint16, copy=False).reshape(shape), missing

    def _frame(self, stream: io.FileIO, file: Path, port: int, frame: int, words: Array) -> Flags:
        """Read the words of one frame of a port, and which rows of it got lost."""
        header = np.zeros(1, HEADER)
        stream.seek(int(self.places[port, frame] % self.master.per_file) * self.master.stride)
        size = (stream.readinto(header.view(np.uint8).data) or 0) + (stream.readinto(words.data) or 0)
        if size != self.master.stride or header["number"][0] != self.numbers[frame]:
            problem = f"no longer holds frame_number {self.numbers[frame]} where it was"
            raise FileError(file, "", problem, "read it when it is complete", code="incomplete")
        return np.repeat(~packets_caught(header)[0, : self.master.packets], ROWS_PER_PACKET)


@dataclass(frozen=True)
class Headers:
    """The headers of a run put together by frame number: (port, frame), zeros where a port has no such frame."""

    numbers: Array
    places: Array
    table: Array
    caught: Array

    @classmethod
    def of(cls, ports: tuple[Port, ...]) -> Headers:
        """Match frames of all ports; those of any port count."""
        numbers = np.unique(np.concatenate([p.headers["number"] for p in ports]))
        places = np.full((len(ports), len(numbers)), -1, np.int64)
        table, caught = np.zeros(places.shape, HEADER), np.zeros(places.shape, np.int64)
        for n, port in enumerate(ports):
            at = np.searchsorted(numbers, port.headers["number"])
            places[n, at], table[n, at], caught[n, at] = np.arange(len(at)), port.headers, port.caught
        return cls(numbers, places, table, caught)

    def first(self, name: str) -> Array:
        """A field of the first port that has anything of a frame; (frame,)."""
        at = (self.caught > 0).argmax(axis=0)
        return np.asarray(self.table[name][at, np.arange(len(at))])

    def differs(self, name: str) -> Flags:
        """Where ports that have anything of a frame state other values; (frame,)."""
        return np.asarray(((self.table[name] != self.first(name)) & (self.caught > 0)).any(axis=0))

    def info(self, interfaces: int) -> Array:
        """DAQ info (frame, module); where a module has nothing of a frame, that of another module or frame."""
        known = self.caught > 0
        values = np.where(known, self.table["info"], self.first("info"))
        empty = ~known.any(axis=0)
        if empty.any() and not empty.all():
            values[:, empty] = values[:, np.flatnonzero(~empty)[:1]]
        modules = values.reshape(len(values) // interfaces, interfaces, values.shape[1])
        has = known.reshape(modules.shape).argmax(axis=1)
        return np.take_along_axis(modules, has[:, None], axis=1)[:, 0].T


def recognise(path: Path) -> RawRun | None:
    """Recognise a JUNGFRAU run of slsDetectorPackage.

    Parameters
    ----------
    path : Path
        The JSON master, one of its ``.raw`` files, or a directory that holds exactly one master.

    Returns
    -------
    RawRun or None
        None if it is something else.

    Raises
    ------
    FileError
        If it is such a run, but damaged, incomplete, or of a kind that cannot be read.
    """
    file = find_master(path)
    master = None if file is None else load_master(file)
    if master is None:
        return None
    ports = load_ports(master)
    headers = Headers.of(ports)
    info = headers.info(master.interfaces)
    reader = Reader(master, tuple(p.files for p in ports), headers.places, headers.numbers)
    modules, frames = master.ports // master.interfaces, len(headers.numbers)
    inputs = _inputs(info)
    return RawRun(
        kind="slsdet",
        description=f"slsDetectorPackage {master.version:g}, {master.file.name}: {frames} frames, {modules} module(s)",
        detector="Jungfrau",
        formula=jungfrau_formula(inputs),
        frames=frames,
        pixels=master.pixels,
        maps=jungfrau_maps(master.pixels),
        words={"raw": RawWords(np.dtype(np.uint16), read=reader)},
        inputs=inputs,
        ids=_ids(headers),
        files=(master.file, *(f for p in ports for f in p.files)),
        notes=tuple(_notes(master, ports, headers, info)),
        forced=by_frame((info >> 12 & 3).astype(np.uint8)),
        facts={**master.stated, **_serials(headers, master.interfaces)},
    )


def _inputs(info: Array) -> dict[str, Array]:
    """The storage cell, where more than one was used (the master does not say), and whether high gain was."""
    cells, high = (info >> 8 & 15).astype(np.uint8), (info & 1).astype(np.uint8)
    several = {"cell": by_frame(cells)} if (cells != cells[:1, :1]).any() else {}
    return {"high_gain": by_frame(high)} | several


def _serials(headers: Headers, interfaces: int) -> dict[str, str]:
    """The numbers of the modules as their headers state them; nothing where one of them states none, or several."""
    stated = [np.unique(row["module"][caught > 0]) for row, caught in zip(headers.table, headers.caught, strict=True)]
    known = all(len(numbers) == 1 and numbers[0] for numbers in stated)
    return {"module_serials": ",".join(str(n[0]) for n in stated[::interfaces])} if known else {}


def _ids(headers: Headers) -> dict[str, Array]:
    ids = {"frame_number": headers.numbers, "timestamp": headers.first("timestamp")}
    bunches = headers.first("bunch_id")
    return ids | ({"bunch_id": bunches} if bunches.any() else {})


def _notes(master: Master, ports: tuple[Port, ...], headers: Headers, info: Array) -> Iterator[str]:
    numbers = headers.numbers
    if len(numbers) < master.expected:
        yield f"{len(numbers)} of {master.expected} frames were recorded"
    if len(numbers) and (gone := int(numbers[-1] - numbers[0]) + 1 - len(numbers)):
        yield f"{gone} frame numbers between {numbers[0]} and {numbers[-1]} are in no file"
    if master.rows_read < ROWS:
        yield f"{master.rows_read} of {ROWS} rows were read out: the others are missing"
    whole = master.packets * master.rows_read // ROWS
    for n, port in enumerate(ports):
        has, caught = headers.places[n] >= 0, headers.caught[n]
        if not has.all():
            yield f"{port.name} lacks {_frames(numbers, ~has)}"
        if (short := has & (caught < whole)).any():
            yield f"{port.name} lost {int((whole - caught)[short].sum())} packets in {_frames(numbers, short)}"
        column, row = divmod(n, master.ports_y)
        here = port.headers[port.caught > 0]
        if ((here["row"] != row) | (here["column"] != column)).any():
            yield f"the headers of {port.name} state another row or column than its name stands for"
    if (differs := headers.differs("bunch_id")).any():
        yield f"bunch_id differs between ports in {_frames(numbers, differs)}; that of the first port is given"
    if (forced := np.asarray((info >> 12 & 3).any(axis=1))).any():
        yield f"the gain was forced in {_frames(numbers, forced)}: is it a pedestal run?"


def _frames(numbers: Array, chosen: Flags) -> str:
    """How many frames, and which is the first."""
    return f"{np.count_nonzero(chosen)} of {len(numbers)} frames (first: frame_number {numbers[chosen][0]})"
