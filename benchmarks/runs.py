"""Runs on disk for the benchmarks: words as a detector writes them, and a master over them."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import switched

from gaincal.verbs.embed import embed

DISTINCT = 40
RAW, MASTER = "raw.h5", "master.nxs"
FILTERS = {
    "bitshuffle-LZ4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle-Zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "gzip": {"compression": "gzip", "compression_opts": 4},
    "none": {},
}


def build(directory: Path, case: str, frames: int, stored: str = "bitshuffle-LZ4") -> Path:
    """Write a run of one module, a frame a chunk, and its master; returns the master."""
    directory.mkdir(parents=True, exist_ok=True)
    words = switched.words(case, min(frames, DISTINCT))
    with h5py.File(directory / RAW, "w") as file:
        shape = (frames, *words.shape[1:])
        dataset = file.create_dataset("raw", shape, words.dtype, chunks=(1, *shape[1:]), **FILTERS[stored])
        for k, frame in enumerate(words):
            dataset[k] = frame
        for k in range(len(words), frames):
            chunk = dataset.id.read_direct_chunk((k % len(words), 0, 0))[1]
            dataset.id.write_direct_chunk((k, 0, 0), chunk)
    maps = {name: np.asarray(switched.calibration(1).arrays[name]) for name in ("pedestal", "gain")}
    embed(
        f"{directory / RAW}::/raw",
        directory / MASTER,
        formula="jungfrau",
        constants=maps,
        settings={"photon_energy": 12.4},
        overwrite=True,
    )
    return directory / MASTER
