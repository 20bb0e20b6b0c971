"""Frames of many files matched by what identifies them, and the boxes of words in which they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, GaincalError, RequestError
from gaincal.nexus.account import Account, ModuleAccount
from gaincal.nexus.arrangement import Arrangement
from gaincal.sources.keys import Columns, Keys, close_keys, equal_keys
from gaincal.sources.run import Part, RawWords

Array = npt.NDArray[Any]
FIRST, LAST, REJECT = "first", "last", "reject"
DUPLICATES = (FIRST, LAST, REJECT)
MAX_PARTS = 100_000


@dataclass(frozen=True)
class Rule:
    """How frames are matched.

    Parameters
    ----------
    duplicates : {'first', 'last', 'reject'}
        Which of several rows of a module with the same ids is kept; none of them for ``reject``.
    require : int
        How many modules must have a frame.
    intersection : bool
        All modules that have any frame must have it.
    tolerance : float, optional
        Ids no further apart than this are the same; equal ones only if None.

    Raises
    ------
    RequestError
        If there is no such rule.
    """

    duplicates: str = FIRST
    require: int = 1
    intersection: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.duplicates not in DUPLICATES:
            raise RequestError(f"no rule '{self.duplicates}' for duplicates; there are {', '.join(DUPLICATES)}")
        if self.require < 1:
            raise RequestError(f"require {self.require}: at least one module must have a frame")
        if self.intersection and self.require > 1:
            raise RequestError("the intersection requires all modules: leave the number of modules out")
        if self.tolerance is not None and not 0 <= self.tolerance < np.inf:
            raise RequestError(f"tolerance {self.tolerance}: 0 or more, in the unit of the ids")


@dataclass(frozen=True)
class Store:
    """A dataset with the words of a module: (entry, *pixels) or (entry, place in it, *pixels).

    Parameters
    ----------
    file, path : Path, str
    corner, lengths : tuple of int
        Where the pixels lie along the dims behind these: first index and length.
    plane : int, optional
        What is added to the place in the entry; None where an entry is a frame.
    """

    file: Path
    path: str
    corner: tuple[int, ...]
    lengths: tuple[int, ...]
    plane: int | None = None


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows of a module as they were recorded, one after the other.

    Parameters
    ----------
    number : int
        Of the module.
    places : mapping of str to Store
        Of the words; none where no HDF5 file has them.
    ids : tuple of ndarray (row,)
        What identifies them together.
    entry, inner : ndarray (row,)
        Where they lie: index of the entry, and place in it.
    usable : ndarray of bool (row,)
        Whether there are ids and words.
    columns : mapping of str to ndarray (row,)
        What else is stated of them.
    doubtful : int
        Entries with another train than INDEX says.
    file : str
        Name of the file.
    """

    number: int
    places: Mapping[str, Store]
    ids: Columns
    entry: Array
    inner: Array
    usable: Array
    columns: Mapping[str, Array]
    doubtful: int = 0
    file: str = ""


@dataclass(frozen=True, eq=False)
class Module:
    """The frames of a module, sorted.

    Parameters
    ----------
    stretches : list of Stretch
        As they were recorded.
    at, kept : ndarray (frame,)
        Which frame of the run each is, and which of the rows of all stretches.
    unusable, duplicate, lonely : int
        Rows that were left out: without ids or words; recorded again; of frames that too few modules have.
    missing : int
        Frames of the run of which there is no row that could be used.
    """

    stretches: list[Stretch]
    at: Array
    kept: Array
    unusable: int
    duplicate: int
    lonely: int
    missing: int

    def column(self, name: str) -> Array:
        """A column of the stretches, one value per frame."""
        return self._kept([s.columns[name] for s in self.stretches])

    def _kept(self, of_stretch: Sequence[Array]) -> Array:
        return np.asarray(np.concatenate(of_stretch)[self.kept])

    @cached_property
    def which(self) -> Array:
        """The stretch of each frame."""
        ends = np.cumsum([len(s.entry) for s in self.stretches])
        return np.searchsorted(ends, self.kept, side="right")

    @cached_property
    def _lies(self) -> tuple[Array, Array]:
        return self._kept([s.entry for s in self.stretches]), self._kept([s.inner for s in self.stretches])

    @cached_property
    def runs(self) -> tuple[Array, Array, bool]:
        """Runs of frames that also follow each other in a file: their beginnings and lengths, and if within entries."""
        columns = (self.at, self.which, *self._lies)
        frame, file, entry, inner = (np.diff(c.astype(np.int64)) for c in columns)
        together = (frame == 1) & (file == 0)
        across, within = together & (entry == 1) & (inner == 0), together & (entry == 0) & (inner == 1)
        inside = bool(np.count_nonzero(within) > np.count_nonzero(across))
        breaks = np.flatnonzero(~(within if inside else across)) + 1
        starts = np.concatenate([[0], breaks]).astype(np.int64)[: len(self.at)]
        return starts, np.diff(starts, append=len(self.at)), inside

    def parts(self, word: str, lies: Arrangement, place: int) -> Iterator[Part]:
        """The parts of some words; `place` is that of the module in a frame."""
        starts, lengths, inside = self.runs
        columns = (self.at, self.which, *self._lies)
        for length, *first in zip(lengths.tolist(), *(c[starts].tolist() for c in columns), strict=True):
            at, stretch, entry, inner = first
            store = self.stretches[stretch].places[word]
            origin: tuple[int, ...] = (entry,)
            counts: tuple[int, ...] = (length,)
            if store.plane is not None:
                origin, counts = (entry, inner + store.plane), (1, length) if inside else (length, 1)
            source = ((*origin, *store.corner), (*counts, *store.lengths))
            yield Part(lies.box(at, length, place), store.file, store.path, source)

    def account(self, number: int, frames: int, problem: str = "") -> ModuleAccount:
        """What became of the rows, of which some could not be used for a stated reason."""
        recorded = sum(len(s.entry) for s in self.stretches)
        files = ", ".join(dict.fromkeys(s.file for s in self.stretches))
        rejected, written = self.unusable + self.lonely, len(self.at)
        facts = (recorded, written, frames - written, self.duplicate, rejected, recorded + self.missing)
        few = f"{self.lonely} rows of frames that too few modules have" if self.lonely else ""
        return ModuleAccount(number, files, *facts, ", ".join(p for p in (problem, few) if p))


@dataclass(frozen=True, eq=False)
class Matched:
    """Frames of all modules, matched.

    Parameters
    ----------
    ids : tuple of ndarray (frame,)
        What identifies the frames, sorted: all that enough modules have.
    modules : dict of int to Module
        By number.
    rule : Rule
    """

    ids: Columns
    modules: dict[int, Module]

    rule: Rule

    @property
    def frames(self) -> int:
        """Of the run."""
        return len(self.ids[0])

    def account(self, matched_by: str, problems: Mapping[int, tuple[str, str]]) -> Account:
        """What became of all rows of all modules.

        Parameters
        ----------
        matched_by : str
            Names of the ids.
        problems : mapping of int to (str, str)
            By the number of each module: its file, where there is nothing of it, and what is wrong.

        Raises
        ------
        GaincalError
            If something is not accounted for, which is a fault of this program.
        """
        frames = self.frames
        rows = []
        for number, (file, problem) in problems.items():
            module = self.modules.get(number)
            nothing = ModuleAccount(number, file, 0, 0, frames, 0, 0, frames, problem)
            rows.append(nothing if module is None else module.account(number, frames, problem))
        for row in rows:
            if not row.balanced:
                raise GaincalError(f"a fault of gaincal: rows are not accounted for: {row}", code="unbalanced")
        present = sum(len(m.at) > 0 for m in self.modules.values())
        required = present if self.rule.intersection else self.rule.require
        return Account(matched_by, self.rule.duplicates, required, tuple(rows), self.rule.tolerance)


def match(stretches: Sequence[Stretch], rule: Rule, label: str = "module {}") -> Matched:
    """Match the frames of all modules: those are the same whose ids are equal, and no others.

    Parameters
    ----------
    stretches : sequence of Stretch
        In the order of the files; at least one.
    rule : Rule
    label : str
        How a module is called in a complaint.

    Raises
    ------
    RequestError
        If it is not clear within the tolerance which frames are the same.
    """
    keys = _keys(stretches, rule, label)
    rows = {n: [k for k, s in enumerate(stretches) if s.number == n] for n in sorted({s.number for s in stretches})}
    kept = {}
    for number, own in rows.items():
        usable = np.flatnonzero(np.concatenate([stretches[k].usable for k in own]))
        kept[number] = (
            len(usable),
            *_single(np.concatenate([keys.of[k] for k in own])[usable], usable, rule.duplicates),
        )
    table = _table([key for _, key, _ in kept.values()], rule)
    modules = {}
    for number, own in rows.items():
        usable_rows, key, row = kept[number]
        # Where a frame would stand is not where it stands: only what is equal matches.
        equal = np.isin(key, table, assume_unique=True)
        recorded = sum(len(stretches[k].entry) for k in own)
        modules[number] = Module(
            stretches=[stretches[k] for k in own],
            at=np.searchsorted(table, key[equal]),
            kept=row[equal],
            unusable=recorded - usable_rows,
            duplicate=usable_rows - len(key),
            lonely=int(np.count_nonzero(~equal)),
            missing=int(np.count_nonzero(~np.isin(table, key, assume_unique=True))),
        )
    return Matched(keys.ids(table), modules, rule)


def _keys(stretches: Sequence[Stretch], rule: Rule, label: str) -> Keys:
    """Numbers for the ids of all rows; those of rows that are not usable mean nothing."""
    if rule.tolerance is None:
        return equal_keys([s.ids for s in stretches])
    names = [label.format(s.number) for s in stretches]
    close = close_keys([s.ids[0][s.usable] for s in stretches], names, rule.tolerance)
    keys = [np.zeros(len(s.entry), np.int64) for s in stretches]
    for whole, stretch, part in zip(keys, stretches, close.of, strict=True):
        whole[stretch.usable] = part
    return Keys(keys, close.distinct)


def _single(key: Array, row: Array, duplicates: str) -> tuple[Array, Array]:
    """Keys, sorted, each once, and the row that stands for it."""
    order = np.argsort(key, kind="stable")
    key, row = key[order], row[order]
    changes = np.diff(key) != 0
    first, last = np.concatenate([[True], changes])[: len(key)], np.concatenate([changes, [True]])[: len(key)]
    chosen = {FIRST: first, LAST: last, REJECT: first & last}[duplicates]
    return key[chosen], row[chosen]


def _table(keys: list[Array], rule: Rule) -> Array:
    """The keys, sorted, that enough modules have."""
    present = sum(len(k) > 0 for k in keys)
    needed = present if rule.intersection else rule.require
    if needed <= 1:
        return reduce(np.union1d, keys, np.empty(0, np.int64))
    values, counts = np.unique(np.concatenate(keys), return_counts=True)
    return np.asarray(values[counts >= needed])


def map_words(
    named: str, place: str, lies: Arrangement, dtypes: Mapping[str, np.dtype[Any]], modules: Mapping[int, Module]
) -> dict[str, RawWords]:
    """Where all words lie.

    Parameters
    ----------
    named, place : str
        File (or folder) and place for a complaint.
    lies : Arrangement
    dtypes : mapping of str to dtype
        Of each kind of words.
    modules : mapping of int to Module
        By their place in a frame.

    Raises
    ------
    FileError
        If they lie in too many pieces.
    """
    total = sum(len(m.runs[0]) for m in modules.values())
    if total > MAX_PARTS:
        problem = f"lies in {total} pieces, more than {MAX_PARTS}"
        raise FileError(named, place, problem, "are its frames out of order?", code="over-budget")
    return {
        word: RawWords(dtype, tuple(part for k, m in modules.items() for part in m.parts(word, lies, k)))
        for word, dtype in dtypes.items()
    }
