"""Words are calibrated as they are stored where their chunks are whole tiles, and read where not: the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
from conftest import build_run, build_virtual_run, detector_formula
from stored import InSlabs

from gaincal import constants
from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap, LargeConstant
from gaincal.errors import FileError
from gaincal.formulas.catalog import get
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import MISSING_BIT, Program
from gaincal.kernels import libraries, reference
from gaincal.kernels.results import Chunks, Tally
from gaincal.kernels.threads import run_all
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import open_master
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words
from gaincal.verbs.apply import apply

Array = npt.NDArray[Any]
MISSING = np.uint32(1 << MISSING_BIT)
LZ4 = dict(hdf5plugin.Bitshuffle(nelems=4096, cname="lz4"))
LABELS = {"stage": (0, 1, 2), "threshold": (0, 1), "cell": (3, 7)}
LARGE = [("agipd", "signal", "float32"), ("agipd", "counts", "int16"), ("lpd", "counts", "int32")]
FRAMES = 20
"""More than the stream takes together."""
Make = Callable[[Path, Array], npt.NDArray[np.bool_]]


def make_words(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Words of all gain stages, in stretches as detectors have them."""
    rng = np.random.default_rng(seed)
    stretches = np.repeat(rng.integers(0, 4, int(np.prod(shape)) // 100 + 1), 100)[: int(np.prod(shape))]
    return (stretches.reshape(shape) << 14 | rng.integers(0, 1 << 14, shape)).astype(np.uint16)


@cache
def calibration(formula: Formula, layout: RawLayout) -> Calibration:
    """Any formula bound to constants and inputs drawn at random, all of them per pixel."""
    rng = np.random.default_rng(1)
    lengths: dict[str, int] = {n: len(labels) for n, labels in LABELS.items()}
    lengths |= {"frame": layout.frames, **dict(zip(formula.checked.pixel_dims, layout.pixels, strict=True))}
    constants = {}
    for constant in formula.constants:
        if constant.default is None:
            values = rng.normal(5000, 1500, [lengths[d] for d in constant.dims])
            values = np.sort(values, axis=0) if constant.name == "thresholds" else values
            constants[constant.name] = ConstantMap(values, tuple(LABELS[d] for d in constant.dims if d in LABELS))
    inputs: dict[str, Array] = {"photon_energy": np.array(12.4), "adu_per_kev": np.array(0.8)}
    inputs["pixel_mask"] = (rng.random(layout.pixels) < 0.05).astype(np.uint32)
    inputs["cell"] = rng.choice(np.array([3, 7, 9], np.uint16), layout.shape[:2], p=[0.45, 0.45, 0.1])
    words = {i.name for i in formula.inputs if set(i.dims) == {"frame", *formula.checked.pixel_dims}}
    given = {i.name: inputs[i.name] for i in formula.inputs if i.name not in words}
    return bind(formula, layout, dict.fromkeys(words, np.dtype(np.uint16)), given, constants)


def in_slabs(bound: Calibration) -> Calibration:
    """The same with its real constants read slab by slab."""
    large = {
        c.name: LargeConstant(InSlabs(bound.arrays[c.name]), bound.labels[c.name], "float32")
        for c in bound.formula.constants
        if c.name in bound.labels
    }
    return replace(bound, arrays={n: a for n, a in bound.arrays.items() if n not in large}, large=large)


def expected(bound: Calibration, program: Program, words: Mapping[str, Array], missing: Array) -> tuple[Array, Array]:
    """The reference for whole frames, and what stands where words are missing."""
    value, flags = reference.evaluate(program, bound.block(program, words, slice(None)))
    value, flags = (np.broadcast_to(a, (len(missing), missing[0].size)).reshape(missing.shape) for a in (value, flags))
    fill = np.nan if program.fill is None else program.fill
    return np.where(missing, np.dtype(program.dtype).type(fill), value), np.where(missing, MISSING, flags)


def read_back(chunks: Chunks, tmp_path: Path) -> Array:
    """What plain HDF5 reads, which tests the checksum of every chunk."""
    options = LZ4 if chunks.compressed else {}
    with h5py.File(tmp_path / "chunks.h5", "w") as file:
        shape = (chunks.frames, chunks.pixels)
        dataset = file.create_dataset("x", shape, chunks.dtype, chunks=(1, shape[1]), fletcher32=True, **options)
        for frame, stored in enumerate(chunks.stored()):
            dataset.id.write_direct_chunk((frame, 0), stored)
    with h5py.File(tmp_path / "chunks.h5") as file:
        values: Array = file["x"][()]
    return values


def store(evaluation: Evaluation, chunks: Chunks, tally: Tally) -> None:
    """Compute the first frames, as many as there is room for."""
    fetch = evaluation.fetch(np.arange(chunks.frames))
    run_all(fetch.jobs, evaluation.threads)
    evaluation.storing(fetch, chunks, tally).finish()


def require_same_bits(
    tmp_path: Path,
    formula: Formula,
    words: Mapping[str, Array],
    missing: npt.NDArray[np.bool_],
    *,
    packed: bool | Mapping[str, bool] = True,
    threads: tuple[int, ...] = (2,),
    outputs: tuple[tuple[str, str], ...] = (),
) -> None:
    """Views, flags, chunks and counts of ``tmp_path/words.h5`` are those of the reference."""
    layout = RawLayout(len(missing), missing.shape[1:])
    bound = calibration(formula, layout)
    with ExitStack() as stack:
        resolver = stack.enter_context(Resolver(tmp_path / "words.h5"))
        sources = {name: Words(resolver, resolver.get(name)) for name in words}
        for name, source in sources.items():
            wanted = packed if isinstance(packed, bool) else packed[name]
            assert (source.packed(0, layout.frames) is not None) is wanted, name
        for output, dtype in outputs or ((formula.output().name, formula.output().dtype),):
            program = bound.program(output, dtype)
            values, flags = expected(bound, program, words, missing)
            for most in threads:
                require_results(tmp_path, Evaluation(bound, sources, program, most), values, flags)


def require_results(tmp_path: Path, evaluation: Evaluation, values: Array, flags: Array) -> None:
    origin, unsigned = (0,) * values.ndim, f"u{values.itemsize}"
    found, reasons = evaluation.read(origin, values.shape, with_flags=True)
    np.testing.assert_array_equal(found.view(unsigned), values.view(unsigned))
    np.testing.assert_array_equal(reasons, flags)
    found, _ = evaluation.read((2, *origin[1:]), (3, *values.shape[1:]))
    np.testing.assert_array_equal(found.view(unsigned), values[2:5].view(unsigned))
    shrinks = values.dtype.kind == "i"
    chunks, tally = Chunks(len(values), values[0].size, values.dtype, shrinks), Tally(values.shape[1:])
    store(evaluation, chunks, tally)
    assert read_back(chunks, tmp_path).tobytes() == values.tobytes()
    counted = Tally(values.shape[1:])
    counted.add(flags.reshape(len(flags), -1))
    np.testing.assert_array_equal(tally.counts, counted.counts)
    np.testing.assert_array_equal(tally.counts, [np.count_nonzero(flags & np.uint32(1 << bit)) for bit in range(32)])
    np.testing.assert_array_equal(tally.always, counted.always)
    assert (
        tally.missing_frames == counted.missing_frames == (flags == MISSING).reshape(len(flags), -1).all(axis=1).sum()
    )


def whole(data: Array) -> npt.NDArray[np.bool_]:
    return np.zeros(data.shape, bool)


def stored(chunks: tuple[int, ...], dtype: str = "<u2", **options: Any) -> Make:
    """A plain dataset."""

    def make(directory: Path, data: Array) -> npt.NDArray[np.bool_]:
        with h5py.File(directory / "words.h5", "w") as file:
            file.create_dataset("raw", data=data.astype(dtype), chunks=chunks, **options)
        return whole(data)

    return make


def unwritten(directory: Path, data: Array) -> npt.NDArray[np.bool_]:
    """Some frames, and some tiles of others, were never written."""
    missing = whole(data)
    missing[[0, 7, 19]], missing[3, 64:] = True, True
    with h5py.File(directory / "words.h5", "w") as file:
        dataset = file.create_dataset("raw", data.shape, "u2", chunks=(1, 64, data.shape[2]), **LZ4)
        for place in dataset.iter_chunks():
            if not missing[place].any():
                dataset[place] = data[place]
    return missing


def in_files(directory: Path, data: Array) -> npt.NDArray[np.bool_]:
    """Frame ranges in files of their own, one of them lost, and frames that no file holds."""
    layout, missing = h5py.VirtualLayout(data.shape, np.uint16), whole(data)
    for first, last in ((0, 5), (5, 9), (9, 18)):
        with h5py.File(directory / f"part{first}.h5", "w") as file:
            file.create_dataset("x", data=data[first:last], chunks=(1, *data.shape[1:]), fletcher32=True, **LZ4)
        layout[first:last] = h5py.VirtualSource(f"part{first}.h5", "x", (last - first, *data.shape[1:]))
    (directory / "part5.h5").unlink()
    missing[5:9] = missing[18:] = True
    with h5py.File(directory / "words.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    return missing


TILED = (FRAMES, 128, 64)
UNEVEN = (FRAMES, 64, 67)
PACKED: dict[str, tuple[tuple[int, ...], Make]] = {
    "whole frames": (UNEVEN, stored((1, 64, 67), **LZ4)),
    "with checksums": (UNEVEN, stored((1, 64, 67), fletcher32=True, **LZ4)),
    "blocks of bitshuffle's choice": (UNEVEN, stored((1, 64, 67), **dict(hdf5plugin.Bitshuffle(cname="lz4")))),
    "frames smaller than a tile": ((FRAMES, 16, 32), stored((1, 16, 32), **LZ4)),
    "chunks of whole tiles": (TILED, stored((1, 64, 64), fletcher32=True, **LZ4)),
    "tiles that were never written": (TILED, unwritten),
    "files of frame ranges": (UNEVEN, in_files),
}
READ: dict[str, tuple[tuple[int, ...], Make]] = {
    "several frames per chunk": (TILED, stored((2, 128, 64), **LZ4)),
    "column chunks": (TILED, stored((1, 128, 32), **LZ4)),
    "chunks beyond the frame": ((FRAMES, 96, 64), stored((1, 64, 64), **LZ4)),
    "chunks of parts of tiles": (TILED, stored((1, 32, 64), **LZ4)),
    "smaller blocks": (TILED, stored((1, 128, 64), **dict(hdf5plugin.Bitshuffle(nelems=64, cname="lz4")))),
    "larger blocks": (TILED, stored((1, 128, 64), **dict(hdf5plugin.Bitshuffle(nelems=8192, cname="lz4")))),
    "another compressor": (TILED, stored((1, 128, 64), **dict(hdf5plugin.Bitshuffle(cname="zstd")))),
    "no compressor": (TILED, stored((1, 128, 64), **dict(hdf5plugin.Bitshuffle(cname="none")))),
    "shuffled twice": (TILED, stored((1, 128, 64), shuffle=True, **LZ4)),
    "gzip": (TILED, stored((1, 128, 64), compression="gzip")),
    "plain chunks": (TILED, stored((1, 128, 64))),
    "another byte order": (TILED, stored((1, 128, 64), ">u2", **LZ4)),
    "an odd number of pixels": ((FRAMES, 65, 65), stored((1, 65, 65), **LZ4)),
}
OUTPUTS = (("energy", "float32"), ("counts", "int16"))


@pytest.mark.parametrize("name", PACKED)
def test_whole_tiles_are_calibrated_as_they_are_stored(name: str, tmp_path: Path) -> None:
    shape, make = PACKED[name]
    words = make_words(shape)
    missing = make(tmp_path, words)
    require_same_bits(
        tmp_path,
        detector_formula(),
        {"raw": words},
        missing,
        threads=(1, 2, 5),
        outputs=(*OUTPUTS, ("counts", "int32")),
    )


@pytest.mark.parametrize("name", READ)
def test_other_chunks_are_read_and_give_the_same_bits(name: str, tmp_path: Path) -> None:
    shape, make = READ[name]
    words = make_words(shape)
    missing = make(tmp_path, words)
    require_same_bits(tmp_path, detector_formula(), {"raw": words}, missing, packed=False, outputs=OUTPUTS)


def write_modules(
    directory: Path, data: Array, boxes: list[tuple[Any, ...]], name: str = "raw", lost: int = 1, **options: Any
) -> npt.NDArray[np.bool_]:
    """A file for every module, put together as a virtual dataset: one is lost, and of the others some frames."""
    layout, missing = h5py.VirtualLayout(data.shape, np.uint16), whole(data)
    for module, box in enumerate(boxes):
        part = data[(slice(None), *box)]
        late = [k for k in range(len(data)) if k == 4 or k % 7 == module]
        with h5py.File(directory / f"{name}{module}.h5", "w") as file:
            dataset = file.create_dataset("x", part.shape, "u2", chunks=(1, *part.shape[1:]), **(options or LZ4))
            for frame in set(range(len(data))) - set(late):
                dataset[frame] = part[frame]
        layout[(slice(None), *box)] = h5py.VirtualSource(f"{name}{module}.h5", "x", part.shape)
        missing[(late, *box)] = True
    (directory / f"{name}{lost}.h5").unlink()
    missing[(slice(None), *boxes[lost])] = True
    with h5py.File(directory / "words.h5", "a") as file:
        file.create_virtual_dataset(name, layout)
    return missing


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_modules_in_files_of_their_own_are_calibrated_as_they_are_stored(threads: int, tmp_path: Path) -> None:
    words = make_words((FRAMES, 3, 64, 128))
    missing = write_modules(tmp_path, words, [(0,), (1,), (2,)])
    formula = detector_formula("modules")
    require_same_bits(tmp_path, formula, {"raw": words}, missing, threads=(threads,), outputs=OUTPUTS)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_modules_one_below_the_other_are_calibrated_as_they_are_stored(threads: int, tmp_path: Path) -> None:
    words = make_words((FRAMES, 192, 64))
    boxes: list[tuple[Any, ...]] = [(slice(0, 64),), (slice(64, 128),), (slice(128, 192),)]
    missing = write_modules(tmp_path, words, boxes)
    require_same_bits(tmp_path, detector_formula(), {"raw": words}, missing, threads=(threads,), outputs=OUTPUTS)


def test_modules_side_by_side_are_read(tmp_path: Path) -> None:
    words = make_words((FRAMES, 64, 192))
    boxes: list[tuple[Any, ...]] = [(slice(None), slice(k, k + 64)) for k in (0, 64, 128)]
    missing = write_modules(tmp_path, words, boxes)
    require_same_bits(tmp_path, detector_formula(), {"raw": words}, missing, packed=False, outputs=OUTPUTS)


def test_modules_of_parts_of_tiles_are_read(tmp_path: Path) -> None:
    words = make_words((FRAMES, 3, 96, 64))
    missing = write_modules(tmp_path, words, [(0,), (1,), (2,)])
    formula = detector_formula("modules")
    require_same_bits(tmp_path, formula, {"raw": words}, missing, packed=False, outputs=OUTPUTS)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_cells_of_modules_belong_to_the_tiles_of_their_module(threads: int, tmp_path: Path) -> None:
    words = make_words((FRAMES, 3, 64, 128)) & 0x3FFF
    missing = write_modules(tmp_path, words, [(0,), (1,), (2,)])
    outputs = (("signal", "float32"), ("counts", "int32"))
    require_same_bits(tmp_path, get("lpd"), {"raw": words}, missing, threads=(threads,), outputs=outputs)


@pytest.mark.parametrize("options", [LZ4, {"compression": "gzip"}], ids=["both compressed", "one compressed"])
def test_two_words_inputs_may_be_stored_differently(options: dict[str, Any], tmp_path: Path) -> None:
    """AGIPD: the analog words, and the digital ones that tell the stage; missing where either is."""
    boxes = [(0,), (1,), (2,)]
    words = {name: make_words((FRAMES, 3, 64, 128), seed) & 0x3FFF for seed, name in enumerate(("analog", "digital"))}
    missing = write_modules(tmp_path, words["analog"], boxes, "analog")
    missing |= write_modules(tmp_path, words["digital"], boxes, "digital", lost=2, **options)
    packed = {"analog": True, "digital": options is LZ4}
    outputs = (("signal", "float32"), ("counts", "int16"))
    require_same_bits(tmp_path, get("agipd"), words, missing, packed=packed, threads=(1, 2), outputs=outputs)


@pytest.mark.parametrize("held", [1 << 30, 0], ids=["held", "not held"])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("name", "output", "dtype"), LARGE)
def test_large_constants_are_taken_label_by_label(
    name: str, output: str, dtype: str, threads: int, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants that are read slab by slab, and are held or not, give what those in memory do."""
    monkeypatch.setattr(constants, "CACHE", constants.Cache(held))
    formula, boxes = get(name), [(0,), (1,), (2,)]
    inputs = ("analog", "digital") if name == "agipd" else ("raw",)
    words = {n: make_words((FRAMES, 3, 64, 128), seed) & 0x3FFF for seed, n in enumerate(inputs)}
    missing = np.zeros((FRAMES, 3, 64, 128), bool)
    for lost, n in enumerate(inputs):
        missing |= write_modules(tmp_path, words[n], boxes, n, lost=lost)
    bound = calibration(formula, RawLayout(FRAMES, (3, 64, 128)))
    values, flags = expected(bound, bound.program(output, dtype), words, missing)
    with Resolver(tmp_path / "words.h5") as resolver:
        sources = {n: Words(resolver, resolver.get(n)) for n in words}
        evaluation = Evaluation(in_slabs(bound), sources, bound.program(output, dtype), threads)
        require_results(tmp_path, evaluation, values, flags)
        blocks, counted, cells = evaluation.blocks(0, FRAMES, 3), Tally(values.shape[1:]), bound.arrays["cell"]
        assert sorted(np.concatenate(blocks)) == list(range(FRAMES))
        assert np.array_equal(cells[np.concatenate(blocks)], sorted(cells.tolist()))
        for frames in blocks:
            chunks = Chunks(len(frames), values[0].size, values.dtype, values.dtype.kind == "i")
            evaluation.storing(evaluation.fetch(frames), chunks, counted).finish()
            assert read_back(chunks, tmp_path).tobytes() == values[frames].tobytes()
    whole = Tally(values.shape[1:])
    whole.add(flags.reshape(FRAMES, -1))
    np.testing.assert_array_equal(counted.counts, whole.counts)
    np.testing.assert_array_equal(counted.always, whole.always)
    assert counted.missing_frames == whole.missing_frames


def test_planes_of_a_run_are_read_once_though_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = (3, 64, 128)
    words = {n: make_words((FRAMES, *pixels), seed) for seed, n in enumerate(("analog", "digital"))}
    for name, data in words.items():
        write_modules(tmp_path, data, [(0,), (1,), (2,)], name)
    bound = in_slabs(calibration(get("agipd"), RawLayout(FRAMES, pixels)))
    cells = np.resize(np.array([3, 7, 9], np.uint16), FRAMES)  # train by train, 9 without constants
    bound = replace(bound, arrays={**bound.arrays, "cell": np.repeat(cells[:, None], 3, axis=1)})
    label = 64 * 128 * (8 * 4 + 4)
    monkeypatch.setattr(constants, "CACHE", constants.Cache(2 * 3 * label))
    with Resolver(tmp_path / "words.h5") as resolver:
        sources = {n: Words(resolver, resolver.get(n)) for n in words}
        evaluation = Evaluation(bound, sources, bound.program("signal"), 2)
        blocks, tally = evaluation.blocks(0, FRAMES, 3), Tally(pixels)
        for frames in blocks:
            chunks = Chunks(len(frames), 3 * 64 * 128, np.dtype(np.float32), False)
            evaluation.storing(evaluation.fetch(frames), chunks, tally).finish()
    for name, planes in {"thresholds": 2, "offset": 3, "relative_gain": 3}.items():
        values = bound.large[name].values
        assert isinstance(values, InSlabs)
        assert values.reads == planes * 2 * 3  # of two cells and three modules


@pytest.mark.parametrize("name", ["whole frames", "tiles that were never written"])
def test_without_the_libraries_words_are_read_through_hdf5(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, make = PACKED[name]
    words = make_words(shape)
    missing = make(tmp_path, words)
    with without_libraries(monkeypatch):
        require_same_bits(tmp_path, detector_formula(), {"raw": words}, missing, packed=False, outputs=OUTPUTS[:1])


@contextmanager
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(libraries, "_library", lambda _: None)
    try:
        for known in (libraries.function, libraries.lz4_decoder):
            known.cache_clear()
        yield
    finally:
        monkeypatch.undo()
        for known in (libraries.function, libraries.lz4_decoder):
            known.cache_clear()


def test_counts_are_written_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(tmp_path, (6, 8, 16))
    apply(run.master, tmp_path / "with.nxs", output="counts")
    with without_libraries(monkeypatch):
        apply(run.master, tmp_path / "without.nxs", output="counts")
    with h5py.File(tmp_path / "with.nxs") as one, h5py.File(tmp_path / "without.nxs") as other:
        np.testing.assert_array_equal(one["entry/data/data"][()], other["entry/data/data"][()])


def test_modules_of_parts_of_tiles_in_one_chunk_give_the_same_bits(tmp_path: Path) -> None:
    words = make_words((FRAMES, 2, 96, 64)) & 0x3FFF
    stored((1, 2, 96, 64), **LZ4)(tmp_path, words)
    require_same_bits(tmp_path, get("lpd"), {"raw": words}, whole(words), outputs=(("signal", "float32"),))


def spoil(path: Path, offset: tuple[int, ...], change: Callable[[bytearray], None]) -> None:
    with h5py.File(path, "r+") as file:
        dataset = file["raw"]
        chunk = bytearray(dataset.id.read_direct_chunk(offset)[1])
        change(chunk)
        dataset.id.write_direct_chunk(offset, bytes(chunk))


def junk(chunk: bytearray) -> None:
    """The lengths are right, and what they lead to is not LZ4."""
    chunk[16:80] = b"\xff" * 64


def a_longer_block(chunk: bytearray) -> None:
    chunk[12:16] = b"\x7f\xff\xff\xff"


def another_total(chunk: bytearray) -> None:
    chunk[7] ^= 2


def cut_off(chunk: bytearray) -> None:
    del chunk[-1]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("change", [junk, a_longer_block, another_total, cut_off])
@pytest.mark.parametrize("offset", [(0, 0, 0), (17, 64, 0)], ids=str)
def test_a_damaged_chunk_is_named(
    offset: tuple[int, ...], change: Callable[[bytearray], None], threads: int, tmp_path: Path
) -> None:
    words = make_words(TILED)
    stored((1, 64, 64), **LZ4)(tmp_path, words)
    spoil(tmp_path / "words.h5", offset, change)
    bound = calibration(detector_formula(), RawLayout(FRAMES, TILED[1:]))
    with Resolver(tmp_path / "words.h5") as resolver:
        sources = {"raw": Words(resolver, resolver.get("raw"))}
        evaluation = Evaluation(bound, sources, bound.program("energy"), threads)
        named = rf"words\.h5::/raw chunk \({', '.join(map(str, offset))}\): is damaged"
        with pytest.raises(FileError, match=named) as caught:
            evaluation.read((0, 0, 0), TILED)
        assert caught.value.code == "bad-chunk"
        chunks = Chunks(FRAMES, 8192, np.dtype("f4"), False)
        with pytest.raises(FileError, match=named):
            store(evaluation, chunks, Tally(TILED[1:]))
        frame = 5  # and another frame is read as if nothing were
        found, _ = evaluation.read((frame, 0, 0), (1, *TILED[1:]))
        values, _ = expected(bound, bound.program("energy"), {"raw": words}, whole(words))
        np.testing.assert_array_equal(found[0].view(np.uint32), values[frame].view(np.uint32))


def test_a_damaged_chunk_of_the_second_input_is_named(tmp_path: Path) -> None:
    words = {name: make_words((3, 2, 64, 64), seed) & 0x3FFF for seed, name in enumerate(("analog", "digital"))}
    with h5py.File(tmp_path / "words.h5", "w") as file:
        for name, data in words.items():
            file.create_dataset(name, data=data, chunks=(1, 1, 64, 64), **LZ4)
        chunk = bytearray(file["digital"].id.read_direct_chunk((2, 1, 0, 0))[1])
        junk(chunk)
        file["digital"].id.write_direct_chunk((2, 1, 0, 0), bytes(chunk))
    bound = calibration(get("agipd"), RawLayout(3, (2, 64, 64)))
    with Resolver(tmp_path / "words.h5") as resolver:
        sources = {name: Words(resolver, resolver.get(name)) for name in words}
        evaluation = Evaluation(bound, sources, bound.program("signal"), 2)
        with pytest.raises(FileError, match=r"/digital chunk \(2, 1, 0, 0\)"):
            evaluation.read((0, 0, 0, 0), (3, 2, 64, 64))


def test_frames_of_which_nothing_is_there_are_not_packed_where_pixels_make_no_planes(tmp_path: Path) -> None:
    master = open_master(build_virtual_run(tmp_path, (12, 4, 8)).master)  # 32 pixels, frames that no source covers
    with master.resolver:
        assert all(master.words["raw"].packed(first, 1) is None for first in range(12))
