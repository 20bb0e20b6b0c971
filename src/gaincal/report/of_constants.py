"""The report of a constants file: what is on its page and in its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gaincal.dark.recipe import find_recipe
from gaincal.errors import FileError
from gaincal.formulas import catalog
from gaincal.nexus import names
from gaincal.nexus.constantsfile import ConstantsSet
from gaincal.quality.cells import Cells, cells_of_set
from gaincal.quality.planes import Plane
from gaincal.quality.rules import percent
from gaincal.quality.set_rules import STAGE, all_planes, judge_set, pedestal_name, reason_counts, six_numbers_of_set
from gaincal.report import figures
from gaincal.report.canvas import Canvas, Stored
from gaincal.report.page import Page, Section, Table
from gaincal.report.sections import constants_section

FORMULA = "formula"


def report_constants(found: ConstantsSet, previous: Sequence[Plane]) -> tuple[Page, dict[str, Any]]:
    """Say how good a set of constants is.

    Parameters
    ----------
    found : ConstantsSet
    previous : sequence of Plane
        Of the set before.

    Returns
    -------
    page : Page
    content : dict
        The same for programs.

    Raises
    ------
    FileError
        If it is no set of dark runs.
    """
    if not pedestal_name(found):
        problem, remedy = "has no pedestal", "report the master that was embedded with it"
        raise FileError(found.file, names.CONSTANTS_PATH, problem, remedy, code="no-constants")
    lacking = stages_lacking(found)
    rules = judge_set(found, lacking, previous)
    planes, reasons, cells = all_planes(found), reason_counts(found), list(cells_of_set(found))
    canvas = Stored(planes[0].values.shape, figures.EDGE)
    page = Page(
        title=found.file.name,
        subtitle=f"Constants of {found.parameters.get(FORMULA, 'a detector')}, "
        f"{' x '.join(str(n) for n in planes[0].values.shape)} pixels.",
        sampled="Each is applied to every module and stage; the noise is that of a pixel in a dark frame.",
        numbers=six_numbers_of_set(found, lacking, rules),
        rules=rules,
        sections=[
            s
            for s in (_bad_pixels(found, canvas), constants_section(planes, previous, canvas), _cells(cells))
            if s is not None
        ],
        provenance=_provenance(found),
    )
    content = {
        "frames": [],
        "stages": list(found.labels(pedestal_name(found)).get(STAGE, ())),
        "lacking": lacking,
        "planes": [_plane(p) for p in planes],
        "cells": [_of_cells(c) for c in cells],
        "bad_pixels": [
            {"reason": n, "pixels": int(np.count_nonzero(pixels)), "by_stage": counts}
            for n, (pixels, counts) in reasons.items()
        ],
        "validity": dict(found.validity),
        "parameters": dict(found.parameters),
    }
    return page, content


def stages_lacking(found: ConstantsSet) -> list[int]:
    """Stages of the formula that the set does not have; none if the formula is not of the catalogue."""
    name = str(found.parameters.get(FORMULA, ""))
    if name not in catalog.names():
        return []
    there = found.labels(pedestal_name(found)).get(STAGE, ())
    return [label for label in find_recipe(catalog.get(name)).labels if label not in there]


def _bad_pixels(found: ConstantsSet, canvas: Canvas) -> Section:
    reasons = reason_counts(found)
    total = 1 if found.pixel_mask is None else found.pixel_mask.size
    stages = list(dict.fromkeys(stage for _, counts in reasons.values() for stage in counts))
    rows = [
        [
            n,
            str(int(np.count_nonzero(p))),
            percent(float(np.count_nonzero(p) / total)),
            *(str(c.get(s, 0)) for s in stages),
        ]
        for n, (p, c) in reasons.items()
    ]
    head = ["reason", "pixels", "of all", *(f"stage {s}" for s in stages)]
    caption = "In any stage or cell; rare ones are drawn larger."
    drawn = figures.map_of_pixels({n: p for n, (p, _) in reasons.items()}, canvas, caption)
    return Section("Bad pixels", (), [] if drawn is None else [drawn], [Table(head, rows or [["none", "0", "0 %"]])])


def _cells(cells: Sequence[Cells]) -> Section | None:
    text = "The maps above show the first cell."
    return Section("Memory cells", [text], [figures.of_cells(c) for c in cells]) if cells else None


def _of_cells(cells: Cells) -> dict[str, Any]:
    medians = [[None if np.isnan(v) else float(v) for v in line] for line in cells.medians]
    return {"name": cells.name, "stage": cells.stage, "units": cells.units, "cells": cells.cells, "medians": medians}


def _plane(plane: Plane) -> dict[str, Any]:
    finite = plane.values[np.isfinite(plane.values)].astype(np.float64)
    middle = float(np.median(finite)) if finite.size else None
    spread = figures.ROBUST * float(np.median(np.abs(finite - middle))) if middle is not None else None
    return {
        "name": plane.name,
        "stage": plane.stage,
        "units": plane.units,
        "median": middle,
        "spread": spread,
        "without_value": int(plane.values.size - finite.size),
    }


def _provenance(found: ConstantsSet) -> list[tuple[str, str]]:
    lines = [("file", str(found.file)), ("checksum", found.checksum)]
    lines += [(f"valid: {name}", str(value)) for name, value in found.validity.items()]
    return lines + [(name, str(value)) for name, value in found.parameters.items()]
