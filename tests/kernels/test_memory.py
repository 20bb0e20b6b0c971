"""Arrays begin at a cache line, whatever their shape and type, and their memory is used again when nobody has it."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gaincal.kernels import memory
from gaincal.kernels.memory import ALIGNMENT, IDLE_BYTES, RECYCLED_BYTES, aligned, empty_aligned

Array = npt.NDArray[Any]
LARGE = (600, 500)


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> None:
    gc.collect()


@pytest.fixture(autouse=True)
def nothing_idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of other tests stay out of the way, and none comes back in the middle of one."""
    monkeypatch.setattr(memory, "_IDLE", memory._Idle())
    gc.disable()
    yield
    gc.enable()


def idle() -> int:
    return sum(block.size for block in memory._IDLE.blocks.values())


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (7, 5), (512, 1024), (0, 1 << 40), (1 << 40, 0)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8", "i8"])
def test_an_array_is_aligned_contiguous_and_writable(shape: tuple[int, ...], dtype: str) -> None:
    array = empty_aligned(shape, dtype)
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.flags.carray
    assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_a_copy_holds_what_the_array_holds() -> None:
    array = np.arange(30, dtype="f8").reshape(5, 6)[:, ::2]
    copy = aligned(array, "f4")
    assert copy.dtype == np.float32
    assert np.array_equal(copy, array)
    assert copy.ctypes.data % ALIGNMENT == 0
    copy[0, 0] = 99
    assert array[0, 0] == 0


@pytest.mark.parametrize("extra", [-1, 0, 1, 63, 64, 65, 8191, 8192])
@pytest.mark.parametrize("size", [RECYCLED_BYTES, 3 * RECYCLED_BYTES, 1 << 20, (1 << 20) + (1 << 17)])
def test_an_array_of_any_size_is_all_there(size: int, extra: int) -> None:
    first, second = (empty_aligned((size + extra,), "u1") for _ in range(2))
    first[...], second[...] = 1, 2
    assert (first == 1).all()
    assert (second == 2).all()
    for _ in range(3):
        del first
        first = empty_aligned((size + extra,), "u1")
        first[...] = 3
    assert (second == 2).all()


def test_memory_is_used_again() -> None:
    array = empty_aligned(LARGE, "f8")
    address = array.ctypes.data
    assert idle() == 0
    del array
    assert idle() >= 600 * 500 * 8
    again = empty_aligned((500, 600), "i8")
    assert again.ctypes.data == address
    assert idle() == 0


def test_memory_of_another_size_is_not() -> None:
    address = empty_aligned(LARGE, "f8").ctypes.data
    assert empty_aligned(LARGE, "f4").ctypes.data != address
    assert empty_aligned((900, 500), "f8").ctypes.data != address


VIEWS: dict[str, Callable[[Array], Any]] = {
    "an element": lambda a: a[3:4, 5:6],
    "a row": lambda a: a[7],
    "its transpose": lambda a: a.T,
    "other elements": lambda a: a.view("u2"),
    "a flat one": lambda a: a.reshape(-1)[::7],
    "another of it": lambda a: a[1:][1:][1:].T.view(),
    "a memoryview": memoryview,
    "the buffer of it": lambda a: np.frombuffer(memoryview(a[2]).cast("B"), "u1"),
    "a masked array": np.ma.asarray,
    "a subclass": lambda a: a.view(np.recarray),
    "its interface": lambda a: np.asarray(_Interface(a)),
    "an iterator": lambda a: a.flat,
    "a ctypes array": np.ctypeslib.as_ctypes,
}


class _Interface:
    def __init__(self, array: Array) -> None:
        self.kept, self.__array_interface__ = array, array.__array_interface__


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_memory_is_not_used_again_while_anybody_can_see_it(view: Callable[[Array], Any]) -> None:
    array = empty_aligned(LARGE, "f8")
    address = array.ctypes.data
    seen = view(array)
    del array
    assert idle() == 0
    assert empty_aligned(LARGE, "f8").ctypes.data != address
    del seen
    assert address in {block.ctypes.data for block in memory._IDLE.blocks.values()}


def test_arrays_of_a_shelf_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PIECE_BYTES", 1000)
    shelf = memory.Shelf()
    shapes = [(3, 7), (5,), (0, 4), (40, 9), (1,), (2, 2, 2), (30, 4)]
    arrays = [shelf.empty(shape, "f4") for shape in shapes]
    for k, array in enumerate(arrays):
        array[...] = k
    for k, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        assert array.shape == shape
        assert array.ctypes.data % memory.ALIGNMENT == 0 or not array.size
        assert (array == k).all()


def test_the_memory_of_an_array_in_a_cycle_comes_back() -> None:
    class Owner:
        def __init__(self) -> None:
            self.me, self.array = self, empty_aligned(LARGE, "f8")

    owner = Owner()
    address, gone = owner.array.ctypes.data, weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    assert empty_aligned(LARGE, "f8").ctypes.data == address


def test_little_memory_waits() -> None:
    arrays = [empty_aligned((8 << 20,), "u1") for _ in range(IDLE_BYTES // (8 << 20) + 5)]
    for array in arrays:
        array[::4096] = 1
    del array, arrays
    assert IDLE_BYTES - (8 << 20) <= idle() <= IDLE_BYTES
    del_me = empty_aligned((IDLE_BYTES + 1,), "u1")
    del del_me
    assert idle() <= IDLE_BYTES


def test_many_sizes_together_are_no_more_than_that() -> None:
    for size in range(RECYCLED_BYTES, 64 << 20, 3 << 20):
        empty_aligned((size,), "u1")
        assert idle() <= IDLE_BYTES


def test_no_memory_is_handed_out_twice() -> None:
    """Threads that hammer on a few sizes find what they wrote."""
    start = threading.Barrier(8)

    def work(number: int) -> int:
        rng = np.random.default_rng(number)
        kept: list[tuple[Array, int]] = []
        start.wait()
        for turn in range(400):
            array = empty_aligned((int(rng.choice([70_000, 80_000, 140_000])),), "u1")
            mark = (number * 31 + turn) % 251
            array[::64] = mark
            kept.append((array[rng.integers(100) :], mark))
            del array
            if len(kept) > 5:
                del kept[rng.integers(len(kept))]
            for part, wanted in kept:
                found = np.unique(part[-part.ctypes.data % 64 :: 64])
                assert found.tolist() == [wanted]
        return turn

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [399] * 8
    assert idle() <= IDLE_BYTES


def test_memory_may_be_given_back_by_another_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        array = pool.submit(empty_aligned, LARGE, "f8").result()
        address = array.ctypes.data
        pool.submit(lambda: None).result()  # the worker lets go of what it returned
        del array
        assert pool.submit(lambda: empty_aligned(LARGE, "f8").ctypes.data).result() == address


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_memory_of_its_own() -> None:
    array, gone = empty_aligned(LARGE, "f8"), empty_aligned(LARGE, "f8")
    array[...] = 1
    del gone
    child = os.fork()
    if child == 0:
        taken = empty_aligned(LARGE, "f8")
        taken[...], array[...] = 2, 3
        os._exit(0 if (array == 3).all() and (taken == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (array == 1).all()
    own = empty_aligned(LARGE, "f8")
    own[...] = 4
    assert (array == 1).all()


def test_a_pickled_array_is_an_array_of_its_own() -> None:
    array = empty_aligned(LARGE, "f8")
    array[...] = np.arange(500)
    copy = pickle.loads(pickle.dumps(array))
    array[...] = 0
    assert type(copy) is np.ndarray
    np.testing.assert_array_equal(copy, np.broadcast_to(np.arange(500.0), LARGE))


def test_arrays_that_live_to_the_end_end_quietly() -> None:
    script = """
import threading
from gaincal.kernels.memory import empty_aligned
class Owner: pass
kept = [empty_aligned((100_000 + 9000 * k,), "u1") for k in range(30)]
owner = Owner(); owner.me = owner; owner.array = empty_aligned((1 << 20,), "u1")
local = threading.local(); local.array = empty_aligned((1 << 20,), "u1")
del kept[::2]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", [
    "try: empty_aligned((1 << 55,), 'u1')\nexcept MemoryError: pass",
    """
import gc
class Owner: pass
gc.set_threshold(5, 1, 1)
for k in range(5000):
    owner = Owner(); owner.me = owner; owner.array = empty_aligned((65536 + (k % 40) * 32768,), "u1")
""",
], ids=["memory that cannot be had", "garbage collected while memory is taken"])  # fmt: skip
def test_nothing_is_said_of(script: str) -> None:
    code = f"from gaincal.kernels.memory import empty_aligned\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_slurm_says_how_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert memory.available_memory() == 100 << 20


@pytest.mark.parametrize(
    ("groups", "limits", "wanted"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "3000", "memory.max": "9000"}, 3000),
        ("0::/a/b", {"a/b/memory.max": "2000", "a/memory.max": "3000"}, 2000),
        ("0::/\n4:memory:/job", {"memory/job/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/job", {"memory/memory.limit_in_bytes": "7000"}, 7000),  # within a container
        ("0::/../..", {}, None),
        ("7:cpu:/a", {"memory/a/memory.limit_in_bytes": "1"}, None),
        ("odd", {}, None),
        (None, {}, None),
    ],
)
def test_control_groups_bound_memory(
    groups: str | None, limits: dict[str, str], wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    places = {"": (str(tmp_path), "memory.max"), "memory": (str(tmp_path / "memory"), "memory.limit_in_bytes")}
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", places)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    if groups is not None:
        (tmp_path / "own").write_text(groups)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.available_memory() == (whole if wanted is None else wanted)
