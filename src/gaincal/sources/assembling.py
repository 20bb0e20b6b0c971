"""Files of modules put together to one run, whose frames are matched by ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gaincal.errors import FileError, RequestError
from gaincal.nexus.arrangement import Arrangement
from gaincal.sources import euxfel
from gaincal.sources.files import Spec
from gaincal.sources.gathered import gathered
from gaincal.sources.matching import Matched, Rule, map_words, match
from gaincal.sources.module_files import MATCHED_BY, Recording, record
from gaincal.sources.recognise import AUTO
from gaincal.sources.run import Array, RawRun, RawWords, jungfrau_formula

Progress = Callable[[int, int], None]
MAX_MODULES = 1024
EUXFEL = "euxfel"


@dataclass(frozen=True)
class How:
    """How modules are put together.

    Parameters
    ----------
    ids : mapping of str to str or None
        See `record`; those that the files are known to have if empty.
    rule : Rule
    layout : str
    gap : int
        See `Arrangement`.
    source : str
        See `recognise`.
    trust : tuple of str or path
        Directories whose files the files of the modules may lead to.
    """

    ids: Mapping[str, str | None]
    rule: Rule
    layout: str
    gap: int
    source: str = AUTO
    trust: tuple[str | os.PathLike[str], ...] = ()


def assemble_modules(modules: Mapping[int, Spec | None], how: How, progress: Progress | None = None) -> RawRun:
    """Put modules together.

    Parameters
    ----------
    modules : mapping of int to Spec or None
        Files by their place in a frame; None for a module that is absent.
    how : How
    progress : callable (done, total) -> None, optional
        Told after every file.

    Returns
    -------
    RawRun
        With the account of every module.

    Raises
    ------
    FileError
        If files do not hold one module each, all of one kind, or none can be read.
    RequestError
        If it is not clear by which ids, or which frames are the same.
    """
    run = _of_euxfel(modules, how)
    if run is not None:
        return run
    if not modules or min(modules) < 0 or max(modules) >= MAX_MODULES:
        raise RequestError(f"name 1 to {MAX_MODULES} modules, counted from 0")
    recordings = {}
    for done, number in enumerate(range(max(modules) + 1), start=1):
        recordings[number] = record(modules.get(number), number, how.ids, how.source, how.trust)
        if progress is not None:
            progress(done, max(modules) + 1)
    return _put_together(modules, recordings, how)


def _of_euxfel(modules: Mapping[int, Spec | None], how: How) -> RawRun | None:
    """The run, if these are files of the European XFEL, which say themselves of which modules they are."""
    named = [spec for spec in modules.values() if spec is not None]
    there = [spec.file for spec in named if spec.file.exists()]
    if how.source not in (AUTO, EUXFEL) or not there:
        return None
    run = euxfel.recognise_files(there, named[0].path, how.rule, how.layout, how.gap)
    if run is not None and (how.ids or how.rule.tolerance is not None):
        raise RequestError("frames of the European XFEL are matched by train and pulse, as they are")
    return run


def _put_together(modules: Mapping[int, Spec | None], recordings: Mapping[int, Recording], how: How) -> RawRun:
    present = {n: r for n, r in recordings.items() if r.run is not None}
    if not present:
        number, spec = next((n, s) for n, s in modules.items() if s is not None)
        problem = f"{recordings[number].problem}, and no other module has a file that can be read"
        raise FileError(spec.file, "", problem, code="not-found")
    runs = {n: r.run for n, r in present.items() if r.run is not None}
    _refuse_different(modules, runs)
    matched_by = _matched_by(present, how)
    some = next(iter(runs.values()))
    lies = Arrangement(len(recordings), some.pixels, how.layout, how.gap)
    matched = match([r.stretch(n, matched_by) for n, r in present.items()], how.rule)
    if not matched.frames:
        raise RequestError(f"no {matched_by} is in {_needed(how.rule)} modules: are these files of one run?")
    inputs = {n: _input(n, matched, lies) for n in some.inputs if all(n in r.inputs for r in runs.values())}
    others, differ = _other_ids(matched, matched_by)
    has = f"{len(runs)} of {lies.modules} modules, {matched.frames} frames matched by {matched_by}"
    return RawRun(
        kind="modules",
        description=f"module files ({some.kind}): {has}",
        detector=some.detector,
        formula=_formula(runs, inputs),
        frames=matched.frames,
        pixels=lies.shape,
        words=_words(modules, runs, matched, lies),
        inputs=inputs,
        maps={n: lies.arranged(np.repeat(v[None], lies.modules, axis=0)) for n, v in some.maps.items()},
        ids={matched_by: matched.ids[0], **others},
        files=tuple(dict.fromkeys(f for run in runs.values() for f in run.files)),
        notes=tuple(_notes(runs, differ)),
        lies=lies,
        account=matched.account(matched_by, {n: (r.file, r.problem) for n, r in recordings.items()}),
    )


def _refuse_different(modules: Mapping[int, Spec | None], runs: Mapping[int, RawRun]) -> None:
    """Refuse modules that cannot lie in one dataset."""
    kinds = {n: (r.pixels, {w: v.dtype.name for w, v in r.words.items()}, _mapped(r)) for n, r in runs.items()}
    first = next(iter(kinds))
    for number, kind in kinds.items():
        spec = modules[number]
        assert spec is not None
        if len(kind[0]) > 2:
            problem = f"holds frames of {kind[0]}, not of one module"
            raise FileError(spec.file, "", problem, "what is whole already goes to: gaincal embed", code="wrong-shape")
        if kind != kinds[first]:
            problem = f"module {number} has {kind[0]} pixels and words {kind[1]}, module {first} {kinds[first][:2]}"
            raise FileError(spec.file, "", problem, "only modules of one kind make a frame", code="frames-differ")


def _mapped(run: RawRun) -> bool:
    return all(words.read is None for words in run.words.values())


def _matched_by(present: Mapping[int, Recording], how: How) -> str:
    """The ids by which frames are matched: the first that is named, else the best that all modules have."""
    common = [n for n in MATCHED_BY if all(n in r.ids for r in present.values())]
    chosen = next(iter(how.ids), next(iter(common), None))
    if chosen is None:
        raise RequestError("say what identifies the frames, and where it is in each file: --id pulse_id=/path")
    kinds = {r.ids[chosen].dtype.kind for r in present.values()}
    if "i" in kinds:
        raise RequestError(f"{chosen} is negative in some frames, so it is no id")
    if len(kinds) > 1:
        raise RequestError(f"{chosen} is a whole number in some files, and none in others")
    if "f" in kinds and how.rule.tolerance is None:
        raise RequestError(f"{chosen} is no whole number: say how close is equal, --tolerance T (0: the very same)")
    return chosen


def _needed(rule: Rule) -> str:
    return "all" if rule.intersection else f"at least {rule.require}"


def _input(name: str, matched: Matched, lies: Arrangement) -> Array:
    """An input of every frame and module; of a module without the frame, that of the first that has it."""
    columns = {n: m.column(f"/{name}") for n, m in matched.modules.items()}
    values = np.zeros((matched.frames, lies.modules), next(iter(columns.values())).dtype)
    has = np.zeros(values.shape, bool)
    for number, column in columns.items():
        at = matched.modules[number].at
        values[at, number], has[at, number] = column, True
    first = np.take_along_axis(values, has.argmax(axis=1)[:, None], axis=1)
    values = np.where(has, values, first)
    alike = lies.modules == 1 or (values == values[:, :1]).all()
    return values[:, 0] if alike else values


def _other_ids(matched: Matched, matched_by: str) -> tuple[dict[str, Array], dict[str, int]]:
    """Ids beside those that are equal, as the first module that has a frame says; in how many frames others differ."""
    columns = [m.stretches[0].columns for m in matched.modules.values()]
    names = [n for n in columns[0] if n != matched_by and not n.startswith("/") and all(n in c for c in columns)]
    found, differ = {}, {}
    for name in names:
        stated = [(m.at, m.column(name)) for m in matched.modules.values()]
        values = np.zeros(matched.frames, np.result_type(*(values.dtype for _, values in stated)))
        for at, column in reversed(stated):
            values[at] = column
        differs = np.zeros(matched.frames, bool)
        for at, column in stated:
            differs[at] |= values[at] != column
        found[name], differ[name] = values, int(np.count_nonzero(differs))
    return found, differ


def _formula(runs: Mapping[int, RawRun], inputs: Mapping[str, Array]) -> str | None:
    """The formula that the modules together call for."""
    named = {run.formula for run in runs.values()}
    if len(named) > 1 and all(n is not None and n.startswith("jungfrau") for n in named):
        return jungfrau_formula(inputs)
    return named.pop() if len(named) == 1 else None


def _words(
    modules: Mapping[int, Spec | None], runs: Mapping[int, RawRun], matched: Matched, lies: Arrangement
) -> dict[str, RawWords]:
    some = next(iter(runs.values()))
    dtypes = {word: held.dtype for word, held in some.words.items()}
    if _mapped(some):
        named = next(str(spec.file) for spec in modules.values() if spec is not None)
        return map_words(named, "", lies, dtypes, matched.modules)
    return {word: gathered(word, dtype, runs, matched, lies) for word, dtype in dtypes.items()}


def _notes(runs: Mapping[int, RawRun], differ: Mapping[str, int]) -> Iterator[str]:
    for name, count in differ.items():
        if count:
            yield f"{name} differs between modules in {count} frames; that of the first module is given"
    said: dict[str, list[int]] = {}
    for number, run in runs.items():
        for note in run.notes:
            said.setdefault(note, []).append(number)
    yield from (f"module {', '.join(str(n) for n in numbers)}: {note}" for note, numbers in said.items())
