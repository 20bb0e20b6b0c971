"""Module and quadrant of a panel: what the groups say, else the names, else what is known of a detector."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from gaincal.geometry.panels import ASIC, MODULE, QUADRANT, Geometry, Group, Panel

MAX_MEMBERSHIPS = 1 << 18
MAX_LEVELS = 2
"""Parents that a panel can have."""
Found = tuple[dict[str, tuple[str, ...]], tuple[str, ...], str]
"""Parents by panel, what they are, and how they were found."""

NAMES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"(q\d+)(m\d+)a\d+"), (QUADRANT, MODULE, ASIC)),
    (re.compile(r"([pm]\d+)a\d+"), (MODULE, ASIC)),
    (re.compile(r"(q\d+)[pm]\d+"), (QUADRANT, MODULE)),
    (re.compile(r"(q\d+)a\d+"), (QUADRANT, ASIC)),
)
_FOURS: Mapping[int, int] = {k: k // 4 for k in range(16)}
_JF16M: Mapping[int, int] = {k: k // 16 * 2 + k % 4 // 2 for k in range(32)}
KNOWN: Mapping[tuple[int, int, int], tuple[str, Mapping[int, int]]] = {
    (16, 512, 128): ("AGIPD 1M", _FOURS),
    (16, 256, 256): ("LPD 1M", _FOURS),
    (16, 128, 512): ("DSSC 1M", _FOURS),
    (16, 352, 384): ("ePix10k 2M", _FOURS),
    (32, 512, 1024): ("JUNGFRAU 16M of SwissFEL", _JF16M),
    (32, 514, 1030): ("JUNGFRAU 16M of SwissFEL", _JF16M),
}
"""Detectors by (modules, rows, columns): the quadrant of each module."""


def arranged(geometry: Geometry) -> Geometry:
    """The geometry with the parents of its panels, their levels, and the rule that found them."""
    ways: Sequence[Callable[[Geometry], Found | None]] = (_by_groups, _by_full_names, _by_table, _by_names)
    for way in ways:
        found = way(geometry)
        if found is not None:
            parents, levels, rule = found
            panels = tuple(replace(p, parents=parents[p.name]) for p in geometry.panels)
            return replace(geometry, panels=panels, levels=levels, rule=rule)
    return replace(geometry, levels=(MODULE,), rule="flat: neither groups, names nor a known detector")


def flattened(groups: tuple[Group, ...], panels: set[str]) -> dict[str, frozenset[str]] | None:
    """The panels in each group, through groups of groups; None if a group contains itself, or for too many."""
    members = {g.name: g.members for g in groups}
    found: dict[str, frozenset[str]] = {}
    open_: set[str] = set()
    total = 0
    for start in members:
        pending = [start]
        while pending:
            name = pending[-1]
            if name in found:
                pending.pop()
                continue
            inner = [m for m in members[name] if m not in panels and m not in found]
            if not inner:
                pending.pop()
                open_.discard(name)
                found[name] = frozenset().union(*(frozenset((m,)) if m in panels else found[m] for m in members[name]))
                total += len(found[name])
            elif name in open_ or any(m not in members for m in inner):
                return None
            else:
                open_.add(name)
                pending += inner
            if total > MAX_MEMBERSHIPS or len(pending) > MAX_MEMBERSHIPS:
                return None
    return found


def _by_groups(geometry: Geometry) -> Found | None:
    """Groups that contain each other or have nothing in common, equally deep for all panels."""
    names = {p.name for p in geometry.panels}
    sets = flattened(geometry.groups, names) or {}
    distinct = {content: name for name, content in reversed(sets.items()) if content and len(content) < len(names)}
    holding: dict[str, list[frozenset[str]]] = {name: [] for name in names}
    for content in sorted(distinct, key=len, reverse=True):
        for name in content:
            holding[name].append(content)
    depths = {len(held) for held in holding.values()}
    nested = all(b <= a for held in holding.values() for a, b in pairwise(held))
    if len(depths) != 1 or not nested or not 0 < (depth := depths.pop()) <= MAX_LEVELS:
        return None
    parents = {name: tuple(distinct[content] for content in held) for name, held in holding.items()}
    outer = all(p[0].startswith("q") for p in parents.values())
    levels = (QUADRANT, MODULE, ASIC) if depth == MAX_LEVELS else (QUADRANT, MODULE) if outer else (MODULE, ASIC)
    return parents, levels, "groups of the file"


def _matched(geometry: Geometry, patterns: Sequence[tuple[re.Pattern[str], tuple[str, ...]]]) -> Found | None:
    for pattern, levels in patterns:
        matches = {p.name: pattern.fullmatch(p.name) for p in geometry.panels}
        if all(matches.values()):
            parents = {}
            for name, match in matches.items():
                assert match is not None
                parents[name] = tuple("".join(match.groups()[: k + 1]) for k in range(len(match.groups())))
            return parents, levels, "names of the panels"
    return None


def _by_full_names(geometry: Geometry) -> Found | None:
    return _matched(geometry, NAMES[:1])


def _by_names(geometry: Geometry) -> Found | None:
    return _matched(geometry, NAMES[1:])


def _by_table(geometry: Geometry) -> Found | None:
    """A detector that is known by the shape of its data."""
    for (modules, rows, columns), (name, quadrants) in KNOWN.items():
        if geometry.pixels not in ((modules, rows, columns), (modules * rows, columns)):
            continue
        numbers = {p.name: _module_of(p, rows) for p in geometry.panels}
        whole = all((p.rows, p.columns) == (rows, columns) for p in geometry.panels)
        parts = all(p.rows * p.columns < rows * columns for p in geometry.panels)
        if not (whole or parts):
            return None
        depth = 1 if whole else MAX_LEVELS
        parents = {n: (f"q{quadrants[m]}", f"m{m}")[:depth] for n, m in numbers.items()}
        return parents, (QUADRANT, MODULE, ASIC)[: depth + 1], f"table of {name}"
    return None


def _module_of(panel: Panel, rows: int) -> int:
    return panel.row // rows if panel.module is None else panel.module
