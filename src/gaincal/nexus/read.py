"""Open a master: find the calibration, check it, bind it to the raw words it names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.errors import BindError, FileError, RequestError
from gaincal.formulas import catalog
from gaincal.formulas.checks import FRAME, is_words
from gaincal.formulas.formula import Formula, Input
from gaincal.kernels.arithmetic import ieee
from gaincal.nexus import names
from gaincal.nexus.dataset import element_type
from gaincal.nexus.fields import attribute_text, read_array
from gaincal.nexus.group import StoredCalibration, read_calibration
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.nexus.words import Words

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Located:
    """Where a calibration lies in a file."""

    detector: Place
    group: Place

    @property
    def name(self) -> str:
        """Name of the calibration group."""
        return self.group.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class Master:
    """A file with a calibration, open and bound.

    Parameters
    ----------
    resolver : Resolver
        Owns the open files.
    located : Located
    stored : StoredCalibration
    calibration : Calibration
    words : mapping of str to Words
        The words inputs by name.
    ids : mapping of str to ndarray (frame,)
        What identifies the frames: pulse id, time ...
    reasons : tuple of str, optional
        Those that were chosen to count; None if all do.
    """

    resolver: Resolver
    located: Located
    stored: StoredCalibration
    calibration: Calibration
    words: Mapping[str, Words]
    ids: Mapping[str, Array]
    reasons: tuple[str, ...] | None = None

    @property
    def entry(self) -> Place:
        """The NXentry."""
        return self.resolver.get("/" + self.detector.path.strip("/").split("/")[0])

    @property
    def detector(self) -> Place:
        """The NXdetector."""
        return self.located.detector


@ieee()
def open_master(
    path: str | os.PathLike[str],
    *,
    trust: Iterable[str | os.PathLike[str]] = (),
    calibration: str | None = None,
    inputs: Mapping[str, float] | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
) -> Master:
    """Open a file and bind its calibration: from here on only reading can fail.

    Parameters
    ----------
    path : str or path
    trust : iterable of str or path
        Directories, beside the file's own, whose files may be opened.
    calibration : str, optional
        Which calibration, where the file has several.
    inputs : mapping of str to float, optional
        Values that replace inputs of the formula, such as the photon energy.
    profile : str, optional
        Formula that reproduces another program, in place of the stored one: see `catalog.profiles`.
    reasons : iterable of str, optional
        Flags of the formula, and reasons of the pixel mask (``dead``, ``noisy`` ...), that make a pixel
        bad; all of them if None.  The others are told, but leave the value.

    Raises
    ------
    FileError, TrustError, BindError, RequestError
    """
    resolver = Resolver(path, trust)
    try:
        with reading(path):
            located = choose(resolver, calibration)
            stored = read_calibration(resolver, located.group)
            stored = stored if profile is None else _as_profile(stored, profile)
            master = _bound(resolver, located, stored, inputs or {})
            if reasons is None:
                return master
            chosen = tuple(sorted(set(reasons)))
            return replace(master, calibration=_counting(master, frozenset(chosen)), reasons=chosen)
    except BindError as error:
        where = f"{os.fspath(path)}::{located.group.path}"
        resolver.close()
        raise BindError(f"{where}: {error}") from error
    except BaseException:
        resolver.close()
        raise


def choose(resolver: Resolver, wanted: str | None) -> Located:
    """The one calibration of a file, or the one of the wanted name."""
    found = locate(resolver)
    chosen = [c for c in found if wanted is None or wanted in (c.name, c.group.path)]
    alike = len({c.name for c in found}) < len(found)
    listed = ", ".join(c.group.path if alike else c.name for c in found)
    if wanted is not None and len(chosen) != 1:
        raise RequestError(f"{resolver.named}: no calibration '{wanted}'; it has {listed or 'none'}")
    if not chosen:
        problem = "has no calibration in an NXdetector"
        raise FileError(resolver.named, "", problem, "put one in with: gaincal embed", code="no-calibration")
    if len(chosen) > 1:
        raise FileError(resolver.named, "", f"has several calibrations: {listed}", "name one", code="ambiguous")
    return chosen[0]


def locate(resolver: Resolver) -> list[Located]:
    """Every calibration of every detector of the file, in the order of their paths."""
    detectors = descend(resolver, resolver.get("/"), names.ENTRY, names.INSTRUMENT, names.DETECTOR)
    return [
        Located(detector, group)
        for detector in detectors
        for group in descend(resolver, detector, names.COLLECTION, names.CALIBRATION)
    ]


def descend(resolver: Resolver, place: Place | None, *nx_classes: str) -> list[Place]:
    """Groups below a place, class below class; none below None."""
    places = [] if place is None else [place]
    for nx_class in nx_classes:
        places = [member for p in places for member in of_class(resolver, p, nx_class)]
    return places


def of_class(resolver: Resolver, place: Place, nx_class: str) -> list[Place]:
    """Members of a group that have a NeXus class; what cannot be resolved is none."""
    found = []
    for name in resolver.members(place):
        link = place.group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            continue
        try:
            member = resolver.walk(place, name)
        except FileError:
            continue
        if isinstance(member.item, h5py.Group) and attribute_text(member, names.NX_CLASS) == nx_class:
            found.append(member)
    return found


def _bound(resolver: Resolver, located: Located, stored: StoredCalibration, given: Mapping[str, float]) -> Master:
    formula = stored.formula
    words, inputs = {}, dict(stored.inputs)
    for item in formula.inputs:
        place = input_place(resolver, stored, item)
        if place is None:
            continue
        if is_words(item, formula.checked.pixel_dims):
            words[item.name] = Words(resolver, place)
        elif item.name not in inputs:
            inputs[item.name] = read_array(place)
    inputs |= _replaced(formula, given)
    layout = _layout(formula, words)
    dtypes = {name: w.dtype for name, w in words.items()}
    ids = read_ids(resolver, located.detector, layout.frames)
    calibration = bind(formula, layout, dtypes, inputs, stored.constants)
    return Master(resolver, located, stored, calibration, words, ids)


def _as_profile(stored: StoredCalibration, name: str) -> StoredCalibration:
    """The stored constants and inputs under another formula, which must mean the same by them."""
    profile = catalog.profile(name)
    if len(stored.formula.checked.pixel_dims) > len(profile.checked.pixel_dims):
        profile = catalog.profile(name + catalog.MODULES)
    for part, mine in (("constants", profile.constants), ("inputs", profile.inputs)):
        theirs = {i.name: i for i in getattr(stored.formula, part)}
        for item in mine:
            other = theirs.get(item.name, item)
            if (other.dims, other.units, other.dtype) != (item.dims, item.units, item.dtype):
                problem = f"profile '{profile.name}' takes {item.name} {item.dims} in {item.units}"
                raise RequestError(f"{problem}; formula '{stored.formula.name}' has {other.dims} in {other.units}")
    constants = {c.name: stored.constants[c.name] for c in profile.constants if c.name in stored.constants}
    known = {i.name for i in profile.inputs}
    return replace(
        stored,
        formula=profile,
        constants=constants,
        inputs={n: v for n, v in stored.inputs.items() if n in known},
        paths={n: p for n, p in stored.paths.items() if n in known},
    )


def _counting(master: Master, reasons: frozenset[str]) -> Calibration:
    """The calibration under which only some reasons make a pixel bad."""
    calibration = master.calibration
    flags = {f.name for f in calibration.formula.flags}
    bits = {name: bit for bit, name in names.PIXEL_MASK_BITS.items() if bit < names.BAD_BITS}
    unknown = sorted(reasons - flags - set(bits))
    if unknown:
        raise RequestError(f"no reason '{unknown[0]}'; there are {', '.join([*sorted(flags), *bits])}")
    chosen = sum(1 << bits[name] for name in reasons & set(bits))
    mask = calibration.arrays.get(names.PIXEL_MASK)
    if (chosen or names.MASKED in reasons) and mask is None:
        raise RequestError(f"{', '.join(sorted(reasons))}: the file has no pixel mask that could tell")
    if not chosen or mask is None or names.MASKED in reasons:
        return calibration.counting(reasons & flags, {})
    if names.MASKED not in flags:
        raise RequestError(f"formula '{calibration.formula.name}' does not ask the pixel mask")
    return calibration.counting(
        frozenset(reasons & flags | {names.MASKED}), {names.PIXEL_MASK: mask & mask.dtype.type(chosen)}
    )


def input_place(resolver: Resolver, stored: StoredCalibration, item: Input) -> Place | None:
    """Where an input lies; None if it is not there."""
    path = stored.paths.get(item.name, "")
    if not path:
        return None
    return resolver.get(path) if path.startswith("/") else resolver.walk(stored.place, path)


def _replaced(formula: Formula, given: Mapping[str, float]) -> dict[str, Array]:
    scalars = {i.name for i in formula.inputs if i.dims in ((), (FRAME,))}
    for name in given:
        if name not in scalars:
            listed = ", ".join(sorted(scalars)) or "none"
            raise RequestError(f"formula '{formula.name}' has no settable input '{name}'; it has {listed}")
    if given.get(names.PHOTON_ENERGY, 1.0) <= 0:
        raise RequestError(f"{names.PHOTON_ENERGY}={given[names.PHOTON_ENERGY]}: must be above zero")
    return {name: np.array(value, np.float64) for name, value in given.items()}


def _layout(formula: Formula, words: Mapping[str, Words]) -> RawLayout:
    shapes = {w.shape for w in words.values()}
    if len(shapes) != 1:
        listed = ", ".join(str(s) for s in sorted(shapes)) or "none"
        raise BindError(f"the words must have one shape; found {listed}")
    shape = shapes.pop()
    dims = (FRAME, *formula.checked.pixel_dims)
    if len(shape) != len(dims):
        raise BindError(f"raw has shape {shape}, the formula declares ({', '.join(dims)})")
    return RawLayout(shape[0], shape[1:])


def read_ids(resolver: Resolver, detector: Place, frames: int) -> dict[str, Array]:
    """Numeric fields with one value per frame, beside the words; raises FileError if one has too many or too few."""
    group = resolver.find(names.RAW_GROUP, detector)
    found: dict[str, Array] = {}
    for name in resolver.members(group) if group else []:
        member = resolver.walk(group, name) if group and name != names.RAW_FIELD else None
        if member is None or not isinstance(member.item, h5py.Dataset) or member.item.ndim != 1:
            continue
        if element_type(member).kind not in "iuf":
            continue
        if member.item.shape != (frames,):
            problem = f"has {member.item.size} values, the words have {frames} frames"
            raise member.error(problem, "if the raw file is another one than it was: embed it", code="wrong-shape")
        found[name] = read_array(member)
    return found
