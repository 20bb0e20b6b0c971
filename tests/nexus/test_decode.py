"""What may reach a decoder: chunks of allowed filters, as their writers make them, and no others."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from stored import FILTERS, SHAPES, shrinks, written

from gaincal.kernels.decode import (
    BITSHUFFLE,
    BLOSC,
    DEFLATE,
    FLETCHER32,
    LZ4,
    SHUFFLE,
    ZSTD,
    BadChunk,
    Pipeline,
    check_chunk,
    check_pipeline,
)


def refused(pipeline: Pipeline, stored: bytes) -> None:
    with pytest.raises(BadChunk):
        check_chunk(pipeline, stored)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4", "f8"])
@pytest.mark.parametrize("name", FILTERS)
def test_chunks_that_writers_make_pass(name: str, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    if not shrinks(name, shape):
        return
    for extra in ({}, {"fletcher32": True}):
        pipeline, stored = written(tmp_path, {**FILTERS[name], **extra}, dtype, shape)
        check_pipeline(pipeline)
        check_chunk(pipeline, stored)
        assert pipeline.checksummed == ("fletcher32" in FILTERS[name] or bool(extra))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 11, 12, 15, 16, 20])
def test_stumps_are_refused(name: str, length: int, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS[name])
    refused(pipeline, stored[:length])


@pytest.mark.parametrize("name", FILTERS)
def test_chunks_without_their_last_byte_or_with_one_more_are_refused(name: str, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS[name])
    refused(pipeline, stored[:-1])
    refused(pipeline, stored + b"\0")


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [0, 2, 1022, 1026, 1 << 40])
def test_chunks_of_another_decoded_size_are_refused(name: str, size: int, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS[name])
    refused(Pipeline(pipeline.filters, size, pipeline.itemsize), stored)


@pytest.mark.parametrize("length", range(5))
def test_a_chunk_is_longer_than_its_checksum(length: int) -> None:
    refused(Pipeline(((FLETCHER32, ()),), 2, 2), bytes(length))


FIELDS = {
    "bitshuffle lz4": [(0, ">Q"), (8, ">I"), (12, ">I")],
    "bitshuffle zstd": [(0, ">Q"), (8, ">I"), (12, ">I")],
    "bitshuffle lz4, small blocks": [(0, ">Q"), (8, ">I"), (12, ">I")],
    "lz4": [(0, ">Q"), (8, ">I"), (12, ">I")],
    "lz4, small blocks": [(0, ">Q"), (12, ">I")],
    "zstd": [(0, "<I"), (5, "<H")],
    "blosc lz4": [(0, "<B"), (3, "<B"), (4, "<I"), (8, "<I"), (12, "<I"), (16, "<I")],
}


ANY_TYPE_SIZE = ("blosc lz4", 3, "<B", b"\xff")


@pytest.mark.parametrize(
    ("name", "position", "kind", "byte"),
    [c for n, fields in FIELDS.items() for f in fields for b in (b"\0", b"\xff") if (c := (n, *f, b)) != ANY_TYPE_SIZE],
)
def test_every_field_of_a_header_is_checked(name: str, position: int, kind: str, byte: bytes, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS[name])
    piece = byte * struct.calcsize(kind)
    refused(pipeline, stored[:position] + piece + stored[position + len(piece) :])


@pytest.mark.parametrize("block", [1, 7, 15, 17, 8 * 2 + 1, (1 << 24) + 16])
def test_blocks_of_bitshuffle_are_multiples_of_eight_elements(block: int, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS["bitshuffle lz4"])
    refused(pipeline, stored[:8] + struct.pack(">I", block) + stored[12:])


def test_a_truncated_zstandard_frame_is_refused(tmp_path: Path) -> None:
    """The plug-in leaves its buffer as it was, and HDF5 takes that for the pixels."""
    pipeline, stored = written(tmp_path, FILTERS["zstd"])
    for length in range(20, len(stored)):
        refused(pipeline, stored[:length])


@pytest.mark.parametrize("stored", [
    zlib.compress(bytes(1023)), zlib.compress(bytes(1025)), zlib.compress(bytes(1 << 22)), zlib.compress(b""),
    zlib.compress(bytes(1024))[:-1], zlib.compress(bytes(1024)) + b"x", b"junk", b"",
])  # fmt: skip
def test_deflate_gives_exactly_the_chunk(stored: bytes) -> None:
    check_chunk(Pipeline(((DEFLATE, (6,)),), 1024, 2), zlib.compress(bytes(1024)))
    refused(Pipeline(((DEFLATE, (6,)),), 1024, 2), stored)


GOOD = [
    (),
    ((FLETCHER32, ()),),
    ((SHUFFLE, (2,)), (DEFLATE, (6,)), (FLETCHER32, ())),
    ((BITSHUFFLE, (0, 3, 2)), (FLETCHER32, ())),
    ((BITSHUFFLE, (0, 3, 2, 0, 2)),),
    ((BITSHUFFLE, (0, 3, 2, 0, 3)),),
    ((LZ4, ()),),
    ((ZSTD, (3,)), (FLETCHER32, ())),
    ((SHUFFLE, (2,)), (BLOSC, (2, 2, 2, 1024, 5, 1, 1))),
]
BAD = [
    ((4, ()),),
    ((307, (9,)),),
    ((32000, ()),),
    ((32026, ()),),
    ((SHUFFLE, ()),),
    ((SHUFFLE, (4,)),),
    ((SHUFFLE, (0,)),),
    ((BITSHUFFLE, (0, 3)),),
    ((BITSHUFFLE, (0, 3, 0, 0, 2)),),
    ((BITSHUFFLE, (0, 3, 4, 0, 2)),),
    ((BITSHUFFLE, (0, 3, 2, 0, 1)),),
    ((BITSHUFFLE, (0, 3, 2, 0, 4)),),
    ((DEFLATE, (6,)), (SHUFFLE, (2,))),
    ((FLETCHER32, ()), (DEFLATE, (6,))),
    ((FLETCHER32, ()), (FLETCHER32, ())),
    ((DEFLATE, (6,)), (DEFLATE, (6,))),
    ((DEFLATE, (6,)), (ZSTD, ())),
    ((SHUFFLE, (2,)), (SHUFFLE, (2,)), (DEFLATE, (6,))),
]


@pytest.mark.parametrize("filters", GOOD, ids=str)
def test_pipelines_of_allowed_filters_pass(filters: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    check_pipeline(Pipeline(filters, 1024, 2))


@pytest.mark.parametrize("filters", BAD, ids=str)
def test_unknown_odd_and_wrongly_set_filters_are_refused(filters: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    with pytest.raises(BadChunk):
        check_pipeline(Pipeline(filters, 1024, 2))


def test_a_pipeline_is_described_by_name() -> None:
    assert Pipeline((), 8, 2).describe() == "none"
    assert Pipeline(GOOD[2], 8, 2).describe() == "shuffle+gzip+fletcher32"
    assert Pipeline(GOOD[4], 8, 2).describe() == "bitshuffle-LZ4"
    assert Pipeline(((9, ()),), 8, 2).describe() == "filter 9"


@pytest.mark.parametrize("name", FILTERS)
def test_random_bytes_are_an_error_or_pass_but_nothing_else(name: str, tmp_path: Path) -> None:
    pipeline, stored = written(tmp_path, FILTERS[name])
    random = np.random.default_rng(3)
    for _ in range(300):
        edited = bytearray(stored[: random.integers(len(stored) + 1)])
        for position in random.integers(len(edited), size=min(len(edited), 4)) if edited else ():
            edited[position] = random.integers(256)
        try:
            check_chunk(pipeline, bytes(edited))
        except BadChunk:
            continue
