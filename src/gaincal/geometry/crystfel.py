"""Read CrystFEL's ``.geom`` files: untrusted text, of which nothing is ever evaluated.

Written from CrystFEL's published description of the format (``crystfel_geometry(5)``).
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping

from gaincal.errors import FileError, TrustError
from gaincal.geometry.crystfel_lines import (
    CARRIED,
    COLLECTION,
    DIM,
    EDGES,
    FAST,
    FRAMES,
    GROUP,
    MASK,
    MAX_BYTES,
    MAX_DIRECTION,
    MAX_EXTENT,
    MAX_NAME,
    PLACED,
    RIGID,
    SLOW,
    Lines,
    Said,
    sort_lines,
)
from gaincal.geometry.hierarchy import arranged, flattened
from gaincal.geometry.panels import BadRegion, Geometry, Group, Panel, Vector, measurable, overlapping

TERM = re.compile(r"([+-]?)\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)?\s*([xyz])\s*")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
LENGTHS = {"m": 1.0, "mm": 1e3}
"""How many of the unit make a metre: dividing by 1000 is exact to the last bit, multiplying by 0.001 is not."""
BEAMS = {
    "photon_energy": {"": ("photon_energy", 1e-3), "eV": ("photon_energy", 1e-3), "keV": ("photon_energy", 1.0)},
    "wavelength": {"m": ("wavelength", 1e10), "A": ("wavelength", 1.0)},
}


def read_geom(path: str | os.PathLike[str]) -> Geometry:
    """Read a ``.geom`` file; raises FileError that names the line.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Geometry
        With the panels that the file has, in its order.
    """
    try:
        # A fifo would block for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(path, "", f"cannot be opened: {error.strerror}", code="not-found") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TrustError(path, "", "is not a regular file", code="not-a-file")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise FileError(path, "", f"is longer than {MAX_BYTES >> 20} MiB: is it a .geom file?", code="geometry")
    return parse_geom(content.decode("utf-8-sig", "replace"), path)


def parse_geom(text: str, name: str | os.PathLike[str] = "geometry") -> Geometry:
    """Read the text of a ``.geom`` file, called `name` in complaints; raises FileError."""
    lines = sort_lines(text, os.fspath(name))
    if not lines.panels:
        raise FileError(name, "", "has no panels: is it a .geom file?", code="geometry")
    distances = {n: _distance(lines, said) for n, said in lines.panels.items()}
    sources = {source for _, source in distances.values()}
    if len(sources) > 1:
        raise FileError(name, "", "panels take their distance (clen) from different places", code="geometry")
    base = next(iter(distances.values()))[0]
    relative = {n: 0.0 if d is None or base is None else d - base for n, (d, _) in distances.items()}
    modules = _modules(lines)
    panels = tuple(_panel(lines, n, said, modules[n], relative[n]) for n, said in lines.panels.items())
    common = overlapping(panels)
    if common:
        problem = f"panels {common[0].name} and {common[1].name} have a pixel of the data in common"
        raise FileError(name, "", problem, code="geometry")
    groups, collections = _groups(lines)
    bad = tuple(_region(lines, n, said, {p.name: p for p in panels}) for n, said in lines.bad.items())
    whole = tuple(sorted((key, said.text) for key, said in lines.whole.items()))
    plain = Geometry(panels, base, sources.pop(), groups=groups, collections=collections, bad=bad, carried=whole)
    return arranged(plain)


def stated_beam(geometry: Geometry) -> tuple[str, float] | None:
    """What a ``.geom`` file says of the beam: ``photon_energy`` in keV, or ``wavelength`` in angstrom."""
    for key, units in BEAMS.items():
        number, unit = _measure(dict(geometry.carried).get(key, ""))
        if number is not None and number > 0 and unit in units:
            meaning, scale = units[unit]
            return meaning, number * scale
    return None


# --- values ----------------------------------------------------------------------------------


def _measure(text: str) -> tuple[float | None, str]:
    """A number and what follows it; None and the whole text if it does not begin with one."""
    found = NUMBER.match(text)
    number = float(found.group()) if found else math.nan
    if found is None or not math.isfinite(number):
        return None, text
    return number, text[found.end() :].strip()


def _number(lines: Lines, name: str, said: Said) -> float:
    number, rest = _measure(said.text)
    if number is None or rest:
        lines.fail(said.line, f"{name} = {said.text[:60]}: not a finite number")
    return number


def _integer(lines: Lines, name: str, said: Said) -> int:
    number = _number(lines, name, said)
    if number != int(number) or not 0 <= number < MAX_EXTENT:
        lines.fail(said.line, f"{name} = {said.text[:60]}: not a whole number from 0 to {MAX_EXTENT - 1}")
    return int(number)


def _vector(lines: Lines, name: str, said: Said) -> Vector:
    """A direction such as ``-0.9x +0.1y``."""
    found: dict[str, float] = {}
    position, text = 0, said.text
    while position < len(text):
        term = TERM.match(text, position) if len(text) <= MAX_DIRECTION else None
        if term is None or term[3] in found or (position and not term[1]):
            lines.fail(said.line, f"{name} = {text[:60]}: not a direction such as -0.9x +0.1y")
        found[term[3]] = float(f"{term[1]}{term[2] or 1}")
        position = term.end()
    vector = found.get("x", 0.0), found.get("y", 0.0), found.get("z", 0.0)
    if not all(math.isfinite(v) for v in vector) or not any(vector):
        lines.fail(said.line, f"{name} = {text[:60]}: has no length")
    return vector


def _distance(lines: Lines, fields: Mapping[str, Said]) -> tuple[float | None, str]:
    """The distance of a panel in metres, or where in the data files it is."""
    said = fields.get("clen")
    if said is None:
        return None, ""
    number, unit = _measure(said.text)
    if number is None:
        return None, said.text
    if unit not in ("", *LENGTHS):
        lines.fail(said.line, f"clen = {said.text[:60]}: the unit must be m or mm")
    return number / LENGTHS.get(unit, 1.0), ""


def _modules(lines: Lines) -> dict[str, int | None]:
    """Which index of a dimension the data of each panel have, None where there is no such dimension."""
    fixed = {name: _fixed(lines, name, said) for name, said in lines.panels.items()}
    if len({None if f is None else f[0] for f in fixed.values()}) > 1:
        raise FileError(lines.file, "", "panels lie in data of different dimensions (dim0, dim1 ...)", code="geometry")
    return {name: None if f is None else f[1] for name, f in fixed.items()}


def _fixed(lines: Lines, name: str, fields: Mapping[str, Said]) -> tuple[int, int] | None:
    """The one dimension of a panel's data that has a fixed index, and this index."""
    dims = {int(match[1]): said for key, said in fields.items() if (match := DIM.fullmatch(key))}
    kinds = [said.text for _, said in sorted(dims.items())] or [SLOW, FAST]
    line = max((said.line for said in dims.values()), default=1)
    numbers = [d for d, said in sorted(dims.items()) if said.text not in (FRAMES, SLOW, FAST)]
    if kinds.count(SLOW) != 1 or kinds.count(FAST) != 1 or kinds.index(FAST) < kinds.index(SLOW):
        lines.fail(line, f"panel {name}: its dims must have ss once and fs once, fs after ss")
    if kinds.count(FRAMES) > 1 or len(numbers) > 1:
        lines.fail(line, f"panel {name}: data of (frame, module, ss, fs) at most are understood, not {kinds}")
    return (numbers[0], _integer(lines, f"dim{numbers[0]}", dims[numbers[0]])) if numbers else None


def _panel(lines: Lines, name: str, fields: Mapping[str, Said], module: int | None, shift: float) -> Panel:
    line = max(said.line for said in fields.values())
    lacking = [key for key in PLACED if key not in fields]
    if lacking:
        lines.fail(line, f"panel {name} has no {', '.join(lacking)}")
    resolution = _number(lines, "res", fields["res"])
    if resolution <= 0:
        lines.fail(fields["res"].line, "res must be above zero")
    row, column, last_row, last_column = (_integer(lines, key, fields[key]) for key in EDGES)
    if row > last_row or column > last_column:
        lines.fail(line, f"panel {name}: min_ss or min_fs is above its max")
    x, y = (_number(lines, key, fields[key]) / resolution for key in ("corner_x", "corner_y"))
    z = shift + (_number(lines, "coffset", fields["coffset"]) if "coffset" in fields else 0.0)
    fast, slow = (_scaled(_vector(lines, key, fields[key]), resolution) for key in (FAST, SLOW))
    if not measurable((x, y, z), fast, slow):
        lines.fail(line, f"panel {name} lies beyond all measure")
    if _flat(fast, slow):
        lines.fail(line, f"panel {name}: fs and ss are parallel")
    carried = tuple(sorted((key, said.text) for key, said in fields.items() if key in CARRIED or MASK.fullmatch(key)))
    box = row, column, last_row - row + 1, last_column - column + 1
    return Panel(name, module, *box, (x, y, z), fast, slow, resolution, carried=carried)


def _scaled(vector: Vector, resolution: float) -> Vector:
    x, y, z = (v / resolution for v in vector)
    return x, y, z


def _flat(fast: Vector, slow: Vector) -> bool:
    """Whether two vectors span no area worth the name."""
    cosine = sum(f * s for f, s in zip(fast, slow, strict=True)) / (math.hypot(*fast) * math.hypot(*slow))
    return not abs(cosine) < 0.999  # so that NaN counts as flat


def _region(lines: Lines, name: str, fields: Mapping[str, Said], panels: Mapping[str, Panel]) -> BadRegion:
    """A bad region; rows and columns counted in its panel."""
    line = max(said.line for said in fields.values())
    slow, lab = ("min_ss", "max_ss", "min_fs", "max_fs"), ("min_x", "max_x", "min_y", "max_y")
    for keys, wanted in ((slow, {*slow, "panel"}), (lab, {*lab})):
        if set(fields) == wanted:
            low, high, left, right = (_number(lines, key, fields[key]) for key in keys)
            if keys is lab:
                return BadRegion(name, None, (low, high, left, right))
            panel = panels.get(fields["panel"].text)
            if panel is None:
                lines.fail(fields["panel"].line, f"there is no panel {fields['panel'].text[:MAX_NAME]}")
            bounds = low - panel.row, high - panel.row, left - panel.column, right - panel.column
            return BadRegion(name, panel.name, bounds)
    lines.fail(line, f"{name} needs {', '.join(slow)} and panel, or {', '.join(lab)}, and nothing else")


def _groups(lines: Lines) -> tuple[tuple[Group, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Groups and collections of groups; every member must exist."""
    groups, collections = [], []
    for key, said in lines.groups.items():
        members = tuple(m for m in (part.strip() for part in said.text.split(",")) if m)
        if key.startswith(COLLECTION):
            collections.append((key.removeprefix(COLLECTION), members))
        else:
            rigid = key.startswith(RIGID)
            groups.append(Group(key.removeprefix(RIGID if rigid else GROUP), members, rigid))
    known = {g.name for g in groups} | set(lines.panels)
    for key, said in lines.groups.items():
        for member in (part.strip() for part in said.text.split(",")):
            if member and member not in known:
                lines.fail(said.line, f"{key}: there is neither a panel nor a group {member[:MAX_NAME]}")
    if flattened(tuple(groups), set(lines.panels)) is None:
        line = max(said.line for said in lines.groups.values())
        lines.fail(line, "a group contains itself, or the groups have too many members")
    return tuple(groups), tuple(collections)
