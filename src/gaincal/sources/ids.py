"""Ids of the rows of a file: pulse ids, frame numbers, times; and which rows have none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.dataset import PlainDataset, check_budget
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.sources.files import Spec, read_npy

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
MAX_FIELD_BYTES = 256 << 20
MIN_CHECKED_BYTES, MAX_INFLATION = 16 << 20, 100


def load_ids(spec: Spec, trust: Iterable[str | os.PathLike[str]] = ()) -> tuple[Array, Flags]:
    """Read the ids of all rows of a file.

    Parameters
    ----------
    spec : Spec
        HDF5 with a path, or ``.npy``.
    trust : iterable of str or path
        Directories whose files the file may lead to.

    Returns
    -------
    ids : ndarray (row,)
        Of uint64, or of float64 where the file has floating-point numbers.
    known : ndarray of bool (row,)
        False where there is none: never written, or not finite.

    Raises
    ------
    FileError
        If these are no ids: not one number per row, or negative ones.
    """
    if spec.file.suffix == ".npy":
        values = read_npy(spec.file)
        known: Flags = np.ones(values.shape, bool)
    else:
        with Resolver(spec.file, trust) as resolver, reading(spec.file):
            values, known = _read(resolver.get(spec.path or "/"))
    where = (spec.file, spec.path or "")
    if values.ndim not in (1, 2) or values.size != values.shape[0] or values.dtype.kind not in "iuf":
        raise FileError(*where, f"is {values.dtype}{values.shape}, not one number per frame", code="wrong-shape")
    values, known = values.reshape(-1), np.asarray(known.reshape(-1))
    if values.dtype.kind == "f":
        return values.astype(np.float64), known & np.isfinite(values)
    if values.dtype.kind == "i" and np.any(values < 0):
        raise FileError(*where, "holds negative numbers, which are no ids", code="wrong-shape")
    return values.astype(np.uint64), known


def _read(place: Place) -> tuple[Array, Flags]:
    check_budget(place, MAX_FIELD_BYTES, MIN_CHECKED_BYTES, MAX_INFLATION)
    if place.dataset.is_virtual:
        raise place.error("is a virtual dataset, which is not allowed for ids", code="odd-layout")
    source = PlainDataset(place)
    shape = place.dataset.shape
    values, missing = np.zeros(shape, source.dtype.newbyteorder("=")), np.zeros(shape, bool)
    if values.size:
        source.read(((0,) * len(shape), shape), values, missing)
    return values, ~missing
