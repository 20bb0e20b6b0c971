"""The lines of a ``.geom`` file, sorted by what they are about, but not yet understood: untrusted text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from gaincal.errors import FileError

MAX_BYTES = 4 << 20
MAX_PANELS = 4096
MAX_GROUPS = 4096
MAX_EXTENT = 1 << 20
"""Rows and columns of the data."""
MAX_NAME = 64
MAX_LINE, MAX_DIRECTION = 1 << 16, 256
"""Characters."""

EDGES = ("min_ss", "min_fs", "max_ss", "max_fs")
PLACED = (*EDGES, "corner_x", "corner_y", "fs", "ss", "res")
OPTIONAL = ("clen", "coffset")
CARRIED = frozenset(
    (
        *("data", "mask", "mask_file", "mask_good", "mask_bad", "mask_edge_pixels"),
        *("saturation_map", "saturation_map_file", "adu_per_eV", "adu_per_photon", "max_adu", "min_adu"),
        *("no_index", "badrow_direction", "flag_lessthan", "flag_morethan", "flag_equal"),
    )
)
"""Fields of a panel that say nothing about its place."""
CARRIED_WHOLE = frozenset(
    (
        *("photon_energy", "photon_energy_bandwidth", "wavelength", "electron_voltage", "bandwidth"),
        *("peak_list", "peak_list_type", "peak_info_location"),
    )
)
REFUSED = {
    "detector_shift_x": "add it to corner_x",
    "detector_shift_y": "add it to corner_y",
    "rail_direction": "state the corners where the detector stands",
    "clen_for_centering": "state the corners where the detector stands",
}
DIM, MASK = re.compile(r"dim([0-9])"), re.compile(r"mask[0-7]_(data|file|goodbits|badbits)")
FRAMES, SLOW, FAST = "%", "ss", "fs"
COLLECTION, RIGID, GROUP, BAD = "rigid_group_collection_", "rigid_group_", "group_", "bad"


@dataclass(frozen=True)
class Said:
    """The right side of a line, and which line."""

    text: str
    line: int


@dataclass
class Lines:
    """What the lines of a file say, sorted, but not yet understood."""

    file: str
    defaults: dict[str, Said] = field(default_factory=dict)
    panels: dict[str, dict[str, Said]] = field(default_factory=dict)
    bad: dict[str, dict[str, Said]] = field(default_factory=dict)
    whole: dict[str, Said] = field(default_factory=dict)
    groups: dict[str, Said] = field(default_factory=dict)

    def fail(self, line: int, problem: str, remedy: str = "") -> NoReturn:
        """Complain about a line."""
        raise FileError(self.file, f"line {line}", problem, remedy, code="geometry")


def sort_lines(text: str, file: str) -> Lines:
    """Sort the lines of a text, called `file` in complaints; raises FileError that names the line."""
    lines = Lines(file)
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.partition(";")[0].strip()
        if not content:
            continue
        if len(content) > MAX_LINE:
            lines.fail(number, f"is longer than {MAX_LINE} characters")
        key, separator, value = (part.strip() for part in content.partition("="))
        if not separator or not key or not value:
            lines.fail(number, f"'{content[:60]}' is not NAME = VALUE")
        if not content.isascii() or not all(c.isprintable() or c == "\t" for c in content):
            lines.fail(number, "holds characters other than printable ASCII")
        _sort(lines, key, Said(value, number))
    return lines


def _sort(lines: Lines, key: str, said: Said) -> None:
    """Put a line where it belongs."""
    owner, separator, name = key.partition("/")
    if not separator:
        _sort_whole(lines, key, said)
    elif owner.startswith(BAD):
        _grown(lines, lines.bad, owner, said)[name] = said
    elif owner.startswith((GROUP, RIGID.rstrip("_"))):
        lines.fail(said.line, f"'{owner}' cannot be a panel: names of groups begin so")
    else:
        _known(lines, name, said)
        panel = lines.panels.get(owner)
        if panel is None:
            panel = _grown(lines, lines.panels, owner, said)
            panel.update(lines.defaults)
        panel[name] = said


def _grown(lines: Lines, owners: dict[str, dict[str, Said]], name: str, said: Said) -> dict[str, Said]:
    """The fields of a panel or region, a new one if it is first mentioned."""
    if name not in owners and len(owners) >= MAX_PANELS:
        lines.fail(said.line, f"more than {MAX_PANELS} panels, or bad regions")
    if not name or len(name) > MAX_NAME or any(c.isspace() or c == "," for c in name):
        lines.fail(said.line, f"'{name[:MAX_NAME]}' cannot be a name: at most {MAX_NAME} characters, no blanks")
    return owners.setdefault(name, {})


def _sort_whole(lines: Lines, key: str, said: Said) -> None:
    if key.startswith((RIGID, GROUP)):
        if len(lines.groups) >= MAX_GROUPS:
            lines.fail(said.line, f"more than {MAX_GROUPS} groups")
        lines.groups[key] = said
    elif key in CARRIED_WHOLE:
        lines.whole[key] = said
    else:
        _known(lines, key, said)
        lines.defaults[key] = said


def _known(lines: Lines, name: str, said: Said) -> None:
    """Refuse what could move a pixel in a way that is not understood here."""
    if name in REFUSED:
        lines.fail(said.line, f"'{name}' is not understood", REFUSED[name])
    fixed = name in PLACED or name in OPTIONAL or name in CARRIED
    if not (fixed or DIM.fullmatch(name) or MASK.fullmatch(name)):
        lines.fail(said.line, f"'{name}' is no field of a .geom file")
