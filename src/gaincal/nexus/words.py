"""Raw words, wherever they lie: plain datasets, and virtual ones put together here.

A virtual dataset is never read through HDF5, which fills in zeros for a source that is missing,
reads past the end of one that is short and crashes on cycles.  Its mappings are resolved to boxes
of plain datasets, and each box is read by itself; what no box covers is missing, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.packed import STEP, Packed
from gaincal.kernels.threads import run_all
from gaincal.nexus.boxes import Box, coverage, intersection, remainder
from gaincal.nexus.dataset import MAX_INFLATION, MIN_CHECKED_BYTES, PlainDataset, check_budget, element_type
from gaincal.nexus.mappings import Mapping, mappings
from gaincal.nexus.packing import Packing, Piece, Plan, plan
from gaincal.nexus.trust import Place, Resolver, reading

Array = npt.NDArray[Any]
MAX_FRAME_BYTES = 1 << 30
MAX_NESTING = 4
MIN_SHARED_BYTES = 1 << 20
"""Below this, handing words to threads takes longer than they do."""
MAX_RANK = 8


class Readable(Protocol):
    """Words of a run, read box by box: `Words`, or what a source reads from another format."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the words: (frame, *pixels)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """In native byte order."""

    def read(
        self, start: tuple[int, ...], count: tuple[int, ...], threads: int = 1
    ) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Words of a box, and where there are none."""

    def packing(self, first: int, count: int, shares: int) -> Packing | None:
        """Words of whole frames as they are stored, where they can be calibrated that way, still to be read."""

    def packed(self, first: int, count: int, threads: int = 1) -> Packed | None:
        """The same, read."""


class Words:
    """The words of a detector, read box by box.

    Parameters
    ----------
    resolver : Resolver
    place : Place
        The dataset, plain or virtual.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        In native byte order.
    whole : Place or None
        The one dataset, plain or virtual, that is all of the words.
    pieces : list of Piece
        Where the words lie; of overlapping ones the last holds.

    Raises
    ------
    FileError, TrustError
        If the dataset does not hold unsigned integers, or leads where it must not.
    """

    pieces: list[Piece]
    whole: Place | None

    def __init__(self, resolver: Resolver, place: Place) -> None:
        self.place = self.whole = place
        self.dtype = element_type(place).newbyteorder("=")
        if self.dtype.kind != "u":
            problem = f"has elements of type {self.dtype.name}; words are unsigned"
            raise place.error(problem, "convert it, or name the right dataset", code="not-words")
        if place.dataset.shape is None:
            raise place.error("has no values", code="odd-type")
        self._prepare(tuple(int(n) for n in place.dataset.shape))
        check_budget(place)
        whole = ((0,) * len(self.shape), self.shape)
        with reading(place.file, place.path):
            self._resolve(resolver, place, whole, whole, ())
        self._index()

    @classmethod
    def of_parts(
        cls, resolver: Resolver, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Sequence[tuple[Box, Place, Box]]
    ) -> Words:
        """Words put together from boxes of datasets.

        Parameters
        ----------
        resolver : Resolver
        shape : tuple of int
            (frame, *pixels)
        dtype : numpy.dtype
            Unsigned, in native byte order.
        parts : sequence of (Box, Place, Box)
            Box of the words, dataset, and box of it; at least one.
        """
        words = cls.__new__(cls)
        words.place, words.whole, words.dtype = parts[0][1], None, dtype
        words._prepare(shape)
        for box, place, source in parts:
            if element_type(place).newbyteorder("=") != dtype:
                problem = f"has elements of type {place.dataset.dtype}, the words are {dtype}"
                raise place.error(problem, code="source-differs")
            with reading(place.file, place.path):
                words._resolve(resolver, place, box, source, ())
        words._index()
        return words

    def _prepare(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._check_frame()
        self.pieces = []
        self._plans: dict[int, Plan | None] = {}
        self._plain: dict[tuple[Path, int], PlainDataset] = {}
        self._known: dict[Place, PlainDataset] = {}
        self._found: dict[tuple[Path, str, str], Place | str] = {}

    def _index(self) -> None:
        """Note where the pieces lie, and what none of them covers."""
        self._check_extent()
        holes, overlapping = coverage(self.shape, *self._boxes(self.pieces))
        # Pieces that overlap must be read one after the other: the last one holds.
        self._disjoint = not overlapping
        self.pieces = [Piece(box, None, box, "in no file") for box in holes] + self.pieces
        self._starts, self._stops = self._boxes(self.pieces)

    def _boxes(self, pieces: Sequence[Piece]) -> tuple[Array, Array]:
        """Where pieces begin and end: (piece, dim) each."""
        starts = np.array([p.box[0] for p in pieces], np.int64).reshape(-1, len(self.shape))
        return starts, starts + np.array([p.box[1] for p in pieces], np.int64).reshape(starts.shape)

    @property
    def sources(self) -> list[PlainDataset]:
        """The plain datasets that hold the words."""
        return list(self._plain.values())

    @property
    def identities(self) -> frozenset[tuple[Path, int]]:
        """Identities of the plain datasets that hold the words."""
        return frozenset(self._plain)

    @property
    def gaps(self) -> list[Piece]:
        """Boxes whose source is known to be missing before anything is read."""
        return [p for p in self.pieces if p.source is None]

    def read(
        self, start: tuple[int, ...], count: tuple[int, ...], threads: int = 1
    ) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Read a box.

        Parameters
        ----------
        start, count : tuple of int
            First index and length along every dim.
        threads : int
            Most threads to decode with.

        Returns
        -------
        words : ndarray
            In native byte order; 0 where missing.
        missing : ndarray of bool, or None
            Where there are no words; None if there are all.

        Raises
        ------
        FileError
            If a stored chunk is damaged.
        """
        wanted = (start, count)
        low, high = np.array(start), np.array(start) + np.array(count)
        touched = np.flatnonzero(((self._starts < high) & (self._stops > low)).all(axis=1))
        sources = [self.pieces[index].source for index in touched]
        # Memory that is never touched costs nothing: nothing was missing so far, and we hear if something is.
        known = self._disjoint and None not in sources and not any(s.lacking for s in sources if s)
        words, missing = empty_aligned(count, self.dtype), empty_aligned(count, np.bool_)
        if not known:
            missing[...] = True
        threads = threads if words.nbytes >= MIN_SHARED_BYTES else 1
        jobs = [self._jobs(self.pieces[index], wanted, words, missing, known) for index in touched]
        for piece in [list(chain.from_iterable(jobs))] if self._disjoint else jobs:
            run_all(piece, threads)
        if known and any(s.lacking for s in sources if s):
            return self.read(start, count, threads)
        if known or not missing.any():
            return words, None
        words[missing] = 0
        return words, missing

    def packing(self, first: int, count: int, shares: int) -> Packing | None:
        """Words of whole frames, still compressed, on their way into memory.

        Parameters
        ----------
        first, count : int
            Frames.
        shares : int
            Most jobs to make of it.

        Returns
        -------
        Packing or None
            None if the chunks are not made of whole tiles of frames, one frame each; `read` reads any.

        Raises
        ------
        FileError
            If a chunk cannot be one.
        """
        if not self._disjoint or math.prod(self.shape[1:]) % STEP:
            return None
        touched = np.flatnonzero((self._starts[:, 0] < first + count) & (self._stops[:, 0] > first)).tolist()
        for k in touched:
            if k not in self._plans:
                self._plans[k] = plan(self.pieces[k], self.shape)
        planned = [(self.pieces[k], found) for k in touched if (found := self._plans[k]) is not None]
        return Packing(self.shape, planned, first, count, shares) if len(planned) == len(touched) else None

    def packed(self, first: int, count: int, threads: int = 1) -> Packed | None:
        """What `packing` leads to, and None also where a chunk is compressed in another way than its dataset says."""
        packing = self.packing(first, count, threads)
        if packing is None:
            return None
        run_all(packing.jobs, threads)
        return packing.packed() if packing.arrive() else None

    def _jobs(
        self, piece: Piece, wanted: Box, words: Array, missing: npt.NDArray[np.bool_], known: bool
    ) -> list[Callable[[], None]]:
        """What there is to do to read the part of a piece that lies in a box."""
        part = intersection(piece.box, wanted)
        if part is None:
            return []
        inside = tuple(slice(p - w, p - w + n) for p, w, n in zip(part[0], wanted[0], part[1], strict=True))
        if not known:
            missing[inside] = piece.source is None
        if piece.source is None:
            return []
        box = piece.source_part(part)  # reshaping to it only adds or drops dims of length 1: still the same memory
        return piece.source.jobs(box, words[inside].reshape(box[1]), missing[inside].reshape(box[1]))

    def _check_frame(self) -> None:
        if len(self.shape) < 2 or len(self.shape) > MAX_RANK:
            raise self.place.error(f"has {len(self.shape)} dimensions", code="not-words")
        frame = int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize
        if frame > MAX_FRAME_BYTES:
            problem = f"declares frames of {frame} bytes, at most {MAX_FRAME_BYTES} are allowed"
            raise TrustError(self.place.file, self.place.path, problem, code="over-budget")

    def _check_extent(self) -> None:
        """Refuse a virtual extent beyond all that the sources can fill."""
        total = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        held = sum(int(np.prod(p.box[1], dtype=object)) for p in self.pieces if p.source) * self.dtype.itemsize
        if total > MIN_CHECKED_BYTES and total > MAX_INFLATION * max(held, 1):
            problem = f"declares {total} bytes, of which its sources hold {held}"
            raise TrustError(self.place.file, self.place.path, problem, code="over-budget")

    def _resolve(self, resolver: Resolver, place: Place, virtual: Box, box: Box, seen: tuple[object, ...]) -> None:
        """Note which plain datasets hold `box` of a dataset, which stands for the box `virtual` of the words."""
        dataset = place.dataset
        if not dataset.is_virtual:
            self.pieces.append(Piece(virtual, self._plain_dataset(place), box))
            return
        identity = place.identity
        if identity in seen or len(seen) >= MAX_NESTING:
            problem = "leads back to itself" if identity in seen else f"is nested deeper than {MAX_NESTING}"
            raise TrustError(place.file, place.path, f"virtual dataset {problem}", code="virtual-cycle")
        if len(box[1]) != len(virtual[1]):
            raise place.error("is a virtual dataset of another rank inside one", code="source-differs")
        for mapping in mappings(place):
            part = intersection(mapping.target, box)
            if part is None:
                continue
            moved = (p - b + v for p, b, v in zip(part[0], box[0], virtual[0], strict=True))
            here = (tuple(moved), part[1])
            found = self._source(resolver, place, mapping)
            if isinstance(found, str):
                self.pieces.append(Piece(here, None, here, found))
                continue
            source, whole = found
            there = Piece(mapping.target, None, whole).source_part(part)
            held = intersection(there, ((0,) * len(there[0]), source.dataset.shape))
            for lost in [there] if held is None else remainder(there, held):
                gap = Piece(here, None, there).part(lost)
                problem = f"{mapping.file}::{mapping.path} has shape {source.dataset.shape}, too short"
                self.pieces.append(Piece(gap, None, gap, problem))
            if held is not None:
                target = Piece(here, None, there).part(held)
                self._resolve(resolver, source, target, held, (*seen, identity))

    def _source(self, resolver: Resolver, place: Place, mapping: Mapping) -> tuple[Place, Box] | str:
        """The dataset and box behind a mapping, or why there is none."""
        name = (place.file, mapping.file, mapping.path)
        if name not in self._found:
            self._found[name] = self._find(resolver, place, mapping)
        found = self._found[name]
        if isinstance(found, str):
            return found
        shape = tuple(int(n) for n in found.dataset.shape)
        box = mapping.source or ((0,) * len(shape), shape)
        if len(box[0]) != len(shape) or _without_ones(box[1]) != _without_ones(mapping.target[1]):
            raise found.error(f"of shape {shape} is mapped as {box[1]} onto {mapping.target[1]}", code="source-differs")
        return found, box

    def _find(self, resolver: Resolver, place: Place, mapping: Mapping) -> Place | str:
        """The dataset that a mapping names, or why there is none; the same for all mappings that name it."""
        try:
            found = resolver.beside(place, mapping.file, mapping.path)
        except FileError as error:
            if error.code not in ("not-found", "not-hdf5"):
                raise
            return f"{mapping.file}: {error.problem}"
        if element_type(found).newbyteorder("=") != self.dtype:
            problem = f"has elements of type {found.dataset.dtype}, the words are {self.dtype}"
            raise found.error(problem, code="source-differs")
        return found

    def _plain_dataset(self, place: Place) -> PlainDataset:
        """The dataset at a place, opened once under all of its names."""
        if place not in self._known:
            identity = place.identity
            if identity not in self._plain:
                self._plain[identity] = PlainDataset(place)
            self._known[place] = self._plain[identity]
        return self._known[place]


def _without_ones(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in lengths if n != 1)
