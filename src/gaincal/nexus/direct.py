"""Words that lie in files as they are: where those of every module and frame begin, so that nobody has to copy them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import h5py
import numpy as np

from gaincal.constants import SLAB_DIMS
from gaincal.kernels.packed import WORD_BYTES
from gaincal.kernels.unread import NOWHERE, Unread
from gaincal.nexus.boxes import Box, intersection
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.descriptor import Descriptor, find_descriptor
from gaincal.nexus.packing import Piece
from gaincal.nexus.trust import reading
from gaincal.nexus.words import Words

Index = tuple[int, ...]
_ODD = -1
"""Instead of a place: this chunk is not stored as its dataset says."""


class Direct:
    """Words of modules, each of which follow each other in a file in every frame.

    Parameters
    ----------
    shape : tuple of int
        Of the words: (frame, *pixels).
    runs : list of list of _Run
        Of each module: what holds its frames.
    """

    def __init__(self, shape: Index, runs: list[list[_Run]]) -> None:
        self.shape, self.runs = shape, runs

    def unread(self, first: int, count: int) -> Unread | None:
        """Where the words of some frames lie; None if one of them is stored in an odd way: `Words.read` can say how."""
        places = np.full((count, len(self.runs), 2), NOWHERE, np.int64)
        for module, runs in enumerate(self.runs):
            for run in runs:
                for frame in range(max(first, run.first), min(first + count, run.last)):
                    place = run.place(frame)
                    if place == _ODD:
                        return None
                    if place is not None:
                        places[frame - first, module] = run.storage.descriptor.number, place
        return Unread(places, math.prod(self.shape[1:]), self.runs, self._complaint(first))

    def _complaint(self, first: int) -> Callable[[int, int], None]:
        def complain(frame: int, module: int) -> None:
            run = next(r for r in self.runs[module] if r.first <= first + frame < r.last)
            problem = f"cannot be read in frame {first + frame}, or the file ends there"
            raise run.storage.source.place.error(problem, "copy the file again", code="bad-chunk")

        return complain


def find_direct(words: object) -> Direct | None:
    """How words can be read without HDF5; None if some are not stored as plain words, module by module."""
    if not isinstance(words, Words) or words.dtype != np.dtype("<u2"):
        return None
    held = sum(math.prod(piece.box[1]) for piece in words.pieces)
    if held != math.prod(words.shape):  # some overlap
        return None
    sources = {id(p.source): p.source for p in words.pieces if p.source}
    storages = {name: _find_storage(source) for name, source in sources.items()}
    modules, slab = words.shape[1:][:-SLAB_DIMS], words.shape[1:][-SLAB_DIMS:]
    runs: list[list[_Run]] = []
    for index in np.ndindex(*modules):
        own: Box = (0, *index, *(0 for _ in slab)), (words.shape[0], *(1 for _ in index), *slab)
        parts = [(p, part) for p in words.pieces if (part := intersection(p.box, own)) is not None]
        found = [_find_run(p, part, slab, storages.get(id(p.source))) for p, part in parts if p.source]
        if None in found:
            return None
        runs.append([run for run in found if run])
    return Direct(words.shape, runs)


@dataclass(eq=False)
class _Storage:
    """A dataset whose values lie in its file as they are, contiguous or in chunks, and our own way into that file."""

    source: PlainDataset
    descriptor: Descriptor
    blocks: Index
    """Shape of what lies together: a chunk, or the whole."""
    known: dict[Index, int | None] = field(default_factory=dict)
    """Where chunks begin; None for those that were never written."""

    def begin(self, offset: Index) -> int | None:
        """Where a block begins."""
        if offset not in self.known:
            with reading(self.source.place.file, self.source.place.path):
                self.known[offset] = self._look(offset)
        return self.known[offset]

    def _look(self, offset: Index) -> int | None:
        source = self.source
        if source.chunks is None:
            return source.dataset.id.get_offset() if source.complete else None
        _, place, size = source.lies(offset)
        return None if not size else place if size == source.pipeline.chunk_bytes else _ODD


@dataclass(frozen=True, eq=False)
class _Run:
    """The words of a module in some frames, all of one dataset.

    Parameters
    ----------
    storage : _Storage
    first, last : int
        Frames of the words.
    start : tuple of int
        Where in the dataset those of the first frame begin.
    axis : int
        Along which dim of it the frames lie; -1 for a single one.
    """

    storage: _Storage
    first: int
    last: int
    start: Index
    axis: int

    def place(self, frame: int) -> int | None:
        """Where in the file the words of a frame begin; None if they were never written, `_ODD` if not as they are."""
        start = list(self.start)
        if self.axis >= 0:
            start[self.axis] += frame - self.first
        blocks = self.storage.blocks
        inside = 0
        for k, (at, size) in enumerate(zip(start, blocks, strict=True)):
            inside = inside * size + at % size
            start[k] = at - at % size
        begin = self.storage.begin(tuple(start))
        return begin if begin is None or begin == _ODD else begin + WORD_BYTES * inside


def _find_storage(source: PlainDataset) -> _Storage | None:
    """How a dataset is stored; None if not as plain words in a file of the system."""
    dataset = source.dataset
    contiguous = source.layout == h5py.h5d.CONTIGUOUS and dataset.external is None
    chunked = source.chunks is not None and not source.pipeline.filters
    if source.dtype != np.dtype("<u2") or not (contiguous or chunked):
        return None
    descriptor = find_descriptor(dataset)
    return None if descriptor is None else _Storage(source, descriptor, source.chunks or dataset.shape)


def _find_run(piece: Piece, part: Box, slab: Index, storage: _Storage | None) -> _Run | None:
    """The words of a module that a piece holds; None if they do not follow each other in every frame."""
    if storage is None or part[1][-len(slab) :] != slab:
        return None
    (first, *_), (frames, *rest) = part
    start, count = piece.source_part((part[0], (1, *rest)))
    within = [at % size for at, size in zip(start, storage.blocks, strict=True)]
    ends = [at + length for at, length in zip(within, count, strict=True)]
    if any(end > size for end, size in zip(ends, storage.blocks, strict=True)):
        return None
    begin, last = (np.ravel_multi_index(at, storage.blocks) for at in (within, [end - 1 for end in ends]))
    if last - begin + 1 != math.prod(slab):
        return None
    axis = next((k for k, n in enumerate(piece.source_box[1]) if n != 1), 0)
    return _Run(storage, first, first + frames, start, axis if piece.box[1][0] > 1 else -1)
