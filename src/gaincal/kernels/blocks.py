"""Run a compiled program over blocks of frames: everything checked, the work cut up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.program import Program
from gaincal.kernels.memory import ALIGNMENT
from gaincal.kernels.packed import Packed
from gaincal.kernels.prepared import Prepared, owning, require, split_pixels
from gaincal.kernels.rows import Rows
from gaincal.kernels.threads import run_all

Array = npt.NDArray[Any]
STREAMED_BYTES = 4 << 20
"""Larger results bypass the cache, where they would take the place of the constants."""


def evaluate(
    program: Program,
    arrays: Mapping[str, Array | Rows],
    value: Array | Rows,
    flags: npt.NDArray[np.uint32] | Rows | None = None,
    threads: int = 1,
) -> None:
    """Compute a program for a block of frames.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray or Rows
        As for `gaincal.kernels.reference.evaluate`; inputs and constants in the types the program
        declares, constants and real inputs in its compute type.
    value : ndarray (frame, pixel) or Rows
        Receives the value, in the program's dtype.
    flags : ndarray (frame, pixel) of uint32, or Rows, optional
        Receives the flags.
    threads : int
        Most threads to use.
    """
    frames, pixels = value.shape
    Plan.of(Prepared.of(program, arrays, pixels), frames).evaluate(arrays, value, flags, threads)


@dataclass(frozen=True)
class Share:
    """Frames of a block in which the pixels of a run have the same maps.

    Parameters
    ----------
    prepared : Prepared
        That has these maps.
    run : int
        Which of its runs it is.
    origin : int
        The pixel of a frame with which its pixels begin.
    begin, end : int
        The frames, from the first number to the one before the second.
    """

    prepared: Prepared
    run: int
    origin: int
    begin: int
    end: int

    @property
    def first(self) -> int:
        """The first pixel."""
        return self.origin + self.prepared.runs[self.run].first

    @property
    def last(self) -> int:
        """The one behind the last pixel."""
        return self.origin + self.prepared.runs[self.run].last


class Plan:
    """What computes a block: a program, and the maps for all of its frames and pixels.

    Parameters
    ----------
    program : Program
        Says what is given for each frame.
    pixels : int
        Of a frame.
    runs : sequence of sequence of Share
        For each run of pixels, in order, what computes its frames, in order.

    Attributes
    ----------
    shares : list of Share
        Of all runs.
    edges : list of (int, int)
        The first pixel of every run, and the one behind its last.
    """

    def __init__(self, program: Program, pixels: int, runs: Sequence[Sequence[Share]]) -> None:
        self.program, self.pixels, self.runs = program, pixels, runs
        self.shares = [share for run in runs for share in run]
        self.edges = [(run[0].first, run[0].last) for run in runs]
        self._types = dict(program.types)
        self._tables: dict[tuple[bool, ...], tuple[Any, npt.NDArray[np.int64]]] = {}

    @cached_property
    def groups(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Frames and pixels of a plane of every share (share, 3), and which shares are of a run (run + 1,)."""
        groups = [(s.begin, s.end, s.prepared.pixels) for s in self.shares]
        return np.array(groups, np.int64), np.cumsum([0, *(len(run) for run in self.runs)])

    @classmethod
    def of(cls, prepared: Prepared, frames: int) -> Plan:
        """The same maps for all frames."""
        runs = [[Share(prepared, run, 0, 0, frames)] for run in range(len(prepared.runs))]
        return cls(prepared.program, prepared.pixels, runs)

    def evaluate(
        self,
        arrays: Mapping[str, Array | Rows],
        value: Array | Rows,
        flags: npt.NDArray[np.uint32] | Rows | None = None,
        threads: int = 1,
    ) -> None:
        """Compute a block of frames.

        Parameters
        ----------
        arrays : mapping of str to ndarray or Rows
            What is given for each frame, as for `gaincal.kernels.blocks.evaluate`.
        value, flags, threads
            As for `gaincal.kernels.blocks.evaluate`.
        """
        frames, _ = value.shape
        wanted = ((value, self.program.dtype), (flags, "uint32"))
        results = [_result(r, dtype, (frames, self.pixels)) for r, dtype in wanted if r is not None]
        streaming = all(leaves_cache(result, first) for first, _ in self.edges for result in results)
        kernel, tables = self.tables(flags is not None, False, streaming, threads)
        kept = self.place(tables, arrays, frames)  # the kernel knows only where things lie
        for number, result in enumerate(results, len(self.program.given)):
            tables[:, number] = result.addresses.ctypes.data
        jobs = [
            partial(
                owning,
                (self, tables, kept, results),
                kernel,
                table,
                share.begin,
                share.end,
                share.prepared.pixels,
                *part,
            )
            for share, table in zip(self.shares, addresses_of(tables), strict=True)
            for part in split_pixels(share.end - share.begin, share.first, share.last, threads)
        ]
        run_all(jobs, threads)

    def tables(self, flags: bool, marks: bool, streaming: bool, threads: int) -> tuple[Any, npt.NDArray[np.int64]]:
        """The kernel, and for every share what it wants to know; see `Prepared.tables`."""
        key = flags, marks, streaming
        known = self._tables.get(key)
        if known is None:
            found = {id(p): p.tables(*key, threads) for p in {id(s.prepared): s.prepared for s in self.shares}.values()}
            own = [found[id(share.prepared)] for share in self.shares]
            rows = np.array([t.rows[share.run] for t, share in zip(own, self.shares, strict=True)])
            rows -= np.array([[share.origin] for share in self.shares]) * own[0].steps
            known = self._tables[key] = own[0].kernel, rows
        return known[0], known[1].copy()

    def place(
        self, tables: npt.NDArray[np.int64], arrays: Mapping[str, Array | Rows | Packed], frames: int
    ) -> dict[str, Array | Rows]:
        """Note in tables where all that is given by frame lies, but for packed words.

        Returns
        -------
        dict of str to Rows or ndarray
            What must live as long as the tables are used.
        """
        program, placed = self.program, dict[str, Array | Rows]()
        for number, item in enumerate(program.given):
            name = item.name
            if name not in program.by_frame:
                continue
            array, partial_ = arrays[name], name in program.partial
            along = [self.pixels] if self._types[name].dims - {FRAME} else [len(self.runs)] if partial_ else []
            require(program, name, array, (frames, *along))
            if name in program.by_row:
                if isinstance(array, Packed):
                    continue
                rows = Rows.reading(array) if isinstance(array, np.ndarray) else array
                placed[name], tables[:, number] = rows, rows.addresses.ctypes.data
            else:  # frame by frame for each run
                lying = np.ascontiguousarray(np.asarray(array).T)
                placed[name] = lying
                begins = addresses_of(lying) if partial_ else [lying.ctypes.data] * len(self.runs)
                tables[:, number] = [own for own, run in zip(begins, self.runs, strict=True) for _ in run]
        return placed


def _result(result: Array | Rows, dtype: str, shape: tuple[int, ...]) -> Rows:
    """Where results go; raises ValueError if they do not fit there."""
    if isinstance(result, np.ndarray):
        if not result.flags.writeable:
            raise ValueError("a result must be writable")
        result = Rows.of(result)
    if result.dtype != dtype or result.shape != shape:
        raise ValueError(f"a result must be {dtype}{shape}, not {result.dtype}{result.shape}")
    return result


def addresses_of(array: Array) -> list[int]:
    """Where each row of a contiguous array begins."""
    return [array.ctypes.data + k * array.strides[0] for k in range(len(array))]


def leaves_cache(result: Rows, first: int) -> bool:
    """Whether a result is too large for the cache, and every frame and run of it begins at a cache line."""
    size = result.dtype.itemsize
    if len(result.addresses) * result.shape[-1] * size < STREAMED_BYTES:
        return False
    return not np.bitwise_or.reduce(result.addresses + first * size) % ALIGNMENT
