"""One dataset of an untrusted file: what its elements are, what it may cost, and its values box by box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.kernels.decode import BITSHUFFLE, BadChunk, Pipeline, check_chunk, check_pipeline
from gaincal.nexus.trust import Place, reading

Array = npt.NDArray[Any]
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First index and length along every dim."""

MAX_CHUNK_BYTES = 256 << 20
MIN_CHECKED_BYTES = 4 << 30
MAX_INFLATION = 1000
FIRST_PLUGIN = 32_000


def element_type(place: Place) -> np.dtype[Any]:
    """The NumPy type of a dataset's elements, if it is one that holds exactly what it seems to hold.

    A bit field, an enumeration or a 12-bit integer look like plain integers in NumPy, and are not.
    """
    dataset = place.dataset
    stored = dataset.id.get_type()
    kind = stored.get_class()
    if kind == h5py.h5t.INTEGER:
        plain = stored.get_precision() == 8 * stored.get_size() and stored.get_offset() == 0
        if plain and stored.get_size() in (1, 2, 4, 8):
            sign = "u" if stored.get_sign() == h5py.h5t.SGN_NONE else "i"
            order = ">" if stored.get_order() == h5py.h5t.ORDER_BE else "<"
            return np.dtype(f"{order}{sign}{stored.get_size()}")
    elif kind == h5py.h5t.FLOAT and dataset.dtype.kind == "f" and dataset.dtype.itemsize in (4, 8):
        floating: np.dtype[Any] = dataset.dtype
        return floating
    elif kind == h5py.h5t.STRING and not stored.is_variable_str():
        return np.dtype(f"S{stored.get_size()}")
    elif kind == h5py.h5t.ENUM and dataset.dtype == np.dtype(bool):
        return np.dtype(bool)
    raise place.error("has elements that are neither plain numbers nor fixed-length text", code="odd-type")


def check_budget(
    place: Place, most: int | None = None, checked_from: int = MIN_CHECKED_BYTES, inflation: int = MAX_INFLATION
) -> None:
    """Refuse a dataset that would unpack to more than a budget."""
    dataset = place.dataset
    if dataset.shape is None:
        raise place.error("has no values", code="odd-type")
    size = int(np.prod(dataset.shape, dtype=object)) * dataset.id.get_type().get_size()
    if most is not None and size > most:
        problem = f"declares {size} bytes, at most {most} are allowed here"
        raise TrustError(place.file, place.path, problem, code="over-budget")
    if size <= checked_from or dataset.is_virtual:
        return
    stored = dataset.id.get_storage_size()
    if size > inflation * max(stored, 1):
        problem = f"declares {size} bytes but stores {stored}"
        raise TrustError(place.file, place.path, problem, "check how it was written", code="over-budget")


def intersection(a: Box, b: Box) -> Box | None:
    """The box that two boxes share, None if they share nothing."""
    start = tuple(max(s, t) for s, t in zip(a[0], b[0], strict=True))
    stop = (min(s + n, t + m) for s, n, t, m in zip(*a, *b, strict=True))
    count = tuple(e - s for s, e in zip(start, stop, strict=True))
    return (start, count) if all(n > 0 for n in count) else None


class PlainDataset:
    """One dataset that keeps its words in its own file; reads boxes, checked chunk by chunk."""

    def __init__(self, place: Place) -> None:
        self.place, self.dataset = place, place.dataset
        self.dtype = element_type(place)
        check_budget(place)
        plist = self.dataset.id.get_create_plist()
        self.layout = plist.get_layout()
        self.chunks = self.dataset.chunks
        itemsize = self.dtype.itemsize
        self.pipeline = Pipeline((), int(np.prod(self.chunks or (0,), dtype=object)) * itemsize, itemsize)
        self._checked: dict[tuple[int, ...], bool] = {}
        if self.chunks is None:
            return
        filters = (plist.get_filter(k) for k in range(plist.get_nfilters()))
        listed = tuple((int(f[0]), tuple(int(v) for v in f[2])) for f in filters)
        self.pipeline = Pipeline(listed, self.pipeline.chunk_bytes, itemsize)
        if self.pipeline.chunk_bytes > MAX_CHUNK_BYTES:
            problem = f"has chunks of {self.pipeline.chunk_bytes} bytes, at most {MAX_CHUNK_BYTES} are allowed"
            raise TrustError(place.file, place.path, problem, "rewrite it with smaller chunks", code="over-budget")
        try:
            check_pipeline(self.pipeline)
        except BadChunk as error:
            raise place.error(str(error), "rewrite it with h5repack", code="odd-filter") from None

    def read(self, box: Box, out: Array, missing: npt.NDArray[np.bool_]) -> None:
        """Read a box into `out`, and note in `missing` what was never written."""
        if any(number >= FIRST_PLUGIN for number, _ in self.pipeline.filters):
            import hdf5plugin  # noqa: F401  (registers the filters; too slow to import for nothing)
        start, count = box
        key = tuple(slice(s, s + c) for s, c in zip(start, count, strict=True))
        absent = self._absent(box)
        if not absent or any(b != box for b in absent):
            try:
                self.dataset.read_direct(out, key)
            except (OSError, RuntimeError) as error:
                raise self._unreadable(box) from error
        for first, length in absent:
            inside = tuple(slice(f - s, f - s + n) for f, s, n in zip(first, start, length, strict=True))
            out[inside], missing[inside] = 0, True

    def _unreadable(self, box: Box) -> FileError:
        """Which chunk of a box it is that cannot be read."""
        chunks = list(self._offsets(box)) if self.chunks is not None else []
        if len(chunks) > 1:
            for offset in chunks:
                try:
                    self._verify(offset)
                except FileError as error:
                    return error
        where = f"{self.place.path} chunk {chunks[0]}" if chunks else self.place.path
        problem = "cannot be decoded, or its checksum differs"
        return FileError(self.place.file, where, problem, "copy the file again", code="bad-chunk")

    def read_all(self) -> Array:
        """All values, in native byte order; raises FileError if some were never written."""
        shape = tuple(int(n) for n in self.dataset.shape)
        values, missing = np.empty(shape, self.dtype.newbyteorder("=")), np.zeros(shape, bool)
        if values.size:
            self.read(((0,) * len(shape), shape), values, missing)
        if missing.any():
            raise self.place.error("was never written completely", code="incomplete")
        return values

    def unwritten(self) -> int:
        """How many chunks were never written (all or none for a dataset without chunks)."""
        if self.chunks is None:
            return int(not self._stored())
        grid = [-(-s // c) for s, c in zip(self.dataset.shape, self.chunks, strict=True)]
        return int(np.prod(grid, dtype=object)) - int(self.dataset.id.get_num_chunks())

    def copy_to(self, group: h5py.Group, name: str, after_chunk: Callable[[], None]) -> None:
        """Copy the dataset as it is stored, every chunk checked and none decoded; what was never written stays so.

        HDF5's own copy crashes on filtered chunks that happen to be in its cache.
        """
        space = h5py.h5s.create_simple(self.dataset.shape)
        kind = self.dataset.id.get_type()
        copy = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, self._storage()))
        if self.chunks is None:
            if self._stored():
                copy[...] = self.read_all()
            return
        for offset in self._offsets(((0,) * self.dataset.ndim, self.dataset.shape)):
            if self._check(offset):
                with reading(self.place.file, self.place.path):
                    stored = self.dataset.id.read_direct_chunk(offset)[1]
                copy.id.write_direct_chunk(offset, stored)
                after_chunk()

    def _storage(self) -> h5py.h5p.PropDCID:
        """How the dataset is stored, for a copy of it."""
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if self.chunks is not None:
            plist.set_chunk(self.chunks)
        for number, parameters in self.pipeline.filters:
            # bitshuffle itself puts three values in front of what it is given
            given = parameters[3:] if number == BITSHUFFLE else parameters
            plist.set_filter(number, h5py.h5z.FLAG_MANDATORY, given)
        return plist

    def damaged(self) -> Iterator[FileError]:
        """Everything that is wrong with the stored words; verifies their checksums where they have any."""
        if self.chunks is None:
            return
        for offset in self._offsets(((0,) * self.dataset.ndim, self.dataset.shape)):
            try:
                if self._check(offset) and self.pipeline.checksummed:
                    self._verify(offset)
            except FileError as error:
                yield error

    def _verify(self, offset: tuple[int, ...]) -> None:
        box = intersection((offset, self.chunks), ((0,) * self.dataset.ndim, self.dataset.shape))
        assert box is not None
        self.read(box, np.empty(box[1], self.dtype), np.zeros(box[1], bool))

    def _offsets(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Where the chunks begin that a box touches."""
        ranges = [range(s // c, -(-(s + n) // c)) for s, n, c in zip(*box, self.chunks, strict=True)]
        for cell in np.ndindex(*(len(r) for r in ranges)):
            yield tuple(int(r[k] * c) for r, k, c in zip(ranges, cell, self.chunks, strict=True))

    def _stored(self) -> bool:
        """Whether a dataset without chunks has its values."""
        needed = self.dataset.size * self.dtype.itemsize
        return bool(self.layout == h5py.h5d.COMPACT or self.dataset.id.get_storage_size() >= needed)

    def _absent(self, box: Box) -> list[Box]:
        """Parts of a box that were never written; checks every chunk that the box touches."""
        if self.chunks is None:
            return [] if self._stored() else [box]
        absent = [intersection((o, self.chunks), box) for o in self._offsets(box) if not self._check(o)]
        return [b for b in absent if b is not None]

    def _check(self, offset: tuple[int, ...]) -> bool:
        """Check a chunk once; False if it was never written."""
        known = self._checked.get(offset)
        if known is not None:
            return known
        where = f"{self.place.path} chunk {offset}"
        with reading(self.place.file, where):
            info = self.dataset.id.get_chunk_info_by_coord(offset)
            written = info.byte_offset is not None
            if written:
                self._check_stored(offset, info, where)
        self._checked[offset] = written
        return written

    def _check_stored(self, offset: tuple[int, ...], info: Any, where: str) -> None:
        if info.filter_mask:
            problem = "was stored with its filters switched off"
            raise FileError(self.place.file, where, problem, "rewrite the file with h5repack", code="filter-mask")
        if not self.pipeline.filters and info.size == self.pipeline.chunk_bytes:
            return
        if info.size > self.pipeline.chunk_bytes + (1 << 20) + self.pipeline.chunk_bytes // 4:
            raise FileError(self.place.file, where, f"is stored in {info.size} bytes", code="bad-chunk")
        try:
            check_chunk(self.pipeline, bytes(self.dataset.id.read_direct_chunk(offset)[1]))
        except BadChunk as error:
            raise FileError(self.place.file, where, f"is malformed: {error}", code="bad-chunk") from None
