"""Words that are still compressed give the bits of the reference, in whatever form the results are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
from helpers import Array, Flags, bits, declare, oracle, program_of
from stored import index_chunk

from gaincal.formulas.program import MISSING_BIT, Program
from gaincal.kernels import pipeline
from gaincal.kernels.blocks import Plan
from gaincal.kernels.packed import BLOCK, Packed
from gaincal.kernels.pipeline import Results, begin, interpret, streams
from gaincal.kernels.prepared import Prepared
from gaincal.kernels.results import Chunks, Tally
from gaincal.kernels.stream import GROUP

MISSING = np.uint32(1 << MISSING_BIT)
DTYPES = {"float32": None, "int32": -(2**31), "int16": -(2**15)}
Missing = npt.NDArray[np.bool_]
Way = Callable[[Program, Mapping[str, Any], Results], None]


@dataclass
class Outcome:
    """What came of a block, in the form of arrays; None for what was not asked for."""

    value: Array
    flags: Flags | None = None
    tally: Tally | None = None


@cache
def staged(dtype: str = "float32") -> Program:
    """Gain stages in a first words input, a threshold in a second, cells per frame, and a mask."""
    formula = declare(
        {
            "stage": "lookup(t, bits(raw, 14, 2))",
            "x": "(bits(raw, 0, 14) - g[stage]) * h[cell] - where(gate > 40000, 1, 0)",
            "v": "x * 1.5" if dtype == "float32" else "round_half_even(x * 9)",
        },
        inputs={
            "raw": ("frame px", "uint16"),
            "gate": ("frame px", "uint16"),
            "cell": ("frame", "uint16"),
            "m": ("px", "uint32"),
        },
        constants={"g": ("stage px", None), "h": ("cell px", None)},
        tables={"t": [0, 1, -1, 2]},
        flags={"bad": "stage < 0", "ends": "raw == 0x3FFF", "masked": "bits(m, 0, 16) != 0"},
        dtype=dtype,
        fill=DTYPES[dtype],
    )
    return program_of(formula, {"g": ((0, 1, 2),), "h": ((7, 3),)})


@cache
def by_module() -> Program:
    """A memory cell for every frame and module: runs of pixels."""
    formula = declare(
        {"v": "raw - h[cell]"},
        inputs={"raw": ("frame module px", "uint16"), "cell": ("frame module", "uint16")},
        constants={"h": ("cell module px", None)},
        flags={"none": "cell == 9"},
    )
    return program_of(formula, {"h": ((3, 7),)})


def arrays_for(frames: int, pixels: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    codes = np.repeat(rng.integers(0, 4, (frames, pixels // 50 + 1)), 50, axis=1)[:, :pixels]
    raw = (codes << 14 | rng.integers(0, 2**14, (frames, pixels))).astype(np.uint16)
    raw[:, 5] = 0x3FFF
    return {
        "raw": raw,
        "gate": rng.integers(39_000, 41_000, (frames, pixels)).astype(np.uint16),
        "cell": np.array([3, 7, 5])[rng.choice(3, frames, p=[0.45, 0.45, 0.1])].astype(np.uint16),
        "m": (rng.random(pixels) < 0.1).astype(np.uint32),
        "g": rng.normal(0, 100, (3, pixels)).astype(np.float32),
        "h": rng.normal(1, 0.1, (2, pixels)).astype(np.float32),
    }


def packed(words: Array, absent: Mapping[tuple[int, int], bool] | None = None) -> Packed:
    """Words as they are stored, compressed by the library; some of their tiles were never written."""
    frames, pixels = words.shape
    chunks = Chunks(frames, pixels, np.dtype(np.uint16), compressed=True)
    chunks.add(words)
    blocks = np.zeros((frames, -(-pixels // BLOCK), 2), np.int64)
    kept = list(chunks.stored())
    for frame, stored in enumerate(kept):
        assert index_chunk(stored, True, pixels, blocks[frame])
    for place in absent or {}:
        blocks[place] = 0

    def complain(frame: int, tile: int) -> None:
        raise ValueError(f"frame {frame}, tile {tile}")

    return Packed(blocks, pixels, kept, complain)


def plan(program: Program, arrays: Mapping[str, Any], shape: tuple[int, int]) -> Plan:
    """The same maps for all frames."""
    return Plan.of(Prepared.of(program, arrays, shape[1]), shape[0])


def evaluate(
    program: Program, arrays: Mapping[str, Any], results: Results, threads: int, missing: Missing | None
) -> None:
    """Compute a block with compiled code."""
    begin(plan(program, arrays, results.shape), arrays, results, threads, missing).finish()


def compiled(threads: int, missing: Missing | None = None) -> Way:
    return lambda program, arrays, results: evaluate(program, arrays, results, threads, missing)


def by_numpy(missing: Missing | None = None) -> Way:
    return lambda program, arrays, results: interpret(program, arrays, results, missing)


def computed(program: Program, arrays: Mapping[str, Any], shape: tuple[int, int], kind: str, way: Way) -> Outcome:
    """The results of a block, asked for in one of several forms."""
    dtype = np.dtype(program.dtype)
    if kind in ("values", "flags", "counts"):
        value = np.full(shape, 77, dtype)
        flags = np.full(shape, 0xAAAAAAAA, np.uint32) if kind == "flags" else None
        tally = Tally((shape[1],)) if kind == "counts" else None
        way(program, arrays, Results(value, flags if tally is None else tally))
        return Outcome(value, flags, tally)
    chunks = Chunks(*shape, dtype, compressed=kind.startswith("compressed"))
    tally = Tally((shape[1],)) if kind.endswith("counted") else None
    way(program, arrays, Results(chunks, tally))
    return Outcome(read_back(chunks), None, tally)


def read_back(chunks: Chunks, kept: list[Array] | None = None) -> Array:
    """What plain HDF5 reads, which tests the checksum of every chunk."""
    options = dict(hdf5plugin.Bitshuffle(nelems=BLOCK, cname="lz4")) if chunks.compressed else {}
    shape = (chunks.frames, chunks.pixels)
    with h5py.File("chunks", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", shape, chunks.dtype, chunks=(1, shape[1]), fletcher32=True, **options)
        kept = list(chunks.stored()) if kept is None else kept
        assert len(kept) == chunks.frames
        for frame, stored in enumerate(kept):
            dataset.id.write_direct_chunk((frame, 0), stored.tobytes())
        file.flush()
        dataset.id.refresh()  # nothing of it is in HDF5's cache
        values: Array = dataset[()]
    return values


KINDS = ("values", "flags", "counts", "chunks", "chunks, counted", "compressed", "compressed, counted")


def expected(program: Program, arrays: Mapping[str, Array], shape: tuple[int, int], missing: Missing) -> Outcome:
    """The reference, and everything counted from its flags."""
    value, flags = (a.copy() for a in oracle(program, arrays, shape))
    value[missing] = np.nan if program.fill is None else program.fill
    flags[missing] = MISSING
    tally = Tally((shape[1],))
    tally.counts[:] = [np.count_nonzero(flags & np.uint32(1 << bit)) for bit in range(32)]
    tally.always[:] = np.bitwise_and.reduce(flags, axis=0)
    tally.missing_frames = int((flags == MISSING).all(axis=1).sum())
    return Outcome(value, flags, tally)


def require_same(found: Outcome, wanted: Outcome) -> None:
    np.testing.assert_array_equal(bits(found.value), bits(wanted.value))
    if found.flags is not None:
        np.testing.assert_array_equal(found.flags, wanted.flags)
    if found.tally is not None:
        assert wanted.tally is not None
        np.testing.assert_array_equal(found.tally.counts, wanted.tally.counts)
        np.testing.assert_array_equal(found.tally.always, wanted.tally.always)
        assert found.tally.missing_frames == wanted.tally.missing_frames


def spread(tiles: Mapping[tuple[int, int], bool], shape: tuple[int, int]) -> Missing:
    missing = np.zeros(shape, bool)
    for frame, tile in tiles:
        missing[frame, tile * BLOCK : (tile + 1) * BLOCK] = True
    return missing


NOWHERE: dict[tuple[int, int], bool] = {}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form_of_results_holds_the_bits_of_the_reference(dtype: str, kind: str, threads: int) -> None:
    shape = (GROUP + 4, 3 * BLOCK + 64)
    program, arrays = staged(dtype), arrays_for(*shape)
    gone = {(2, 0): True, (17, 3): True, **{(5, tile): True for tile in range(4)}}
    both = {**arrays, "raw": packed(arrays["raw"], gone), "gate": packed(arrays["gate"])}
    wanted = expected(program, arrays, shape, spread(gone, shape))
    assert wanted.tally is not None
    assert wanted.tally.missing_frames == 1
    require_same(computed(program, both, shape, kind, compiled(threads)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_numpys_own_way_holds_them_too(dtype: str, kind: str) -> None:
    shape = (5, BLOCK + 64)
    program, arrays = staged(dtype), arrays_for(*shape, seed=1)
    missing = np.random.default_rng(2).random(shape) < 0.1
    missing[3] = True
    wanted = expected(program, arrays, shape, missing)
    require_same(computed(program, arrays, shape, kind, by_numpy(missing)), wanted)
    require_same(computed(program, arrays, shape, kind, compiled(2, missing)), wanted)


@pytest.mark.parametrize("pixels", [64, 640, BLOCK - 64, BLOCK, 64 * 67, 2 * BLOCK, 5 * BLOCK + 128])
@pytest.mark.parametrize("frames", [1, GROUP, GROUP + 1])
def test_frames_of_any_number_of_tiles_give_the_same_bits(frames: int, pixels: int) -> None:
    program, arrays = staged(), arrays_for(frames, pixels, seed=pixels)
    both = {**arrays, "raw": packed(arrays["raw"]), "gate": packed(arrays["gate"])}
    wanted = expected(program, arrays, (frames, pixels), np.zeros((frames, pixels), bool))
    for kind in ("flags", "compressed, counted"):
        require_same(computed(program, both, (frames, pixels), kind, compiled(2)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", ["raw", "gate"])
def test_one_of_two_inputs_may_be_compressed(plain: str, kind: str) -> None:
    """Words are missing where either input has none: pixels of the one, tiles of the other."""
    shape = (GROUP + 2, BLOCK + 192)
    program, arrays = staged(), arrays_for(*shape, seed=3)
    other, gone = {"raw": "gate", "gate": "raw"}[plain], {(1, 1): True, (4, 0): True, (4, 1): True}
    absent = np.random.default_rng(4).random(shape) < 0.05
    mixed = {**arrays, other: packed(arrays[other], gone)}
    wanted = expected(program, arrays, shape, absent | spread(gone, shape))
    require_same(computed(program, mixed, shape, kind, compiled(2, absent)), wanted)


def test_a_tile_that_both_inputs_lack_is_missing_once() -> None:
    shape = (3, 2 * BLOCK)
    program, arrays = staged(), arrays_for(*shape, seed=5)
    first, second = {(0, 0): True, (1, 0): True}, {(0, 0): True, (1, 1): True}
    both = {**arrays, "raw": packed(arrays["raw"], first), "gate": packed(arrays["gate"], second)}
    wanted = expected(program, arrays, shape, spread({**first, **second}, shape))
    assert wanted.tally is not None
    assert wanted.tally.missing_frames == 1
    for kind in KINDS:
        require_same(computed(program, both, shape, kind, compiled(1)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_words_that_were_read_give_the_same_results(kind: str, threads: int) -> None:
    for shape in ((3, 77), (3, BLOCK + 3), (GROUP + 1, BLOCK + 64)):
        program, arrays = staged("int16"), arrays_for(*shape, seed=6)
        wanted = expected(program, arrays, shape, np.zeros(shape, bool))
        require_same(computed(program, arrays, shape, kind, compiled(threads)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_cell_per_module_belongs_to_the_tiles_of_its_module(kind: str, threads: int) -> None:
    modules, shape = 3, (GROUP + 1, 3 * 2 * BLOCK)
    rng = np.random.default_rng(7)
    arrays = {
        "raw": rng.integers(0, 1 << 16, shape).astype(np.uint16),
        "cell": np.array([3, 7, 9])[rng.integers(0, 3, (shape[0], modules))].astype(np.uint16),
        "h": rng.normal(0, 100, (2, shape[1])).astype(np.float32),
    }
    gone = {(0, 2): True, (0, 3): True, (16, 5): True}
    stored = {**arrays, "raw": packed(arrays["raw"], gone)}
    assert streams(plan(by_module(), arrays, shape), True, Results(np.empty(shape, np.float32)))
    wanted = expected(by_module(), arrays, shape, spread(gone, shape))
    require_same(computed(by_module(), stored, shape, kind, compiled(threads)), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [100, 6144])
def test_modules_that_are_no_whole_tiles_are_not_streamed_and_the_same(kind: str, pixels: int) -> None:
    modules, shape = 3, (4, 3 * pixels)
    rng = np.random.default_rng(8)
    arrays = {
        "raw": rng.integers(0, 1 << 16, shape).astype(np.uint16),
        "cell": np.array([3, 7, 9])[rng.integers(0, 3, (shape[0], modules))].astype(np.uint16),
        "h": rng.normal(0, 100, (2, shape[1])).astype(np.float32),
    }
    assert not streams(plan(by_module(), arrays, shape), False, Results(np.empty(shape, np.float32)))
    wanted = expected(by_module(), arrays, shape, np.zeros(shape, bool))
    require_same(computed(by_module(), arrays, shape, kind, compiled(2)), wanted)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("name", "frame", "tile"), [("raw", 0, 0), ("raw", 17, 1), ("gate", 3, 2), ("gate", 19, 0)])
def test_a_block_that_cannot_be_decoded_is_named(name: str, frame: int, tile: int, threads: int) -> None:
    shape = (GROUP + 4, 2 * BLOCK + 64)
    program, arrays = staged(), arrays_for(*shape, seed=9)
    stored: dict[str, Any] = {**arrays, "raw": packed(arrays["raw"]), "gate": packed(arrays["gate"])}
    junk = np.full(64, 0xFF, np.uint8)
    stored[name].blocks[frame, tile] = junk.ctypes.data, junk.size
    for kind in ("values", "compressed, counted"):
        with pytest.raises(ValueError, match=f"frame {frame}, tile {tile}"):
            computed(program, stored, shape, kind, compiled(threads))


@pytest.mark.parametrize("size", [64, 192, 256])
def test_a_block_of_another_number_of_words_cannot_be_decoded(size: int) -> None:
    arrays = arrays_for(1, 128)
    stored = {**arrays, "raw": packed(arrays["raw"]), "gate": packed(arrays["gate"])}
    other = packed(np.random.default_rng(1).integers(0, 9, (1, size)).astype(np.uint16))
    stored["raw"].blocks[...] = other.blocks
    with pytest.raises(ValueError, match="frame 0, tile 0"):
        computed(staged(), stored, (1, 128), "values", compiled(1))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("pixels", [1, 5, 8, 77, 1024, BLOCK, BLOCK + 3, 2 * BLOCK + 13])
@pytest.mark.parametrize("compressed", [True, False])
def test_frames_that_are_there_become_chunks_that_hdf5_reads(dtype: str, pixels: int, compressed: bool) -> None:
    values = np.random.default_rng(pixels).integers(0, 99, (3, pixels)).astype(dtype)
    chunks = Chunks(3, pixels, np.dtype(dtype), compressed)
    chunks.add(values)
    np.testing.assert_array_equal(read_back(chunks), values)


def test_hdf5_refuses_a_chunk_whose_checksum_is_another(tmp_path: Path) -> None:
    """What the tests above rely on: HDF5 does look at the checksums."""
    for compressed in (True, False):
        chunks = Chunks(1, 128, np.dtype(np.int32), compressed)
        chunks.add(np.arange(128, dtype=np.int32)[None])
        kept = list(chunks.stored())
        kept[0][-1] ^= 1
        with pytest.raises(OSError, match="read"):
            read_back(chunks, kept)


def test_a_tally_of_several_blocks_is_that_of_all_frames() -> None:
    rng = np.random.default_rng(10)
    flags = rng.choice(np.array([0, 1, 5, 1 << 29, MISSING], np.uint32), (40, 30))
    flags[7:9], flags[:, 3] = MISSING, MISSING
    together, apart = Tally((5, 6)), Tally((5, 6))
    together.add(flags)
    for part in np.split(flags, 8):
        apart.add(part)
    apart.add(flags[:0])
    assert together.missing_frames == apart.missing_frames == 2
    np.testing.assert_array_equal(together.counts, apart.counts)
    np.testing.assert_array_equal(together.counts, [np.count_nonzero(flags >> bit & 1) for bit in range(32)])
    np.testing.assert_array_equal(together.always, apart.always)
    np.testing.assert_array_equal(together.always.ravel(), np.bitwise_and.reduce(flags, axis=0))


def test_a_tally_goes_on_where_streams_left_it() -> None:
    shape = (GROUP + 4, BLOCK + 64)
    program, arrays = staged(), arrays_for(*shape, seed=11)
    wanted = expected(program, arrays, shape, np.zeros(shape, bool))
    tally = Tally((shape[1],))
    for part in (slice(0, 3), slice(3, 20)):
        own = {n: a[part] if n in ("raw", "gate", "cell") else a for n, a in arrays.items()}
        own = {**own, "raw": packed(own["raw"]), "gate": packed(own["gate"])}
        frames = part.stop - part.start
        evaluate(program, own, Results(np.empty((frames, shape[1]), np.float32), tally), 2, None)
    require_same(Outcome(wanted.value, None, tally), wanted)


def test_a_program_is_worth_compiling_once_it_has_seen_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "UNCOMPILED_WORDS", 1000)
    one, other = (program_of(declare({"v": f"raw * {k}.25"})) for k in (3, 4))
    assert not pipeline.worth_compiling(one, 1000)
    assert pipeline.worth_compiling(one, 1)
    assert pipeline.worth_compiling(one, 0)
    assert not pipeline.worth_compiling(other, 999)
    assert pipeline.worth_compiling(other, 5000)
