"""What is squeezed is LZ4: any decoder gives it back, and every rule of the format is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import Bytes

from gaincal.kernels.libraries import function
from gaincal.kernels.squeeze import LAST_LITERALS, LAST_MATCH, MIN_MATCH, WIDTH, squeeze

GUARD = 0xC3
Sequence = tuple[bytes, int, int]
"""Literals, then a match: how far back, and how long; no match at the end."""


def squeezed(data: bytes) -> bytes:
    """A block, made between guards, with 64 other bytes behind the source."""
    assert len(data) % WIDTH == 0
    source = np.frombuffer(data + bytes([data[-1]]) * WIDTH, np.uint8).copy()
    room = len(data) + len(data) // 255 + 16
    target = np.full(room + 2 * WIDTH, GUARD, np.uint8)
    equal, starts = np.full((2, len(data) // WIDTH + 1), 0xFFFFFFFFFFFFFFFF, np.uint64)
    length = squeeze(source.ctypes.data, len(data), target.ctypes.data + WIDTH, equal, starts)
    assert 0 < length <= room
    assert (target[:WIDTH] == GUARD).all()
    assert (target[WIDTH + length :] == GUARD).all()
    return target[WIDTH : WIDTH + length].tobytes()


def parsed(block: bytes) -> list[Sequence]:
    """The sequences of an LZ4 block, read by the letter of its description."""
    found: list[Sequence] = []
    position = 0

    def number(nibble: int) -> int:
        nonlocal position
        total, more = nibble, nibble == 15
        while more:
            total, more = total + block[position], block[position] == 255
            position += 1
        return total

    while position < len(block):
        token = block[position]
        position += 1
        literals = number(token >> 4)
        text = block[position : position + literals]
        assert len(text) == literals
        position += literals
        if position == len(block):
            assert token & 15 == 0
            return [*found, (text, 0, 0)]
        back = int.from_bytes(block[position : position + 2], "little")
        position += 2
        found.append((text, back, number(token & 15) + MIN_MATCH))
    raise AssertionError("the last sequence has no match")


def unpacked(sequences: list[Sequence]) -> bytes:
    out = bytearray()
    for text, back, length in sequences:
        out += text
        assert back <= len(out)
        for _ in range(length):
            out.append(out[-back])
    return bytes(out)


def by_library(block: bytes, size: int) -> bytes:
    source, target = np.frombuffer(block, np.uint8), np.full(size + 8, GUARD, np.uint8)
    assert function("LZ4_decompress_safe")(source.ctypes.data, target.ctypes.data, len(block), size) == size
    assert (target[size:] == GUARD).all()
    return target[:size].tobytes()


def require_lz4(data: bytes) -> bytes:
    block = squeezed(data)
    sequences = parsed(block)
    assert unpacked(sequences) == data
    assert by_library(block, len(data)) == data
    done = 0
    for text, back, length in sequences[:-1]:
        done += len(text)
        assert back >= 1
        assert len(data) - done >= LAST_MATCH
        done += length
    assert len(sequences[-1][0]) >= LAST_LITERALS
    assert done + len(sequences[-1][0]) == len(data)
    return block


def padded(data: bytes) -> bytes:
    return data + b"\1" * (-len(data) % WIDTH)


@pytest.mark.parametrize("size", [64, 128, 192, 4096, 16_384, 32_768])
@pytest.mark.parametrize("byte", [0, 0xFF, 7])
def test_equal_bytes_nearly_vanish(size: int, byte: int) -> None:
    assert len(require_lz4(bytes([byte]) * size)) <= 16 + size // 255


@pytest.mark.parametrize("size", [64, 128, 4096, 32_768])
def test_noise_hardly_grows(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8).tobytes()
    assert len(require_lz4(data)) <= size + size // 255 + 2


@pytest.mark.parametrize("run", [*range(1, 24), 63, 64, 65, 127, 128, 129, 200, 268, 269, 270, 271, 525, 1000])
def test_a_run_of_any_length_at_any_place(run: int) -> None:
    """Across words of 64 bytes, and at both ends of a block."""
    size = 64 * (run // 64 + 3)
    noise = np.random.default_rng(run).permutation(np.arange(256))
    base = np.resize(noise, size).astype(np.uint8)
    for place in {*range(20), *range(50, 80), *range(size - run - 20, size - run + 1)}:
        data = base.copy()
        data[place : place + run] = 0xAA
        require_lz4(data.tobytes())


def test_lengths_of_literals_around_every_extra_byte() -> None:
    noise = np.resize(np.random.default_rng(1).permutation(np.arange(256)), 2048).astype(np.uint8)
    for literals in (*range(1, 20), *range(268, 274), *range(523, 530), *range(1000, 1040)):
        data = np.concatenate([noise[:literals], np.full(30, 9, np.uint8), noise[:40]])
        require_lz4(padded(data.tobytes()))


RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=60)


@settings(max_examples=300)
@given(runs=RUNS)
def test_runs_come_back(runs: list[tuple[int, int]]) -> None:
    require_lz4(padded(b"".join(bytes([byte]) * length for byte, length in runs)))


@settings(max_examples=200)
@given(data=st.binary(min_size=1, max_size=700))
def test_any_bytes_come_back(data: bytes) -> None:
    require_lz4(padded(data))


def planes(counts: Bytes) -> bytes:
    """Bit planes of 32-bit counts, as bitshuffle makes them."""
    bits = np.unpackbits(counts.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return np.packbits(bits.T.copy(), axis=1, bitorder="little").tobytes()


@pytest.mark.parametrize("rate", [0, 1e-4, 1e-2, 0.1, 1, 50])
def test_bit_planes_of_counts_shrink_about_as_much_as_with_lz4_itself(rate: float) -> None:
    counts = np.random.default_rng(4).poisson(rate, 4096)
    data = planes(counts)
    block = require_lz4(data)
    pack, room = function("LZ4_compress_default"), np.empty(2 * len(data), np.uint8)
    source = np.frombuffer(data, np.uint8)
    usual = pack(source.ctypes.data, room.ctypes.data, len(data), room.size)
    assert len(block) < 1.2 * usual + 32
