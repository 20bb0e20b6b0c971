"""Damaged chunks, by the ten thousand: a decoder says so or delivers exactly a chunk, and touches nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hostile.fuzzer import FILTERS, SECONDS, STREAMED

PATIENCE_SECONDS = 120
CRASHES = 3
"""After so many there is nothing more to learn."""
TESTS = Path(__file__).parents[1]


def fuzzed(name: str, count: int, seed: int, directory: Path) -> tuple[Counter[str], list[str], float]:
    """Endings, faults and the slowest chunk; a crash or a hang is one of the faults."""
    ends, faults, slowest, first = Counter[str](), list[str](), 0.0, 0
    progress = directory / "progress"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    while first < count and len(faults) < CRASHES:
        command = [sys.executable, "-m", "hostile.fuzzer", name, str(count), str(seed), str(first), str(progress)]
        progress.write_text("-1")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE_SECONDS
        )
        if done.returncode:
            last = int(progress.read_text())
            faults.append(f"{last}: ended with {done.returncode}: {done.stderr[-2000:]}")
            first = max(first, last) + 1
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        return ends + Counter(answer["ends"]), faults + answer["faults"], max(slowest, answer["slowest"])
    return ends, faults, slowest


def require(name: str, count: int, seed: int, directory: Path) -> None:
    ends, faults, slowest = fuzzed(name, count, seed, directory)
    print(name, dict(sorted(ends.items())), f"slowest {1000 * slowest:.1f} ms")
    assert not faults, faults[:5]
    assert slowest < SECONDS
    assert sum(n for end, n in ends.items() if "compiled" not in end) == count
    assert ends["stale, other values"] == 0
    assert (ends["compiled code accepted"] > 0) is (name == STREAMED)


@pytest.mark.parametrize("name", FILTERS)
def test_damaged_chunks_are_refused_or_decoded_within_their_room(name: str, tmp_path: Path) -> None:
    require(name, 100, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_a_great_many_damaged_chunks_are_refused_or_decoded_within_their_room(name: str, tmp_path: Path) -> None:
    require(name, 6000, 2, tmp_path)
