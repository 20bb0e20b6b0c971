"""NumPy files of raw words, as users of LCLS export them: (event, segment, y, x) or (event, y, x)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.trust import reading
from gaincal.sources.files import NPY_MAGIC
from gaincal.sources.run import RawRun, RawWords

Array = npt.NDArray[Any]
SUFFIX = ".npy"
RANKS = (2, 3, 4)


def recognise(path: Path, inside: str | None = None) -> RawRun | None:
    """Take a ``.npy`` file of unsigned integers for a run; None for any other file.

    Raises
    ------
    FileError
        If its elements are no words, or it is cut short.
    """
    if path.suffix != SUFFIX or not path.is_file():
        return None
    if inside is not None:
        raise FileError(path, inside, "a NumPy file has no paths", "leave the path out", code="not-found")
    with reading(path):
        with path.open("rb") as stream:
            if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise FileError(path, "", "is not a NumPy array file", code="not-npy")
        words = np.load(path, mmap_mode="r", allow_pickle=False)
    if words.dtype.kind != "u" or words.dtype.itemsize > 4 or words.ndim not in RANKS:
        problem = f"holds {words.dtype.name} of {words.ndim} dimensions; words are unsigned, (event, [segment,] y, x)"
        raise FileError(path, "", problem, code="not-words")
    if words.flags.f_contiguous and not words.flags.c_contiguous:
        raise FileError(path, "", "is stored column by column", "save it with order='C'", code="odd-layout")
    frames, pixels = int(words.shape[0]), tuple(int(n) for n in words.shape[1:])
    kind = words.dtype.newbyteorder("=")

    def read(first: int, count: int) -> tuple[Array, None]:
        return np.asarray(words[first : first + count]).astype(kind), None

    description = f"NumPy array, {path.name}: {frames} events of {pixels}"
    return RawRun("arrays", description, "", None, frames, pixels, {"raw": RawWords(kind, (), read)}, files=(path,))
