"""What identifies frames, as numbers that are equal where, and only where, the frames are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError

Array = npt.NDArray[Any]
Columns = tuple[Array, ...]
"""One or more columns (row,) that identify rows together."""


@dataclass(frozen=True, eq=False)
class Keys:
    """Numbers for the ids of all rows.

    Parameters
    ----------
    of : list of ndarray of int64
        For each given list of rows.
    distinct : tuple of ndarray
        The distinct values of every column.
    """

    of: list[Array]
    distinct: Columns

    def ids(self, keys: Array) -> Columns:
        """The ids that some numbers stand for, a column each."""
        columns = []
        for values in reversed(self.distinct):
            keys, place = np.divmod(keys, max(len(values), 1))
            columns.append(values[place])
        return tuple(reversed(columns))


def equal_keys(rows: Sequence[Columns]) -> Keys:
    """Number rows by their ids: equal numbers for equal ids."""
    columns = list(zip(*rows, strict=True))
    distinct = tuple(_distinct(values) for values in columns)
    keys = []
    for row in rows:
        key = np.zeros(len(row[0]), np.int64)
        for values, column in zip(distinct, row, strict=True):
            # Every value is among the distinct ones: where it would stand is where it stands.
            key = key * max(len(values), 1) + np.searchsorted(values, column)
        keys.append(key)
    return Keys(keys, distinct)


def _distinct(columns: Sequence[Array]) -> Array:
    return np.unique(np.concatenate([np.unique(c) for c in columns])) if columns else np.empty(0, np.uint64)


def close_keys(rows: Sequence[Array], names: Sequence[str], tolerance: float) -> Keys:
    """Number rows by times: equal numbers for times that lie no further apart than a tolerance.

    Parameters
    ----------
    rows : sequence of ndarray (row,)
        Times, of one type.
    names : sequence of str
        What each belongs to: the same name for the rows of one module.
    tolerance : float
        In the unit of the times.

    Raises
    ------
    RequestError
        If times are so dense that it is not clear which belong together, by name.

    Notes
    -----
    A group ends where the next time is further away than the tolerance.  It is clear if it spans no more than
    the tolerance and has one time of each module: then no time could belong to another group.  Its id is its first.
    """
    times = np.concatenate(rows)
    owner = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    order = np.argsort(times, kind="stable")
    times, owner = times[order], owner[order]
    limit = int(tolerance) if times.dtype.kind in "iu" else tolerance
    begins = np.concatenate([[True], np.diff(times) > limit])[: len(times)]
    starts = np.flatnonzero(begins)
    first = times[starts]
    group = np.cumsum(begins) - 1
    _refuse_wide(times, owner, first, group, limit, names)
    _refuse_twice(times, owner, group, names)
    return Keys([np.searchsorted(first, r, side="right") - 1 for r in rows], (first,))


def _refuse_wide(times: Array, owner: Array, first: Array, group: Array, limit: float, names: Sequence[str]) -> None:
    for k in np.flatnonzero(times - first[group] > limit)[:1]:
        start = int(np.flatnonzero(group == group[k])[0])
        problem = f"{times[start]} of {names[owner[start]]} and {times[k]} of {names[owner[k]]} are further apart"
        raise RequestError(
            f"{problem} than the tolerance {limit}, but times between them are not: choose a smaller one"
        )


def _refuse_twice(times: Array, owner: Array, group: Array, names: Sequence[str]) -> None:
    """Refuse two different times of one module in a group; equal ones are one frame recorded again."""
    whose = np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1)[owner]
    order = np.lexsort((times, whose, group))
    group, whose, sorted_times = group[order], whose[order], times[order]
    twice = (np.diff(group) == 0) & (np.diff(whose) == 0) & (sorted_times[1:] != sorted_times[:-1])
    for k in np.flatnonzero(twice)[:1]:
        problem = (
            f"{sorted_times[k]} and {sorted_times[k + 1]} of {names[owner[order[k]]]} are both within the tolerance"
        )
        raise RequestError(f"{problem} of one frame: choose a smaller one")
