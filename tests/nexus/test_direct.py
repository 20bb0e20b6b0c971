"""Words that lie in files as they are: found wherever HDF5 put them, and read where they are summed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError
from gaincal.kernels.dark_rules import Stage
from gaincal.kernels.darks import Sums, tell_stages
from gaincal.kernels.unread import NOWHERE, Unread
from gaincal.nexus.direct import find_direct
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words

FRAMES, MODULES, SLAB = 37, 2, (96, 128)
STAGE = Stage(0, (0, 0x3FFF), (0, 0x3FFE))
PLAIN: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "a module a chunk": {"chunks": (1, 1, *SLAB)},
    "a frame a chunk": {"chunks": (1, MODULES, *SLAB)},
    "frames a chunk": {"chunks": (5, 1, *SLAB)},
}
OTHERS: dict[str, dict[str, Any]] = {
    "half a module a chunk": {"chunks": (1, 1, SLAB[0], SLAB[1] // 2)},
    "compressed": {"chunks": (1, 1, *SLAB), "compression": "gzip"},
    "checksummed": {"chunks": (1, 1, *SLAB), "fletcher32": True},
    "highest byte first": {"dtype": ">u2"},
}


@pytest.fixture
def words() -> npt.NDArray[np.uint16]:
    return np.random.default_rng(1).integers(2900, 3100, (FRAMES, MODULES, *SLAB)).astype(np.uint16)


def write(path: Path, words: npt.NDArray[np.uint16], **stored: Any) -> Words:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=words, **stored)
    resolver = Resolver(path)
    return Words(resolver, resolver.get("/raw"))


def unread(words: Words, first: int = 0, count: int = FRAMES) -> Unread:
    direct = find_direct(words)
    assert direct is not None
    found = direct.unread(first, count)
    assert found is not None
    return found


def sums(blocks: list[Any], threads: int = 1) -> dict[str, npt.NDArray[Any]]:
    gathering = Sums([STAGE], MODULES, SLAB[0] * SLAB[1], 5.0)
    for block in blocks:
        gathering.add(block, np.zeros((block.shape[0], MODULES), np.int64), threads)
    gathering.finish()
    return gathering.result(0)


def assert_the_same(found: dict[str, npt.NDArray[Any]], words: npt.NDArray[np.uint16]) -> None:
    for name, values in sums([words.reshape(len(words), -1)]).items():
        np.testing.assert_array_equal(found[name], values, name)


@pytest.mark.parametrize("stored", PLAIN.values(), ids=PLAIN)
def test_sums_are_those_of_words_in_memory(
    stored: dict[str, Any],
    words: npt.NDArray[np.uint16],
    tmp_path: Path,
) -> None:
    held = write(tmp_path / "w.h5", words, **stored)
    assert_the_same(sums([unread(held, 0, 20), unread(held, 20, 17)], threads=2), words)
    limits = [(0, 2999), (3000, 0x3FFF)]
    flat = words.reshape(FRAMES, -1)
    np.testing.assert_array_equal(tell_stages(unread(held), MODULES, limits), tell_stages(flat, MODULES, limits))


def test_some_of_the_modules(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    size = SLAB[0] * SLAB[1]
    part = unread(write(tmp_path / "w.h5", words)).part(size, 2 * size)
    gathering = Sums([STAGE], 1, size)
    gathering.add(part, np.zeros((FRAMES, 1), np.int64))
    np.testing.assert_array_equal(gathering.result(0)["total"], words[:, 1].reshape(FRAMES, -1).sum(axis=0))


def test_a_virtual_dataset_over_files_of_modules(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((FRAMES, MODULES, *SLAB), np.uint16)
    for module in range(MODULES):
        with h5py.File(tmp_path / f"m{module}.h5", "w") as file:
            # Two planes, of which the second one counts.
            both = np.stack([0 * words[:, module], words[:, module]], axis=1)
            file.create_dataset("raw", data=both, chunks=(4, 1, *SLAB) if module else None)
        source = h5py.VirtualSource(f"m{module}.h5", "raw", (FRAMES, 2, *SLAB))
        layout[:, module] = source[:, 1]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    resolver = Resolver(tmp_path / "all.h5")
    assert_the_same(sums([unread(Words(resolver, resolver.get("/raw")))]), words)


def test_what_was_never_written_is_nowhere(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (FRAMES, MODULES, *SLAB), np.uint16, chunks=(1, 1, *SLAB))[:20] = words[:20]
        file.create_dataset("none", (FRAMES, MODULES, *SLAB), np.uint16)
    resolver = Resolver(path)
    nowhere = unread(Words(resolver, resolver.get("/raw"))).places[:, :, 0] == NOWHERE
    np.testing.assert_array_equal(nowhere, np.arange(FRAMES)[:, None] >= np.full(MODULES, 20))
    assert (unread(Words(resolver, resolver.get("/none"))).places[:, :, 0] == NOWHERE).all()


@pytest.mark.parametrize("stored", OTHERS.values(), ids=OTHERS)
def test_other_words_are_left_to_others(stored: dict[str, Any], words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    assert find_direct(write(tmp_path / "w.h5", words, **stored)) is None


def test_odd_chunks_are_left_to_others(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "short.h5", "w") as file:
        dataset = file.create_dataset("raw", (FRAMES, MODULES, *SLAB), np.uint16, chunks=(1, 1, *SLAB))
        dataset[...] = words
        dataset.id.write_direct_chunk((3, 0, 0, 0), b"short")
        said = dataset.id.get_chunk_info_by_coord((3, 0, 0, 0)).size
    resolver = Resolver(tmp_path / "short.h5")
    direct = find_direct(Words(resolver, resolver.get("/raw")))
    assert direct is not None
    # HDF5 1.10 takes every chunk without filters to be as long as it should be.
    assert (direct.unread(0, FRAMES) is None) == (said == len(b"short"))
    assert said == len(b"short") or h5py.version.hdf5_version_tuple < (1, 12)


def test_pieces_that_overlap_are_left_to_others(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["raw"] = words
        layout = h5py.VirtualLayout(words.shape, np.uint16)
        layout[:30] = h5py.VirtualSource(file["raw"])[:30]
        layout[20:] = h5py.VirtualSource(file["raw"])[20:]
        file.create_virtual_dataset("all", layout)
    resolver = Resolver(tmp_path / "w.h5")
    assert find_direct(Words(resolver, resolver.get("/all"))) is None


def test_a_file_that_ends_too_early_is_complained_of(words: npt.NDArray[np.uint16], tmp_path: Path) -> None:
    held = write(tmp_path / "w.h5", words, chunks=(1, 1, *SLAB))
    found = unread(held)
    os.truncate(tmp_path / "w.h5", os.path.getsize(tmp_path / "w.h5") - 24000)
    with pytest.raises(FileError, match=r"w\.h5.*frame 36.*copy the file again"):
        sums([found])
    with pytest.raises(FileError, match="frame 36"):
        tell_stages(found, MODULES, [(0, 1)])
