"""embed --geometry and gaincal geometry: from a .geom file into a master, through apply, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_constants, make_words, write_raw
from geom import panel
from test_third_party import (
    KNOWN_NXCHECK,
    KNOWN_NXVALIDATE,
    KNOWN_PYNXTOOLS,
    NEXUSFORMAT,
    PYNXTOOLS,
    in_process,
    problems,
    unknown,
)

from gaincal.cli import main
from gaincal.errors import BindError, FileError, RequestError
from gaincal.geometry.crystfel import parse_geom, read_geom
from gaincal.geometry.fit import fitted
from gaincal.lazy import open_calibrated, open_calibrated_dataset
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import Embedded, embed
from gaincal.verbs.geometry import geometry

Array = npt.NDArray[Any]
MODULES, ROWS, COLUMNS = 3, 8, 12
PIXELS = MODULES, ROWS, COLUMNS
DETECTOR = "/entry/instrument/detector"
KNOWN = (
    *KNOWN_PYNXTOOLS,
    r"Field /entry/instrument/detector/calibration/jungfrau_modules(/\w+)? has no documentation\.",
)
FACTS = {
    "start_time": "2026-01-01T00:00:00Z",
    "end_time": "2026-01-01T00:01:00Z",
    "source_name": "simulation",
    "instrument_name": "desk",
    "sample_name": "crystal",
    "sensor_material": "Si",
    "sensor_thickness": "320e-6",
    "photon_energy": "12.4",
}


def geom(distance: str = "0.1") -> str:
    """Three modules of two ASICs, as a slab."""
    text = f"photon_energy = 12400\nclen = {distance}\nres = 13333.3\nadu_per_eV = 0.1\n"
    text += "dim0 = %\ndim1 = ss\ndim2 = fs\n"
    ways = {"fs": "-0.999999x +0.001y", "ss": "0.001x +0.999999y"}
    for m in range(MODULES):
        for a in range(2):
            box = (6 * a, 6 * a + 5, ROWS * m, ROWS * m + ROWS - 1)
            text += panel(f"m{m}a{a}", box, x=20.0 * m + 3, y=8.0 * a - 4, **ways)
    return text + "badA/panel = m1a0\nbadA/min_ss = 8\nbadA/max_ss = 9\nbadA/min_fs = 0\nbadA/max_fs = 2\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "raw.h5", make_words((4, *PIXELS)))
    pedestal, gain = make_constants(PIXELS)
    np.save("pedestal.npy", pedestal)
    np.save("gain.npy", gain)
    Path("my.geom").write_text(geom())
    return tmp_path


def embedded(target: str = "master.nxs", file: str = "my.geom", **facts: str) -> Embedded:
    constants = {"pedestal": "pedestal.npy", "gain": "gain.npy"}
    settings = {k: v for k, v in (FACTS | facts).items() if v}
    return embed("raw.h5", target, formula="jungfrau_modules", constants=constants, settings=settings, geometry=file)


def run(*command: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*command], prog_name="gaincal")
    return int(caught.value.code or 0)


def test_a_master_has_the_panels_of_the_file(here: Path) -> None:
    done = embedded()
    assert not [n for n in done.notes if "nobody stated" in n]
    assert "geometry: 6 panels (module > asic), from names of the panels" in done.notes
    assert "6 pixels that the geometry excludes are masked as 'user'" in done.notes
    assert any(n.startswith("what the geometry file says of adu_per_eV, photon_energy is not") for n in done.notes)
    found = geometry("master.nxs")
    assert (found.panels, found.levels, found.data) == (6, ["module", "asic"], [*PIXELS])
    assert found.distance == pytest.approx(0.1)
    assert found.wavelength == pytest.approx(12.398419843320026 / 12.4)
    with h5py.File("master.nxs") as file:
        mask = file[f"{DETECTOR}/pixel_mask"][()]
        assert file[f"{DETECTOR}/distance"][()] == pytest.approx(0.1)
    expected = np.zeros(PIXELS, np.uint32)
    expected[1, :2, :3] = 1 << 8
    np.testing.assert_array_equal(mask, expected)
    flags = open_calibrated_dataset("master.nxs")["flags"].values
    assert (flags[:, 1, :2, :3] & 32).all()


def test_text_through_a_master_and_back_is_the_same_detector(here: Path) -> None:
    embedded()
    assert run("geometry", "master.nxs", "-o", "back.geom") == 0
    given, back = fitted(read_geom("my.geom"), PIXELS), read_geom("back.geom")
    np.testing.assert_allclose(back.positions(), given.positions(), atol=1e-12)
    assert [p.parents for p in back.panels] == [p.parents for p in given.panels]
    assert back.panels[0].resolution == pytest.approx(13333.3, rel=1e-9)


def test_apply_carries_the_geometry_over_and_a_stack_becomes_a_slab(here: Path) -> None:
    embedded()
    apply("master.nxs", "applied.nxs", reader="dials")
    before = geometry("master.nxs")
    found = geometry("applied.nxs")
    assert found.data == [MODULES * ROWS, COLUMNS]
    assert (found.box, found.panels, found.rule) == (before.box, before.panels, before.rule)


def test_one_frame_does_not_cut_the_geometry(here: Path) -> None:
    """Lists with one value per frame are cut when frames are; a tree of as many parts is no such list."""
    embedded()
    apply("master.nxs", "one.nxs", frames=(0, 1))
    assert geometry("one.nxs").rule == geometry("master.nxs").rule


def test_the_stated_distance_is_that_of_the_panels(here: Path) -> None:
    Path("path.geom").write_text(geom("/LCLS/EncoderValue mm\ncoffset = 0.58"))
    with pytest.raises(RequestError, match=r"path.geom: the distance .* '/LCLS/EncoderValue mm'; state it"):
        embedded(file="path.geom")
    assert not Path("master.nxs").exists()
    embedded(file="path.geom", distance="0.2")
    assert geometry("master.nxs").distance == pytest.approx(0.2)


def test_an_arm_moves_the_detector(here: Path) -> None:
    embedded(two_theta="30", two_theta_axis="0,1,0", detector_x="0.001", detector_y="-0.002")
    with h5py.File("master.nxs") as file:
        axes = file[f"{DETECTOR}/transformations"]
        assert axes["AXIS_TWO_THETA"][()] == 30
        assert (axes["AXIS_X"][()], axes["AXIS_Y"][()]) == (0.001, -0.002)
    (left, right), (down, up) = geometry("master.nxs").box
    assert (left + right) / 2 == pytest.approx(0.1 * np.sin(np.pi / 6), abs=3e-3)
    assert (up + down) / 2 == pytest.approx(-0.002, abs=1e-3)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"pixel_size": "75e-6"}, "pixel_size is stated twice"),
        ({"beam_center_x": "5"}, "beam_center_x is stated twice"),
        ({"two_theta": "5"}, "two_theta and two_theta_axis belong together"),
        ({"two_theta": "5", "two_theta_axis": "y"}, "two_theta_axis=y: not a finite number"),
        ({"two_theta": "5", "two_theta_axis": "0,1"}, "write three numbers"),
        ({"two_theta": "5", "two_theta_axis": "0,0,0"}, "write three numbers"),
        ({"distance": "-0.1"}, "must be above zero"),
    ],
)
def test_contradictions_are_refused(here: Path, facts: dict[str, str], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        embedded(**facts)
    assert not Path("master.nxs").exists()


def test_an_arm_without_panels_is_refused(here: Path) -> None:
    with pytest.raises(RequestError, match="detector_x moves a detector whose panels are known"):
        embed(
            *("raw.h5", "m.nxs"),
            formula="jungfrau_modules",
            constants={"pedestal": "pedestal.npy", "gain": "gain.npy"},
            settings={"detector_x": "1"},
        )


def test_a_geometry_of_other_pixels_is_refused(here: Path) -> None:
    Path("other.geom").write_text("clen = 1\nres = 1e4\n" + panel())
    with pytest.raises(BindError, match=r"other.geom: the geometry is for data of \(5, 10\), the words of a frame"):
        embedded(file="other.geom")
    with pytest.raises(FileError, match=r"absent\.geom: cannot be opened"):
        embedded(file="absent.geom")
    with pytest.raises(RequestError, match="which is read"):
        embed(
            *("raw.h5", "my.geom"),
            formula="jungfrau_modules",
            constants={"pedestal": "pedestal.npy", "gain": "gain.npy"},
            settings=FACTS,
            geometry="my.geom",
            overwrite=True,
        )


def test_the_geometry_of_the_raw_file_is_replaced(here: Path) -> None:
    embedded()
    shutil.copy("master.nxs", "raw_with_entry.nxs")
    Path("new.geom").write_text(geom("0.3"))
    embed(
        "raw_with_entry.nxs::/entry/instrument/detector/raw/data",
        "second.nxs",
        formula="jungfrau_modules",
        constants={"pedestal": "pedestal.npy", "gain": "gain.npy"},
        settings={"photon_energy": "12.4"},
        geometry="new.geom",
    )
    assert geometry("second.nxs").distance == pytest.approx(0.3)
    np.testing.assert_array_equal(open_calibrated("second.nxs").values, open_calibrated("master.nxs").values)


# --- the command -----------------------------------------------------------------------------


def test_the_command_says_what_there_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("geometry", "my.geom") == 0
    shown = capsys.readouterr().out
    assert "my.geom: 6 panels\n  parts       3 modules, 6 ASICs; from names of the panels" in shown
    assert "data        (24, 12), pixels of 75.0002 um" in shown
    assert "distance    100.0000 mm" in shown
    assert "of panel m0a0" in shown
    assert "angstrom at the farthest corner" in shown
    assert run("geometry", "my.geom", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["beam"]["panel"] == "m0a0"
    assert found["distance"] == pytest.approx(0.1)


def test_the_command_writes_only_what_is_new(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("geometry", "my.geom", "-o", "new.geom") == 0
    assert read_geom("new.geom") == read_geom("my.geom")
    assert run("geometry", "my.geom", "-o", "new.geom") == 7
    assert "exists already" in capsys.readouterr().err
    assert run("geometry", "my.geom", "-o", "new.geom", "--overwrite") == 0
    assert run("geometry", "my.geom", "-o", "my.geom", "--overwrite") == 2
    assert run("geometry", "my.geom", "-o", "absent/new.geom") == 7
    assert sorted(p.name for p in here.iterdir() if "part" in p.name) == []


def test_the_command_refuses_files_without_panels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("geometry", "raw.h5") == 4
    assert "has no NXdetector_module in an NXdetector; embed with --geometry" in capsys.readouterr().err
    assert run("geometry", "absent.nxs") == 4
    assert run("geometry", "pedestal.npy") == 4
    assert "line 1" in capsys.readouterr().err


def test_modules_are_cut_on_request(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("module.geom").write_text("clen = 0.1\nres = 13333.3\n" + panel("m7", (0, 1023, 0, 511)))
    assert run("geometry", "module.geom", "--split", "-o", "chips.geom") == 0
    assert "1 module, 8 ASICs" in capsys.readouterr().out
    chips = read_geom("chips.geom")
    assert [p.parents for p in chips.panels] == [("m7",)] * 8
    whole = parse_geom(Path("module.geom").read_text())
    np.testing.assert_allclose(chips.positions(), whole.positions(), atol=1e-15)


# --- other programs --------------------------------------------------------------------------


@pytest.fixture
def files(here: Path) -> list[str]:
    embedded(two_theta="30", two_theta_axis="0,1,0", detector_x="0.001")
    apply("master.nxs", "applied.nxs")
    return ["master.nxs", "applied.nxs"]


@pytest.mark.parametrize("k", [0, 1])
def test_validators_find_no_error_of_ours(here: Path, files: list[str], k: int) -> None:
    pytest.importorskip("pynxtools")
    pytest.importorskip("nexusformat")
    assert unknown(in_process(here, files[k], PYNXTOOLS), KNOWN) == []
    for function, known in (("validate_file", KNOWN_NXCHECK), ("validate_application", KNOWN_NXVALIDATE)):
        lines = in_process(here, files[k], NEXUSFORMAT.format(function=function, level="WARNING"))
        assert problems(lines, known) == []
