"""Stored chunks to calibrated, counted and stored again: everything for a tile while it is in the cache.

Compiled, serial, and without the interpreter's lock: `gaincal.kernels.blocks` cuts the work up for
threads.  No frame of words, flags or results needs to exist as a whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from gaincal.formulas.program import MISSING_BIT
from gaincal.kernels.compiled_checksum import fletcher32_at
from gaincal.kernels.decode import CHECKSUM_BYTES, HEADER_BYTES, LENGTH_BYTES
from gaincal.kernels.machine import (
    WIDTH,
    call_kernel,
    call_lz4,
    call_pread,
    call_yield,
    gather_words,
    load_big_endian,
    load_byte,
    load_number,
    load_word,
    next_number,
    prefetch,
    shared_number,
    spread_elements,
    store_big_endian,
    store_byte,
    store_number,
    trailing_zeros,
)
from gaincal.kernels.packed import BLOCK, WORD_BYTES, Array
from gaincal.kernels.results import LANES, MARKS_AT_ONCE

GROUP = 16
"""Frames that are taken together, tile by tile: with their flags they still fit the second cache."""
FLAG_BYTES = 4
AHEAD = 90
PLANES_BYTES = BLOCK * 8 + WIDTH
"""Room for the bit planes of a block, of words or of values, and for reading a little behind them."""
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit("boolean(int64, int64, boolean, int64, int64, int64)", **_OPTIONS)  # type: ignore[untyped-decorator]
def index_chunk(start: int, size: int, checksummed: bool, elements: int, blocks: int, count: int) -> bool:
    """Note where the compressed blocks of a chunk lie; False if it is not just as it must be.

    The same rules as `gaincal.kernels.codecs.decode_chunk`, which can say what is wrong; chunks of
    other block sizes are left to it, too.

    Parameters
    ----------
    start, size : int
        Address and bytes of the chunk as it lies in the file.
    checksummed : bool
        Whether its checksum is behind it.
    elements : int
        Words of the chunk.
    blocks, count : int
        Address of room for address and length of every block, and how many there must be.
    """
    if checksummed:
        size -= CHECKSUM_BYTES
        if size <= 0 or load_word(start + size) | load_word(start + size + 2) << 16 != fletcher32_at(start, size):
            return False
    if size < HEADER_BYTES:
        return False
    declared = load_big_endian(start) << 32 | load_big_endian(start + 4)
    if declared != elements * WORD_BYTES or load_big_endian(start + 8) != BLOCK * WORD_BYTES:
        return False
    position = HEADER_BYTES
    for block in range(count):
        if position + LENGTH_BYTES > size:
            return False
        length = load_big_endian(start + position)
        position += LENGTH_BYTES + length
        if length == 0 or position > size:
            return False
        store_number(blocks + 16 * block, start + position - length)
        store_number(blocks + 16 * block + 8, length)
    return position == size


@njit("boolean(int64, int64, int64, int64, int64)", **_OPTIONS)  # type: ignore[untyped-decorator]
def read_bytes(pread: int, descriptor: int, place: int, size: int, target: int) -> bool:
    """Read bytes from a place of a file to an address; False if it does not have all of them, or cannot be read."""
    done = np.int64(0)
    while done < size:
        found = call_pread(pread, descriptor, target + done, size - done, place + done)
        if found <= 0:
            return False
        done += found
    return True


@njit("void(int64, int64[:, ::1], int64[::1], uint8[::1])", **_OPTIONS)  # type: ignore[untyped-decorator]
def read_chunks(pread: int, chunks: Array, counters: Array, fits: Array) -> None:
    """Read chunks, and note where their blocks lie, as long as there are any that no other thread has taken.

    Parameters
    ----------
    pread : int
        Address of the function of that name.
    chunks : ndarray (chunk, 8) of int64
        File descriptor, place in the file, address of room, bytes, and what `index_chunk` takes besides.
    counters : ndarray (2,) of int64
        How many chunks have been taken, and how many of them are there.
    fits : ndarray (chunk,) of uint8
        Receives 1 for each chunk that was read as a whole and is just as it must be.
    """
    while True:
        k = next_number(counters.ctypes.data)
        if k >= len(chunks):
            return
        descriptor, place, start, size, checksummed, elements, blocks, count = chunks[k]
        if read_bytes(pread, descriptor, place, size, start):
            fits[k] = index_chunk(start, size, checksummed != 0, elements, blocks, count)
        next_number(counters.ctypes.data + 8)


@njit("void(int64, int64, int64[::1])", **_OPTIONS)  # type: ignore[untyped-decorator]
def wait_for_chunks(sched_yield: int, count: int, counters: Array) -> None:
    """Wait until all of so many chunks are there, which other threads read."""
    while shared_number(counters.ctypes.data + 8) < count:
        call_yield(sched_yield)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _unpack(lz4: int, block: Array, count: int, planes: int, words: int) -> bool:
    """Decode a block to `count` words at an address; a block that was never written gives zeros."""
    if block[0] == 0:
        for k in range(count * WORD_BYTES):
            store_byte(words + k, 0)
        return True
    if call_lz4(lz4, block[0], planes, block[1], count * WORD_BYTES) != count * WORD_BYTES:
        return False
    for k in range(0, count, WIDTH):
        gather_words(planes + k // 8, count // 8, words + k * WORD_BYTES)
    return True


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _blank(value: int, fill: Array, first: int, last: int, flags: int, marks: int) -> None:
    """Make the results of some pixels of a frame those of missing words."""
    for pixel in range(first, last):
        for k in range(fill.size):
            store_byte(value + pixel * fill.size + k, fill[k])
        if marks and load_byte(marks + pixel // LANES) == 0:
            for k in range(pixel // LANES * LANES * FLAG_BYTES, (pixel // LANES + 1) * LANES * FLAG_BYTES):
                store_byte(flags + k, 0)
            store_byte(marks + pixel // LANES, 1)
        if flags:
            for k in range(FLAG_BYTES):
                store_byte(flags + pixel * FLAG_BYTES + k, (1 << MISSING_BIT) >> (8 * k) & 0xFF)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _tally(flags: Array, marks: Array, count: int, always: Array, held: Array, counts: Array) -> Any:
    """Count the reasons of a tile of a frame, and keep those that a pixel has always had; returns the missing ones."""
    missing: Any = 0
    for group in range(0, -(-count // LANES), MARKS_AT_ONCE):
        if load_number(marks.ctypes.data + group) | load_number(held.ctypes.data + group) == 0:
            continue
        for vector in range(group, min(group + MARKS_AT_ONCE, -(-count // LANES))):
            first, last = vector * LANES, min((vector + 1) * LANES, count)
            if marks[vector]:
                held[vector], lacking = _count(flags[first:last], always[first:last], counts)
                missing += lacking
            elif held[vector]:
                always[first:last] = np.uint32(0)
                held[vector] = 0
    return missing


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _count(flags: Array, always: Array, counts: Array) -> Any:
    """Count the reasons of a few pixels; returns whether one of them has always had one, and the missing ones."""
    some = kept = np.uint32(0)
    for k in range(flags.size):
        some |= flags[k]
        always[k] &= flags[k]
        kept |= always[k]
    missing: Any = 0
    while some:
        bit = trailing_zeros(np.uint64(some))
        some &= some - np.uint32(1)
        found: Any = 0
        for k in range(flags.size):
            found += np.int64(flags[k] >> np.uint32(bit) & np.uint32(1))
        counts[bit] += found
        if bit == MISSING_BIT:
            missing = found
    return kept != 0, missing


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _unpack_tile(
    lz4: int, blocks: Array, tile: int, frames: tuple[int, int], count: int, planes: int, words: int, starts: Array
) -> int:
    """Decode a tile of some frames of one input; returns -1, or the frame that cannot be decoded."""
    for frame in range(frames[0], frames[1]):
        target = words + (frame - frames[0]) * BLOCK * WORD_BYTES
        if tile + 1 < blocks.shape[1]:
            for line in range(AHEAD):
                prefetch(blocks[frame, tile + 1, 0] + line * 64)
        if not _unpack(lz4, blocks[frame, tile], count, planes, target):
            return frame
        starts[frame] = target - tile * BLOCK * WORD_BYTES
    return -1


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _blank_missing(
    blocks: Array, absent: Array, frame: int, tile: int, count: int, value: int, fill: Array, flags: int, marks: int
) -> None:
    """Give the pixels of a tile that have no words the results of missing ones."""
    first = tile * BLOCK
    for k in range(blocks.shape[0]):
        if blocks[k, frame, tile, 0] == 0:
            _blank(value, fill, first, first + count, flags, marks)
    if absent.shape[0]:
        for pixel in range(first, first + count):
            if absent[frame, pixel]:
                _blank(value, fill, pixel, pixel + 1, flags, marks)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _compute(
    kernel: int,
    tables: Array,
    groups: Array,
    shares: tuple[int, int],
    frames: tuple[int, int],
    pixels: tuple[int, int],
) -> None:
    """Compute some frames, each by the share that it belongs to."""
    for share in range(shares[0], shares[1]):
        begin, end = max(frames[0], groups[share, 0]), min(frames[1], groups[share, 1])
        if begin < end:
            call_kernel(kernel, tables[share].ctypes.data, begin, end, groups[share, 2], pixels[0], pixels[1])


def _make_pack(size: int) -> Any:
    """Make what compresses a tile of values of `size` bytes; it returns the bytes of it."""
    from gaincal.kernels.squeeze import squeeze

    spread = spread_elements(size)

    @njit(**_OPTIONS)  # type: ignore[untyped-decorator]
    def pack_tile(values: int, count: int, planes: int, target: int, runs: Array) -> Any:
        for pixel in range(0, count, WIDTH):
            spread(values + pixel * size, planes + pixel // 8, count // 8)
        length = squeeze(planes, count * size, target + LENGTH_BYTES, runs[0], runs[1])
        store_big_endian(target, length)
        return LENGTH_BYTES + length

    return pack_tile


@lru_cache(maxsize=16)
def make_stream(size: int, pack: bool, count_flags: bool) -> Any:
    """Make the loop over the tiles.

    Parameters
    ----------
    size : int
        Bytes of a value.
    pack : bool
        Whether values are compressed.
    count_flags : bool
        Whether reasons are counted.

    Returns
    -------
    stream : callable
        ``stream(kernel, unpack, tables, rows, packed, blocks, absent, fill, pixels, ranges, counter, groups, shares,
        scratch, runs, flags, marks, always, held, counts, lacking, pieces, lengths) -> int``: -1, or the number of the
        packed input, frame and tile that cannot be decoded, as ``(input * frames + frame) * tiles + tile``.

        ``kernel``, ``unpack``
            Addresses of the kernel and of LZ4's decoder.
        ``tables``, ``rows``
            For each share of a run the addresses that the kernel takes, of which those by frame point into ``rows``
            (item, frame), the last three of them the value, the flags, and the marks.
        ``packed``, ``blocks``
            Which rows are decoded from ``blocks`` (input, frame, tile, 2).
        ``absent``
            (frame, pixel): further words that are missing; or of no frames.
        ``ranges``, ``counter``
            (range, 3): number of the run, first and last tile; (1,): how many ranges threads have taken.
        ``groups``, ``shares``
            (share, 3): first and last frame, and pixels of a plane of its maps; (run + 1,): which shares are of a run.
        ``scratch``, ``runs``
            Bytes for bit planes, words, and values if those are compressed; what `squeeze` needs (2, ...).
        ``flags``, ``marks``
            (GROUP, BLOCK), (GROUP, BLOCK // LANES): where reasons are counted.
        ``always``, ``held``, ``counts``, ``lacking``
            (pixel,), (vector,), (32,), (frame,): what is counted.
        ``pieces``, ``lengths``
            (range, frame, bytes), (range, frame): compressed values.
    """
    pack_tile: Any = _make_pack(size) if pack else None

    @njit(**_OPTIONS)  # type: ignore[untyped-decorator]
    def stream(
        kernel: int,
        unpack: int,
        tables: Array,
        rows: Array,
        packed: Array,
        blocks: Array,
        absent: Array,
        fill: Array,
        pixels: int,
        ranges: Array,
        counter: Array,
        groups: Array,
        shares: Array,
        scratch: Array,
        runs: Array,
        flags: Array,
        marks: Array,
        always: Array,
        held: Array,
        counts: Array,
        lacking: Array,
        pieces: Array,
        lengths: Array,
    ) -> Any:
        frames, value_row = rows.shape[1], rows.shape[0] - 3
        flags_row, marks_row = value_row + 1, value_row + 2
        planes = scratch.ctypes.data
        words = planes + PLANES_BYTES
        values = words + packed.size * GROUP * BLOCK * WORD_BYTES
        while True:
            own = next_number(counter.ctypes.data)
            if own >= len(ranges):
                return -1
            run = ranges[own, 0]
            for tile in range(ranges[own, 1], ranges[own, 2]):
                first = tile * BLOCK
                count = min(BLOCK, pixels - first)
                for begin in range(0, frames, GROUP):
                    end = min(begin + GROUP, frames)
                    for k in range(packed.size):
                        target = words + k * GROUP * BLOCK * WORD_BYTES
                        starts = rows[packed[k]]
                        bad = _unpack_tile(unpack, blocks[k], tile, (begin, end), count, planes, target, starts)
                        if bad >= 0:
                            return (k * frames + bad) * blocks.shape[2] + tile
                    for frame in range(begin, end):
                        place = (frame - begin) * BLOCK - first
                        if pack:
                            rows[value_row, frame] = values + place * size
                        if count_flags:
                            rows[flags_row, frame] = flags.ctypes.data + place * FLAG_BYTES
                            rows[marks_row, frame] = marks.ctypes.data + place // LANES
                    mine = shares[run], shares[run + 1]
                    _compute(kernel, tables, groups, mine, (begin, end), (first, first + count))
                    for frame in range(begin, end):
                        value, reasons, marked = rows[value_row, frame], rows[flags_row, frame], rows[marks_row, frame]
                        _blank_missing(blocks, absent, frame, tile, count, value, fill, reasons, marked)
                        if count_flags:
                            number, kept = frame - begin, held[first // LANES :]
                            part = always[first : first + count]
                            lacking[frame] += _tally(flags[number], marks[number], count, part, kept, counts)
                        if pack:
                            target = pieces[own, frame].ctypes.data + lengths[own, frame]
                            lengths[own, frame] += pack_tile(value + first * size, count, planes, target, runs)

    return stream
