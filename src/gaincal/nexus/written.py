"""Which frames of a run were ever written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.words import Words

Flags = npt.NDArray[np.bool_]


def frames_with_words(words: Words) -> Flags:
    """Whether anything of a frame was ever written; (frame,).

    HDF5 fills what was not written with zeros and says nothing.
    """
    has = np.zeros(words.shape[0], bool)
    known: dict[int, Flags] = {}
    for piece in words.pieces:
        if piece.source is None:
            continue
        first, count = piece.box[0][0], piece.box[1][0]
        entries, begin = piece.source_box[1][0], piece.source_box[0][0]
        if entries != count:  # the frames lie along another dim
            has[first : first + count] = True
            continue
        if id(piece.source) not in known:
            known[id(piece.source)] = _entries_with_words(piece.source)
        has[first : first + count] |= known[id(piece.source)][begin : begin + count]
    return has


def _entries_with_words(source: PlainDataset) -> Flags:
    """Whether anything was written at an index along the first dim of a dataset."""
    shape = source.dataset.shape
    if source.chunks is None or not source.unwritten():
        return np.full(shape[0], source.chunks is not None or source.complete)
    step = source.chunks[0]
    has = np.zeros(shape[0], bool)
    for first in range(0, shape[0], step):
        row = ((first, *(0,) * (len(shape) - 1)), (1, *shape[1:]))
        has[first : first + step] = any(source.stored_bytes(offset) for offset in source.offsets(row))
    return has
