"""Applied files: the same bits as a view, in a standard NXmx file that accounts for every pixel and frame."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import numpy.typing as npt
import pytest
from conftest import (
    BITSHUFFLE,
    FLAG_BITS,
    PHOTON_ENERGY,
    Run,
    build_run,
    build_virtual_run,
    detector_formula,
    few,
    make_words,
)
from contract import same_bits

from gaincal.errors import FileError, OutputError, RequestError
from gaincal.formulas.catalog import source
from gaincal.formulas.formula import Formula
from gaincal.nexus.names import PIXEL_MASK_BITS
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
FRAMES = 6
LASTING = ("invalid_gain_code", "adc_limit", "no_calibration")
"""Flags that make a pixel dead in the mask if it has them in every frame."""
OMEGA = "/entry/sample/transformations/omega"
MASKLESS = re.sub(r"\[inputs\.pixel_mask\].*?(?=\n\[)|\nmasked [^\n]*", "", source("jungfrau"), flags=re.DOTALL)


def contents(path: Path, place: str) -> Any:
    with h5py.File(path) as file:
        return file[place][()]


def counted(flags: Array) -> dict[str, int]:
    return {name: int(np.count_nonzero(flags & np.uint32(1 << bit))) for name, bit in FLAG_BITS.items()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.nxs"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master whose raw file is an NXmx file of a rotation scan."""
    directory = tmp_path_factory.mktemp("scan")
    with h5py.File(directory / "raw.nxs", "w") as file:
        for path, nx_class in (
            ("entry", "NXentry"),
            ("entry/data", "NXdata"),
            ("entry/sample", "NXsample"),
            ("entry/sample/transformations", "NXtransformations"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/beam", "NXbeam"),
            ("entry/instrument/detector", "NXdetector"),
            ("entry/instrument/detector/module", "NXdetector_module"),
        ):
            file.create_group(path).attrs["NX_class"] = nx_class
        file["entry/definition"] = "NXmx"
        file["entry/sample/name"] = "lysozyme"
        omega = file.create_dataset(OMEGA, data=0.1 * np.arange(FRAMES))
        omega.attrs["units"], omega.attrs["vector"] = "deg", np.array([-1.0, 0.0, 0.0])
        omega.attrs["transformation_type"], omega.attrs["depends_on"] = "rotation", "."
        wavelength = file.create_dataset("entry/instrument/beam/incident_wavelength", data=1.0)
        wavelength.attrs["units"] = "angstrom"
        file["entry/instrument/detector/saturation_value"] = 65_535
        file["entry/instrument/detector/module/data_size"] = np.arange(FRAMES)
        words = make_words((FRAMES, 8, 16))
        file.create_dataset("entry/data/data", data=words, chunks=(1, 8, 16), **BITSHUFFLE)
        file["entry/data"].attrs["signal"] = "data"
    maps = {"pedestal": np.full((3, 8, 16), 3000.0), "gain": np.full((3, 8, 16), 41.0)}
    embed(f"{directory / 'raw.nxs'}::/entry/data/data", directory / "scan.nxs", formula="jungfrau", constants=maps)
    return directory / "scan.nxs"


# --- values, flags and frames --------------------------------------------------------------


@pytest.mark.parametrize("kind", few(["virtual", "plain", "odd", "strip", "modules"]))
@pytest.mark.parametrize(("output", "dtype"), [("photons", "float32"), ("counts", "int32"), ("counts", "int16")])
def test_values_and_counts_are_those_of_the_formula(
    runs: Callable[[str], Run], out: Path, kind: str, output: str, dtype: str
) -> None:
    run = runs(kind)
    done = apply(run.master, out, output=output, dtype=dtype)
    values, flags = run.expected(output, dtype)
    same_bits(contents(out, "/entry/data/data"), values)
    assert done.flags == counted(flags)
    assert (done.frames, done.pixels) == (len(values), values[0].size)


def test_int16_saturates_and_counts_what_it_clipped(plain: Run, out: Path) -> None:
    done = apply(plain.master, out, output="counts", dtype="int16")
    clipped = (plain.expected("counts", "int16")[1] & (1 << FLAG_BITS["clipped"])) != 0
    assert done.flags["clipped"] == np.count_nonzero(clipped) > 0
    assert set(contents(out, "/entry/data/data")[clipped].tolist()) == {-32_767, 32_767}


def test_missing_frames_are_counted_and_filled(virtual: Run, out: Path) -> None:
    done = apply(virtual.master, out, output="counts")
    assert done.missing_frames == 4
    assert done.flags["missing"] == virtual.missing.sum()
    assert set(contents(out, "/entry/data/data")[virtual.missing].tolist()) == {-(2**31)}


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        ((3, 5), slice(3, 5)),
        ((None, 4), slice(0, 4)),
        ((9, None), slice(9, 12)),
        ((-2, None), slice(10, 12)),
        ((3, 99), slice(3, 12)),
    ],
)
def test_frames_are_cut_as_a_slice_cuts(
    plain: Run, out: Path, frames: tuple[int | None, int | None], kept: slice
) -> None:
    done = apply(plain.master, out, output="counts", frames=frames)
    values, flags = plain.expected("counts", "int32")
    same_bits(contents(out, "/entry/data/data"), values[kept])
    assert done.flags == counted(flags[kept])
    np.testing.assert_array_equal(contents(out, "/entry/data/frame"), np.arange(12)[kept])
    np.testing.assert_array_equal(contents(out, "/entry/data/pulse_id"), plain.pulses[kept])
    assert contents(out, "/entry/process/parameters/first_frame") == kept.start


@pytest.mark.parametrize("frames", [(5, 5), (7, 3), (12, None)])
def test_no_frames_are_refused(plain: Run, out: Path, frames: tuple[int | None, int | None]) -> None:
    with pytest.raises(RequestError, match="the run has 12"):
        apply(plain.master, out, frames=frames)
    assert not out.exists()


def test_a_run_without_frames_is_refused(runs: Callable[[str], Run], out: Path) -> None:
    with pytest.raises(RequestError, match="the run has 0"):
        apply(runs("empty").master, out)


def test_progress_counts_up_to_all_frames(plain: Run, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    apply(plain.master, out, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_are_the_same_for_any_number_of_jobs(plain: Run, out: Path, jobs: int) -> None:
    apply(plain.master, out, output="counts", jobs=jobs)
    same_bits(contents(out, "/entry/data/data"), plain.expected("counts", "int32")[0])


def test_a_damaged_chunk_leaves_no_file(own: Run, out: Path) -> None:
    with h5py.File(own.raw) as file:
        offset = file["data"].id.get_chunk_info(4).byte_offset
    with own.raw.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x5a\xa5\x5a\xa5")
    with pytest.raises(FileError):
        apply(own.master, out)
    assert sorted(os.listdir(out.parent)) == sorted({"raw.h5", "master.nxs", "mask.npy", "pulses.h5"})


# --- flagged pixels and dtypes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "dtype", "flagged"),
    [("photons", "float32", 0.0), ("photons", "float32", -1.0), ("counts", "int32", 0), ("counts", "int16", 32_767)],
)
def test_flagged_pixels_get_the_value_chosen(plain: Run, out: Path, output: str, dtype: str, flagged: float) -> None:
    apply(plain.master, out, output=output, dtype=dtype, flagged=flagged)
    same_bits(contents(out, "/entry/data/data"), plain.expected(output, dtype, flagged)[0])
    assert contents(out, "/entry/process/parameters/flagged_value") == flagged


def test_nan_for_flagged_pixels_of_integers_is_refused(plain: Run, out: Path) -> None:
    with pytest.raises(RequestError, match="NaN"):
        apply(plain.master, out, output="counts", flagged=float("nan"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output": "electrons"}, "electrons"),
        ({"output": "counts", "dtype": "int8"}, "int8"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_what_is_not_declared_is_refused_by_name(plain: Run, out: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        apply(plain.master, out, **options)
    assert not out.exists()


def test_a_given_photon_energy_replaces_the_stored_one(plain: Run, out: Path) -> None:
    apply(plain.master, out, output="photons", inputs={"photon_energy": 2 * PHOTON_ENERGY})
    with np.errstate(all="ignore"):
        wanted = plain.steps["energy"] / np.float32(2 * PHOTON_ENERGY)
    good = np.isfinite(plain.expected("photons")[0])
    same_bits(contents(out, "/entry/data/data")[good], wanted[good])
    assert contents(out, "/entry/process/parameters/photon_energy") == np.float32(2 * PHOTON_ENERGY)


# --- the file around the image -------------------------------------------------------------


def test_metadata_are_carried_over(scan: Path, out: Path) -> None:
    apply(scan, out)
    assert contents(out, "/entry/definition") == b"NXmx"
    assert contents(out, "/entry/sample/name") == b"lysozyme"
    np.testing.assert_array_equal(contents(out, OMEGA), 0.1 * np.arange(FRAMES))
    with h5py.File(out) as file:
        assert file[OMEGA].attrs["units"] == "deg"
        np.testing.assert_array_equal(file[OMEGA].attrs["vector"], [-1.0, 0.0, 0.0])
        assert file["/entry/instrument/detector"].attrs["NX_class"] == "NXdetector"


def test_axes_are_cut_to_the_frames_kept(scan: Path, out: Path) -> None:
    apply(scan, out, frames=(2, 5))
    np.testing.assert_array_equal(contents(out, OMEGA), (0.1 * np.arange(FRAMES))[2:5])
    assert len(contents(out, "/entry/instrument/detector/module/data_size")) == FRAMES


def test_nothing_of_the_calibration_is_left_to_apply_again(scan: Path, out: Path) -> None:
    apply(scan, out)
    with h5py.File(out) as file:
        assert "calibration" not in file["/entry/instrument/detector"]
        assert "raw" not in file["/entry/instrument/detector"]
    with pytest.raises(FileError, match="has no calibration"):
        apply(out, out.with_name("twice.nxs"))


def test_default_and_signal_lead_to_the_image(plain: Run, out: Path) -> None:
    apply(plain.master, out)
    with h5py.File(out) as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        image = data[data.attrs["signal"]]
        assert image.name == "/entry/data/data"
        assert (image.attrs["units"], image.chunks, image.fletcher32) == ("keV", (1, 16, 32), True)


@pytest.mark.parametrize("dtype", ["int32", "int16"])
def test_programs_can_tell_counts_from_sentinels(plain: Run, out: Path, dtype: str) -> None:
    apply(plain.master, out, output="counts", dtype=dtype)
    values, flags = plain.expected("counts", dtype)
    low, high = (contents(out, f"/entry/instrument/detector/{n}_value") for n in ("underload", "saturation"))
    assert (low.dtype, high.dtype) == (values.dtype, values.dtype)
    assert (values[flags == 0] >= low).all()
    assert (values[flags == 0] <= high).all()
    void = (flags != 0) & (flags != 1 << FLAG_BITS["clipped"])
    assert (values[void] < low).all()
    assert contents(out, "/entry/instrument/detector/bit_depth_readout") == 8 * values.itemsize


def test_a_stated_range_of_the_words_is_not_the_range_of_the_counts(scan: Path, out: Path) -> None:
    apply(scan, out, output="counts")
    assert contents(out, "/entry/instrument/detector/saturation_value") == 2**31 - 2


def test_the_mask_holds_the_static_one_and_what_is_always_bad(plain: Run, out: Path) -> None:
    apply(plain.master, out)
    flags = plain.expected("energy")[1]
    wanted = plain.mask.copy()
    for name in LASTING:
        wanted |= ((flags >> FLAG_BITS[name]) & 1).all(axis=0).astype(np.uint32) << np.uint32(1)
    same_bits(contents(out, "/entry/instrument/detector/pixel_mask"), wanted)
    assert (wanted != plain.mask).any()
    assert not (wanted & ~np.uint32(sum(1 << bit for bit in PIXEL_MASK_BITS))).any()


def test_pixels_always_bad_are_those_of_the_frames_kept(plain: Run, out: Path) -> None:
    apply(plain.master, out, frames=(3, 4))
    bad = plain.expected("energy")[1][3] & np.uint32(sum(1 << FLAG_BITS[name] for name in LASTING))
    same_bits(contents(out, "/entry/instrument/detector/pixel_mask"), plain.mask | (bad != 0).astype(np.uint32) << 1)


def test_a_mask_survives_a_formula_that_takes_none(own: Run, out: Path) -> None:
    maps = {"pedestal": own.pedestal, "gain": own.gain}
    mask = own.master.parent / "mask.npy"
    embed(own.raw, own.master, formula=Formula.from_toml(MASKLESS), constants=maps, mask=mask, overwrite=True)
    apply(own.master, out)
    same_bits(contents(out, "/entry/instrument/detector/pixel_mask") & own.mask, own.mask)


def test_the_process_says_how_to_do_it_again(plain: Run, out: Path) -> None:
    done = apply(plain.master, out, output="counts", dtype="int16", frames=(2, 9))
    with h5py.File(out) as file:
        process = file["/entry/process"]
        found = {name: process["parameters"][name][()] for name in process["parameters"]}
        names, pixels = process["flags/name"][()], process["flags/pixels"][()]
        assert process.attrs["NX_class"] == "NXprocess"
        assert process["program"][()] == b"gaincal"
    assert found["formula"] == b"jungfrau version 1"
    assert found["formula_digest"] == detector_formula().digest.encode()
    assert found["calibration_checksum"].startswith(b"sha256:")
    assert (found["output"], found["units"], found["dtype"]) == (b"counts", b"photon", b"int16")
    assert (found["first_frame"], found["frames"], found["missing_frames"]) == (2, 7, 0)
    assert found["flagged_value"] == -32_768
    assert found["photon_energy"] == np.float32(PHOTON_ENERGY)
    assert dict(zip((n.decode() for n in names), pixels.tolist(), strict=True)) == done.flags


def test_flags_without_inputs_are_named_as_not_tested(scan: Path, out: Path) -> None:
    done = apply(scan, out)
    assert done.not_tested == ["masked"]
    assert "masked" not in done.flags


# --- where it is written -------------------------------------------------------------------


def test_the_default_name_is_that_of_master_and_output(own: Run) -> None:
    assert apply(own.master, output="counts").path == own.master.with_name("master_counts.nxs")
    assert own.master.with_name("master_counts.nxs").exists()


def test_an_existing_file_is_refused_and_untouched(plain: Run, out: Path) -> None:
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        apply(plain.master, out)
    assert out.read_bytes() == b"precious"


def test_an_existing_file_is_replaced_when_told(plain: Run, out: Path) -> None:
    out.write_bytes(b"old")
    apply(plain.master, out, overwrite=True)
    same_bits(contents(out, "/entry/data/data"), plain.expected("energy")[0])


def _itself(run: Run) -> Path:
    return run.master


def _symbolic(run: Run) -> Path:
    link = run.master.with_name("symbolic.nxs")
    link.symlink_to(run.master)
    return link


def _hard(run: Run) -> Path:
    link = run.master.with_name("hard.nxs")
    os.link(run.master, link)
    return link


@pytest.mark.parametrize("alias", [_itself, _symbolic, _hard])
def test_the_master_is_never_the_output(own: Run, alias: Callable[[Run], Path]) -> None:
    target, before = alias(own), own.master.read_bytes()
    with pytest.raises(RequestError, match="which is read"):
        apply(own.master, target, overwrite=True)
    assert own.master.read_bytes() == before


def test_the_raw_file_is_never_the_output(own: Run) -> None:
    before = own.raw.read_bytes()
    with pytest.raises((RequestError, OutputError)):
        apply(own.master, own.raw, overwrite=True)
    assert own.raw.read_bytes() == before


def test_a_source_of_the_words_is_never_the_output(tmp_path: Path) -> None:
    run = build_virtual_run(tmp_path, (12, 4, 8))
    before = (tmp_path / "first.h5").read_bytes()
    with pytest.raises((RequestError, OutputError)):
        apply(run.master, tmp_path / "first.h5", overwrite=True)
    assert (tmp_path / "first.h5").read_bytes() == before


def test_a_directory_that_is_not_there_is_named(plain: Run, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        apply(plain.master, tmp_path / "nowhere" / "out.nxs")


def test_a_killed_writers_leftovers_are_taken_over(plain: Run, out: Path) -> None:
    out.with_name("out.nxs.part").write_bytes(b"half a file" * 1000)
    apply(plain.master, out)
    same_bits(contents(out, "/entry/data/data"), plain.expected("energy")[0])
    assert not out.with_name("out.nxs.part").exists()


def test_applying_twice_gives_the_same_image(own: Run, tmp_path: Path) -> None:
    for name in ("a.nxs", "b.nxs"):
        apply(own.master, tmp_path / name, output="counts")
    same_bits(contents(tmp_path / "a.nxs", "/entry/data/data"), contents(tmp_path / "b.nxs", "/entry/data/data"))


def test_a_big_endian_run_gives_the_same(tmp_path: Path, out: Path) -> None:
    run = build_run(tmp_path / "run", (3, 8, 16))
    with h5py.File(run.raw, "r+") as file:
        del file["data"]
        file.create_dataset("data", data=run.words.astype(">u2"))
    apply(run.master, out)
    same_bits(contents(out, "/entry/data/data"), run.expected("energy")[0])


# --- memory --------------------------------------------------------------------------------


def test_the_memory_that_is_allowed_makes_no_difference_to_the_file(plain: Run, tmp_path: Path) -> None:
    found = []
    for memory in (None, 1):
        apply(plain.master, tmp_path / f"{memory}.nxs", output="counts", max_memory=memory)
        found.append(contents(tmp_path / f"{memory}.nxs", "/entry/data/data"))
    same_bits(*found)


def test_too_little_memory_for_a_frame_is_refused(plain: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaincal.nexus.frames.FLAGS_BYTES", 1 << 20)
    with pytest.raises(RequestError, match=r"a frame on its way takes \d+ MiB"):
        apply(plain.master, out, max_memory=1)
    assert not out.exists()


@pytest.mark.parametrize("output", ["energy", "counts"])
def test_what_numpy_computes_is_what_is_compiled(
    plain: Run, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for uncompiled in (-1, 1 << 40):
        monkeypatch.setattr("gaincal.kernels.pipeline.UNCOMPILED_WORDS", uncompiled)
        target = tmp_path / f"{uncompiled}.nxs"
        result = apply(plain.master, target, output=output, errors=output == "energy")
        found.append((result.flags, contents(target, "/entry/data/data")))
        if output == "energy":
            found[-1] += (contents(target, "/entry/data/data_errors"),)
    assert found[0][0] == found[1][0]
    for compiled, interpreted in zip(found[0][1:], found[1][1:], strict=True):
        same_bits(compiled, interpreted)
