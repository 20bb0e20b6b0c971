"""The constants that belong to a run: from the nearest sets in time that fit, with a line that says which and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gaincal.errors import FileError, RequestError
from gaincal.nexus import names
from gaincal.nexus.constantsfile import Fact, held_constants, is_constants_file, read_constants, read_validity
from gaincal.nexus.trust import MAX_FILES, Resolver, reading
from gaincal.sources.facts import parse_time

SUFFIXES = (".nxs", ".h5", ".hdf5")
SAME_EXPOSURE = 0.01
"""Exposures that differ by less than this part are the same."""
REFUSE, WARN = "refuse", "warn"
COMPARED = ("detector_name", "module_serials", "gain_mode", "exposure_time")


@dataclass(frozen=True)
class Choice:
    """The sets that were chosen.

    Parameters
    ----------
    files : mapping of str to Path
        Of each constant, and of the pixel mask, the set that has it.
    notes : tuple of str
        Which and why, and what does not fit.
    """

    files: Mapping[str, Path]
    notes: tuple[str, ...]

    @property
    def constants(self) -> dict[str, str]:
        """Where the constants lie."""
        return {n: f"{f}::{names.CONSTANTS_PATH}/{n}/{n}" for n, f in self.files.items() if n != names.PIXEL_MASK}

    @property
    def mask(self) -> str | None:
        """Where the pixel mask lies, if a set has one."""
        file = self.files.get(names.PIXEL_MASK)
        return None if file is None else f"{file}::{names.CONSTANTS_PATH}/{names.PIXEL_MASK}"


@dataclass(frozen=True)
class _Candidate:
    file: Path
    held: tuple[str, ...]
    validity: Mapping[str, Fact]
    age: timedelta | None
    doubts: tuple[str, ...]


def choose(
    location: Path,
    wanted: Iterable[str],
    facts: Mapping[str, Fact],
    max_age: float | None = None,
    mismatch: str = REFUSE,
) -> Choice:
    """Choose the constants for a run: each from the nearest set that has it.

    Parameters
    ----------
    location : Path
        A constants file, or a folder of them.
    wanted : iterable of str
        Constants of the formula, and the pixel mask.
    facts : mapping of str to str or number
        What is known of the run: start_time, exposure_time, detector_name, module_serials, gain_mode.
    max_age : float, optional
        Most hours between darks and run.
    mismatch : {'refuse', 'warn'}
        What happens with sets that are too old or of another detector, exposure or gain mode.

    Raises
    ------
    FileError
        If there is no set that fits, or nobody knows which is the nearest.
    RequestError
        If `mismatch` is something else.
    """
    if mismatch not in (REFUSE, WARN):
        raise RequestError(f"on mismatch: {REFUSE} or {WARN}, not '{mismatch}'")
    candidates = [_candidate(file, facts, max_age) for file in _files(location)]
    if not candidates:
        raise FileError(location, "", "holds no constants file", "gaincal darks writes them", code="no-constants")
    files: dict[str, Path] = {}
    notes: list[str] = []
    for name in wanted:
        holding = [c for c in candidates if name in c.held]
        if holding:
            found = _taken(location, holding, mismatch)
            files[name] = found.file
            notes += [n for n in _told(found, holding) if n not in notes]
    if not files:
        held = ", ".join(sorted({n for c in candidates for n in c.held}))
        raise FileError(location, "", f"has nothing that the formula takes: {held}", code="no-constants")
    for file in sorted(set(files.values())):
        read_constants(file)  # compares its checksum
    return Choice(files, tuple(notes))


def _taken(location: Path, candidates: list[_Candidate], mismatch: str) -> _Candidate:
    """The nearest that fits."""
    fitting = [c for c in candidates if not c.doubts]
    if not fitting and mismatch == REFUSE:
        listed = "; ".join(f"{c.file.name}: {', '.join(c.doubts)}" for c in candidates[:4])
        raise FileError(location, "", f"no set fits: {listed}", "--on-mismatch warn takes one anyway", code="no-fit")
    return _nearest(location, fitting or candidates)


def _told(found: _Candidate, candidates: list[_Candidate]) -> Iterator[str]:
    """Which set is taken and why, and what does not fit."""
    others = len(candidates) - 1
    yield f"constants: {found.file.name}, {_why(found)}" + (f"; {others} other set(s)" if others else "")
    yield from (f"constants: {found.file.name} {doubt}" for doubt in found.doubts)
    left_out = (c for c in candidates if c.doubts and c is not found)
    yield from (f"constants: {c.file.name} left out, {', '.join(c.doubts)}" for c in left_out)


def _files(location: Path) -> Iterator[Path]:
    """The constants files that are meant."""
    if not location.is_dir():
        yield location
        return
    with reading(location):
        files = sorted(f for f in location.iterdir() if f.suffix in SUFFIXES)
    if len(files) > MAX_FILES:
        raise FileError(location, "", f"holds more than {MAX_FILES} files", code="too-many-files")
    for file in files:
        with Resolver(file) as resolver:
            if is_constants_file(resolver):
                yield file


def _candidate(file: Path, facts: Mapping[str, Fact], max_age: float | None) -> _Candidate:
    validity = read_validity(file)
    age = _age(validity, facts)
    doubts = [f"is of {n} {validity[n]}, the run of {facts[n]}" for n in COMPARED if _differs(validity, facts, n)]
    if max_age is not None and age is not None and abs(age) > timedelta(hours=max_age):
        doubts.append(f"was taken {_hours(age)} the run, more than {max_age:g} h")
    if max_age is not None and age is None:
        doubts.append("cannot be dated: set or run has no start_time")
    return _Candidate(file, tuple(held_constants(file)), validity, age, tuple(doubts))


def _differs(validity: Mapping[str, Fact], facts: Mapping[str, Fact], name: str) -> bool:
    """Whether both say it, and not the same."""
    if name not in validity or name not in facts:
        return False
    a, b = validity[name], facts[name]
    if isinstance(a, str) or isinstance(b, str):
        return str(a) != str(b)
    return abs(a - b) > SAME_EXPOSURE * max(abs(a), abs(b))


def _age(validity: Mapping[str, Fact], facts: Mapping[str, Fact]) -> timedelta | None:
    """How long before the run the darks were taken."""
    taken, run = (parse_time(f.get("start_time")) for f in (validity, facts))
    return run - taken if isinstance(taken, datetime) and isinstance(run, datetime) else None


def _nearest(location: Path, candidates: list[_Candidate]) -> _Candidate:
    if len(candidates) == 1:
        return candidates[0]
    dated = [c for c in candidates if c.age is not None]
    if not dated:
        problem = f"holds {len(candidates)} sets that fit, and no times tell which is the nearest"
        raise FileError(location, "", problem, "say --set start_time=..., or name the file", code="ambiguous")
    return min(dated, key=lambda c: (abs(c.age or timedelta()), c.file.name))


def _why(found: _Candidate) -> str:
    if found.age is None:
        return "the only one that fits; how old it is nobody knows"
    return f"the nearest in time: taken {_hours(found.age)} the run"


def _hours(age: timedelta) -> str:
    hours = abs(age.total_seconds()) / 3600
    return f"{hours:.1f} h {'before' if age >= timedelta() else 'after'}"
