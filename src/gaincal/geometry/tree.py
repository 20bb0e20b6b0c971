"""The parts of a detector as a tree: detector, quadrants, modules, ASICs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gaincal.geometry.panels import ASIC, MODULE, QUADRANT, Geometry, Panel, Vector, mean

Path = tuple[str, ...]
ROOT = "D0"
LETTERS = {QUADRANT: "Q", MODULE: "M", ASIC: "A"}
DETECTOR = "detector"


@dataclass(frozen=True)
class Node:
    """A part of a detector.

    Parameters
    ----------
    path : tuple of str
        Names of its parents and of itself, without the detector: empty for the whole.
    label : str
        ``D0Q1M3A2``: short and unique.
    level : str
        detector, quadrant, module or asic.
    origin : (float, float, float)
        The corner of a panel; of anything else the mean of the centres of its panels.  z is counted from
        the distance of the detector.
    """

    path: Path
    label: str
    level: str
    origin: Vector


def nodes(geometry: Geometry) -> list[Node]:
    """All parts, each after what it is part of."""
    panels: dict[Path, list[Panel]] = {}
    for panel in geometry.panels:
        path = (*panel.parents, panel.name)
        for depth in range(len(path) + 1):
            panels.setdefault(path[:depth], []).append(panel)
    order = in_order(list(panels))
    labels = labelled(order, geometry.levels)
    levels = (DETECTOR, *geometry.levels)
    return [
        Node(path, labels[path], levels[len(path)], _origin(panels[path], len(path) == len(geometry.levels)))
        for path in order
    ]


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Paths, each followed by those below it, siblings in the order in which they first come."""
    below: dict[Path, list[Path]] = {}
    for path in paths:
        if path:
            below.setdefault(path[:-1], []).append(path)
    found: list[Path] = []
    pending: list[Path] = [()]
    while pending:
        found.append(pending.pop())
        pending += reversed(below.get(found[-1], []))
    return found


def labelled(order: Sequence[Path], levels: Sequence[str]) -> dict[Path, str]:
    """Labels of paths: the number in a name where those of its siblings differ, else how many come before."""
    siblings: dict[Path, list[Path]] = {}
    for path in order:
        if path:
            siblings.setdefault(path[:-1], []).append(path)
    labels: dict[Path, str] = {(): ROOT}
    for path in order:
        children = siblings.get(path, [])
        numbers = [_number(child[-1]) for child in children]
        if None in numbers or len(set(numbers)) < len(numbers):
            numbers = list(range(len(children)))
        for child, number in zip(children, numbers, strict=True):
            labels[child] = f"{labels[path]}{LETTERS[levels[len(path)]]}{number}"
    return labels


def _number(name: str) -> int | None:
    """The number that a name ends with."""
    found = re.search(r"(\d{1,6})$", name)
    return int(found[1]) if found else None


def _origin(panels: list[Panel], leaf: bool) -> Vector:
    return panels[0].corner if leaf else mean([p.at(p.rows / 2, p.columns / 2) for p in panels])
