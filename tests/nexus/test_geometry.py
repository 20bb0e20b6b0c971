"""A geometry in an NXdetector: the chain of axes, its parts, back again, and files that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from geom import HEAD, panel

from gaincal.errors import FileError, RequestError
from gaincal.geometry.arm import STILL, Arm, rotation
from gaincal.geometry.crystfel import parse_geom
from gaincal.geometry.fit import as_slab
from gaincal.geometry.panels import Geometry
from gaincal.nexus.geometry import write_geometry
from gaincal.nexus.geometry_read import read_geometry
from gaincal.nexus.group import new_group
from gaincal.nexus.slab import slab_modules
from gaincal.nexus.trust import Resolver

Array = npt.NDArray[Any]
DETECTOR = "/entry/instrument/detector"
AXES = f"{DETECTOR}/transformations"
ARM = Arm(35.0, (0.0, 2.0, 0.0), 0.003, -0.004)


def detector_of(count: int = 8) -> Geometry:
    """Modules of two ASICs in two quadrants, tilted and anywhere."""
    rng = np.random.default_rng(7)
    text = HEAD + "dim0 = %\ndim2 = ss\ndim3 = fs\n"
    for k in range(count):
        a, b, c = rng.normal(size=3)
        size, flat = np.sqrt(a * a + b * b + c * c), np.hypot(a, b)
        x, y = rng.normal(0, 1000, 2)
        fast, slow = f"{a / size:+}x {b / size:+}y {c / size:+}z", f"{-b / flat:+}x {a / flat:+}y"
        name = f"q{k // 4}m{k // 2}a{k % 2}"
        text += panel(name, (0, 9, 5 * (k % 2), 5 * (k % 2) + 4), x, y, fs=fast, ss=slow)
        text += f"{name}/dim1 = {k // 2}\n{name}/coffset = {k * 1e-3}\n"
    return parse_geom(text)


def written(path: Path, geometry: Geometry, arm: Arm = STILL) -> Path:
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        entry = new_group(file, "entry", "NXentry")
        instrument = new_group(entry, "instrument", "NXinstrument")
        write_geometry(new_group(instrument, "detector", "NXdetector"), geometry, arm)
    return path


def read(path: Path) -> Geometry:
    with Resolver(path) as resolver:
        found = read_geometry(resolver, resolver.get(DETECTOR))
    assert found is not None
    return found


def in_laboratory(geometry: Geometry, arm: Arm) -> Array:
    """Positions where an arm has moved the detector."""
    assert arm.axis is not None
    return (geometry.positions() + np.array([arm.x, arm.y, 0])) @ rotation(arm.axis, arm.two_theta).T


@pytest.mark.parametrize("arm", [STILL, ARM])
def test_a_geometry_comes_back_as_it_was(tmp_path: Path, arm: Arm) -> None:
    given = detector_of()
    found = read(written(tmp_path / "a.nxs", given, arm))
    expected = given.positions() if arm is STILL else in_laboratory(given, arm)
    np.testing.assert_allclose(found.positions(), expected, atol=1e-14, rtol=0)
    for mine, theirs in zip(given.panels, found.panels, strict=True):
        assert (mine.name, mine.parents) == (theirs.name, theirs.parents)
        assert (mine.index, mine.resolution) == (theirs.index, theirs.resolution)
    assert (found.levels, found.rule) == (given.levels, "NXdetector_group of the file")


def test_the_arm_of_the_laboratory_is_right_handed(tmp_path: Path) -> None:
    """A positive angle about y takes z to x."""
    flat = parse_geom(HEAD + panel(x=-5, y=-2.5))
    found = read(written(tmp_path / "a.nxs", flat, Arm(90.0, (0.0, 1.0, 0.0))))
    np.testing.assert_allclose(found.positions().mean(axis=(0, 1)), [0.1, 0, 0], atol=1e-15)


def test_every_panel_hangs_on_its_chain(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.nxs", detector_of(), ARM)) as file:
        detector = file[DETECTOR]
        panels = [g for g in detector.values() if g.attrs.get("NX_class") == "NXdetector_module"]
        assert len(panels) == 8
        for group in panels:
            for name in ("fast_pixel_direction", "slow_pixel_direction"):
                chain, axis = [], group[name]
                assert not np.any(axis.attrs["offset"])
                while axis.attrs["depends_on"] != ".":
                    axis = file[axis.attrs["depends_on"]]
                    chain.append(axis.name.rsplit("/", 1)[-1])
                    assert {"vector", "offset", "offset_units", "units", "transformation_type"} <= set(axis.attrs)
                    assert "equipment_component" in axis.attrs
                    np.testing.assert_allclose(np.linalg.norm(axis.attrs["vector"]), 1)
                label = group.name.rsplit("_", 1)[-1]
                assert chain == [
                    f"AXIS_{label}",
                    f"AXIS_{label[:6]}",
                    f"AXIS_{label[:4]}",
                    "AXIS_D0",
                    *("AXIS_Y", "AXIS_X", "AXIS_RAIL", "AXIS_TWO_THETA"),
                ]
        components = {n: a.attrs["equipment_component"] for n, a in detector["transformations"].items()}
        assert components["AXIS_D0"] == components["AXIS_RAIL"] == "detector_arm"
        assert components["AXIS_D0Q1"] == "detector_quadrant"
        assert components["AXIS_D0Q1M2"] == "detector_module"
        assert components["AXIS_D0Q1M2A0"] == "detector_asic"


def test_the_parts_and_what_readers_take_for_guidance(tmp_path: Path) -> None:
    given = detector_of()
    with h5py.File(written(tmp_path / "a.nxs", given)) as file:
        group, detector = file["/entry/instrument/detector_group"], file[DETECTOR]
        titles = [t.decode() for t in group["group_names"]]
        assert titles[:4] == ["detector", "q0", "q0m0", "q0m0a0"]
        assert list(group["group_index"]) == list(range(1, len(titles) + 1))
        assert list(group["group_parent"][:4]) == [-1, 1, 2, 3]
        assert len(titles) == 1 + 2 + 4 + 8
        assert detector["distance"][()] == pytest.approx(0.1 + given.origin[2])
        assert detector["x_pixel_size"][()] == detector["y_pixel_size"][()] == 1e-4
        assert {"beam_center_x", "beam_center_y"} <= set(detector)
        assert detector["depends_on"][()] == f"{AXES}/AXIS_D0".encode()
        origin = detector["ARRAY_D0Q1M3A1/data_origin"]
        assert (list(origin), origin.dtype) == ([3, 5, 0], np.int64)
        assert list(detector["ARRAY_D0Q1M3A1/data_size"]) == [1, 5, 10]


def test_a_stack_becomes_a_slab(tmp_path: Path) -> None:
    given = detector_of()
    path = written(tmp_path / "a.nxs", given)
    for _ in range(2):  # what is a slab already stays one
        with h5py.File(path, "r+") as file:
            slab_modules(file[DETECTOR], (4, 10, 10), path.name)
    found = read(path)
    assert [p.index for p in found.panels] == [p.index for p in as_slab(given, 10).panels]
    np.testing.assert_allclose(found.positions(), as_slab(given, 10).positions(), atol=1e-15)


def test_an_earlier_geometry_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nxs", detector_of(), ARM)
    with h5py.File(path, "r+") as file:
        write_geometry(file[DETECTOR], detector_of(4), STILL)
    assert len(read(path).panels) == 4
    with h5py.File(path) as file:
        assert "AXIS_TWO_THETA" not in file[AXES]


def test_a_detector_without_panels_has_no_geometry(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        new_group(file, "d", "NXdetector")
    with Resolver(tmp_path / "a.nxs") as resolver:
        assert read_geometry(resolver, resolver.get("/d")) is None


def test_without_a_distance_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not stated"):
        written(tmp_path / "a.nxs", parse_geom("res = 1\n" + panel()))


def test_units_are_converted_and_relative_names_lead_on(tmp_path: Path) -> None:
    """As another program may write it: millimetres, radians, names instead of paths, vectors of any length."""
    path = written(tmp_path / "a.nxs", detector_of(), ARM)
    before = read(path)
    with h5py.File(path, "r+") as file:
        axes = file[AXES]
        rail = axes["AXIS_RAIL"]
        rail[()] *= 1000
        rail.attrs["units"] = "mm"
        rail.attrs["depends_on"] = "AXIS_TWO_THETA"
        rail.attrs["vector"] = np.array([0, 0, 7], np.float32)
        arm = axes["AXIS_TWO_THETA"]
        arm[()] = np.deg2rad(arm[()])
        arm.attrs["units"] = "rad"
        quadrant = axes["AXIS_D0Q1"]
        quadrant.attrs["offset"] = quadrant.attrs["offset"] * 1e6
        quadrant.attrs["offset_units"] = "um"
        fast = file[f"{DETECTOR}/ARRAY_D0Q0M0A0/fast_pixel_direction"]
        fast.attrs["depends_on"] = "../transformations/AXIS_D0Q0M0A0".replace("../", f"{DETECTOR}/")
    np.testing.assert_allclose(read(path).positions(), before.positions(), atol=1e-15)


def test_panels_of_other_names_are_read_without_a_group(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nxs", detector_of())
    with h5py.File(path, "r+") as file:
        del file["/entry/instrument/detector_group"]
    assert read(path).panels[5].parents == ("q1", "q1m2")
    with h5py.File(path, "r+") as file:
        for name in [n for n in file[DETECTOR] if n.startswith("ARRAY")]:
            file[DETECTOR].move(name, f"bad {name};=")
    found = read(path)
    assert [p.name for p in found.panels] == [f"p{k}" for k in range(8)]
    np.testing.assert_allclose(found.positions(), detector_of().positions(), atol=1e-14)


# --- files that lie --------------------------------------------------------------------------


def cycle(file: h5py.File) -> None:
    file[f"{AXES}/AXIS_RAIL"].attrs["depends_on"] = f"{AXES}/AXIS_D0Q0M0A0"


def endless(file: h5py.File) -> None:
    for k in range(100):
        axis = file[AXES].create_dataset(f"x{k}", data=0.0)
        axis.attrs.update(transformation_type="translation", vector=[1.0, 0, 0], depends_on=f"{AXES}/x{k + 1}")
    file[f"{AXES}/AXIS_RAIL"].attrs["depends_on"] = f"{AXES}/x0"


def dangling(file: h5py.File) -> None:
    file[f"{AXES}/AXIS_D0"].attrs["depends_on"] = "/entry/nowhere/axis"


def unsaid(file: h5py.File) -> None:
    del file[f"{AXES}/AXIS_D0"].attrs["depends_on"]


def to_a_group(file: h5py.File) -> None:
    file[f"{AXES}/AXIS_D0"].attrs["depends_on"] = DETECTOR


def elsewhere(file: h5py.File) -> None:
    file["/away"] = h5py.ExternalLink("/etc/passwd", "/x")
    file[f"{AXES}/AXIS_D0"].attrs["depends_on"] = "/away/axis"


def attribute(path: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path].attrs[name] = value

    return change


def replaced(path: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        kept = dict(file[path].attrs)
        del file[path]
        file[path] = values
        file[path].attrs.update(kept)

    return change


def without(path: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path]

    return change


PANEL = f"{DETECTOR}/ARRAY_D0Q0M0A0"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (cycle, "leads on for more than 64 axes"),
        (endless, "leads on for more than 64 axes"),
        (dangling, "AXIS_D0: depends on '/entry/nowhere/axis', which is no axis"),
        (unsaid, "AXIS_D0: has no depends_on"),
        (to_a_group, "which is no axis"),
        (elsewhere, "outside the directory"),
        (attribute(f"{AXES}/AXIS_D0", "vector", [0.0, 0.0, 0.0]), "has no vector"),
        (attribute(f"{AXES}/AXIS_D0", "vector", [0.0, 1.0]), "has no vector"),
        (attribute(f"{AXES}/AXIS_D0", "vector", "up"), "has no vector"),
        (attribute(f"{AXES}/AXIS_D0", "vector", [np.nan, 0.0, 1.0]), "has no vector"),
        (attribute(f"{AXES}/AXIS_D0", "vector", np.zeros(8000)), "has no vector"),
        (attribute(f"{AXES}/AXIS_D0", "offset", [np.inf, 0.0, 1.0]), "offset is not three finite numbers"),
        (attribute(f"{AXES}/AXIS_D0Q0", "offset_units", "furlong"), "offset_units is 'furlong'"),
        (attribute(f"{AXES}/AXIS_RAIL", "units", "deg"), "units is 'deg', not one of m"),
        (attribute(f"{AXES}/AXIS_RAIL", "transformation_type", "general"), "transformation_type is 'general'"),
        (replaced(f"{AXES}/AXIS_RAIL", np.array([1.0, 2.0])), "moves during the run"),
        (replaced(f"{AXES}/AXIS_RAIL", np.nan), "is not a finite number"),
        (replaced(f"{AXES}/AXIS_RAIL", "far"), "odd|not a finite number|is a text|neither plain"),
        (replaced(f"{PANEL}/data_origin", np.array([0, 0, -1])), "must be 2 or 3 whole numbers"),
        (replaced(f"{PANEL}/data_origin", np.array([0, 0, 1 << 40])), "must be 2 or 3 whole numbers"),
        (replaced(f"{PANEL}/data_origin", np.array([0, 0])), "no rectangle"),
        (replaced(f"{PANEL}/data_origin", np.array([1, 0, 0])), "have a pixel of the data in common"),
        (replaced(f"{PANEL}/data_size", np.array([2, 5, 10])), "no rectangle"),
        (replaced(f"{PANEL}/data_size", np.array([1, 0, 10])), "no rectangle"),
        (replaced(f"{PANEL}/fast_pixel_direction", 0.0), "pixels have no size"),
        (replaced(f"{PANEL}/fast_pixel_direction", 1e308), "beyond all measure|have no size"),
        (without(f"{PANEL}/slow_pixel_direction"), "has no slow_pixel_direction"),
        (without(f"{PANEL}/data_size"), "has no data_size"),
    ],
)
def test_a_file_that_lies_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[h5py.File], None], complaint: str
) -> None:
    path = written(tmp_path / "a.nxs", detector_of(), ARM)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(FileError, match=complaint) as caught:
        read(path)
    assert "a.nxs" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("group_names", np.array([b"x\n;y"] * 15)),
        ("group_names", np.array([b"a"] * 3)),
        ("group_names", np.array([f"a/{k}".encode() for k in range(15)])),
        ("group_parent", np.full(15, -1, np.int32)),
        ("group_parent", np.arange(15, dtype=np.int32)),
        ("group_parent", np.zeros(15)),
        ("group_index", np.zeros(15, np.int32)),
        ("group_names", "text of variable length"),
    ],
)
def test_parts_that_make_no_sense_are_not_used(tmp_path: Path, name: str, values: Array) -> None:
    path = written(tmp_path / "a.nxs", detector_of())
    with h5py.File(path, "r+") as file:
        group = file["/entry/instrument/detector_group"]
        del group[name]
        group[name] = values
    found = read(path)
    assert found.rule == "names of the panels"
    np.testing.assert_allclose(found.positions(), detector_of().positions(), atol=1e-14)
