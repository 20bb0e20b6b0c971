"""``assemble``: put files of single modules together to one run, frame by frame, by what identifies the frames."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gaincal.errors import RequestError
from gaincal.nexus.account import Account
from gaincal.nexus.arrangement import STACKED
from gaincal.nexus.assembly import Assembly, write_assembly
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.trust import Resolver, reading
from gaincal.sources.assembling import How, assemble_modules
from gaincal.sources.files import BY_MODULE, Spec, module_spec
from gaincal.sources.gather import check_ids, open_raw
from gaincal.sources.matching import FIRST, Rule
from gaincal.sources.recognise import AUTO, readers
from gaincal.sources.run import RawRun

UNION, INTERSECTION = "union", "intersection"
IDS = (UNION, INTERSECTION)
PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Assembled:
    """What `assemble` made.

    Parameters
    ----------
    path : Path
        The assembled file.
    frames : int
    shape : tuple of int
        Of the words: (frame, module, y, x) or (frame, y, x).
    account : Account
        How frames were matched, and what became of all that the modules recorded.
    notes : list of str
        What the user should know.
    """

    path: Path
    frames: int
    shape: tuple[int, ...]
    account: Account
    notes: list[str]


def assemble(
    files: Sequence[PathLike],
    output: PathLike,
    *,
    modules: Mapping[int, PathLike | None] | None = None,
    ids: Mapping[str, str | None] | None = None,
    tolerance: float | None = None,
    select: str = UNION,
    require: int = 1,
    duplicates: str = FIRST,
    layout: str = STACKED,
    gap: int = 0,
    source: str = AUTO,
    overwrite: bool = False,
    trust: Iterable[PathLike] = (),
    progress: Progress | None = None,
) -> Assembled:
    """Put files of modules together to one NXmx file, whose words are a virtual dataset over them.

    Frames are the same if their ids are equal, and for no other reason.  What a module lacks stays a gap, which
    is flagged as missing when the words are calibrated.  The file has no calibration yet: `embed` puts one in.

    Parameters
    ----------
    files : sequence of str or path
        ``FILE[::/path]`` of each module, in their order in a frame.  One name with ``{module}`` or
        ``{module:02d}`` stands for the files of all modules that have one.
    output : str or path
        The file to write.
    modules : mapping of int to str, path or None, optional
        Files by the place of their module in a frame, counted from 0; None for a module that is absent.
        The others take the other places.
    ids : mapping of str to str or None, optional
        What identifies frames, and where it lies: ``/path`` in each file, ``FILE::/path`` or ``FILE.npy``, perhaps
        with ``{module}``; None for ids that gaincal knows of such files.  The first are those that must be equal.
        If there are none: the pulse id, or whatever such files are known to have.
    tolerance : float, optional
        How far apart ids may lie that count as equal, in their unit: for times.
    select : {'union', 'intersection'}
        Frames that any module has, or that all modules have which have any.
    require : int
        Frames that at least so many modules have.
    duplicates : {'first', 'last', 'reject'}
        Which of several rows of a module with the same ids is kept, in the order of the file; ``reject``: none.
    layout : {'stacked', 'assembled'}
        (frame, module, y, x), or (frame, y, x) with modules below each other.
    gap : int
        Rows without pixels between modules of the layout 'assembled'.
    source : str
        What the files are: see `embed`.
    overwrite : bool
        Replace an existing `output`.
    trust : iterable of str or path
        Directories whose files the files of the modules may lead to.
    progress : callable (done, total) -> None, optional
        Told after every module.

    Returns
    -------
    Assembled

    Raises
    ------
    FileError, TrustError, OutputError, RequestError
    """
    target = Path(output)
    refuse_existing(target, overwrite)
    if select not in IDS:
        raise RequestError(f"no ids '{select}'; there are {', '.join(IDS)}")
    rule = Rule(duplicates, require, select == INTERSECTION, tolerance)
    trusted = tuple(trust)
    places = _places(files, modules or {})
    run = assemble_modules(places, How(ids or {}, rule, layout, gap, source, trusted), progress)
    check_ids(run.ids, ())
    specs = [spec for spec in places.values() if spec is not None]
    refuse_input(target, [*run.files, *(spec.file for spec in specs)])
    with open_raw(specs[0], run, trusted) as resolver, reading(specs[0].file):
        refuse_input(target, resolver.opened)
        notes = _write(target, run, resolver, overwrite)
    assert run.account is not None
    return Assembled(target, run.frames, (run.frames, *run.pixels), run.account, [*run.notes, *notes])


def _write(target: Path, run: RawRun, resolver: Resolver, overwrite: bool) -> list[str]:
    assert run.account is not None
    assert run.lies is not None
    words = readers(run, resolver)
    inputs = {**run.inputs, **run.maps}
    assembly = Assembly(words, run.lies, run.ids, inputs, run.account, run.detector, run.formula)
    with atomic_output(target, overwrite=overwrite) as written:
        return write_assembly(written, assembly)


def _places(files: Sequence[PathLike], named: Mapping[int, PathLike | None]) -> dict[int, Spec | None]:
    """The files of modules by their place in a frame."""
    given = [Spec.parse(os.fspath(f)) for f in files]
    if len(given) == 1 and BY_MODULE.search(str(given[0].file)):
        places: dict[int, Spec | None] = dict(_matching(given[0]))
    else:
        free = (k for k in range(len(given) + len(named)) if k not in named)
        places = {k: module_spec(spec, k) for k, spec in zip(free, given, strict=False)}
    places |= {k: None if f is None else module_spec(Spec.parse(os.fspath(f)), k) for k, f in named.items()}
    if not any(places.values()):
        raise RequestError("name the files of the modules")
    return places


def _matching(spec: Spec) -> dict[int, Spec]:
    """The files that a name with ``{module}`` stands for."""
    folder, name = spec.file.parent, spec.file.name
    parts = BY_MODULE.split(name)  # before it, how many digits, behind it
    if BY_MODULE.search(str(folder)) or len(parts) != 3:
        raise RequestError(f"{spec.file}: {{module}} once, in the name of the file; else name the files one by one")
    pattern = re.compile(rf"{re.escape(parts[0])}(\d{{1,4}}){re.escape(parts[2])}")
    found = {}
    with reading(folder):
        for entry in os.listdir(folder):
            matched = pattern.fullmatch(entry)
            own = module_spec(spec, int(matched[1])) if matched else None
            if matched and own and own.file.name == entry:
                found[int(matched[1])] = own
    if not found:
        raise RequestError(f"{spec.file}: there is no such file, for any module")
    return dict(sorted(found.items()))
