"""``embed``: put a formula and its constants into a file that links (or holds) the raw words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.checks import FRAME, is_words
from gaincal.formulas.formula import Formula
from gaincal.nexus import names
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.fields import attribute_text, read_array
from gaincal.nexus.group import Provenance
from gaincal.nexus.master import Content, Placement, write_master
from gaincal.nexus.read import descend, read_ids
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.nexus.words import Readable, Words
from gaincal.nexus.write import parse_metadata, parse_number
from gaincal.sources.constants import load_constant
from gaincal.sources.files import Spec, find_words, load_mask, load_numbers
from gaincal.sources.recognise import AUTO, readers, recognise
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]
Source = str | os.PathLike[str] | Array
ID_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
RESERVED_VARIABLES = ("flags", "stage")
PHOTON_ENERGY, WAVELENGTH = names.PHOTON_ENERGY, "wavelength"
BEAM_UNITS = {
    "incident_wavelength": {"angstrom": 1.0, "Angstrom": 1.0, "A": 1.0, "Å": 1.0, "nm": 10.0, "m": 1e10},
    "incident_energy": {"keV": 1.0, "eV": 1e-3},
}
PREVIEW_FRAMES = 8
PREVIEW_EDGE = 512


@dataclass(frozen=True)
class Embedded:
    """What `embed` made.

    Parameters
    ----------
    path : Path
        The master.
    checksum : str
        Of the calibration.
    outputs : list of str
        Outputs for which everything is there.
    notes : list of str
        What the user should know: missing metadata, files outside the master's directory ...
    """

    path: Path
    checksum: str
    outputs: list[str]
    notes: list[str]


def embed(
    raw: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    formula: str | os.PathLike[str] | Formula | None = None,
    constants: Mapping[str, Source],
    settings: Mapping[str, object] | None = None,
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    mask: str | os.PathLike[str] | None = None,
    ids: Mapping[str, str | os.PathLike[str]] | None = None,
    source: str = AUTO,
    copy_raw: bool = False,
    in_place: bool = False,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> Embedded:
    """Write a master that holds a calibration and links the raw words.

    Parameters
    ----------
    raw : str or path
        ``FILE[::/path]`` of the words, unsigned integers (frame, *pixels), or a run as a facility writes it:
        a European XFEL folder, a SwissFEL file, a master of slsDetectorPackage's ``.raw`` files.
    output : str or path, optional
        The master to write; with `in_place` there is none.
    formula : str, path or Formula, optional
        A name of the catalogue, a TOML file, or a formula; what the run calls for if None.
    constants : mapping of str to str, path or ndarray
        ``FILE[::/path]`` (HDF5, ``.npy``, PSI ``.bin``) or the values of every constant.  A name with
        ``{module}`` stands for one file, or dataset, per module: ``gainMaps_M{module:03d}.bin``.
    settings : mapping of str to object, optional
        Scalar inputs of the formula (photon_energy in keV) and metadata (see `METADATA`).
    inputs : mapping of str to str or path, optional
        ``FILE[::/path]`` of other inputs: per frame, per frame and module, or maps of the pixels.
    mask : str or path, optional
        Bad-pixel mask, bool or NXmx bits.
    ids : mapping of str to str or path, optional
        Numbers that identify the frames: pulse_id, timestamp ...
    source : str
        Which facility wrote the run; ``auto`` finds out, ``plain`` takes a dataset as it is.
    copy_raw : bool
        Copy the words into the master instead of linking them.
    in_place : bool
        Put the calibration into the raw file itself, through a copy that replaces it when it is whole.
    overwrite : bool
        Replace an existing `output`.
    trust : iterable of str or path
        Directories whose files the raw file may lead to.

    Returns
    -------
    Embedded

    Raises
    ------
    FormulaError, BindError, FileError, TrustError, OutputError, RequestError
    """
    spec = Spec.parse(os.fspath(raw))
    if in_place == (output is not None):
        raise RequestError("give an output file, or in_place, not both")
    target = Path(os.path.realpath(spec.file)) if output is None else Path(output)
    refuse_existing(target, overwrite or in_place)
    run = recognise(spec.file, spec.path, source)
    if run is not None and in_place:
        raise RequestError(f"{spec.file} is a run ({run.kind}): write a master for it, not in place")
    chosen = load_formula(formula if formula is not None else _suggested(run))
    with _resolver(spec, run, trust) as resolver, reading(spec.file):
        place, words = _words(resolver, spec, chosen, run)
        template = _template(resolver) if run is None else None
        layout = _layout(words)
        given = _recorded(chosen, run)
        stated, metadata = _settings(chosen, settings or {}, resolver, template)
        given |= stated | _stated_inputs(chosen, inputs or {}, layout)
        bad = load_mask(Spec.parse(os.fspath(mask)), layout.pixels) if mask is not None else None
        bad = _existing_mask(resolver, template, layout) if bad is None else bad
        loaded, provenance = _constants(chosen, constants, layout)
        calibration = _bound(chosen, layout, words, given, bad, loaded)
        _check_ids(chosen, ids or {})
        numbers = {n: load_numbers(Spec.parse(os.fspath(s)), (layout.frames,)) for n, s in (ids or {}).items()}
        if not in_place:
            read = [*resolver.opened, *(run.files if run else ())]
            refuse_input(target, [*read, *_files(constants, inputs or {}, mask, ids or {})])
        numbers = _existing_ids(resolver, template, layout) | dict(run.ids if run else {}) | numbers
        content = Content(place, words, calibration, loaded, provenance, given, metadata, bad, numbers)
        image = _preview(content)
        start = resolver.master if in_place else None
        with atomic_output(target, overwrite=overwrite or in_place, start_from=start) as written:
            how = Placement.IN_PLACE if in_place else Placement.COPIED if copy_raw else Placement.LINKED
            checksum, notes = write_master(written, resolver, template, content, image, how)
    notes = _told(chosen, run) + notes
    return Embedded(target, checksum, content.calibration.available_outputs(), notes)


def load_formula(formula: str | os.PathLike[str] | Formula) -> Formula:
    """A formula by its name in the catalogue, from a TOML file, or as it is."""
    if isinstance(formula, Formula):
        return formula
    text = os.fspath(formula)
    if text in catalog.names():
        return catalog.get(text)
    if not Path(text).is_file():
        listed = ", ".join(catalog.names())
        raise RequestError(f"'{text}' is neither a file nor a formula of the catalogue ({listed})")
    return Formula.load(text)


# --- reading everything first --------------------------------------------------------------


def _suggested(run: RawRun | None) -> str:
    """The formula that a run calls for, the one for modules where frames have them."""
    if run is None or run.formula is None:
        raise RequestError(f"name a formula: {', '.join(catalog.names())}, or a TOML file")
    several = f"{run.formula}{catalog.MODULES}"
    rank = len(catalog.get(run.formula).checked.pixel_dims)
    return several if several in catalog.names() and len(run.pixels) > rank else run.formula


def _resolver(spec: Spec, run: RawRun | None, trust: Iterable[str | os.PathLike[str]]) -> Resolver:
    """Opens the raw file; the files of a run that the user named are all trusted."""
    if run is None:
        return Resolver(spec.file, trust)
    parts = [part for words in run.words.values() for part in words.parts]
    homes = {part.file.parent for part in parts}
    return Resolver(parts[0].file, [*trust, *homes]) if parts else Resolver.of_nothing(spec.file)


def _words(
    resolver: Resolver, spec: Spec, formula: Formula, run: RawRun | None
) -> tuple[Place | None, dict[str, Readable]]:
    """What reads the words, and the dataset that has them where it is only one."""
    if run is not None:
        lacking = [
            i.name for i in formula.inputs if is_words(i, formula.checked.pixel_dims) and i.name not in run.words
        ]
        if lacking:
            listed = ", ".join(run.words)
            raise RequestError(f"formula '{formula.name}' takes words {', '.join(lacking)}; the run has {listed}")
        return None, readers(run, resolver)
    place = find_words(resolver, spec.path, 1 + len(formula.checked.pixel_dims))
    return place, {_words_input(formula): Words(resolver, place)}


def _recorded(formula: Formula, run: RawRun | None) -> dict[str, tuple[Array, str]]:
    """Inputs of the formula that come with the run."""
    declared = {i.name: i for i in formula.inputs}
    recorded = {} if run is None else {n: v for n, v in run.inputs.items() if n in declared}
    found = {}
    for name, values in recorded.items():
        lengths = dict(zip(formula.checked.pixel_dims, run.pixels if run else (), strict=False))
        wanted = tuple(lengths.get(dim, len(values)) for dim in declared[name].dims)
        alike = values.ndim == 1 and len(wanted) > 1  # the same for all modules of a frame
        lined = values.reshape(-1, *(1,) * (len(wanted) - 1)) if alike else values
        found[name] = (np.ascontiguousarray(np.broadcast_to(lined, wanted)) if alike else values, declared[name].units)
    return found


def _told(formula: Formula, run: RawRun | None) -> list[str]:
    """What a user should know of the run."""
    if run is None:
        return []
    known = {i.name for i in formula.inputs}
    unused = sorted(name for name, values in run.inputs.items() if name not in known and np.any(values))
    notes = [f"recognised: {run.description}; formula {formula.name}", *run.notes]
    notes += [f"the run records {n}, which formula '{formula.name}' does not use" for n in unused]
    return notes


def _template(resolver: Resolver) -> Place | None:
    """The NXentry of the raw file whose metadata are carried over, if it has a detector."""
    for entry in descend(resolver, resolver.get("/"), names.ENTRY):
        if descend(resolver, entry, names.INSTRUMENT, names.DETECTOR):
            return entry
    return None


def _layout(words: Mapping[str, Readable]) -> RawLayout:
    shape = next(iter(words.values())).shape
    return RawLayout(shape[0], shape[1:])


def _bound(
    formula: Formula,
    layout: RawLayout,
    words: Mapping[str, Readable],
    inputs: Mapping[str, tuple[Array, str]],
    mask: Array | None,
    constants: Mapping[str, ConstantMap],
) -> Calibration:
    """Bind everything, so that nothing is written that cannot be read."""
    given = {name: values for name, (values, _) in inputs.items()}
    if mask is not None and any(i.name == names.PIXEL_MASK for i in formula.inputs):
        given[names.PIXEL_MASK] = mask
    return bind(formula, layout, {n: w.dtype for n, w in words.items()}, given, constants)


def _stated_inputs(
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


def _files(
    constants: Mapping[str, Source],
    inputs: Mapping[str, str | os.PathLike[str]],
    mask: str | os.PathLike[str] | None,
    ids: Mapping[str, str | os.PathLike[str]],
) -> list[Path]:
    """The files that constants, inputs, mask and ids come from."""
    named = [
        s for s in (*constants.values(), *inputs.values(), *ids.values(), mask) if isinstance(s, str | os.PathLike)
    ]
    return [Spec.parse(os.fspath(s)).file for s in named]


def _check_ids(formula: Formula, ids: Mapping[str, object]) -> None:
    taken = {names.RAW_FIELD, FRAME, *RESERVED_VARIABLES, *(o.name for o in formula.outputs)}
    taken |= {*(i.name for i in formula.inputs), *formula.checked.pixel_dims}
    for name in ids:
        if not ID_NAME.fullmatch(name) or name in taken:
            raise RequestError(
                f"ids cannot be called '{name}': a letter, then letters, digits and _, and no name in use"
            )


def _words_input(formula: Formula) -> str:
    found = [i.name for i in formula.inputs if is_words(i, formula.checked.pixel_dims)]
    if len(found) > 1:
        raise RequestError(f"formula '{formula.name}' takes several words inputs: {', '.join(found)}")
    return found[0]


def _settings(
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
        energy = _stated_energy(resolver, template) if known is None else None
        if known is not None:
            energy = np.array(names.KEV_ANGSTROM / _positive(WAVELENGTH, float(known)))
        if energy is not None:
            arrays[PHOTON_ENERGY] = energy
    return {n: (a, scalars[n].units) for n, a in arrays.items()}, metadata


def _positive(name: str, value: float) -> float:
    if value <= 0:
        raise RequestError(f"{name}={value}: must be above zero")
    return value


def _stated_energy(resolver: Resolver, template: Place | None) -> Array | None:
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


def _constants(
    formula: Formula, given: Mapping[str, Source], layout: RawLayout
) -> tuple[dict[str, ConstantMap], dict[str, Provenance]]:
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
            loaded[name] = ConstantMap(source, labels)
            provenance[name] = Provenance("memory", "array", _now())
        else:
            spec = Spec.parse(os.fspath(source))
            loaded[name], provenance[name] = load_constant(spec, declared[name], axes, layout.pixels)
    return loaded, provenance


def _existing_mask(resolver: Resolver, template: Place | None, layout: RawLayout) -> Array | None:
    """The pixel mask that the raw file brings along."""
    for detector in descend(resolver, template, names.INSTRUMENT, names.DETECTOR):
        place = resolver.find(names.PIXEL_MASK, detector)
        values = read_array(place) if place else None
        if values is not None and values.shape == layout.pixels and values.dtype.kind in "iu":
            return values.astype(np.uint32)
    return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _existing_ids(resolver: Resolver, template: Place | None, layout: RawLayout) -> dict[str, Array]:
    """Ids that the raw file, a master itself, has beside its words."""
    found: dict[str, Array] = {}
    for detector in descend(resolver, template, names.INSTRUMENT, names.DETECTOR):
        found |= read_ids(resolver, detector, layout.frames)
    return found


def _preview(content: Content) -> Array | None:
    """Mean of some frames in the default output, binned to a small picture; NaN where nothing is valid."""
    output = content.calibration.preferred_output()
    if output is None:
        return None
    program = content.calibration.program(output)
    evaluation = Evaluation(content.calibration, content.words, program)
    frames, pixels = evaluation.shape[0], evaluation.shape[1:]
    total, seen = np.zeros(pixels), np.zeros(pixels)
    for frame in np.unique(np.linspace(0, frames - 1, min(frames, PREVIEW_FRAMES)).astype(int)) if frames else []:
        start = (int(frame), *(0 for _ in pixels))
        values, flags = evaluation.read(start, (1, *pixels), with_flags=True)
        assert flags is not None
        valid = (flags[0] == 0) & np.isfinite(values[0])
        total += np.where(valid, values[0], 0)
        seen += valid
    image = _binned(total), _binned(seen)
    with np.errstate(invalid="ignore"):
        return (image[0] / image[1]).astype(np.float32)


def _binned(image: Array) -> Array:
    """Sums over squares, so that no edge is longer than a preview's; modules are laid below each other."""
    flat = image.reshape(-1, image.shape[-1])
    step = -(-max(flat.shape) // PREVIEW_EDGE)
    rows, columns = (-(-n // step) * step for n in flat.shape)
    padded = np.zeros((rows, columns))
    padded[: flat.shape[0], : flat.shape[1]] = flat
    summed = padded.reshape(rows // step, step, columns // step, step).sum(axis=(1, 3))
    return np.asarray(summed)
