"""Masters: what goes in comes out, the words stay as they are, and whatever does not fit is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import numpy.typing as npt
import pytest
from conftest import (
    BITSHUFFLE,
    PHOTON_ENERGY,
    Run,
    build_run,
    build_virtual_run,
    detector_formula,
    make_constants,
    make_words,
    write_raw,
)
from contract import same_bits
from independent_reader import read

from gaincal.errors import BindError, FileError, FormulaError, OutputError, RequestError, TrustError
from gaincal.formulas.catalog import source
from gaincal.formulas.formula import Formula
from gaincal.lazy import open_calibrated, open_calibrated_dataset
from gaincal.verbs.embed import Embedded, embed
from gaincal.verbs.inspect import info, stored_formula, validate

Array = npt.NDArray[Any]
PIXELS = (8, 16)
SHAPE = (4, *PIXELS)
PEDESTAL, GAIN = make_constants(PIXELS)
CALIBRATION = "/entry/instrument/detector/calibration/jungfrau"
KEV_ANGSTROM = 12.398419843320026


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw.h5", make_words(SHAPE))
    return tmp_path / "raw.h5"


@pytest.fixture
def master(tmp_path: Path) -> Path:
    return tmp_path / "master.nxs"


def made(raw: object, master: Path | None, **options: Any) -> Embedded:
    defaults: dict[str, Any] = {"formula": "jungfrau", "constants": {"pedestal": PEDESTAL, "gain": GAIN}}
    return embed(str(raw), master, **(defaults | options))


def values(path: Path, output: str = "energy", **options: Any) -> Array:
    return np.asarray(open_calibrated(path, output, **options))


def nexus_raw(
    path: Path, *, image: str = "entry/data/data", beam: Mapping[str, tuple[Any, str]] | None = None
) -> Array:
    """An NXmx file whose raw words are its image."""
    words = make_words(SHAPE)
    with h5py.File(path, "w") as file:
        for group, nx_class in (
            ("entry", "NXentry"),
            ("entry/data", "NXdata"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/beam", "NXbeam"),
            ("entry/instrument/detector", "NXdetector"),
        ):
            file.create_group(group).attrs["NX_class"] = nx_class
        file["entry/definition"] = "NXmx"
        file.create_dataset(image, data=words, chunks=(1, *PIXELS), **BITSHUFFLE)
        file["entry/data"].attrs["signal"] = "data"
        file.attrs["default"], file["entry"].attrs["default"] = "entry", "data"
        for name, (value, units) in (beam or {}).items():
            file.create_dataset(f"entry/instrument/beam/{name}", data=value).attrs["units"] = units
    return words


def stored_energy(path: Path) -> Any:
    return info(path)["inputs"]["photon_energy"]


# --- where the words are -------------------------------------------------------------------


def test_the_link_to_the_words_is_relative(raw: Path, master: Path) -> None:
    made(raw, master)
    with h5py.File(master) as file:
        link = file["/entry/instrument/detector/raw"].get("data", getlink=True)
    assert isinstance(link, h5py.ExternalLink)
    assert (link.filename, link.path) == ("raw.h5", "/data")


def test_words_below_the_master_are_linked_and_move_along(tmp_path: Path) -> None:
    (tmp_path / "run" / "words").mkdir(parents=True)
    write_raw(tmp_path / "run" / "words" / "raw.h5", make_words(SHAPE))
    done = made(tmp_path / "run" / "words" / "raw.h5", tmp_path / "run" / "master.nxs")
    before = values(done.path)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    same_bits(values(tmp_path / "elsewhere" / "master.nxs"), before)


def test_a_master_reached_by_a_symbolic_link_finds_its_words(raw: Path, master: Path, tmp_path: Path) -> None:
    made(raw, master)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link.nxs").symlink_to(master)
    same_bits(values(tmp_path / "far" / "link.nxs"), values(master))


def test_words_in_another_tree_are_noted_and_need_trust(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "calibrated").mkdir()
    done = made(raw, tmp_path / "calibrated" / "master.nxs")
    assert any(f"--trust-dir {tmp_path}" in note for note in done.notes)
    with pytest.raises(TrustError) as caught:
        open_calibrated(done.path)
    assert caught.value.code == "foreign-file"
    assert values(done.path, trust=[tmp_path]).shape == SHAPE


def test_words_beside_the_master_need_no_note(raw: Path, master: Path) -> None:
    assert not any("trust" in note for note in made(raw, master).notes)


def test_copied_words_make_the_master_stand_alone(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    made(raw, tmp_path / "linked.nxs")
    before = values(tmp_path / "linked.nxs")
    done = made(raw, tmp_path / "alone" / "master.nxs", copy_raw=True)
    raw.unlink()
    same_bits(values(done.path), before)
    assert not any("trust" in note for note in done.notes)


@pytest.mark.parametrize(
    "storage",
    [
        {"chunks": (2, 4, 5), **BITSHUFFLE},
        {"chunks": (1, 8, 16), **BITSHUFFLE},
        {"compression": "gzip"},
        {"chunks": None},
    ],
)
def test_copied_words_are_stored_as_they_were(tmp_path: Path, master: Path, storage: dict[str, Any]) -> None:
    write_raw(tmp_path / "raw.h5", make_words(SHAPE), **storage)
    made(tmp_path / "raw.h5", master, copy_raw=True)
    with h5py.File(tmp_path / "raw.h5") as before, h5py.File(master) as after:
        old, new = before["data"], after["/entry/instrument/detector/raw/data"]
        assert (old.chunks, old.id.get_storage_size()) == (new.chunks, new.id.get_storage_size())
        same_bits(new[()], old[()])


def test_virtual_words_are_not_copied(tmp_path: Path) -> None:
    run = build_virtual_run(tmp_path, (12, *PIXELS))
    with pytest.raises(FileError, match="virtual") as caught:
        made(run.raw, tmp_path / "copy.nxs", copy_raw=True)
    assert caught.value.code == "virtual"
    assert not (tmp_path / "copy.nxs").exists()


# --- in place ------------------------------------------------------------------------------


def raw_addresses(file: h5py.File) -> set[int]:
    return {h5py.h5o.get_info(file["/entry/instrument/detector/raw/data"].id).addr}


def offered(file: h5py.File) -> list[str]:
    """NXdata groups of the entry that show the raw words, as their signal or under any name."""
    found = []
    for group in file["/entry"].values():
        if not isinstance(group, h5py.Group) or group.attrs.get("NX_class") != "NXdata":
            continue
        shown = [group[name] for name in group if isinstance(group.get(name), h5py.Dataset)]
        found += [d.name for d in shown if h5py.h5o.get_info(d.id).addr in raw_addresses(file)]
    return found


@pytest.mark.parametrize("frames", [SHAPE[0] - 1, SHAPE[0] + 1])
def test_ids_of_another_raw_file_are_not_passed_over(frames: int, raw: Path, master: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["pulse"] = np.arange(SHAPE[0])
    made(raw, master, ids={"pulse_id": f"{tmp_path / 'ids.h5'}::/pulse"})
    with h5py.File(raw, "r+") as file:
        words = file["data"][()]
        del file["data"]
        file["data"] = np.resize(words, (frames, *words.shape[1:]))
    with pytest.raises(FileError, match=f"pulse_id: has {SHAPE[0]} values, the words have {frames} frames"):
        open_calibrated(master)
    assert [f.code for f in validate(master)] == ["wrong-shape"]


def test_a_plain_file_becomes_a_master_in_place(raw: Path) -> None:
    with h5py.File(raw) as file:
        words = file["data"][()]
    done = made(raw, None, in_place=True)
    assert done.path == raw
    with h5py.File(raw) as file:
        same_bits(file["data"][()], words)
        same_bits(file["/entry/instrument/detector/raw/data"][()], words)
        assert offered(file) == []
    assert values(raw).shape == SHAPE
    assert [f.code for f in validate(raw) if f.severity == "error"] == []


@pytest.mark.parametrize("image", ["entry/data/data", "entry/instrument/detector/data"])
def test_no_image_offers_raw_words_after_in_place(tmp_path: Path, image: str) -> None:
    path = tmp_path / "run.nxs"
    words = nexus_raw(path, image=image)
    if image != "entry/data/data":
        with h5py.File(path, "r+") as file:
            file["entry/data/data"] = h5py.SoftLink(f"/{image}")
    made(f"{path}::/{image}", None, in_place=True)
    with h5py.File(path) as file:
        same_bits(file["/entry/instrument/detector/raw/data"][()], words)
        assert offered(file) == []
        data = file["/entry"][file["/entry"].attrs["default"]]
        assert data[data.attrs["signal"]].shape == PIXELS
    assert "raw-as-image" not in [f.code for f in validate(path)]
    assert values(path).shape == SHAPE


def test_a_raw_image_is_reported_where_a_link_leaves_it(tmp_path: Path, master: Path) -> None:
    nexus_raw(tmp_path / "run.nxs")
    made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master)
    with h5py.File(master) as file:
        assert offered(file) == []


def test_a_failure_in_place_leaves_the_file_untouched(raw: Path) -> None:
    before = raw.read_bytes()
    with pytest.raises(BindError):
        made(raw, None, in_place=True, constants={"pedestal": PEDESTAL[:, :4], "gain": GAIN})
    assert raw.read_bytes() == before
    assert os.listdir(raw.parent) == ["raw.h5"]


def test_a_file_can_be_calibrated_again_in_place(raw: Path) -> None:
    made(raw, None, in_place=True)
    first = values(raw)
    made(f"{raw}::/data", None, in_place=True, constants={"pedestal": PEDESTAL + 1, "gain": GAIN})
    assert values(raw).tobytes() != first.tobytes()
    assert len(info(raw)["others"]) == 0


def test_a_file_whose_only_words_are_the_masters_can_be_calibrated_again(raw: Path, master: Path) -> None:
    made(raw, master, copy_raw=True)
    first = values(master)
    place = f"{master}::/entry/instrument/detector/raw/data"
    made(place, None, in_place=True, constants={"pedestal": PEDESTAL + 1, "gain": GAIN})
    assert values(master).tobytes() != first.tobytes()


def test_in_place_and_an_output_exclude_each_other(raw: Path, master: Path) -> None:
    with pytest.raises(RequestError):
        made(raw, master, in_place=True)
    with pytest.raises(RequestError):
        made(raw, None)


# --- constants -----------------------------------------------------------------------------


@pytest.fixture
def reference(raw: Path, tmp_path: Path) -> Array:
    made(raw, tmp_path / "reference.nxs")
    return values(tmp_path / "reference.nxs")


def as_bin(path: Path, array: Array) -> str:
    array.astype("<f8").tofile(path)
    return str(path)


def as_npy(path: Path, array: Array) -> str:
    np.save(path, array)
    return str(path)


def as_gains(path: Path, array: Array) -> str:
    with h5py.File(path, "w") as file:
        file["gains"] = array
        file["other"] = array[:2]
    return str(path)


def as_named(path: Path, array: Array) -> str:
    with h5py.File(path, "w") as file:
        file["gain"] = array
        file["another"] = array
    return str(path)


def as_only(path: Path, array: Array) -> str:
    with h5py.File(path, "w") as file:
        file["deep/inside/whatever"] = array.astype(np.float64)
    return str(path)


def as_path(path: Path, array: Array) -> str:
    with h5py.File(path, "w") as file:
        file["a/b"], file["a/c"] = array, array + 1
    return f"{path}::/a/b"


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (as_bin, "gain.bin"),
        (as_npy, "gain.npy"),
        (as_gains, "gain.h5"),
        (as_named, "gain.h5"),
        (as_only, "gain.h5"),
        (as_path, "gain.h5"),
    ],
)
def test_a_constant_is_the_same_from_every_kind_of_file(
    raw: Path, master: Path, reference: Array, tmp_path: Path, write: Callable[[Path, Array], str], name: str
) -> None:
    done = made(raw, master, constants={"pedestal": PEDESTAL, "gain": write(tmp_path / name, GAIN)})
    same_bits(values(done.path), reference)
    assert name in info(master)["constants"][1]["source"]


@pytest.mark.parametrize("planes", [3, 4, 6])
@pytest.mark.parametrize(("write", "suffix"), [(as_bin, "bin"), (as_gains, "h5")])
def test_psi_files_of_more_planes_begin_with_the_three_stages(
    raw: Path,
    master: Path,
    reference: Array,
    tmp_path: Path,
    planes: int,
    write: Callable[[Path, Array], str],
    suffix: str,
) -> None:
    more = np.concatenate([GAIN, np.full((planes - 3, *PIXELS), 7.0)])
    made(raw, master, constants={"pedestal": PEDESTAL, "gain": write(tmp_path / f"gain.{suffix}", more)})
    same_bits(values(master), reference)
    assert info(master)["constants"][1]["labels"] == [list(range(planes))]


def test_constants_in_double_precision_are_stored_as_given(raw: Path, master: Path) -> None:
    made(raw, master, constants={"pedestal": PEDESTAL.astype(np.float64) + 1e-9, "gain": GAIN})
    with h5py.File(master) as file:
        same_bits(file[f"{CALIBRATION}/pedestal/pedestal"][()], PEDESTAL.astype(np.float64) + 1e-9)


def test_labels_beside_a_constant_are_taken(raw: Path, master: Path, reference: Array, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "gain.h5", "w") as file:
        file["maps/gain"], file["maps/stage"] = GAIN[[2, 0, 1]], np.array([2, 0, 1], np.int16)
    made(raw, master, constants={"pedestal": PEDESTAL, "gain": f"{tmp_path / 'gain.h5'}::/maps/gain"})
    assert info(master)["constants"][1]["labels"] == [[2, 0, 1]]
    same_bits(values(master), reference)


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1, 70_000], [-1, 0, 1], [0, 1]])
def test_labels_that_cannot_be_are_refused(raw: Path, master: Path, tmp_path: Path, labels: list[int]) -> None:
    with h5py.File(tmp_path / "gain.h5", "w") as file:
        file["gain"], file["stage"] = GAIN, np.array(labels)
    with pytest.raises(BindError, match="gain"):
        made(raw, master, constants={"pedestal": PEDESTAL, "gain": tmp_path / "gain.h5"})


def test_a_stage_without_a_plane_is_flagged(raw: Path, master: Path) -> None:
    made(raw, master, constants={"pedestal": PEDESTAL, "gain": GAIN[:1]})
    stage = np.array([0, 1, -1, 2])[make_words(SHAPE) >> 14]
    found = values(master)
    assert np.isnan(found[stage != 0]).all()
    assert np.isfinite(found[stage == 0]).any()


def test_the_source_of_every_constant_is_recorded(raw: Path, master: Path, tmp_path: Path) -> None:
    made(raw, master, constants={"pedestal": PEDESTAL, "gain": as_bin(tmp_path / "gainMaps_M001.bin", GAIN)})
    sources = {c["name"]: c["source"] for c in info(master)["constants"]}
    assert sources["pedestal"].startswith("memory")
    assert sources["gain"].startswith("gainMaps_M001.bin, float64 planes")


@pytest.mark.parametrize("size", [0, 8, 3 * 8 * 16 * 8 - 8])
def test_bin_files_of_another_size_are_refused(raw: Path, master: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "gain.bin").write_bytes(bytes(size))
    with pytest.raises(FileError, match=rf"{size} bytes.*\(8, 16\)"):
        made(raw, master, constants={"pedestal": PEDESTAL, "gain": tmp_path / "gain.bin"})


def test_constants_of_another_shape_are_refused_with_both_shapes(raw: Path, master: Path) -> None:
    with pytest.raises(BindError) as caught:
        made(raw, master, constants={"pedestal": PEDESTAL[:, :, :-1], "gain": GAIN})
    assert "pedestal has shape (3, 8, 15), raw frames are (8, 16)" in str(caught.value)
    assert "(stage, y, x) = (3, 8, 16)" in str(caught.value)
    assert not master.exists()


@pytest.mark.parametrize("array", [PEDESTAL[0], PEDESTAL[None], np.float32(3000.0)])
def test_constants_of_another_rank_are_refused_with_both_shapes(raw: Path, master: Path, array: Any) -> None:
    with pytest.raises((BindError, FileError)) as caught:
        made(raw, master, constants={"pedestal": np.asarray(array), "gain": GAIN})
    assert "pedestal" in str(caught.value)
    assert str(np.shape(array)) in str(caught.value)
    assert "stage, y, x" in str(caught.value)


@pytest.mark.parametrize("kind", ["S3", "bool", "complex64"])
def test_constants_that_are_no_numbers_are_refused(raw: Path, master: Path, kind: str) -> None:
    with pytest.raises(BindError, match="pedestal"):
        made(raw, master, constants={"pedestal": np.ones((3, *PIXELS)).astype(kind), "gain": GAIN})


def test_a_constant_that_is_not_given_is_named(raw: Path, master: Path) -> None:
    with pytest.raises(BindError, match="needs gain"):
        made(raw, master, constants={"pedestal": PEDESTAL})


def test_a_constant_that_is_unknown_is_named(raw: Path, master: Path) -> None:
    with pytest.raises(RequestError, match=r"'dark'.*pedestal, gain"):
        made(raw, master, constants={"pedestal": PEDESTAL, "gain": GAIN, "dark": GAIN})


@pytest.mark.parametrize("name", ["none.h5", "none.npy", "none.bin"])
def test_a_constants_file_that_is_not_there_is_named(raw: Path, master: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=name):
        made(raw, master, constants={"pedestal": PEDESTAL, "gain": tmp_path / name})


# --- words ---------------------------------------------------------------------------------


def test_the_only_words_are_found(raw: Path, master: Path, reference: Array) -> None:
    with h5py.File(raw, "r+") as file:
        file["signed"], file["flat"] = np.zeros(SHAPE, np.int32), np.zeros((4, 8), np.uint16)
    made(raw, master)
    same_bits(values(master), reference)


def test_ambiguous_words_are_refused_with_the_list(raw: Path, master: Path) -> None:
    write_raw(raw, make_words(SHAPE), "module/other")
    with pytest.raises(FileError, match="/data, /module/other") as caught:
        made(raw, master)
    assert caught.value.code == "ambiguous"
    assert values(made(f"{raw}::/module/other", master).path).shape == SHAPE


def test_a_file_without_words_is_refused(tmp_path: Path, master: Path) -> None:
    write_raw(tmp_path / "raw.h5", np.zeros(SHAPE, np.float32))
    with pytest.raises(FileError, match="no dataset holds raw words"):
        made(tmp_path / "raw.h5", master)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", "uint32"])
def test_words_of_another_type_are_refused(tmp_path: Path, master: Path, dtype: str) -> None:
    write_raw(tmp_path / "raw.h5", np.zeros(SHAPE, dtype))
    with pytest.raises((FileError, BindError), match=dtype):
        made(f"{tmp_path / 'raw.h5'}::/data", master)


def test_words_of_another_rank_are_refused(tmp_path: Path, master: Path) -> None:
    write_raw(tmp_path / "raw.h5", np.zeros((4, 8), np.uint16))
    with pytest.raises((FileError, BindError)):
        made(f"{tmp_path / 'raw.h5'}::/data", master)


@pytest.mark.parametrize("path", ["/nothing", "/group", ""])
def test_a_path_that_leads_to_no_words_is_refused(raw: Path, master: Path, path: str) -> None:
    with h5py.File(raw, "r+") as file:
        file.create_group("group")
    with pytest.raises(FileError):
        made(f"{raw}::{path}", master)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_raw_file_that_is_not_there_is_named(tmp_path: Path, master: Path, overwrite: bool) -> None:
    if overwrite:
        master.write_bytes(b"old")
    with pytest.raises(FileError, match=r"none\.h5"):
        made(tmp_path / "none.h5", master, overwrite=overwrite)


# --- formula -------------------------------------------------------------------------------


def test_a_formula_comes_from_the_catalogue_a_file_or_python(raw: Path, tmp_path: Path, reference: Array) -> None:
    (tmp_path / "mine.toml").write_text(source("jungfrau"))
    formulas: list[Any] = ["jungfrau", tmp_path / "mine.toml", str(tmp_path / "mine.toml"), detector_formula()]
    for number, formula in enumerate(formulas):
        made(raw, tmp_path / f"{number}.nxs", formula=formula)
        same_bits(values(tmp_path / f"{number}.nxs"), reference)


def test_a_formula_in_double_precision_is_used_as_such(raw: Path, master: Path, reference: Array) -> None:
    made(raw, master, formula=detector_formula().with_compute("float64"))
    good = np.isfinite(reference)
    np.testing.assert_allclose(values(master)[good], reference[good], rtol=1e-3, atol=1e-4)
    assert info(master)["formula"]["compute"] == "float64"


def test_an_unknown_formula_is_refused_with_the_list(raw: Path, master: Path) -> None:
    with pytest.raises(RequestError, match=r"'jungfau'.*jungfrau"):
        made(raw, master, formula="jungfau")


def test_a_broken_formula_is_refused_with_the_place(raw: Path, master: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(source("jungfrau").replace("bits(raw, 0, 14)", "bits(raw, 0, )"))
    with pytest.raises(FormulaError, match=r"steps\.adc"):
        made(raw, master, formula=tmp_path / "bad.toml")


def test_what_is_stored_is_the_formula(raw: Path, master: Path) -> None:
    made(raw, master)
    assert stored_formula(master) == detector_formula()


# --- settings ------------------------------------------------------------------------------


def test_without_an_energy_photons_are_refused_by_name_and_energy_works(raw: Path, master: Path) -> None:
    assert made(raw, master).outputs == ["energy"]
    assert values(master).shape == SHAPE
    with pytest.raises(RequestError, match="'photons' needs photon_energy"):
        open_calibrated(master, "photons")
    assert values(master, "photons", inputs={"photon_energy": PHOTON_ENERGY}).shape == SHAPE


@pytest.mark.parametrize(
    ("settings", "energy"),
    [({"photon_energy": 12.4}, 12.4), ({"wavelength": "1.0"}, KEV_ANGSTROM), ({"photon_energy": "6.2e0"}, 6.2)],
)
def test_energy_and_wavelength_give_each_other(
    raw: Path, master: Path, settings: dict[str, object], energy: float
) -> None:
    done = made(raw, master, settings=settings)
    assert done.outputs == ["energy", "photons", "counts", "energy_variance"]
    assert stored_energy(master) == pytest.approx(energy, rel=1e-6)
    with h5py.File(master) as file:
        wavelength = file["/entry/instrument/beam/incident_wavelength"]
        assert wavelength.attrs["units"] == "angstrom"
        assert wavelength[()] == pytest.approx(KEV_ANGSTROM / energy)


@pytest.mark.parametrize(
    "beam",
    [
        {"incident_wavelength": (1.0, "angstrom")},
        {"incident_wavelength": (np.array([0.1]), "nm")},
        {"incident_wavelength": (1e-10, "m")},
        {"incident_energy": (KEV_ANGSTROM, "keV")},
        {"incident_energy": (1000 * KEV_ANGSTROM, "eV")},
    ],
)
def test_the_energy_is_that_of_the_raw_files_beam(tmp_path: Path, master: Path, beam: dict[str, Any]) -> None:
    nexus_raw(tmp_path / "run.nxs", beam=beam)
    made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master)
    assert stored_energy(master) == pytest.approx(KEV_ANGSTROM, rel=1e-6)


def test_a_wavelength_per_frame_gives_an_energy_per_frame(tmp_path: Path, master: Path) -> None:
    wavelengths = np.linspace(1.0, 2.0, SHAPE[0])
    nexus_raw(tmp_path / "run.nxs", beam={"incident_wavelength": (wavelengths, "angstrom")})
    made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master)
    energies = (KEV_ANGSTROM / wavelengths).astype(np.float32)[:, None, None]
    with np.errstate(all="ignore"):
        wanted = values(master) / energies
    same_bits(values(master, "photons"), np.where(np.isfinite(wanted), wanted, np.float32(np.nan)))


@pytest.mark.parametrize(("value", "units"), [(1.0, "furlong"), (1.0, "")])
def test_a_wavelength_in_an_unknown_unit_is_not_guessed(tmp_path: Path, master: Path, value: float, units: str) -> None:
    nexus_raw(tmp_path / "run.nxs", beam={"incident_wavelength": (value, units)})
    assert made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master).outputs == ["energy"]


@pytest.mark.parametrize("wavelength", [0.0, -1.0, float("nan")])
def test_a_wavelength_that_cannot_be_gives_no_energy(tmp_path: Path, master: Path, wavelength: float) -> None:
    nexus_raw(tmp_path / "run.nxs", beam={"incident_wavelength": (wavelength, "angstrom")})
    try:
        done = made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master)
    except (FileError, RequestError, BindError):
        return
    assert done.outputs == ["energy"]


def test_a_stated_energy_wins_over_the_beams(tmp_path: Path, master: Path) -> None:
    nexus_raw(tmp_path / "run.nxs", beam={"incident_wavelength": (1.0, "angstrom")})
    made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master, settings={"photon_energy": 8.0})
    assert stored_energy(master) == 8.0
    with h5py.File(master) as file:
        assert file["/entry/instrument/beam/incident_wavelength"][()] == pytest.approx(KEV_ANGSTROM / 8.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"photon_enrgy": 12.4}, ["photon_enrgy", "photon_energy", "wavelength"]),
        ({"photon_energy": "much"}, ["photon_energy=much"]),
        ({"photon_energy": 0}, ["photon_energy", "above zero"]),
        ({"photon_energy": "nan"}, ["photon_energy"]),
        ({"wavelength": -1}, ["wavelength", "above zero"]),
        ({"distance": "far"}, ["distance=far"]),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(
    raw: Path, master: Path, settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        made(raw, master, settings=settings)
    assert all(word in str(caught.value) for word in words)


def test_metadata_that_are_not_stated_are_noted(raw: Path, master: Path) -> None:
    (note,) = (n for n in made(raw, master, settings={"sample_name": "lysozyme"}).notes if "nobody stated" in n)
    assert "wavelength" in note
    assert "sample_name" not in note
    with h5py.File(master) as file:
        assert file["/entry/sample/name"][()] == b"lysozyme"


# --- masks and ids -------------------------------------------------------------------------


def test_a_boolean_mask_marks_user_defined_pixels(raw: Path, master: Path, tmp_path: Path) -> None:
    bad = np.zeros(PIXELS, bool)
    bad[2, 3] = True
    np.save(tmp_path / "mask.npy", bad)
    made(raw, master, mask=tmp_path / "mask.npy")
    with h5py.File(master) as file:
        same_bits(file["/entry/instrument/detector/pixel_mask"][()], bad.astype(np.uint32) << np.uint32(8))
    flags = open_calibrated_dataset(master)["flags"].values
    np.testing.assert_array_equal(flags >> 5 & 1, np.broadcast_to(bad, SHAPE))


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.uint8, np.int64])
def test_a_mask_of_bits_is_kept(raw: Path, master: Path, tmp_path: Path, dtype: type) -> None:
    mask: Array = np.zeros(PIXELS, dtype)
    mask[0, :5] = [1, 2, 4, 16, 64]
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["pixel_mask"], file["m"] = mask, mask
    for spec in (tmp_path / "mask.h5", f"{tmp_path / 'mask.h5'}::/m"):
        made(raw, master, mask=spec, overwrite=True)
        with h5py.File(master) as file:
            same_bits(file["/entry/instrument/detector/pixel_mask"][()], mask.astype(np.uint32))


def test_the_highest_bit_of_a_mask_is_kept_and_voids_nothing(raw: Path, master: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.full(PIXELS, 1 << 31, np.uint32))
    made(raw, master, mask=tmp_path / "mask.npy")
    assert not (open_calibrated_dataset(master)["flags"].values >> 5 & 1).any()


@pytest.mark.parametrize("bits", [1 << 5, 1 << 7, 1 << 9, 1 << 16, 1 << 30])
def test_mask_bits_that_nexus_does_not_define_are_refused(raw: Path, master: Path, tmp_path: Path, bits: int) -> None:
    np.save(tmp_path / "mask.npy", np.full(PIXELS, bits, np.uint32))
    with pytest.raises(FileError, match="NXmx does not define") as caught:
        made(raw, master, mask=tmp_path / "mask.npy")
    assert caught.value.code == "mask-bits"


@pytest.mark.parametrize("mask", [np.zeros((8, 15), bool), np.zeros((1, 8, 16), bool), np.zeros(PIXELS, np.float32)])
def test_masks_of_another_shape_or_kind_are_refused(raw: Path, master: Path, tmp_path: Path, mask: Array) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(FileError, match=r"\(8, 16\)") as caught:
        made(raw, master, mask=tmp_path / "mask.npy")
    assert caught.value.code == "wrong-shape"


def test_the_raw_files_own_mask_is_taken(tmp_path: Path, master: Path) -> None:
    nexus_raw(tmp_path / "run.nxs")
    mask = np.zeros(PIXELS, np.uint32)
    mask[1] = 2
    with h5py.File(tmp_path / "run.nxs", "r+") as file:
        file["entry/instrument/detector/pixel_mask"] = mask
    made(f"{tmp_path / 'run.nxs'}::/entry/data/data", master)
    np.testing.assert_array_equal(open_calibrated_dataset(master)["flags"].values[0] >> 5 & 1, mask >> 1)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_ids_become_coordinates(raw: Path, master: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["pulse"], file["time"] = np.arange(7, 11, dtype=np.uint64).reshape(shape), np.linspace(0, 1, 4)
    ids = {"pulse_id": f"{tmp_path / 'ids.h5'}::/pulse", "timestamp": f"{tmp_path / 'ids.h5'}::/time"}
    made(raw, master, ids=ids)
    view = open_calibrated(master)
    assert view["pulse_id"].values.tolist() == [7, 8, 9, 10]
    assert view["timestamp"].dims == ("frame",)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 2), ()])
def test_ids_for_other_frames_are_refused(raw: Path, master: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["pulse"] = np.zeros(shape, np.int64)
    with pytest.raises(FileError, match=r"expected numbers \(4,\)"):
        made(raw, master, ids={"pulse_id": f"{tmp_path / 'ids.h5'}::/pulse"})


@pytest.mark.parametrize("name", ["data", "flags", "energy", "x", "a/b", ".", ""])
def test_ids_under_a_name_that_is_taken_are_refused_or_harmless(
    raw: Path, master: Path, tmp_path: Path, name: str
) -> None:
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["pulse"] = np.arange(4)
    try:
        made(raw, master, ids={name: f"{tmp_path / 'ids.h5'}::/pulse"})
    except RequestError:
        return
    assert open_calibrated_dataset(master)["energy"].shape == SHAPE


def test_a_run_without_frames_can_have_ids(tmp_path: Path, master: Path) -> None:
    write_raw(tmp_path / "raw.h5", np.zeros((0, *PIXELS), np.uint16))
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["pulse"] = np.zeros(0, np.uint64)
    made(tmp_path / "raw.h5", master, ids={"pulse_id": f"{tmp_path / 'ids.h5'}::/pulse"})
    assert open_calibrated(master)["pulse_id"].shape == (0,)


# --- the master ----------------------------------------------------------------------------


def test_an_existing_master_is_refused_and_untouched(raw: Path, master: Path) -> None:
    master.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        made(raw, master)
    assert master.read_bytes() == b"precious"
    assert made(raw, master, overwrite=True).path == master


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_raw_file_is_never_the_master(raw: Path, tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    target, before = raw, raw.read_bytes()
    if link is not None:
        target = tmp_path / "alias.h5"
        link(raw, target)
    with pytest.raises(RequestError, match="which is read"):
        made(raw, target, overwrite=True)
    assert raw.read_bytes() == before


def test_a_source_of_virtual_words_is_never_the_master(tmp_path: Path) -> None:
    run = build_virtual_run(tmp_path, (12, *PIXELS))
    before = (tmp_path / "first.h5").read_bytes()
    with pytest.raises((RequestError, OutputError)):
        made(run.raw, tmp_path / "first.h5", overwrite=True)
    assert (tmp_path / "first.h5").read_bytes() == before


def test_the_raw_file_is_not_touched(raw: Path, master: Path) -> None:
    before = raw.read_bytes(), raw.stat().st_mtime_ns
    made(raw, master)
    assert (raw.read_bytes(), raw.stat().st_mtime_ns) == before


def test_the_picture_is_a_calibrated_mean(tmp_path: Path, master: Path) -> None:
    write_raw(tmp_path / "raw.h5", np.full(SHAPE, 3410, np.uint16))
    maps = {"pedestal": np.full((3, *PIXELS), 3000.0), "gain": np.full((3, *PIXELS), 41.0)}
    made(tmp_path / "raw.h5", master, constants=maps)
    with h5py.File(master) as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        image = data[data.attrs["signal"]]
        np.testing.assert_array_equal(image[()], np.full(PIXELS, 10.0, np.float32))
        assert image.attrs["units"] == "keV"


def test_two_calibrations_need_a_name(raw: Path) -> None:
    made(raw, None, in_place=True)
    text = source("jungfrau").replace('name    = "jungfrau"', 'name    = "second"')
    made(f"{raw}::/data", None, in_place=True, formula=Formula.from_toml(text))
    with pytest.raises(FileError, match="jungfrau, second") as caught:
        open_calibrated(raw)
    assert caught.value.code == "ambiguous"
    same_bits(values(raw, calibration="second"), values(raw, calibration="jungfrau"))


def test_an_independent_reader_gets_the_same(plain: Run) -> None:
    for output, dtype in (("energy", "float32"), ("counts", "int16")):
        found, flags = read(str(plain.master), output, dtype)
        wanted = plain.expected(output, dtype)
        np.testing.assert_array_equal(found, wanted[0])
        np.testing.assert_array_equal(flags, wanted[1])


def test_a_strip_detector_needs_no_geometry(runs: Callable[[str], Run]) -> None:
    run = runs("strip")
    same_bits(values(run.master), run.expected("energy")[0])


def test_a_large_run_is_previewed_in_a_small_picture(tmp_path: Path) -> None:
    run = build_run(tmp_path, (2, 700, 900))
    with h5py.File(run.master) as file:
        assert max(file["/entry/data/preview"].shape) <= 512


# Words of several inputs

TWO_WORDS = """
[formula]
name = "two"
version = 1
title = "words, and a gate beside them"
[inputs]
raw = { dims = ["frame", "y", "x"], units = "ADU", dtype = "uint16" }
gate = { dims = ["frame", "y", "x"], units = "1", dtype = "uint16" }
[constants]
limit = { dims = ["y", "x"], units = "1" }
[steps]
signal = "where(gate > limit, raw * 2.0, raw * 1.0)"
[outputs]
signal = { units = "ADU", dtype = "float32", default = true }
"""


@pytest.fixture
def gated(tmp_path: Path) -> dict[str, Array]:
    """``raw.h5`` with words, and ``other/gate.h5`` with those of the gate."""
    rng = np.random.default_rng(8)
    words = {n: rng.integers(0, 9000, SHAPE, dtype=np.uint16) for n in ("raw", "gate")}
    (tmp_path / "other").mkdir()
    for name, path in (("raw", tmp_path / "raw.h5"), ("gate", tmp_path / "other" / "gate.h5")):
        with h5py.File(path, "w") as file:
            file.create_dataset(f"a/{name}", data=words[name], chunks=(1, *PIXELS))
            file[f"a/too_short_{name}"] = words[name][1:]
    return {**words, "limit": np.full(PIXELS, 4500.0)}


def embed_two(folder: Path, gated: Mapping[str, Array], **options: Any) -> Path:
    inputs = {"gate": str(folder / "other" / "gate.h5::/a/gate"), **options.pop("inputs", {})}
    given = {"formula": Formula.from_toml(TWO_WORDS), "constants": {"limit": gated["limit"]}, "inputs": inputs}
    raw = options.pop("raw", folder / "raw.h5::/a/raw")
    embed(str(raw), folder / "master.nxs", **{**given, **options})
    return folder / "master.nxs"


@pytest.mark.parametrize("copy_raw", [False, True])
def test_words_of_several_inputs_may_lie_in_several_files(
    tmp_path: Path, gated: dict[str, Array], copy_raw: bool
) -> None:
    master = embed_two(tmp_path, gated, copy_raw=copy_raw)
    if copy_raw:
        (tmp_path / "raw.h5").unlink()
        (tmp_path / "other" / "gate.h5").unlink()
    wanted = np.where(gated["gate"] > 4500, gated["raw"] * 2.0, gated["raw"]).astype(np.float32)
    same_bits(open_calibrated(master), wanted)
    assert not [finding for finding in validate(master) if finding.severity == "error"]


def test_the_first_input_may_be_the_named_one(tmp_path: Path, gated: dict[str, Array]) -> None:
    inputs = {"raw": str(tmp_path / "raw.h5::/a/raw")}
    with pytest.raises(RequestError, match="several words inputs: raw, gate; give one as RAW"):
        embed_two(tmp_path, gated, inputs=inputs)
    given = {"formula": Formula.from_toml(TWO_WORDS), "constants": {"limit": gated["limit"]}, "inputs": inputs}
    embed(str(tmp_path / "other" / "gate.h5::/a/gate"), tmp_path / "master.nxs", **given)
    wanted = np.where(gated["gate"] > 4500, gated["raw"] * 2.0, gated["raw"]).astype(np.float32)
    same_bits(open_calibrated(tmp_path / "master.nxs"), wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": {"gate": "other/gate.h5"}}, RequestError, "gate: name the dataset of these words"),
        ({"inputs": {"gate": "other/gate.h5::/a/too_short_gate"}}, FileError, r"has shape \(3, 8, 16\), raw has"),
        ({"inputs": {"gate": "other/gate.h5::/a/none"}}, FileError, "/a/none"),
        ({"inputs": {"gate": "missing.h5::/a/gate"}}, FileError, "missing.h5"),
        ({"formula": "jungfrau", "constants": {}}, RequestError, "no input 'gate'"),
    ],
)
def test_words_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, gated: dict[str, Array], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    named = {n: f"{tmp_path}/{source}" for n, source in options.get("inputs", {}).items()}
    with pytest.raises(error, match=message):
        embed_two(tmp_path, gated, **{**options, "inputs": named})
    assert not (tmp_path / "master.nxs").exists()


def test_words_of_several_inputs_are_not_embedded_in_place(tmp_path: Path, gated: dict[str, Array]) -> None:
    before = (tmp_path / "raw.h5").read_bytes()
    given = {"formula": Formula.from_toml(TWO_WORDS), "constants": {"limit": gated["limit"]}}
    with pytest.raises(RequestError, match="not in place"):
        embed(
            str(tmp_path / "raw.h5::/a/raw"),
            inputs={"gate": str(tmp_path / "other/gate.h5::/a/gate")},
            in_place=True,
            **given,
        )
    assert (tmp_path / "raw.h5").read_bytes() == before
