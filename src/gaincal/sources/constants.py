"""Constants as facilities keep them: HDF5, NumPy, PSI's gain maps, European XFEL; in one file or one per module."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.constants import ConstantMap, Slabs
from gaincal.errors import FileError
from gaincal.formulas.formula import Constant
from gaincal.formulas.program import Labels
from gaincal.formulas.units import Unit
from gaincal.nexus import names
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.dataset import check_budget
from gaincal.nexus.fields import attribute_text, read_array
from gaincal.nexus.group import MAX_CONSTANT_BYTES, MAX_LOADED_BYTES, Provenance
from gaincal.nexus.slabs import FieldSlabs, slab, slab_places
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.sources import euxfel_constants
from gaincal.sources.files import Spec, datasets, module_spec, only, read_npy

Array = npt.NDArray[Any]
_PSI_NAMES = {"pedestal": "/gains", "gain": "/gains", "noise": "/gainsRMS"}
"""PSI calls gains and pedestals alike; what else lies in such a file must be named."""
_MODULES = ("module", "y", "x")


def load_constant(
    spec: Spec,
    declared: Constant,
    axes: tuple[str, ...],
    pixels: tuple[int, ...],
    lies: Arrangement | None = None,
) -> tuple[ConstantMap, Provenance]:
    """Read a constant from an HDF5, NumPy or PSI ``.bin`` file, or one of them per module.

    Parameters
    ----------
    spec : Spec
        ``.bin``: headerless little-endian float64 planes, as PSI writes gain maps; ``.npy``; HDF5, where
        without a path ``/gains`` is taken (PSI's name for gains and pedestals alike), else the
        dataset called like the constant; European XFEL, where the dataset names its axes.  A
        name with ``{module}`` or ``{module:02d}`` stands for one file, or dataset, per module.
    declared : Constant
    axes : tuple of str
        Its named axes.
    pixels : tuple of int
        Shape of a frame.
    lies : Arrangement, optional
        How modules lie in a frame, if that is known: then a constant of stacked modules, or one per module,
        also serves for frames that are one image.

    Returns
    -------
    constant : ConstantMap
        Labels as the file states them in an NXdata, else 0, 1, 2 ...  What is large stays in its file.
    provenance : Provenance

    Raises
    ------
    FileError
        If the file does not hold such a constant.
    """
    if lies is not None and lies.in_one_image:
        return _load_arranged(spec, declared, axes, pixels, lies)
    if spec.names_modules:
        whole, how, found, note = _read_modules(spec, declared, axes, pixels)
        return ConstantMap(whole, found), Provenance(spec.file.name, how, _newest(spec, pixels), note)
    values, how, labels = _read_file(spec, declared, axes, pixels)
    rank = len(declared.dims)
    if isinstance(values, np.ndarray) and values.ndim == rank - 1 and _stacked(values.shape, pixels):
        values = values.reshape(*values.shape[:-2], *pixels)  # PSI keeps modules below each other
    if len(values.shape) != rank:
        wanted = ", ".join(declared.dims)
        problem = f"has shape {values.shape}, {declared.name} needs ({wanted})"
        raise FileError(spec.file, spec.path or "", problem, code="wrong-shape")
    counted = tuple(tuple(range(n)) for n in values.shape[: len(axes)])
    return ConstantMap(values, labels or counted), Provenance(spec.file.name, how, _modified(spec.file))


def _load_arranged(
    spec: Spec, declared: Constant, axes: tuple[str, ...], pixels: tuple[int, ...], lies: Arrangement
) -> tuple[ConstantMap, Provenance]:
    """A constant for frames that are one image: as one image itself, or of modules, which are put into one."""
    stacked = replace(declared, dims=(*declared.dims[: len(axes)], *_MODULES))
    if not spec.names_modules:
        values, how, labels = _read_file(spec, stacked, axes, lies.stack)
        if values.shape[len(axes) :] == pixels:
            counted = tuple(tuple(range(n)) for n in values.shape[: len(axes)])
            return ConstantMap(values, labels or counted), Provenance(spec.file.name, how, _modified(spec.file))
    loaded, provenance = load_constant(spec, stacked, axes, lies.stack)
    if not isinstance(loaded.values, np.ndarray):
        problem = f"has shape {loaded.values.shape}, too large to be put into images of {pixels}"
        raise FileError(spec.file, spec.path or "", problem, "assemble the modules stacked", code="wrong-shape")
    return replace(loaded, values=arranged(loaded.values, len(axes), lies)), provenance


def arranged(values: Array, axes: int, lies: Arrangement) -> Array:
    """A constant of stacked modules, behind so many axes, as they lie in a frame; any other as it is."""
    if not lies.in_one_image or values.shape[axes:] != lies.stack:
        return values
    return lies.arranged(values, np.nan if values.dtype.kind == "f" else 0)  # no pixel needs what fills the gaps


def _stacked(shape: tuple[int, ...], pixels: tuple[int, ...]) -> bool:
    return len(pixels) == len(_MODULES) and shape[-2:] == (pixels[0] * pixels[1], pixels[2])


def _read_file(
    spec: Spec, declared: Constant, axes: tuple[str, ...], pixels: tuple[int, ...]
) -> tuple[Array | Slabs, str, Labels | None]:
    if spec.file.suffix == ".bin":
        return _read_planes(spec.file, pixels), "float64 planes", None
    if spec.file.suffix == ".npy":
        return read_npy(spec.file), "NumPy array", None
    return _read_hdf5(spec, declared, axes, pixels)


def _read_modules(
    spec: Spec, declared: Constant, axes: tuple[str, ...], pixels: tuple[int, ...]
) -> tuple[Array, str, Labels, str]:
    """A constant of which every module has its own file or dataset; NaN for modules without a file."""
    if len(pixels) != len(_MODULES) or _MODULES[0] not in declared.dims:
        raise FileError(spec.file, spec.path or "", "names modules, but the frames have none", code="wrong-shape")
    specs = {m: module_spec(spec, m) for m in range(pixels[0])}
    there = {m: s for m, s in specs.items() if s.file.exists()}
    if not there:
        raise FileError(specs[0].file, "", "cannot be opened, nor that of any other module", code="not-found")
    absent = ", ".join(str(m) for m in specs if m not in there)
    note = f"{declared.name}: no file for module {absent}, whose pixels will be flagged" if absent else ""
    how = f"{spec.path or ''} {len(there)} of {pixels[0]} modules".strip()
    one = replace(declared, dims=tuple(d for d in declared.dims if d != _MODULES[0]))
    whole, known = np.empty(0), None
    for module, own in there.items():
        values, _, stated = _read_file(own, one, axes, pixels[1:])
        if known is None:
            known = values.shape, values.dtype, stated
            whole = _room(own, values, pixels[0], bool(absent))
        if known != (values.shape, values.dtype, stated):
            problem = f"is {values.dtype.name}{values.shape}, that of another module {known[1].name}{known[0]},"
            raise FileError(own.file, own.path or "", f"{problem} or has other labels", code="wrong-shape")
        for place in slab_places(values.shape):
            whole[(*place, module)] = slab(values, place)
    assert known is not None
    return whole, how, known[2] or tuple(tuple(range(n)) for n in known[0][: len(axes)]), note


def _room(spec: Spec, values: Array | Slabs, modules: int, lacking: bool) -> Array:
    """Room for all modules in the type of one; NaN for those that lack, which integers cannot say."""
    shape = (*values.shape[:-2], modules, *values.shape[-2:])
    if not lacking:
        return np.empty(shape, values.dtype)
    if values.dtype.kind != "f":
        problem = f"holds {values.dtype.name}, in which modules that lack cannot be marked"
        raise FileError(spec.file, spec.path or "", problem, "name a file for every module", code="wrong-shape")
    return np.full(shape, np.nan, values.dtype)


def _newest(spec: Spec, pixels: tuple[int, ...]) -> str:
    files = (module_spec(spec, module).file for module in range(pixels[0]))
    return max(_modified(file) for file in files if file.exists())


def _modified(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def _read_planes(file: Path, pixels: tuple[int, ...]) -> Array:
    plane = int(np.prod(pixels)) * 8
    with reading(file):
        size = file.stat().st_size
        if size == 0 or size % plane:
            problem = f"has {size} bytes, not a multiple of {plane} for planes of {pixels} float64"
            raise FileError(file, "", problem, code="wrong-shape")
        return np.fromfile(file, "<f8").reshape(-1, *pixels)


def _read_hdf5(
    spec: Spec, declared: Constant, axes: tuple[str, ...], pixels: tuple[int, ...]
) -> tuple[Array | Slabs, str, Labels | None]:
    resolver = Resolver(spec.file)
    keep = False
    try:
        with reading(spec.file):
            place = _constant_place(resolver, spec, declared)
            _check_units(place, declared)
            how = f"HDF5 {place.path}"
            if euxfel_constants.DIMS in place.dataset.attrs:
                values, labels = euxfel_constants.load(spec.file, place.path, declared.dims, pixels)
                return values, f"{how}, axes as it states", labels
            labels_beside = _stated_labels(resolver, place, axes)
            keep = place.dataset.size * place.dataset.dtype.itemsize > MAX_LOADED_BYTES
            return (FileSlabs(resolver, place) if keep else read_array(place, MAX_CONSTANT_BYTES)), how, labels_beside
    finally:
        if not keep:
            resolver.close()


class FileSlabs(FieldSlabs):
    """A constant in a file that stays open, larger than is good to hold at once."""

    def __init__(self, resolver: Resolver, place: Place) -> None:
        check_budget(place, MAX_CONSTANT_BYTES)
        super().__init__(place)
        self._resolver = resolver


def _check_units(place: Place, declared: Constant) -> None:
    """Refuse a map in other units than the formula declares, where the file states any that we know."""
    stated = attribute_text(place, names.UNIT_ATTRIBUTE)
    try:
        unit = Unit.parse(stated or "")
    except ValueError:
        return
    if unit != Unit.parse(declared.units):
        problem = f"is in {unit}, {declared.name} is in {declared.units}"
        raise place.error(problem, "are two constants mixed up?", code="wrong-units")


def _constant_place(resolver: Resolver, spec: Spec, declared: Constant) -> Place:
    if spec.path is not None:
        place = resolver.get(spec.path)
        inner = [p for n in (declared.name, "data") if (p := _member(resolver, place, n)) is not None]
        return inner[0] if inner else place
    own = f"{names.CONSTANTS_PATH}/{declared.name}/{declared.name}"
    for path in (own, _PSI_NAMES.get(declared.name, ""), f"/{declared.name}"):
        found = resolver.find(path) if path else None
        if found is not None:
            return found
    candidates = [p for p in datasets(resolver) if p.item.ndim == len(declared.dims)]
    return only(resolver, candidates, f"{declared.name} ({', '.join(declared.dims)})")


def _member(resolver: Resolver, place: Place, name: str) -> Place | None:
    return resolver.find(name, place) if isinstance(place.item, h5py.Group) else None


def _stated_labels(resolver: Resolver, place: Place, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Labels that lie beside a constant under the names of its axes."""
    if place.file != resolver.master:
        return None
    group = resolver.get(place.path.rsplit("/", 1)[0] or "/")
    labels = []
    for axis, length in zip(axes, place.dataset.shape, strict=False):
        beside = resolver.find(axis, group)
        values = read_array(beside) if beside and isinstance(beside.item, h5py.Dataset) else None
        stated = values is not None and values.ndim == 1 and values.dtype.kind in "iu"
        labels.append(tuple(int(v) for v in values) if stated and values is not None else tuple(range(length)))
    return tuple(labels)
