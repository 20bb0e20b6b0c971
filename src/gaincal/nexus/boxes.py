"""Boxes in a grid: what they cover, what they leave, whether they overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""First index and length along every dim."""
MAX_CELLS = 1 << 24
MOST_LISTED = 1000


def intersection(a: Box, b: Box) -> Box | None:
    """The box that two boxes share, None if they share nothing."""
    start = tuple(max(s, t) for s, t in zip(a[0], b[0], strict=True))
    stop = (min(s + n, t + m) for s, n, t, m in zip(*a, *b, strict=True))
    count = tuple(e - s for s, e in zip(start, stop, strict=True))
    return (start, count) if all(n > 0 for n in count) else None


def number_of(place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Which element lies at a place of an array."""
    number = 0
    for index, length in zip(place, shape, strict=True):
        number = number * length + index
    return number


def slices_of(box: Box) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(start, start + count) for start, count in zip(*box, strict=True))


def remainder(box: Box, inner: Box) -> Iterator[Box]:
    """Boxes that make up what an inner box leaves of a box."""
    start, count = list(box[0]), list(box[1])
    for axis, (first, length) in enumerate(zip(*inner, strict=True)):
        for begin, end in ((start[axis], first), (first + length, start[axis] + count[axis])):
            if begin < end:
                part = [*start[:axis], begin, *start[axis + 1 :]], [*count[:axis], end - begin, *count[axis + 1 :]]
                yield tuple(part[0]), tuple(part[1])
        start[axis], count[axis] = first, length


def coverage(shape: tuple[int, ...], starts: Array, stops: Array, most: int = MOST_LISTED) -> tuple[list[Box], bool]:
    """What some boxes leave of an array, and whether they overlap.

    Parameters
    ----------
    shape : tuple of int
    starts, stops : ndarray of int (box, dim)
        Where the boxes begin and end.
    most : int

    Returns
    -------
    uncovered : list of Box
        At most so many; none where it would take too much to tell.
    overlapping : bool
        Whether two boxes overlap, or might, where it would take too much to tell.
    """
    if len(starts) == 1 and not starts.any() and stops[0].tolist() == list(shape):
        return [], False  # one dataset, whole: most runs; NumPy's sets cost as much as opening them
    edges, covered, overlapping = _cells(shape, starts, stops)
    if covered is None or covered.all():
        return [], overlapping
    # Cells that follow each other along the first dim are one box.
    holes = np.pad(~covered, [(1, 1), *[(0, 0)] * (len(shape) - 1)])
    steps = np.moveaxis(np.diff(holes.astype(np.int8), axis=0), 0, -1)
    begins, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    found = []
    for begin, end in zip(begins[:most].tolist(), ends[:most].tolist(), strict=True):
        cell = (begin[-1], *begin[:-1]), (end[-1], *(k + 1 for k in begin[:-1]))
        low, high = (tuple(int(e[k]) for e, k in zip(edges, corner, strict=True)) for corner in cell)
        found.append((low, tuple(h - b for b, h in zip(low, high, strict=True))))
    return found, overlapping


def _cells(shape: tuple[int, ...], starts: Array, stops: Array) -> tuple[list[Array], Array | None, bool]:
    """Edges of boxes along every dim, which of the cells between these are covered, and whether any is twice."""
    edges = [np.unique([0, n, *starts[:, k], *stops[:, k]]) for k, n in enumerate(shape)]
    if int(np.prod([len(e) for e in edges], dtype=object)) > MAX_CELLS:
        return edges, None, True
    covered = np.zeros([len(e) - 1 for e in edges], bool)
    low, high = (np.stack([np.searchsorted(e, c[:, k]) for k, e in enumerate(edges)], axis=1) for c in (starts, stops))
    twice = False
    for first, last in zip(low.tolist(), high.tolist(), strict=True):
        cells = tuple(map(slice, first, last))
        twice |= bool(covered[cells].any())
        covered[cells] = True
    return edges, covered, twice
