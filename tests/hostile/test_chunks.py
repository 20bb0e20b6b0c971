"""No decoder sees a chunk that could make it leave its buffers, and no checksum is passed over."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from conftest import few

from hostile.harness import (
    CALIBRATION,
    FRAME,
    FRAMES,
    SHAPE,
    WORDS,
    Case,
    Edit,
    Gone,
    Refused,
    Right,
    Run,
    Worker,
    X,
    Y,
    commanded_once,
    endings,
    probe,
    put,
    put_words,
    run_case,
    words,
)

BAD = Refused("FileError", "bad-chunk", reading=True)
SIZE = 2 * FRAME
PIPELINES: dict[str, Mapping[str, Any]] = {
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle(nelems=128, cname="lz4")),
    "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(nelems=128, cname="zstd")),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "lz4": dict(hdf5plugin.LZ4(nbytes=256)),
    "zstd": {**dict(hdf5plugin.Zstd()), "fletcher32": True},
    "blosc-lz4": dict(hdf5plugin.Blosc(cname="lz4")),
    "blosc-zstd": dict(hdf5plugin.Blosc(cname="zstd")),
    "blosc": dict(hdf5plugin.Blosc(cname="blosclz")),
    "gzip": {"compression": "gzip"},
    "gzip-shuffle": {"compression": "gzip", "shuffle": True},
    "shuffle": {"shuffle": True},
    "none": {},
}


def chunked(run: Run, options: Mapping[str, Any]) -> None:
    put_words(run.master, words(), chunks=(1, Y, X), **options)


def rewrite(run: Run, change: Callable[[bytes], bytes], mask: int = 0) -> None:
    """Replace a stored chunk."""
    with h5py.File(run.master, "r+") as file:
        dataset = file[WORDS]
        stored = dataset.id.read_direct_chunk((1, 0, 0))[1]
        dataset.id.write_direct_chunk((1, 0, 0), change(bytes(stored)), filter_mask=mask)


def spliced(name: str, position: int, piece: bytes) -> Callable[[Run], None]:
    """A chunk with some of its bytes replaced."""

    def build(run: Run) -> None:
        chunked(run, PIPELINES[name])
        rewrite(run, lambda chunk: chunk[:position] + piece + chunk[position + len(piece) :])

    build.__name__ = f"{name} with {piece.hex()} at {position}"
    return build


def cut(name: str, length: int) -> Callable[[Run], None]:
    def build(run: Run) -> None:
        chunked(run, PIPELINES[name])
        rewrite(run, lambda chunk: chunk[:length])

    build.__name__ = f"{name} cut to {length} bytes"
    return build


def longer(name: str) -> Callable[[Run], None]:
    def build(run: Run) -> None:
        chunked(run, PIPELINES[name])
        rewrite(run, lambda chunk: chunk + b"\0")

    build.__name__ = f"{name} with a byte too many"
    return build


MALFORMED = [
    *(spliced(name, 0, struct.pack(">Q", total)) for name in ("bitshuffle-lz4", "bitshuffle-zstd", "lz4")
      for total in (0, 16, SIZE - 2, SIZE + 2, 1 << 62)),
    *(spliced(name, 8, struct.pack(">I", block)) for name in ("bitshuffle-lz4", "bitshuffle-zstd")
      for block in (0, 1, 17, 0xFFFFFFF0)),
    *(spliced("lz4", 8, struct.pack(">I", block)) for block in (0, 0xFFFFFFFF)),
    *(spliced(name, 12, struct.pack(">I", length)) for name in ("bitshuffle-lz4", "bitshuffle-zstd", "lz4")
      for length in (0, 0x7FFFFFFF, 0xFFFFFFFF)),
    *(spliced("zstd", 0, piece) for piece in (b"\0", b"\x28\xb5\x2f\xfe", b"\x28\xb5\x2f\xfd\xff")),
    *(spliced("blosc-lz4", at, piece) for at, piece in (
        (0, b"\x03"), (3, b"\0"), (4, bytes(4)), (4, b"\xff" * 4), (8, bytes(4)), (8, b"\xff" * 4), (12, b"\xff" * 4),
        (16, b"\xff" * 4), (16, bytes(4)),
    )),
    *(spliced("gzip", 0, piece) for piece in (b"\0\0", b"\x78\x9c\xff\xff")),
    *(cut(name, length) for name in PIPELINES for length in (1, 11, 20) if name != "none"),
    *(longer(name) for name in PIPELINES if name != "none"),
]  # fmt: skip


def deflate_bomb(run: Run) -> None:
    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(1024)) + squeeze.flush()
    chunked(run, PIPELINES["gzip"])
    rewrite(run, lambda _: bomb)


def deflate_of_two_bytes(run: Run) -> None:
    chunked(run, PIPELINES["gzip"])
    rewrite(run, lambda _: zlib.compress(b"ab"))


def deflate_without_its_end(run: Run) -> None:
    chunked(run, PIPELINES["gzip"])
    rewrite(run, lambda chunk: chunk[:-4])


def checksum_of_a_chunk_of_two_bytes(run: Run) -> None:
    chunked(run, {"fletcher32": True})
    rewrite(run, lambda _: b"ab")


def filters_switched_off(run: Run) -> None:
    chunked(run, PIPELINES["bitshuffle-lz4"])
    rewrite(run, lambda _: words()[1].tobytes(), mask=1)


def checksum_switched_off(run: Run) -> None:
    chunked(run, {"fletcher32": True})
    rewrite(run, lambda _: (words()[1] ^ 1).tobytes(), mask=1)


def every_filter_switched_off(run: Run) -> None:
    chunked(run, {"compression": "gzip", "shuffle": True, "fletcher32": True})
    rewrite(run, lambda _: b"ab", mask=0xFFFFFFFF)


def flipped_bit(run: Run) -> None:
    """One bit of a stored word, in a chunk with a checksum."""
    chunked(run, {"fletcher32": True})
    _flip(run)


def flipped_bit_in_a_compressed_chunk(run: Run) -> None:
    chunked(run, {**PIPELINES["bitshuffle-lz4"], "fletcher32": True})
    _flip(run)


def _flip(run: Run) -> None:
    with h5py.File(run.master) as file:
        info = file[WORDS].id.get_chunk_info_by_coord((1, 0, 0))
    data = bytearray(run.master.read_bytes())
    data[info.byte_offset + info.size // 2] ^= 0x10
    run.master.write_bytes(data)


def flipped_bit_of_a_constant(run: Run) -> None:
    with h5py.File(run.master) as file:
        info = file[f"{CALIBRATION}/gain/gain"].id.get_chunk_info_by_coord((1, 0, 0))
    data = bytearray(run.master.read_bytes())
    data[info.byte_offset + 100] ^= 0x10
    run.master.write_bytes(data)


def unknown_filter(run: Run) -> None:
    """bzip2: its decoder did not end within 40 s on a mutated chunk."""
    chunked(run, dict(hdf5plugin.BZip2()))


def filter_of_hdf5_that_is_not_allowed(run: Run) -> None:
    chunked(run, {"compression": "lzf"})


def scale_offset(run: Run) -> None:
    chunked(run, {"scaleoffset": 0})


def blosc2(run: Run) -> None:
    chunked(run, dict(hdf5plugin.Blosc2()) if hasattr(hdf5plugin, "Blosc2") else {"compression": "lzf"})


def filter_parameters(run: Run, options: Mapping[str, Any], old: bytes, new: bytes) -> None:
    """Change the parameters of a filter as they are stored."""
    with h5py.File(run.home / "source.h5", "w", libver="earliest") as file:
        file.create_dataset("x", data=words(), chunks=(1, Y, X), **options)
    data = (run.home / "source.h5").read_bytes()
    assert data.count(old) == 1
    (run.home / "source.h5").write_bytes(data.replace(old, new))
    put(run.master, lambda group: group.__setitem__("data", h5py.ExternalLink("source.h5", "x")))


def bitshuffle_for_no_bytes(run: Run) -> None:
    """The element size that the filter is told is 0: its decoder would divide by it."""
    old, new = (struct.pack("<5I", 0, 5, n, 128, 2)[8:] for n in (2, 0))
    filter_parameters(run, PIPELINES["bitshuffle-lz4"], old, new)


def bitshuffle_for_wider_elements(run: Run) -> None:
    old, new = (struct.pack("<5I", 0, 5, n, 128, 2)[8:] for n in (2, 4))
    filter_parameters(run, PIPELINES["bitshuffle-lz4"], old, new)


def bitshuffle_of_an_unknown_compressor(run: Run) -> None:
    old, new = (struct.pack("<5I", 0, 5, 2, 128, n)[8:] for n in (2, 9))
    filter_parameters(run, PIPELINES["bitshuffle-lz4"], old, new)


def never_written_frames(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        dataset = group.create_dataset("data", SHAPE, "u2", chunks=(1, Y, X), fillvalue=7)
        for frame in (0, 1, 3):
            dataset[frame] = words()[frame]

    put(run.master, make)


def never_written_parts_of_frames(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        dataset = group.create_dataset("data", SHAPE, "u2", chunks=(4, 5, 7), **PIPELINES["gzip"])
        for place in dataset.iter_chunks():
            if place[2].start != 7:
                dataset[place] = words()[place]

    put(run.master, make)


def never_written_at_all(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", SHAPE, "u2"))


def never_written_at_all_in_chunks(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", SHAPE, "u2", chunks=(1, Y, X)))


def grown_after_writing(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        dataset = group.create_dataset("data", data=words()[:2], chunks=(1, Y, X), maxshape=(None, Y, X))
        dataset.resize(FRAMES, axis=0)

    put(run.master, make)


def chunks_larger_than_the_frames(run: Run) -> None:
    put_words(run.master, words(), chunks=(4, 20, 40), maxshape=(None, None, None), **PIPELINES["gzip-shuffle"])


def compact(run: Run) -> None:
    """Words within the header of their dataset, which is too small for them all but large enough for a frame."""

    def make(group: h5py.Group) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        made = h5py.h5d.create(group.id, b"data", h5py.h5t.STD_U16LE, h5py.h5s.create_simple(SHAPE), dcpl=plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, words())

    put(run.master, make)


def huge_frames(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", (100_000,) * 3, "u2"))


def huge_frames_in_chunks(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        dataset = group.create_dataset("data", (100_000,) * 3, "u2", chunks=(1, 1000, 1000), compression="gzip")
        dataset[0, :1000, :1000] = 1

    put(run.master, make)


def huge_number_of_frames(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", (10**12, Y, X), "u2", chunks=(1, Y, X)))


def huge_chunk_in_a_small_file(run: Run) -> None:
    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(257)) + squeeze.flush()
    options = {"chunks": (1, 257 * 1024, 512), "maxshape": (None, None, None), "compression": "gzip"}

    def make(group: h5py.Group) -> None:
        group.create_dataset("data", SHAPE, "u2", **options).id.write_direct_chunk((0, 0, 0), bomb)

    put(run.master, make)


CASES = [
    *(Case(build, BAD) for build in (
        deflate_bomb,
        deflate_of_two_bytes,
        deflate_without_its_end,
        checksum_of_a_chunk_of_two_bytes,
    )),
    *(Case(build, Refused("FileError", "filter-mask", reading=True)) for build in (
        filters_switched_off,
        checksum_switched_off,
        every_filter_switched_off,
    )),
    *(Case(build, BAD) for build in (
        flipped_bit,
        flipped_bit_in_a_compressed_chunk,
    )),
    Case(flipped_bit_of_a_constant, Refused("FileError", "bad-chunk")),
    *(Case(build, Refused("FileError", "odd-filter")) for build in (
        unknown_filter,
        filter_of_hdf5_that_is_not_allowed,
        scale_offset,
        blosc2,
        bitshuffle_for_no_bytes,
        bitshuffle_for_wider_elements,
        bitshuffle_of_an_unknown_compressor,
    )),
    Case(never_written_frames, Gone(3 * FRAME)),
    Case(never_written_parts_of_frames, Gone(FRAMES * Y * 7)),
    Case(never_written_at_all, Gone(FRAMES * FRAME)),
    Case(never_written_at_all_in_chunks, Gone(FRAMES * FRAME)),
    Case(grown_after_writing, Gone(4 * FRAME)),
    Case(chunks_larger_than_the_frames, Right()),
    Case(compact, Right()),
    *(Case(build, Refused("TrustError", "over-budget")) for build in (
        huge_frames,
        huge_frames_in_chunks,
        huge_number_of_frames,
        huge_chunk_in_a_small_file,
    )),
]  # fmt: skip


@pytest.mark.parametrize("case", commanded_once(CASES), ids=str)
def test_damaged_chunks_are_named_and_missing_ones_flagged(
    case: Case, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run_case(worker, unharmed, tmp_path, case)


@pytest.mark.parametrize("build", few(MALFORMED, 5))
def test_malformed_chunks_reach_no_decoder(
    build: Callable[[Run], None], worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run_case(worker, unharmed, tmp_path, Case(build, BAD, command_line=False))


@pytest.mark.parametrize("name", ["gzip", "zstd", "bitshuffle-lz4", "blosc-zstd"])
def test_what_a_decoder_cannot_decode_is_never_delivered(
    name: str, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    """A chunk with a good header and junk inside: no pixels may come from memory that nobody wrote."""
    run = unharmed.copy(tmp_path)
    spliced(name, 60, b"\xff" * 40)(run)
    answer = probe(worker, run, run.master, command_line=False)
    assert answer["read"].get("error") == "FileError", answer["read"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_allowed_filter_is_read(name: str, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    case = Case(lambda run: chunked(run, PIPELINES[name]), Right(), command_line=False)
    run_case(worker, unharmed, tmp_path, case)


def chunk_edits(run: Run, count: int, seed: int) -> list[Edit]:
    """Seeded damage to stored chunks: half of it to the headers, one to three bytes at a time."""
    random = np.random.default_rng(seed)
    with h5py.File(run.master) as file:
        stored = [file[WORDS].id.get_chunk_info_by_coord((k, 0, 0)) for k in range(FRAMES)]
    edits: list[Edit] = []
    for number in range(count):
        chunk = stored[random.integers(FRAMES)]
        reach = min(32, chunk.size) if number % 2 else chunk.size
        offsets = random.choice(reach, min(reach, int(random.integers(1, 4))), replace=False)
        edits.append([(int(chunk.byte_offset + o), int(random.integers(1, 256))) for o in offsets])
    return edits


@pytest.mark.parametrize("name", PIPELINES)
def test_mutated_chunks_never_crash(name: str, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    chunked(run, PIPELINES[name])
    found = Counter(end for end, _ in endings(worker, run, chunk_edits(run, 10, 5)))
    assert set(found) <= {"error", "finding", "same", "silent"}, found


@pytest.mark.parametrize("name", PIPELINES)
def test_mutated_chunks_with_a_checksum_are_errors(name: str, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    chunked(run, {**PIPELINES[name], "fletcher32": True})
    found = Counter(end for end, _ in endings(worker, run, chunk_edits(run, 5, 6)))
    assert set(found) == {"error"}, found
