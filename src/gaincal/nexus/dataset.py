"""One dataset of an untrusted file: what its elements are, what it may cost, and its values box by box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.kernels.codecs import Bytes, decodable, decode_chunk, verify
from gaincal.kernels.decode import (
    BITSHUFFLE,
    BITSHUFFLE_LZ4,
    CHECKSUM_BYTES,
    FLETCHER32,
    ZSTD,
    BadChunk,
    Pipeline,
    check_chunk,
    check_pipeline,
    compressor,
)
from gaincal.kernels.libraries import lz4_decoder, plugins
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.threads import run_all
from gaincal.nexus.boxes import Box, intersection, number_of, slices_of
from gaincal.nexus.descriptor import Descriptor, find_descriptor
from gaincal.nexus.trust import Place, reading

Array = npt.NDArray[Any]
MAX_CHUNK_BYTES = 256 << 20
MIN_CHECKED_BYTES = 4 << 30
MAX_INFLATION = 1000
ASKED_ONE_BY_ONE = 64
"""So many chunks are looked up before all of them are."""


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


class PlainDataset:
    """One dataset that keeps its words in its own file; reads boxes, checked chunk by chunk."""

    def __init__(self, place: Place) -> None:
        self.place, self.dataset = place, place.dataset
        self.dtype = element_type(place)
        check_budget(place)
        plist = self.dataset.id.get_create_plist()
        self.layout = plist.get_layout()
        self.chunks = self.dataset.chunks
        self.lacking = False  # once something that was never written has been met
        itemsize = self.dtype.itemsize
        self.pipeline = Pipeline((), int(np.prod(self.chunks or (0,), dtype=object)) * itemsize, itemsize)
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}
        self._infos: dict[tuple[int, ...], Any] = {}
        self._file: Descriptor | None = None
        if self.chunks is None:
            return
        self._file = find_descriptor(self.dataset)
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

    def read(self, box: Box, out: Array, missing: npt.NDArray[np.bool_], threads: int = 1) -> None:
        """Read a box into `out`, and note in `missing` what was never written."""
        run_all(self.jobs(box, out, missing), threads)

    def jobs(self, box: Box, out: Array, missing: npt.NDArray[np.bool_]) -> list[Callable[[], None]]:
        """What there is to do for a box, chunk by chunk, in any order and at the same time.

        Parameters
        ----------
        box : Box
        out : ndarray
            Receives the values, of the shape of the box, in any byte order.
        missing : ndarray of bool
            Receives what was never written.
        """
        if self.chunks is None:
            return [partial(self._read_unchunked, box, out, missing)]
        return [partial(self._read_chunk, offset, box, out, missing) for offset in self.offsets(box)]

    def _read_unchunked(self, box: Box, out: Array, missing: npt.NDArray[np.bool_]) -> None:
        if not self.complete:
            out[...], missing[...], self.lacking = 0, True, True
            return
        values = out if out.flags.c_contiguous else np.empty(box[1], out.dtype)
        try:
            self.dataset.read_direct(values, slices_of(box))
        except (OSError, RuntimeError) as error:
            raise self.place.error("cannot be read", "copy the file again", code="bad-chunk") from error
        if values is not out:
            out[...] = values

    def _read_chunk(self, offset: tuple[int, ...], box: Box, out: Array, missing: npt.NDArray[np.bool_]) -> None:
        part = intersection((offset, self.chunks), box)
        assert part is not None
        inside = slices_of((tuple(p - b for p, b in zip(part[0], box[0], strict=True)), part[1]))
        target = out[inside]
        size = self._located(offset)[1]
        if not size:
            target[...], missing[inside], self.lacking = 0, True, True
            return
        within = tuple(p - o for p, o in zip(part[0], offset, strict=True))
        first = number_of(within, self.chunks)
        last = number_of(tuple(w + n - 1 for w, n in zip(within, part[1], strict=True)), self.chunks) + 1
        in_a_row = last - first == target.size and target.flags.c_contiguous and target.dtype == self.dtype
        whole = in_a_row and part[1] == self.chunks
        if in_a_row and not self.pipeline.filters and size == self.pipeline.chunk_bytes:
            self._fetch(offset, target.reshape(-1).view(np.uint8), first * self.dtype.itemsize)
            return
        if whole and self._only_checked and size == self.pipeline.chunk_bytes + CHECKSUM_BYTES:
            self._fetch_checked(offset, target.reshape(-1).view(np.uint8))
            return
        stored = empty_aligned((size,), np.uint8)
        self._fetch(offset, stored)
        if whole:
            self._decode(offset, stored, target.reshape(-1).view(np.uint8))
            return
        chunk = empty_aligned(self.chunks, self.dtype)
        self._decode(offset, stored, chunk.reshape(-1).view(np.uint8), first, last)
        out[inside] = chunk[slices_of((within, part[1]))]

    def _decode(
        self, offset: tuple[int, ...], stored: Bytes, out: Bytes, first: int = 0, last: int | None = None
    ) -> None:
        try:
            if decodable(self.pipeline):
                decode_chunk(self.pipeline, stored, out, first, last)
            else:
                self._decode_in_hdf5(offset, stored, out)
        except BadChunk as error:
            raise self.damage(offset, str(error)) from None

    def _decode_in_hdf5(self, offset: tuple[int, ...], stored: Bytes, out: Bytes) -> None:
        """Without the compression library itself there is still its plug-in, under the lock of HDF5."""
        plugins()
        if not self.pipeline.checksummed and any(number == ZSTD for number, _ in self.pipeline.filters):
            raise BadChunk("the plug-in of Zstandard delivers what it cannot decode as if it were good")
        check_chunk(self.pipeline, stored.data)
        box = intersection((offset, self.chunks), ((0,) * self.dataset.ndim, self.dataset.shape))
        assert box is not None
        chunk = out.view(self.dtype).reshape(self.chunks)
        try:
            self.dataset.read_direct(chunk, slices_of(box), tuple(slice(n) for n in box[1]))
        except (OSError, RuntimeError):
            raise BadChunk("it cannot be decoded, or its checksum differs") from None

    def fault(self, offset: tuple[int, ...]) -> FileError:
        """What is wrong with a chunk that could not be decoded."""
        stored = self.stored(offset)
        if stored is not None:
            try:
                self._decode(offset, stored, empty_aligned((self.pipeline.chunk_bytes,), np.uint8))
            except FileError as error:
                return error
        return self.damage(offset, "it cannot be decoded")

    def damage(self, offset: tuple[int, ...], problem: str) -> FileError:
        """A complaint about a chunk."""
        where = f"{self.place.path} chunk {offset}"
        return FileError(self.place.file, where, f"is damaged: {problem}", "copy the file again", code="bad-chunk")

    def stored_bytes(self, offset: tuple[int, ...]) -> int:
        """Bytes of a chunk in the file, 0 if it was never written; raises FileError if it cannot be one."""
        return self._located(offset)[1]

    def lies(self, offset: tuple[int, ...]) -> tuple[int, int, int]:
        """File descriptor, place and bytes (0 if never written) of a chunk; raises FileError if it cannot be one."""
        assert self._file is not None
        return self._file.number, *self._located(offset)

    def stored(self, offset: tuple[int, ...]) -> Bytes | None:
        """A chunk as it lies in the file, None if it was never written; raises FileError if it cannot be one."""
        size = self.stored_bytes(offset)
        if not size:
            return None
        found = empty_aligned((size,), np.uint8)
        self._fetch(offset, found)
        return found

    def _fetch(self, offset: tuple[int, ...], out: Bytes, skip: int = 0) -> None:
        """Read a chunk as it lies in the file, behind some bytes; raises FileError if these bytes are not all there."""
        if self._file is None:
            with reading(self.place.file, self.place.path):
                stored = np.frombuffer(self.dataset.id.read_direct_chunk(offset)[1], np.uint8)
            out[...] = stored[skip : skip + out.size]
            return
        try:
            count = self._file.read_into(out, self._located(offset)[0] + skip)
        except (OSError, OverflowError) as error:
            raise self.damage(offset, f"it cannot be read: {error}") from None
        if count != out.size:
            raise self.damage(offset, "the file ends within it")

    def _fetch_checked(self, offset: tuple[int, ...], out: Bytes) -> None:
        """Read a chunk of values as they are, with a checksum behind them."""
        checksum = np.empty(CHECKSUM_BYTES, np.uint8)
        self._fetch(offset, out)
        self._fetch(offset, checksum, out.size)
        try:
            verify(out, checksum)
        except BadChunk as error:
            raise self.damage(offset, str(error)) from None

    @property
    def _only_checked(self) -> bool:
        """Whether the one filter is a checksum."""
        return [number for number, _ in self.pipeline.filters] == [FLETCHER32]

    @property
    def packable(self) -> bool:
        """Whether the chunks are what `gaincal.kernels.stream` decodes: 16-bit words, bitshuffled, LZ4."""
        coder = self.pipeline.coder
        if coder is None or self._file is None or self.dtype != np.uint16 or lz4_decoder() is None:
            return False
        plain = all(number in (coder[0], FLETCHER32) for number, _ in self.pipeline.filters)
        return plain and coder[0] == BITSHUFFLE and compressor(coder[1]) == BITSHUFFLE_LZ4

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
            return int(not self.complete)
        grid = [-(-s // c) for s, c in zip(self.dataset.shape, self.chunks, strict=True)]
        return int(np.prod(grid, dtype=object)) - int(self.dataset.id.get_num_chunks())

    def holes(self, box: Box) -> Iterator[Box]:
        """Parts of a box that were never written."""
        if self.chunks is None:
            yield from () if self.complete else (box,)
            return
        for offset in self.offsets(box):
            if not self._located(offset)[1]:
                part = intersection((offset, self.chunks), box)
                assert part is not None
                yield part

    def copy_to(self, group: h5py.Group, name: str, after_chunk: Callable[[], None]) -> None:
        """Copy the dataset as it is stored, every chunk checked and none decoded; what was never written stays so.

        HDF5's own copy crashes on filtered chunks that happen to be in its cache.
        """
        plugins()  # a dataset cannot be made with filters that HDF5 does not know
        space = h5py.h5s.create_simple(self.dataset.shape)
        kind = self.dataset.id.get_type()
        copy = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, self._storage()))
        if self.chunks is None:
            if self.complete:
                copy[...] = self.read_all()
            return
        for offset in self.offsets(((0,) * self.dataset.ndim, self.dataset.shape)):
            stored = self.stored(offset)
            if stored is not None:
                try:
                    check_chunk(self.pipeline, stored.data)
                except BadChunk as error:
                    raise self.damage(offset, str(error)) from None
                copy.id.write_direct_chunk(offset, stored.tobytes())
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
        """Everything that is wrong with the stored words, of which every chunk is decoded."""
        if self.chunks is None:
            return
        scratch = empty_aligned((self.pipeline.chunk_bytes,), np.uint8)
        for offset in self.offsets(((0,) * self.dataset.ndim, self.dataset.shape)):
            try:
                stored = self.stored(offset)
                if stored is not None:
                    self._decode(offset, stored, scratch)
            except FileError as error:
                yield error

    def offsets(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Where the chunks begin that a box touches."""
        ranges = [range(s // c, -(-(s + n) // c)) for s, n, c in zip(*box, self.chunks, strict=True)]
        for cell in np.ndindex(*(len(r) for r in ranges)):
            yield tuple(int(r[k] * c) for r, k, c in zip(ranges, cell, self.chunks, strict=True))

    @property
    def complete(self) -> bool:
        """Whether a dataset without chunks has its values."""
        needed = self.dataset.size * self.dtype.itemsize
        return bool(self.layout == h5py.h5d.COMPACT or self.dataset.id.get_storage_size() >= needed)

    def _located(self, offset: tuple[int, ...]) -> tuple[int, int]:
        """Where a chunk lies in the file, and how many bytes of it; (0, 0) if it was never written."""
        known = self._places.get(offset)
        if known is not None:
            return known
        where = f"{self.place.path} chunk {offset}"
        with reading(self.place.file, where):
            info = self._chunk_info(offset)
        found = (0, 0)
        if info.byte_offset is not None:
            if info.filter_mask:
                problem = "was stored with its filters switched off"
                raise FileError(self.place.file, where, problem, "rewrite the file with h5repack", code="filter-mask")
            if not 0 < info.size <= self.pipeline.chunk_bytes * 5 // 4 + (1 << 20):
                raise self.damage(offset, f"it is stored in {info.size} bytes")
            found = (int(info.byte_offset), int(info.size))
        self._places[offset] = found
        return found

    def _chunk_info(self, offset: tuple[int, ...]) -> Any:
        """What HDF5 knows of a chunk; asked for many, it is asked for all of them at once."""
        if len(self._places) == ASKED_ONE_BY_ONE and hasattr(self.dataset.id, "chunk_iter"):
            infos: dict[tuple[int, ...], Any] = {}
            with suppress(OSError, RuntimeError):  # what is damaged is met where it is asked for
                self.dataset.id.chunk_iter(lambda info: infos.__setitem__(info.chunk_offset, info))
            asked = self._places.copy()  # other threads go on asking
            if all((infos[place].byte_offset if place in infos else 0) == known for place, (known, _) in asked.items()):
                self._infos = infos  # some HDF5 counts chunks in place of elements
        if offset in self._infos:
            return self._infos[offset]
        return self.dataset.id.get_chunk_info_by_coord(offset)
