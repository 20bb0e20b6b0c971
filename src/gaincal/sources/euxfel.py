"""European XFEL runs: the frames of all modules, from many files, matched by train and pulse."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, TrustError
from gaincal.nexus.trust import MAX_FILES, TRUST_VARIABLE, Resolver, reading
from gaincal.sources.euxfel_files import Family, Source, Stretch, read_stretch, sources
from gaincal.sources.euxfel_match import Module, matched
from gaincal.sources.run import Part, RawRun, RawWords

Array = npt.NDArray[Any]
FILE_NAME = re.compile(r"[A-Z]+-R\d+-.+-S\d+\.h5")
MAX_PARTS = 100_000


@dataclass(frozen=True)
class _Survey:
    """Which detectors there are, and in which files; what cannot be opened."""

    detectors: Mapping[str, list[tuple[Path, Source]]]
    unreadable: list[FileError]


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
    survey = _survey(path)
    if survey is None:
        return None
    name = _chosen(path, survey.detectors, inside)
    found = survey.detectors[name]
    families = {source.family.name: source.family for _, source in found}
    if len(families) > 1:
        raise FileError(path, name, f"is written like {' and '.join(sorted(families))}", code="ambiguous")
    stretches = [s for file, source in found for s in _read(path, file, source)]
    notes = [f"left out, cannot be opened: {Path(e.file).name}: {e.problem}" for e in survey.unreadable]
    (family,) = families.values()
    return _run(path, name, family, stretches, sorted({source.number for _, source in found}), notes)


def _survey(path: Path) -> _Survey | None:
    """Look into all files of a run."""
    detectors: dict[str, list[tuple[Path, Source]]] = {}
    unreadable: list[FileError] = []
    recognised = False
    for file in _files(path):
        try:
            with _opened(path, file) as resolver, reading(file):
                found = sources(resolver)
        except FileError as error:
            if error.code not in ("not-hdf5", "not-found"):
                raise
            unreadable.append(error)
            continue
        recognised |= found is not None
        for source in found or ():
            detectors.setdefault(source.detector, []).append((file, source))
    if not recognised and unreadable and path.is_dir():
        raise unreadable[0]
    return _Survey(detectors, unreadable) if recognised else None


def _files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that are named as the facility names them."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    with reading(path):
        files = sorted(f for f in path.iterdir() if FILE_NAME.fullmatch(f.name))
    if len(files) > MAX_FILES:
        raise TrustError(path, "", f"holds more than {MAX_FILES} files", code="too-many-files")
    return files


def _opened(path: Path, file: Path) -> Resolver:
    """Open a file of a run, if no symbolic link leads out of the folder to what nobody trusts."""
    resolver = Resolver(file)
    home = Path(os.path.realpath(path if path.is_dir() else path.parent))
    # The first root is the directory of the file itself, wherever a link has led.
    if path.is_file() or any(resolver.master.is_relative_to(root) for root in (home, *resolver.roots[1:])):
        return resolver
    resolver.close()
    problem = f"leads to {resolver.master}, outside the folder of the run"
    raise TrustError(
        file, "", problem, f"if you trust it: {TRUST_VARIABLE}={resolver.master.parent}", code="foreign-file"
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


def _read(path: Path, file: Path, source: Source) -> Iterator[Stretch]:
    with _opened(path, file) as resolver, reading(file):
        stretch = read_stretch(resolver, source)
    if stretch is not None:
        yield stretch


def _run(
    path: Path, name: str, family: Family, stretches: list[Stretch], numbers: list[int], notes: list[str]
) -> RawRun:
    """Put the modules together."""
    order = _order(path, family, name, numbers)
    trains, seconds, modules = matched(stretches)
    if not len(trains):
        raise FileError(path, name, "has no frame in this run", code="not-words")
    present = sum(len(m.at) > 0 for m in modules.values())
    what = f"{present} of {len(order)} modules, {len(trains)} frames of {len(np.unique(trains))} trains"
    return RawRun(
        kind="euxfel",
        description=f"European XFEL run with {family.name} {name}: {what}",
        detector=name,
        formula=family.formula,
        frames=len(trains),
        pixels=(len(order), *family.pixels) if len(order) > 1 else family.pixels,
        words=_words(path, name, family, order, modules),
        inputs={"cell": _cells(family, order, modules, len(trains))} if family.cell else {},
        ids={"train_id": trains, family.second: seconds},
        files=tuple(sorted({file for s in stretches for file, _ in s.places.values()})),
        notes=(*notes, *_notes(order, modules, len(trains))),
        facts={"detector_name": name},
    )


def _order(path: Path, family: Family, name: str, numbers: list[int]) -> list[int]:
    """Numbers of the modules in the order of the frames, with those that are absent."""
    size, first = family.modules(name), int(not family.planes)
    if size and set(numbers) <= set(range(first, first + size)):
        return list(range(first, first + size))
    if size and family.planes:
        raise FileError(path, name, f"has modules {_listed(numbers)}, but should have {size}", code="wrong-shape")
    # A JUNGFRAU of one module bears any number.
    return numbers


def _words(
    path: Path, name: str, family: Family, order: list[int], modules: Mapping[int, Module]
) -> dict[str, RawWords]:
    """Where all words lie."""
    total = sum(len(m.runs[0]) for m in modules.values())
    if total > MAX_PARTS:
        problem = f"lies in {total} pieces, more than {MAX_PARTS}"
        raise FileError(path, name, problem, "are its frames out of order?", code="over-budget")
    words = {}
    for word, (_, kind, plane) in family.words.items():
        parts: list[Part] = []
        for number, module in modules.items():
            where = (order.index(number),) if len(order) > 1 else ()
            parts += module.parts(word, plane, family.pixels, where)
        words[word] = RawWords(np.dtype(kind), tuple(parts))
    return words


def _cells(family: Family, order: list[int], modules: Mapping[int, Module], frames: int) -> Array:
    """Memory cells (frame, module), or (frame,) for one module."""
    cells = np.full((frames, len(order)), family.no_cell, np.uint16 if family.planes else np.uint8)
    for number, module in modules.items():
        cells[module.at, order.index(number)] = module.column("cell")
    return cells if len(order) > 1 else cells[:, 0]


def _notes(order: list[int], modules: Mapping[int, Module], frames: int) -> Iterator[str]:
    """What is not as it should be, a line per kind."""
    recorded = {n: len(modules[n].at) if n in modules else 0 for n in order}
    absent = [n for n, count in recorded.items() if not count]
    if absent:
        yield f"absent modules: {_listed(absent)}"
    counts = {
        "frames that modules lack": {n: frames - count for n, count in recorded.items() if count},
        "frames recorded again, of which the first is kept": {n: m.repeated for n, m in modules.items()},
        "frames left out, which no module received": {n: m.unreceived for n, m in modules.items()},
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
