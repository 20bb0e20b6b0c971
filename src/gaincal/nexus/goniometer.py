"""The goniometer of a sample: where its axes stand in every frame, as a file says or as somebody states it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.nexus import names
from gaincal.nexus.group import new_group
from gaincal.nexus.sweeps import HALF_TURN, Direction, Motion, Sweep
from gaincal.nexus.write import members_of_class

Positions = npt.NDArray[np.float64]
AXIS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
DEGREES = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": 180 / np.pi, "radian": 180 / np.pi, "radians": 180 / np.pi}
MAX_CHAIN = 64
SLACK = 0.1
"""How much of a step a position may be off: encoders are read, not commanded."""
STANDING = 1e-3
"""What an axis that stands still may be off, in degrees, or relative to the largest position of a translation."""
OF_AXIS = ("_end", "_increment_set")
"""Names of what belongs to an axis end so."""
KIND, VECTOR, DEPENDS_ON = names.TRANSFORMATION_TYPE, names.VECTOR, names.DEPENDS_ON
ROTATION, TRANSLATION = names.ROTATION, names.TRANSLATION


@dataclass(frozen=True)
class Axis:
    """An axis of a sample, in its file.

    Parameters
    ----------
    name, path : str
    kind : {'rotation', 'translation'}
    units : str
    values : ndarray (frame,) or (1,)
        Degrees for a rotation; in `units` for a translation.
    """

    name: str
    path: str
    kind: str
    units: str
    values: Positions

    @property
    def shown(self) -> str:
        """The unit of the values."""
        return "deg" if self.kind == ROTATION else self.units


def find_sample(entry: h5py.Group) -> h5py.Group | None:
    """The NXsample of an entry; None if there is none in the file itself."""
    return next(iter(members_of_class(entry, names.SAMPLE)), None)


def state_axes(
    entry: h5py.Group, motions: Mapping[str, Motion], directions: Mapping[str, Direction], frames: int
) -> None:
    """Say how the axes of the sample move during all frames of a run.

    Parameters
    ----------
    entry : h5py.Group
        In a file of our own, without links.
    motions : mapping of str to Motion
    directions : mapping of str to Direction
        Of axes that the entry lacks, from the laboratory to the sample.
    frames : int

    Raises
    ------
    RequestError
        If the file contradicts, or an axis lacks a direction.
    """
    if not motions and not directions:
        return
    sample = find_sample(entry)
    stated = Sweep("run", ((0, frames),), motions)
    goniometer = Goniometer(read_axes(sample), directions, frames)
    goniometer.positions(stated)
    goniometer.write(sample if sample is not None else new_group(entry, "sample", names.SAMPLE), stated)


def read_axes(sample: h5py.Group | None) -> dict[str, Axis]:
    """Axes of a sample by name: those it depends on, and all others of its transformations.

    Parameters
    ----------
    sample : h5py.Group or None
        In a file of our own, without links.
    """
    if sample is None:
        return {}
    found = _chain(sample)
    for group in members_of_class(sample, names.TRANSFORMATIONS_CLASS):
        found += [m for m in group.values() if isinstance(m, h5py.Dataset)]
    found = [dataset for dataset in found if not _belongs(dataset)]
    axes: dict[str, Axis] = {}
    for dataset in found:
        axis = _axis(dataset)
        if axis is not None:
            axes.setdefault(axis.name, axis)
    return axes


def _belongs(dataset: h5py.Dataset) -> bool:
    """Whether a field tells more of an axis beside it: where frames end, or their range."""
    name = dataset.name.rsplit("/", 1)[-1]
    return any(name.endswith(ending) and name.removesuffix(ending) in dataset.parent for ending in OF_AXIS)


def _text(value: object) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _chain(sample: h5py.Group) -> list[h5py.Dataset]:
    """What the sample depends on, nearest first."""
    found: list[h5py.Dataset] = []
    stated = sample.get(DEPENDS_ON)
    home, path = sample, _text(stated[()]) if isinstance(stated, h5py.Dataset) else "."
    while path not in ("", ".") and len(found) < MAX_CHAIN:
        dataset = home.get(path)
        if not isinstance(dataset, h5py.Dataset) or dataset in found:
            break
        found.append(dataset)
        home, path = dataset.parent, _text(dataset.attrs.get(DEPENDS_ON, "."))
    return found


def _axis(dataset: h5py.Dataset) -> Axis | None:
    kind, units = _text(dataset.attrs.get(KIND, "")), _text(dataset.attrs.get(names.UNIT_ATTRIBUTE, ""))
    if VECTOR not in dataset.attrs:
        return None
    known = kind == TRANSLATION or (kind == ROTATION and units in DEGREES)
    if not known or dataset.ndim > 1 or dataset.dtype.kind not in "iuf" or not dataset.size:
        return None
    values = np.atleast_1d(dataset[()]).astype(np.float64) * (DEGREES[units] if kind == ROTATION else 1.0)
    return Axis(dataset.name.rsplit("/", 1)[-1], dataset.name, kind, units, values)


class Goniometer:
    """The axes of a run, together with those that a user describes.

    Parameters
    ----------
    axes : mapping of str to Axis
        Of the file.
    directions : mapping of str to Direction
        Of axes that the file lacks, from the laboratory to the sample.
    frames : int
        Of the run.

    Raises
    ------
    RequestError
        If a name cannot be that of an axis, or the file describes the axis already.
    """

    def __init__(self, axes: Mapping[str, Axis], directions: Mapping[str, Direction], frames: int) -> None:
        self.axes, self.directions, self.frames = axes, directions, frames
        for name in directions:
            if not AXIS_NAME.fullmatch(name):
                raise RequestError(f"an axis cannot be called '{name}': letters, digits and _")
            if name in axes:
                raise RequestError(f"the run says itself how {name} turns or moves: leave its direction away")

    def recorded(self, name: str) -> Positions | None:
        """Positions that the file has for every frame of the run."""
        axis = self.axes.get(name)
        return axis.values if axis is not None and len(axis.values) == self.frames else None

    def positions(self, sweep: Sweep) -> dict[str, Positions]:
        """Where each axis is in the frames of a sweep: as the file recorded it, else as stated, else where it stands.

        Raises
        ------
        RequestError
            If something is stated that the file contradicts, or that lacks a direction.
        """
        found = {}
        for name in (*self.axes, *(n for n in sweep.motions if n not in self.axes)):
            recorded, stated = self.recorded(name), sweep.motions.get(name)
            if recorded is not None:
                found[name] = recorded[sweep.frames]
                self._compare(name, sweep, found[name], stated)
            elif stated is not None:
                if name not in self.axes and name not in self.directions:
                    problem = f"sweep '{sweep.name}': the run has no axis '{name}'"
                    raise RequestError(f"{problem}: say along or about which direction it moves, as with --vector")
                found[name] = stated.positions(sweep.count)
            elif len(self.axes[name].values) == 1:
                found[name] = np.repeat(self.axes[name].values, sweep.count)
        return found

    def _compare(self, name: str, sweep: Sweep, recorded: Positions, stated: Motion | None) -> None:
        if stated is None:
            return
        expected = stated.positions(sweep.count)
        off = self._off(name, recorded - expected)
        worst = int(np.argmax(np.abs(off)))
        if abs(off[worst]) > max(abs(stated.step) * SLACK, self._slack(name)):
            frame, unit = int(sweep.frames[worst]), self.axes[name].shown
            problem = f"the run says {recorded[worst]:g} {unit}, stated are {expected[worst]:g}"
            raise RequestError(f"sweep '{sweep.name}', frame {frame}: {name}: {problem}")

    def _off(self, name: str, difference: Positions) -> Positions:
        """Differences of positions; of a rotation, between half a turn back and half a turn on."""
        turned = self.rotates(name)
        return (difference + HALF_TURN) % (2 * HALF_TURN) - HALF_TURN if turned else difference

    def _slack(self, name: str) -> float:
        return STANDING if self.rotates(name) else STANDING * float(np.max(np.abs(self.axes[name].values)))

    def rotates(self, name: str) -> bool:
        """Whether an axis is a rotation."""
        axis = self.axes.get(name)
        return axis.kind == ROTATION if axis is not None else self.directions[name].units in DEGREES

    def unit(self, name: str) -> str:
        """The unit of the positions of an axis."""
        axis = self.axes.get(name)
        return axis.shown if axis is not None else self.directions[name].units

    def replaced(self, sweeps: Sequence[Sweep]) -> list[str]:
        """Axes that stand still in the file, and that somebody states otherwise."""
        stated = {name for sweep in sweeps for name in sweep.motions}
        return [n for n in sorted(stated & self.axes.keys()) if self.recorded(n) is None]

    def turning(self, sweep: Sweep) -> list[str]:
        """Rotations that move during a sweep."""
        found = self.positions(sweep)
        return [n for n, p in found.items() if self.rotates(n) and len(p) > 1 and np.ptp(p) > STANDING]

    def check_opposite(self, one: Sweep, other: Sweep) -> bool:
        """Whether there are positions that show each frame of one sweep half a turn from that of the other.

        Raises
        ------
        RequestError
            If several axes turn, or frames are not opposite.
        """
        names_ = self.turning(one)
        if not names_:
            return False
        if len(names_) > 1:
            raise RequestError(f"{' and '.join(names_)} turn both: only one can, in an inverse beam")
        (name,) = names_
        pairs = [self.positions(s)[name][: min(one.count, other.count)] for s in (one, other)]
        step = float(np.median(np.abs(np.diff(self.positions(one)[name]))))
        off = np.abs(self._off(name, pairs[1] - pairs[0] - HALF_TURN))
        worst = int(np.argmax(off))
        if off[worst] > max(SLACK * step, STANDING):
            frames = one.frames[worst], other.frames[worst]
            said = f"at {pairs[0][worst]:g} and {pairs[1][worst]:g} deg"
            raise RequestError(f"frames {frames[0]} and {frames[1]} should be opposite, and {name} is {said}")
        return True

    def uneven(self, sweep: Sweep) -> list[str]:
        """What a user should know of a sweep whose rotation does not go on evenly."""
        lines = []
        for name in self.turning(sweep):
            steps = np.diff(self.positions(sweep)[name])
            usual = float(np.median(steps))
            odd = np.flatnonzero(np.abs(steps - usual) > SLACK * abs(usual))
            if odd.size:
                frame, step = int(sweep.frames[odd[0]]), float(steps[odd[0]])
                lines.append(f"{name} moves by {step:g} deg after frame {frame}, otherwise by {usual:g}")
        return lines

    def write(self, sample: h5py.Group, sweep: Sweep) -> None:
        """Put what is stated of a sweep into a sample that has the axes of the file, cut to the sweep."""
        chosen = {n: m for n, m in sweep.motions.items() if self.recorded(n) is None}
        for name in (n for n in self.axes if n in chosen):
            _restate(sample, self.axes[name], chosen[name], sweep.count)
        for name in (n for n in self.directions if n in chosen):
            _add(sample, name, self.directions[name], chosen[name], sweep.count)


def _restate(sample: h5py.Group, axis: Axis, motion: Motion, count: int) -> None:
    """Give an axis that stands still in the file of the run a position in every frame."""
    old = sample.file[axis.path]
    attributes, home = dict(old.attrs), old.parent
    for name in (axis.name, *(f"{axis.name}{ending}" for ending in OF_AXIS)):
        if name in home:
            del home[name]
    scale = DEGREES[axis.units] if axis.kind == ROTATION else 1.0
    _put(home, axis.name, motion, count, scale, axis.units, axis.kind)
    for key, value in attributes.items():
        home[axis.name].attrs[key] = value


def _add(sample: h5py.Group, name: str, direction: Direction, motion: Motion, count: int) -> None:
    """Put an axis between all others and the sample."""
    groups = members_of_class(sample, names.TRANSFORMATIONS_CLASS)
    home = groups[0] if groups else new_group(sample, names.TRANSFORMATIONS, names.TRANSFORMATIONS_CLASS)
    kind = ROTATION if direction.units in DEGREES else TRANSLATION
    chain = _chain(sample)
    dataset = _put(home, name, motion, count, 1.0, direction.units, kind)
    dataset.attrs[VECTOR] = np.array(direction.vector, np.float64)
    dataset.attrs[DEPENDS_ON] = chain[0].name if chain else "."
    if DEPENDS_ON in sample:
        del sample[DEPENDS_ON]
    sample[DEPENDS_ON] = dataset.name


def _put(home: h5py.Group, name: str, motion: Motion, count: int, scale: float, units: str, kind: str) -> h5py.Dataset:
    """Write the positions; for a rotation that moves, where each frame ends, too."""
    positions = motion.positions(count)
    values = {name: positions}
    if kind == ROTATION and motion.step:
        values |= {f"{name}_end": positions + motion.step, f"{name}_increment_set": np.full(count, motion.step)}
    for key, value in values.items():
        home.create_dataset(key, data=value / scale)
        home[key].attrs[names.UNIT_ATTRIBUTE] = units
        home[key].attrs[KIND] = kind
    return home[name]
