"""DIALS finds and indexes the same spots, whichever way it gets the frames: applied, or raw through the format class.

These tests run where DIALS is in the Python that runs them: on Debian, that of the oldest set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import crystal
import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.simulate import PHOTON_ENERGY
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
SCAN = crystal.Scan(10.0, 0.5, 30)
MASKED, VIRTUAL = (200, 300), (100, 100)
MASK_BITS = {MASKED: 1 << 4, VIRTUAL: 1 << 31}
SENTINEL = -(2**31)
BUILD = Path("/usr/lib/cctbx/python3.11")
"""Debian's cctbx looks for its settings below sys.prefix, which a virtual environment changes."""

pytestmark = [
    pytest.mark.dials,
    pytest.mark.xdist_group("dials"),
    pytest.mark.skipif(
        find_spec("dxtbx") is None,
        reason="DIALS is not in this Python (Debian: apt-get install dials hdf5-filter-plugin bitshuffle; oldest set)",
    ),
]


@dataclass(frozen=True)
class Sweep:
    """A file for DIALS, and the scan that must be found in it."""

    file: Path
    scan: crystal.Scan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a master over raw words, with a goniometer."""
    return build(tmp_path_factory.mktemp("rotation"), SCAN, 1)


def build(folder: Path, scan: crystal.Scan, modules: int) -> Path:
    constants = crystal.write_run(folder, scan, modules)
    mask = np.zeros(crystal.SHAPE, np.uint32)
    for place, bits in MASK_BITS.items():
        mask[place] = bits
    np.save(folder / "mask.npy", mask.reshape(constants["gain"].shape[1:]))
    embed(
        f"{folder / 'raw.nxs'}::/entry/data/data",
        folder / "master.nxs",
        formula="jungfrau" if modules == 1 else "jungfrau_modules",
        constants=constants,
        settings={"photon_energy": PHOTON_ENERGY},
        mask=folder / "mask.npy",
    )
    return folder


def applied(folder: Path) -> list[Sweep]:
    target = folder / "master_dials.nxs"
    apply(folder / "master.nxs", target, reader="dials", overwrite=True)
    return [Sweep(target, SCAN)]


def raw(folder: Path) -> list[Sweep]:
    return [Sweep(folder / "master.nxs", SCAN)]


WAYS: dict[str, Callable[[Path], list[Sweep]]] = {"applied": applied, "raw": raw}
"""How DIALS gets at frames: each makes files from the run, and says which scan each of them holds."""
FORMATS = {"applied": "FormatNXmx", "raw": "FormatNXmxGaincal"}
SAME_SPOTS = {"raw": "applied"}
"""Ways that must show the same spots, sweep by sweep."""


def python(folder: Path, *arguments: object) -> str:
    """Run a program of DIALS, or some code, in a process of its own; what it prints."""
    environment = os.environ | ({"LIBTBX_BUILD": str(BUILD)} if BUILD.is_dir() else {})
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dials(folder: Path, command: str, *arguments: object) -> str:
    return python(folder, "-m", f"dials.command_line.{command}", *arguments)


def asked(folder: Path, code: str, *arguments: object) -> Any:
    """The JSON that some code prints last."""
    return json.loads(python(folder, "-c", dedent(code), *arguments).splitlines()[-1])


SPOTS = """
    import json
    from dials.array_family import flex
    strong, indexed = (flex.reflection_table.from_file(f"{name}.refl") for name in ("strong", "indexed"))
    number = indexed.get_flags(indexed.flags.indexed).count(True)
    print(json.dumps({"places": list(strong["xyzobs.px.value"]), "indexed": number}))
"""

IMAGES = """
    import hashlib, json, sys
    import numpy as np
    from dxtbx.model.experiment_list import ExperimentListFactory
    (experiment,) = ExperimentListFactory.from_filenames([sys.argv[1]])
    images = experiment.imageset
    found = []
    for index in range(min(3, len(images))):
        panels, masks = images.get_raw_data(index), images.get_mask(index)
        values = [p.as_numpy_array() for p in panels]
        good = [m.as_numpy_array() for m in masks]
        found.append({
            "kinds": [type(p).__name__ for p in panels],
            "digest": hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest(),
            "trusted": hashlib.sha256(b"".join(g.tobytes() for g in good)).hexdigest(),
            "flagged": [[int(n) for n in np.flatnonzero(v == -2**31)] for v in values],
            "bad": [[int(n) for n in np.flatnonzero(~g)] for g in good],
        })
    detector = [[list(p.get_origin()), list(p.get_fast_axis()), list(p.get_slow_axis()), list(p.get_image_size()),
                 list(p.get_pixel_size()), list(p.get_trusted_range()), p.get_gain()] for p in experiment.detector]
    print(json.dumps({"images": found, "detector": detector, "format": type(images.reader()).__name__}))
"""


@pytest.fixture(scope="module")
def spots(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Where DIALS sees spots in the sweeps of each way, and what it makes of them."""
    known: dict[str, list[dict[str, Any]]] = {}

    def find(way: str) -> list[dict[str, Any]]:
        if way not in known:
            known[way] = [
                process(sweep, tmp_path_factory.mktemp(way)) | {"wanted": sweep.scan} for sweep in WAYS[way](run)
            ]
        return known[way]

    return find


def process(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Import, find spots in two processes, index without any hint."""
    printed = dials(folder, "dials_import", sweep.file)
    dials(folder, "find_spots", "imported.expt", "nproc=2")
    few = "basis_vector_combinations.max_refine=5"  # the right lattice is among the first
    log = dials(folder, "index", "imported.expt", "strong.refl", "indexing.method=fft1d", few)
    *_, unindexed = re.findall(r"\|\s+0 \|\s+\d+ \|\s+(\d+) \|\s+[\d.]+%", log)
    found = asked(folder, SPOTS) | {"unindexed": int(unindexed)}
    experiments = json.loads((folder / "indexed.expt").read_text())
    (crystal_model,), (scan,) = experiments["crystal"], experiments["scan"]
    cell = [float(np.linalg.norm(crystal_model[f"real_space_{axis}"])) for axis in "abc"]
    return found | {"cell": cell, "scan": scan, "printed": printed}


@pytest.mark.parametrize("way", WAYS)
def test_all_spots_are_indexed_with_the_cell_that_was_simulated(
    spots: Callable[[str], list[dict[str, Any]]], way: str
) -> None:
    for found in spots(way):
        assert f"{FORMATS[way]}'>" in found["printed"]
        assert len(found["places"]) > 400
        assert found["unindexed"] == 0  # as DIALS counts: without the outliers that it left out of refinement
        assert found["indexed"] >= 0.99 * len(found["places"])
        np.testing.assert_allclose(sorted(found["cell"]), crystal.CELL, rtol=1e-3)
        wanted = found["wanted"]
        assert found["scan"]["image_range"] == [1, wanted.frames]
        np.testing.assert_allclose(found["scan"]["oscillation"], [wanted.start, wanted.step], rtol=1e-9)


@pytest.mark.parametrize(("way", "other"), SAME_SPOTS.items())
def test_both_ways_show_the_same_spots(spots: Callable[[str], list[dict[str, Any]]], way: str, other: str) -> None:
    for found, wanted in zip(spots(way), spots(other), strict=True):
        np.testing.assert_allclose(sorted(found["places"]), sorted(wanted["places"]), atol=1e-6)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three frames and two modules."""
    return build(tmp_path_factory.mktemp("short"), crystal.Scan(10.0, 0.5, 3), 2)


@pytest.mark.parametrize("modules", [1, 2])
def test_images_are_the_same_integers_with_the_same_mask_and_models(run: Path, short: Path, modules: int) -> None:
    folder = run if modules == 1 else short
    (sweep,) = applied(folder)
    read, calibrated = (asked(folder, IMAGES, file) for file in (sweep.file, folder / "master.nxs"))
    assert read["detector"] == calibrated["detector"]
    assert read["images"] == calibrated["images"]
    assert len(read["detector"]) == modules
    rows = crystal.SHAPE[0] // modules
    place = MASKED[0] % rows * crystal.SHAPE[1] + MASKED[1]
    for image in calibrated["images"]:
        assert image["kinds"] == ["int"] * modules  # no NaN: integers have none
        assert image["bad"] == image["flagged"]  # just what is flagged is outside of the trusted range or masked
        assert place in image["bad"][MASKED[0] // rows]
    with h5py.File(sweep.file) as file:
        assert file["/entry/instrument/detector/pixel_mask"][VIRTUAL] == 0


def test_the_format_class_leaves_other_files_alone(short: Path, tmp_path: Path) -> None:
    understood = """
        import json, sys
        from gaincal.clients.dials import FormatNXmxGaincal
        print(json.dumps([FormatNXmxGaincal.understand(name) for name in sys.argv[1:]]))
    """
    (tmp_path / "no.h5").write_bytes(b"no HDF5")
    (sweep,) = applied(short)
    files = [short / "master.nxs", sweep.file, short / "raw.nxs", tmp_path / "no.h5", tmp_path / "absent.nxs"]
    assert asked(tmp_path, understood, *files) == [True, False, False, False, False]


def refused(folder: Path) -> str:
    """The one line that DIALS ends with."""
    with pytest.raises(AssertionError) as caught:
        dials(folder, "dials_import", "master.nxs")
    (line,) = [line.strip() for line in str(caught.value).splitlines() if "Sorry: " in line and "assert" not in line]
    assert "Traceback" not in str(caught.value)
    return line


@pytest.fixture
def own(short: Path, tmp_path: Path) -> Path:
    """A copy of the short run, which a test may spoil."""
    shutil.copytree(short, tmp_path / "own")
    return tmp_path / "own"


def test_what_dials_cannot_do_without_is_named(own: Path) -> None:
    with h5py.File(own / "master.nxs", "r+") as file:
        del file["/entry/instrument/detector/sensor_material"]
    assert re.search(r"master\.nxs::/entry/instrument/detector: DIALS cannot do without sensor_material,", refused(own))


def test_a_missing_photon_energy_is_named(own: Path) -> None:
    with h5py.File(own / "raw.nxs", "r+") as file:
        del file["/entry/instrument/beam/incident_wavelength"]
    constants = {n: np.full((3, 2, crystal.SHAPE[0] // 2, crystal.SHAPE[1]), 41.0) for n in ("pedestal", "gain")}
    raw_words = f"{own / 'raw.nxs'}::/entry/data/data"
    embed(raw_words, own / "master.nxs", formula="jungfrau_modules", constants=constants, overwrite=True)
    assert re.search(r"master\.nxs: output 'counts' needs photon_energy, which the file does not have", refused(own))


def test_a_goniometer_of_another_length_is_refused(own: Path) -> None:
    with h5py.File(own / "master.nxs", "r+") as file:
        for name in ("omega", "omega_end"):
            place = f"{crystal.TRANSFORMATIONS}/{name}"
            values, attributes = file[place][:-1], dict(file[place].attrs)
            del file[place]
            file.create_dataset(place, data=values).attrs.update(attributes)
    assert "has 3 frames, its goniometer 2 positions" in refused(own)
