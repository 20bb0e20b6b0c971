"""Geometry files in use: their pixels lie where other programs put them, in the text and in the written chain."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.geometry.arm import STILL, Arm, rotation
from gaincal.geometry.crystfel import parse_geom, read_geom
from gaincal.geometry.crystfel_text import to_geom
from gaincal.geometry.fit import as_slab, fitted, split_asics
from gaincal.geometry.panels import Geometry
from gaincal.geometry.square import squared
from gaincal.nexus.geometry import write_geometry
from gaincal.nexus.geometry_read import read_geometry
from gaincal.nexus.group import new_group
from gaincal.nexus.trust import Resolver
from gaincal.nexus.write import field

Array = npt.NDArray[Any]
DATA = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data") / "geometry"
JUNGFRAU, AGIPD, CSPAD = "Jungfrau16M_swissFEL_JF07T32V01", "agipd_mar18_v11", "cspad-cxiformat"
FILES = (JUNGFRAU, AGIPD, CSPAD, "epix10k2M_lcls_mfx", "jungfrau4M_lcls_cxi")
MICROMETRE = 1e-6
DISTANCE = 0.25
ARM = Arm(20.0, (0.0, 1.0, 0.0), 0.001, -0.002)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no geometry files: {DATA} is not there")


@cache
def geometry(name: str) -> Geometry:
    return read_geom(DATA / f"{name}.geom")


def stated(name: str) -> Geometry:
    """With a distance, even if the file has none."""
    found = geometry(name)
    return found if found.distance is not None else found.placed_at(DISTANCE)


def plainly(name: str) -> dict[str, dict[str, float]]:
    """The numbers of each panel, read in the plainest way that works for these files."""
    panels: dict[str, dict[str, float]] = {}
    every: dict[str, float] = {}
    for line in (DATA / f"{name}.geom").read_text("utf-8").splitlines():
        found = re.match(r"\s*(?:(\w+)/)?(\w+)\s*=\s*([^;]+)", line.partition(";")[0])
        if not found or (found[1] or "").startswith("bad"):
            continue
        fields = every if found[1] is None else panels.setdefault(found[1], {})
        if found[2] in ("fs", "ss"):
            for number, axis in re.findall(r"([+-]?[\d.]+(?:e[+-]?\d+)?)([xyz])", found[3]):
                fields[found[2] + axis] = float(number)
        elif re.fullmatch(r"[+-]?[\d.]+\s*", found[3]):
            fields[found[2]] = float(found[3])
    return {panel: every | fields for panel, fields in panels.items()}


def expected(numbers: dict[str, float], distance: float) -> Array:
    """Centres of the pixels of a panel, (row, column, 3), by the definition of the format."""
    rows = np.arange(numbers["max_ss"] - numbers["min_ss"] + 1)[:, None] + 0.5
    columns = np.arange(numbers["max_fs"] - numbers["min_fs"] + 1) + 0.5
    places = [
        (numbers[f"corner_{axis}"] + rows * numbers[f"ss{axis}"] + columns * numbers[f"fs{axis}"]) / numbers["res"]
        for axis in "xy"
    ]
    tilt = (rows * numbers.get("ssz", 0.0) + columns * numbers.get("fsz", 0.0)) / numbers["res"]
    return np.stack([*places, tilt + distance + numbers.get("coffset", 0.0)], axis=-1)


@pytest.mark.parametrize("name", FILES)
def test_positions_are_those_of_the_definition(name: str) -> None:
    found = stated(name)
    shift = 0.0 if geometry(name).distance is not None else geometry(name).origin[2]
    positions, panels = found.positions(), plainly(name)
    assert [p.name for p in found.panels] == list(panels)
    for panel in found.panels:
        wanted = expected(panels[panel.name], found.stated_distance - shift)
        np.testing.assert_allclose(positions[panel.index], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FILES)
def test_text_geometry_text_geometry_is_the_same(name: str) -> None:
    assert parse_geom(to_geom(geometry(name))) == geometry(name)


@pytest.mark.parametrize(
    ("name", "panels", "parts"),
    [
        (JUNGFRAU, 256, (4, 32)),
        (AGIPD, 128, (4, 16)),
        (CSPAD, 64, (4, 32)),
        ("epix10k2M_lcls_mfx", 64, (4, 16)),
        ("jungfrau4M_lcls_cxi", 64, (4, 32)),
    ],
)
def test_panels_are_asics_in_modules_in_quadrants(name: str, panels: int, parts: tuple[int, int]) -> None:
    found = split_asics(geometry(name))
    assert (len(found.panels), found.levels) == (panels, ("quadrant", "module", "asic"))
    assert tuple(len({p.parents[: k + 1] for p in found.panels}) for k in range(2)) == parts


# --- other readers of .geom ------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_cfelpyutils_puts_the_pixels_in_the_same_places(name: str) -> None:
    utils = pytest.importorskip("cfelpyutils.geometry")
    theirs = utils.load_crystfel_geometry(str(DATA / f"{name}.geom")).detector["panels"]
    for panel in geometry(name).panels:
        other = theirs[panel.name]
        rows, columns = np.indices((panel.rows, panel.columns)) + 0.5
        for axis, found in zip("xy", panel.centres(), strict=False):
            wanted = other[f"cn{axis}"] + columns * other[f"fs{axis}"] + rows * other[f"ss{axis}"]
            np.testing.assert_allclose(found, wanted / other["res"], atol=1e-12, rtol=0)
        np.testing.assert_allclose(panel.corner[2], other["coffset"], atol=1e-15)


@pytest.mark.parametrize("name", [CSPAD, JUNGFRAU])
def test_pixel_maps_of_cfelpyutils_are_the_same(name: str) -> None:
    utils = pytest.importorskip("cfelpyutils.geometry")
    maps = utils.compute_pix_maps(utils.load_crystfel_geometry(str(DATA / f"{name}.geom")).detector)
    positions = stated(name).positions()
    for panel in geometry(name).panels:
        half = [(f + s) / 2 for f, s in zip(panel.fast, panel.slow, strict=True)]  # they count from corners
        for axis, plane in enumerate((maps.x, maps.y)):
            found = positions[panel.index][..., axis] - half[axis]
            np.testing.assert_allclose(found, plane[panel.index] / panel.resolution, atol=MICROMETRE, rtol=0)


def test_extra_geom_puts_the_pixels_of_agipd_in_the_same_places() -> None:
    extra = pytest.importorskip("extra_geom")
    theirs = extra.AGIPD_1MGeometry.from_crystfel_geom(DATA / f"{AGIPD}.geom").get_pixel_positions()
    found = geometry(AGIPD).positions() - (0, 0, geometry(AGIPD).stated_distance)
    np.testing.assert_allclose(found, theirs, atol=1e-12, rtol=0)


def test_extra_geom_reads_what_we_write_of_jungfrau(tmp_path: Path) -> None:
    """Chips as words have them: drawn modules cut up, and the gaps closed."""
    extra = pytest.importorskip("extra_geom")
    words = fitted(geometry(JUNGFRAU), (32, 512, 1024))
    (tmp_path / "chips.geom").write_text(to_geom(words))
    theirs = extra.JUNGFRAUGeometry.from_crystfel_geom(tmp_path / "chips.geom")
    assert theirs.n_modules == 32
    found = words.positions()
    found[..., 2] -= words.stated_distance
    np.testing.assert_allclose(found, theirs.get_pixel_positions(), atol=1e-12, rtol=0)


# --- the chain -------------------------------------------------------------------------------

WORDS = {JUNGFRAU: (32, 512, 1024), AGIPD: (16, 512, 128), CSPAD: (1480, 1552)}
WORDS |= {"epix10k2M_lcls_mfx": (16, 352, 384), "jungfrau4M_lcls_cxi": (1480, 1552)}


def in_words(name: str) -> Geometry:
    return squared(fitted(stated(name), WORDS[name]))[0]


@pytest.fixture(
    scope="module", params=[(name, arm) for name in FILES for arm in (STILL, ARM)[: 1 + (name == AGIPD)]], ids=str
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Arm]:
    name, arm = request.param
    path = tmp_path_factory.mktemp("chain") / f"{name}.nxs"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        entry = new_group(file, "entry", "NXentry")
        entry["definition"] = "NXmx"
        instrument = new_group(entry, "instrument", "NXinstrument")
        write_geometry(new_group(instrument, "detector", "NXdetector"), in_words(name), arm)
    return path, name, arm


def corners(geometry: Geometry, arm: Arm) -> dict[tuple[int, ...], Array]:
    """Outer corners of the panels in the laboratory, (row end, column end, 3), by their place in the data."""
    turned = np.eye(3) if arm.axis is None else rotation(arm.axis, arm.two_theta)
    move = np.array([arm.x, arm.y, geometry.stated_distance])
    found = {}
    for p in geometry.panels:
        points = np.array([[p.at(r, c) for c in (0, p.columns)] for r in (0, p.rows)])
        layer = () if p.module is None else (p.module,)
        found[(*layer, p.row, p.column)] = (points + move) @ turned.T
    return found


def assert_corners(found: dict[tuple[int, ...], Array], name: str, arm: Arm, atol: float) -> None:
    wanted = corners(in_words(name), arm)
    assert set(found) == set(wanted)
    worst = max(float(np.abs(found[key] - wanted[key]).max()) for key in wanted)
    assert worst < atol


def test_what_was_written_is_read_again(written: tuple[Path, str, Arm]) -> None:
    path, name, arm = written
    with Resolver(path) as resolver:
        found = read_geometry(resolver, resolver.get("/entry/instrument/detector"))
    assert found is not None
    assert_corners(corners(found, STILL), name, arm, 1e-12)
    parents = {p.name: p.parents for p in in_words(name).panels}
    assert {p.name: p.parents for p in found.panels} == parents


def test_making_panels_rectangular_moved_no_pixel_by_a_micrometre(written: tuple[Path, str, Arm]) -> None:
    _, name, _ = written
    before = fitted(stated(name), WORDS[name])
    _, moved, skewed = squared(before)
    assert moved < 0.1 * MICROMETRE
    assert not skewed


def test_nxmx_walks_the_chain_to_the_same_places(written: tuple[Path, str, Arm]) -> None:
    nxmx = pytest.importorskip("nxmx")
    path, name, arm = written
    found = {}
    with h5py.File(path) as file:
        (detector,) = nxmx.NXmx(file).entries[0].instruments[0].detectors
        for module in detector.modules:
            steps = [
                nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(way))[0]
                for way in (module.fast_pixel_direction, module.slow_pixel_direction)
            ]
            start = nxmx.get_cumulative_transformation(
                nxmx.get_dependency_chain(module.fast_pixel_direction.depends_on)
            )[0, :3, 3]
            fast, slow = (step[:3, 3] - start for step in steps)
            rows, columns = (int(n) for n in module.data_size[-2:])
            points = [[start + r * slow + c * fast for c in (0, columns)] for r in (0, rows)]
            found[tuple(int(n) for n in module.data_origin)] = np.array(points) / 1000  # millimetres
    assert_corners(found, name, arm, MICROMETRE)


DIRECTIONS = ("fast_pixel_direction", "slow_pixel_direction")


@pytest.mark.filterwarnings("ignore")  # of what it imports, and of a detector without data
def test_scippnexus_walks_the_chain_to_the_same_places(written: tuple[Path, str, Arm]) -> None:
    nexus = pytest.importorskip("scippnexus")
    path, name, arm = written
    found = {}
    with nexus.File(path, "r") as file:
        detector = file["entry/instrument/detector"]
        axes = detector["transformations"][()]
        for key in [k for k in detector if k.startswith("ARRAY_")]:
            module = detector[key]
            fast, slow = (module[w][()].value.value * np.array(module[w].attrs["vector"]) for w in DIRECTIONS)
            rows, columns = (int(n) for n in module["data_size"][()].values[-2:])
            points = np.array([[r * slow + c * fast for c in (0, columns)] for r in (0, rows)])
            origin = tuple(int(n) for n in module["data_origin"][()].values)
            found[origin] = moved_by(axes, key.replace("ARRAY", "AXIS"), points)
    assert_corners(found, name, arm, MICROMETRE)


def moved_by(axes: Any, name: str, points: Array) -> Array:
    """Points where an axis, and all that carry it, take them, step by step as scippnexus builds these."""
    import scipp

    moved = scipp.vectors(dims=["row", "column"], values=points, unit="m")
    while name != ".":
        step = axes[name]
        moved = step.build() * moved
        name = step.depends_on.value.rsplit("/", 1)[-1]
    return np.asarray(moved.values)


DXTBX = """
import json, sys
import h5py
from dxtbx.nexus import get_dxtbx_detector
try:
    import nxmx
except ImportError:
    from dxtbx.nexus import nxmx
with h5py.File(sys.argv[1]) as file:
    detector = nxmx.NXmx(file).entries[0].instruments[0].detectors[0]
    origins = {m.path: [int(n) for n in m.data_origin] for m in detector.modules}
    found = []
    for panel in get_dxtbx_detector(detector, 1.0):
        width, height = panel.get_image_size_mm()
        points = [[panel.get_lab_coord((x, y)) for x in (0, width)] for y in (0, height)]
        found.append([origins[panel.get_name()], points])
print(json.dumps(found))
"""


@cache
def python_of_dials() -> str | None:
    """An interpreter that has dxtbx."""
    for name in (shutil.which("dials.python"), shutil.which("python3", path=os.defpath)):
        command = [name or "", "-c", "import dxtbx"]
        if name and not subprocess.run(command, env=PLAIN, capture_output=True, check=False).returncode:
            return name
    return None


PLAIN = {"PATH": os.defpath}


@pytest.mark.parametrize(("name", "arm"), [(JUNGFRAU, ARM), ("epix10k2M_lcls_mfx", STILL)], ids=str)
def test_dials_puts_the_panels_in_the_same_places(tmp_path: Path, name: str, arm: Arm) -> None:
    """Its laboratory has x and z turned round."""
    python = python_of_dials()
    if python is None:
        pytest.skip("no interpreter has dxtbx (Debian: dials)")
    slab = as_slab(in_words(name), WORDS[name][1])
    with h5py.File(tmp_path / "slab.nxs", "w", libver=("v110", "v110")) as file:
        entry = new_group(file, "entry", "NXentry")
        entry["definition"] = "NXmx"
        detector = new_group(new_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
        field(detector, "sensor_material", "Si")
        field(detector, "sensor_thickness", 320e-6, "m")
        write_geometry(detector, slab, arm)
    command = [python, "-c", DXTBX, str(tmp_path / "slab.nxs")]
    done = subprocess.run(command, env=PLAIN, capture_output=True, text=True, check=True)
    found = {tuple(origin): np.array(points) / 1000 * (-1, 1, -1) for origin, points in json.loads(done.stdout)}
    wanted = corners(slab, arm)
    assert set(found) == set(wanted)
    for key, points in wanted.items():
        np.testing.assert_allclose(found[key], points, atol=1e-12, rtol=0)
