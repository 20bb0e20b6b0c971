"""Everything that a master is made of, gathered from the files that a user names and from what these state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import RawLayout
from gaincal.constants import ConstantMap
from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.checks import FRAME, is_words, words_inputs
from gaincal.formulas.formula import Formula
from gaincal.nexus import names
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.fields import attribute_text, read_array, read_text
from gaincal.nexus.group import Provenance
from gaincal.nexus.read import descend, read_ids
from gaincal.nexus.scaling import read_scaling
from gaincal.nexus.trust import Place, Resolver
from gaincal.nexus.words import Readable, Words
from gaincal.nexus.write import parse_metadata, parse_number
from gaincal.sources.constants import arranged, load_constant
from gaincal.sources.files import Spec, find_words, load_numbers
from gaincal.sources.mask_bits import NXMX, Translation, translate
from gaincal.sources.masks import read_mask
from gaincal.sources.recognise import readers
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]
Source = str | os.PathLike[str] | Array
PHOTON_ENERGY, WAVELENGTH = names.PHOTON_ENERGY, "wavelength"
ID_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
STATED_FIELDS = {"detector_name": "description", "module_serials": "serial_number", "gain_mode": "gain_setting"}
NO_SPECS: Mapping[str, Spec] = MappingProxyType({})
RESERVED_VARIABLES = ("flags", "stage")
BEAM_UNITS = {
    "incident_wavelength": {"angstrom": 1.0, "Angstrom": 1.0, "A": 1.0, "Å": 1.0, "nm": 10.0, "m": 1e10},
    "incident_energy": {"keV": 1.0, "eV": 1e-3},
}


def suggested_formula(run: RawRun | None) -> str:
    """The formula that a run calls for, the one for modules where frames have them."""
    if run is None or run.formula is None:
        raise RequestError(f"name a formula: {', '.join(catalog.names())}, or a TOML file")
    several = f"{run.formula}{catalog.MODULES}"
    rank = len(catalog.get(run.formula).checked.pixel_dims)
    return several if several in catalog.names() and len(run.pixels) > rank else run.formula


def open_raw(spec: Spec, run: RawRun | None, trust: Iterable[str | os.PathLike[str]]) -> Resolver:
    """Open the raw file; the files of a run that the user named are all trusted."""
    if run is None:
        return Resolver(spec.file, trust)
    parts = [part for words in run.words.values() for part in words.parts]
    homes = {part.file.parent for part in parts}
    return Resolver(parts[0].file, [*trust, *homes]) if parts else Resolver.of_nothing(spec.file)


def find_readers(
    resolver: Resolver, spec: Spec, formula: Formula, run: RawRun | None, others: Mapping[str, Spec] = NO_SPECS
) -> tuple[Place | None, dict[str, Readable]]:
    """What reads the words, and the dataset that has them where it is only one.

    Parameters
    ----------
    resolver : Resolver
    spec : Spec
        The raw file.
    formula : Formula
    run : RawRun or None
        What the raw file was recognised as.
    others : mapping of str to Spec
        Datasets of further words, where the formula takes several and there is no run that has them all.
    """
    wanted = words_inputs(formula)
    if run is not None:
        found = readers(run, resolver)
        if len(wanted) == len(found) == 1:  # whatever either is called
            return None, {wanted[0]: next(iter(found.values()))}
        lacking = [name for name in wanted if name not in found]
        if lacking:
            listed = ", ".join(run.words)
            raise RequestError(f"formula '{formula.name}' takes words {', '.join(lacking)}; the run has {listed}")
        return None, found
    left = [name for name in wanted if name not in others]
    if len(left) != 1:
        listed = ", ".join(wanted)
        raise RequestError(
            f"formula '{formula.name}' takes several words inputs: {listed}; give one as RAW::/PATH and "
            "the others as --input NAME=FILE::/PATH, inputs={name: 'FILE::/PATH'}"
        )
    place = find_words(resolver, spec.path, 1 + len(formula.checked.pixel_dims))
    places = {left[0]: place} | {name: _named_words(resolver, name, other) for name, other in others.items()}
    found = {name: Words(resolver, places[name]) for name in wanted}
    for name, words in found.items():
        if words.shape != found[left[0]].shape:
            problem = f"has shape {words.shape}, {left[0]} has {found[left[0]].shape}"
            raise places[name].error(problem, "name the dataset of the same frames", code="wrong-shape")
    return place if len(found) == 1 else None, found


def _named_words(resolver: Resolver, name: str, spec: Spec) -> Place:
    if spec.path is None:
        raise RequestError(f"{name}: name the dataset of these words, FILE::/PATH")
    return resolver.beside(resolver.get("/"), str(spec.file.resolve()), spec.path)


def recorded_inputs(formula: Formula, run: RawRun | None) -> dict[str, tuple[Array, str]]:
    """Inputs of the formula that come with the run."""
    declared = {i.name: i for i in formula.inputs}
    recorded = {} if run is None else {n: v for n, v in {**run.inputs, **run.maps}.items() if n in declared}
    found = {}
    for name, values in recorded.items():
        lengths = dict(zip(formula.checked.pixel_dims, run.pixels if run else (), strict=False))
        wanted = tuple(lengths.get(dim, len(values)) for dim in declared[name].dims)
        alike = values.ndim == 1 and len(wanted) > 1  # the same for all modules of a frame
        lined = values.reshape(-1, *(1,) * (len(wanted) - 1)) if alike else values
        found[name] = (np.ascontiguousarray(np.broadcast_to(lined, wanted)) if alike else values, declared[name].units)
    return found


def told(formula: Formula, run: RawRun | None) -> list[str]:
    """What a user should know of the run."""
    if run is None:
        return []
    known = {i.name for i in formula.inputs}
    unused = sorted(name for name, values in run.inputs.items() if name not in known and np.any(values))
    notes = [f"recognised: {run.description}; formula {formula.name}", *run.notes]
    notes += [f"the run records {n}, which formula '{formula.name}' does not use" for n in unused]
    return notes


def stated_inputs(
    formula: Formula, given: Mapping[str, str | os.PathLike[str]], layout: RawLayout
) -> dict[str, tuple[Array, str]]:
    """Inputs from files: by frame, by frame and module, or maps of the pixels."""
    dims = formula.checked.pixel_dims
    declared = {i.name: i for i in formula.inputs if not is_words(i, dims)}
    found = {}
    for name, source in given.items():
        if name not in declared:
            listed = ", ".join(declared) or "none"
            raise RequestError(f"formula '{formula.name}' has no input '{name}'; it has {listed}")
        item = declared[name]
        pixels = layout.pixels[: len(set(item.dims) & set(dims))]
        shape = (*((layout.frames,) if FRAME in item.dims or not pixels else ()), *pixels)
        found[name] = (load_numbers(Spec.parse(os.fspath(source)), shape), item.units)
    return found


def load_constants(
    formula: Formula, given: Mapping[str, Source], layout: RawLayout, lies: Arrangement | None = None
) -> tuple[dict[str, ConstantMap], dict[str, Provenance]]:
    """The constants that a user names or gives, and where they came from."""
    declared = {c.name: c for c in formula.constants}
    unknown = [n for n in given if n not in declared]
    if unknown:
        listed = ", ".join(declared) or "none"
        raise RequestError(f"formula '{formula.name}' has no constant '{unknown[0]}'; it has {listed}")
    loaded, provenance = {}, {}
    for name, source in given.items():
        axes = formula.checked.types[name].axes
        if isinstance(source, np.ndarray):
            labels = tuple(tuple(range(n)) for n in source.shape[: len(axes)])
            loaded[name] = ConstantMap(source if lies is None else arranged(source, len(axes), lies), labels)
            provenance[name] = Provenance("memory", "array", _now())
        else:
            spec = Spec.parse(os.fspath(source))
            loaded[name], provenance[name] = load_constant(spec, declared[name], axes, layout.pixels, lies)
    return loaded, provenance


def stated_scaling(
    resolver: Resolver, template: Place | None, formula: Formula, layout: RawLayout
) -> dict[str, tuple[ConstantMap, Provenance]]:
    """Scale and offset that the raw file itself states."""
    detectors = descend(resolver, template, names.INSTRUMENT, names.DETECTOR)
    return read_scaling(resolver, detectors[0] if detectors else None, formula, layout.pixels)


def find_mask(
    mask: str | os.PathLike[str] | None,
    convention: str | None,
    resolver: Resolver,
    template: Place | None,
    layout: RawLayout,
    lies: Arrangement | None = None,
) -> Translation | None:
    """The pixel mask that is named, else the one that the raw file brings along, else that of rows without pixels."""
    if mask is not None:
        return read_mask(Spec.parse(os.fspath(mask)), layout.pixels, convention, lies)
    if convention is not None:
        raise RequestError("mask_bits says whose bits a mask has: name the mask, too")
    for detector in descend(resolver, template, names.INSTRUMENT, names.DETECTOR):
        place = resolver.find(names.PIXEL_MASK, detector)
        values = read_array(place) if place else None
        if place and values is not None and values.shape == layout.pixels and values.dtype.kind in "iu":
            return translate(values, NXMX, file=place.file, place=place.path)
    gaps = lies.mask if lies is not None else None
    return None if gaps is None else translate(gaps, NXMX, file=resolver.named, place="")


def known_facts(
    resolver: Resolver, template: Place | None, run: RawRun | None, settings: Mapping[str, object]
) -> dict[str, str | float | int]:
    """When and how a run was taken, as far as its files or the user say it; what decides which constants fit."""
    facts: dict[str, str | float | int] = dict(run.facts) if run else {}
    start = resolver.find("start_time", template) if template else None
    if start is not None:
        facts["start_time"] = read_text(start)
    for detector in descend(resolver, template, names.INSTRUMENT, names.DETECTOR):
        exposure = resolver.find("count_time", detector)
        values = read_array(exposure).reshape(-1) if exposure else np.empty(0)
        if values.size == 1 and exposure and attribute_text(exposure, names.UNIT_ATTRIBUTE) in ("s", "second"):
            facts["exposure_time"] = float(values[0])
        for name, field in STATED_FIELDS.items():
            place = resolver.find(field, detector)
            if place is not None and place.dataset.dtype.kind in "SO" and place.dataset.size == 1:
                facts[name] = read_text(place)
    texts = {n: str(v) for n, v in settings.items() if n == "start_time" or n in STATED_FIELDS}
    numbers = {n: parse_number(n, str(v)) for n, v in settings.items() if n == "exposure_time"}
    return facts | texts | numbers


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def existing_ids(resolver: Resolver, template: Place | None, layout: RawLayout) -> dict[str, Array]:
    """Ids that the raw file, a master itself, has beside its words."""
    found: dict[str, Array] = {}
    for detector in descend(resolver, template, names.INSTRUMENT, names.DETECTOR):
        found |= read_ids(resolver, detector, layout.frames)
    return found


def taken_names(formula: Formula) -> set[str]:
    """Names that ids cannot have beside a formula."""
    taken = {*RESERVED_VARIABLES, *(o.name for o in formula.outputs)}
    return taken | {*(i.name for i in formula.inputs), *formula.checked.pixel_dims}


def check_ids(ids: Iterable[str], taken: Iterable[str]) -> None:
    """Refuse names of ids that are none, or that something else has; raises RequestError."""
    reserved = {names.RAW_FIELD, FRAME, *taken}
    for name in ids:
        if not ID_NAME.fullmatch(name) or name in reserved:
            raise RequestError(
                f"ids cannot be called '{name}': a letter, then letters, digits and _, and no name in use"
            )


def find_template(resolver: Resolver) -> Place | None:
    """The NXentry of the raw file whose metadata are carried over, if it has a detector."""
    for entry in descend(resolver, resolver.get("/"), names.ENTRY):
        if descend(resolver, entry, names.INSTRUMENT, names.DETECTOR):
            return entry
    return None


def split_settings(
    formula: Formula, settings: Mapping[str, object], resolver: Resolver, template: Place | None
) -> tuple[dict[str, tuple[Array, str]], dict[str, str | float]]:
    """Split settings into inputs of the formula and metadata; photon energy and wavelength give each other."""
    scalars = {i.name: i for i in formula.inputs if i.dims in ((), (FRAME,))}
    texts = {name: str(value) for name, value in settings.items()}
    values = {n: parse_number(n, texts.pop(n)) for n in list(texts) if n in scalars}
    try:
        metadata = parse_metadata(texts)
    except RequestError as error:
        listed = ", ".join(scalars) or "none"
        raise RequestError(f"{error}; inputs of formula '{formula.name}': {listed}") from None
    arrays = {n: np.array(v, np.float64) for n, v in values.items()}
    if PHOTON_ENERGY in values:
        metadata.setdefault(WAVELENGTH, names.KEV_ANGSTROM / _positive(PHOTON_ENERGY, values[PHOTON_ENERGY]))
    elif PHOTON_ENERGY in scalars:
        known = metadata.get(WAVELENGTH)
        energy = stated_energy(resolver, template) if known is None else None
        if known is not None:
            energy = np.array(names.KEV_ANGSTROM / _positive(WAVELENGTH, float(known)))
        if energy is not None:
            arrays[PHOTON_ENERGY] = energy
    return {n: (a, scalars[n].units) for n, a in arrays.items()}, metadata


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise RequestError(f"{name}={value}: must be above zero")
    return value


def stated_energy(resolver: Resolver, template: Place | None) -> Array | None:
    """Photon energy in keV from the beam of the raw file's entry, if it is stated in a unit we know."""
    for beam in descend(resolver, template, names.INSTRUMENT, "NXbeam"):
        for name, scales in BEAM_UNITS.items():
            place = resolver.find(name, beam)
            scale = scales.get(attribute_text(place, names.UNIT_ATTRIBUTE) or "") if place else None
            if place is None or scale is None:
                continue
            values = read_array(place).astype(np.float64).reshape(-1) * scale
            if not (values.size and np.all(np.isfinite(values) & (values > 0))):
                continue
            energy = names.KEV_ANGSTROM / values if name == "incident_wavelength" else values
            return energy[0] if energy.size == 1 else energy
    return None
