"""One checksum, computed three times: by HDF5, by NumPy and by compiled code."""

from __future__ import annotations

import h5py
import hypothesis.extra.numpy as st_np
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import Bytes

from gaincal.kernels import checksum, compiled_checksum
from gaincal.kernels.checksum import summed

LENGTHS = sorted({*range(1, 201), *(n for k in range(8, 18) for n in (2**k - 1, 2**k, 2**k + 1)), 100_003, 300_000})


def by_hdf5(data: Bytes) -> int:
    """The checksum that HDF5 puts behind a chunk."""
    with h5py.File("checksum", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=data, chunks=data.shape, fletcher32=True)
        stored = bytes(dataset.id.read_direct_chunk((0,))[1])
    assert stored[:-4] == data.tobytes()
    return int.from_bytes(stored[-4:], "little")


def by_definition(data: Bytes) -> int:
    """Word by word, as HDF5 itself adds them: the first byte is the high one, an odd last byte a high one too."""
    words = data.tobytes() + b"\0" * (data.size % 2)
    first = second = 0
    for high, low in zip(words[::2], words[1::2], strict=True):
        first += high << 8 | low
        second += first
    first, second = (total % 65535 or (65535 if total else 0) for total in (first, second))
    return second << 16 | first


def require_equal(data: Bytes) -> None:
    assert summed(data) == by_hdf5(data) == compiled_checksum.fletcher32(data)


@pytest.mark.parametrize("kind", ["zeros", "0xFF", "random", "ramp", "0xFFFE"])
def test_all_three_agree_for_any_length(kind: str) -> None:
    rng = np.random.default_rng(1)
    for length in LENGTHS:
        if kind == "random":
            data = rng.integers(0, 256, length).astype(np.uint8)
        elif kind == "ramp":
            data = np.arange(length).astype(np.uint8)
        else:
            pattern = {"zeros": [0], "0xFF": [0xFF], "0xFFFE": [0xFF, 0xFE]}[kind]
            data = np.resize(np.array(pattern, np.uint8), length)
        require_equal(data)


@settings(max_examples=200)
@given(data=st_np.arrays(np.uint8, st.integers(1, 300)))
def test_all_three_agree_for_any_bytes(data: Bytes) -> None:
    require_equal(data)
    assert summed(data) == by_definition(data)


@settings(max_examples=50)
@given(
    words=st.lists(st.sampled_from([0, 1, 0xFFFF, 0xFFFE, 0x00FF, 0xFF00]), min_size=1, max_size=40), odd=st.booleans()
)
def test_sums_that_are_multiples_of_the_modulus_are_those_of_hdf5(words: list[int], odd: bool) -> None:
    data = np.array(words, ">u2").view(np.uint8)
    require_equal(data[: data.size - odd] if data.size > odd else data)


def test_nothing_has_no_checksum() -> None:
    empty = np.zeros(0, np.uint8)
    assert summed(empty) == compiled_checksum.fletcher32(empty) == by_definition(empty) == 0


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_bytes_may_begin_anywhere(skip: int) -> None:
    data = np.random.default_rng(2).integers(0, 256, 10_001).astype(np.uint8)
    assert summed(data[skip:]) == compiled_checksum.fletcher32(data[skip:]) == summed(data[skip:].copy())


def test_every_single_bit_counts() -> None:
    data = np.random.default_rng(3).integers(0, 256, 257).astype(np.uint8)
    good = summed(data)
    for bit in range(8 * data.size):
        changed = data.copy()
        changed[bit // 8] ^= 1 << bit % 8
        assert summed(changed) == compiled_checksum.fletcher32(changed) != good


def test_what_is_compiled_takes_over_after_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(4).integers(0, 256, 1000).astype(np.uint8)
    monkeypatch.setattr(checksum, "_seen", [0])
    monkeypatch.setattr(checksum, "UNCOMPILED_BYTES", 2500)
    monkeypatch.setattr(compiled_checksum, "fletcher32", lambda _: -1)
    assert [checksum.fletcher32(data) for _ in range(4)] == [summed(data)] * 2 + [-1] * 2
