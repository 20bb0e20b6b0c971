"""Stored chunks to elements: checked, then decoded by the compression libraries themselves.

Nothing here needs HDF5, so chunks are decoded in threads, and what is decoded is what was checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.kernels.checksum import fletcher32
from gaincal.kernels.decode import (
    BITSHUFFLE,
    BLOSC,
    CHECKSUM_BYTES,
    DEFLATE,
    HEADER_BYTES,
    LENGTH_BYTES,
    LZ4,
    SHUFFLE,
    ZSTD,
    BadChunk,
    Pipeline,
    check_chunk,
    compressor,
    walk,
)
from gaincal.kernels.libraries import function
from gaincal.kernels.memory import empty_aligned

Bytes = npt.NDArray[np.uint8]
ADLER_BYTES = 4
"""Of the checksum at the end of a deflate stream."""
_LIBRARY = {
    LZ4: "LZ4_decompress_safe",
    ZSTD: "ZSTD_decompress",
    BLOSC: "blosc_decompress_ctx",
}
_BITSHUFFLED = {0: "bshuf_bitunshuffle", 2: "bshuf_decompress_lz4", 3: "bshuf_decompress_zstd"}


def decodable(pipeline: Pipeline) -> bool:
    """Whether there is everything here to decode chunks of a pipeline."""
    name = _function_name(pipeline)
    return name is None or function(name) is not None


def decode_chunk(pipeline: Pipeline, stored: Bytes, out: Bytes, first: int = 0, last: int | None = None) -> None:
    """Decode a stored chunk, or those blocks of it that hold some of its elements.

    Parameters
    ----------
    pipeline : Pipeline
        Checked, and `decodable`.
    stored : ndarray of uint8
        As it lies in the file.
    out : ndarray of uint8 (chunk_bytes,)
        Receives the elements, in the byte order of the file.
    first, last : int, optional
        The elements that are needed; others may be left as they are.

    Raises
    ------
    BadChunk
        If the chunk is malformed, damaged, or does not decode to exactly its size.
    """
    body = stored
    if pipeline.checksummed:
        body = verified(stored)
    shuffled = any(number == SHUFFLE for number, _ in pipeline.filters)
    target = empty_aligned((pipeline.chunk_bytes,), np.uint8) if shuffled else out
    coder = pipeline.coder
    if coder is None:
        check_chunk(pipeline, stored.data)
        target[...] = body
    elif coder[0] == DEFLATE:
        _inflate(body, target)
    else:
        check_chunk(pipeline, stored.data)
        if coder[0] == BITSHUFFLE:
            elements = pipeline.chunk_bytes // pipeline.itemsize
            _decode_bitshuffle(pipeline, coder[1], body, target, first, elements if last is None else last)
        else:
            _DECODERS[coder[0]](body, target)
    if shuffled:
        _unshuffle(target, pipeline.itemsize, out)


def verified(stored: Bytes) -> Bytes:
    """A chunk without the checksum behind it; raises BadChunk if that is another one."""
    if stored.size <= CHECKSUM_BYTES:
        raise BadChunk("shorter than its checksum")
    body = stored[:-CHECKSUM_BYTES]
    verify(body, stored[-CHECKSUM_BYTES:])
    return body


def verify(body: Bytes, checksum: Bytes) -> None:
    """Whether bytes have a checksum as it stands behind a chunk; raises BadChunk if not."""
    if int.from_bytes(checksum.tobytes(), "little") != fletcher32(body):
        raise BadChunk("its checksum differs")


def _function_name(pipeline: Pipeline) -> str | None:
    coder = pipeline.coder
    if coder is None or coder[0] == DEFLATE:
        return None
    return _BITSHUFFLED[compressor(coder[1])] if coder[0] == BITSHUFFLE else _LIBRARY[coder[0]]


def _decode_bitshuffle(
    pipeline: Pipeline, parameters: tuple[int, ...], body: Bytes, out: Bytes, first: int, last: int
) -> None:
    """All blocks that hold the elements from `first` to `last`; the library takes any run of blocks."""
    size, elements = pipeline.itemsize, pipeline.chunk_bytes // pipeline.itemsize
    name = _BITSHUFFLED[compressor(parameters)]
    if compressor(parameters) == 0:
        block = parameters[3] if len(parameters) > 3 else 0
        done, expected = function(name)(_address(body), _address(out), elements, size, block), body.size
    else:
        block = struct.unpack_from(">QI", body.data)[1] // size
        begin, end = first // block, -(-last // block)
        position = walk(body.data, HEADER_BYTES, begin)
        count = elements - begin * block if end * block >= elements else (end - begin) * block
        stop = walk(body.data, position, end - begin) if end * block < elements else body.size
        expected = stop - position
        done = function(name)(_address(body) + position, _address(out) + begin * block * size, count, size, block)
    if done != expected:
        raise BadChunk("it cannot be decoded")


def _decode_lz4(body: Bytes, out: Bytes) -> None:
    block = min(struct.unpack_from(">QI", body.data)[1], out.size)
    decode, source, target = function(_LIBRARY[LZ4]), _address(body), _address(out)
    position = HEADER_BYTES
    for begin in range(0, out.size, block):
        wanted = min(block, out.size - begin)
        (length,) = struct.unpack_from(">I", body.data, position)
        position += LENGTH_BYTES
        if length == wanted:  # LZ4 could not shrink it
            out[begin : begin + wanted] = body[position : position + length]
        elif decode(source + position, target + begin, length, wanted) != wanted:
            raise BadChunk("it cannot be decoded")
        position += length


def _decode_zstd(body: Bytes, out: Bytes) -> None:
    if function(_LIBRARY[ZSTD])(_address(out), out.size, _address(body), body.size) != out.size:
        raise BadChunk("it cannot be decoded")


def _decode_blosc(body: Bytes, out: Bytes) -> None:
    if function(_LIBRARY[BLOSC])(_address(body), _address(out), out.size, 1) != out.size:
        raise BadChunk("it cannot be decoded")


_DECODERS: dict[int, Callable[[Bytes, Bytes], None]] = {LZ4: _decode_lz4, ZSTD: _decode_zstd, BLOSC: _decode_blosc}


def _inflate(body: Bytes, out: Bytes) -> None:
    """Within bounds: a chunk of a kilobyte can inflate to a gigabyte."""
    quick = _libdeflate()
    if quick is not None:
        try:
            size = quick(body, out=out).size
        except RuntimeError as error:
            raise BadChunk(str(error)) from None
        # What lies behind the stream is not looked at there: the checksum of the stream must be the end.
        if size != out.size or body[-ADLER_BYTES:].tobytes() != zlib.adler32(out.data).to_bytes(ADLER_BYTES, "big"):
            raise BadChunk(f"does not inflate to {out.size} bytes and nothing else")
        return
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(body.data, out.size + 1)
    except zlib.error as error:
        raise BadChunk(str(error)) from None
    if len(found) != out.size or not inflater.eof or inflater.unused_data:
        raise BadChunk(f"inflates to {len(found)} bytes instead of {out.size}")
    out[...] = np.frombuffer(found, np.uint8)


@lru_cache(maxsize=1)
def _libdeflate() -> Callable[..., Any] | None:
    """A faster decoder than Python's own, from imagecodecs where that is installed."""
    try:
        from imagecodecs import deflate_decode
    except ImportError:
        return None
    return deflate_decode


def _unshuffle(planes: Bytes, size: int, out: Bytes) -> None:
    """Byte planes to elements; what does not make up an element lies behind them as it was."""
    whole = planes.size // size
    out[: whole * size].reshape(whole, size)[...] = planes[: whole * size].reshape(size, whole).T
    out[whole * size :] = planes[whole * size :]


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
