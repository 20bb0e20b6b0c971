"""Dark runs on disk for the benchmarks, and what `darks` does with them, beside what reading them costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words
from gaincal.verbs.darks import darks

DISTINCT, SHAPE, AT_ONCE = 24, (512, 1024), 32
FILTERS = {"bitshuffle-LZ4": dict(hdf5plugin.Bitshuffle(cname="lz4")), "none": {}}


def build(path: Path, frames: int, stored: str, modules: int = 1) -> Path:
    """Write dark frames of G0, a frame of all modules in a chunk of its own for each module."""
    rng = np.random.default_rng(1)
    shape = SHAPE if modules == 1 else (modules, *SHAPE)
    chunk = (1, *SHAPE) if modules == 1 else (1, 1, *SHAPE)
    pedestal = rng.normal(3000, 100, SHAPE)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", (frames, *shape), np.uint16, chunks=chunk, **FILTERS[stored])
        first = (0,) * (len(shape) - 2)
        for k in range(min(frames, DISTINCT)):
            dataset[(k, *first)] = np.rint(rng.normal(pedestal, 15)).astype(np.uint16)
        known = [dataset.id.read_direct_chunk((k, *first, 0, 0))[1] for k in range(min(frames, DISTINCT))]
        for k in range(frames):
            for module in range(modules):
                where = (k, 0, 0) if modules == 1 else (k, module, 0, 0)
                if k >= DISTINCT or module:
                    dataset.id.write_direct_chunk(where, known[(k + module) % len(known)])
    return path


def tasks(path: Path, frames: int, threads: int, method: str = "mean") -> dict[str, Callable[[], object]]:
    """``darks`` from file to file; the words decoded here, and read by h5py."""
    raw = h5py.File(path)["raw"]
    buffer = np.empty((AT_ONCE, *raw.shape[1:]), np.uint16)
    resolver = Resolver(path)
    words = Words(resolver, resolver.get("/raw"))
    origin = (0,) * (raw.ndim - 1)

    def h5py_raw() -> None:
        for first in range(0, frames, AT_ONCE):
            raw.read_direct(buffer, np.s_[first : first + AT_ONCE])

    def decoded() -> None:
        for first in range(0, frames, AT_ONCE):
            words.read((first, *origin), (min(AT_ONCE, frames - first), *raw.shape[1:]), threads)

    def all_of_it() -> None:
        out = path.with_suffix(".constants.nxs")
        darks((), out, stages={0: path}, formula="jungfrau", method=method, jobs=threads, overwrite=True)

    return {"h5py raw": h5py_raw, "decoded": decoded, "darks": all_of_it}
