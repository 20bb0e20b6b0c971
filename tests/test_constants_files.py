"""Constants files: read back as written, checked, compared, and found by the runs they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from gaincal.cli import main
from gaincal.errors import FileError, RequestError
from gaincal.nexus.atomic import atomic_output
from gaincal.nexus.constantsfile import ConstantsWriter, read_constants, read_validity
from gaincal.nexus.read import open_master
from gaincal.sources.facts import merged, parse_facts, parse_time
from gaincal.sources.nearest import choose
from gaincal.verbs.constants import diff
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
PIXELS = (8, 64)
REASONS = {"dead": 1, "noisy": 2}
WANTED = ("pedestal", "gain", "noise", "pixel_mask")
NOON = "2026-03-01T12:00:00Z"


def write_set(path: Path, seed: int = 0, stages: tuple[int, ...] = (0, 1, 2), **facts: Any) -> Path:
    rng = np.random.default_rng(seed)
    with atomic_output(path) as written:
        writer = ConstantsWriter(written.file, PIXELS)
        for name, kind in (("pedestal", np.float32), ("noise", np.float32), ("reasons", np.uint32)):
            writer.create(name, kind, "ADU" if kind == np.float32 else None, {"stage": ()})
            for stage in stages:
                level = {"pedestal": 3000 + 1000 * stage, "noise": 15, "reasons": 0}[name]
                values = rng.normal(level, 1, PIXELS) if kind == np.float32 else np.zeros(PIXELS)
                writer.put(name, (stage,), values)
        mask = np.zeros(PIXELS, np.uint32)
        mask[0, seed] = 2
        writer.finish(mask, REASONS, facts, {"method": "mean", "clip": 6.0, "frames_used_stage_0": 100})
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    words = np.random.default_rng(9).normal(3000, 15, (4, *PIXELS)).astype(np.uint16)
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["words"] = words
    return tmp_path / "raw.h5"


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_set(tmp_path / "c.nxs", stages=(0, 2), start_time=NOON, exposure_time=1e-5)
    found = read_constants(path)
    assert found.labels("pedestal") == {"stage": (0, 2)}
    assert found.units == {"pedestal": "ADU", "noise": "ADU", "reasons": ""}
    assert found.reason_names == {1: "dead", 2: "noisy"}
    assert found.validity == {"start_time": NOON, "exposure_time": 1e-5} == read_validity(path)
    assert found.parameters == {"method": "mean", "clip": 6.0, "frames_used_stage_0": 100}
    assert np.count_nonzero(found.pixel_mask) == 1
    values = found.constants["pedestal"].values
    assert isinstance(values, np.ndarray)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), [3000, 5000], atol=0.5)


def test_it_is_nexus(tmp_path: Path) -> None:
    nxload = pytest.importorskip("nexusformat.nexus", reason="not in the oldest dependency set").nxload
    root = nxload(str(write_set(tmp_path / "c.nxs", start_time=NOON)))
    assert root["entry/constants/pedestal"].nxsignal.nxname == "pedestal"
    assert root["entry/constants/pedestal"].nxaxes[0].nxdata.tolist() == [0, 1, 2]
    assert root["entry/constants"].nxclass == "NXcollection"


@pytest.mark.parametrize("name", ["pedestal/pedestal", "pedestal/stage", "pixel_mask", "validity/exposure_time"])
def test_what_was_changed_is_refused(tmp_path: Path, name: str) -> None:
    path = write_set(tmp_path / "c.nxs", exposure_time=1e-5)
    with h5py.File(path, "r+") as file:
        dataset = file[f"entry/constants/{name}"]
        dataset[...] = dataset[()] + 1
    with pytest.raises(FileError, match="checksum differs"):
        read_constants(path)


def test_another_file_is_no_constants_file(raw: Path) -> None:
    with pytest.raises(FileError, match="is no constants file"):
        read_constants(raw)


def test_what_was_never_put_is_nan_and_not_missing(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "c.nxs") as written:
        writer = ConstantsWriter(written.file, (3, *PIXELS))
        writer.create("offset", np.float32, "ADU", {"stage": (), "cell": (4, 9)})
        writer.put("offset", (1, 9), np.ones((3, *PIXELS)))
        writer.finish(np.zeros((3, *PIXELS), np.uint32), REASONS, {}, {})
    values = read_constants(tmp_path / "c.nxs").constants["offset"].values
    assert isinstance(values, np.ndarray)
    assert values.shape == (1, 2, 3, *PIXELS)
    assert np.isnan(values[0, 0]).all()
    assert (values[0, 1] == 1).all()


def test_strips_have_pedestals_too(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "c.nxs") as written:
        writer = ConstantsWriter(written.file, (1280,))
        writer.create("pedestal", np.float32, "ADU", {"stage": ()})
        for stage in (0, 1):
            writer.put("pedestal", (stage,), np.full(1280, stage + 1))
        writer.finish(np.zeros(1280, np.uint32), REASONS, {}, {})
    values = read_constants(tmp_path / "c.nxs").constants["pedestal"].values
    assert isinstance(values, np.ndarray)
    assert values[:, 0].tolist() == [1, 2]


def test_the_nearest_set_is_taken(tmp_path: Path) -> None:
    for hour in (8, 11, 15):
        write_set(tmp_path / f"c{hour}.nxs", start_time=f"2026-03-01T{hour:02}:00:00Z", exposure_time=1e-5)
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    found = choose(tmp_path, WANTED, {"start_time": NOON, "exposure_time": 1.001e-5})
    assert {n: f.name for n, f in found.files.items()} == dict.fromkeys(("pedestal", "noise", "pixel_mask"), "c11.nxs")
    assert found.notes[0] == "constants: c11.nxs, the nearest in time: taken 1.0 h before the run; 2 other set(s)"
    zoned = choose(tmp_path, WANTED, {"start_time": "2026-03-01T15:00:00+01:00"})
    assert zoned.notes[0].startswith("constants: c15.nxs, the nearest in time: taken 1.0 h after the run")


def test_sets_that_do_not_fit_are_refused_or_said(tmp_path: Path) -> None:
    write_set(tmp_path / "c.nxs", start_time="2026-03-01T02:00:00Z", exposure_time=1e-5, detector_name="JF01T01V01")
    data = {"start_time": NOON, "exposure_time": 2e-5, "detector_name": "JF07T32V01"}
    with pytest.raises(FileError, match=r"no set fits: c\.nxs: is of detector_name JF01T01V01, the run of JF07T32V01"):
        choose(tmp_path, WANTED, data)
    with pytest.raises(FileError, match=r"taken 10\.0 h before the run, more than 4 h"):
        choose(tmp_path, WANTED, {"start_time": NOON}, max_age=4)
    with pytest.raises(FileError, match="cannot be dated"):
        choose(tmp_path, WANTED, {}, max_age=4)
    warned = choose(tmp_path, WANTED, data, max_age=4, mismatch="warn").notes
    assert len(warned) == 4
    assert "c.nxs is of exposure_time 1e-05, the run of 2e-05" in warned[2]
    with pytest.raises(RequestError, match="refuse or warn"):
        choose(tmp_path, WANTED, data, mismatch="perhaps")


def test_a_misfit_is_left_out_for_one_that_fits(tmp_path: Path) -> None:
    write_set(tmp_path / "a.nxs", start_time=NOON, exposure_time=1e-3)
    write_set(tmp_path / "b.nxs", start_time="2026-03-01T02:00:00Z", exposure_time=1e-5)
    found = choose(tmp_path, WANTED, {"start_time": NOON, "exposure_time": 1e-5})
    assert {f.name for f in found.files.values()} == {"b.nxs"}
    assert "a.nxs left out, is of exposure_time 0.001, the run of 1e-05" in found.notes[1]


def test_without_times_nobody_knows_the_nearest(tmp_path: Path) -> None:
    write_set(tmp_path / "a.nxs")
    assert "how old it is nobody knows" in choose(tmp_path, WANTED, {"start_time": NOON}).notes[0]
    write_set(tmp_path / "b.nxs")
    with pytest.raises(FileError, match="no times tell which is the nearest"):
        choose(tmp_path, WANTED, {"start_time": NOON})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="holds no constants file"):
        choose(tmp_path / "empty", WANTED, {})
    with pytest.raises(FileError, match="has nothing that the formula takes: noise, pedestal, pixel_mask, reasons"):
        choose(tmp_path / "a.nxs", ("offset",), {})


def test_each_constant_comes_from_the_nearest_set_that_has_it(tmp_path: Path) -> None:
    write_set(tmp_path / "darks.nxs", start_time="2026-03-01T02:00:00Z")
    with atomic_output(tmp_path / "gains.nxs") as written:
        writer = ConstantsWriter(written.file, PIXELS)
        writer.create("gain", np.float32, "ADU/keV", {"stage": ()})
        writer.put("gain", (0,), np.full(PIXELS, 40.0))
        writer.finish(None, {}, {"start_time": "2026-03-01T11:00:00Z"}, {})
    found = choose(tmp_path, WANTED, {"start_time": NOON})
    taken = {"pedestal": "darks.nxs", "gain": "gains.nxs", "noise": "darks.nxs", "pixel_mask": "darks.nxs"}
    assert {n: f.name for n, f in found.files.items()} == taken
    assert [note.split(", the")[0] for note in found.notes] == ["constants: darks.nxs", "constants: gains.nxs"]
    assert choose(tmp_path / "gains.nxs", WANTED, {}).mask is None
    with h5py.File(tmp_path / "gains.nxs", "r+") as file:
        file["entry/constants/gain/gain"][0, 0, 0] = 41
    with pytest.raises(FileError, match="check"):
        read_constants(tmp_path / "gains.nxs")


def test_embed_takes_constants_and_mask_of_the_set(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "constants"
    folder.mkdir()
    write_set(folder / "c.nxs", 3, start_time=NOON)
    gain = np.full((3, *PIXELS), 41.0, np.float32)
    done = embed(
        raw,
        tmp_path / "m.nxs",
        formula="jungfrau",
        constants={"gain": gain},
        constants_from=folder,
        settings={"photon_energy": 12.4, "start_time": "2026-03-01T13:00:00Z"},
        source="plain",
    )
    assert "constants: c.nxs, the nearest in time: taken 1.0 h before the run" in done.notes
    master = open_master(done.path)
    with master.resolver:
        expected = read_constants(folder / "c.nxs")
        bound = master.calibration.arrays["pedestal"]
        np.testing.assert_array_equal(np.asarray(bound), expected.constants["pedestal"].values)
        np.testing.assert_array_equal(master.calibration.arrays["pixel_mask"], expected.pixel_mask)


def test_the_command_line_says_which_set_was_taken(raw: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "c.nxs", start_time=NOON)
    np.save(tmp_path / "gain.npy", np.full((3, *PIXELS), 41.0))
    command = ["embed", f"{raw}::/words", "-o", str(tmp_path / "m.nxs"), "--formula", "jungfrau", "--source", "plain"]
    command += ["--constant", f"gain={tmp_path / 'gain.npy'}", "--constants", str(tmp_path / "c.nxs"), "--max-age", "2"]
    told = CliRunner().invoke(main, [*command, "--set", "start_time=2026-03-01T13:30:00Z", "--set", "photon_energy=9"])
    assert told.exit_code == 0, told.output
    assert "taken 1.5 h before the run" in told.output
    late = CliRunner().invoke(main, [*command, "--overwrite", "--set", "start_time=2026-03-02T13:30:00Z"])
    assert late.exit_code == FileError.exit_code
    assert "taken 25.5 h before the run, more than 2 h" in late.output


@pytest.mark.parametrize("fact", ["module_serials", "gain_mode", "exposure_time"])
@pytest.mark.parametrize("who_says_it", ["user", "file"])
def test_a_set_for_something_else_is_refused(fact: str, who_says_it: str, raw: Path, tmp_path: Path) -> None:
    of_run, of_set = {"module_serials": ("049,307", "049,308"), "gain_mode": ("dynamic", "forceswitchg1")}.get(
        fact, (1e-5, 1e-3)
    )
    write_set(tmp_path / "c.nxs", start_time=NOON, **{fact: of_set})
    settings: dict[str, object] = {"photon_energy": 12.4}
    if who_says_it == "user":
        settings[fact] = of_run
    else:
        with h5py.File(raw, "r+") as file:
            file.create_group("entry").attrs["NX_class"] = "NXentry"
            instrument = file.create_group("entry/instrument")
            instrument.attrs["NX_class"] = "NXinstrument"
            detector = instrument.create_group("detector")
            detector.attrs["NX_class"] = "NXdetector"
            field = {"module_serials": "serial_number", "gain_mode": "gain_setting"}.get(fact, "count_time")
            detector[field] = np.bytes_(of_run) if isinstance(of_run, str) else of_run
            detector[field].attrs["units"] = "s"

    def embedded(target: Path, mismatch: str) -> list[str]:
        gain = {"gain": np.full((3, *PIXELS), 41.0, np.float32)}
        how = {"formula": "jungfrau", "constants": gain, "constants_from": tmp_path / "c.nxs", "settings": settings}
        return embed(f"{raw}::/words", target, source="plain", on_mismatch=mismatch, **how).notes

    with pytest.raises(FileError, match=f"no set fits: c.nxs: is of {fact} {of_set}, the run of {of_run}"):
        embedded(tmp_path / "m.nxs", "refuse")
    assert f"constants: c.nxs is of {fact} {of_set}, the run of {of_run}" in embedded(tmp_path / "m.nxs", "warn")


def test_two_sets_are_compared(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a.nxs", 1, exposure_time=1e-5)
    b = write_set(tmp_path / "b.nxs", 2, stages=(0, 1), exposure_time=1e-4)
    found = diff(a, b)
    assert [d.labels["stage"] for d in found.differences if d.constant == "pedestal"] == [0, 1]
    assert all(abs(d.median) < 0.3 and 1 < d.scatter < 2 for d in found.differences)
    assert any(line.startswith("pedestal, stage 2: only in") for line in found.lacking)
    assert found.masked == {"first": 1, "second": 1, "now bad": 1, "now good": 1}
    assert found.now_bad == {"dead": 1}
    assert found.facts == {"exposure_time": (1e-5, 1e-4)}
    told = CliRunner().invoke(main, ["constants", "diff", str(a), str(b)])
    assert "pedestal   stage 0            median" in told.output
    assert json.loads(CliRunner().invoke(main, ["constants", "diff", str(a), str(b), "--json"]).output)["masked"]


def test_sets_of_other_frames_are_not_compared(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a.nxs")
    with atomic_output(tmp_path / "b.nxs") as written:
        writer = ConstantsWriter(written.file, (4, 4))
        writer.finish(np.zeros((4, 4), np.uint32), REASONS, {}, {})
    with pytest.raises(FileError, match="has frames of"):
        diff(a, tmp_path / "b.nxs")


def test_facts_of_several_runs_are_what_is_true_of_all() -> None:
    found = merged(
        [
            {"start_time": "2026-03-01T12:00:00Z", "exposure_time": 1e-5, "detector_name": "JF"},
            {"start_time": "2026-03-01T11:00:00+02:00", "exposure_time": 2e-5, "detector_name": "JF"},
        ]
    )
    assert found == {"start_time": "2026-03-01T11:00:00+02:00", "detector_name": "JF"}
    assert parse_time("yesterday") is None
    with pytest.raises(RequestError, match="not a time"):
        parse_facts({"start_time": "yesterday"})
    with pytest.raises(RequestError, match="nothing is called 'mood'"):
        parse_facts({"mood": "good"})
