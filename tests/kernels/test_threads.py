"""Jobs in threads: nobody runs any more when it is over, and the first complaint in their order is the one raised."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from gaincal.kernels.threads import run_all, running


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


def test_nobody_waits_for_what_a_helper_goes_on_with() -> None:
    goes_on, over = threading.Event(), threading.Event()

    def then() -> None:
        over.wait(10)
        goes_on.set()

    done: list[int] = []
    with running([partial(wait_and_note, 0.01, done, k) for k in range(4)], 2, then):
        pass
    assert sorted(done) == [0, 1, 2, 3]
    assert not goes_on.is_set()
    over.set()
    assert goes_on.wait(10)


def test_a_single_thread_goes_on_with_nothing() -> None:
    done: list[int] = []
    with running([partial(done.append, 1)], 1, partial(done.append, 2)):
        pass
    assert done == [1]


def test_jobs_of_a_helper_that_would_go_on_complain_as_others_do() -> None:
    def fail() -> None:
        raise ValueError("job")

    with pytest.raises(ValueError, match="job"), running([fail] * 4, 2, lambda: None):
        pass
