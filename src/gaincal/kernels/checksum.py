"""HDF5's fletcher32 checksum, in plain NumPy, or compiled where there is much of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MODULUS = 65535
UNCOMPILED_BYTES = 128 << 20
"""So many bytes are summed by NumPy sooner than numba is imported and the same is compiled."""
_BLOCK = 4096
_WEIGHTS = np.stack([np.ones(_BLOCK), np.arange(_BLOCK, 0, -1)], axis=1)

_seen = [0]


def fletcher32(data: npt.NDArray[Any]) -> int:
    """The checksum that HDF5 puts behind a chunk.

    Two sums modulo 65535 over 16-bit words whose first byte is the high one: of the words, and of
    the sums so far.  2**16 is 1 modulo 65535, so words are added as they lie and the bytes of the
    sums exchanged in the end.

    Parameters
    ----------
    data : ndarray of uint8 (bytes,)

    References
    ----------
    .. [1] HDF5 File Format Specification 3.0, "Fletcher32 filter"; J. Fletcher, IEEE Trans. Commun. 30 (1982) 247.
    """
    _seen[0] += data.size
    if _seen[0] > UNCOMPILED_BYTES:
        from gaincal.kernels import compiled_checksum

        return compiled_checksum.fletcher32(data)
    return summed(data)


def summed(data: npt.NDArray[Any]) -> int:
    """The same with nothing to compile."""
    even = data.size // 2
    words = data[: 2 * even].view("<u2")
    first = second = 0
    for begin in range(0, even, _BLOCK):  # a block's sums are exact in float64
        block = words[begin : begin + _BLOCK]
        total, weighted = block.astype(np.float64) @ _WEIGHTS[_BLOCK - block.size :]
        second += block.size * first + int(weighted)
        first += int(total)
    if data.size % 2:
        first += int(data[-1])
        second += first
    return folded(second) << 16 | folded(first)


def folded(total: int) -> int:
    """A sum of words as they lie, modulo 65535, with its bytes exchanged; only nothing at all gives 0."""
    rest = total % MODULUS or (MODULUS if total else 0)
    return (rest & 0xFF) << 8 | rest >> 8
