"""Tables of sweeps, as a user writes them: CSV or TOML."""

from __future__ import annotations

import csv
import io
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaincal.errors import FileError
from gaincal.nexus.sweeps import Direction, Motion, Range, Sweep

MAX_BYTES = 4 << 20
OWN = ("name", "first", "frames", "ranges")
START, STEP = "_start", "_step"
ROTATION = "deg"
LENGTHS = ("m", "mm", "um", "nm")


@dataclass(frozen=True)
class Table:
    """What a table says: the sweeps, and the axes that it describes, from the laboratory to the sample."""

    sweeps: list[Sweep]
    directions: Mapping[str, Direction]


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table of sweeps; raises FileError that names the sweep.

    Parameters
    ----------
    path : str or path
        ``.toml``; anything else is CSV with a header.  Every sweep has ``name`` and either ``first`` and
        ``frames`` or ``ranges`` (``0:10 20:30``, as in a slice).  All other columns are axes: ``kappa`` is where
        it stands, ``omega_start`` and ``omega_step`` are where it begins and how far it moves from frame to frame.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise FileError(file, "", f"cannot be opened: {error.strerror}", code="not-found") from None
    except UnicodeDecodeError:
        raise FileError(file, "", "is not UTF-8 text", code="bad-text") from None
    if len(content) > MAX_BYTES:
        raise FileError(file, "", f"is larger than {MAX_BYTES} bytes, too large for a table", code="bad-table")
    if file.suffix == ".toml":
        return _from_toml(file, text)
    return Table(_from_csv(file, text), {})


def parse_ranges(text: str) -> tuple[Range, ...]:
    """``0:10 20:30`` as first and number; raises ValueError."""
    found = []
    for part in text.split():
        first, stop = (int(n) for n in part.split(":"))
        if not 0 <= first < stop:
            raise ValueError(f"range {part}: write FIRST:STOP, with STOP after FIRST")
        found.append((first, stop - first))
    return tuple(found)


def parse_motion(text: str) -> Motion:
    """``START`` or ``START:STEP``; raises ValueError."""
    start, separator, step = text.partition(":")
    return Motion(_finite(start), _finite(step) if separator else 0.0)


def parse_direction(text: str) -> Direction:
    """``X,Y,Z`` of a rotation, ``X,Y,Z,UNIT`` of a translation; raises ValueError."""
    parts = [p.strip() for p in text.split(",")]
    return _direction(parts[:3], parts[3] if len(parts) == 4 else ROTATION if len(parts) == 3 else "")


def _direction(vector: object, units: object) -> Direction:
    if not isinstance(vector, list) or len(vector) != 3:
        raise ValueError("a direction has three numbers: X,Y,Z")
    if units != ROTATION and units not in LENGTHS:
        raise ValueError(f"unit '{units}': {ROTATION} for a rotation, {', '.join(LENGTHS)} for a translation")
    x, y, z = (_finite(v) for v in vector)
    length = math.hypot(x, y, z)
    if not length:
        raise ValueError("a direction of length 0")
    return Direction((x / length, y / length, z / length), str(units))


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _from_csv(file: Path, text: str) -> list[Sweep]:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    try:
        lines = [[cell.strip() for cell in row] for row in rows if row and not row[0].lstrip().startswith("#")]
    except csv.Error as error:
        raise FileError(file, "", f"is not CSV: {error}", code="bad-table") from None
    header, *lines = lines or [[]]
    if "name" not in header or len(set(header)) < len(header) or "" in header:
        problem = "the first line must name the columns, each once, and one of them 'name'"
        raise FileError(file, "", problem, code="bad-table")
    if any(len(line) != len(header) for line in lines):
        bad = next(line for line in lines if len(line) != len(header))
        problem = f"line '{','.join(bad)[:60]}' has {len(bad)} cells, the header {len(header)}"
        raise FileError(file, "", problem, code="bad-table")
    return [_sweep(file, {k: v for k, v in zip(header, line, strict=True) if v}) for line in lines]


def _from_toml(file: Path, text: str) -> Table:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError(file, "", f"is not TOML: {error}", code="bad-table") from None
    rows, axes = content.pop("sweep", []), content.pop("axes", {})
    if (
        content
        or not isinstance(rows, list)
        or not isinstance(axes, dict)
        or not all(isinstance(r, dict) for r in rows)
    ):
        unknown = f", not [{next(iter(content))}]" if content else ""
        raise FileError(file, "", f"holds [[sweep]] tables, and [axes.NAME]{unknown}", code="bad-table")
    directions = {}
    for name, axis in axes.items():
        if not isinstance(axis, dict) or not {"vector"} <= set(axis) <= {"vector", "units"}:
            raise FileError(file, f"axes.{name}", "has vector, and units if it is no rotation", code="bad-table")
        try:
            directions[name] = _direction(axis["vector"], axis.get("units", ROTATION))
        except ValueError as error:
            raise FileError(file, f"axes.{name}", str(error), code="bad-table") from None
    return Table([_sweep(file, row) for row in rows], directions)


def _sweep(file: Path, row: Mapping[str, Any]) -> Sweep:
    name = row.get("name")
    where = f"sweep {name}" if name is not None else "a sweep"
    try:
        if not isinstance(name, str):
            raise ValueError("needs a name, which is a text")
        return Sweep(name, _ranges(row), _motions({k: v for k, v in row.items() if k not in OWN}))
    except ValueError as error:
        raise FileError(file, where, str(error), code="bad-table") from None


def _ranges(row: Mapping[str, Any]) -> tuple[Range, ...]:
    if ("ranges" in row) == ("first" in row) or ("first" in row) != ("frames" in row):
        raise ValueError("needs either 'first' and 'frames', or 'ranges'")
    if "ranges" in row:
        listed = row["ranges"]
        texts = listed if isinstance(listed, list) else [listed]
        if not all(isinstance(t, str) for t in texts):
            raise ValueError("ranges are texts: '0:10 20:30'")
        return parse_ranges(" ".join(texts))
    first, frames = row["first"], row["frames"]
    if isinstance(first, float) or isinstance(frames, float):
        raise ValueError("frames are counted in whole numbers")
    return ((int(first), int(frames)),)


def _motions(cells: Mapping[str, Any]) -> dict[str, Motion]:
    """Positions and steps by axis: ``kappa``; ``omega_start`` and ``omega_step``; in TOML also a table of both."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in cells.items():
        if isinstance(value, dict):
            _merge(parts, key, value)
        elif key.endswith(START):
            _merge(parts, key.removesuffix(START), {"start": value})
        elif key.endswith(STEP):
            _merge(parts, key.removesuffix(STEP), {"step": value})
        else:
            _merge(parts, key, {"start": value})
    motions = {}
    for axis, given in parts.items():
        if not {"start"} <= set(given) <= {"start", "step"}:
            raise ValueError(f"axis {axis} needs a start, and may have a step")
        motions[axis] = Motion(_finite(given["start"]), _finite(given.get("step", 0.0)))
    return motions


def _merge(parts: dict[str, dict[str, Any]], axis: str, given: Mapping[str, Any]) -> None:
    known = parts.setdefault(axis, {})
    if known.keys() & given.keys():
        raise ValueError(f"axis {axis} is given twice")
    known.update(given)
