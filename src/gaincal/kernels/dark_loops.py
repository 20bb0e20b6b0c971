"""The compiled loops over dark frames: get a tile, look at its first frames, then sum or count its words.

Serial, and without the interpreter's lock: `gaincal.kernels.darks` gives modules and tiles to threads.  The arithmetic
is that of `gaincal.kernels.dark_reference`, in integers, so the order of frames does not matter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from gaincal.kernels.dark_lanes import LANES, count_lanes, count_within, load_dark_word, sum_lanes
from gaincal.kernels.dark_rules import ABOVE, BELOW, BINS, COVER, ENOUGH, GROUP, NARROW, OUTSIDE, PLACES, WARM
from gaincal.kernels.machine import copy_bytes, prefetch, store_byte
from gaincal.kernels.packed import BLOCK, WORD_BYTES, Array
from gaincal.kernels.stream import AHEAD, PLANES_BYTES, _unpack, read_bytes
from gaincal.kernels.unread import NOWHERE

SPAN = 4 * BLOCK
"""Pixels that are read at a time, where words lie in the file as they are: calls of the system cost something."""
ROW_BYTES = SPAN * WORD_BYTES + 64
"""From the row of a frame to the next: at a power of two they would drive each other out of the cache."""
UNFOUND = -1
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _word(rows: Array, frame: int, pixel: int) -> Any:
    return np.int64(load_dark_word(rows[frame] + WORD_BYTES * pixel))


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _note_limits(stage: Array, limits: Array) -> None:
    """The words of a stage as lanes compare them: right, undefined, good; first, and how many follow."""
    order = (0, 4, 2)
    for k in range(3):
        limits[2 * k] = np.uint16(stage[order[k]])
        limits[2 * k + 1] = np.uint16(stage[order[k] + 1] - stage[order[k]])


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _sum_rows(rows: Array, frames: int, first: int, count: int, stage: Array, state: Any) -> None:
    """Sum a tile of some frames: pixels from `first` on, which are the first of each row."""
    low, width, used, right, undefined, total, squares = state
    whole = count - count % LANES if stage[3] - stage[2] <= NARROW else 0
    limits, places = np.empty(6, np.uint16), np.empty(7, np.int64)
    _note_limits(stage, limits)
    for begin in range(0, whole, LANES):
        pixel = first + begin
        places[0], places[1] = low.ctypes.data + 2 * pixel, width.ctypes.data + 2 * pixel
        places[2], places[3] = used.ctypes.data + 4 * pixel, right.ctypes.data + 4 * pixel
        places[4] = undefined.ctypes.data + 4 * pixel
        places[5], places[6] = total.ctypes.data + 8 * pixel, squares.ctypes.data + 8 * pixel
        sum_lanes(rows.ctypes.data, frames, WORD_BYTES * begin, limits.ctypes.data, places.ctypes.data)
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
    base, shift, counts, right, undefined = state
    whole = count - count % LANES
    limits, places = np.empty(6, np.uint16), np.empty(5, np.int64)
    _note_limits(stage, limits)
    for begin in range(0, whole, LANES):
        pixel = first + begin
        places[0], places[1] = base.ctypes.data + 4 * pixel, shift.ctypes.data + pixel
        places[2] = counts.ctypes.data + 2 * PLACES * pixel
        places[3], places[4] = right.ctypes.data + 4 * pixel, undefined.ctypes.data + 4 * pixel
        count_lanes(rows.ctypes.data, frames, WORD_BYTES * begin, limits.ctypes.data, places.ctypes.data)
    for frame in range(frames):
        for k in range(whole, count):
            word, pixel = _word(rows, frame, k), first + k
            right[pixel] += np.uint32(stage[0] <= word <= stage[1])
            undefined[pixel] += np.uint32(stage[4] <= word <= stage[5])
            place = (word - np.int64(base[pixel])) >> np.int64(shift[pixel])
            place = BELOW if place < 0 else ABOVE if place >= BINS else place
            counts[pixel, place if stage[2] <= word <= stage[3] else OUTSIDE] += np.uint16(1)


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
            word = load_dark_word(rows[frame] + WORD_BYTES * pixel)
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
    return int(_middle(spreads))


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _middle(numbers: Array) -> int:
    """The upper median of 16-bit numbers, `UNFOUND` left out; 0 of none.  NumPy's sort takes a second to compile."""
    unknown = 0
    for number in numbers:
        unknown += number == UNFOUND
    wanted = unknown + (numbers.size - unknown) // 2
    low, high = 0, 0xFFFF
    while low < high:
        middle, reached = (low + high) // 2, 0
        for number in numbers:
            reached += number <= middle
        if reached > wanted:
            high = middle
        else:
            low = middle + 1
    return int(low if unknown < numbers.size else 0)


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
def _read_row(pread: int, place: Array, first: int, count: int, row: int) -> bool:
    """Read the words of a tile from a file; zeros where there are none."""
    size = count * WORD_BYTES
    if place[0] == NOWHERE:
        for k in range(size):
            store_byte(row + k, 0)
        return True
    return bool(read_bytes(pread, place[0], place[1] + first * WORD_BYTES, size, row))


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _find_rows(source: Any, frames: Array, first: int, count: int, scratch: Array, rows: Array) -> int:
    """Find, decode or read the words of a tile of some frames; returns -1, or the frame where that cannot be done."""
    lz4, pread, blocks, words, places = source
    tile = first // BLOCK
    for k in range(frames.size):
        frame = frames[k]
        rows[k] = scratch.ctypes.data + PLANES_BYTES + k * ROW_BYTES
        if words.size:
            copy_bytes(words[frame] + WORD_BYTES * first, rows[k], count * WORD_BYTES)
        elif places.size:
            if not _read_row(pread, places[frame], first, count, rows[k]):
                return int(frame)
        else:
            if k + 1 < frames.size:
                for line in range(AHEAD):
                    prefetch(blocks[frames[k + 1], tile, 0] + line * 64)
            if not _unpack(lz4, blocks[frame, tile], count, scratch.ctypes.data, rows[k]):
                return int(frame)
    return -1


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def _keep_rows(rows: Array, frames: int, kept: Array, slot: int, first: int, count: int) -> None:
    for frame in range(frames):
        copy_bytes(rows[frame], kept[slot + frame, first:].ctypes.data, count * WORD_BYTES)


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
        ``loop(source, frames, held, window, clip, stage, state, kept, scratch) -> int``: -1, or ``frame * pixels +
        pixel`` of what cannot be decoded or read.

        ``source``
            Addresses of LZ4's decoder and of ``pread``; of the words those that there are: (frame, tile, 2) of
            compressed blocks; addresses (frame,); (frame, 2) of descriptor and place in the file of the first pixel.
        ``frames``, ``held``
            Frames of the stage, and how many before them are kept.
        ``window``
            First and last pixel, and pixels of a frame; tiles begin at the first.
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
    def open_tiles(kept: Array, first: int, count: int, stage: Array, clip: int, state: Any, rows: Array) -> None:
        for begin in range(first, first + count, BLOCK):
            _point_to(kept, begin, rows)
            open_tile(rows, begin, min(BLOCK, first + count - begin), stage, clip, state)
        _point_to(kept, first, rows)
        take_rows(rows, kept.shape[0], first, count, stage, state)

    @njit(**_OPTIONS)  # type: ignore[untyped-decorator]
    def loop(
        source: Any,
        frames: Array,
        held: int,
        window: tuple[int, int, int],
        clip: int,
        stage: Array,
        state: Any,
        kept: Array,
        scratch: Array,
    ) -> Any:
        rows = np.empty(GROUP, np.int64)
        span = BLOCK if source[2].size else SPAN
        for first in range(window[0], window[1], span):
            count = min(span, window[1] - first)
            position, slot = 0, held if clip else WARM
            while position < frames.size:
                taken = min(GROUP, frames.size - position)
                if slot < WARM:
                    taken = min(taken, WARM - slot)
                bad = _find_rows(source, frames[position : position + taken], first, count, scratch, rows)
                if bad >= 0:
                    return bad * window[2] + first
                position += taken
                if slot >= WARM:
                    take_rows(rows, taken, first, count, stage, state)
                    continue
                _keep_rows(rows, taken, kept, slot, first, count)
                slot += taken
                if slot == WARM:
                    open_tiles(kept, first, count, stage, clip, state, rows)
        return -1

    return loop


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def count_words(
    source: Any,
    frames: tuple[int, int],
    window: tuple[int, int, int],
    step: int,
    limits: Array,
    found: Array,
    scratch: Any,
) -> Any:
    """Count in some tiles of every frame how many words lie within each of some limits; returns -1 or what is bad.

    ``source``, ``window``: as `make_loop` says; ``frames``: first and last; ``step``: pixels from one tile to the next;
    ``limits`` (range, 2): first and last; ``found`` (frame, range).
    """
    rows, single = np.empty(1, np.int64), np.empty(1, np.int64)
    for frame in range(frames[0], frames[1]):
        single[0] = frame
        for first in range(window[0], window[1], step):
            count = min(BLOCK, window[1] - first)
            if _find_rows(source, single, first, count, scratch, rows) >= 0:
                return frame * window[2] + first
            whole = count - count % LANES
            for k in range(limits.shape[0]):
                found[frame, k] += count_within(rows[0], whole, limits[k, 0], limits[k, 1] - limits[k, 0])
                for pixel in range(whole, count):
                    found[frame, k] += np.int64(limits[k, 0] <= _word(rows, 0, pixel) <= limits[k, 1])
    return -1


@njit(**_OPTIONS)  # type: ignore[untyped-decorator]
def quantiles(parts: Array, counts: Array, base: Array, shift: Array, zero: int, found: Array) -> None:
    """`gaincal.kernels.dark_rules.quantile` of some parts, pixel by pixel; ``found`` (part, pixel)."""
    for pixel in range(counts.shape[0]):
        own = counts[pixel]
        inner = np.int64(0)
        for k in range(BINS):
            inner += np.int64(own[k])
        below = np.int64(own[BELOW])
        total = below + inner + np.int64(own[ABOVE])
        for part in range(parts.size):
            wanted = parts[part] * np.float64(total) - np.float64(below)
            found[part, pixel] = np.nan
            if total == 0 or not 0 <= wanted <= np.float64(inner):
                continue
            place, reached = 0, np.int64(own[0])
            while place < BINS - 1 and np.float64(reached) < wanted:
                place += 1
                reached += np.int64(own[place])
            number = np.float64(own[place])
            if number > 0:
                position = np.float64(place) + (wanted - (np.float64(reached) - number)) / number
                width = np.float64(np.int64(1) << np.int64(shift[pixel]))
                found[part, pixel] = np.float64(base[pixel]) + position * width - 0.5 - np.float64(zero)
