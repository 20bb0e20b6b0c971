"""Fit a geometry to the words of a run: stacks and slabs, modules cut into ASICs, gaps that words do not have.

Cutting never moves a pixel that a ``.geom`` file places.  Where its data are modules drawn with their
gaps (JUNGFRAU: 514 x 1030) and the words are the chips without (512 x 1024), every chip takes the place of
its own pixels in the drawing; the decision on geometry in ``docs/decisions`` says what that means for wide pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from gaincal.errors import BindError
from gaincal.geometry.panels import ASIC, MODULE, QUADRANT, BadRegion, Geometry, Group, Panel

TOLERANCE = 0.02
"""Of pixel sizes: files round them."""
STACK_RANK = 3


@dataclass(frozen=True)
class Family:
    """Detectors whose modules are made of equal ASICs.

    Parameters
    ----------
    name : str
    chip : (int, int)
        Rows and columns of an ASIC.
    count : (int, int)
        ASICs below and beside each other.
    gap : int
        Pixels between two of them in data that are drawn to scale, 0 if there are no such data.
    pitch : float
        Edge of a pixel in metres.
    """

    name: str
    chip: tuple[int, int]
    count: tuple[int, int]
    gap: int
    pitch: float

    @property
    def words(self) -> tuple[int, int]:
        """Rows and columns of a module as it is read out."""
        return self.chip[0] * self.count[0], self.chip[1] * self.count[1]

    @property
    def drawn(self) -> tuple[int, int]:
        """Rows and columns of a module that is drawn to scale."""
        rows, columns = (n + self.gap * (k - 1) for n, k in zip(self.words, self.count, strict=True))
        return rows, columns


FAMILIES = (
    Family("JUNGFRAU", (256, 256), (2, 4), 2, 75e-6),
    Family("AGIPD", (64, 128), (8, 1), 2, 200e-6),
    Family("ePix10k", (176, 192), (2, 2), 0, 100e-6),
    Family("LPD", (32, 128), (8, 2), 0, 500e-6),
)


@dataclass(frozen=True)
class Tile:
    """A part of a panel: where it begins in it, how large it is, and where its data begin in those of the panel."""

    row: int
    column: int
    rows: int
    columns: int
    data_row: int
    data_column: int


def split_asics(geometry: Geometry) -> Geometry:
    """Cut panels that are whole modules into ASICs where the detector is known; no pixel moves.

    In data drawn to scale the pixels between two ASICs go half to each: JUNGFRAU's then have 257 or 258
    columns, and every pixel is part of one.
    """
    tiles = {p.name: _halves(f) if _size(p) == f.drawn else _chips(f) for p, f in _whole_modules(geometry)}
    return _cut(geometry, tiles)


def fitted(geometry: Geometry, pixels: tuple[int, ...]) -> Geometry:
    """The geometry for the words of a frame, cut into ASICs where the detector is known.

    Parameters
    ----------
    geometry : Geometry
        For the same pixels, as a stack (module, y, x) or a slab (y, x) of the modules below each other,
        with or without the gaps between ASICs.
    pixels : tuple of int
        Shape of a frame of words: (module, y, x) or (y, x).

    Raises
    ------
    BindError
        If they do not fit.
    """
    placed = _as(geometry, pixels) or _as(_without_gaps(geometry), pixels)
    if placed is None:
        problem = f"the geometry is for data of {geometry.pixels}, the words of a frame are {pixels}"
        raise BindError(f"{problem}; it must be for the same pixels, as a stack or a slab of modules")
    return split_asics(placed)


def as_slab(geometry: Geometry, rows: int) -> Geometry:
    """The geometry for modules below each other in one image, each beginning `rows` after the one before."""
    panels = tuple(
        p if p.module is None else replace(p, module=None, row=p.module * rows + p.row) for p in geometry.panels
    )
    return replace(geometry, panels=panels)


def _as(geometry: Geometry | None, pixels: tuple[int, ...]) -> Geometry | None:
    """The geometry for data of a shape, None if it is for other pixels."""
    if geometry is None:
        return None
    mine = geometry.pixels
    if len(pixels) == len(mine):
        fits = mine[-2:] == pixels[-2:] and (len(mine) < STACK_RANK or mine[0] <= pixels[0])
        return geometry if fits else None
    if len(pixels) == STACK_RANK and len(mine) < STACK_RANK:
        return _as_stack(geometry, pixels) if mine == (pixels[0] * pixels[1], pixels[2]) else None
    fits = len(mine) == STACK_RANK and pixels[-1] == mine[2] and not pixels[0] % mine[1]
    return as_slab(geometry, mine[1]) if fits and mine[0] * mine[1] <= pixels[0] else None


def _as_stack(geometry: Geometry, pixels: tuple[int, ...]) -> Geometry | None:
    rows = pixels[1]
    if any(p.row // rows != (p.row + p.rows - 1) // rows for p in geometry.panels):
        return None
    panels = tuple(replace(p, module=p.row // rows, row=p.row % rows) for p in geometry.panels)
    return replace(geometry, panels=panels)


def _whole_modules(geometry: Geometry) -> Iterator[tuple[Panel, Family]]:
    """Panels that are a module of a known detector."""
    for panel in geometry.panels:
        for family in FAMILIES:
            alike = abs(panel.resolution * family.pitch - 1) < TOLERANCE
            if alike and _size(panel) in (family.words, family.drawn):
                yield panel, family
                break


def _size(panel: Panel) -> tuple[int, int]:
    return panel.rows, panel.columns


def _without_gaps(geometry: Geometry) -> Geometry | None:
    """Modules that are drawn to scale, as their ASICs are read out; None if the panels are none."""
    found = {p.name: f for p, f in _whole_modules(geometry) if f.gap and _size(p) == f.drawn}
    if len(found) < len(geometry.panels) or _of_modules(geometry) is None:
        return None
    moved = []
    for panel in geometry.panels:
        family = found[panel.name]
        row, column = (
            at // n * m for at, n, m in zip((panel.row, panel.column), family.drawn, family.words, strict=True)
        )
        if panel.row % family.drawn[0] or panel.column % family.drawn[1]:
            return None
        moved.append(replace(panel, row=row, column=column))
    return _cut(replace(geometry, panels=tuple(moved)), {name: _chips(f, f.gap) for name, f in found.items()})


def _chips(family: Family, gap: int = 0) -> list[Tile]:
    """The ASICs of a module, with the gaps of the drawing between them, which the data do not have."""
    (rows, columns), (below, beside) = family.chip, family.count
    return [
        Tile(r * (rows + gap), c * (columns + gap), rows, columns, r * rows, c * columns)
        for r in range(below)
        for c in range(beside)
    ]


def _halves(family: Family) -> list[Tile]:
    """The ASICs of a module that is drawn to scale, each with its half of the gaps."""
    cuts = []
    for size, count in zip(family.chip, family.count, strict=True):
        inner = [k * (size + family.gap) - family.gap // 2 for k in range(1, count)]
        cuts.append([0, *inner, count * size + (count - 1) * family.gap])
    return [
        Tile(top, left, bottom - top, right - left, top, left)
        for top, bottom in pairwise(cuts[0])
        for left, right in pairwise(cuts[1])
    ]


def _cut(geometry: Geometry, tiles: Mapping[str, list[Tile]]) -> Geometry:
    """Cut panels into tiles; the panel becomes the parent of its tiles."""
    levels = _of_modules(geometry)
    if levels is None or not tiles or len(tiles) < len(geometry.panels):
        return geometry
    panels = tuple(tile for p in geometry.panels for tile in _panels(p, tiles[p.name]))
    bad = tuple(part for region in geometry.bad for part in _parts(region, tiles))
    groups = _regrouped(
        geometry, {p.name: [f"{p.name}a{k}" for k in range(len(tiles[p.name]))] for p in geometry.panels}
    )
    rule = f"{geometry.rule}; modules cut into ASICs"
    return replace(geometry, panels=panels, levels=(*levels, ASIC), rule=rule, bad=bad, groups=groups)


def _of_modules(geometry: Geometry) -> tuple[str, ...] | None:
    """Levels of a geometry whose panels are modules, whatever they were taken for; None if there are too many."""
    return {1: (MODULE,), 2: (QUADRANT, MODULE)}.get(len(geometry.levels))


def _panels(panel: Panel, tiles: list[Tile]) -> Iterator[Panel]:
    for k, tile in enumerate(tiles):
        yield replace(
            panel,
            name=f"{panel.name}a{k}",
            row=panel.row + tile.data_row,
            column=panel.column + tile.data_column,
            rows=tile.rows,
            columns=tile.columns,
            corner=panel.at(tile.row, tile.column),
            parents=(*panel.parents, panel.name),
        )


def _parts(region: BadRegion, tiles: Mapping[str, list[Tile]]) -> Iterator[BadRegion]:
    """A bad region of a panel that is cut, as regions of its tiles."""
    if region.panel is None:
        yield region
        return
    low, high, left, right = region.bounds
    for k, t in enumerate(tiles[region.panel]):
        bounds = (
            max(low - t.row, 0.0),
            min(high - t.row, t.rows - 1.0),
            max(left - t.column, 0.0),
            min(right - t.column, t.columns - 1.0),
        )
        if bounds[0] <= bounds[1] and bounds[2] <= bounds[3]:
            yield BadRegion(f"{region.name}a{k}", f"{region.panel}a{k}", bounds)


def _regrouped(geometry: Geometry, tiles: Mapping[str, list[str]]) -> tuple[Group, ...]:
    """The groups with tiles in the place of their panels, and a group for each panel that was cut."""
    rigid = all(g.rigid for g in geometry.groups) and bool(geometry.groups)
    taken = {g.name for g in geometry.groups}
    outer = [replace(g, members=tuple(part for m in g.members for part in tiles.get(m, [m]))) for g in geometry.groups]
    inner = [Group(name, tuple(parts), rigid) for name, parts in tiles.items() if name not in taken]
    return (*outer, *inner)
