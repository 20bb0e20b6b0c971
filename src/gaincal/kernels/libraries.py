"""Functions of the compression libraries that hdf5plugin brings, called without HDF5 and its lock.

The plug-ins export the libraries they are made of.  What is not there is None, and chunks of that
filter are then read through HDF5.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gaincal.kernels.arithmetic import ieee

Function = Any  # what ctypes makes of a symbol
_ADDRESS, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_BITSHUFFLE = (ctypes.c_int64, (_ADDRESS, _ADDRESS, _SIZE, _SIZE, _SIZE))
_SIGNATURES: dict[str, tuple[str, tuple[Any, tuple[Any, ...]]]] = {
    "bshuf_compress_lz4": ("bshuf", _BITSHUFFLE),
    "bshuf_decompress_lz4": ("bshuf", _BITSHUFFLE),
    "bshuf_decompress_zstd": ("bshuf", _BITSHUFFLE),
    "bshuf_bitunshuffle": ("bshuf", _BITSHUFFLE),
    "LZ4_decompress_safe": ("bshuf", (_INT, (_ADDRESS, _ADDRESS, _INT, _INT))),
    "LZ4_compress_default": ("bshuf", (_INT, (_ADDRESS, _ADDRESS, _INT, _INT))),
    "ZSTD_decompress": ("bshuf", (_SIZE, (_ADDRESS, _SIZE, _ADDRESS, _SIZE))),
    "blosc_decompress_ctx": ("blosc", (_INT, (_ADDRESS, _ADDRESS, _SIZE, _INT))),
}
_SAMPLE = bytes(range(16)) * 8


@cache
def plugins() -> Any:
    """The module hdf5plugin, whose import registers its filters with HDF5; the only way to it here.

    Its bitshuffle replaces one that the system may have: that of Debian knows no Zstandard, and stores something else.
    While a dataset that uses the system's is open, HDF5 keeps it: it serves for LZ4, and Zstandard is decoded here.
    """
    with ieee():  # loading its libraries may change the arithmetic of the thread
        import hdf5plugin

        if hdf5plugin.get_config().registered_filters.get("bshuf") == "unknown":
            with suppress(RuntimeError):
                hdf5plugin.register("bshuf", force=True)
    return hdf5plugin


@cache
def function(name: str) -> Function:
    """A function of a compression library, None where hdf5plugin does not bring it."""
    library, (result, arguments) = _SIGNATURES[name]
    loaded = _library(library)
    found = getattr(loaded, name, None)
    if found is not None:
        found.restype, found.argtypes = result, list(arguments)
    return found


@cache
def lz4_decoder() -> int | None:
    """Where compiled code finds the decoder of LZ4 blocks; None if it does not work here."""
    pack, unpack = function("LZ4_compress_default"), function("LZ4_decompress_safe")
    if pack is None or unpack is None:
        return None
    packed, unpacked = ctypes.create_string_buffer(2 * len(_SAMPLE)), ctypes.create_string_buffer(len(_SAMPLE))
    size = pack(_SAMPLE, packed, len(_SAMPLE), len(packed))
    if size <= 0 or unpack(packed, unpacked, size, len(_SAMPLE)) != len(_SAMPLE) or unpacked.raw != _SAMPLE:
        return None
    return ctypes.cast(unpack, ctypes.c_void_p).value


@cache
def system(name: str) -> int:
    """Where compiled code finds a function of the system, such as pread."""
    found = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    assert found is not None
    return found


@cache
def _library(name: str) -> ctypes.CDLL | None:
    """The shared object of a plug-in, found without importing hdf5plugin, which registers all of its filters."""
    for folder in _folders():
        for path in sorted(folder.glob(f"libh5{name}.*")):
            try:
                with ieee():
                    return ctypes.CDLL(str(path))
            except OSError:
                continue
    return None


def _folders() -> Iterator[Path]:
    """Where plug-ins may lie: in the package, else where a distribution has put them."""
    package = importlib.util.find_spec("hdf5plugin")
    if package is None:
        return
    yield from (Path(folder, "plugins") for folder in package.submodule_search_locations or ())
    yield Path(plugins().PLUGIN_PATH)
