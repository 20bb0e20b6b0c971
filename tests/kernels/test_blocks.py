"""Blocks: any shape, any number of threads, any process; nothing but fitting arrays reaches a kernel."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import SPECIALS, Array, assert_same_bits, bits, compiled, declare, oracle, program_of, shuffled

from gaincal.formulas.program import Program
from gaincal.kernels import blocks, prepared, threads
from gaincal.kernels.blocks import Plan
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.prepared import Prepared
from gaincal.kernels.rows import Rows

TABLES = {"t": [0, 1, -1, 2]}


def staged() -> Program:
    formula = declare(
        {"stage": "lookup(t, bits(raw, 14, 2))", "v": "(bits(raw, 0, 14) - g[stage]) / h[cell] * level + w"},
        inputs={
            "raw": ("frame px", "uint16"),
            "cell": ("frame", "uint16"),
            "level": ("", None),
            "w": ("px", None),
            "m": ("px", "uint32"),
        },
        constants={"g": ("stage px", None), "h": ("cell px", None)},
        tables=TABLES,
        flags={"bad": "stage < 0", "masked": "bits(m, 0, 16) != 0"},
    )
    return program_of(formula, {"g": ((0, 1, 2),), "h": ((7, 3),)})


def arrays_for(frames: int, pixels: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    runs = np.repeat(rng.integers(0, 4, (frames, pixels // 80 + 1)), 80, axis=1)[:, :pixels]
    return {
        "raw": (runs << 14 | rng.integers(0, 2**14, (frames, pixels))).astype(np.uint16),
        "cell": np.array([3, 7, 5])[rng.integers(0, 3, frames)].astype(np.uint16),
        "level": shuffled((1.0, -2.0, 0.5, float("inf")), frames, "float32", seed),
        "w": shuffled((*SPECIALS, 1.0, 2.0, 3.0), pixels, "float32", seed),
        "m": rng.integers(0, 2, pixels).astype(np.uint32) << 16,
        "g": rng.normal(0, 100, (3, pixels)).astype(np.float32),
        "h": rng.normal(0, 100, (2, pixels)).astype(np.float32),
    }


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split even the smallest block among the threads."""
    monkeypatch.setattr(prepared, "MIN_WORDS_PER_TASK", 1)
    monkeypatch.setattr(prepared, "PIXELS_PER_TASK", 7)


@pytest.mark.parametrize("frames", range(6))
def test_any_number_of_pixels_gives_the_same_bits(frames: int) -> None:
    program = staged()
    for pixels in range(1, 201):
        assert_same_bits(program, arrays_for(frames, pixels, pixels), (frames, pixels))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("frames", [0, 1, 5])
@pytest.mark.usefixtures("small_tasks")
def test_any_number_of_threads_gives_the_same_bits(threads: int, frames: int) -> None:
    program = staged()
    for pixels in (1, 2, 7, 8, 13, 14, 15, 63, 64, 65, 127, 128, 129, 200):
        assert_same_bits(program, arrays_for(frames, pixels, pixels), (frames, pixels), threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("pixels", [4095, 4096, 4097, 3 * 16384 + 65])
def test_tiles_and_tasks_meet_without_a_gap(threads: int, pixels: int) -> None:
    assert_same_bits(staged(), arrays_for(23, pixels), (23, pixels), threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("frames", [0, 3])
def test_a_block_without_pixels_is_computed_to_nothing(threads: int, frames: int) -> None:
    value, flags = compiled(staged(), arrays_for(frames, 0), (frames, 0), threads)
    assert value.shape == flags.shape == (frames, 0)


@pytest.mark.parametrize("pixels", [0, 1, 16384, 16385, 262144, 10**6])
@pytest.mark.parametrize("frames", [0, 1, 1000])
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_tasks_cover_every_pixel_once(pixels: int, frames: int, threads: int) -> None:
    covered = [p for task in prepared.split_pixels(frames, 0, pixels, threads) for p in range(*task)]
    assert covered == list(range(pixels))


def test_the_value_without_flags_is_the_same() -> None:
    program, arrays = staged(), arrays_for(3, 130)
    value = np.empty((3, 130), np.float32)
    blocks.evaluate(program, arrays, value)
    np.testing.assert_array_equal(bits(value), bits(oracle(program, arrays, (3, 130))[0]))


def test_nothing_beside_the_results_is_written() -> None:
    program, arrays = staged(), arrays_for(3, 130)
    room, flag_room = np.full(3 * 130 + 128, 77, np.float32), np.full(3 * 130 + 128, 77, np.uint32)
    value, flags = room[64:-64].reshape(3, 130), flag_room[64:-64].reshape(3, 130)
    blocks.evaluate(program, arrays, value, flags)
    for whole in (room, flag_room):
        assert (whole[:64] == 77).all()
        assert (whole[-64:] == 77).all()


def test_strided_inputs_give_the_same_bits() -> None:
    program, arrays = staged(), arrays_for(4, 100)
    strided = {name: np.repeat(a, 2, axis=-1)[..., ::2] for name, a in arrays.items()}
    value = np.empty((4, 100), np.float32)
    blocks.evaluate(program, strided, value)
    np.testing.assert_array_equal(bits(value), bits(oracle(program, arrays, (4, 100))[0]))


def unaligned(array: Array) -> Array:
    """The same values one byte beside their natural place."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    room[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return room[1:].view(array.dtype).reshape(array.shape)


def test_unaligned_inputs_give_the_same_bits() -> None:
    program, arrays = staged(), arrays_for(4, 131)
    value = np.empty((4, 131), np.float32)
    blocks.evaluate(program, {name: unaligned(a) for name, a in arrays.items()}, value)
    np.testing.assert_array_equal(bits(value), bits(oracle(program, arrays, (4, 131))[0]))


@pytest.mark.parametrize(
    ("output", "dtype", "fill"), [("d", "float64", None), ("n", "int32", -(2**31)), ("k", "uint8", 255)]
)
def test_results_that_no_pixel_varies_are_spread(output: str, dtype: str, fill: int | None) -> None:
    formula = declare(
        {"d": "level * 2", "n": "round_half_even(exp(level))", "k": "lookup(t, cell)"},
        inputs={"raw": ("frame px", "uint16"), "level": ("", None), "cell": ("frame", "uint16")},
        tables=TABLES,
        output=output,
        dtype=dtype,
        fill=fill,
        compute="float64",
    )
    arrays: dict[str, Array] = {
        "raw": np.zeros((5, 130), np.uint16),
        "level": np.array([0.5, 1.0, np.nan, 99.0, -3.0]),
        "cell": np.array([0, 1, 2, 3, 4], np.uint16),
    }
    assert_same_bits(program_of(formula), arrays, (5, 130))


# --- what does not fit is refused --------------------------------------------------------


@pytest.mark.parametrize("name", ["raw", "cell", "level", "w", "m", "g", "h"])
@pytest.mark.parametrize("change", ["shorter", "longer", "wider", "flat", "swapped", "signed"])
def test_an_array_that_does_not_fit_is_refused(name: str, change: str) -> None:
    program, arrays = staged(), arrays_for(4, 30)
    array = arrays[name]
    wrong = {
        "shorter": array[..., :-1],
        "longer": np.concatenate([array, array], axis=-1),
        "wider": array.astype(np.float64 if array.dtype.kind == "f" else np.uint64),
        "flat": array[None],
        "swapped": array.astype(array.dtype.newbyteorder(">")),
        "signed": array.view(f"i{array.dtype.itemsize}"),
    }
    value = np.full((4, 30), 77, np.float32)
    with pytest.raises(ValueError, match=rf"^{name} is "):
        blocks.evaluate(program, {**arrays, name: wrong[change]}, value)
    assert (value == 77).all()


@pytest.mark.parametrize("name", ["g", "h"])
def test_a_constant_lacking_a_plane_is_refused(name: str) -> None:
    arrays = arrays_for(4, 30)
    with pytest.raises(ValueError, match=rf"^{name} is "):
        blocks.evaluate(staged(), {**arrays, name: arrays[name][:-1]}, np.empty((4, 30), np.float32))


@pytest.mark.parametrize(
    "value",
    [
        np.empty((4, 30), np.float64),
        np.empty((4, 30), np.int32),
        np.empty((4, 30), ">f4"),
        np.empty((30, 4), np.float32).T,
        np.empty((4, 60), np.float32)[:, ::2],
        np.empty((4, 31), np.float32),
        np.empty((3, 30), np.float32),
        np.empty((4, 5, 6), np.float32),
        np.empty(120, np.float32),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value: Array) -> None:
    with pytest.raises(ValueError, match=r"result must be|must follow|is uint|is float|unpack"):
        blocks.evaluate(staged(), arrays_for(4, 30), value)


@pytest.mark.parametrize("flags", [np.empty((4, 30), np.int32), np.empty((4, 29), np.uint32), np.empty(120, np.uint32)])
def test_flags_that_do_not_fit_are_refused(flags: Array) -> None:
    with pytest.raises(ValueError, match="result must be"):
        blocks.evaluate(staged(), arrays_for(4, 30), np.empty((4, 30), np.float32), flags)


@pytest.mark.parametrize("which", ["value", "flags"])
def test_a_result_that_cannot_be_written_is_refused(which: str) -> None:
    results: dict[str, Array] = {"value": np.zeros((4, 30), np.float32), "flags": np.zeros((4, 30), np.uint32)}
    results[which].flags.writeable = False
    with pytest.raises(ValueError, match="result"):
        blocks.evaluate(staged(), arrays_for(4, 30), results["value"], results["flags"])
    assert not results[which].any()


def test_a_lacking_array_is_refused() -> None:
    arrays = arrays_for(4, 30)
    del arrays["g"]
    with pytest.raises((KeyError, ValueError)):
        blocks.evaluate(staged(), arrays, np.empty((4, 30), np.float32))


# --- threads and processes ---------------------------------------------------------------


@pytest.mark.usefixtures("small_tasks")
def test_many_threads_at_once_give_the_same_bits() -> None:
    cases = [(arrays_for(frames, pixels, pixels), (frames, pixels)) for pixels in range(1, 200, 9) for frames in (1, 4)]
    program = staged()

    def work(case: tuple[dict[str, Array], tuple[int, int]]) -> None:
        for most in (1, 2, 4):
            assert_same_bits(program, *case, most)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, cases))


def test_threads_that_compile_at_once_give_the_same_bits() -> None:
    arrays = {"raw": np.arange(500, dtype=np.uint16)[None]}

    def work(number: int) -> None:
        program = program_of(declare({"v": f"sqrt(raw + {number % 4}) * 0.1"}))
        assert_same_bits(program, arrays, (1, 500))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_threads_that_prepare_at_once_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """They find the same conditions, of which only those that stay may be pointed at."""
    monkeypatch.setattr(prepared, "MIN_WORDS_PER_TASK", 1)
    monkeypatch.setattr(prepared, "PIXELS_PER_TASK", 64)
    program = staged()
    for pixels in range(64, 5000, 617):
        arrays = arrays_for(3, pixels, pixels)
        wanted = bits(oracle(program, arrays, (3, pixels))[0])
        plan = Plan.of(Prepared.of(program, arrays, pixels), 3)

        def work(most: int, plan: Plan = plan, arrays: dict[str, Array] = arrays) -> Array:
            value = np.empty((3, plan.pixels), np.float32)
            for _ in range(3):
                value[...] = 0
                plan.evaluate(arrays, value, None, most)
            return value

        with ThreadPoolExecutor(8) as pool:
            for value in pool.map(work, [1, 2] * 8):
                np.testing.assert_array_equal(bits(value), wanted)


def test_what_is_prepared_is_asked_for_conditions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program, arrays = staged(), arrays_for(4, 200)
    plan = Plan.of(Prepared.of(program, arrays, 200), 4)
    value, flags = np.empty((4, 200), np.float32), np.empty((4, 200), np.uint32)
    plan.evaluate(arrays, value, flags)
    wanted = value.tobytes(), flags.tobytes()
    monkeypatch.setattr(Prepared, "_known", None)
    plan.evaluate(arrays, value, flags)
    assert (value.tobytes(), flags.tobytes()) == wanted


def _child(queue: multiprocessing.Queue[bool]) -> None:
    assert_same_bits(staged(), arrays_for(5, 100), (5, 100), 2)
    queue.put(True)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("small_tasks")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    fork = multiprocessing.get_context("fork")
    assert_same_bits(staged(), arrays_for(5, 100), (5, 100), 2)
    queue = fork.Queue()
    child = fork.Process(target=_child, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get(timeout=5)
    assert_same_bits(staged(), arrays_for(5, 100), (5, 100), 2)


@pytest.mark.usefixtures("small_tasks")
def test_an_interrupted_evaluation_ends_only_when_no_task_writes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    class Interrupted:
        address, known, results = 0, (), 1

        def prepare(self, *_: int) -> None:
            pass

        def __call__(self, *task: int) -> None:
            first = task[-2]
            if first == 0:
                raise KeyboardInterrupt
            time.sleep(0.2)
            ended.append(first)

    monkeypatch.setattr(prepared, "compiled", lambda *_: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        blocks.evaluate(staged(), arrays_for(2, 21), np.empty((2, 21), np.float32), None, 4)
    count = len(ended)
    time.sleep(0.5)
    assert len(ended) == count


def test_slurm_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert threads.available_threads() == 3


@pytest.mark.parametrize("granted", ["", "0", "-2", "many", "2.5", "²"])
def test_without_a_sensible_grant_the_affinity_counts(granted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert threads.available_threads() == len(os.sched_getaffinity(0))


def test_without_slurm_the_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert threads.available_threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("pixels", [64, 320, 1040, 5056])
@pytest.mark.parametrize("threads", [1, 2])
def test_results_that_bypass_the_cache_have_the_same_bits(
    pixels: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = arrays_for(5, pixels)
    found = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(blocks, "STREAMED_BYTES", least)
        value, flags = empty_aligned((5, pixels), np.float32), empty_aligned((5, pixels), np.uint32)
        assert blocks.leaves_cache(Rows.of(value), 0) is (least == 0)
        blocks.evaluate(staged(), arrays, value, flags, threads)
        found.append((value.tobytes(), flags.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "result",
    [
        empty_aligned((5, 320), np.float32)[1:, :].reshape(-1)[4:1204].reshape(4, 300),
        empty_aligned((5, 321), np.float32),
        empty_aligned((5, 40), np.int8),
    ],
)
def test_results_that_begin_elsewhere_do_not_bypass_the_cache(result: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "STREAMED_BYTES", 0)
    assert not blocks.leaves_cache(Rows.of(result), 0)
    assert not blocks.leaves_cache(Rows.of(empty_aligned((5, 320), np.float32)), 8)
