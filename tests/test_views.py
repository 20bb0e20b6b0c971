"""Views of an acquisition: the bits of the run, ids, positions and accounts of their own, and nothing on trust."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import h5py
import independent_reader
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from conftest import FIRST_PULSE, PHOTON_ENERGY, Run, few, make_constants, make_words, write_raw
from contract import View, ViewContract, same_bits
from test_conformance import CASES, FOLDER

import gaincal
from gaincal.cli import main
from gaincal.demo import SETTINGS
from gaincal.errors import FileError, GaincalError, OutputError, RequestError, TrustError
from gaincal.kernels import pipeline
from gaincal.nexus import names
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import open_master
from gaincal.nexus.sweeps import Direction, Motion, Sweep, account_for, every, inverse_beam
from gaincal.nexus.words import Words
from gaincal.verbs.embed import embed
from gaincal.verbs.inspect import info, validate
from gaincal.verbs.views import Views, views

Array = npt.NDArray[Any]
Embedded = Callable[..., Path]
FRAMES, WEDGE, STEP = 22, 4, 0.25
PIXELS = (8, 16)
CALIBRATION = "/entry/instrument/detector/calibration/jungfrau"
RAW = "/entry/instrument/detector/raw"
AXES = "/entry/sample/transformations"
ABOUT_X = Direction((-1.0, 0.0, 0.0), "deg")
STATED: dict[str, Any] = {"axes": {"omega": Motion(10.0, STEP)}, "directions": {"omega": ABOUT_X}}


def inverse_positions(frames: int = FRAMES, wedge: int = WEDGE) -> Array:
    """Of an acquisition in wedges A, B, A, B ..., where B is half a turn on."""
    k = np.arange(frames)
    number = k // (2 * wedge) * wedge + k % wedge
    return np.asarray(10.0 + STEP * number + 180.0 * (k // wedge % 2))


def write_entry(path: Path, omega: Array, frames: int = FRAMES) -> None:
    """A raw file of an NXmx beamline: words, a goniometer of three axes, and what comes by frame."""
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        for name, nx_class in (
            ("instrument", "NXinstrument"),
            ("instrument/detector", "NXdetector"),
            ("instrument/beam", "NXbeam"),
            ("sample", "NXsample"),
            ("sample/transformations", "NXtransformations"),
        ):
            entry.create_group(name).attrs["NX_class"] = nx_class
        entry["definition"] = "NXmx"
        entry["sample/depends_on"] = f"{AXES}/phi"
        wavelength = entry.create_dataset("instrument/beam/incident_wavelength", data=1.0 + 0.01 * np.arange(frames))
        wavelength.attrs["units"] = "angstrom"
        entry["instrument/detector/frame_start"] = np.arange(frames) * 0.5
        for name, values, depends_on in (
            ("omega", omega, "."),
            ("kappa", np.array([30.0]), "omega"),
            ("phi", np.array(0.0), f"{AXES}/kappa"),
        ):
            axis = entry.create_dataset(f"sample/transformations/{name}", data=values)
            axis.attrs.update(transformation_type="rotation", vector=[-1.0, 0, 0], units="deg", depends_on=depends_on)
        if omega.size > 1:
            entry["sample/transformations/omega_end"] = omega + STEP
            entry["sample/transformations/omega_end"].attrs["units"] = "deg"
        file.create_dataset("data", data=make_words((frames, *PIXELS)), chunks=(1, *PIXELS), fletcher32=True)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both evaluators give the same bits, which is tested elsewhere; here few words are read in many ways."""
    monkeypatch.setattr(pipeline, "UNCOMPILED_WORDS", 1 << 40)


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    """Makes a master of a raw file with an entry of its own."""

    def make(omega: Array | None = None) -> Path:
        write_entry(tmp_path / "raw.h5", inverse_positions() if omega is None else omega)
        pedestal, gain = make_constants(PIXELS)
        constants = {"pedestal": pedestal, "gain": gain}
        embed(f"{tmp_path / 'raw.h5'}::/data", tmp_path / "run.nxs", formula="jungfrau", constants=constants)
        return tmp_path / "run.nxs"

    return make


def everything(path: Path) -> dict[str, Array]:
    """All that a lazy view of a file holds."""
    with gaincal.open_calibrated_dataset(path) as found:
        return {str(n): np.asarray(v) for n, v in found.variables.items() if n != "frame"}


def assert_same_as_run(made: Views, sweeps: list[Sweep] | None = None) -> None:
    """Each view holds the bits of its frames in the run, whatever is asked for."""
    run = everything(made.run)
    for k, view in enumerate(made.views):
        frames = np.concatenate([np.arange(first, first + count) for first, count in view.ranges])
        assert sweeps is None or np.array_equal(frames, sweeps[k].frames)
        found = everything(view.path)
        np.testing.assert_array_equal(found.pop("run_frame"), frames)
        assert found.keys() == run.keys()
        for name, values in found.items():
            same_bits(values, run[name][frames])


# --- the same bits -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def view(virtual: Run, tmp_path_factory: pytest.TempPathFactory) -> View:
    """A view of gathered wedges, some of whose words are missing."""
    home = tmp_path_factory.mktemp("views")
    done = views(virtual.master, home, inverse_beam=2, trust=[virtual.master.parent])
    path = done.views[0].path

    def open_(chunks: Any) -> Any:
        return gaincal.open_calibrated(path, "counts", chunks=chunks, trust=[virtual.master.parent])

    frames = np.array([0, 1, 4, 5, 8, 9])
    whole = np.asarray(gaincal.open_calibrated(virtual.master, "counts"))
    assert virtual.missing[frames].any()
    return View(open_, ("frame", "y", "x"), whole[frames], (virtual.pedestal, virtual.gain))


class TestALazyView(ViewContract):
    """The laws of every lazy view hold for a view of an acquisition."""


@pytest.mark.parametrize("kind", few(["virtual", "plain", "odd", "strip", "modules", "single"]))
def test_views_hold_the_bits_of_the_run(kind: str, runs: Callable[[str], Run], tmp_path: Path) -> None:
    shutil.copytree(runs(kind).master.parent, tmp_path / "all")
    master = tmp_path / "all" / "master.nxs"
    total = len(runs(kind).words)
    assert_same_as_run(views(master, every=3, allow_rest=True), every(total, 3, allow_rest=True))
    if total > 2:
        assert_same_as_run(views(master, inverse_beam=2, overwrite=True), inverse_beam(total, 2)[0])


@pytest.mark.parametrize("case", few(CASES, 4))
def test_all_formulas_give_the_expected_bits(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "UNCOMPILED_WORDS", 1 << 40)
    shutil.copy(FOLDER / f"{case}.nxs", tmp_path)
    with h5py.File(FOLDER / f"{case}.expected.h5") as expected:
        results = {key: expected[key][()] for key in expected}
    total = len(next(iter(results.values())))
    ranges = ((total - 1, 1), (0, total - 1)) if total > 1 else ((0, 1),)
    (view,) = views(tmp_path / f"{case}.nxs", sweeps=[Sweep("turned", ranges)]).views
    order = np.r_[total - 1, 0 : total - 1]
    opened = open_master(view.path)
    with opened.resolver:
        for key in (k for k in results if not k.endswith("_flags")):
            name, dtype = key.partition(".")[0], results[key].dtype.name
            evaluation = Evaluation(opened.calibration, opened.words, opened.calibration.program(name, dtype))
            values, flags = evaluation.read((0,) * len(evaluation.shape), evaluation.shape, with_flags=True)
            assert flags is not None
            same_bits(values, results[key][order])
            same_bits(flags, results[f"{key}_flags"][order])
            if case != "missing":  # where HDF5 tells nothing of missing words, the other reader cannot know
                values, flags = independent_reader.read(str(view.path), name, dtype)
                same_bits(np.asarray(values), results[key][order])
                same_bits(np.asarray(flags), results[f"{key}_flags"][order])


def test_a_view_of_a_view_refers_to_the_run(own: Run) -> None:
    first = views(own.master, sweeps=[Sweep("late", ((3, 3),))]).views[0].path
    (second,) = views(first, sweeps=[Sweep("last", ((2, 1), (0, 1)))]).views
    assert second.path.name == "master_late_last.nxs"
    first.unlink()
    run, found = everything(own.master), everything(second.path)
    np.testing.assert_array_equal(found.pop("run_frame"), [5, 3])
    for name, values in found.items():
        same_bits(values, run[name][[5, 3]])
    assert info(second.path)["view_of"] == str(own.master.resolve())


def test_views_of_words_in_the_master_itself(own: Run) -> None:
    pedestal, gain = make_constants(own.words.shape[1:])
    whole = own.master.parent / "whole.nxs"
    constants = {"pedestal": pedestal, "gain": gain}
    embed(f"{own.raw}::/data", whole, formula="jungfrau", constants=constants, copy_raw=True)
    own.raw.unlink()
    assert_same_as_run(views(whole, every=2))


def test_constants_are_linked_and_what_comes_by_frame_is_cut(embedded: Embedded) -> None:
    master = embedded()
    view = views(master, inverse_beam=WEDGE).views[1]
    frames = Sweep("B", tuple(view.ranges)).frames
    with h5py.File(view.path) as file:
        group = file[CALIBRATION]
        for name in ("pedestal", "gain", "steps", "formula", "constants", "outputs"):
            link = group.get(name, getlink=True)
            assert (link.filename, link.path) == ("run.nxs", f"{CALIBRATION}/{name}")
        energy = names.KEV_ANGSTROM / (1.0 + 0.01 * frames)
        np.testing.assert_allclose(group["given/photon_energy"], energy, rtol=1e-15)
        np.testing.assert_allclose(file["entry/instrument/beam/incident_wavelength"], 1.0 + 0.01 * frames, rtol=1e-15)
        assert file["entry/instrument/beam/incident_wavelength"].attrs["units"] == "angstrom"
        np.testing.assert_array_equal(file["entry/instrument/detector/frame_start"], frames * 0.5)
        assert next(iter(file[f"{RAW}/data"].virtual_sources())).file_name == "raw.h5"
        preview = file["entry/data"][file["entry/data"].attrs["signal"]]
        assert preview.shape == PIXELS
        assert np.isfinite(preview).any()
    assert view.path.stat().st_size < 100_000


# --- positions -----------------------------------------------------------------------------


def axis(path: Path, name: str) -> Array:
    with h5py.File(path) as file:
        return np.asarray(file[f"{AXES}/{name}"][()])


def test_recorded_positions_are_cut_to_the_wedges(embedded: Embedded) -> None:
    done = views(embedded(), inverse_beam=WEDGE)
    one, other = done.views
    assert (one.frames, other.frames) == (12, 10)
    np.testing.assert_allclose(axis(one.path, "omega"), 10 + STEP * np.arange(12))
    np.testing.assert_allclose(axis(other.path, "omega"), 190 + STEP * np.arange(10))
    np.testing.assert_allclose(axis(other.path, "omega_end"), 190 + STEP * np.arange(1, 11))
    assert axis(one.path, "kappa").tolist() == [30.0]
    assert axis(one.path, "phi").shape == ()
    assert one.positions["omega"] == (10.0, 10 + 11 * STEP, "deg")
    assert any("the last wedge has 2 frames instead of 4" in n for n in done.notes)
    assert not any("unchecked" in n or "moves by" in n for n in done.notes)


def test_wedges_that_are_not_opposite_are_refused(embedded: Embedded) -> None:
    omega = inverse_positions()
    omega[WEDGE + 1] += 0.2
    master = embedded(omega)
    with pytest.raises(RequestError, match=r"frames 1 and 5 should be opposite, and omega is at 10\.25 and 190\.45"):
        views(master, inverse_beam=WEDGE)
    with pytest.raises(RequestError, match="should be opposite"):
        views(master, inverse_beam=WEDGE + 1)
    assert not list(master.parent.glob("run_*"))


def test_a_half_turn_may_go_either_way(embedded: Embedded) -> None:
    omega = inverse_positions()
    back = np.where(omega > 180, omega - 360, omega)
    assert len(views(embedded(back), inverse_beam=WEDGE).views) == 2


def test_stated_positions_are_compared_with_recorded_ones(embedded: Embedded) -> None:
    master = embedded(10 + STEP * np.arange(FRAMES))
    agreed = views(master, every=FRAMES, axes={"omega": Motion(10.001, STEP)})
    np.testing.assert_array_equal(axis(agreed.views[0].path, "omega"), 10 + STEP * np.arange(FRAMES))
    with pytest.raises(RequestError, match=r"frame 21: omega: the run says 15\.25 deg, stated are 22\.6"):
        views(master, every=FRAMES, axes={"omega": Motion(10.0, 0.6)}, overwrite=True)
    with pytest.raises(RequestError, match="the run says itself how omega"):
        views(master, every=FRAMES, directions={"omega": ABOUT_X}, overwrite=True)


def test_a_standing_axis_moves_where_somebody_says_so(embedded: Embedded) -> None:
    done = views(embedded(np.array(0.0)), every=11, axes={"omega": Motion(5.0, STEP), "kappa": Motion(12.0)})
    path = done.views[1].path
    np.testing.assert_allclose(axis(path, "omega"), 5 + STEP * np.arange(11))
    np.testing.assert_allclose(axis(path, "omega_end"), 5 + STEP * np.arange(1, 12))
    np.testing.assert_allclose(axis(path, "omega_increment_set"), STEP)
    np.testing.assert_allclose(axis(path, "kappa"), 12.0)
    with h5py.File(path) as file:
        assert file[f"{AXES}/kappa"].attrs["depends_on"] == "omega"
        assert "kappa_end" not in file[AXES]
    assert any("omega stands still in the run" in n for n in done.notes)


def test_positions_in_radians_stay_in_radians(embedded: Embedded, tmp_path: Path) -> None:
    master = embedded(np.array(0.0))
    with h5py.File(master, "r+") as file:
        file[f"{AXES}/omega"].attrs["units"] = "rad"
    view = views(master, every=FRAMES, axes={"omega": Motion(90.0, 180.0)}).views[0]
    np.testing.assert_allclose(axis(view.path, "omega"), np.pi * (0.5 + np.arange(FRAMES)))
    assert view.positions["omega"][0] == 90.0


def test_new_axes_are_stacked_from_the_laboratory_to_the_sample(own: Run) -> None:
    directions = {"omega": ABOUT_X, "kappa": Direction((0.0, 0.6, 0.8), "deg"), "sam_x": Direction((1, 0, 0), "mm")}
    axes = {"sam_x": Motion(1.0, 0.5), "kappa": Motion(20.0), "omega": Motion(0.0, 0.1)}
    view = views(own.master, every=6, axes=axes, directions=directions).views[0]
    with h5py.File(view.path) as file:
        chain, path = [], file["entry/sample/depends_on"][()].decode()
        while path != ".":
            chain.append(path.rsplit("/", 1)[-1])
            found = file[path]
            assert found.shape == (6,)
            path = found.attrs["depends_on"]
        assert chain == ["sam_x", "kappa", "omega"]
        assert file[f"{AXES}/sam_x"].attrs["transformation_type"] == "translation"
        assert file[f"{AXES}/sam_x"].attrs["units"] == "mm"
        assert set(file[AXES]) == {"omega", "omega_end", "omega_increment_set", "kappa", "sam_x"}


def test_no_direction_is_invented(own: Run) -> None:
    with pytest.raises(RequestError, match="the run has no axis 'omega': say along or about which direction"):
        views(own.master, every=2, axes={"omega": Motion(0.0, 0.1)})
    with pytest.raises(RequestError, match="cannot be called 'a/b'"):
        views(own.master, every=2, directions={"a/b": ABOUT_X})


def test_without_positions_none_are_invented(own: Run) -> None:
    done = views(own.master, inverse_beam=1)
    assert any("unchecked" in n for n in done.notes)
    with h5py.File(done.views[0].path) as file:
        assert file["entry/sample/depends_on"][()] == b"."
        assert "transformations" not in file["entry/sample"]


def test_the_opposite_of_stated_positions_is_half_a_turn_on(own: Run) -> None:
    one, other = views(own.master, inverse_beam=2, **STATED).views
    np.testing.assert_allclose(axis(one.path, "omega"), 10 + STEP * np.arange(4))
    np.testing.assert_allclose(axis(other.path, "omega"), 190 + STEP * np.arange(2))


def test_embed_states_axes_that_the_raw_file_lacks(own: Run) -> None:
    master = own.raw.parent / "turned.nxs"
    one = np.ones((3, 8, 16), np.float32)
    source = {"formula": "jungfrau", "constants": {"pedestal": one, "gain": one}}
    with pytest.raises(RequestError, match="the run has no axis 'omega': say along or about which direction"):
        embed(f"{own.raw}::/data", master, axes=STATED["axes"], **source)
    assert not master.exists()
    with pytest.raises(RequestError, match="stated in a master, not in place"):
        embed(f"{own.raw}::/data", in_place=True, **STATED, **source)
    embed(f"{own.raw}::/data", master, **STATED, **source)
    np.testing.assert_allclose(axis(master, "omega"), 10 + STEP * np.arange(6))
    np.testing.assert_allclose(axis(master, "omega_end"), 10 + STEP * np.arange(1, 7))
    view = views(master, every=3).views[1]
    np.testing.assert_allclose(axis(view.path, "omega"), 10 + STEP * np.arange(3, 6))


def test_embed_does_not_contradict_the_raw_file(embedded: Embedded) -> None:
    home = embedded(10 + STEP * np.arange(FRAMES)).parent
    one = np.ones((3, *PIXELS), np.float32)
    source = {"formula": "jungfrau", "constants": {"pedestal": one, "gain": one}}
    with pytest.raises(RequestError, match=r"the run says 10 deg, stated are 90"):
        embed(f"{home / 'raw.h5'}::/data", home / "o.nxs", axes={"omega": Motion(90.0, STEP)}, **source)
    embed(f"{home / 'raw.h5'}::/data", home / "o.nxs", axes={"kappa": Motion(0.0, 0.5)}, **source)
    np.testing.assert_allclose(axis(home / "o.nxs", "kappa"), 0.5 * np.arange(FRAMES))


def test_where_frames_end_is_no_axis_of_its_own(embedded: Embedded) -> None:
    run = embedded()
    with h5py.File(run, "r+") as file:
        for key, value in file[f"{AXES}/omega"].attrs.items():
            file[f"{AXES}/omega_end"].attrs[key] = value
    assert set(views(run, inverse_beam=WEDGE).views[0].positions) == {"omega", "kappa", "phi"}


def test_a_jump_of_the_rotation_is_told(embedded: Embedded) -> None:
    omega = STEP * np.arange(FRAMES)
    omega[7:] += 3
    done = views(embedded(omega), every=11)
    assert "sweep 001: omega moves by 3.25 deg after frame 6, otherwise by 0.25" in done.notes


# --- which frames --------------------------------------------------------------------------


def test_a_remainder_is_refused_or_named(own: Run) -> None:
    with pytest.raises(RequestError, match="6 frames are 1 sweeps of 4, and 2 frames remain"):
        views(own.master, every=4)
    done = views(own.master, every=4, allow_rest=True)
    assert [v.path.name for v in done.views] == ["master_001.nxs", "master_rest.nxs"]
    assert "sweep rest has 2 frames instead of 4" in done.notes


def test_every_frame_is_accounted_for(own: Run) -> None:
    chosen = [Sweep("a", ((0, 3),)), Sweep("b", ((2, 1), (4, 1)))]
    done = views(own.master, sweeps=chosen)
    account = done.account
    assert (account.frames, account.in_one, account.in_several, account.in_none) == (6, 3, 1, 2)
    assert (account.several, account.none) == ([(2, 1)], [(3, 1), (5, 1)])
    assert "2 frames are in no sweep: 3 5" in done.notes
    assert "1 frames are in several sweeps: 2" in done.notes
    with h5py.File(done.views[1].path) as file:
        stored = file["entry/process/parameters"]
        assert stored["ranges"][()].tolist() == [[2, 1], [4, 1]]
        assert stored["ranges_in_no_sweep"][()].tolist() == [[3, 1], [5, 1]]
        counts = [stored[f"frames_in_{n}_sweep{s}"][()] for n, s in (("one", ""), ("several", "s"), ("no", ""))]
        assert counts == [3, 1, 2]
        assert sum(counts) == stored["run_frames"][()]
        assert stored["run"][()] == b"master.nxs"


@pytest.mark.parametrize("seed", range(20))
def test_the_account_adds_up(seed: int) -> None:
    random = np.random.default_rng(seed)
    sweeps = [Sweep(str(k), ((int(random.integers(0, 40)), int(random.integers(1, 10))),)) for k in range(6)]
    found = account_for(sweeps, 50)
    assert found.in_one + found.in_several + found.in_none == 50
    members = [set(s.frames.tolist()) for s in sweeps]
    times = [sum(frame in m for m in members) for frame in range(50)]
    listed = [[f for first, n in ranges for f in range(first, first + n)] for ranges in (found.none, found.several)]
    assert listed == [[f for f, n in enumerate(times) if n == 0], [f for f, n in enumerate(times) if n > 1]]


@pytest.mark.parametrize(
    ("sweeps", "problem"),
    [
        ([Sweep("a", ((4, 3),))], "frames 4 to 6 of a run that has 0 to 5"),
        ([Sweep("a", ((-1, 3),))], "frames -1 to 1 of a run"),
        ([Sweep("a", ((0, 0),))], "frames 0 to -1"),
        ([Sweep("a", ((0, 2), (1, 1)))], "names frame 1 twice"),
        ([Sweep("a", ())], "has no frames"),
        ([Sweep("a", ((0, 1),)), Sweep("A", ((1, 1),))], "two sweeps called 'A'"),
        ([Sweep("../a", ((0, 1),))], "names are letters"),
        ([], "0 sweeps"),
    ],
)
def test_impossible_sweeps_are_refused(own: Run, sweeps: list[Sweep], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        views(own.master, sweeps=sweeps)


@pytest.mark.parametrize("request_", [{}, {"every": 2, "inverse_beam": 2}, {"every": 0}, {"inverse_beam": 0}])
def test_impossible_requests_are_refused(own: Run, request_: dict[str, int]) -> None:
    with pytest.raises(RequestError):
        views(own.master, **request_)
    with pytest.raises(RequestError, match="there is no B"):
        views(own.master, inverse_beam=6)


def test_a_sweep_without_a_single_word_has_no_view(tmp_path: Path, runs: Callable[[str], Run]) -> None:
    shutil.copytree(runs("virtual").master.parent, tmp_path / "all")
    done = views(tmp_path / "all" / "master.nxs", every=2)
    assert [v.name for v in done.views] == ["001", "002", "005", "006"]
    assert sum("there is not a single word" in n for n in done.notes) == 2
    assert done.account.in_one == 12


CSV = """\
# two samples on one arm, and a row of a grid
name, first, frames, ranges, omega_start, omega_step, sam_x
one,  0,     2,      ,       0,           0.1,        1.5
two,  ,      ,       2:3 5:6, 30,         0.2,        2.5
"""
TOML = """
[axes.omega]
vector = [-2, 0, 0]
[axes.sam_x]
vector = [1, 0, 0]
units = "mm"
[[sweep]]
name = "one"
first = 0
frames = 2
omega = { start = 0, step = 0.1 }
sam_x = 1.5
[[sweep]]
name = "two"
ranges = ["2:3", "5:6"]
omega_start = 30
omega_step = 0.2
sam_x = 2.5
"""


@pytest.mark.parametrize(("name", "text"), [("table.csv", CSV), ("table.toml", TOML)])
def test_a_table_names_frames_and_positions(own: Run, name: str, text: str) -> None:
    (own.master.parent / name).write_text(text)
    directions = {"omega": ABOUT_X, "sam_x": Direction((1, 0, 0), "mm")} if name.endswith("csv") else None
    one, two = views(own.master, sweeps=own.master.parent / name, directions=directions).views
    assert (one.ranges, two.ranges) == ([(0, 2)], [(2, 1), (5, 1)])
    np.testing.assert_allclose(axis(two.path, "omega"), [30, 30.2])
    np.testing.assert_allclose(axis(two.path, "sam_x"), [2.5, 2.5])
    with h5py.File(two.path) as file:
        assert file[f"{AXES}/omega"].attrs["vector"].tolist() == [-1, 0, 0]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("t.csv", "", "first line must name the columns"),
        ("t.csv", "first,frames\n0,1\n", "first line must name the columns"),
        ("t.csv", "name,first,first\na,0,1\n", "each once"),
        ("t.csv", "name,first,frames\na,0\n", "has 2 cells, the header 3"),
        ("t.csv", "name,first\na,0\n", "sweep a: needs either 'first' and 'frames', or 'ranges'"),
        ("t.csv", "name,ranges\na,5:2\n", "range 5:2"),
        ("t.csv", "name,ranges\na,5\n", "sweep a: "),
        ("t.csv", "name,ranges,omega_step\na,0:2,1\n", "axis omega needs a start"),
        ("t.csv", "name,ranges,omega\na,0:2,nan\n", "not finite"),
        ("t.csv", "name,ranges,omega\na,0:2,east\n", "sweep a: could not convert"),
        ("t.csv", "name,ranges,omega,omega_start\na,0:2,1,2\n", "axis omega is given twice"),
        ("t.csv", "name,first,frames\na,0,1.5\n", "sweep a: invalid literal"),
        ("t.toml", "sweep = 3\n", r"holds \[\[sweep\]\] tables"),
        ("t.toml", "[grid]\nrows = 3\n", r"not \[grid\]"),
        ("t.toml", "sweep = [\n", "is not TOML"),
        ("t.toml", "[[sweep]]\nfirst = 0\nframes = 1\n", "a sweep: needs a name"),
        ("t.toml", "[[sweep]]\nname = 'a'\nfirst = 0.5\nframes = 1\n", "whole numbers"),
        ("t.toml", "[[sweep]]\nname = 'a'\nranges = [1]\n", "ranges are texts"),
        ("t.toml", "[axes.omega]\nvector = [0, 0, 0]\n", "length 0"),
        ("t.toml", "[axes.omega]\nvector = [0, 0, 1]\nunits = 'parsec'\n", "unit 'parsec'"),
        ("t.toml", "[axes.omega]\nvectors = [0, 0, 1]\n", "has vector, and units"),
    ],
)
def test_a_bad_table_is_refused_by_name(own: Run, name: str, text: str, problem: str) -> None:
    path = own.master.parent / name
    path.write_text(text)
    with pytest.raises(FileError, match=problem) as error:
        views(own.master, sweeps=path)
    assert error.value.code == "bad-table"
    assert str(path) in str(error.value)


def test_a_table_that_is_no_text_or_not_there(own: Run) -> None:
    path = own.master.parent / "t.csv"
    for content, code in ((None, "not-found"), (b"\xff\xfe", "bad-text"), (b"a" * (5 << 20), "bad-table")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FileError) as error:
            views(own.master, sweeps=path)
        assert error.value.code == code


# --- trust ---------------------------------------------------------------------------------


@pytest.fixture
def viewed(own: Run) -> Path:
    """A view of a run that a test may change."""
    return views(own.master, every=3).views[1].path


def complaint(path: Path) -> FileError:
    with pytest.raises(FileError) as error:
        gaincal.open_calibrated(path)
    assert "\n" not in str(error.value)
    return error.value


def test_run_and_views_move_together(own: Run, viewed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = everything(viewed)
    there = tmp_path_factory.mktemp("there") / "moved"
    shutil.move(own.master.parent, there)
    after = everything(there / viewed.name)
    for name, values in after.items():
        same_bits(values, before[name])


def test_a_run_that_is_gone_is_named(own: Run, viewed: Path) -> None:
    own.master.rename(own.master.with_name("elsewhere.nxs"))
    error = complaint(viewed)
    assert error.code == "not-found"
    assert f"{viewed.resolve()}::{CALIBRATION}: is a view of master.nxs::{CALIBRATION}, which cannot be read" in str(
        error
    )
    (finding,) = validate(viewed)
    assert (finding.code, finding.severity) == ("not-found", "error")


def test_a_run_that_is_no_hdf5_any_more_is_named(own: Run, viewed: Path) -> None:
    own.master.write_bytes(b"gone")
    assert complaint(viewed).code == "not-hdf5"


def test_a_run_that_was_changed_since_is_named(own: Run, viewed: Path) -> None:
    pedestal, gain = make_constants(own.words.shape[1:], seed=5)
    constants = {"pedestal": pedestal, "gain": gain}
    embed(f"{own.raw}::/data", own.master, formula="jungfrau", constants=constants, overwrite=True)
    error = complaint(viewed)
    assert error.code == "checksum-differs"
    assert f"is a view of master.nxs::{CALIBRATION}, which holds another calibration since" in str(error)


@pytest.mark.parametrize("path", ["pedestal/pedestal", "steps/argument_1", "outputs/fill", "gain/stage"])
def test_what_was_changed_behind_the_checksum_of_the_run_is_found(own: Run, viewed: Path, path: str) -> None:
    with h5py.File(own.master, "r+") as file:
        field = file[f"{CALIBRATION}/{path}"]
        values = field[()]
        values.reshape(-1)[0] = b"adc" if values.dtype.kind == "S" else 7
        field[...] = values
    error = complaint(viewed)
    assert error.code == "checksum-differs"
    assert "master.nxs" in str(error)


@pytest.mark.parametrize("path", ["inputs/path", "given/photon_energy", "view_of/path"])
def test_what_was_changed_in_the_view_is_found(viewed: Path, path: str) -> None:
    with h5py.File(viewed, "r+") as file:
        field = file[f"{CALIBRATION}/{path}"]
        values = np.array(field[()])
        values.reshape(-1)[0] = b"/entry" if values.dtype.kind == "S" else 7
        field[...] = values
    assert complaint(viewed).code in ("checksum-differs", "not-found")


def test_a_view_elsewhere_needs_trust_and_says_so(own: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = views(own.master, elsewhere / "new", every=3)
    assert any(f"--trust-dir {own.master.parent.resolve()}" in n for n in done.notes)
    path = done.views[0].path
    error = complaint(path)
    assert isinstance(error, TrustError)
    assert error.code == "foreign-file"
    same_bits(gaincal.open_calibrated(path, trust=[own.master.parent]), everything(own.master)["energy"][:3])
    assert "view_of" in info(path, trust=[own.master.parent])


def relink(path: Path, name: str, link: Any) -> None:
    with h5py.File(path, "r+") as file:
        group = file[CALIBRATION]
        del group[name]
        group[name] = link


@pytest.mark.parametrize("name", ["pedestal", "steps", "view_of"])
def test_links_to_foreign_files_are_refused(
    own: Run, viewed: Path, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign = tmp_path_factory.mktemp("foreign") / "master.nxs"
    shutil.copy(own.master, foreign)
    relink(viewed, name, h5py.ExternalLink(str(foreign), f"{CALIBRATION}/{name}"))
    error = complaint(viewed)
    assert (type(error), error.code) == (TrustError, "foreign-file")


def test_links_in_a_circle_are_refused(own: Run, viewed: Path) -> None:
    relink(viewed, "pedestal", h5py.ExternalLink(viewed.name, f"{CALIBRATION}/pedestal"))
    assert complaint(viewed).code == "link-cycle"
    relink(own.master, "gain", h5py.ExternalLink(viewed.name, f"{CALIBRATION}/gain"))
    assert complaint(own.master).code == "link-cycle"


def test_a_run_that_became_a_view_of_its_view_is_refused(own: Run, viewed: Path) -> None:
    shutil.copy(viewed, own.master)
    assert complaint(viewed).code in ("link-cycle", "checksum-differs")
    assert complaint(own.master).code in ("link-cycle", "checksum-differs")


def test_a_view_that_says_half_of_which_run_is_refused(viewed: Path) -> None:
    with h5py.File(viewed, "r+") as file:
        del file[f"{CALIBRATION}/view_of/checksum"]
    assert complaint(viewed).code == "odd-layout"


def test_inputs_and_existing_files_are_safe(own: Run) -> None:
    shutil.copy(own.master, own.master.with_name("master_001.nxs"))
    with pytest.raises(OutputError, match="exists already"):
        views(own.master, every=3)
    assert not own.master.with_name("master_002.nxs").exists()
    views(own.master, every=3, overwrite=True)
    own.raw.replace(own.raw.with_name("master_001.nxs"))
    with h5py.File(own.master, "r+") as file:
        del file[f"{RAW}/data"]
        file[f"{RAW}/data"] = h5py.ExternalLink("master_001.nxs", "/data")
    with pytest.raises(RequestError, match="which is read"):
        views(own.master, every=3, overwrite=True)
    with pytest.raises(OutputError, match="cannot be made"):
        views(own.master, own.master.parent / "no" / "such", every=3)


def test_nothing_stays_of_views_that_could_not_all_be_written(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    of_parts = Words.of_parts

    def failing(*arguments: Any) -> Words:
        made.append(1)
        if len(made) == 3:
            raise OSError(28, "No space left on device")
        return of_parts(*arguments)

    monkeypatch.setattr(Words, "of_parts", failing)
    with pytest.raises(OutputError, match="No space left"):
        views(own.master, every=2)
    assert not list(own.master.parent.glob("master_*"))


# --- what follows a view -------------------------------------------------------------------


def test_apply_writes_the_frames_of_a_view(embedded: Embedded, tmp_path: Path) -> None:
    master = embedded()
    view = views(master, inverse_beam=WEDGE).views[0]
    done = gaincal.apply(view.path, tmp_path / "counts.nxs", output="counts", frames=(2, 9))
    frames = Sweep("A", tuple(view.ranges)).frames[2:9]
    with h5py.File(done.path) as file, gaincal.open_calibrated(master, "counts") as run:
        same_bits(file["entry/data/data"][()], np.asarray(run)[frames])
        np.testing.assert_array_equal(file["entry/data/run_frame"], frames)
        np.testing.assert_array_equal(file[f"{AXES}/omega"], 10 + STEP * np.arange(2, 9))
        assert sorted(n for n in file["entry"] if n.startswith("process")) == ["process", "process_2"]
        assert file["entry/process_2/parameters/master"][()] == view.path.name.encode()


# As in test_scatter: what clusters leave behind when they are closed.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_apply_on_a_cluster_gives_the_same(own: Run, viewed: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from gaincal.scatter import apply_on, connected

    plain = gaincal.apply(viewed, tmp_path / "plain.nxs", output="counts")
    with connected("local", 1) as client:
        done = apply_on(client, viewed, tmp_path / "parts.nxs", output="counts")
    assert done.flags == plain.flags
    with h5py.File(done.path) as parts, h5py.File(plain.path) as whole:
        same_bits(parts["entry/data/data"][()], whole["entry/data/data"][()])


def test_info_and_validate_name_the_run(own: Run, viewed: Path) -> None:
    found = info(viewed)
    assert found["view_of"] == str(own.master.resolve())
    assert found["ids"]["run_frame"] == [3, 5]
    assert found["ids"]["pulse_id"] == [FIRST_PULSE + 12, FIRST_PULSE + 20]
    assert found["inputs"]["photon_energy"] == PHOTON_ENERGY
    assert info(own.master)["view_of"] is None
    assert {f.code for f in validate(viewed)} == {f.code for f in validate(own.master)}
    shown = CliRunner().invoke(main, ["info", str(viewed)])
    assert f"a view of   {own.master.resolve()}" in shown.output


def test_the_command_says_what_it_made(own: Run) -> None:
    arguments = ["views", str(own.master), "--inverse-beam", "2", "--axis", "omega=0:0.1", "--vector", "omega=-1,0,0"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "6 frames, 2 views" in done.output
    assert "0-1 4-5  omega 0 to 0.3 deg" in done.output
    assert "2-3  omega 180 to 180.1 deg" in done.output
    assert "6 frames: 6 in one sweep, 0 in several, 0 in none" in done.output
    as_json = CliRunner().invoke(main, [*arguments, "--overwrite", "--json"])
    found = json.loads(as_json.stdout)
    assert [v["ranges"] for v in found["views"]] == [[[0, 2], [4, 2]], [[2, 2]]]
    assert found["account"]["in_one"] == 6


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (["--axis", "omega=east"], "--axis omega=east"),
        (["--axis", "omega"], "write NAME=VALUE"),
        (["--vector", "omega=1,2"], "three numbers"),
        (["--vector", "omega=1,0,0,furlong"], "unit 'furlong'"),
    ],
)
def test_options_that_cannot_be_read_are_refused(own: Run, option: list[str], problem: str) -> None:
    done = CliRunner().invoke(main, ["views", str(own.master), "--every", "2", *option])
    assert done.exit_code == 2
    assert problem in done.output


def test_one_calibration_of_several(own: Run, tmp_path: Path) -> None:
    pedestal, gain = make_constants(own.words.shape[1:])
    constants = {"pedestal": pedestal, "gain": gain}
    with pytest.raises(GaincalError):
        views(own.master, every=2, calibration="other")
    both = tmp_path / "both.h5"
    with h5py.File(own.raw) as source, h5py.File(both, "w") as file:
        file.create_dataset("data", data=source["data"][()])
    for formula in ("jungfrau", "jungfrau_hg0"):
        given = constants if formula == "jungfrau" else {n: np.concatenate([v, v[:1]]) for n, v in constants.items()}
        np.save(tmp_path / "high.npy", np.zeros(6, np.uint8))
        inputs = {} if formula == "jungfrau" else {"high_gain": tmp_path / "high.npy"}
        raw = f"{both}::/data" if formula == "jungfrau" else f"{both}::{RAW}/data"
        embed(raw, formula=formula, constants=given, inputs=inputs, in_place=True)
    done = views(both, every=3, calibration="jungfrau_hg0")
    with h5py.File(done.views[0].path) as file:
        assert list(file["entry/instrument/detector/calibration"]) == ["jungfrau_hg0"]


# --- other programs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Views of a run with all metadata and stated positions, and their counts."""
    directory = tmp_path_factory.mktemp("demo")
    pedestal, gain = make_constants(PIXELS)
    write_raw(directory / "raw.h5", make_words((6, *PIXELS)))
    constants = {"pedestal": pedestal, "gain": gain}
    embed(directory / "raw.h5", directory / "master.nxs", formula="jungfrau", constants=constants, settings=SETTINGS)
    views(directory / "master.nxs", inverse_beam=2, **STATED)
    for name in "AB":
        gaincal.apply(directory / f"master_{name}.nxs", directory / f"counts_{name}.nxs", output="counts")
    return directory


@pytest.mark.parametrize("name", ["master_A.nxs", "counts_A.nxs"])
def test_pynxtools_and_nexusformat_find_no_error_of_ours(demo_views: Path, name: str) -> None:
    pytest.importorskip("pynxtools")
    pytest.importorskip("nexusformat")
    import re

    from test_third_party import KNOWN_NXCHECK, KNOWN_NXVALIDATE, KNOWN_PYNXTOOLS, NEXUSFORMAT, PYNXTOOLS, unknown

    for code, known in (
        (PYNXTOOLS, KNOWN_PYNXTOOLS),
        (NEXUSFORMAT.format(function="validate_file", level="WARNING"), KNOWN_NXCHECK),
        (NEXUSFORMAT.format(function="validate_application", level="WARNING"), KNOWN_NXVALIDATE),
    ):
        done = subprocess.run(
            [sys.executable, "-c", dedent(code), name],
            cwd=demo_views,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        lines = [str(line) for line in json.loads(done.stdout.splitlines()[-1])]
        if code is not PYNXTOOLS:
            pattern = r"invalid|not defined|not in the|must|should|missing|error"
            lines = [line for line in lines if re.search(pattern, line, re.I) and not line.startswith("Total number")]
        assert unknown(lines, known) == [], name


@pytest.mark.parametrize(("name", "start"), [("counts_A.nxs", 10.0), ("counts_B.nxs", 190.0), ("master_A.nxs", 10.0)])
def test_nxmx_walks_the_goniometer(demo_views: Path, name: str, start: float) -> None:
    nxmx = pytest.importorskip("nxmx")
    with h5py.File(demo_views / name) as file:
        (entry,) = nxmx.NXmx(file).entries
        (omega,) = nxmx.get_dependency_chain(entry.samples[0].depends_on)
        assert omega.transformation_type == "rotation"
        positions = omega[()].to("degree").magnitude
        np.testing.assert_allclose(positions, start + STEP * np.arange(4 if "A" in name else 2))
        np.testing.assert_allclose(omega.end[()].to("degree").magnitude, positions + STEP)
        np.testing.assert_allclose(omega.increment_set.to("degree").magnitude, STEP)


READ = """
import h5py, json, sys
with h5py.File("master_A.nxs", "r") as file:
    group = file["entry/instrument/detector"]
    print(json.dumps([h5py.version.hdf5_version, group["raw/data"][2:4].sum().item(),
                      group["calibration/jungfrau/pedestal/pedestal"].shape]))
"""


def test_hdf5_1_10_reads_views(demo_views: Path) -> None:
    python = Path("/usr/bin/python3")
    if (
        not python.exists()
        or subprocess.run([python, "-c", "import h5py"], check=False, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("the system's Python has no h5py (Debian: python3-h5py, on HDF5 1.10)")
    done = subprocess.run(
        [python, "-c", READ],
        cwd=demo_views,
        capture_output=True,
        text=True,
        check=True,
    )
    version, total, shape = json.loads(done.stdout)
    with h5py.File(demo_views / "raw.h5") as raw:
        frames = raw["data"][4:6]
    assert total == int(frames.sum()), version
    assert shape == [3, *PIXELS]


def test_dials_imports_each_view_as_a_sweep(demo_views: Path, tmp_path: Path) -> None:
    dials = shutil.which("dials.import")
    if dials is None:
        pytest.skip("dials.import is not installed (Debian: dials)")
    files = [str(demo_views / f"counts_{name}.nxs") for name in "AB"]
    subprocess.run([dials, *files, "output.experiments=found.expt"], cwd=tmp_path, capture_output=True, check=True)
    found = json.loads((tmp_path / "found.expt").read_text())
    scans = [(s["image_range"], s["oscillation"]) for s in found["scan"]]
    assert sorted(scans) == [([1, 2], [190.0, STEP]), ([1, 4], [10.0, STEP])]
    # NeXus's x is DIALS's, turned round with the beam.
    assert all(np.allclose(g["rotation_axis"], [1, 0, 0]) for g in found["goniometer"])
