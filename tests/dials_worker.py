"""A process with DIALS in it: imports once, then processes file after file, as its programs do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex
from dials.command_line import dials_import, find_spots, index
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory

from gaincal.clients.dials import FormatNXmxGaincal

MARK = "DONE "
FEW = "basis_vector_combinations.max_refine=2"  # the right lattice is among the first


def process(file: str, processes: int) -> dict[str, Any]:
    """Import, find spots, index without any hint, in the working directory; what came of it."""
    dials_import.run([file])
    find_spots.run(["imported.expt", f"nproc={processes}"])
    index.run(["imported.expt", "strong.refl", "indexing.method=fft1d", FEW])
    strong, indexed = (flex.reflection_table.from_file(f"{name}.refl") for name in ("strong", "indexed"))
    (experiment,) = ExperimentList.from_file("indexed.expt")
    left = indexed.select(~indexed.get_flags(indexed.flags.indexed))
    *_, unindexed = re.findall(r"\|\s+0 \|\s+\d+ \|\s+(\d+) \|\s+[\d.]+%", Path("dials.index.log").read_text())
    return {
        "places": list(strong["xyzobs.px.value"]),
        "left": [(panel, *box[4:]) for panel, box in zip(left["panel"], left["bbox"], strict=True)],
        "unindexed": int(unindexed),  # as DIALS counts: without the outliers that it left out of refinement
        "cell": experiment.crystal.get_unit_cell().parameters(),
        "images": experiment.scan.get_image_range(),
        "oscillation": experiment.scan.get_oscillation(),
        "format": experiment.imageset.get_format_class().__name__,
        **_pixels(experiment.imageset),
    }


def _pixels(images: Any) -> dict[str, Any]:
    """The types of the values, and the panels that have not a single good pixel in an image."""
    kinds, dark = set(), []
    for number in range(len(images)):
        kinds |= {type(panel).__name__ for panel in images.get_raw_data(number)}
        good = [bool(np.any(mask.as_numpy_array())) for mask in images.get_mask(number)]
        dark += [(number, panel) for panel, some in enumerate(good) if not some]
    return {"kinds": sorted(kinds), "dark": dark}


def images(file: str) -> dict[str, Any]:
    """The first images of a file as DIALS gets them, and the detector that it sees."""
    (experiment,) = ExperimentListFactory.from_filenames([file])
    found = []
    for number in range(min(3, len(experiment.imageset))):
        panels, masks = experiment.imageset.get_raw_data(number), experiment.imageset.get_mask(number)
        values, good = ([part.as_numpy_array() for part in parts] for parts in (panels, masks))
        found.append(
            {
                "kinds": [type(panel).__name__ for panel in panels],
                "digest": hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest(),
                "trusted": hashlib.sha256(b"".join(g.tobytes() for g in good)).hexdigest(),
                "flagged": [np.flatnonzero(v == -(2**31)).tolist() for v in values],
                "bad": [np.flatnonzero(~g).tolist() for g in good],
            }
        )
    return {"images": found, "detector": [_panel(panel) for panel in experiment.detector]}


def _panel(panel: Any) -> list[Any]:
    ways = (panel.get_origin(), panel.get_fast_axis(), panel.get_slow_axis())
    return [*ways, panel.get_image_size(), panel.get_pixel_size(), panel.get_trusted_range(), panel.get_gain()]


def understood(files: list[str]) -> list[bool]:
    """Which files the format class of gaincal takes."""
    return [FormatNXmxGaincal.understand(file) for file in files]


def main() -> None:
    """Answer each line with a line; what DIALS prints goes to a file."""
    functions = {"process": process, "images": images, "understood": understood}
    for line in sys.stdin:
        job = json.loads(line)
        os.chdir(job["folder"])
        with Path("printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
            try:
                answer = {"found": functions[job["name"]](**job["arguments"])}
            except BaseException:
                answer = {"error": traceback.format_exc()}
        print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
