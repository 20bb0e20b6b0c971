"""Frames of an assembled run, beside the module files themselves through h5py: ``python benchmarks/assembling.py``."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import h5py
import hdf5plugin
import numpy as np
from measure import speed_ratio, take_turns
from module_files import PULSES, WORDS, ModuleFiles, write_modules

from gaincal import assemble
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words

MODULES, PIXELS = 16, (512, 1024)
RAW = "/entry/instrument/detector/raw/data"
SMALL, FULL = (10_000, (16, 32)), (160, PIXELS)
READ = 12
"""Frames that are read in a turn, here and there in the run."""


def build(folder: Path, frames: int, pixels: tuple[int, int]) -> ModuleFiles:
    """Sixteen modules with gaps, one of them without a file, compressed; and the run that they make."""
    storage = dict(hdf5plugin.Bitshuffle(cname="lz4"))
    files = write_modules(folder, frames, MODULES, pixels, noise=True, **storage)
    files.file(5).unlink()
    del files.rows[5]
    return files


def tasks(files: ModuleFiles, run: Path) -> dict[str, Callable[[], object]]:
    """Read whole frames: through gaincal, through HDF5's virtual dataset, and module by module through h5py."""
    table = np.unique(np.concatenate(list(files.rows.values())))
    chosen = np.random.default_rng(1).choice(len(table), READ, replace=False).tolist()
    rows = {module: files.first_rows(module, table) for module in files.rows}
    datasets = {module: h5py.File(files.file(module))[WORDS] for module in files.rows}
    virtual = h5py.File(run)[RAW]
    buffer = np.zeros((MODULES, *files.pixels), np.uint16)
    resolver = Resolver(run)
    words = Words(resolver, resolver.get(RAW))

    def direct() -> None:
        for k in chosen:
            for module, dataset in datasets.items():
                if rows[module][k] >= 0:
                    dataset.read_direct(buffer, np.s_[rows[module][k]], np.s_[module])

    def ours(threads: int) -> None:
        for k in chosen:
            words.read((k, 0, 0, 0), (1, MODULES, *files.pixels), threads)

    def by_hdf5() -> None:
        for k in chosen:
            virtual.read_direct(buffer, np.s_[k])

    return {
        "module files": direct,
        "1 thread": lambda: ours(1),
        "2 threads": lambda: ours(2),
        "virtual dataset": by_hdf5,
    }


def opening(run: Path, rounds: int = 5) -> float:
    """The median time until all mappings are resolved and checked."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        with Resolver(run) as resolver:
            Words(resolver, resolver.get(RAW))
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main() -> None:
    """Print what assembling and opening take, and how fast frames are read."""
    for frames, pixels in (SMALL, FULL):
        with TemporaryDirectory() as folder:
            files = build(Path(folder), frames, pixels)
            begin = time.perf_counter()
            done = assemble([files.pattern], Path(folder) / "run.nxs", ids={"pulse_id": PULSES})
            print(f"{done.shape}: assembled in {time.perf_counter() - begin:.2f} s", end=", ")
            print(f"opened in {opening(done.path):.2f} s")
            times = take_turns(tasks(files, done.path), rounds=9)
            for name in times:
                ratio = 1 / speed_ratio(times, name, "module files")
                print(f"  {name:16} {1e3 * statistics.median(times[name]) / READ:8.2f} ms a frame  {ratio:.2f}")


if __name__ == "__main__":
    main()
