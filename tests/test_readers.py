"""Files for DIALS, XDS and CrystFEL: what is in them is what these programs accept, and nothing else is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import crystal
import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from conftest import PHOTON_ENERGY, Run, detector_formula, make_words
from contract import same_bits

from gaincal.cli import main
from gaincal.errors import FileError, OutputError, RequestError
from gaincal.geometry.crystfel import read_geom
from gaincal.nexus.names import KEV_ANGSTROM
from gaincal.nexus.readers import READERS, SENTINEL
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed
from gaincal.verbs.geometry import load

Array = npt.NDArray[Any]
FRAMES, MODULES, ROWS, COLUMNS = 4, 3, 6, 8
STACK, SLAB = (MODULES, ROWS, COLUMNS), (MODULES * ROWS, COLUMNS)
DETECTOR = "/entry/instrument/detector"
LOST = (2, 1)
"""Frame and module that have no words."""
BAD = {"low": 1 << 4, "high": 1 << 31}
FLAGGED = {"int32": -(2**31), "int16": -(2**15)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master over the words of three modules, one of which lost a frame, with a goniometer and a mask."""
    folder = tmp_path_factory.mktemp("stack")
    words = make_words((FRAMES, *STACK))
    layout = h5py.VirtualLayout(words.shape, np.uint16)
    with h5py.File(folder / "words.h5", "w") as file:
        for module in range(MODULES):
            file.create_dataset(f"m{module}", data=words[:, module], chunks=(1, ROWS, COLUMNS), fletcher32=True)
            source = h5py.VirtualSource("words.h5", f"m{module}", (FRAMES, ROWS, COLUMNS))
            for frame in range(FRAMES):
                if (frame, module) != LOST:
                    layout[frame, module] = source[frame]
    with h5py.File(folder / "raw.nxs", "w") as file:
        crystal.write_metadata(file, STACK, crystal.Scan(0, 0.1, FRAMES).angles, 0.1)
        file["/entry"].create_group("data").attrs["NX_class"] = "NXdata"
        file.create_virtual_dataset("/entry/data/data", layout)
    mask = np.zeros(STACK, np.uint32)
    mask[1, 2, 3], mask[2, 3, 4] = BAD["low"], BAD["high"]
    np.save(folder / "mask.npy", mask)
    level = np.array([3000.0, 14_500, 14_200]).reshape(3, 1, 1, 1)
    gain = np.array([41.0, -1.44, -0.1145]).reshape(3, 1, 1, 1)
    embed(
        f"{folder / 'raw.nxs'}::/entry/data/data",
        folder / "master.nxs",
        formula=detector_formula("modules"),
        constants={"pedestal": np.broadcast_to(level, (3, *STACK)), "gain": np.broadcast_to(gain, (3, *STACK))},
        settings={"photon_energy": PHOTON_ENERGY},
        mask=folder / "mask.npy",
    )
    return folder / "master.nxs"


def target(tmp_path: Path, reader: str) -> Path:
    return tmp_path / f"out{'_master.h5' if reader == 'xds' else '.nxs'}"


def contents(path: Path, place: str) -> Any:
    with h5py.File(path) as file:
        return file[place][()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("dtype", ["int32", "int16"])
@pytest.mark.parametrize("reader", READERS)
def test_counts_are_those_of_apply_with_modules_below_each_other(
    stack: Path, tmp_path: Path, reader: str, dtype: str
) -> None:
    apply(stack, tmp_path / "plain.nxs", output="counts", dtype=dtype)
    done = apply(stack, target(tmp_path, reader), dtype=dtype, reader=reader)
    found = contents(done.path, "/entry/data/data")
    same_bits(found, contents(tmp_path / "plain.nxs", "/entry/data/data").reshape(FRAMES, *SLAB))
    frame, module = LOST
    lost = found[frame, module * ROWS : (module + 1) * ROWS]
    assert np.unique(lost).tolist() == [FLAGGED[dtype]]
    assert done.flags["missing"] == lost.size
    with h5py.File(done.path) as file:
        assert file["/entry/data/data"].chunks == (1, *SLAB)
        for number in range(MODULES):
            assert file[f"{DETECTOR}/module_{number}/data_origin"][()].tolist() == [number * ROWS, 0]
            assert file[f"{DETECTOR}/module_{number}/data_size"][()].tolist() == [ROWS, COLUMNS]
        assert file[f"{DETECTOR}/underload_value"][()] == FLAGGED[dtype] + 1
        assert file[f"{DETECTOR}/saturation_value"][()] == -FLAGGED[dtype] - 2
        assert ("bit_depth_readout" in file[DETECTOR]) == (reader == "xds")


@pytest.mark.parametrize("reader", READERS)
def test_the_mask_has_just_what_makes_a_pixel_bad(stack: Path, tmp_path: Path, reader: str) -> None:
    """Readers take a pixel for bad whatever bit is set, and some of them read bit 31 as all bits."""
    done = apply(stack, target(tmp_path, reader), reader=reader)
    mask, values = contents(done.path, f"{DETECTOR}/pixel_mask"), contents(done.path, "/entry/data/data")
    assert (mask.shape, mask.dtype) == (SLAB, np.uint32)
    assert mask[ROWS + 2, 3] & BAD["low"]
    assert not (mask & np.uint32(0xFFFF0000)).any()
    assert (values[:, mask != 0] == FLAGGED["int32"]).all()
    assert mask[2 * ROWS + 3, 4] == 0
    some = apply(stack, tmp_path / f"some{done.path.name[3:]}", reader=reader, reasons=["dead", "saturated"])
    counted = contents(some.path, f"{DETECTOR}/pixel_mask")
    assert counted[ROWS + 2, 3] == 0
    values = contents(some.path, "/entry/data/data")
    assert (values[:, counted != 0] == FLAGGED["int32"]).all()


def test_there_is_one_detector_and_one_set_of_data(stack: Path, tmp_path: Path) -> None:
    """Programs take the first of each, or the last."""
    own = shutil.copytree(stack.parent, tmp_path / "own") / stack.name
    with h5py.File(own, "r+") as file:
        for path, nx_class in (("a_picture", "NXdata"), ("z_plot", "NXdata"), ("instrument/a_diode", "NXdetector")):
            file["entry"].create_group(path).attrs["NX_class"] = nx_class
    apply(own, tmp_path / "out.nxs", reader="dials")
    with h5py.File(tmp_path / "out.nxs") as file:
        classes = list[str]()
        file.visititems(lambda _, item: classes.append(str(item.attrs.get("NX_class"))))
        assert classes.count("NXdata") == classes.count("NXdetector") == 1
        assert "transformations" in file[DETECTOR]


def test_errors_lie_as_the_values_do(stack: Path, tmp_path: Path) -> None:
    done = apply(stack, tmp_path / "energy.h5", output="energy", reader="crystfel", errors=True)
    assert contents(done.path, "/entry/data/data_errors").shape == (FRAMES, *SLAB)


def test_frames_of_one_module_stay_as_they_are(plain: Run, tmp_path: Path) -> None:
    done = apply(plain.master, tmp_path / "one.h5", reader="crystfel")
    same_bits(contents(done.path, "/entry/data/data"), plain.expected("counts", "int32")[0])


# --- XDS -----------------------------------------------------------------------------------


def test_text_for_xds_has_a_fixed_length_and_ends_with_nul(stack: Path, tmp_path: Path) -> None:
    found: dict[str, list[str]] = {"NX_class": [], "units": []}

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        for attribute, places in found.items():
            if attribute in item.attrs:
                kind = h5py.h5a.open(item.id, attribute.encode()).get_type()
                assert not kind.is_variable_str(), name
                assert (kind.get_cset(), kind.get_strpad()) == (h5py.h5t.CSET_ASCII, h5py.h5t.STR_NULLTERM), name
                assert kind.get_size() == len(item.attrs[attribute]) + 1, name
                places.append(name)

    apply(stack, tmp_path / "run_master.h5", reader="xds")
    with h5py.File(tmp_path / "run_master.h5") as file:
        file.visititems(look)
        assert file["entry/instrument/detector"].attrs["NX_class"] == b"NXdetector"
        assert file["entry/instrument/detector/x_pixel_size"].attrs["units"] == b"m"
    assert {"entry", "entry/data", "entry/process/parameters"} <= set(found["NX_class"])
    assert "entry/data/data" in found["units"]


def test_xds_is_told_where_the_file_is(stack: Path, tmp_path: Path) -> None:
    done = apply(stack, tmp_path / "run_master.h5", reader="xds", frames=(1, 4))
    assert done.settings == tmp_path / "run_master.XDS.INP"
    lines = done.settings.read_text().splitlines()
    assert f"NAME_TEMPLATE_OF_DATA_FRAMES= {tmp_path}/run_??????.h5" in lines
    assert {"DATA_RANGE= 1 3", f"NX= {COLUMNS}  NY= {MODULES * ROWS}", "OVERLOAD= 2147483646"} <= set(lines)


def test_a_name_that_xds_does_not_find_is_refused(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"XDS looks for files whose names end in _master\.h5: rename run\.nxs"):
        apply(stack, tmp_path / "run.nxs", reader="xds")
    assert list(tmp_path.iterdir()) == []


# --- CrystFEL ------------------------------------------------------------------------------


def geometry(path: Path | None) -> dict[str, str]:
    assert path is not None
    lines = [line.split(";")[0] for line in path.read_text().splitlines()]
    return dict(map(str.strip, line.split("=", 1)) for line in lines if "=" in line)  # type: ignore[misc]


@pytest.mark.parametrize(("output", "dtype"), [(None, "int32"), (None, "int16"), ("energy", "float32")])
def test_crystfel_tells_flagged_pixels_from_all_others(
    stack: Path, tmp_path: Path, output: str | None, dtype: str
) -> None:
    done = apply(stack, tmp_path / "run.h5", output=output, dtype=dtype, reader="crystfel")
    stated, values = geometry(done.settings), contents(done.path, "/entry/data/data")
    assert done.settings == tmp_path / "run.geom"
    assert np.isfinite(values).all()
    # As CrystFEL computes: text to float, to int, and back; pixels are floats.
    limit = np.float32(int(np.float32(stated["flag_lessthan"])))
    fill = FLAGGED.get(dtype, SENTINEL)
    assert np.float32(fill) < limit
    np.testing.assert_array_equal(values.astype(np.float32) < limit, values == fill)


def test_crystfel_is_told_where_things_lie(stack: Path, tmp_path: Path) -> None:
    stated = geometry(apply(stack, tmp_path / "run.h5", reader="crystfel").settings)
    with h5py.File(tmp_path / "run.h5") as file:
        assert file[stated["data"]].shape == (FRAMES, *SLAB)
        assert file[stated["mask"]].shape == SLAB
    assert [stated[f"dim{n}"] for n in range(3)] == ["%", "ss", "fs"]
    assert stated["photon_energy"] == "12400"
    assert stated["adu_per_photon"] == "1"
    energy = geometry(apply(stack, tmp_path / "keV.h5", output="energy", reader="crystfel").settings)
    assert energy["adu_per_eV"] == "0.001"
    assert int(stated["mask_good"], 16) == 0
    assert int(stated["mask_bad"], 16) == 0xFFFF


@pytest.mark.parametrize("output", [None, "energy"])
def test_crystfel_gets_the_panels_of_the_master(stack: Path, tmp_path: Path, output: str | None) -> None:
    done = apply(stack, tmp_path / "run.h5", output=output, reader="crystfel")
    positions, found = load(stack)[0].positions(), read_geom(done.settings)
    assert found.pixels == SLAB
    np.testing.assert_allclose(found.positions(), positions.reshape(*SLAB, 3), atol=1e-12, rtol=0)


def test_other_readers_of_geom_put_the_pixels_in_the_same_places(stack: Path, tmp_path: Path) -> None:
    utils = pytest.importorskip("cfelpyutils.geometry")
    done = apply(stack, tmp_path / "run.h5", reader="crystfel")
    theirs = utils.load_crystfel_geometry(str(done.settings))
    assert theirs.beam["photon_energy"] == 12400
    positions = load(stack)[0].positions()
    for module in range(MODULES):
        panel = theirs.detector["panels"][f"module_{module}"]
        assert panel["dim_structure"] == ["%", "ss", "fs"]
        assert panel["mask"] == "/entry/instrument/detector/pixel_mask"
        assert (panel["orig_min_ss"], panel["orig_max_ss"]) == (module * ROWS, (module + 1) * ROWS - 1)
        rows, columns = np.indices((ROWS, COLUMNS)) + 0.5
        for k, axis in enumerate("xy"):
            wanted = panel[f"cn{axis}"] + columns * panel[f"fs{axis}"] + rows * panel[f"ss{axis}"]
            np.testing.assert_allclose(positions[module, ..., k], wanted / panel["res"], atol=1e-12, rtol=0)


def test_crystfel_is_told_why_there_are_no_panels(plain: Run, stack: Path, tmp_path: Path) -> None:
    text = apply(plain.master, tmp_path / "run.h5", reader="crystfel").settings.read_text()  # type: ignore[union-attr]
    assert text.endswith(
        "dim0 = %\ndim1 = ss\ndim2 = fs\n; Add the panels: nobody stated where those of master.nxs are\n"
    )
    shutil.copytree(stack.parent, tmp_path / "odd")
    with h5py.File(tmp_path / "odd" / "master.nxs", "r+") as file:
        file[f"{DETECTOR}/module_1/fast_pixel_direction"].attrs["units"] = "furlong"
    done = apply(tmp_path / "odd" / "master.nxs", tmp_path / "odd.h5", reader="crystfel")
    last = done.settings.read_text().splitlines()[-1]  # type: ignore[union-attr]
    assert re.match(r"; Add the panels: .*module_1/fast_pixel_direction.*furlong", last)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"reader": "shelx"}, "nothing is known of 'shelx'; there are dials, xds, crystfel"),
        ({"reader": "dials", "output": "energy"}, "DIALS takes int32 or int16; energy is float32"),
        ({"reader": "xds", "output": "photons"}, "XDS takes int32 or int16; photons is float32"),
        ({"reader": "dials", "flagged": 0}, "the value of flagged pixels follows from DIALS"),
    ],
)
def test_what_a_program_would_misread_is_refused(
    stack: Path, tmp_path: Path, asked: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError, match=problem):
        apply(stack, tmp_path / "out_master.h5", **asked)
    assert list(tmp_path.iterdir()) == []


def test_strips_are_refused(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"DIALS takes images; frames of .* are strips"):
        apply(runs("strip").master, tmp_path / "out.nxs", reader="dials")


def test_a_formula_without_counts_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("data", data=np.ones((2, 4, 4), np.uint16), chunks=(1, 4, 4), fletcher32=True)
    maps = {"offset": np.zeros((4, 4)), "scaling_factor": np.ones((4, 4))}
    embed(f"{tmp_path / 'raw.h5'}::/data", tmp_path / "m.nxs", formula="linear", constants=maps)
    with pytest.raises(RequestError, match="formula 'linear' counts no photons: choose an output of value"):
        apply(tmp_path / "m.nxs", reader="crystfel")


@pytest.mark.parametrize(
    ("reader", "problem"),
    [
        ("dials", "DIALS cannot do without sensor_material, sensor_thickness, geometry"),
        ("xds", "XDS cannot do without pixel_size"),
    ],
)
def test_what_a_program_cannot_do_without_is_named(plain: Run, tmp_path: Path, reader: str, problem: str) -> None:
    with pytest.raises(FileError, match=problem) as caught:
        apply(plain.master, target(tmp_path, reader), reader=reader)
    assert caught.value.code == "no-metadata"
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_lies_across_two_is_refused(stack: Path, tmp_path: Path) -> None:
    raw = f"{stack.parent / 'raw.nxs'}::/entry/data/data"
    maps = {name: np.ones((3, *STACK)) for name in ("pedestal", "gain")}
    embed(raw, tmp_path / "m.nxs", formula=detector_formula("modules"), constants=maps, trust=[stack.parent])
    with h5py.File(tmp_path / "m.nxs", "r+") as file:
        file[f"{DETECTOR}/module_1/data_size"][()] = [2, ROWS, COLUMNS]
    with pytest.raises(FileError, match=r"module_1: lies at \[1, 0, 0\], size \[2, 6, 8\]: not in one image"):
        apply(tmp_path / "m.nxs", tmp_path / "out.nxs", reader="dials", trust=[stack.parent])
    assert not (tmp_path / "out.nxs").exists()


def test_settings_that_are_there_are_not_replaced_unasked(plain: Run, tmp_path: Path) -> None:
    (tmp_path / "run.geom").write_text("mine")
    with pytest.raises(OutputError, match=r"run\.geom: exists already"):
        apply(plain.master, tmp_path / "run.h5", reader="crystfel")
    assert not (tmp_path / "run.h5").exists()
    apply(plain.master, tmp_path / "run.h5", reader="crystfel", overwrite=True)
    assert "dim0" in (tmp_path / "run.geom").read_text()


# --- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "name"),
    [("dials", "master_dials.nxs"), ("xds", "master_xds_master.h5"), ("crystfel", "master_crystfel.h5")],
)
def test_names_that_nobody_chose(stack: Path, reader: str, name: str) -> None:
    done = run("apply", stack, "--for", reader, "--overwrite", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(stack.with_name(name))
    told = run("apply", stack, "--for", reader, "--overwrite")
    assert ("what to tell the program" in told.output) == bool(READERS[reader].settings)


def test_an_energy_that_is_replaced_is_told(stack: Path, tmp_path: Path) -> None:
    done = run("apply", stack, "--for", "crystfel", "-o", tmp_path / "r.h5", "--set", "photon_energy=6.2")
    assert done.exit_code == 0, done.output
    assert geometry(tmp_path / "r.geom")["photon_energy"] == "6200"
    wavelength = contents(tmp_path / "r.h5", "/entry/instrument/beam/incident_wavelength")
    assert wavelength == pytest.approx(KEV_ANGSTROM / 6.2)
