"""``views``: the sweeps of an acquisition as masters of their own, which refer to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gaincal.errors import OutputError, RequestError
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.goniometer import Goniometer
from gaincal.nexus.preview import make_preview, some_of
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.sweeps import (
    HALF_TURN,
    Account,
    Direction,
    Motion,
    Range,
    Sweep,
    account_for,
    check_sweeps,
)
from gaincal.nexus.sweeps import every as every_so_many
from gaincal.nexus.sweeps import inverse_beam as interleaved
from gaincal.nexus.trust import reading
from gaincal.nexus.views import Acquisition
from gaincal.sources.sweeps import Table, read_table

Progress = Callable[[int, int], None]
PREVIEW_WORDS = 1 << 23
"""What the picture of a view may read: one frame of a large detector, eight of a small one."""
PREVIEW_FRAMES = 8


@dataclass(frozen=True)
class View:
    """A master of a sweep.

    Parameters
    ----------
    name : str
    path : Path
    frames : int
    ranges : list of (int, int)
        First frame in the run, and number of frames, of every run of frames.
    positions : dict of str to (float, float, str)
        Where each axis is when the first and the last frame begin, and the unit.
    checksum : str
        Of its calibration.
    """

    name: str
    path: Path
    frames: int
    ranges: list[Range]
    positions: dict[str, tuple[float, float, str]]
    checksum: str


@dataclass(frozen=True)
class Views:
    """What `views` made.

    Parameters
    ----------
    run : Path
    account : Account
        Of the frames of the run.
    views : list of View
    notes : list of str
        What the user should know.
    """

    run: Path
    account: Account
    views: list[View]
    notes: list[str]


@dataclass(frozen=True)
class _Plan:
    """What was asked for: sweeps, in the words of the request, and axes that the file lacks."""

    sweeps: list[Sweep]
    request: str
    directions: Mapping[str, Direction]
    notes: list[str]


def views(
    run: str | os.PathLike[str],
    directory: str | os.PathLike[str] | None = None,
    *,
    sweeps: str | os.PathLike[str] | Sequence[Sweep] | None = None,
    every: int | None = None,
    inverse_beam: int | None = None,
    axes: Mapping[str, Motion] | None = None,
    directions: Mapping[str, Direction] | None = None,
    allow_rest: bool = False,
    calibration: str | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Views:
    """Write one master per sweep of a run: its frames, its goniometer, and links to all else.

    Parameters
    ----------
    run : str or path
        A master, as `embed` makes it.
    directory : str or path, optional
        Where the views go, as ``<run>_<sweep>.nxs``; beside the run if None.
    sweeps : str, path or sequence of Sweep, optional
        A table (CSV or TOML), or the sweeps.
    every : int, optional
        Sweeps of so many frames each.
    inverse_beam : int, optional
        Two sweeps, A and B, of interleaved wedges of so many frames.
    axes : mapping of str to Motion, optional
        How axes move in every sweep, as far as neither the run nor the table says it; B begins half a turn on.
    directions : mapping of str to Direction, optional
        Axes that the run does not describe, from the laboratory to the sample.
    allow_rest : bool
        With `every`: frames that remain become a shorter sweep.
    calibration : str, optional
        Which calibration, where the run has several.
    overwrite : bool
        Replace existing files.
    trust : iterable of str or path
        Directories, beside the run's own, whose files may be opened.
    progress : callable (done, total) -> None, optional
        Told after every view.

    Returns
    -------
    Views

    Raises
    ------
    FileError, TrustError, BindError, RequestError, OutputError
    """
    if sum(choice is not None for choice in (sweeps, every, inverse_beam)) != 1:
        raise RequestError("say one of sweeps, every and inverse_beam")
    table = read_table(sweeps) if isinstance(sweeps, str | os.PathLike) else Table(list(sweeps or ()), {})
    master = open_master(run, trust=trust, calibration=calibration)
    with master.resolver:
        frames = master.calibration.layout.frames
        plan = _planned(frames, table.sweeps, every, inverse_beam, axes or {}, allow_rest)
        plan = replace(plan, directions={**table.directions, **(directions or {})})
        check_sweeps(plan.sweeps, frames)
        with reading(run):
            prepared = Acquisition(master)
        with closing(prepared) as acquisition:
            home = Path(directory) if directory is not None else Path(run).parent
            return _Making(acquisition, plan, home, Path(run), overwrite).make(progress)


def _planned(
    frames: int,
    listed: list[Sweep],
    count: int | None,
    wedge: int | None,
    axes: Mapping[str, Motion],
    allow_rest: bool,
) -> _Plan:
    """The sweeps that are asked for; what the table says of an axis counts before what is said of all."""
    if count is not None:
        found = every_so_many(frames, count, allow_rest)
        notes = [f"sweep {s.name} has {s.count} frames instead of {count}" for s in found if s.count < count]
        return _Plan([replace(s, motions=axes) for s in found], f"every {count} frames", {}, notes)
    if wedge is None:
        stated = [replace(s, motions={**axes, **s.motions}) for s in listed]
        return _Plan(stated, "sweeps of a table", {}, [])
    (one, other), notes = interleaved(frames, wedge)
    opposite = {n: replace(m, start=m.start + HALF_TURN) if m.step else m for n, m in axes.items()}
    pair = [replace(one, motions=axes), replace(other, motions=opposite)]
    return _Plan(pair, f"inverse beam, wedges of {wedge} frames", {}, notes)


class _Making:
    """The views of one acquisition, being made.

    Parameters
    ----------
    acquisition : Acquisition
    plan : _Plan
    home : Path
        Directory of the views.
    run : Path
        As the user named it.
    overwrite : bool
    """

    def __init__(self, acquisition: Acquisition, plan: _Plan, home: Path, run: Path, overwrite: bool) -> None:
        self.acquisition, self.plan, self.home, self.run, self.overwrite = acquisition, plan, home, run, overwrite
        self.master: Master = acquisition.master
        self.goniometer = Goniometer(acquisition.axes, plan.directions, acquisition.frames)
        self.account = account_for(plan.sweeps, acquisition.frames)

    def make(self, progress: Progress | None) -> Views:
        """Check everything, then write; what was written is taken back where something goes wrong."""
        self._check_names()
        notes = self._notes()
        _make_directory(self.home)
        made: list[View] = []
        try:
            for number, sweep in enumerate(self.plan.sweeps, start=1):
                if self.acquisition.has_words(sweep):
                    made.append(self._view(sweep, number))
                else:
                    notes.append(f"sweep {sweep.name} has no view: there is not a single word of its frames")
                if progress is not None:
                    progress(number, len(self.plan.sweeps))
        except BaseException:
            for view in made:
                view.path.unlink(missing_ok=True)
            raise
        return Views(self.run, self.account, made, notes)

    def _check_names(self) -> None:
        for sweep in self.plan.sweeps:
            target = self._target(sweep)
            refuse_existing(target, self.overwrite)
            refuse_input(target, self.master.resolver.opened)

    def _target(self, sweep: Sweep) -> Path:
        return self.home / f"{self.run.stem}_{sweep.name}.nxs"

    def _notes(self) -> list[str]:
        """What the user should know, once nothing contradicts anything."""
        notes, goniometer, sweeps = list(self.plan.notes), self.goniometer, self.plan.sweeps
        for sweep in sweeps:
            notes += [f"sweep {sweep.name}: {line}" for line in goniometer.uneven(sweep)]
        if self.plan.request.startswith("inverse"):
            known = goniometer.check_opposite(*sweeps)
            notes += [] if known else ["nobody states positions: A and B are what the wedges say, unchecked"]
        replaced = goniometer.replaced(sweeps)
        notes += [f"{name} stands still in the run, and moves as stated in the views" for name in replaced]
        if not any(goniometer.turning(s) for s in sweeps):
            notes.append("no axis turns: for programs these are still images")
        account = self.account
        if account.in_none:
            notes.append(f"{account.in_none} frames are in no sweep: {shown(account.none)}")
        if account.in_several:
            notes.append(f"{account.in_several} frames are in several sweeps: {shown(account.several)}")
        notes += [f"not copied from the run: {path}" for path in self.acquisition.left_out]
        gaps = sum(len(w.gaps) for w in self.master.words.values())
        notes += [f"{gaps} parts of the words are missing; views would not see them if they came later"] if gaps else []
        home = Path(os.path.realpath(self.home))
        outside = sorted({str(f.parent) for f in self.acquisition.files if not f.is_relative_to(home)})
        return notes + [f"the run lies outside of {self.home}: readers need --trust-dir {d}" for d in outside]

    def _view(self, sweep: Sweep, number: int) -> View:
        acquisition, target = self.acquisition, self._target(sweep)
        image = self._image(sweep)
        facts = self._facts(sweep, number)
        with atomic_output(target, overwrite=self.overwrite) as written:
            checksum = acquisition.write(written, sweep, self.goniometer, image, facts)
        positions = {
            name: (float(p[0]), float(p[-1]), self.goniometer.unit(name))
            for name, p in self.goniometer.positions(sweep).items()
        }
        return View(sweep.name, target, sweep.count, list(sweep.ranges), positions, checksum)

    def _image(self, sweep: Sweep) -> Any:
        """A picture of some frames, taken from the run: its constants are in memory already."""
        pixels = int(np.prod(self.master.calibration.layout.pixels))
        most = max(1, min(PREVIEW_FRAMES, PREVIEW_WORDS // max(1, pixels)))
        return make_preview(self.master.calibration, self.master.words, some_of(sweep.frames, most))[0]

    def _facts(self, sweep: Sweep, number: int) -> dict[str, object]:
        account = self.account
        return {
            "request": self.plan.request,
            "sweep": sweep.name,
            "sweep_number": np.int64(number),
            "sweeps": np.int64(len(self.plan.sweeps)),
            "frames": np.int64(sweep.count),
            "ranges": _table(list(sweep.ranges)),
            "run_frames": np.int64(account.frames),
            "frames_in_one_sweep": np.int64(account.in_one),
            "frames_in_several_sweeps": np.int64(account.in_several),
            "frames_in_no_sweep": np.int64(account.in_none),
            "ranges_in_several_sweeps": _table(account.several),
            "ranges_in_no_sweep": _table(account.none),
        }


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(path, "", f"cannot be made: {error.strerror}", code="write-failed") from None


def _table(ranges: list[Range]) -> Any:
    return np.array(ranges, np.int64).reshape(-1, 2)


def shown(ranges: Sequence[Range], most: int = 6) -> str:
    """Ranges of frames for people: ``0-9 20 30-39``."""
    texts = [f"{first}-{first + count - 1}" if count > 1 else f"{first}" for first, count in ranges[:most]]
    return " ".join(texts) + (f" and {len(ranges) - most} more" if len(ranges) > most else "")


def summary(done: Views) -> list[str]:
    """What was made, line by line."""
    lines = [f"{done.run}: {done.account.frames} frames, {len(done.views)} views"]
    width = max((len(str(v.path)) for v in done.views), default=0)
    for view in done.views:
        axes = [_moved(name, *where) for name, where in view.positions.items()]
        lines.append(f"  {view.path!s:{width}}  {view.frames:6} frames  {shown(view.ranges, 3)}  {', '.join(axes)}")
    account = done.account
    counts = f"{account.in_one} in one sweep, {account.in_several} in several, {account.in_none} in none"
    return [*(line.rstrip() for line in lines), f"  {account.frames} frames: {counts}"]


def _moved(name: str, first: float, last: float, unit: str) -> str:
    return f"{name} {first:g} {unit}" if first == last else f"{name} {first:g} to {last:g} {unit}"
