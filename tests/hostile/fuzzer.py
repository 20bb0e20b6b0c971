"""A process that decodes damaged chunks, so that a crash of a library is an answer and not the end of the tests.

``python -m hostile.fuzzer PIPELINE COUNT SEED FIRST PROGRESS`` prints one line of JSON.  Every chunk ends at a page
that nobody may touch, and so does the room that it is decoded to: who reads or writes too far ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from stored import Array, Bytes, stored_chunk

from gaincal.kernels import pipeline as kernel_pipeline
from gaincal.kernels.blocks import Plan
from gaincal.kernels.checksum import fletcher32
from gaincal.kernels.codecs import decode_chunk
from gaincal.kernels.decode import BITSHUFFLE, BLOSC, CHECKSUM_BYTES, DEFLATE, LZ4, ZSTD, BadChunk, Pipeline
from gaincal.kernels.libraries import plugins
from gaincal.kernels.packed import BLOCK, Packed
from gaincal.kernels.pipeline import Results
from gaincal.kernels.prepared import Prepared

hdf5plugin = plugins()

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "shuffle": {"shuffle": True},
    "gzip": {"compression": "gzip"},
    "gzip-shuffle": {"compression": "gzip", "shuffle": True},
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle(nelems=BLOCK, cname="lz4")),
    "bitshuffle-lz4-small": dict(hdf5plugin.Bitshuffle(nelems=256, cname="lz4")),
    "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4-small": dict(hdf5plugin.LZ4(nbytes=512)),
    "zstd": dict(hdf5plugin.Zstd()),
    **{f"blosc-{c}": dict(hdf5plugin.Blosc(cname=c)) for c in ("blosclz", "lz4", "zlib", "zstd")},
    **{f"blosc-shuffle-{k}": dict(hdf5plugin.Blosc(cname="lz4", shuffle=k)) for k in (0, 2)},
}
STREAMED = "bitshuffle-lz4"
"""What the compiled decoder takes, too."""
PATTERNS = (0xA5, 0x5A)
GUARD = 256
SECONDS = 2.0
"""Longer than any damaged chunk may keep a decoder busy; inflating 16 kB takes less than a millisecond."""
EXTREMES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFE, 0x7FFFFFFF)
EXTREMES += (0x80000000, 0x80000001, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
Field = tuple[int, str]


class Room:
    """Bytes that end at a page that nobody may touch, with a pattern in front of them."""

    def __init__(self, size: int) -> None:
        pages = -(-(size + GUARD) // mmap.PAGESIZE) + 1
        self.map = mmap.mmap(-1, pages * mmap.PAGESIZE)
        whole = np.frombuffer(self.map, np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.end = (pages - 1) * mmap.PAGESIZE
        assert protect(whole.ctypes.data + self.end, mmap.PAGESIZE, 0) == 0
        self.bytes = whole[: self.end]

    def hold(self, data: bytes) -> Bytes:
        """A copy of some bytes, at the very end."""
        place = self.bytes[self.end - len(data) :]
        place[...] = np.frombuffer(data, np.uint8)
        return place

    def empty(self, size: int, pattern: int) -> Bytes:
        """Room for so many bytes, at the very end."""
        self.bytes[self.end - size - GUARD :] = pattern
        return self.bytes[self.end - size :]

    def untouched(self, size: int, pattern: int) -> bool:
        """Whether the bytes in front of the room are as they were."""
        return bool((self.bytes[self.end - size - GUARD : self.end - size] == pattern).all())


def samples() -> Iterator[Array]:
    """Arrays of 4 to 16 kB that shrink in different ways, some of an odd number of elements."""
    noise = np.random.default_rng(1)
    yield noise.integers(0, 64, (1, 32, 64)).astype("u2")
    yield (np.arange(8192) % 199).astype("u2").reshape(1, 64, 128)
    yield noise.poisson(0.05, (1, 65, 64)).astype("u2")
    yield np.full((1, 64, 64), 77, "u2")
    yield noise.integers(0, 16, 4099).astype("u1").reshape(1, 4099)
    yield noise.integers(0, 100, (1, 1027)).astype("f4")


def make_chunks(name: str, checksummed: bool) -> list[tuple[Pipeline, bytes, bytes]]:
    """Good chunks: pipeline, as they are stored, decoded."""
    found = []
    with h5py.File("chunks", "w", driver="core", backing_store=False) as file:
        for data in samples():
            with contextlib.suppress(ValueError):  # Blosc gives up on noise
                pipeline, stored = stored_chunk(file, data, {**FILTERS[name], "fletcher32": checksummed})
                found.append((pipeline, stored.tobytes(), data.tobytes()))
    assert len(found) > 2
    return found


def fields(pipeline: Pipeline, chunk: bytes) -> list[Field]:
    """Numbers that the decoder believes: where they lie, and their format."""
    coder = pipeline.coder
    if coder is None:
        return []
    number, parameters = coder
    if number in (BITSHUFFLE, LZ4):
        if number == BITSHUFFLE and len(parameters) < 5:
            return []
        found, position = [(0, ">Q"), (4, ">I"), (8, ">I")], 12
        while position + 4 < len(chunk):
            found.append((position, ">I"))
            position += 4 + struct.unpack_from(">I", chunk, position)[0]
        return found
    if number == BLOSC:
        starts = [(16 + 4 * k, "<I") for k in range(min(8, (len(chunk) - 16) // 4))]
        first = struct.unpack_from("<I", chunk, 16)[0]
        streams = [(first, "<I"), (first + 4, "<I"), (first + 4, "<H")] if first + 8 < len(chunk) else []
        return [*((k, "<B") for k in range(4)), (4, "<I"), (8, "<I"), (12, "<I"), *starts, *streams]
    if number == ZSTD:
        return [*((k, "<B") for k in range(18)), (4, "<I"), (5, "<I"), (5, "<Q")]
    assert number == DEFLATE
    return [*((k, "<B") for k in range(24)), (len(chunk) - 4, "<I")]


class Mutator:
    """Damages chunks."""

    def __init__(self, seed: str, chunks: list[tuple[Pipeline, bytes, bytes]]) -> None:
        self.random = random.Random(seed)
        self.others = [stored for _, stored, _ in chunks]
        self.fields = [fields(pipeline, stored) for pipeline, stored, _ in chunks]
        self.kinds = [self._flip, self._flip_bit, self._put, self._put, self._put, self._splice, self._cut, self._fill]
        self.kinds += [self._insert, self._remove]

    def damage(self, which: int) -> bytes:
        self.which, chunk = which, bytearray(self.others[which])
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            self.random.choice(self.kinds)(chunk)
        return bytes(chunk)

    def _place(self, chunk: bytearray) -> int:
        reach = len(chunk) if self.random.random() < 0.6 else min(64, len(chunk))
        return self.random.randrange(reach) if reach else 0

    def _flip(self, chunk: bytearray) -> None:
        for _ in range(self.random.choice((1, 2, 8)) if chunk else 0):
            chunk[self._place(chunk)] = self.random.randrange(256)

    def _flip_bit(self, chunk: bytearray) -> None:
        if chunk:
            chunk[self._place(chunk)] ^= 1 << self.random.randrange(8)

    def _put(self, chunk: bytearray) -> None:
        """A field gets an extreme value, one near its own, or one near the size of the chunk."""
        if not self.fields[self.which]:
            self._fill(chunk)
            return
        place, kind = self.random.choice(self.fields[self.which])
        width = struct.calcsize(kind)
        if place < 0 or place + width > len(chunk):
            return
        own = struct.unpack_from(kind, chunk, place)[0]
        near = self.random.choice((own, own, len(chunk), len(chunk) - place, 2 * own, own // 2))
        near += self.random.choice((-64, -8, -4, -1, 0, 1, 4, 8, 64))
        number = self.random.choice((self.random.choice(EXTREMES), near))
        struct.pack_into(kind, chunk, place, number % (1 << 8 * width))

    def _splice(self, chunk: bytearray) -> None:
        """A piece of a chunk, of this one or another."""
        other = self.random.choice((self.others[self.which], self.random.choice(self.others)))
        start, place = self.random.randrange(len(other)), self._place(chunk)
        piece = other[start : start + self.random.choice((1, 4, 16, 64, 1024))]
        chunk[place : place + (len(piece) if self.random.random() < 0.8 else 0)] = piece

    def _cut(self, chunk: bytearray) -> None:
        if self.random.random() < 0.5:
            del chunk[self.random.choice((self._place(chunk), len(chunk) - 1, len(chunk) - 4, len(chunk) - 5)) :]
        else:
            chunk += self.random.randbytes(self.random.choice((1, 4, 8, 4096)))

    def _fill(self, chunk: bytearray) -> None:
        place, size = self._place(chunk), min(self.random.choice((1, 4, 16, 256)), len(chunk))
        size = min(size, len(chunk) - place)
        chunk[place : place + size] = self.random.choice((b"\0", b"\xff", b"\x80", b"\x0f", b"\xf0")) * size

    def _insert(self, chunk: bytearray) -> None:
        place = self._place(chunk)
        chunk[place:place] = self.random.randbytes(self.random.choice((1, 2, 4, 16)))

    def _remove(self, chunk: bytearray) -> None:
        place = self._place(chunk)
        del chunk[place : place + self.random.choice((1, 2, 4, 16))]


class Decoder:
    """Decodes chunks between guards, and says what broke a law."""

    def __init__(self, streamed: bool) -> None:
        self.stored, self.out = Room(1 << 16), Room(1 << 15)
        self.faults: list[str] = []
        self.streamed = streamed
        if streamed:
            self.table, self.results, self.scratch = Room(1 << 12), Room(1 << 15), Room(1 << 19)
            self._prepare()

    def _prepare(self) -> None:
        from gaincal.formulas.catalog import source
        from gaincal.formulas.formula import Formula
        from gaincal.formulas.program import program_for_step

        self.program = program_for_step(Formula.from_toml(source("jungfrau")), {}, "raw", "uint16")
        real = kernel_pipeline.empty_aligned

        def guarded(shape: tuple[int, ...], dtype: Any) -> Array:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if size == 0 or shape[0] == 1 or len(shape) > 1:
                return real(shape, dtype)
            assert size % 64 == 0
            return self.scratch.empty(size, PATTERNS[0]).view(dtype).reshape(shape)

        kernel_pipeline.empty_aligned = guarded

    def decode(self, pipeline: Pipeline, stored: Bytes, part: tuple[int, int | None]) -> bytes | None:
        """What a chunk decodes to; None if it is refused."""
        size, found = pipeline.chunk_bytes, []
        last = size // pipeline.itemsize if part[1] is None else part[1]
        wanted = slice(part[0] * pipeline.itemsize, last * pipeline.itemsize)
        for pattern in PATTERNS:
            out = self.out.empty(size, pattern)
            try:
                decode_chunk(pipeline, stored, out, *part)
            except BadChunk:
                found.append(None)
            else:
                found.append(out[wanted].tobytes())
            if not self.out.untouched(size, pattern):
                self.faults.append("wrote in front of its room")
            if found[0] is None:
                break
        if found[0] is not None and found[0] != found[1]:
            self.faults.append("left bytes as they were")
        return found[0]

    def stream(self, pipeline: Pipeline, stored: Bytes) -> bytes | None:
        """The same with compiled code; None if it is refused."""
        from stored import index_chunk

        elements = pipeline.chunk_bytes // pipeline.itemsize
        tiles = -(-elements // BLOCK)
        blocks = self.table.empty(16 * tiles, 0).view(np.int64).reshape(tiles, 2)
        if not index_chunk(stored, pipeline.checksummed, elements, blocks):
            return None
        if not self.table.untouched(16 * tiles, 0):
            self.faults.append("wrote in front of the table of blocks")

        def complain(frame: int, tile: int) -> None:
            assert (frame, tile) < (1, tiles)
            raise BadChunk("it cannot be decoded")

        out = self.results.empty(pipeline.chunk_bytes, PATTERNS[0]).view(np.uint16).reshape(1, elements)
        packed = Packed(blocks.reshape(1, tiles, 2), elements, [stored], complain)
        try:
            plan = Plan.of(Prepared(self.program, {}, elements), len(out))
            kernel_pipeline.begin(plan, {"raw": packed}, Results(out), 1).finish()
        except BadChunk:
            return None
        finally:
            if not self.results.untouched(pipeline.chunk_bytes, PATTERNS[0]):
                self.faults.append("compiled code wrote in front of its room")
        return out.tobytes()


def streamable(pipeline: Pipeline) -> bool:
    """Whether compiled code would be given such chunks."""
    return pipeline.itemsize == 2 and pipeline.chunk_bytes // 2 % 64 == 0


def sealed(chunk: bytes) -> bytes:
    """A chunk with the right checksum behind it."""
    body = np.frombuffer(chunk[:-CHECKSUM_BYTES], np.uint8)
    return body.tobytes() + fletcher32(body).to_bytes(CHECKSUM_BYTES, "little")


def same_checksum(chunk: bytes) -> bool:
    """Whether a checksum fits: sums modulo 65535 cannot tell 0x0000 from 0xFFFF."""
    return len(chunk) > CHECKSUM_BYTES and sealed(chunk) == chunk


class Fuzz:
    """Damages chunks of a pipeline, decodes them, and counts how that ends."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed, self.decoder = name, seed, Decoder(name == STREAMED)
        bare, checked = make_chunks(name, False), make_chunks(name, True)
        self.kinds = (("bare", bare), ("bare", bare), ("stale", checked), ("sealed", checked))
        self.ends: Counter[str] = Counter()
        for pipeline, stored, good in (*bare, *checked):
            found = self._decoded(pipeline, stored, (0, None))
            assert found == good, "a good chunk is not read"
        assert not self.decoder.faults
        self.ends.clear()

    def run(self, number: int) -> tuple[list[str], float]:
        """What broke a law with the chunk of this number, and how long it took."""
        kind, known = self.kinds[number % 4]
        mutator = Mutator(f"{self.name} {self.seed} {number}", known)
        which = mutator.random.randrange(len(known))
        pipeline, _, good = known[which]
        chunk = mutator.damage(which)
        if kind == "sealed" and len(chunk) > CHECKSUM_BYTES:
            chunk = sealed(chunk)
        first, last = 0, pipeline.chunk_bytes // pipeline.itemsize
        if mutator.random.random() < 0.3:
            first = mutator.random.randrange(last)
            last = mutator.random.randrange(first, last) + 1
        self.decoder.faults = []
        began = time.process_time()
        try:
            found = self._decoded(pipeline, chunk, (first, last))
        except Exception as error:
            self.decoder.faults.append(f"{type(error).__name__}: {error}")
            found = None
        seconds = time.process_time() - began
        good = good[first * pipeline.itemsize : last * pipeline.itemsize]
        end = "refused" if found is None else "same" if found == good else "other values"
        if end == "other values" and kind == "stale":
            if same_checksum(chunk):
                kind = "collided"
            else:
                self.decoder.faults.append("damage passed its checksum")
        self.ends[f"{kind}, {end}"] += 1
        return self.decoder.faults, seconds

    def _decoded(self, pipeline: Pipeline, chunk: bytes, part: tuple[int, int | None]) -> bytes | None:
        stored = self.decoder.stored.hold(chunk)
        found = self.decoder.decode(pipeline, stored, part)
        if not (self.decoder.streamed and streamable(pipeline)):
            return found
        whole, twin = self.decoder.decode(pipeline, stored, (0, None)), self.decoder.stream(pipeline, stored)
        other_blocks = chunk[8:12] != struct.pack(">I", 2 * BLOCK)
        if twin != whole and not (twin is None and other_blocks):
            self.decoder.faults.append("compiled code decodes it differently")
        self.ends["compiled code refused" if twin is None else "compiled code accepted"] += 1
        return found


def fuzz(name: str, count: int, seed: int, first: int, progress: Path) -> dict[str, Any]:
    """Damage chunks from number `first` on, noting each number before its chunk is decoded."""
    fuzzed, faults, slowest = Fuzz(name, seed), [], 0.0
    with progress.open("w") as note:
        for number in range(first, count):
            note.seek(0)
            note.write(f"{number:9d}")
            note.flush()
            found, seconds = fuzzed.run(number)
            faults += [f"{number}: {fault}" for fault in found]
            slowest = max(slowest, seconds)
    return {"ends": fuzzed.ends, "faults": faults, "slowest": slowest}


def main() -> None:
    name, count, seed, first, progress = sys.argv[1:]
    print(json.dumps(fuzz(name, int(count), int(seed), int(first), Path(progress))))


if __name__ == "__main__":
    main()
