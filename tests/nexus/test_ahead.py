"""Blocks of frames that are read in order: the next one is computed before anybody asks, and nothing else changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
from conftest import detector_formula

from gaincal.calibration import RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.errors import FileError
from gaincal.kernels import reference
from gaincal.kernels.packed import OddWords
from gaincal.kernels.threads import Work
from gaincal.nexus import evaluate
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.packing import Packing
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words

Array = npt.NDArray[Any]
FRAMES, SIDE, BLOCK = 22, 512, 4
PIXELS = (SIDE, SIDE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of all stages, a frame a chunk."""
    path = tmp_path_factory.mktemp("run") / "words.h5"
    stages = np.repeat(np.random.default_rng(0).integers(0, 4, FRAMES * SIDE * SIDE // 64), 64)
    adc = np.random.default_rng(1).integers(0, 1 << 14, FRAMES * SIDE * SIDE)
    words = (stages << 14 | adc).astype(np.uint16).reshape(FRAMES, *PIXELS)
    with h5py.File(path, "w") as file:
        options = dict(hdf5plugin.Bitshuffle(nelems=4096, cname="lz4"))
        file.create_dataset("raw", data=words, chunks=(1, *PIXELS), **options)
    return path


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    (tmp_path / "words.h5").write_bytes(run.read_bytes())
    return tmp_path / "words.h5"


def evaluation_of(resolver: Resolver, threads: int) -> Evaluation:
    rng = np.random.default_rng(2)
    maps = {name: ConstantMap(rng.normal(5000, 500, (3, *PIXELS)), ((0, 1, 2),)) for name in ("pedestal", "gain")}
    formula = detector_formula()
    inputs = {"photon_energy": np.array(12.4), "pixel_mask": (rng.random(PIXELS) < 0.01).astype(np.uint32)}
    given = {i.name: inputs[i.name] for i in formula.inputs if i.name in inputs}
    bound = bind(formula, RawLayout(FRAMES, PIXELS), {"raw": np.dtype(np.uint16)}, given, maps)
    words = {"raw": Words(resolver, resolver.get("/raw"))}
    return Evaluation(bound, words, bound.program("energy"), threads)


@pytest.fixture(scope="module")
def expected(run: Path) -> Array:
    with Resolver(run) as resolver:
        evaluation = evaluation_of(resolver, 1)
        words, _ = evaluation.words["raw"].read((0, 0, 0), (FRAMES, *PIXELS))
        arrays = evaluation.calibration.block(evaluation.program, {"raw": words}, slice(None))
        return reference.evaluate(evaluation.program, arrays)[0].reshape(FRAMES, *PIXELS)


@pytest.fixture
def opened(copied: Path) -> Iterator[tuple[Path, Evaluation]]:
    with Resolver(copied) as resolver:
        yield copied, evaluation_of(resolver, 2)


def block(evaluation: Evaluation, first: int, number: int = BLOCK) -> Array:
    number = min(number, FRAMES - first)
    return evaluation.read((first, 0, 0), (number, *PIXELS))[0]


def require_same(found: Array, expected: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def ahead_frames(evaluation: Evaluation) -> range | None:
    """Frames that are computed, or soon will be, though nobody has asked for them."""
    expected = evaluation._expected
    if expected is None or expected.block is None:
        return None
    _, _, begun = expected.block
    deadline = time.monotonic() + 10
    while not all(helper.done() for helper in begun.work._helpers):
        assert time.monotonic() < deadline, "nobody computes"
        time.sleep(0.001)
    assert isinstance(begun.fetch.frames, range)
    return begun.fetch.frames


def test_blocks_in_order_are_computed_before_somebody_asks(opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    found, ahead = [], []
    for first in range(0, FRAMES, BLOCK):
        found.append(block(evaluation, first))
        ahead.append(ahead_frames(evaluation))
    require_same(np.concatenate(found), expected)
    # The first block follows none, and the last one has none behind it.
    assert ahead == [None, range(8, 12), range(12, 16), range(16, 20), range(20, 22), None]


@pytest.mark.parametrize("order", [[0, 4, 8, 0, 4, 8], [8, 4, 0], [0, 4, 9, 13, 0], [0, 4, 4, 8]])
def test_any_order_gives_the_same_bits(order: list[int], opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    for first in order:
        require_same(block(evaluation, first), expected[first : first + BLOCK])


def test_a_block_that_nobody_wants_after_all_is_abandoned(
    opened: tuple[Path, Evaluation], monkeypatch: pytest.MonkeyPatch, expected: Array
) -> None:
    _, evaluation = opened
    events: list[str] = []
    monkeypatch.setattr(Work, "abandon", noting(events, "abandon", Work.abandon))
    for first, abandoned in [(0, 0), (4, 0), (8, 0), (0, 1), (4, 1), (16, 2), (0, 2)]:
        require_same(block(evaluation, first), expected[first : first + BLOCK])
        assert len(events) == abandoned


def test_another_number_of_frames_is_not_what_was_read(opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    for first, number in [(0, 4), (4, 4), (8, 5), (13, 4), (17, 4)]:
        require_same(block(evaluation, first, number), expected[first : first + number])


def test_windows_and_single_frames_are_not_computed_ahead(opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    for first in range(0, 12, 4):
        window = evaluation.read((first, 0, 100), (4, SIDE, 50))[0]
        require_same(np.ascontiguousarray(window), np.ascontiguousarray(expected[first : first + 4, :, 100:150]))
        assert ahead_frames(evaluation) is None
    for first in range(3):
        require_same(block(evaluation, first, 1), expected[first : first + 1])
        assert ahead_frames(evaluation) is None


def test_one_thread_computes_what_it_is_asked_for(run: Path, expected: Array) -> None:
    with Resolver(run) as resolver:
        evaluation = evaluation_of(resolver, 1)
        for first in range(0, 12, BLOCK):
            require_same(block(evaluation, first), expected[first : first + BLOCK])
            assert ahead_frames(evaluation) is None


def test_threads_that_share_a_view_get_their_own_frames(opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    with ThreadPoolExecutor(4) as pool:
        firsts = [*range(0, FRAMES, BLOCK)] * 6
        for first, found in zip(firsts, pool.map(lambda first: block(evaluation, first), firsts), strict=True):
            require_same(found, expected[first : first + BLOCK])


@pytest.mark.parametrize("change", ["junk", "cut"])
def test_a_damaged_chunk_is_complained_of_when_its_frame_is_asked_for(
    change: str, copied: Path, expected: Array
) -> None:
    with h5py.File(copied, "r+") as file:
        chunk = bytearray(file["raw"].id.read_direct_chunk((9, 0, 0))[1])
        if change == "junk":
            chunk[16:80] = b"\xff" * 64
        else:
            del chunk[-1]
        file["raw"].id.write_direct_chunk((9, 0, 0), bytes(chunk))
    with Resolver(copied) as resolver:
        evaluation = evaluation_of(resolver, 2)
        for first in (0, 4):
            require_same(block(evaluation, first), expected[first : first + BLOCK])
        with pytest.raises(FileError, match=r"/raw chunk \(9, 0, 0\): is damaged"):
            block(evaluation, 8)
        require_same(block(evaluation, 12), expected[12 : 12 + BLOCK])


def test_a_chunk_that_cannot_be_one_spoils_only_its_own_block(copied: Path, expected: Array) -> None:
    with h5py.File(copied, "r+") as file:
        chunks = [file["raw"].id.read_direct_chunk((k, 0, 0))[1] for k in range(FRAMES)]
        del file["raw"]
        options = dict(hdf5plugin.Bitshuffle(nelems=4096, cname="lz4"))
        dataset = file.create_dataset("raw", (FRAMES, *PIXELS), np.uint16, chunks=(1, *PIXELS), **options)
        for k, chunk in enumerate(chunks):
            dataset.id.write_direct_chunk((k, 0, 0), chunk, filter_mask=int(k == 9))
    with Resolver(copied) as resolver:
        evaluation = evaluation_of(resolver, 2)
        for first in (0, 4):
            require_same(block(evaluation, first), expected[first : first + BLOCK])
        with pytest.raises(FileError, match="filters switched off"):
            block(evaluation, 8)


def test_files_may_be_closed_while_a_block_is_on_its_way(
    copied: Path, monkeypatch: pytest.MonkeyPatch, expected: Array
) -> None:
    read = Packing.read

    def late(self: Packing) -> None:
        time.sleep(0.2)
        read(self)

    monkeypatch.setattr(Packing, "read", late)
    with Resolver(copied) as resolver:
        evaluation = evaluation_of(resolver, 2)
        for first in (0, 4):
            require_same(block(evaluation, first), expected[first : first + BLOCK])
    assert ahead_frames(evaluation) == range(8, 12)
    assert evaluation._expected is not None
    assert evaluation._expected.block is not None
    values, _, begun = evaluation._expected.block
    with suppress(OddWords):  # the words may have arrived before the file was closed
        begun.work.finish()
        require_same(values, expected[8:12])


def test_reasons_and_values_are_not_taken_for_each_other(opened: tuple[Path, Evaluation], expected: Array) -> None:
    _, evaluation = opened
    wanted = evaluation.read((0, 0, 0), (FRAMES, *PIXELS), with_flags=True)[1]
    assert wanted is not None
    for first, with_flags in [(0, False), (4, False), (8, True), (12, True), (16, False)]:
        values, flags = evaluation.read((first, 0, 0), (BLOCK, *PIXELS), with_flags)
        require_same(values, expected[first : first + BLOCK])
        assert (flags is not None) == with_flags
        if flags is not None:
            np.testing.assert_array_equal(flags, wanted[first : first + BLOCK])


def test_a_read_of_many_blocks_begins_one_before_the_last_is_done(
    opened: tuple[Path, Evaluation], monkeypatch: pytest.MonkeyPatch, expected: Array
) -> None:
    _, evaluation = opened
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", BLOCK * SIDE * SIDE * 2)
    events: list[str] = []
    for name in ("_begin", "_finish"):
        monkeypatch.setattr(Evaluation, name, noting(events, name, getattr(Evaluation, name)))
    require_same(evaluation.read((0, 0, 0), (FRAMES, *PIXELS))[0], expected)
    assert events == ["_begin", *["_begin", "_finish"] * 5, "_finish"]


def noting(events: list[str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that notes that it was called, with anything at all."""

    def noted(*arguments: Any) -> Any:
        if None not in arguments:
            events.append(name)
        return method(*arguments)

    return noted
