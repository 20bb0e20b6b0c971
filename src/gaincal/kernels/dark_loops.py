"""The compiled loops over dark frames: decode a tile, look at its first frames, then sum or count its words.

Serial, and without the interpreter's lock: `gaincal.kernels.darks` gives modules and tiles to threads.  The arithmetic
is that of `gaincal.kernels.dark_reference`, in integers, so the order of frames does not matter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gaincal.kernels.dark_rules import BINS, COVER, ENOUGH, GROUP, NARROW, WARM
from gaincal.kernels.machine import copy_bytes, prefetch
from gaincal.kernels.packed import BLOCK, WORD_BYTES, Array
from gaincal.kernels.stream import AHEAD, PLANES_BYTES, _unpack

LANES = 32
ROW_BYTES = BLOCK * WORD_BYTES + 64
"""From the row of a frame to the next: at a power of two they would drive each other out of the cache."""
UNFOUND = -1
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WORDS, _WIDE, _LONG = (ir.VectorType(kind, LANES) for kind in (_INT16, _INT32, _INT64))


@intrinsic  # type: ignore[untyped-decorator]
def _sum_lanes(_context: Any, _rows: Any, _count: Any, _skip: Any, _limits: Any, _sums: Any) -> Any:
    """Sum `LANES` pixels over at most `GROUP` frames, in registers.

    ``rows``: where the addresses of the frames' rows lie; ``skip``: bytes from there to the pixels; ``limits``: address
    of four words (right and undefined ones: first, and how many follow); ``sums``: address of the addresses of low,
    width, used, right, undefined, total and squares, of these pixels.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        rows, count, skip, limits, sums = arguments
        table = [b.load(_at(b, sums, 8 * k, _INT64)) for k in range(7)]
        low, width = (b.load(b.inttoptr(a, _WORDS.as_pointer()), align=2) for a in table[:2])
        ends = [_splat(b, b.load(_at(b, limits, 2 * k, _INT16))) for k in range(4)]
        counts = [cgutils.alloca_once_value(b, ir.Constant(_WORDS, [0] * LANES)) for _ in range(3)]
        totals = [cgutils.alloca_once_value(b, ir.Constant(_WIDE, [0] * LANES)) for _ in range(2)]
        with cgutils.for_range(b, count, intp=_INT64) as loop:
            row = b.load(b.inttoptr(b.add(rows, b.mul(loop.index, ir.Constant(_INT64, 8))), _INT64.as_pointer()))
            words = b.load(b.inttoptr(b.add(row, skip), _WORDS.as_pointer()), align=2)
            distance = b.sub(words, low)
            inside = b.icmp_unsigned("<=", distance, width)
            tests = (inside, *(b.icmp_unsigned("<=", b.sub(words, ends[k]), ends[k + 1]) for k in (0, 2)))
            for place, test in zip(counts, tests, strict=True):
                b.store(b.sub(b.load(place), b.sext(test, _WORDS)), place)
            kept = b.select(inside, distance, ir.Constant(_WORDS, [0] * LANES))
            wide = b.zext(b.and_(kept, ir.Constant(_WORDS, [NARROW] * LANES)), _WIDE)
            b.store(b.add(b.load(totals[0]), wide), totals[0])
            b.store(b.add(b.load(totals[1]), b.mul(wide, wide)), totals[1])
        for address, place in zip(table[2:5], counts, strict=True):
            _add_to(b, address, b.zext(b.load(place), _WIDE))
        for address, place in zip(table[5:], totals, strict=True):
            _add_to(b, address, b.zext(b.load(place), _LONG))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def _at(b: Any, address: Any, skip: int, kind: Any) -> Any:
    return b.inttoptr(b.add(address, ir.Constant(_INT64, skip)), kind.as_pointer())


def _splat(b: Any, value: Any) -> Any:
    single = b.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_INT32, 0))
    return b.shuffle_vector(single, single, ir.Constant(_WIDE, [0] * LANES))


def _add_to(b: Any, address: Any, value: Any) -> None:
    place = b.inttoptr(address, value.type.as_pointer())
    b.store(b.add(b.load(place, align=4), value), place, align=4)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _word(rows: Array, frame: int, pixel: int) -> Any:
    return np.int64(_load(rows[frame] + WORD_BYTES * pixel))


@intrinsic  # type: ignore[untyped-decorator]
def _load(_context: Any, _address: Any) -> Any:
    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return b.load(b.inttoptr(arguments[0], _INT16.as_pointer()), align=2)

    return types.uint16(types.int64), codegen


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _sum_rows(rows: Array, frames: int, first: int, count: int, stage: Array, state: Any) -> None:
    """Sum a tile of some frames: pixels from `first` on, which are the first of each row."""
    low, width, used, right, undefined, total, squares = state
    whole = count - count % LANES if stage[3] - stage[2] <= NARROW else 0
    limits = np.empty(4, np.uint16)
    for k in range(2):
        limits[2 * k] = np.uint16(stage[4 * k])
        limits[2 * k + 1] = np.uint16(stage[4 * k + 1] - stage[4 * k])
    places = np.empty(7, np.int64)
    for begin in range(0, whole, LANES):
        pixel = first + begin
        places[0], places[1] = low.ctypes.data + 2 * pixel, width.ctypes.data + 2 * pixel
        places[2], places[3] = used.ctypes.data + 4 * pixel, right.ctypes.data + 4 * pixel
        places[4] = undefined.ctypes.data + 4 * pixel
        places[5], places[6] = total.ctypes.data + 8 * pixel, squares.ctypes.data + 8 * pixel
        _sum_lanes(rows.ctypes.data, frames, WORD_BYTES * begin, limits.ctypes.data, places.ctypes.data)
    for frame in range(frames):
        for k in range(whole, count):
            word, pixel = _word(rows, frame, k), first + k
            right[pixel] += np.uint32(stage[0] <= word <= stage[1])
            undefined[pixel] += np.uint32(stage[4] <= word <= stage[5])
            distance = word - np.int64(low[pixel])
            if 0 <= distance <= np.int64(width[pixel]):
                used[pixel] += np.uint32(1)
                total[pixel] += np.uint64(distance)
                squares[pixel] += np.uint64(distance * distance)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _count_rows(rows: Array, frames: int, first: int, count: int, stage: Array, state: Any) -> None:
    """Count a tile of some frames in the histograms of its pixels."""
    # Taken out once: references are counted, which costs more than the work on a word.
    base, shift, counts, below, above, right, undefined = state
    for frame in range(frames):
        for k in range(count):
            word, pixel = _word(rows, frame, k), first + k
            if stage[2] <= word <= stage[3]:
                place = (word - np.int64(base[pixel])) >> np.int64(shift[pixel])
                if 0 <= place < BINS:
                    counts[pixel, place] += np.uint16(1)
                elif place < 0:
                    below[pixel] += np.uint32(1)
                else:
                    above[pixel] += np.uint32(1)
                right[pixel] += np.uint32(1)  # good words tell their stage
            else:
                right[pixel] += np.uint32(stage[0] <= word <= stage[1])
                undefined[pixel] += np.uint32(stage[4] <= word <= stage[5])


def _network() -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort of `WARM` numbers: the places that are compared, in order."""
    pairs = []
    for p in (2**k for k in range(WARM.bit_length() - 1)):
        for k in (p >> j for j in range(p.bit_length())):
            for j in range(k % p, WARM - k, 2 * k):
                pairs += [(j + i, j + i + k) for i in range(k) if (j + i) // (2 * p) == (j + i + k) // (2 * p)]
    return tuple(pairs)


_PAIRS = np.array(_network(), np.int64)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _ordered(rows: Array, count: int, stage: Array, numbers: Array) -> Any:
    """The good words of the first frames in ascending order (`WARM`, pixel), and behind them the largest number."""
    words = np.empty((WARM, count), np.uint16)
    begin, span = np.uint16(stage[2]), np.uint16(stage[3] - stage[2])
    for frame in range(WARM):
        own = words[frame]
        for pixel in range(count):
            word = _load(rows[frame] + WORD_BYTES * pixel)
            good = np.uint16(word - begin) <= span
            own[pixel] = word if good else np.uint16(0xFFFF)
            numbers[pixel] += np.uint16(good)
    for k in range(_PAIRS.shape[0]):
        smaller, larger = words[_PAIRS[k, 0]], words[_PAIRS[k, 1]]
        for pixel in range(count):
            a, b = smaller[pixel], larger[pixel]
            smaller[pixel], larger[pixel] = min(a, b), max(a, b)
    return words


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _centres(rows: Array, count: int, stage: Array, middles: Array, spreads: Array) -> int:
    """Middle and spread of every pixel of a tile, `UNFOUND` without enough good words; returns the pooled spread."""
    numbers = np.zeros(count, np.uint16)
    words = _ordered(rows, count, stage, numbers)
    for pixel in range(count):
        number = np.int64(numbers[pixel])
        cut = number * 5 // 32
        found = number >= ENOUGH
        middles[pixel] = np.int64(words[number // 2, pixel]) if found else UNFOUND
        apart = np.int64(words[number - 1 - cut, pixel]) - np.int64(words[cut, pixel]) if found else UNFOUND
        spreads[pixel] = apart
    known = np.sort(spreads[:count])
    unknown = np.searchsorted(known, 0)
    return int(known[unknown + (count - unknown) // 2]) if unknown < count else 0


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _open_windows(rows: Array, first: int, count: int, stage: Array, clip: int, state: Any) -> None:
    low, width = state[0], state[1]
    middles, spreads = np.empty(count, np.int64), np.empty(count, np.int64)
    pooled = _centres(rows, count, stage, middles, spreads)
    for pixel in range(count):
        if middles[pixel] != UNFOUND:
            half = (clip * max(spreads[pixel], pooled) + 3) // 4 + 1
            begin, end = max(middles[pixel] - half, stage[2]), min(middles[pixel] + half, stage[3])
            low[first + pixel], width[first + pixel] = np.uint16(begin), np.uint16(end - begin)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _open_grids(rows: Array, first: int, count: int, stage: Array, _clip: int, state: Any) -> None:
    base, shift = state[0], state[1]
    middles, spreads = np.empty(count, np.int64), np.empty(count, np.int64)
    pooled = _centres(rows, count, stage, middles, spreads)
    for pixel in range(count):
        if middles[pixel] != UNFOUND:
            span, power = COVER * max(spreads[pixel], pooled // 2) + 2, 0
            while BINS << power < span:
                power += 1
            base[first + pixel] = np.int32(middles[pixel] - (BINS // 2 << power))
            shift[first + pixel] = np.uint8(power)


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _find_rows(
    lz4: int, blocks: Array, words: Array, frames: Array, first: int, count: int, scratch: Array, rows: Array
) -> int:
    """Find, or decode, the words of a tile of some frames; returns -1, or the frame that cannot be decoded."""
    tile = first // BLOCK
    for k in range(frames.size):
        frame = frames[k]
        rows[k] = scratch.ctypes.data + PLANES_BYTES + k * ROW_BYTES
        if blocks.shape[0] == 0:
            copy_bytes(words[frame] + WORD_BYTES * first, rows[k], count * WORD_BYTES)
            continue
        if k + 1 < frames.size:
            for line in range(AHEAD):
                prefetch(blocks[frames[k + 1], tile, 0] + line * 64)
        if not _unpack(lz4, blocks[frame, tile], count, scratch.ctypes.data, rows[k]):
            return int(frame)
    return -1


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _keep_rows(rows: Array, frames: int, kept: Array, slot: int, first: int, count: int) -> None:
    for frame in range(frames):
        for pixel in range(count):
            kept[slot + frame, first + pixel] = np.uint16(_word(rows, frame, pixel))


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _point_to(kept: Array, first: int, rows: Array) -> None:
    for k in range(WARM):
        rows[k] = kept[k, first:].ctypes.data


@lru_cache(maxsize=2)
def make_loop(counting: bool) -> Any:
    """Make the loop over the tiles of a module.

    Parameters
    ----------
    counting : bool
        Whether words are counted in histograms, not summed.

    Returns
    -------
    loop : callable
        ``loop(lz4, blocks, words, frames, held, window, clip, stage, state, kept, scratch) -> int``: -1, or
        ``frame * tiles + tile`` of what cannot be decoded.

        ``blocks``, ``words``
            (frame, tile, 2) of compressed words, or of no frames; then addresses (frame,) of plain ones.
        ``frames``, ``held``
            Frames of the stage, and how many before them are kept.
        ``window``
            First and last pixel; tiles begin at the first.
        ``clip``
            Twice the half width of windows in standard deviations; 0 where nothing is looked at first.
        ``stage``, ``state``, ``kept``
            Limits of the stage; arrays (pixel,) that are filled; first frames (`WARM`, pixel).
        ``scratch``
            Bytes to decode to.
    """
    take_rows = _count_rows if counting else _sum_rows
    open_tile = _open_grids if counting else _open_windows

    @njit(**_OPTIONS)  # type: ignore[untyped-decorator]
    def loop(
        lz4: int,
        blocks: Array,
        words: Array,
        frames: Array,
        held: int,
        window: tuple[int, int],
        clip: int,
        stage: Array,
        state: Any,
        kept: Array,
        scratch: Array,
    ) -> Any:
        rows = np.empty(GROUP, np.int64)
        for first in range(window[0], window[1], BLOCK):
            count = min(BLOCK, window[1] - first)
            position, slot = 0, held if clip else WARM
            while position < frames.size:
                taken = min(GROUP, frames.size - position)
                if slot < WARM:
                    taken = min(taken, WARM - slot)
                bad = _find_rows(lz4, blocks, words, frames[position : position + taken], first, count, scratch, rows)
                if bad >= 0:
                    return bad * blocks.shape[1] + first // BLOCK
                position += taken
                if slot >= WARM:
                    take_rows(rows, taken, first, count, stage, state)
                    continue
                _keep_rows(rows, taken, kept, slot, first, count)
                slot += taken
                if slot == WARM:
                    _point_to(kept, first, rows)
                    open_tile(rows, first, count, stage, clip, state)
                    take_rows(rows, WARM, first, count, stage, state)
        return -1

    return loop


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def count_words(
    lz4: int,
    blocks: Array,
    words: Array,
    frames: tuple[int, int],
    window: tuple[int, int],
    step: int,
    limits: Array,
    found: Array,
    scratch: Any,
) -> Any:
    """Count in some tiles of every frame how many words lie within each of some limits; returns -1 or what is bad.

    ``frames``, ``window``, ``step``: first and last frame and pixel, and pixels from one tile to the next;
    ``limits`` (range, 2): first and last; ``found`` (frame, range).
    """
    rows, single = np.empty(1, np.int64), np.empty(1, np.int64)
    for frame in range(frames[0], frames[1]):
        single[0] = frame
        for first in range(window[0], window[1], step):
            count = min(BLOCK, window[1] - first)
            if _find_rows(lz4, blocks, words, single, first, count, scratch, rows) >= 0:
                return frame * blocks.shape[1] + first // BLOCK
            for k in range(limits.shape[0]):
                begin, span = np.uint16(limits[k, 0]), np.uint16(limits[k, 1] - limits[k, 0])
                number = np.uint16(0)  # a tile has fewer pixels: narrow numbers make long vectors
                for pixel in range(count):
                    number += np.uint16(np.uint16(_load(rows[0] + WORD_BYTES * pixel) - begin) <= span)
                found[frame, k] += np.int64(number)
    return -1
