"""A process with DIALS in it: imports once, then processes file after file, as its programs do."""

from __future__ import annotations

import contextlib
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
from dxtbx.model.experiment_list import ExperimentList

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


def main() -> None:
    """Answer each line with a line; what DIALS prints goes to a file."""
    for line in sys.stdin:
        job = json.loads(line)
        os.chdir(job["folder"])
        with Path("printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
            try:
                answer = process(job["file"], job["processes"])
            except BaseException:
                answer = {"error": traceback.format_exc()}
        print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
