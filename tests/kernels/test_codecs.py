"""Chunks decoded here hold what HDF5 makes of them, whole and in part; datasets read through them, what h5py reads."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from stored import FILTERS, SHAPES, Array, Bytes, ramp, shrinks, stored_chunk

from gaincal.errors import FileError
from gaincal.kernels import codecs, libraries
from gaincal.kernels.codecs import decodable, decode_chunk, verified
from gaincal.kernels.decode import DEFLATE, BadChunk, Pipeline
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.trust import Place

DTYPES = ["u1", "u2", "u4", "f4", "f8"]
BLOCKED = [name for name in FILTERS if name.startswith("bitshuffle")]


def chunk_of(data: Array, options: Mapping[str, Any]) -> tuple[Pipeline, Bytes]:
    with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
        return stored_chunk(file, data, options)


def decoded(pipeline: Pipeline, stored: Bytes, first: int = 0, last: int | None = None) -> Bytes:
    """A chunk between guards."""
    room = np.full(pipeline.chunk_bytes + 128, 0x5A, np.uint8)
    decode_chunk(pipeline, stored, room[64:-64], first, last)
    assert (room[:64] == 0x5A).all()
    assert (room[-64:] == 0x5A).all()
    return room[64:-64]


def noise(dtype: str, shape: tuple[int, ...]) -> Array:
    """Small integers, which shrink, or not much."""
    return np.random.default_rng(7).integers(0, 50, shape).astype(dtype)


# --- whole chunks ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILTERS)
def test_a_chunk_holds_what_was_written(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    data = ramp(dtype, shape)
    for checksum in (False, True):
        if shrinks(name, shape):
            pipeline, stored = chunk_of(data, {**FILTERS[name], "fletcher32": checksum})
            assert pipeline.checksummed is checksum
            assert decodable(pipeline)
            assert decoded(pipeline, stored).tobytes() == data.tobytes()


@pytest.mark.parametrize("elements", [1, 2, 3, 7, 8, 9, 63, 65, 1021, 4095, 4096, 4097, 4104, 8191, 8200, 12_289])
@pytest.mark.parametrize("name", [n for n in FILTERS if "blosc" not in n])
def test_a_chunk_may_have_any_number_of_elements(name: str, elements: int) -> None:
    for dtype in ("u1", "u2", "u4"):
        data = noise(dtype, (elements,))
        pipeline, stored = chunk_of(data, {**FILTERS[name], "fletcher32": True})
        assert decoded(pipeline, stored).tobytes() == data.tobytes()


@pytest.mark.parametrize("elements", [4099, 8191, 100_003])
@pytest.mark.parametrize("name", [n for n in FILTERS if "blosc" in n])
def test_a_chunk_of_blosc_may_have_an_odd_number_of_elements(name: str, elements: int) -> None:
    for dtype in ("u1", "u2", "u4", "f8"):
        data = ramp(dtype, (elements,))
        pipeline, stored = chunk_of(data, FILTERS[name])
        assert decoded(pipeline, stored).tobytes() == data.tobytes()


@pytest.mark.parametrize("typesize", [2, 3, 5, 6, 7, 12, 255])
def test_a_shuffle_leaves_what_is_no_whole_element(typesize: int) -> None:
    """HDF5 shuffles whole elements and keeps the rest where it was; a chunk of ours has whole ones only."""
    whole = np.arange(typesize * 9, dtype=np.uint8)
    rest = np.arange(typesize - 1, dtype=np.uint8) + 200
    planes = np.concatenate([whole.reshape(9, typesize).T.ravel(), rest])
    pipeline = Pipeline(((2, (typesize,)),), planes.size, typesize)
    assert decoded(pipeline, planes).tobytes() == whole.tobytes() + rest.tobytes()


def test_zstandard_needs_no_checksum_of_hdf5() -> None:
    data = ramp("u2", (1, 64, 64))
    pipeline, stored = chunk_of(data, dict(hdf5plugin.Zstd()))
    assert not pipeline.checksummed
    assert decoded(pipeline, stored).tobytes() == data.tobytes()


def test_what_zstandard_cannot_decode_is_refused() -> None:
    """The plug-in of HDF5 leaves its buffer as it was, and nobody is told."""
    pipeline, stored = chunk_of(noise("u2", (1, 64, 64)), dict(hdf5plugin.Zstd()))
    for start in range(12, 200, 17):
        with pytest.raises(BadChunk, match="it cannot be decoded"):
            decoded(pipeline, np.concatenate([stored[:start], np.full(stored.size - start, 0xFF, np.uint8)]))


@pytest.mark.parametrize("name", FILTERS)
def test_another_checksum_is_told(name: str) -> None:
    pipeline, stored = chunk_of(ramp("u2", (1, 16, 64)), {**FILTERS[name], "fletcher32": True})
    for place in (0, stored.size // 2, stored.size - 5, stored.size - 4, stored.size - 1):
        changed = stored.copy()
        changed[place] ^= 0x10
        with pytest.raises(BadChunk, match="its checksum differs"):
            decoded(pipeline, changed)


@pytest.mark.parametrize("size", range(5))
def test_a_checksum_alone_is_no_chunk(size: int) -> None:
    with pytest.raises(BadChunk, match="shorter than its checksum"):
        verified(np.zeros(size, np.uint8))


# --- some of the elements ---------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("elements", [5, 512, 515, 4096, 4101, 8192 + 8, 8192 + 11, 12_288 - 3])
@pytest.mark.parametrize("name", BLOCKED)
def test_the_elements_asked_for_are_decoded(name: str, elements: int, checksum: bool) -> None:
    """In one block, across blocks, up to the end, and among those at the end that fill no eight."""
    data = noise("u2", (elements,))
    pipeline, stored = chunk_of(data, {**FILTERS[name], "fletcher32": checksum})
    edges = sorted({0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, elements - 9, elements - 1, elements})
    edges = [e for e in edges if 0 <= e <= elements]
    for first in edges[:-1]:
        for last in [e for e in edges if e > first]:
            found = decoded(pipeline, stored, first, last).view("u2")
            np.testing.assert_array_equal(found[first:last], data[first:last])


def test_blocks_that_are_not_asked_for_are_not_decoded() -> None:
    data = noise("u2", (1, 64 * 100))
    pipeline, stored = chunk_of(data, FILTERS["bitshuffle lz4, small blocks"])
    assert (decoded(pipeline, stored, 640, 704)[:1280] == 0x5A).all()
    assert (decoded(pipeline, stored, 640, 704)[1408:] == 0x5A).all()


@pytest.mark.parametrize("name", [n for n in FILTERS if n not in BLOCKED])
def test_other_chunks_give_the_elements_asked_for_too(name: str) -> None:
    data = ramp("u4", (1, 1000))
    pipeline, stored = chunk_of(data, FILTERS[name])
    np.testing.assert_array_equal(decoded(pipeline, stored, 17, 903).view("u4")[17:903], data[0, 17:903])


# --- deflate ------------------------------------------------------------------------------------


@pytest.fixture(params=["libdeflate", "zlib"])
def inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(codecs, "_libdeflate", lambda: None)
    elif codecs._libdeflate() is None:
        pytest.skip("imagecodecs, which brings libdeflate, is not installed")


@pytest.mark.usefixtures("inflater")
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_deflate_of_any_level_is_inflated(level: int) -> None:
    data = noise("u1", (5000,))
    stored = np.frombuffer(zlib.compress(data.tobytes(), level), np.uint8)
    assert decoded(Pipeline(((DEFLATE, (level,)),), 5000, 1), stored).tobytes() == data.tobytes()


@pytest.mark.usefixtures("inflater")
@pytest.mark.parametrize("stored", [
    zlib.compress(bytes(1023)), zlib.compress(bytes(1025)), zlib.compress(bytes(1 << 22)), zlib.compress(b""),
    zlib.compress(bytes(1024))[:-1], zlib.compress(bytes(1024))[:-4], zlib.compress(bytes(1024)) + b"x",
    zlib.compress(bytes(1024))[:-1] + b"\xff", zlib.compress(bytes(1024))[2:], b"junk", b"x", b"",
])  # fmt: skip
def test_deflate_gives_exactly_the_chunk(stored: bytes) -> None:
    with pytest.raises(BadChunk):
        decoded(Pipeline(((DEFLATE, (6,)),), 1024, 2), np.frombuffer(stored, np.uint8))


# --- datasets -----------------------------------------------------------------------------------


@pytest.fixture(params=["libraries", "HDF5"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Chunks decoded by the libraries, or by HDF5 where there are none."""
    if request.param == "HDF5":
        without_libraries(monkeypatch)
    yield request.param
    monkeypatch.undo()
    forget_libraries()


def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_library", lambda _: None)
    forget_libraries()


def forget_libraries() -> None:
    libraries.function.cache_clear()
    libraries.lz4_decoder.cache_clear()


def dataset_of(file: h5py.File, path: str = "x") -> PlainDataset:
    return PlainDataset(Place(Path(file.filename), path, file[path]))


def boxes(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All, a frame, and some places in between."""
    rng = np.random.default_rng(3)
    yield (0,) * len(shape), shape
    yield (shape[0] - 1, *(0,) * (len(shape) - 1)), (1, *shape[1:])
    for _ in range(6):
        start = tuple(int(rng.integers(n)) for n in shape)
        yield start, tuple(int(rng.integers(1, n - s + 1)) for n, s in zip(shape, start, strict=True))


def require_as_h5py(dataset: PlainDataset, data: Array) -> None:
    for start, count in boxes(data.shape):
        here = tuple(slice(s, s + n) for s, n in zip(start, count, strict=True))
        for threads in (1, 3):
            out, missing = np.full(count, 99, data.dtype), np.zeros(count, bool)
            dataset.read((start, count), out, missing, threads)
            np.testing.assert_array_equal(out, dataset.dataset[here])
            np.testing.assert_array_equal(out, data[here])
            assert not missing.any()
    np.testing.assert_array_equal(dataset.read_all(), data)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">u4", ">f4", "u1", "<f8"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_dataset_is_read_as_h5py_reads_it(name: str, dtype: str, tmp_path: Path) -> None:
    data = ramp(dtype.lstrip("<>"), (5, 33, 41))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data.astype(dtype), chunks=(2, 20, 41), **{**FILTERS[name], "fletcher32": True})
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["x"].dtype == np.dtype(dtype)
        require_as_h5py(dataset_of(file), data)


@pytest.mark.parametrize("name", ["none", "bitshuffle lz4", "zstd", "gzip, shuffle"])
@pytest.mark.parametrize("size", [512, 1 << 20])
def test_a_file_behind_a_user_block_is_read(name: str, size: int, tmp_path: Path) -> None:
    data = ramp("u2", (5, 33, 41))
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=size) as file:
        file.create_dataset("x", data=data, chunks=(1, 33, 41), **{**FILTERS[name], "fletcher32": True})
    with (tmp_path / "x.h5").open("r+b") as raw:
        raw.write(b"\xff" * size)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.userblock_size == size
        require_as_h5py(dataset_of(file), data)


@pytest.mark.parametrize("driver", ["stdio", "core", "sec2"])
def test_a_file_of_another_driver_is_read(driver: str, tmp_path: Path) -> None:
    data = ramp("u2", (5, 33, 41))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 33, 41), **FILTERS["bitshuffle lz4"])
    with h5py.File(tmp_path / "x.h5", driver=driver) as file:
        require_as_h5py(dataset_of(file), data)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["none", "bitshuffle lz4", "bitshuffle zstd", "gzip", "blosc lz4"])
def test_chunks_may_be_larger_than_the_dataset(name: str, tmp_path: Path) -> None:
    data = ramp("u2", (3, 20, 30))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = {"chunks": (4, 32, 64), "maxshape": (None,) * 3, **FILTERS[name]}
        file.create_dataset("x", data=data, **options)
    with h5py.File(tmp_path / "x.h5") as file:
        require_as_h5py(dataset_of(file), data)


@pytest.mark.usefixtures("way")
def test_what_was_never_written_is_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", (4, 8, 8), "u2", chunks=(1, 8, 4), fillvalue=7, **FILTERS["bitshuffle lz4"])
        dataset[1], dataset[3, :, 4:] = 5, 6
    with h5py.File(tmp_path / "x.h5") as file:
        out, missing = np.full((4, 8, 8), 9, np.uint16), np.zeros((4, 8, 8), bool)
        dataset_of(file).read(((0, 0, 0), (4, 8, 8)), out, missing, 2)
    wanted = np.zeros((4, 8, 8), np.uint16)
    wanted[1], wanted[3, :, 4:] = 5, 6
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(missing, wanted == 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["none", "bitshuffle lz4", "zstd", "gzip", "blosc lz4", "lz4"])
def test_a_wrong_checksum_names_the_chunk(name: str, threads: int, tmp_path: Path) -> None:
    data = ramp("u2", (5, 33, 41))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 33, 41), **{**FILTERS[name], "fletcher32": True})
        stored = bytearray(file["x"].id.read_direct_chunk((3, 0, 0))[1])
        stored[-1] ^= 1
        file["x"].id.write_direct_chunk((3, 0, 0), bytes(stored))
    with h5py.File(tmp_path / "x.h5") as file:
        out, missing = np.empty(data.shape, np.uint16), np.zeros(data.shape, bool)
        with pytest.raises(FileError, match=r"x\.h5::/?x chunk \(3, 0, 0\): is damaged: .*its checksum differs"):
            dataset_of(file).read(((0, 0, 0), data.shape), out, missing, threads)
        dataset_of(file).read(((4, 0, 0), (1, 33, 41)), out[4:], missing[4:], threads)
        np.testing.assert_array_equal(out[4], data[4])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_ends_within_a_chunk_names_it(threads: int, tmp_path: Path) -> None:
    """The file was cut after it had been opened: HDF5 itself refuses one that is shorter than it says."""
    data = noise("u2", (6, 64, 64))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 64, 64))
    with h5py.File(tmp_path / "x.h5") as file:
        dataset = dataset_of(file)
        place = file["x"].id.get_chunk_info_by_coord((4, 0, 0)).byte_offset
        with (tmp_path / "x.h5").open("r+b") as raw:
            raw.truncate(place + 100)
        out, missing = np.empty(data.shape, np.uint16), np.zeros(data.shape, bool)
        with pytest.raises(FileError, match=r"chunk \(4, 0, 0\): is damaged: the file ends within it"):
            dataset.read(((0, 0, 0), data.shape), out, missing, threads)
        dataset.read(((0, 0, 0), (4, 64, 64)), out[:4], missing[:4], threads)
        np.testing.assert_array_equal(out[:4], data[:4])


def test_words_are_read_after_their_file_was_closed_only_by_who_holds_them(tmp_path: Path) -> None:
    """The descriptor is our own, so closing somebody else's file leaves ours."""
    data = noise("u2", (6, 64, 64))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 64, 64), **FILTERS["bitshuffle lz4"])
    ours, other = h5py.File(tmp_path / "x.h5"), h5py.File(tmp_path / "x.h5")
    dataset = dataset_of(ours)
    other.close()
    require_as_h5py(dataset, data)
    ours.close()


# --- without the libraries ------------------------------------------------------------------------


def test_without_libraries_nothing_but_deflate_and_plain_chunks_is_decoded_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_libraries(monkeypatch)
    try:
        for name, options in FILTERS.items():
            pipeline, _ = chunk_of(ramp("u2", (1, 16, 64)), options)
            assert decodable(pipeline) is (name in ("none", "gzip", "shuffle", "gzip, shuffle")), name
        assert libraries.lz4_decoder() is None
    finally:
        monkeypatch.undo()
        forget_libraries()


def test_without_libraries_zstandard_needs_a_checksum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = ramp("u2", (2, 33, 41))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(1, 33, 41), **dict(hdf5plugin.Zstd()))
    without_libraries(monkeypatch)
    try:
        with h5py.File(tmp_path / "x.h5") as file, pytest.raises(FileError, match="Zstandard"):
            dataset_of(file).read_all()
    finally:
        monkeypatch.undo()
        forget_libraries()


def test_the_libraries_are_there() -> None:
    """Those of hdf5plugin export what is called here; without them everything is slow, and nothing would tell."""
    assert all(libraries.function(name) is not None for name in libraries._SIGNATURES)
    address = libraries.lz4_decoder()
    assert address is not None
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    room = ctypes.create_string_buffer(8)
    assert kind(address)(b"\x50hello", room, 6, 8) == 5
    assert room.raw[:5] == b"hello"
