"""Words are put together from boxes; the last mapping of overlapping ones holds, and what none covers is missing."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError, TrustError
from gaincal.nexus.boxes import intersection
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.mappings import mappings
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words

Array = npt.NDArray[Any]
Box = tuple[tuple[int, ...], tuple[int, ...]]
SHAPE = (6, 5, 7)
DATA = np.arange(1, 211, dtype=np.uint16).reshape(SHAPE)


def plain(directory: Path, name: str = "a.h5", data: Array = DATA, **options: Any) -> None:
    with h5py.File(directory / name, "w") as file:
        file.create_dataset("x", data=data, **options)


def virtual(
    directory: Path,
    sources: list[tuple[str, Box, Box | None, tuple[int, ...]]],
    shape: tuple[int, ...] = SHAPE,
    path: str = "words",
    dataset: str = "x",
) -> None:
    """Mappings (file, target box, source box or all of it, shape of the source)."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for file, target, source, extent in sources:
        plist.set_virtual(selected(shape, target), file.encode(), dataset.encode(), selected(extent, source))
    with h5py.File(directory / "master.h5", "a") as opened:
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(opened.id, path.encode(), h5py.h5t.STD_U16LE, space, dcpl=plist)


def selected(shape: tuple[int, ...], box: Box | None) -> h5py.h5s.SpaceID:
    space = h5py.h5s.create_simple(shape)
    if box is not None:
        space.select_hyperslab(box[0], (1,) * len(shape), block=box[1])
    return space


def whole(shape: tuple[int, ...]) -> Box:
    return (0,) * len(shape), shape


def read(directory: Path, use: Callable[[Words], Any], path: str = "words") -> Any:
    with Resolver(directory / "master.h5") as resolver:
        return use(Words(resolver, resolver.get(path)))


def part_of(box: Box) -> Callable[[Words], tuple[Array, Array | None]]:
    return lambda words: words.read(*box)


def everything(words: Words) -> tuple[Array, Array | None]:
    return words.read((0,) * len(words.shape), words.shape)


@pytest.mark.parametrize(("a", "b", "shared"), [
    (((0,), (5,)), ((3,), (5,)), ((3,), (2,))),
    (((0,), (5,)), ((5,), (5,)), None),
    (((0, 0), (4, 4)), ((1, 2), (1, 9)), ((1, 2), (1, 2))),
    (((0, 0), (4, 4)), ((1, 4), (1, 1)), None),
    (((2,), (0,)), ((0,), (9,)), None),
])  # fmt: skip
def test_boxes_share_a_box_or_nothing(a: Box, b: Box, shared: Box | None) -> None:
    assert intersection(a, b) == shared
    assert intersection(b, a) == shared


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 5, 7)}, {"chunks": (4, 2, 3), "compression": "gzip"}])
@pytest.mark.parametrize("box", [
    whole(SHAPE), ((2, 0, 0), (1, 5, 7)), ((5, 4, 6), (1, 1, 1)), ((1, 2, 3), (4, 2, 2)), ((0, 0, 0), (0, 5, 7)),
])  # fmt: skip
def test_a_box_of_a_plain_dataset(box: Box, options: dict[str, Any], tmp_path: Path) -> None:
    plain(tmp_path, "master.h5", **options)
    found, missing = read(tmp_path, lambda words: words.read(*box), "x")
    np.testing.assert_array_equal(found, DATA[tuple(slice(s, s + n) for s, n in zip(*box, strict=True))])
    assert missing is None or not missing.any()


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", ">u4"])
def test_words_come_in_native_byte_order(dtype: str, tmp_path: Path) -> None:
    plain(tmp_path, "master.h5", DATA.astype(dtype))
    found, _ = read(tmp_path, everything, "x")
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, DATA.astype(dtype))


@pytest.mark.parametrize("seed", range(12))
def test_boxes_scattered_at_random_are_those_of_numpy(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    data = {name: random.integers(1, 60_000, SHAPE).astype(np.uint16) for name in ("a.h5", "b.h5")}
    for name, values in data.items():
        plain(tmp_path, name, values, chunks=(2, 3, 4))
    wanted, covered = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, bool)
    sources: list[tuple[str, Box, Box | None, tuple[int, ...]]] = []
    for _ in range(int(random.integers(1, 9))):
        count = tuple(int(random.integers(1, n + 1)) for n in SHAPE)
        target, source = (
            tuple(int(random.integers(0, n - c + 1)) for n, c in zip(SHAPE, count, strict=True)) for _ in range(2)
        )
        name = str(random.choice(["a.h5", "b.h5", "gone.h5"]))
        sources.append((name, (target, count), (source, count), SHAPE))
        there = tuple(slice(s, s + c) for s, c in zip(target, count, strict=True))
        covered[there] = name != "gone.h5"
        if name in data:
            wanted[there] = data[name][tuple(slice(s, s + c) for s, c in zip(source, count, strict=True))]
    wanted[~covered] = 0
    virtual(tmp_path, sources)
    for start, count in [whole(SHAPE), ((1, 1, 2), (3, 3, 4)), ((4, 0, 0), (1, 5, 7))]:
        here = tuple(slice(s, s + c) for s, c in zip(start, count, strict=True))
        found, missing = read(tmp_path, part_of((start, count)))
        np.testing.assert_array_equal(found, wanted[here])
        np.testing.assert_array_equal(np.zeros(count, bool) if missing is None else missing, ~covered[here])


def test_the_last_of_overlapping_mappings_holds(tmp_path: Path) -> None:
    plain(tmp_path)
    plain(tmp_path, "b.h5", DATA + 1000)
    corner = ((1, 1, 1), (2, 2, 2))
    virtual(tmp_path, [("a.h5", whole(SHAPE), None, SHAPE), ("b.h5", corner, corner, SHAPE)])
    found, missing = read(tmp_path, everything)
    wanted = DATA.copy()
    wanted[1:3, 1:3, 1:3] += 1000
    np.testing.assert_array_equal(found, wanted)
    assert missing is None


@pytest.mark.parametrize("shape", [(6, 1, 5, 7), (1, 6, 5, 7), (6, 5, 7, 1), (6, 1, 5, 1, 7)])
def test_dims_of_length_one_do_not_matter(shape: tuple[int, ...], tmp_path: Path) -> None:
    plain(tmp_path, data=DATA.reshape(shape))
    virtual(tmp_path, [("a.h5", whole(SHAPE), whole(shape), shape)])
    for box in (whole(SHAPE), ((2, 1, 3), (3, 2, 4)), ((5, 0, 6), (1, 5, 1))):
        found, missing = read(tmp_path, part_of(box))
        np.testing.assert_array_equal(found, DATA[tuple(slice(s, s + n) for s, n in zip(*box, strict=True))])
        assert missing is None


def test_modules_are_stacked_from_files_of_lower_rank(tmp_path: Path) -> None:
    shape = (6, 2, 5, 7)
    for k, name in enumerate(("a.h5", "b.h5")):
        plain(tmp_path, name, DATA + 500 * k)
    boxes = [((0, k, 0, 0), (6, 1, 5, 7)) for k in range(2)]
    virtual(tmp_path, [(n, b, None, SHAPE) for n, b in zip(("a.h5", "b.h5"), boxes, strict=True)], shape)
    found, _ = read(tmp_path, everything)
    np.testing.assert_array_equal(found, np.stack([DATA, DATA + 500], axis=1))
    part, _ = read(tmp_path, lambda words: words.read((2, 1, 1, 0), (2, 1, 3, 7)))
    np.testing.assert_array_equal(part, found[2:4, 1:2, 1:4])


def test_virtual_datasets_are_nested_box_in_box(tmp_path: Path) -> None:
    plain(tmp_path)
    inner = ((1, 0, 0), (4, 5, 7))
    virtual(tmp_path, [("a.h5", inner, inner, SHAPE)], path="inner")
    virtual(tmp_path, [(".", ((0, 0, 0), (3, 5, 7)), ((2, 0, 0), (3, 5, 7)), SHAPE)], path="words", dataset="inner")
    found, missing = read(tmp_path, everything)
    np.testing.assert_array_equal(found[:3], DATA[2:5])
    assert missing is not None
    np.testing.assert_array_equal(missing.all(axis=(1, 2)), [False] * 3 + [True] * 3)
    np.testing.assert_array_equal(missing.any(axis=(1, 2)), [False] * 3 + [True] * 3)


def test_a_nested_gap_is_a_gap_of_the_whole(tmp_path: Path) -> None:
    plain(tmp_path)
    virtual(tmp_path, [("a.h5", ((0, 0, 0), (2, 5, 7)), ((0, 0, 0), (2, 5, 7)), SHAPE)], path="inner")
    virtual(tmp_path, [(".", whole(SHAPE), whole(SHAPE), SHAPE)], dataset="inner")
    _, missing = read(tmp_path, everything)
    assert missing is not None
    assert missing.sum() == 4 * 35


def test_parts_that_no_mapping_covers_are_gaps(tmp_path: Path) -> None:
    plain(tmp_path)
    virtual(tmp_path, [("a.h5", ((0, 0, 0), (4, 5, 7)), ((0, 0, 0), (4, 5, 7)), SHAPE)])
    assert read(tmp_path, lambda words: sum(int(np.prod(p.box[1])) for p in words.gaps)) == 2 * 35


def test_a_dataset_that_serves_twice_is_opened_once(tmp_path: Path) -> None:
    plain(tmp_path)
    halves = [((0, 0, 0), (3, 5, 7)), ((3, 0, 0), (3, 5, 7))]
    virtual(tmp_path, [("a.h5", half, half, SHAPE) for half in halves])
    assert read(tmp_path, lambda words: (len(words.sources), len(words.pieces), words.gaps)) == (1, 2, [])


def test_mappings_are_listed_as_boxes(tmp_path: Path) -> None:
    virtual(tmp_path, [("a%%b.h5", ((1, 0, 0), (2, 5, 7)), ((0, 0, 0), (2, 5, 7)), (3, 5, 7))])
    with Resolver(tmp_path / "master.h5") as resolver:
        (found,) = mappings(resolver.get("words"))
    assert (found.target, found.source) == (((1, 0, 0), (2, 5, 7)), ((0, 0, 0), (2, 5, 7)))
    assert (found.file, found.path) == ("a%b.h5", "x")


@pytest.mark.parametrize(("data", "code"), [
    (DATA.astype(np.int16), "not-words"), (DATA.astype(np.float32), "not-words"), (DATA.ravel(), "not-words"),
    (np.array(3, np.uint16), "not-words"),
])  # fmt: skip
def test_what_is_no_words_is_refused(data: Array, code: str, tmp_path: Path) -> None:
    plain(tmp_path, "master.h5", data)
    with pytest.raises(FileError) as caught:
        read(tmp_path, everything, "x")
    assert caught.value.code == code


def test_a_chunk_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tmp_path, "master.h5", chunks=(1, 5, 7), compression="gzip")
    looked: list[tuple[int, ...]] = []

    class Noting(dict[tuple[int, ...], tuple[int, int]]):
        def __setitem__(self, offset: tuple[int, ...], place: tuple[int, int]) -> None:
            looked.append(offset)
            super().__setitem__(offset, place)

    prepare = PlainDataset.__init__

    def noted(dataset: PlainDataset, place: Any) -> None:
        prepare(dataset, place)
        dataset._places = Noting()

    monkeypatch.setattr(PlainDataset, "__init__", noted)
    read(tmp_path, lambda words: [everything(words), everything(words), words.read((2, 0, 0), (1, 5, 7))], "x")
    assert sorted(looked) == [(k, 0, 0) for k in range(6)]


def test_more_mappings_than_any_run_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaincal.nexus.mappings.MAX_MAPPINGS", 1)
    plain(tmp_path)
    halves = [((0, 0, 0), (3, 5, 7)), ((3, 0, 0), (3, 5, 7))]
    virtual(tmp_path, [("a.h5", half, half, SHAPE) for half in halves])
    with pytest.raises(TrustError, match="mappings") as caught:
        read(tmp_path, everything)
    assert caught.value.code == "over-budget"


@pytest.mark.parametrize("address", [(1 << 63) - 74, (1 << 63) - 8, 1 << 63, (1 << 64) - 2])
def test_a_chunk_at_an_impossible_address_is_damaged(address: int, tmp_path: Path) -> None:
    path = tmp_path / "master.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("x", data=DATA, chunks=(1, 5, 7), fletcher32=True)
        place = file["x"].id.get_chunk_info_by_coord((1, 0, 0)).byte_offset
    content = path.read_bytes()
    assert content.count(struct.pack("<Q", place)) == 1
    path.write_bytes(content.replace(struct.pack("<Q", place), struct.pack("<Q", address)))
    with pytest.raises(FileError, match=r"chunk \(1, 0, 0\)"):
        read(tmp_path, everything, "x")


def test_a_disk_that_fails_is_an_error_that_names_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tmp_path, "master.h5", chunks=(1, 5, 7))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FileError, match=r"chunk \(0, 0, 0\).*Input/output error"):
        read(tmp_path, everything, "x")


class Counting:
    """A dataset of an HDF5 whose list of chunks counts chunks where it should count elements, or breaks off."""

    def __init__(self, dataset: h5py.Dataset, chunks: tuple[int, ...], breaks: bool) -> None:
        self.id, self._id, self._chunks, self._breaks = self, dataset.id, chunks, breaks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._id, name)

    def chunk_iter(self, note: Callable[[Any], None]) -> None:
        def counted(info: Any) -> None:
            note(
                info._replace(chunk_offset=tuple(o // c for o, c in zip(info.chunk_offset, self._chunks, strict=True)))
            )

        if self._breaks:
            raise RuntimeError("the index is damaged")
        self._id.chunk_iter(counted)


@pytest.mark.skipif(not hasattr(h5py.h5d.DatasetID, "chunk_iter"), reason="this h5py lists no chunks")
@pytest.mark.parametrize("listed", ["well", "counted", "broken off"])
def test_many_chunks_lie_where_each_of_them_does(listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaincal.nexus.dataset.ASKED_ONE_BY_ONE", 5)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        dataset = file.create_dataset("x", (40, 4), np.uint16, chunks=(2, 4))
        for k in range(0, 40, 6):
            dataset[k : k + 4] = k  # every third chunk is never written
    with Resolver(tmp_path / "master.h5") as resolver:
        source = PlainDataset(resolver.get("x"))
        if listed != "well":
            source.dataset = Counting(source.dataset, source.chunks, listed == "broken off")
        offsets = [(k, 0) for k in range(0, 40, 2)]
        infos = [resolver.get("x").dataset.id.get_chunk_info_by_coord(offset) for offset in offsets]
        found = [source.lies(offset)[1:] for offset in offsets]
        assert found == [(i.byte_offset or 0, i.size if i.byte_offset else 0) for i in infos]
        assert [size > 0 for _, size in found].count(True) == 14


@pytest.mark.skipif(not hasattr(h5py.h5d.DatasetID, "chunk_iter"), reason="this h5py lists no chunks")
def test_threads_may_ask_for_chunks_while_another_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = 600
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file.create_dataset("x", data=np.zeros((chunks, 1), np.uint16), chunks=(1, 1))
    with Resolver(tmp_path / "master.h5") as resolver, ThreadPoolExecutor(8) as pool:
        source = PlainDataset(resolver.get("x"))
        wanted = [source.lies((k, 0))[1:] for k in range(chunks)]
        between = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for asked in (200, 300, 400, 500):
                monkeypatch.setattr("gaincal.nexus.dataset.ASKED_ONE_BY_ONE", asked)
                source = PlainDataset(resolver.get("x"))
                found = list(pool.map(source.lies, [(k, 0) for k in range(chunks)]))
                assert [place[1:] for place in found] == wanted
        finally:
            sys.setswitchinterval(between)
