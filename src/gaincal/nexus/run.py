"""The words of a run of several files, or of no HDF5 file, in a master: mapped or copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

from gaincal.kernels.libraries import plugins
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.evaluate import BLOCK_BYTES
from gaincal.nexus.packing import Piece
from gaincal.nexus.trust import Place
from gaincal.nexus.words import Readable, Words

STRIP_RANK = 2
PACKET_ROWS = 4
"""Rows of the chunks where a part of a module was lost: those of the smallest UDP packet in use."""


def relative_name(written: AtomicFile, file: Path) -> str:
    """How a file that is being written names another."""
    return os.path.relpath(file, Path(os.path.realpath(written.target)).parent)


def outside(target: Path, words: Iterable[Words], place: Place | None = None) -> list[str]:
    """Directories of words, and of a dataset, that a reader of a file will have to be told to trust."""
    home = Path(os.path.realpath(target)).parent
    held = list(words)
    linked = [p for p in (place, *(w.whole for w in held)) if p is not None]
    files = {p.file for p in (*linked, *(s.place for w in held for s in w.sources))}
    directories = sorted({str(f.parent) for f in files if not f.is_relative_to(home)})
    return [f"the raw words lie in {d}: readers need --trust-dir {d}" for d in directories]


def map_words(group: h5py.Group, name: str, words: Words, named: Callable[[Path], str]) -> None:
    """Link words that are one whole dataset, plain or virtual; make a virtual dataset of all others.

    Parameters
    ----------
    group : h5py.Group
    name : str
        Of the new member.
    words : Words
    named : callable (Path) -> str
        How a file is called in the master.
    """
    held = [p for p in words.pieces if p.source is not None]
    only = held[0].source if len(words.pieces) == 1 and held else None
    whole = only.place if only is not None and only.dataset.shape == words.shape else words.whole
    if whole is not None:
        group[name] = h5py.ExternalLink(named(whole.file), whole.path)
        return
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple(words.shape)
    known: dict[int, tuple[bytes, bytes]] = {}
    for piece in held:
        assert piece.source is not None
        if id(piece.source) not in known:
            # A percent sign would stand for the number of a block.
            place = piece.source.place
            texts = (text.replace("%", "%%").encode() for text in (named(place.file), place.path))
            known[id(piece.source)] = (next(texts), next(texts))
        _map(plist, space, piece, *known[id(piece.source)])
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(words.dtype), space, plist)


def _map(plist: h5py.h5p.PropDCID, space: h5py.h5s.SpaceID, piece: Piece, file: bytes, path: bytes) -> None:
    assert piece.source is not None
    target, source = space.copy(), h5py.h5s.create_simple(piece.source.dataset.shape)
    for selection, (start, count) in ((target, piece.box), (source, piece.source_box)):
        selection.select_hyperslab(start, (1,) * len(start), block=count)
    plist.set_virtual(target, file, path, source)


def copy_frames(group: h5py.Group, name: str, words: Readable, after: Callable[[], None]) -> None:
    """Write words that no HDF5 file holds, as bitshuffle-LZ4; chunks without words stay unwritten.

    Parameters
    ----------
    group : h5py.Group
    name : str
    words : Readable
    after : callable () -> None
        Called after every block.

    Notes
    -----
    A frame that lost packets has words for a part of a module: then the chunks are as small as packets.
    """
    shape = words.shape
    frame_bytes = int(np.prod(shape[1:])) * words.dtype.itemsize
    most = max(1, BLOCK_BYTES // frame_bytes)
    blocks = [(first, min(most, shape[0] - first)) for first in range(0, shape[0], most)]
    torn = any(_torn(words, first, count) for first, count in blocks)
    whole = shape[-2] if len(shape) > STRIP_RANK else 1
    rows = PACKET_ROWS if torn and whole % PACKET_ROWS == 0 else 1 if torn else whole
    chunks = (*(1,) * (len(shape) - 2), rows, shape[-1])
    options = dict(plugins().Bitshuffle(cname="lz4"))
    dataset = group.create_dataset(name, shape, words.dtype, chunks=chunks, fletcher32=True, **options)
    for first, count in blocks:
        values, missing = words.read((first, *(0,) * (len(shape) - 1)), (count, *shape[1:]))
        if missing is None:
            dataset[first : first + count] = values
        else:
            present = ~missing.reshape(*missing.shape[:-2], -1, rows, shape[-1]).any(axis=(-2, -1))
            for frame, *module, band in np.argwhere(present).tolist():
                inside: tuple[int | slice, ...] = (*module, slice(band * rows, (band + 1) * rows))
                dataset[(first + frame, *inside)] = values[frame][inside]
        after()


def _torn(words: Readable, first: int, count: int) -> bool:
    """Whether a part of a module, but not all of it, is missing in some frames."""
    _, missing = words.read((first, *(0,) * (len(words.shape) - 1)), (count, *words.shape[1:]))
    if missing is None:
        return False
    share = missing.any(axis=(-2, -1)) & ~missing.all(axis=(-2, -1))
    return bool(share.any())
