"""``info`` and ``validate``: what they say is what is there, and every fault has its code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FIRST_PULSE, PHOTON_ENERGY, Run, build_run, build_virtual_run, detector_formula, write_raw

from gaincal.errors import FileError, RequestError
from gaincal.verbs.embed import embed
from gaincal.verbs.inspect import Finding, info, stored_formula, validate

CALIBRATION = "/entry/instrument/detector/calibration/jungfrau"


def codes(path: Path, severity: str | None = None) -> list[str]:
    return [f.code for f in validate(path) if severity in (None, f.severity)]


# --- info ----------------------------------------------------------------------------------


def test_info_describes_words_formula_and_constants(plain: Run) -> None:
    found = info(plain.master)
    (raw,) = found["raw"]
    assert found["calibration"] == CALIBRATION
    assert raw == {
        "name": "raw",
        "path": f"{plain.raw}::/data",
        "shape": [12, 16, 32],
        "dtype": "uint16",
        "storage": ["fletcher32"],
        "checksummed": True,
        "datasets": 1,
        "gaps": 0,
        "unwritten_chunks": 0,
    }
    assert found["formula"]["digest"] == detector_formula().digest
    assert found["inputs"]["photon_energy"] == PHOTON_ENERGY
    assert found["ids"] == {"pulse_id": [FIRST_PULSE, FIRST_PULSE + 44]}
    gain = found["constants"][1]
    assert (gain["name"], gain["units"], gain["shape"], gain["labels"]) == ("gain", "ADU/keV", [3, 16, 32], [[0, 1, 2]])
    assert gain["not_finite"] == np.count_nonzero(~np.isfinite(plain.gain))


def test_info_counts_what_is_missing(virtual: Run) -> None:
    (raw,) = info(virtual.master)["raw"]
    assert (raw["datasets"], raw["gaps"], raw["unwritten_chunks"], raw["checksummed"]) == (2, 2, 1, False)


def test_info_says_which_outputs_and_flags_lack_something(own: Run) -> None:
    maps = {"pedestal": own.pedestal, "gain": own.gain}
    embed(own.raw, own.master, formula="jungfrau", constants=maps, overwrite=True)
    found = info(own.master)
    outputs = {o["name"]: (o["available"], o["lacking"], o["dtypes"], o["default"]) for o in found["outputs"]}
    assert outputs["energy"] == (True, [], ["float32"], True)
    assert outputs["counts"] == (False, ["photon_energy"], ["int32", "int16"], False)
    assert [f["name"] for f in found["flags"] if not f["tested"]] == ["masked"]
    assert found["inputs"]["photon_energy"] is None


@pytest.mark.parametrize("kind", ["plain", "virtual", "odd", "strip", "modules", "empty", "single"])
def test_info_of_every_run_is_plain_json(runs: Callable[[str], Run], kind: str) -> None:
    found = info(runs(kind).master)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_info_reads_no_words(own: Run) -> None:
    before = info(own.master)
    with h5py.File(own.raw) as file:
        offset = file["data"].id.get_chunk_info(0).byte_offset
    with own.raw.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(64))
    assert info(own.master) == before


def test_info_of_any_other_file_lists_its_largest_datasets(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "any.h5", "w") as file:
        for n in range(30):
            file[f"d{n}"] = np.zeros(n)
    found = info(tmp_path / "any.h5")
    assert found["calibration"] is None
    assert [d["path"] for d in found["datasets"][:3]] == ["/d29", "/d28", "/d27"]


def test_info_asks_for_a_calibration_by_name(plain: Run) -> None:
    assert info(plain.master, calibration="jungfrau")["others"] == []
    with pytest.raises(RequestError, match="'agipd'"):
        info(plain.master, calibration="agipd")
    with pytest.raises(RequestError, match="'agipd'"):
        info(plain.raw, calibration="agipd")


def test_the_stored_formula_needs_no_words(own: Run) -> None:
    own.raw.unlink()
    assert stored_formula(own.master) == detector_formula()
    with pytest.raises(FileError):
        info(own.master)


# --- validate ------------------------------------------------------------------------------


def test_a_good_run_has_no_errors(plain: Run) -> None:
    assert codes(plain.master, "error") == []
    assert "metadata-missing" in codes(plain.master, "warning")


@pytest.mark.parametrize("kind", ["odd", "strip", "modules", "empty", "single"])
def test_good_runs_of_every_kind_have_no_errors(runs: Callable[[str], Run], kind: str) -> None:
    assert codes(runs(kind).master, "error") == []


def test_errors_come_first(virtual: Run) -> None:
    order = ["error", "warning", "note"]
    severities = [order.index(f.severity) for f in validate(virtual.master)]
    assert severities == sorted(severities)


def test_missing_words_are_found(virtual: Run) -> None:
    missing = [f for f in validate(virtual.master) if f.code == "words-missing"]
    assert any("lost.h5" in f.problem for f in missing)
    assert any("never written" in f.problem and "second.h5" in f.place for f in missing)
    assert {f.severity for f in missing} == {"warning"}


def test_frames_that_no_source_covers_are_found(tmp_path: Path) -> None:
    run = build_virtual_run(tmp_path)
    with h5py.File(run.raw) as file:
        assert len(file["data"].virtual_sources()) == 3
    (tmp_path / "lost.h5").unlink(missing_ok=True)
    found = " ".join(f.problem for f in validate(run.master) if f.code == "words-missing")
    assert "(4, 0, 0)" in found, "frames 4 and 5 are in no file"


def test_unchecked_words_are_noted(tmp_path: Path) -> None:
    run = build_run(tmp_path, (3, 8, 16), chunks=(1, 8, 16))
    assert "words-unchecked" in codes(run.master, "note")


def test_constants_with_holes_are_noted(plain: Run) -> None:
    (finding,) = (f for f in validate(plain.master) if f.code == "constant-not-finite" and f.place.endswith("/gain"))
    assert str(np.count_nonzero(~np.isfinite(plain.gain))) in finding.problem


def test_what_cannot_be_computed_is_noted(own: Run) -> None:
    maps = {"pedestal": own.pedestal, "gain": own.gain}
    embed(own.raw, own.master, formula="jungfrau", constants=maps, overwrite=True)
    problems = {f.code: f.problem for f in validate(own.master) if f.severity == "note"}
    assert "photon_energy" in problems["output-unavailable"]
    assert "masked" in problems["flag-not-tested"]


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    run = build_run(tmp_path, (3, 8, 16), chunks=(1, 8, 16), compression="gzip")
    with h5py.File(run.raw) as file:
        info_ = file["data"].id.get_chunk_info(1)
    with run.raw.open("r+b") as stream:
        stream.seek(info_.byte_offset)
        stream.write(bytes(info_.size))
    (finding,) = (f for f in validate(run.master) if f.severity == "error")
    assert "(1, 0, 0)" in finding.place


def test_a_flipped_bit_behind_a_checksum_is_an_error(own: Run) -> None:
    with h5py.File(own.raw) as file:
        offset = file["data"].id.get_chunk_info(1).byte_offset
    with own.raw.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    assert codes(own.master, "error")


def test_a_changed_constant_is_an_error(own: Run) -> None:
    with h5py.File(own.master, "r+") as file:
        file[f"{CALIBRATION}/gain/gain"][0, 0, 0] = 40.0
    (finding,) = validate(own.master)
    assert (finding.code, finding.severity) == ("checksum-differs", "error")
    assert CALIBRATION in finding.place


@pytest.mark.parametrize("name", ["none.nxs", "text.nxs"])
def test_what_cannot_be_opened_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.nxs").write_text("not HDF5")
    (finding,) = validate(tmp_path / name)
    assert finding.severity == "error"
    assert name in finding.place


def test_a_file_without_calibration_is_an_error(plain: Run) -> None:
    assert codes(plain.raw) == ["no-calibration"]


def test_words_out_of_reach_are_an_error(own: Run) -> None:
    own.raw.unlink()
    assert codes(own.master, "error") == ["not-found"]


def test_a_raw_image_is_an_error(own: Run) -> None:
    with h5py.File(own.master, "r+") as file:
        file["/entry/data/words"] = h5py.ExternalLink("raw.h5", "/data")
        file["/entry/data"].attrs["signal"] = "words"
    (finding,) = (f for f in validate(own.master) if f.severity == "error")
    assert finding.code == "raw-as-image"


def test_findings_have_a_place_and_a_problem(virtual: Run) -> None:
    for finding in validate(virtual.master):
        assert isinstance(finding, Finding)
        assert finding.place.startswith(str(virtual.master.parent))
        assert finding.problem


def test_progress_counts_the_datasets_checked(virtual: Run) -> None:
    seen: list[tuple[int, int]] = []
    validate(virtual.master, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_validating_changes_nothing(own: Run) -> None:
    before = own.master.read_bytes(), own.raw.read_bytes()
    validate(own.master)
    assert (own.master.read_bytes(), own.raw.read_bytes()) == before


def test_every_calibration_of_a_file_is_validated(tmp_path: Path, own: Run) -> None:
    write_raw(tmp_path / "copy.h5", own.words)
    maps = {"pedestal": own.pedestal, "gain": own.gain}
    embed(tmp_path / "copy.h5", tmp_path / "two.nxs", formula="jungfrau", constants=maps)
    with h5py.File(tmp_path / "two.nxs", "r+") as file:
        file.copy(CALIBRATION, file[CALIBRATION].parent, "second")
        file[f"{CALIBRATION}/gain/gain"][0, 0, 0] = 7.0
    errors = [f for f in validate(tmp_path / "two.nxs") if f.severity == "error"]
    assert [f.code for f in errors] == ["checksum-differs"]
