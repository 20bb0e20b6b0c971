"""European XFEL runs: the frames of all modules, from many files, matched by train and pulse."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.nexus.arrangement import STACKED, Arrangement
from gaincal.nexus.trust import MAX_FILES, TRUST_VARIABLE, Resolver, reading
from gaincal.sources.euxfel_files import Family, Source, gain_modes, read_stretch, sources
from gaincal.sources.matching import Matched, Module, Rule, Stretch, map_words, match
from gaincal.sources.run import RawRun

Array = npt.NDArray[Any]
UNION = Rule()
FILE_NAME = re.compile(r"[A-Z]+-R\d+-.+-S\d+\.h5")


@dataclass(frozen=True)
class _File:
    """A file of a run, and what the user named: the file itself, or a folder that holds it."""

    named: Path
    path: Path


@dataclass(frozen=True)
class _Survey:
    """Which detectors there are, and in which files; what cannot be opened; gain modes that are stated."""

    detectors: Mapping[str, list[tuple[_File, Source]]]
    unreadable: list[FileError]
    gain_modes: set[str]


def recognise(path: Path, inside: str | None = None) -> RawRun | None:
    """What a run of the European XFEL holds of a detector.

    Parameters
    ----------
    path : Path
        The folder of the run, or one of its files.
    inside : str, optional
        Name of the detector, where the run has several: ``SPB_DET_AGIPD1M-1``.

    Returns
    -------
    run : RawRun or None
        None if this is no run of the European XFEL.  Its frames are the sorted union over the modules.

    Raises
    ------
    FileError
        If a file of the run is not what it should be, or the detector is not clear.
    """
    return recognise_files([path], inside)


def recognise_files(
    paths: Sequence[Path], inside: str | None = None, rule: Rule = UNION, layout: str = STACKED, gap: int = 0
) -> RawRun | None:
    """What files of a run of the European XFEL hold of a detector, matched by a rule: see `recognise`.

    Parameters
    ----------
    paths : sequence of Path
        Files, or the folder of a run; at least one.
    inside : str, optional
    rule : Rule
    layout, gap : str, int
        See `Arrangement`.
    """
    survey = _survey(paths)
    if survey is None:
        return None
    path = paths[0]
    name = _chosen(path, survey.detectors, inside)
    found = survey.detectors[name]
    families = {source.family.name: source.family for _, source in found}
    if len(families) > 1:
        raise FileError(path, name, f"is written like {' and '.join(sorted(families))}", code="ambiguous")
    stretches = [s for file, source in found for s in _read(file, source)]
    notes = [f"left out, cannot be opened: {Path(e.file).name}: {e.problem}" for e in survey.unreadable]
    (family,) = families.values()
    order = _order(path, family, name, sorted({source.number for _, source in found}))
    modes = survey.gain_modes if family.name == "AGIPD" else set()
    if not any(len(s.entry) for s in stretches):
        raise FileError(path, name, "has no frame in this run", code="not-words")
    matched = match(stretches, rule, f"module {{}} of {name}")
    return _run(path, name, family, matched, order, Arrangement(len(order), family.pixels, layout, gap), modes, notes)


def _survey(paths: Sequence[Path]) -> _Survey | None:
    """Look into all files of a run."""
    detectors: dict[str, list[tuple[_File, Source]]] = {}
    unreadable: list[FileError] = []
    modes: list[str] = []
    recognised = False
    for file in (f for path in paths for f in _files(path)):
        try:
            with _opened(file) as resolver, reading(file.path):
                found = sources(resolver)
                modes += gain_modes(resolver)
        except FileError as error:
            if error.code not in ("not-hdf5", "not-found"):
                raise
            unreadable.append(error)
            continue
        recognised |= found is not None
        for source in found or ():
            detectors.setdefault(source.detector, []).append((file, source))
    if not recognised and unreadable and paths[0].is_dir():
        raise unreadable[0]
    return _Survey(detectors, unreadable, set(modes)) if recognised else None


def _files(path: Path) -> list[_File]:
    """The file itself, or the files of a folder that are named as the facility names them."""
    if not path.is_dir():
        return [_File(path, path)] if path.is_file() else []
    with reading(path):
        files = sorted(f for f in path.iterdir() if FILE_NAME.fullmatch(f.name))
    if len(files) > MAX_FILES:
        raise TrustError(path, "", f"holds more than {MAX_FILES} files", code="too-many-files")
    return [_File(path, file) for file in files]


def _opened(file: _File) -> Resolver:
    """Open a file of a run, if no symbolic link leads out of the folder to what nobody trusts."""
    resolver = Resolver(file.path)
    home = Path(os.path.realpath(file.named))
    # The first root is the directory of the file itself, wherever a link has led.
    if file.named == file.path or any(resolver.master.is_relative_to(root) for root in (home, *resolver.roots[1:])):
        return resolver
    resolver.close()
    problem = f"leads to {resolver.master}, outside the folder of the run"
    raise TrustError(
        file.path, "", problem, f"if you trust it: {TRUST_VARIABLE}={resolver.master.parent}", code="foreign-file"
    )


def _chosen(path: Path, detectors: Iterable[str], inside: str | None) -> str:
    """The detector that is meant."""
    names = sorted(detectors)
    if inside is not None:
        if inside not in names:
            raise FileError(path, inside, f"is no detector of this run: {', '.join(names)}", code="not-found")
        return inside
    if len(names) == 1:
        return names[0]
    problem = f"has several detectors: {', '.join(names)}" if names else "has no detector that gaincal knows"
    raise FileError(path, "", problem, f"name one: {path}::{names[0]}" if names else "", code="ambiguous")


def _read(file: _File, source: Source) -> Iterator[Stretch]:
    with _opened(file) as resolver, reading(file.path):
        stretch = read_stretch(resolver, source)
    if stretch is not None:
        yield stretch


def _run(
    path: Path,
    name: str,
    family: Family,
    matched: Matched,
    order: list[int],
    lies: Arrangement,
    modes: set[str],
    notes: list[str],
) -> RawRun:
    """Put the modules together."""
    trains, seconds = matched.ids
    modules = matched.modules
    present = sum(len(m.at) > 0 for m in modules.values())
    what = f"{present} of {len(order)} modules, {len(trains)} frames of {len(np.unique(trains))} trains"
    dtypes = {word: np.dtype(kind) for word, (_, kind, _) in family.words.items()}
    by_place = {order.index(number): module for number, module in modules.items()}
    return RawRun(
        kind="euxfel",
        description=f"European XFEL run with {family.name} {name}: {what}",
        detector=name,
        formula=family.formula,
        frames=len(trains),
        pixels=lies.shape,
        words=map_words(str(path), name, lies, dtypes, by_place),
        inputs={"cell": _cells(family, order, matched, lies)} if family.cell else {},
        ids={"train_id": trains, family.second: seconds},
        files=tuple(sorted({p.file for m in modules.values() for s in m.stretches for p in s.places.values()})),
        notes=(*notes, *_notes(order, modules, len(trains))),
        lies=lies,
        account=matched.account(f"train_id, {family.second}", {n: ("", _problem(modules.get(n))) for n in order}),
        facts={"detector_name": name, **({"gain_mode": next(iter(modes))} if len(modes) == 1 else {})},
    )


def _problem(module: Module | None) -> str:
    if module is None:
        return "absent"
    return f"{module.unusable} frames were not received" if module.unusable else ""


def _order(path: Path, family: Family, name: str, numbers: list[int]) -> list[int]:
    """Numbers of the modules in the order of the frames, with those that are absent."""
    size, first = family.modules(name), int(not family.planes)
    if size and set(numbers) <= set(range(first, first + size)):
        return list(range(first, first + size))
    if size and family.planes:
        raise FileError(path, name, f"has modules {_listed(numbers)}, but should have {size}", code="wrong-shape")
    # A JUNGFRAU of one module bears any number.
    return numbers


def _cells(family: Family, order: list[int], matched: Matched, lies: Arrangement) -> Array:
    """Memory cells (frame, module), or (frame,) for one module, and for modules of one image that agree."""
    cells = np.full((matched.frames, len(order)), family.no_cell, np.uint16 if family.planes else np.uint8)
    for number, module in matched.modules.items():
        cells[module.at, order.index(number)] = module.column("cell")
    if not lies.in_one_image:
        return cells if len(order) > 1 else cells[:, 0]
    known = cells != family.no_cell
    first = np.take_along_axis(cells, known.argmax(axis=1)[:, None], axis=1)
    return first[:, 0] if ((cells == first) | ~known).all() else cells


def _notes(order: list[int], modules: Mapping[int, Module], frames: int) -> Iterator[str]:
    """What is not as it should be, a line per kind."""
    recorded = {n: len(modules[n].at) if n in modules else 0 for n in order}
    absent = [n for n, count in recorded.items() if not count]
    if absent:
        yield f"absent modules: {_listed(absent)}"
    counts = {
        "frames that modules lack": {n: frames - count for n, count in recorded.items() if count},
        "frames recorded again, of which the first is kept": {n: m.duplicate for n, m in modules.items()},
        "frames left out, which were not received": {n: m.unusable for n, m in modules.items()},
        "frames left out, which too few modules have": {n: m.lonely for n, m in modules.items()},
        "entries of another train than INDEX says, which is believed": {
            n: sum(s.doubtful for s in m.stretches) for n, m in modules.items()
        },
    }
    for what, of_module in counts.items():
        listed = [f"module {n}: {count}" for n, count in of_module.items() if count]
        if listed:
            yield f"{what}: {', '.join(listed)}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(n) for n in numbers)
