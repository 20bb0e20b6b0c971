"""Processes of a dask cluster beside threads of one process, on the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import switched
from measure import speed_ratio, take_turns

from gaincal.scatter import apply_on, connected
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # old versions of distributed, of tornado
]
AT_LEAST = 0.7
FRAMES, ROUNDS = 2_000, 3
"""Of the measurement, ``python benchmarks/test_scatter_speed.py``; the test is smaller, and only has to work."""
SMALL = 60


def build(directory: Path, frames: int) -> Path:
    """A master over switched words, most of them in G0."""
    words = switched.words("2 % clustered", min(frames, 100))
    with h5py.File(directory / "raw.h5", "w") as file:
        dataset = file.create_dataset("data", (frames, *words.shape[1:]), words.dtype, chunks=(1, *words.shape[1:]))
        for first in range(0, frames, len(words)):
            dataset[first : first + len(words)] = words[: frames - first]
    constants = switched.calibration(1).arrays
    maps = {name: np.asarray(constants[name]) for name in ("pedestal", "gain")}
    settings = {"photon_energy": 12.4}
    embed(directory / "raw.h5", directory / "master.nxs", formula="jungfrau", constants=maps, settings=settings)
    return directory / "master.nxs"


def ratio(client: Any, master: Path, rounds: int, warm: int) -> float:
    """How fast two workers are, compared with two threads; every round computes all parts anew."""
    target = {name: master.with_name(f"{name}.nxs") for name in ("workers", "threads")}

    def workers() -> None:
        for part in master.parent.glob("workers.parts/*.nxs"):
            part.unlink()
        apply_on(client, master, target["workers"], output="counts", overwrite=True)

    def threads() -> None:
        apply(master, target["threads"], output="counts", jobs=2, overwrite=True)

    times = take_turns({"workers": workers, "threads": threads}, rounds, warm)
    print(*(f"{name}: {', '.join(f'{t:.2f}' for t in taken)} s" for name, taken in times.items()), sep="\n")
    return speed_ratio(times, "workers", "threads")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connected("local", 2) as found:
        yield found


def test_workers_write_what_threads_write(client: Any, tmp_path: Path) -> None:
    master = build(tmp_path, SMALL)
    assert ratio(client, master, rounds=1, warm=0) > 0
    with h5py.File(tmp_path / "workers.nxs") as a, h5py.File(tmp_path / "threads.nxs") as b:
        for frame in (0, SMALL // 2, SMALL - 1):
            np.testing.assert_array_equal(a["/entry/data/data"][frame], b["/entry/data/data"][frame])


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(dir=".") as folder, connected("local", 2) as found:
        measured = ratio(found, build(Path(folder), FRAMES), ROUNDS, warm=1)
    print(f"2 workers / 2 threads: {measured:.2f}, at least {AT_LEAST} wanted; start-up of the cluster not counted")
