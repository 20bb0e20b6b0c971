"""Ratios of times taken in turns: absolute times drift, ratios of neighbours do not."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def take_turns(tasks: Mapping[str, Callable[[], object]], rounds: int = 7, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of every task in every round, each round running all of them in rotated order."""
    names = list(tasks)
    for _ in range(warm):
        for name in names:
            tasks[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                begin = time.perf_counter()
                tasks[name]()
                times[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return times


def speed_ratio(times: Mapping[str, list[float]], task: str, yardstick: str) -> float:
    """How fast a task is compared with a yardstick: the median over paired rounds."""
    return statistics.median(y / t for t, y in zip(times[task], times[yardstick], strict=True))


def best_ratio(tasks: Mapping[str, Callable[[], object]], task: str, yardstick: str, enough: float) -> float:
    """The ratio, measured again if it is not enough: another process can spoil one measurement, hardly three."""
    best = 0.0
    for _ in range(3):
        best = max(best, speed_ratio(take_turns(tasks), task, yardstick))
        if best >= enough:
            break
    return best
