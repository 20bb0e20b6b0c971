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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import crystal
import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.nexus.sweeps import Direction, Motion
from gaincal.simulate import PHOTON_ENERGY
from gaincal.verbs.apply import apply
from gaincal.verbs.assemble import assemble
from gaincal.verbs.embed import embed
from gaincal.verbs.views import views

Array = npt.NDArray[Any]
SCAN, OPPOSITE = crystal.Scan(10.0, 0.5, 30), crystal.Scan(190.0, 0.5, 30)
WEDGE, MARK = 15, "DONE "
MASKED, VIRTUAL = (200, 300), (100, 100)
MASK_BITS = {MASKED: 1 << 4, VIRTUAL: 1 << 31}
SENTINEL = -(2**31)
BUILD = Path("/usr/lib/cctbx/python3.11")
"""Debian's cctbx looks for its settings below sys.prefix, which a virtual environment changes."""

pytestmark = [
    pytest.mark.dials,
    pytest.mark.skipif(
        find_spec("dxtbx") is None,
        reason="DIALS is not in this Python (Debian: apt-get install dials hdf5-filter-plugin bitshuffle; oldest set)",
    ),
]


@dataclass(frozen=True)
class Sweep:
    """A file for DIALS, and what must be found in it: a scan, and panels without a word by their image."""

    file: Path
    scan: crystal.Scan = SCAN
    dark: tuple[tuple[int, int], ...] = ()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a master over raw words, with a goniometer."""
    folder = tmp_path_factory.mktemp("rotation")
    np.save(folder / "words.npy", crystal.record(SCAN))
    return build(folder, np.load(folder / "words.npy"), SCAN.angles)


def build(folder: Path, words: Array, angles: Array | None, modules: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    crystal.write_run(folder, words, modules, angles, SCAN.step)
    mask = np.zeros(crystal.SHAPE, np.uint32)
    for place, bits in MASK_BITS.items():
        mask[place] = bits
    constants = crystal.constants(modules)
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
    return [Sweep(target)]


def raw(folder: Path) -> list[Sweep]:
    return [Sweep(folder / "master.nxs")]


LOST = {0: (7,), 1: (3, 20)}
"""Frames that files of modules lack."""
DARK = tuple(sorted((frame, module) for module, frames in LOST.items() for frame in frames))
OMEGA: dict[str, Any] = {"axes": {"omega": Motion(SCAN.start, SCAN.step)}}
OMEGA["directions"] = {"omega": Direction((-1.0, 0.0, 0.0), "deg")}


def assembled(folder: Path, gap: int | None) -> Path:
    """A master over files of two modules, stacked or in one image with so many rows between."""
    home = folder / ("stacked" if gap is None else "assembled")
    if home.exists():
        return home
    home.mkdir()
    crystal.write_modules(home, np.load(folder / "words.npy"), 2, LOST)
    layout = {"layout": "stacked"} if gap is None else {"layout": "assembled", "gap": gap}
    assemble([home / "m0.h5", home / "m1.h5"], home / "run.nxs", ids={"pulse_id": "/pulse_id"}, **layout)
    crystal.write_geom(home / "detector.geom", 2, gap)
    facts = {"photon_energy": PHOTON_ENERGY, "sensor_material": "Si", "sensor_thickness": 320e-6}
    embed(
        home / "run.nxs",
        home / "master.nxs",
        formula="jungfrau_modules" if gap is None else "jungfrau",
        constants=crystal.constants(2),
        settings=facts,
        geometry=home / "detector.geom",
        **OMEGA,
    )
    return home


def of_modules(way: Callable[[Path], list[Sweep]], gap: int | None) -> Callable[[Path], list[Sweep]]:
    return lambda folder: [replace(sweep, dark=DARK) for sweep in way(assembled(folder, gap))]


def both_sides(folder: Path) -> Array:
    """Words of a scan, and of the one half a turn on."""
    file = folder / "both.npy"
    if not file.exists():
        np.save(file, np.concatenate([np.load(folder / "words.npy"), crystal.record(OPPOSITE)]))
    return np.asarray(np.load(file))


def inverse_beam(folder: Path) -> list[Sweep]:
    """Wedges A, B, A, B, whose positions are recorded."""
    wedges = np.arange(2 * SCAN.frames).reshape(2, -1, WEDGE).swapaxes(0, 1).reshape(-1)
    angles = np.concatenate([SCAN.angles, OPPOSITE.angles])[wedges]
    home = build(folder / "inverse", both_sides(folder)[wedges], angles)
    made = views(home / "master.nxs", inverse_beam=WEDGE)
    return [Sweep(view.path, scan) for view, scan in zip(made.views, (SCAN, OPPOSITE), strict=True)]


def many_samples(folder: Path) -> list[Sweep]:
    """Two samples, one after the other, turned by an axis that only the user knows of."""
    home = build(folder / "samples", both_sides(folder), None)
    return [Sweep(view.path) for view in views(home / "master.nxs", every=SCAN.frames, **OMEGA).views]


WAYS: dict[str, Callable[[Path], list[Sweep]]] = {
    "applied": applied,
    "stacked applied": of_modules(applied, None),
    "stacked raw": of_modules(raw, None),
    "assembled applied": of_modules(applied, 8),
    "assembled raw": of_modules(raw, 8),
    "raw": raw,  # processes that DIALS forks then have what was compiled already
    "inverse beam": inverse_beam,
    "many samples": many_samples,
}
"""How DIALS gets at frames: each makes files from the run, and says which scan each of them holds."""
SAME_SPOTS = {"raw": "applied", "inverse beam": "applied", "many samples": "inverse beam"}
SAME_SPOTS |= {
    f"{layout} {way}": "stacked applied" for layout in ("stacked", "assembled") for way in ("applied", "raw")
}
"""Ways that must show the same spots, sweep by sweep, as far as the other has sweeps."""


def environment() -> dict[str, str]:
    return os.environ | ({"LIBTBX_BUILD": str(BUILD)} if BUILD.is_dir() else {})


def run_python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of DIALS, or some code, in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def python(folder: Path, *arguments: object) -> str:
    """What such a process prints, which must succeed."""
    done = run_python(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dials(folder: Path, command: str, *arguments: object) -> str:
    return python(folder, "-m", f"dials.command_line.{command}", *arguments)


class Worker:
    """DIALS, imported once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, name: str, folder: Path, **arguments: object) -> Any:
        """What a function of `dials_worker` returns in a folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"name": name, "folder": str(folder), "arguments": arguments}
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        answer = json.loads(next(line for line in self._process.stdout if line.startswith(MARK)).removeprefix(MARK))
        assert "error" not in answer, answer["error"]
        return answer["found"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    command = [sys.executable, str(Path(__file__).with_name("dials_worker.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        yield Worker(process)
        process.stdin.close()


@pytest.fixture(scope="module")
def spots(run: Path, worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Where DIALS sees spots in the sweeps of each way, and what it makes of them."""
    known: dict[str, list[dict[str, Any]]] = {}

    def find(way: str) -> list[dict[str, Any]]:
        if way not in known:
            known[way] = []
            for sweep in WAYS[way](run):
                processes = 2 if way == "raw" else 1  # one way with several, which DIALS forks
                folder = tmp_path_factory.mktemp("dials")
                found = worker.ask("process", folder, file=sweep.file, processes=processes)
                known[way].append(found | {"wanted": sweep})
        return known[way]

    return find


def is_torn(panel: int, first: int, stop: int, dark: Sequence[tuple[int, int]]) -> bool:
    """Whether a spot borders on an image in which its panel is missing: half a spot is not where its middle is."""
    return any(panel == lost and (stop == image or first == image + 1) for image, lost in dark)


@pytest.mark.parametrize("way", WAYS)
def test_all_spots_are_indexed_with_the_cell_that_was_simulated(
    spots: Callable[[str], list[dict[str, Any]]], way: str
) -> None:
    for found in spots(way):
        wanted = found["wanted"]
        assert found["format"] == ("FormatNXmx" if way.endswith("applied") else "FormatNXmxGaincal")
        assert len(found["places"]) > 400
        torn = [spot for spot in found["left"] if is_torn(*spot, wanted.dark)]
        assert found["unindexed"] <= len(torn)
        assert len(found["left"]) - len(torn) <= 0.01 * len(found["places"])
        assert len(torn) <= 0.1 * len(found["places"]) * bool(wanted.dark)
        np.testing.assert_allclose(sorted(found["cell"][:3]), crystal.CELL, rtol=1e-3)
        np.testing.assert_allclose(found["cell"][3:], 90, rtol=1e-3)
        assert found["images"] == [1, wanted.scan.frames]
        np.testing.assert_allclose(found["oscillation"], [wanted.scan.start, wanted.scan.step], rtol=1e-9)
        assert found["kinds"] == ["int"]  # no NaN: integers have none
        assert [tuple(place) for place in found["dark"]] == list(wanted.dark)


@pytest.mark.parametrize(("way", "other"), SAME_SPOTS.items())
def test_both_ways_show_the_same_spots(spots: Callable[[str], list[dict[str, Any]]], way: str, other: str) -> None:
    for found, wanted in zip(spots(way), spots(other), strict=False):
        np.testing.assert_allclose(sorted(found["places"]), sorted(wanted["places"]), atol=1e-6)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three frames and two modules."""
    scan = crystal.Scan(SCAN.start, SCAN.step, 3)
    return build(tmp_path_factory.mktemp("short"), crystal.record(scan), scan.angles, 2)


@pytest.mark.parametrize("modules", [1, 2])
def test_images_are_the_same_integers_with_the_same_mask_and_models(
    run: Path, short: Path, worker: Worker, modules: int
) -> None:
    folder = run if modules == 1 else short
    (sweep,) = applied(folder)
    read, calibrated = (worker.ask("images", folder, file=file) for file in (sweep.file, folder / "master.nxs"))
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


def test_the_format_class_leaves_other_files_alone(short: Path, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"no HDF5")
    (sweep,) = applied(short)
    files = [short / "master.nxs", sweep.file, short / "raw.nxs", tmp_path / "no.h5", tmp_path / "absent.nxs"]
    assert worker.ask("understood", tmp_path, files=files) == [True, False, False, False, False]


def refused(folder: Path) -> str:
    """The one line that DIALS ends with."""
    done = run_python(folder, "-m", "dials.command_line.dials_import", "master.nxs")
    assert done.returncode != 0
    (line,) = [line.strip() for line in done.stderr.splitlines() if "Sorry: " in line]
    assert "Traceback" not in done.stderr
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
