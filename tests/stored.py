"""Chunks as HDF5 stores them, by filter: what every decoder of chunks is tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from gaincal.kernels import stream
from gaincal.kernels.decode import Pipeline

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def index_chunk(stored: Bytes, checksummed: bool, elements: int, blocks: npt.NDArray[np.int64]) -> bool:
    """Where the compressed blocks of a chunk lie that is in memory; False if it is not just as it must be."""
    return stream.index_chunk(stored.ctypes.data, stored.size, checksummed, elements, blocks.ctypes.data, len(blocks))


FILTERS: dict[str, Mapping[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "gzip, shuffle": {"compression": "gzip", "shuffle": True},
    **{f"bitshuffle {c}": dict(hdf5plugin.Bitshuffle(cname=c)) for c in ("none", "lz4", "zstd")},
    "bitshuffle lz4, small blocks": dict(hdf5plugin.Bitshuffle(nelems=64, cname="lz4")),
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4, small blocks": dict(hdf5plugin.LZ4(nbytes=128)),
    "zstd": {**dict(hdf5plugin.Zstd()), "fletcher32": True},
    **{f"blosc {c}": dict(hdf5plugin.Blosc(cname=c)) for c in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")},
    **{f"blosc, shuffle {s}": dict(hdf5plugin.Blosc(cname="lz4", shuffle=s)) for s in (0, 1, 2)},
}
SHAPES = [(1, 16, 32), (1, 7, 11), (2, 3, 1), (1, 64, 1024)]


def ramp(dtype: str, shape: tuple[int, ...]) -> Array:
    """Values that every filter can shrink, unless there are few of them."""
    return (np.arange(int(np.prod(shape))) % 199).astype(dtype).reshape(shape)


def shrinks(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the filter makes anything of so few values; Blosc gives up, and HDF5 stores the chunk without it."""
    return "blosc" not in name or int(np.prod(shape)) >= 600


def stored_chunk(file: h5py.File, data: Array, options: Mapping[str, Any]) -> tuple[Pipeline, Bytes]:
    """One chunk of a whole array, and its pipeline; raises ValueError if the filter gave up."""
    dataset = file.create_dataset(f"x{len(file)}", data=data, chunks=data.shape, **options)
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    mask, stored = dataset.id.read_direct_chunk((0,) * data.ndim)
    if mask:
        raise ValueError("stored without some of its filters")
    pipeline = Pipeline(tuple((f[0], tuple(f[2])) for f in filters), data.nbytes, data.itemsize)
    return pipeline, np.frombuffer(stored, np.uint8)


def written(
    directory: Path, options: Mapping[str, Any], dtype: str = "u2", shape: tuple[int, ...] = (1, 16, 32)
) -> tuple[Pipeline, bytes]:
    """A chunk as HDF5 writes it, and its pipeline."""
    with h5py.File(directory / "chunk.h5", "w") as file:
        pipeline, stored = stored_chunk(file, ramp(dtype, shape), options)
    return pipeline, stored.tobytes()


@dataclass
class InSlabs:
    """An array that is read slab by slab; counts how often."""

    values: npt.NDArray[Any]
    reads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def slab(self, place: tuple[int, ...], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:  # noqa: ARG002
        self.reads += 1
        return np.asarray(self.values[place])
