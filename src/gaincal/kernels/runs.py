"""Runs of pixels along which an input per module (a memory cell, say) is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from gaincal.formulas.program import Program

Array = npt.NDArray[Any]


def split_runs(
    program: Program, arrays: Mapping[str, Array], pixels: int, runs: int = 1
) -> Iterator[tuple[int, int, dict[str, Array]]]:
    """Take the pixels of a frame apart into runs.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray
        Those that are partial in the program have one value per run along their last dim.
    pixels : int
        Of a frame.
    runs : int
        How many there are if no input or constant tells.

    Yields
    ------
    first, last : int
        The pixels of the run.
    arrays : dict of str to ndarray
        With the values of this run; those that vary from pixel to pixel are left whole.

    Raises
    ------
    ValueError
        If the runs do not make up the pixels.
    """
    counts = {arrays[name].shape[-1] for name in program.partial & arrays.keys()} or {runs}
    if len(counts) > 1 or any(n < 1 or pixels % n for n in counts):
        raise ValueError(f"runs of {sorted(counts)} values do not make up {pixels} pixels")
    runs = counts.pop()
    for run in range(runs):
        own = {
            n: a[..., run : run + 1] if n in program.labelled else a[..., run]
            for n, a in arrays.items()
            if n in program.partial
        }
        yield run * (pixels // runs), (run + 1) * (pixels // runs), {**arrays, **own}
