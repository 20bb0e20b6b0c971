"""What is to be done: the frames of every part, and a checksum of all that its content depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaincal._version import __version__
from gaincal.nexus import names
from gaincal.nexus.group import fields_checksum
from gaincal.nexus.read import Master
from gaincal.verbs.apply import Work

MIN_FRAMES, MAX_PARTS, PARTS_PER_THREAD = 50, 2000, 4


@dataclass(frozen=True)
class Part:
    """Some frames of a run, and the file that holds them.

    Parameters
    ----------
    path : Path
    number : int
        Among all parts, from 0.
    first, count : int
        Frames, counted in the run.
    identity : str
        Checksum of all that its content depends on.
    """

    path: Path
    number: int
    first: int
    count: int
    identity: str


@dataclass(frozen=True)
class Order:
    """What all tasks of a run have in common; it travels to the workers.

    Parameters
    ----------
    master, folder : str
        Absolute paths of the master, and of the folder for the parts.
    options, request : mapping
        Arguments of `open_master`, and of `prepare` except the frames.
    group : str
        HDF5 path of the signal's group.
    first, count : int
        Frames.
    identity : mapping
        See `identity`.
    parts : int
        Into how many the frames are cut.
    """

    master: str
    folder: str
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    group: str
    first: int
    count: int
    identity: Mapping[str, Any]
    parts: int = 1

    @property
    def signals(self) -> list[str]:
        """Names of the datasets with a value for every pixel and frame."""
        return [names.IMAGE, names.ERRORS] if self.request["errors"] else [names.IMAGE]

    def part(self, number: int) -> Part:
        """One of the parts."""
        begin, end = (self.first + self.count * k // self.parts for k in (number, number + 1))
        known = checksum([self.identity, number, self.parts])
        return Part(Path(self.folder) / f"{number:06}.nxs", number, begin, end - begin, known)

    def all_parts(self) -> list[Part]:
        """All of them, in order."""
        return [self.part(number) for number in range(self.parts)]


def identity(work: Work) -> dict[str, Any]:
    """All that the written frames depend on: the same identity, the same bits."""
    master, program = work.master, work.program
    formula = master.calibration.formula
    constants = {c.name for c in formula.constants}
    inputs = {name: array for name, array in master.calibration.arrays.items() if name not in constants}
    return {
        "version of gaincal": __version__,
        "calibration": [master.located.group.path, master.stored.checksum],
        "formula": formula.digest,
        "inputs": fields_checksum(inputs),
        "output": [program.value, program.dtype, program.fill, work.variance is not None, list(work.stored)],
        "reasons": None if master.reasons is None else list(master.reasons),
        "frames": [work.first, work.count],
        "words": _sources(master),
    }


def _sources(master: Master) -> dict[str, list[int]]:
    """Size and time of the files that hold the words, named as seen from the master; hashing them would take long."""
    found = {}
    for file in sorted({source.place.file for words in master.words.values() for source in words.sources}):
        status = file.stat()
        found[os.path.relpath(file, master.resolver.master.parent)] = [status.st_size, status.st_mtime_ns]
    return found


def checksum(content: Any) -> str:
    """Of anything that JSON can hold."""
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"


def cut(frames: int, threads: int) -> int:
    """How many parts: some for every thread, so that slow ones hold nobody up, and none of them tiny."""
    return max(1, min(frames // MIN_FRAMES, PARTS_PER_THREAD * threads, MAX_PARTS))
