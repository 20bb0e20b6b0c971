"""One module of a detector in files of its own: its words, its ids, and which of its rows can be used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, RequestError
from gaincal.nexus.trust import Resolver, reading
from gaincal.nexus.words import Words
from gaincal.nexus.written import frames_with_words
from gaincal.sources.files import SEPARATOR, Spec, find_words, module_spec
from gaincal.sources.ids import load_ids
from gaincal.sources.matching import Store, Stretch
from gaincal.sources.recognise import AUTO, PLAIN, readers, recognise
from gaincal.sources.run import Part, RawRun, RawWords

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Trust = Iterable[str | os.PathLike[str]]
PLAIN_RANK = 3
GONE = ("not-found", "not-hdf5", "unreadable", "incomplete")
"""Faults of a file that leave a gap; all others are mistakes that somebody can put right."""
MATCHED_BY = ("pulse_id", "train_id", "bunch_id", "frame_number")
"""Ids by which frames are matched if nobody says by which, the best first."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What a module recorded, or why there is nothing.

    Parameters
    ----------
    run : RawRun or None
    ids : mapping of str to ndarray (row,)
    usable : ndarray of bool (row,)
        Whether a row has words and ids.
    problem : str
        Why there is nothing, or why rows cannot be used.
    file : str
    """

    run: RawRun | None
    ids: Mapping[str, Array] = field(default_factory=dict)
    usable: Flags = field(default_factory=lambda: np.zeros(0, bool))
    problem: str = ""
    file: str = ""

    @property
    def rows(self) -> int:
        """Frames of words, or ids, whatever is more."""
        return len(self.usable)

    def stretch(self, number: int, matched_by: str) -> Stretch:
        """The rows, for matching."""
        assert self.run is not None
        rows = np.arange(self.rows)
        columns = {**self.ids, **{f"/{n}": _padded(v, self.rows) for n, v in self.run.inputs.items()}}
        places = {word: _store(words) for word, words in self.run.words.items() if words.read is None}
        inner = np.broadcast_to(np.uint8(0), self.rows)
        ids = (self.ids[matched_by],)
        return Stretch(number, places, ids, rows, inner, self.usable, columns, file=self.file)


def record(
    spec: Spec | None, number: int, ids: Mapping[str, str | None], source: str = AUTO, trust: Trust = ()
) -> Recording:
    """Find out what a module recorded.

    Parameters
    ----------
    spec : Spec or None
        The file of the module; None if it is absent.
    number : int
        Of the module.
    ids : mapping of str to str or None
        Where the ids lie, those first by which frames are matched: ``/path`` in the file, ``FILE::/path``,
        ``FILE.npy``, each perhaps with ``{module}``; None for ids that the source knows.
    source : str
        See `recognise`.
    trust : iterable of str or path
        Directories whose files the file may lead to.

    Raises
    ------
    FileError
        If the file is no file of one module, or has no such ids.
    """
    if spec is None:
        return Recording(None, problem="absent")
    try:
        return _record(spec, number, ids, source, trust)
    except FileError as error:
        whole = not error.place or error.code == "unreadable"
        if error.code not in GONE or not whole:
            raise
        return Recording(None, problem=error.problem, file=spec.file.name)


def _record(spec: Spec, number: int, ids: Mapping[str, str | None], source: str, trust: Trust) -> Recording:
    if not spec.file.exists():
        raise FileError(spec.file, "", "does not exist", code="not-found")
    run = recognise(spec.file, spec.path, source) or _plain_run(spec, trust)
    homes = {part.file.parent for words in run.words.values() for part in words.parts}
    has = np.ones(run.frames, bool)
    if homes:
        with Resolver(spec.file, [*trust, *homes]) as resolver, reading(spec.file):
            for words in readers(run, resolver).values():
                has &= frames_with_words(words) if isinstance(words, Words) else True
    found = {name: _ids(run, spec, number, name, where, trust) for name, where in ids.items()}
    found |= {n: _known(v) for n, v in run.ids.items() if n not in found}
    rows = max(run.frames, *(len(v) for v, _ in found.values())) if found else run.frames
    key = next(iter(ids), None)
    known = np.ones(rows, bool) if key is None else _padded(found[key][1], rows)
    words_there = _padded(has, rows)
    reasons = {"without words": int(np.count_nonzero(~words_there)), "without ids": int(np.count_nonzero(~known))}
    problem = ", ".join(f"{count} rows {what}" for what, count in reasons.items() if count)
    padded = {n: _padded(v, rows) for n, (v, _) in found.items()}
    return Recording(run, padded, words_there & known, problem, spec.file.name)


def _plain_run(spec: Spec, trust: Trust) -> RawRun:
    """A dataset of words (frame, y, x) in an HDF5 file; the only one where none is named."""
    with Resolver(spec.file, trust) as resolver, reading(spec.file):
        words = Words(resolver, find_words(resolver, spec.path, PLAIN_RANK))
        whole = ((0,) * len(words.shape), words.shape)
        pixels = words.shape[1:]
        while len(pixels) > PLAIN_RANK - 1 and pixels[0] == 1:
            pixels = pixels[1:]
        part = Part(((0,) * (1 + len(pixels)), (words.shape[0], *pixels)), words.place.file, words.place.path, whole)
        held = {"raw": RawWords(words.dtype, (part,))}
        return RawRun(PLAIN, "HDF5", "", None, words.shape[0], pixels, held, files=tuple(resolver.opened))


def _ids(run: RawRun, spec: Spec, number: int, name: str, where: str | None, trust: Trust) -> tuple[Array, Flags]:
    """Ids of a name, and which rows have one."""
    if where is None:
        if name not in run.ids:
            listed = ", ".join(run.ids) or "none"
            problem = f"{spec.file} is not known to have ids '{name}' (it has {listed})"
            raise RequestError(f"{problem}: say where they are: --id {name}=/path")
        return _known(run.ids[name])
    named = Spec.parse(where)
    elsewhere = SEPARATOR in where or named.file.suffix == ".npy"
    return load_ids(module_spec(named if elsewhere else Spec(spec.file, where), number), trust)


def _known(values: Array) -> tuple[Array, Flags]:
    """Ids that a source knows of every row, in the one type of ids: no digit gets lost between two types."""
    whole = values.dtype.kind in "biu" and not np.any(values < 0)
    return values.astype(np.uint64) if whole else values, np.ones(len(values), bool)


def _padded(values: Array, rows: int) -> Array:
    """Values with zeros behind them, for rows of which there are none."""
    first = values.reshape(len(values), -1)[:, 0] if values.ndim > 1 else values
    return np.concatenate([first, np.zeros(rows - len(first), first.dtype)]) if len(first) < rows else first


def _store(words: RawWords) -> Store:
    """Where the words of a module lie; they are one part, or the whole would have as many pieces as that has."""
    if len(words.parts) != 1:
        where = words.parts[0].file if words.parts else Path()
        raise FileError(where, "", "has its words in several pieces", "name the file of one module", code="not-words")
    (part,) = words.parts
    return Store(part.file, part.path, part.source[0][1:], part.source[1][1:])
