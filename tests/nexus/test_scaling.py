"""NXmx's own scale and offset: a file that states them needs no constants, and readers of a master see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal import apply, embed, open_calibrated
from gaincal.errors import BindError, FileError
from gaincal.formulas import catalog
from gaincal.nexus.scaling import is_scaling

Array = npt.NDArray[Any]
SHAPE = (3, 6, 10)
WORDS = np.random.default_rng(0).integers(0, 65536, SHAPE, dtype=np.uint16)
DETECTOR = "/entry/instrument/detector"


def nxmx(path: Path, **fields: Any) -> Path:
    with h5py.File(path, "w") as file:
        for group, nx_class in (
            ("", "NXentry"),
            ("/instrument", "NXinstrument"),
            ("/instrument/detector", "NXdetector"),
        ):
            file.require_group(f"/entry{group}").attrs["NX_class"] = nx_class
        file["/entry/definition"] = "NXmx"
        file[f"{DETECTOR}/data"] = WORDS
        for name, values in fields.items():
            file[f"{DETECTOR}/{name}"] = values
    return path


def read(path: Path) -> Array:
    with open_calibrated(path) as array:
        return np.asarray(array.values)


@pytest.mark.parametrize("factor", [0.25, np.float32(0.1), np.linspace(0.5, 2, 60).reshape(SHAPE[1:])])
@pytest.mark.parametrize("offset", [None, -100.0, np.arange(60.0).reshape(SHAPE[1:])])
def test_a_file_that_states_them_needs_no_constants(tmp_path: Path, factor: Any, offset: Any) -> None:
    stated = {"data_scaling_factor": factor} | ({} if offset is None else {"data_offset": offset})
    raw = nxmx(tmp_path / "raw.nxs", **stated)
    embed(f"{raw}::{DETECTOR}/data", tmp_path / "m.nxs", formula="linear", constants={})
    single = np.float32
    wanted = (WORDS.astype(single) + np.asarray(0 if offset is None else offset, single)) * np.asarray(factor, single)
    np.testing.assert_array_equal(read(tmp_path / "m.nxs"), wanted)


def test_what_is_given_holds_over_what_is_stated(tmp_path: Path) -> None:
    raw = nxmx(tmp_path / "raw.nxs", data_scaling_factor=2.0)
    given = {"scaling_factor": np.full(SHAPE[1:], 3.0)}
    embed(f"{raw}::{DETECTOR}/data", tmp_path / "m.nxs", formula="linear", constants=given)
    np.testing.assert_array_equal(read(tmp_path / "m.nxs"), WORDS.astype(np.float32) * np.float32(3))


def test_a_master_states_them_for_other_readers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = WORDS
    offset = np.arange(60.0).reshape(SHAPE[1:])
    given = {"scaling_factor": np.full(SHAPE[1:], 0.5), "offset": offset}
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="linear", constants=given)
    with h5py.File(tmp_path / "m.nxs") as file:
        detector = file[DETECTOR]
        factor, shift = detector["data_scaling_factor"][()], detector["data_offset"][()]
    assert factor.shape == ()
    theirs = (WORDS.astype(np.float32) + shift.astype(np.float32)) * np.float32(factor)
    np.testing.assert_array_equal(theirs, read(tmp_path / "m.nxs"))


def test_calibrated_values_are_not_to_be_scaled_again(tmp_path: Path) -> None:
    raw = nxmx(tmp_path / "raw.nxs", data_scaling_factor=2.0, data_offset=1.0)
    embed(f"{raw}::{DETECTOR}/data", tmp_path / "m.nxs", formula="linear", constants={})
    apply(tmp_path / "m.nxs", tmp_path / "out.nxs")
    with h5py.File(tmp_path / "out.nxs") as file:
        assert not {"data_scaling_factor", "data_offset"} & set(file[DETECTOR])


def test_a_map_of_other_frames_is_refused(tmp_path: Path) -> None:
    raw = nxmx(tmp_path / "raw.nxs", data_scaling_factor=np.ones((6, 9)))
    with pytest.raises(FileError, match="the frames are"):
        embed(f"{raw}::{DETECTOR}/data", tmp_path / "m.nxs", formula="linear", constants={})


def test_without_them_a_factor_is_needed(tmp_path: Path) -> None:
    raw = nxmx(tmp_path / "raw.nxs")
    with pytest.raises(BindError, match="needs scaling_factor"):
        embed(f"{raw}::{DETECTOR}/data", tmp_path / "m.nxs", formula="linear", constants={})


def test_only_formulas_that_say_the_same_are_written_so() -> None:
    same = {name for name in catalog.names() if is_scaling(catalog.get(name))}
    assert same == {"linear", "linear_modules", "mpccd", "mpccd_modules"}
