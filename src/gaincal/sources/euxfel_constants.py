"""Calibration constants in the files of the European XFEL: the order of their axes stands in an attribute ``dims``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.formulas.program import Labels
from gaincal.nexus.fields import MAX_ATTRIBUTE_BYTES, attribute_size, read_array
from gaincal.nexus.group import MAX_CONSTANT_BYTES
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.sources.files import datasets

Array = npt.NDArray[Any]
DIMS = "dims"
MODULE = "module"
PIXEL_DIMS = (MODULE, "y", "x")
ALIASES = {
    "fast_scan": "x",
    "slow_scan": "y",
    "gain": "stage",
    "gains": "stage",
    "cells": "cell",
    "memory_cell": "cell",
    "memory_cells": "cell",
    "modules": "module",
}
MAX_RANK = 8


def load(file: Path, path: str | None, dims: tuple[str, ...], pixels: tuple[int, ...]) -> tuple[Array, Labels]:
    """Read a constant.

    Parameters
    ----------
    file : Path
    path : str, optional
        Of the dataset, or of the group that holds it as ``data``; else the only dataset that names its axes.
    dims : tuple of str
        What the formula declares: ``("stage", "cell", "module", "y", "x")``.
    pixels : tuple of int
        Shape of a frame.

    Returns
    -------
    values : ndarray
        Along `dims`; a view in another order of what the file holds.
    labels : tuple of tuple of int
        0, 1, 2 ... along each named axis.

    Raises
    ------
    FileError
        If the axes are not named, or are not those of the formula.
    """
    with Resolver(file) as resolver, reading(file):
        place = _place(resolver, path)
        order = _order(place, dims)
        shape = tuple(place.dataset.shape[k] for k in order)
        _check_pixels(place, shape, dims, pixels)
        values = read_array(place, MAX_CONSTANT_BYTES).transpose(order)
    return values, _labels(dims, shape, pixels)


def _place(resolver: Resolver, path: str | None) -> Place:
    """The dataset that is meant."""
    if path is not None:
        place = resolver.get(path)
        return resolver.walk(place, "data") if isinstance(place.item, h5py.Group) else place
    named = {p.identity: p for p in datasets(resolver) if DIMS in p.item.attrs}
    if len(named) == 1:
        return next(iter(named.values()))
    listed = ", ".join(sorted(p.path for p in named.values())[:8])
    problem = f"several datasets name their axes: {listed}" if named else "no dataset names its axes"
    raise FileError(resolver.named, "", problem, f"name it: {resolver.named}::/path", code="ambiguous")


def _order(place: Place, dims: tuple[str, ...]) -> tuple[int, ...]:
    """Which axis of a dataset is which of `dims`; raises FileError where that is not certain."""
    stated = _stated(place)
    axes = [ALIASES.get(name, name) for name in stated]
    if len(axes) != place.dataset.ndim:
        problem = f"has {place.dataset.ndim} dimensions and names {len(axes)}: {', '.join(stated)}"
        raise place.error(problem, code="wrong-shape")
    unknown = [s for s, a in zip(stated, axes, strict=True) if a not in dims]
    missing = [d for d in dims if d not in axes]
    if unknown or missing or len(set(axes)) != len(axes):
        said = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        problem = f"has the axes {', '.join(stated)}; {'; '.join(said) or 'one of them twice'}"
        raise place.error(problem, f"the formula needs ({', '.join(dims)})", code="wrong-shape")
    return tuple(axes.index(d) for d in dims)


def _stated(place: Place) -> list[str]:
    """The names of a dataset's axes, as its attribute gives them."""
    if DIMS not in place.dataset.attrs:
        raise place.error(f"has no attribute '{DIMS}' that names its axes", code="wrong-shape")
    size = attribute_size(place, DIMS)
    if size is None or size > MAX_ATTRIBUTE_BYTES:
        raise TrustError(place.file, place.path, f"attribute {DIMS} is beyond all measure", code="over-budget")
    value = np.asarray(place.dataset.attrs[DIMS])
    names = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value.reshape(-1)[:MAX_RANK].tolist()]
    if value.ndim != 1 or value.size > MAX_RANK or not all(isinstance(n, str) and n.isprintable() for n in names):
        raise place.error(f"attribute {DIMS} is not a list of names", code="odd-type")
    return names


def _pixels(dims: tuple[str, ...], pixels: tuple[int, ...]) -> dict[str, int]:
    """Lengths of the dims that are pixels."""
    named = zip(PIXEL_DIMS[len(PIXEL_DIMS) - len(pixels) :], pixels, strict=True)
    return {name: length for name, length in named if name in dims}


def _check_pixels(place: Place, shape: tuple[int, ...], dims: tuple[str, ...], pixels: tuple[int, ...]) -> None:
    lengths = dict(zip(dims, shape, strict=True))
    if lengths | _pixels(dims, pixels) != lengths:
        stated = ", ".join(f"{d}: {n}" for d, n in lengths.items())
        raise place.error(f"has ({stated}), the frames are {pixels}", code="wrong-shape")


def _labels(dims: tuple[str, ...], shape: tuple[int, ...], pixels: tuple[int, ...]) -> Labels:
    return tuple(tuple(range(n)) for d, n in zip(dims, shape, strict=True) if d not in _pixels(dims, pixels))
