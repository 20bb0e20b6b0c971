"""One damaged byte anywhere in a self-contained file is an error, a finding, or harmless: never other pixels."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from hostile.harness import Edit, Run, Worker, endings

MUTATIONS = 1000
PROCESSES = 2


OLD_HDF5 = h5py.version.hdf5_version_tuple < (1, 14)
"""These crash by themselves on damaged global heaps, where text of variable length lies without a checksum."""


def global_heaps(data: bytes) -> list[range]:
    """Where the global heaps of an HDF5 file lie."""
    starts = [m.start() for m in re.finditer(b"GCOL\x01", data)]
    return [range(s, s + int.from_bytes(data[s + 8 : s + 16], "little")) for s in starts]


def mutations(size: int) -> list[Edit]:
    """A thousand bytes of a file, each with some other value."""
    random = np.random.default_rng(2026)
    return [[(int(random.integers(size)), int(random.integers(1, 256)))] for _ in range(MUTATIONS)]


@pytest.mark.slow
def test_a_damaged_byte_never_changes_pixels_silently(self_contained: Run, tmp_path: Path) -> None:
    edits = mutations(self_contained.master.stat().st_size)
    runs = [self_contained.copy(tmp_path / str(k)) for k in range(PROCESSES)]
    workers = [Worker(self_contained) for _ in runs]
    parts = [edits[k::PROCESSES] for k in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(endings, workers, runs, parts))
    for process in workers:
        process.close()
    ends = [(end, *edit[0], text) for part, done in zip(parts, found, strict=True)
            for edit, (end, text) in zip(part, done, strict=True)]  # fmt: skip
    counts = Counter(end for end, _, _, _ in ends)
    print(dict(counts))
    assert sum(counts.values()) == MUTATIONS
    assert [e for e in ends if e[0] in ("silent", "traceback")] == []
    heaps = global_heaps(self_contained.master.read_bytes())
    crashes = [e for e in ends if e[0] == "crash"]
    assert [e for e in crashes if not (OLD_HDF5 and any(e[1] in heap for heap in heaps))] == []
    assert counts["error"] > 0
    assert counts["same"] > 0
