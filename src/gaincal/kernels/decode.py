"""Structural checks of stored chunks, before any decoder sees them.

The plug-ins of HDF5 believe chunk headers: 21 of 72 malformed bitshuffle headers end in a crash,
and HDF5 itself never checks that a chunk decodes to its size.  A chunk that passes here cannot
make a decoder leave its buffers; whether its pixels are right, only a checksum can tell.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
BLOSC, LZ4, BITSHUFFLE, ZSTD = 32001, 32004, 32008, 32015
FILTERS = {
    DEFLATE: "gzip",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    BLOSC: "Blosc",
    LZ4: "LZ4",
    BITSHUFFLE: "bitshuffle",
    ZSTD: "Zstandard",
}
BITSHUFFLE_LZ4 = 2
_BITSHUFFLE_COMPRESSORS = {0: "", 2: "LZ4", 3: "Zstandard"}
_MAX_BITSHUFFLE_BLOCK = 1 << 24
_MAX_LZ4_BLOCK = 1 << 30
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


HEADER_BYTES, LENGTH_BYTES, CHECKSUM_BYTES = 12, 4, 4
"""Of bitshuffle and LZ4: decoded size and block size, then a length in front of each block; of fletcher32, behind."""
Stored = bytes | memoryview


class BadChunk(ValueError):
    """A stored chunk, or the description of its filters, that no decoder should see."""


@dataclass(frozen=True)
class Pipeline:
    """The filters of a dataset.

    Parameters
    ----------
    filters : tuple of (int, tuple of int)
        Identifier and parameters of each filter, in the order of writing.
    chunk_bytes : int
        Size of a decoded chunk.
    itemsize : int
        Bytes per element.
    """

    filters: tuple[tuple[int, tuple[int, ...]], ...]
    chunk_bytes: int
    itemsize: int

    @property
    def checksummed(self) -> bool:
        """Whether every chunk carries a checksum."""
        return any(number == FLETCHER32 for number, _ in self.filters)

    @property
    def coder(self) -> tuple[int, tuple[int, ...]] | None:
        """The one filter that compresses."""
        return next(((n, p) for n, p in self.filters if n not in (SHUFFLE, FLETCHER32)), None)

    def describe(self) -> str:
        """Names of the filters, for people."""
        names = []
        for number, parameters in self.filters:
            inner = _BITSHUFFLE_COMPRESSORS.get(compressor(parameters), "") if number == BITSHUFFLE else ""
            names.append(FILTERS.get(number, f"filter {number}") + (f"-{inner}" if inner else ""))
        return "+".join(names) or "none"


def check_pipeline(pipeline: Pipeline) -> None:
    """Refuse filters that are unknown, combined oddly or wrongly parametrised; raises BadChunk."""
    numbers = [number for number, _ in pipeline.filters]
    for number, parameters in pipeline.filters:
        if number not in FILTERS:
            raise BadChunk(f"filter {number} is not one of {', '.join(FILTERS.values())}")
        size_at = {SHUFFLE: 0, BITSHUFFLE: 2}.get(number)
        if size_at is not None and parameters[size_at : size_at + 1] != (pipeline.itemsize,):
            raise BadChunk(f"{FILTERS[number]} is set for another element size")
        if number == BITSHUFFLE and compressor(parameters) not in _BITSHUFFLE_COMPRESSORS:
            raise BadChunk("bitshuffle with an unknown compressor")
    coders = [n for n in numbers if n not in (SHUFFLE, FLETCHER32)]
    tidy = numbers == [n for n in (SHUFFLE, *coders, FLETCHER32) if n in numbers]
    if len(coders) > 1 or not tidy:
        raise BadChunk("filters in an order that gaincal does not read: " + pipeline.describe())


def check_chunk(pipeline: Pipeline, stored: Stored) -> None:
    """Refuse a stored chunk that does not decode to exactly its size; raises BadChunk."""
    if pipeline.checksummed:
        if len(stored) <= CHECKSUM_BYTES:
            raise BadChunk("shorter than its checksum")
        stored = stored[:-CHECKSUM_BYTES]
    coder = pipeline.coder
    if coder is None:
        if len(stored) != pipeline.chunk_bytes:
            raise BadChunk(f"{len(stored)} bytes instead of {pipeline.chunk_bytes}")
        return
    number, parameters = coder
    if number == BITSHUFFLE:
        _check_bitshuffle(stored, pipeline, parameters)
    else:
        {DEFLATE: _check_deflate, LZ4: _check_lz4, ZSTD: _check_zstd, BLOSC: _check_blosc}[number](
            stored, pipeline.chunk_bytes
        )


def compressor(parameters: tuple[int, ...]) -> int:
    """Which compressor works inside bitshuffle."""
    return parameters[4] if len(parameters) > 4 else 0


def _check_bitshuffle(stored: Stored, pipeline: Pipeline, parameters: tuple[int, ...]) -> None:
    total, size = pipeline.chunk_bytes, pipeline.itemsize
    if total % size:
        raise BadChunk("not whole elements")
    if compressor(parameters) == 0:
        block = parameters[3] if len(parameters) > 3 else 0
        if len(stored) != total or block % 8 or block > _MAX_BITSHUFFLE_BLOCK:
            raise BadChunk("length or block size")
        return
    if len(stored) < 12:
        raise BadChunk("shorter than its header")
    declared, block = struct.unpack_from(">QI", stored)
    if declared != total:
        raise BadChunk(f"its header declares {declared} bytes instead of {total}")
    if block == 0 or block % (8 * size) or block > _MAX_BITSHUFFLE_BLOCK:
        raise BadChunk(f"block size {block}")
    elements = total // size
    full, rest = divmod(elements, block // size)
    position = walk(stored, HEADER_BYTES, full + (rest >= 8))
    if len(stored) - position != (elements % 8) * size:
        raise BadChunk("wrong length behind the last block")


def walk(stored: Stored, position: int, blocks: int) -> int:
    """Follow the lengths of compressed blocks; returns where the last one ends."""
    for _ in range(blocks):
        if position + 4 > len(stored):
            raise BadChunk("the block table leaves the chunk")
        (length,) = struct.unpack_from(">I", stored, position)
        position += LENGTH_BYTES + length
        if length == 0 or position > len(stored):
            raise BadChunk("a block leaves the chunk")
    return position


def _check_lz4(stored: Stored, total: int) -> None:
    if len(stored) < 12:
        raise BadChunk("shorter than its header")
    declared, block = struct.unpack_from(">QI", stored)
    if declared != total or block == 0 or block > _MAX_LZ4_BLOCK:
        raise BadChunk("decoded size or block size")
    block = min(block, total)
    position, done = 12, 0
    while done < total:
        wanted = min(block, total - done)
        end = walk(stored, position, 1)
        if end - position - 4 > wanted:
            raise BadChunk("a block is longer than what it holds")
        position, done = end, done + wanted
    if position != len(stored):
        raise BadChunk("bytes behind the last block")


def _check_zstd(stored: Stored, total: int) -> None:
    """One frame that states its content size."""
    if len(stored) < 6 or stored[:4] != _ZSTD_MAGIC or stored[4] & 0x08:
        raise BadChunk("no Zstandard frame")
    single = stored[4] >> 5 & 1
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[stored[4] & 3]
    width = (1 if single else 0, 2, 4, 8)[stored[4] >> 6]
    if width == 0 or len(stored) < start + width:
        raise BadChunk("content size not stated")
    declared = int.from_bytes(stored[start : start + width], "little") + (256 if width == 2 else 0)
    if declared != total:
        raise BadChunk(f"its header declares {declared} bytes instead of {total}")
    end = _walk_zstd(stored, start + width) + (4 if stored[4] & 0x04 else 0)
    if end != len(stored):
        raise BadChunk("wrong length behind the last block")


def _walk_zstd(stored: Stored, position: int) -> int:
    """Follow the block headers of a Zstandard frame (RFC 8878, 3.1.1.2); returns where the last block ends."""
    last = False
    while not last:
        if position + 3 > len(stored):
            raise BadChunk("a block leaves the chunk")
        header = int.from_bytes(stored[position : position + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3:
            raise BadChunk("a block of a reserved kind")
        position += 3 + (1 if kind == 1 else size)
    return position


def _check_blosc(stored: Stored, total: int) -> None:
    if len(stored) < 16:
        raise BadChunk("shorter than its header")
    version, _, flags, type_size = stored[:4]
    declared, block, compressed = struct.unpack_from("<III", stored, 4)
    if version not in (1, 2) or declared != total or compressed != len(stored):
        raise BadChunk("version or sizes")
    if block == 0 or block > max(declared, 1) or type_size == 0:
        raise BadChunk("block size")
    if flags & 0x02:
        if compressed != 16 + declared:
            raise BadChunk("stored length")
        return
    blocks = -(-declared // block)
    if 16 + 4 * blocks > compressed:
        raise BadChunk("the block table leaves the chunk")
    for start in struct.unpack_from(f"<{blocks}I", stored, 16):
        if start < 16 + 4 * blocks or start + 4 > compressed:
            raise BadChunk("a block leaves the chunk")


def _check_deflate(stored: Stored, total: int) -> None:
    """HDF5 inflates without a limit and accepts too little: inflate here first, within bounds."""
    inflater = zlib.decompressobj()
    try:
        size = len(inflater.decompress(stored, total + 1))
    except zlib.error as error:
        raise BadChunk(str(error)) from None
    if size != total or not inflater.eof or inflater.unused_data:
        raise BadChunk(f"inflates to {size} bytes instead of {total}")
