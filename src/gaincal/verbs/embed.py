"""``embed``: put a formula and its constants into a file that links (or holds) the raw words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.checks import words_inputs
from gaincal.formulas.formula import Formula
from gaincal.kernels.arithmetic import ieee
from gaincal.nexus import names
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.master import Content, Placement, write_master
from gaincal.nexus.preview import make_preview
from gaincal.nexus.sweeps import Direction, Motion
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.nexus.words import Readable
from gaincal.nexus.write import parse_number
from gaincal.sources.files import Spec, load_numbers
from gaincal.sources.gather import (
    Source,
    check_ids,
    existing_ids,
    find_mask,
    find_readers,
    find_template,
    known_facts,
    load_constants,
    open_raw,
    recorded_inputs,
    split_settings,
    stated_inputs,
    stated_scaling,
    suggested_formula,
    taken_names,
    told,
)
from gaincal.sources.geometry import find_geometry
from gaincal.sources.nearest import REFUSE, Choice, choose
from gaincal.sources.recognise import AUTO, recognise
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]


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


@ieee()
def embed(
    raw: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    formula: str | os.PathLike[str] | Formula | None = None,
    constants: Mapping[str, Source] | None = None,
    constants_from: str | os.PathLike[str] | None = None,
    max_age: float | None = None,
    on_mismatch: str = REFUSE,
    settings: Mapping[str, object] | None = None,
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    mask: str | os.PathLike[str] | None = None,
    mask_bits: str | None = None,
    ids: Mapping[str, str | os.PathLike[str]] | None = None,
    geometry: str | os.PathLike[str] | None = None,
    axes: Mapping[str, Motion] | None = None,
    directions: Mapping[str, Direction] | None = None,
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
    constants : mapping of str to str, path or ndarray, optional
        ``FILE[::/path]`` (HDF5, ``.npy``, PSI ``.bin``) or the values of every constant.  A name with
        ``{module}`` stands for one file, or dataset, per module: ``gainMaps_M{module:03d}.bin``.
    constants_from : str or path, optional
        A file that `darks` wrote, or a folder of them: the nearest set in time that fits gives what `constants` and
        `mask` do not.
    max_age : float, optional
        Most hours between those darks and the run.
    on_mismatch : {'refuse', 'warn'}
        What happens if no set is young enough and of the same detector, exposure and gain mode.
    settings : mapping of str to object, optional
        Scalar inputs of the formula (photon_energy in keV), its constants that are plain numbers, and
        metadata (see `METADATA`).
    inputs : mapping of str to str or path, optional
        ``FILE[::/path]`` of other inputs: per frame, per frame and module, or maps of the pixels; and of further
        words, where the formula takes several.
    mask : str or path, optional
        Bad-pixel mask, bool or NXmx bits.
    mask_bits : str, optional
        Whose bits the mask has, if they are not NXmx's: ``euxfel``, ``psi``, ``lcls`` ...
    ids : mapping of str to str or path, optional
        Numbers that identify the frames: pulse_id, timestamp ...
    geometry : str or path, optional
        CrystFEL's ``.geom`` file of the detector.
    axes : mapping of str to Motion, optional
        How axes of the goniometer move from frame to frame, where the raw file does not say it.
    directions : mapping of str to Direction, optional
        Axes that the raw file does not describe, from the laboratory to the sample.
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
    if in_place and (axes or directions):
        raise RequestError("axes of the goniometer are stated in a master, not in place")
    target = Path(os.path.realpath(spec.file)) if output is None else Path(output)
    refuse_existing(target, overwrite or in_place)
    run = recognise(spec.file, spec.path, source)
    if run is not None and in_place:
        raise RequestError(f"{spec.file} is a run ({run.kind}): write a master for it, not in place")
    chosen = load_formula(formula if formula is not None else suggested_formula(run))
    texts = settings or {}, inputs or {}, mask, mask_bits, ids or {}, geometry
    stated = _Stated(constants or {}, *texts, axes or {}, directions or {})
    others = {s.file.resolve().parent for s in stated.words(chosen).values()}
    if in_place and others:
        raise RequestError(f"formula '{chosen.name}' takes several words inputs: write a master, not in place")
    with open_raw(spec, run, [*trust, *others]) as resolver, reading(spec.file):
        template = find_template(resolver) if run is None else None
        picked: Iterable[str] = ()
        if constants_from is not None:
            facts = known_facts(resolver, template, run, stated.settings)
            nearest = choose(Path(constants_from), stated.lacking(chosen), facts, max_age, on_mismatch)
            stated, picked = stated.completed(nearest), nearest.notes
        content, told_so_far = _content(resolver, spec, chosen, run, template, stated)
        if not in_place:
            refuse_input(target, [*resolver.opened, *(run.files if run else ()), *stated.files])
        image, doubts = make_preview(content.calibration, content.words)
        start = resolver.master if in_place else None
        with atomic_output(target, overwrite=overwrite or in_place, start_from=start) as written:
            how = Placement.IN_PLACE if in_place else Placement.COPIED if copy_raw else Placement.LINKED
            checksum, notes = write_master(written, resolver, template, content, image, how)
    notes += [origin.note for origin in content.provenance.values() if origin.note]
    return Embedded(target, checksum, content.calibration.available_outputs(), [*told_so_far, *picked, *notes, *doubts])


@dataclass(frozen=True)
class _Stated:
    """What a user states of a run; see `embed`."""

    constants: Mapping[str, Source]
    settings: Mapping[str, object]
    inputs: Mapping[str, str | os.PathLike[str]]
    mask: str | os.PathLike[str] | None
    mask_bits: str | None
    ids: Mapping[str, str | os.PathLike[str]]
    geometry: str | os.PathLike[str] | None
    axes: Mapping[str, Motion]
    directions: Mapping[str, Direction]

    def lacking(self, formula: Formula) -> list[str]:
        """Constants of the formula that are not stated, and the mask if that is not."""
        named = {*self.constants, *self.settings}
        mask = [names.PIXEL_MASK] if self.mask is None else []
        return [c.name for c in formula.constants if c.name not in named] + mask

    def completed(self, nearest: Choice) -> _Stated:
        """With the constants and the mask of sets."""
        return replace(self, constants={**nearest.constants, **self.constants}, mask=self.mask or nearest.mask)

    def words(self, formula: Formula) -> dict[str, Spec]:
        """Where words of the formula lie, beside those of the raw file."""
        named = words_inputs(formula)
        return {n: Spec.parse(os.fspath(source)) for n, source in self.inputs.items() if n in named}

    @property
    def files(self) -> list[Path]:
        """The files that are named."""
        named = (*self.constants.values(), *self.inputs.values(), *self.ids.values(), self.mask, self.geometry)
        return [Spec.parse(os.fspath(s)).file for s in named if isinstance(s, str | os.PathLike)]


def _content(
    resolver: Resolver, spec: Spec, formula: Formula, run: RawRun | None, template: Place | None, stated: _Stated
) -> tuple[Content, list[str]]:
    """Everything that goes into the master, bound together, and what the user should know of it."""
    others = {n: s for n, s in stated.words(formula).items() if run is None}
    place, words = find_readers(resolver, spec, formula, run, others)
    layout, lies = _layout(words), run.lies if run else None
    plain = {n: v for n, v in stated.inputs.items() if n not in others}
    constants, settings = _with_plain_constants(formula, stated.constants, stated.settings)
    numbers, metadata = split_settings(formula, settings, resolver, template)
    placed = find_geometry(stated.geometry, metadata, layout)
    given = recorded_inputs(formula, run) | numbers | stated_inputs(formula, plain, layout)
    translated = find_mask(stated.mask, stated.mask_bits, resolver, template, layout, lies)
    bad = placed.masked(translated.mask if translated else None)
    loaded, provenance = load_constants(formula, constants, layout, lies)
    for name, (constant, origin) in stated_scaling(resolver, template, formula, layout).items():
        loaded.setdefault(name, constant)
        provenance.setdefault(name, origin)
    calibration = _bound(formula, layout, words, given, bad, loaded)
    check_ids(stated.ids, taken_names(formula))
    ids = existing_ids(resolver, template, layout) | dict(run.ids if run else {})
    ids |= {n: load_numbers(Spec.parse(os.fspath(s)), (layout.frames,)) for n, s in stated.ids.items()}
    content = Content(
        place,
        words,
        calibration,
        loaded,
        provenance,
        given,
        placed.metadata,
        bad,
        ids,
        placed.geometry,
        placed.arm,
        run.account if run else None,
        lies,
        stated.axes,
        stated.directions,
    )
    return content, [*told(formula, run), *(translated.notes if translated else ()), *placed.notes]


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


def _with_plain_constants(
    formula: Formula, constants: Mapping[str, Source], settings: Mapping[str, object]
) -> tuple[dict[str, Source], dict[str, object]]:
    """Settings that are numbers among the constants of the formula, moved there."""
    plain = {c.name for c in formula.constants if not c.dims}
    moved = {n: np.array(parse_number(n, str(value))) for n, value in settings.items() if n in plain}
    return {**constants, **moved}, {n: value for n, value in settings.items() if n not in plain}
