"""Jobs in threads: nobody runs any more when it is over, and the first complaint in their order is the one raised."""

from __future__ import annotations

import _thread
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from gaincal.kernels.threads import Work, run_all


def wait_and_note(seconds: float, note: list[int], number: int) -> None:
    time.sleep(seconds)
    note.append(number)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_runs_once(count: int, threads: int) -> None:
    done: list[int] = []
    run_all([partial(done.append, k) for k in range(count)], threads)
    assert sorted(done) == list(range(count))


def test_one_thread_takes_jobs_in_their_order_and_is_the_callers() -> None:
    done: list[tuple[int, int]] = []
    run_all([lambda k=k: done.append((k, threading.get_ident())) for k in range(9)], 1)  # type: ignore[misc]
    assert done == [(k, threading.get_ident()) for k in range(9)]


@pytest.mark.parametrize("threads", [2, 3])
def test_no_more_than_so_many_run_at_a_time(threads: int) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    run_all([job] * 20, threads)
    assert most == threads


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_jobs_complaint_is_raised_whoever_fails_first(threads: int) -> None:
    def fail(number: int, seconds: float) -> None:
        time.sleep(seconds)
        raise ValueError(number)

    jobs: list[Callable[[], object]] = [
        lambda: None,
        partial(fail, 1, 0.1),
        partial(fail, 2, 0),
        partial(fail, 3, 0.05),
    ]
    with pytest.raises(ValueError, match="1"):
        run_all(jobs, threads)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_nobody_runs_after_a_complaint(threads: int) -> None:
    note: list[int] = []

    def fail() -> None:
        raise RuntimeError("bad")

    with pytest.raises(RuntimeError, match="bad"):
        run_all([fail, *(partial(wait_and_note, 0.03, note, k) for k in range(6))], threads)
    count = len(note)
    time.sleep(0.15)
    assert len(note) == count


def test_nobody_runs_after_an_interruption() -> None:
    """Ctrl-C reaches who waits, and is raised only when no job writes any more."""
    note: list[int] = []

    def interrupt() -> None:
        time.sleep(0.05)
        _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        run_all([interrupt, *(partial(wait_and_note, 0.1, note, k) for k in range(5))], 3)
    count = len(note)
    time.sleep(0.3)
    assert len(note) == count


def test_callers_in_several_threads_each_get_their_own_complaint() -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    def caller(number: int) -> str:
        try:
            run_all([partial(time.sleep, 0.001), partial(fail, number), partial(fail, 99)], 2 + number % 6)
        except ValueError as error:
            return str(error)
        return "none"

    with ThreadPoolExecutor(8) as pool:  # more numbers of threads than pools are kept
        assert list(pool.map(caller, range(40))) == [str(k) for k in range(40)]


def test_jobs_after_a_failure_run_as_if_nothing_had_been() -> None:
    with pytest.raises(ZeroDivisionError):
        run_all([lambda: 1 // 0, lambda: None], 2)
    done: list[int] = []
    run_all([partial(done.append, k) for k in range(10)], 2)
    assert sorted(done) == list(range(10))


def test_work_begins_before_its_caller_helps_and_ends_with_it() -> None:
    done: list[int] = []
    with Work([partial(done.append, k) for k in range(4)], 2):
        deadline = time.monotonic() + 10
        while len(done) < 4:
            assert time.monotonic() < deadline, "nobody begins"
            time.sleep(0.001)
    assert sorted(done) == [0, 1, 2, 3]


def test_one_thread_begins_when_its_caller_ends_it() -> None:
    done: list[int] = []
    with Work([partial(done.append, 1)] * 3, 1, partial(done.append, 2)):
        time.sleep(0.01)
        assert done == []
    assert done == [1, 1, 1, 2]


def test_work_is_taken_up_in_the_order_in_which_it_was_begun() -> None:
    over, done = threading.Event(), list[str]()
    first = Work([partial(over.wait, 10), lambda: done.append("first")], 2)
    second = Work([lambda: done.append("second")] * 2, 2)
    time.sleep(0.02)
    over.set()
    first.finish()
    second.finish()
    assert done == ["first", "second", "second"]


def test_what_comes_afterwards_is_left_after_a_complaint() -> None:
    def fail() -> None:
        raise ValueError("job")

    done: list[int] = []
    with pytest.raises(ValueError, match="job"), Work([fail] * 4, 2, partial(done.append, 1)):
        pass
    assert done == []


def test_an_error_of_the_caller_ends_work() -> None:
    note: list[int] = []
    jobs = [partial(wait_and_note, 0.05, note, k) for k in range(6)]
    with pytest.raises(RuntimeError, match="caller"), Work(jobs, 2):
        raise RuntimeError("caller")
    count = len(note)
    time.sleep(0.1)
    assert len(note) == count


def test_an_interruption_while_it_waits_is_raised_when_nobody_runs() -> None:
    note: list[int] = []
    begun = threading.Event()

    def interrupt() -> None:
        begun.set()
        time.sleep(0.1)
        _thread.interrupt_main()
        time.sleep(0.2)
        note.append(1)

    work = Work([interrupt, partial(note.append, 2)], 2)
    assert begun.wait(10)
    with pytest.raises(KeyboardInterrupt):
        work.finish()
    assert sorted(note) == [1, 2]


def test_abandoned_work_leaves_its_threads_to_others() -> None:
    begun, halted, done = threading.Event(), threading.Event(), list[int]()

    def long() -> None:
        begun.set()
        halted.wait(10)

    running = Work([long, partial(done.append, 1)], 2, halt=halted.set)
    waiting = Work([partial(done.append, 2)] * 2, 2)
    assert begun.wait(10)
    waiting.abandon()
    running.abandon()
    Work([partial(done.append, 3)] * 2, 2).finish()
    assert done == [3, 3]


def test_an_interruption_of_a_job_is_not_lost_behind_the_error_of_another() -> None:
    begun = threading.Event()

    def fail() -> None:
        begun.wait(10)
        raise ValueError("job")

    def interrupt() -> None:
        begun.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([fail, interrupt], 2)


def test_work_that_was_finished_holds_nothing_while_the_pool_is_busy() -> None:
    over = threading.Event()
    busy = Work([partial(over.wait, 10)] * 2, 2)
    owned = np.zeros(3)
    held = weakref.ref(owned)
    Work([partial(id, owned)] * 2, 2, partial(id, owned)).finish()
    del owned
    gone = held() is None
    over.set()
    busy.finish()
    assert gone


def test_an_error_that_was_raised_does_not_keep_work_alive() -> None:
    owned = np.zeros(3)
    held = weakref.ref(owned)

    def fail(_owned: object) -> None:
        raise ValueError("job")

    with pytest.raises(ValueError, match="job"):
        Work([partial(fail, owned)] * 2, 1).finish()
    del owned
    assert held() is None
