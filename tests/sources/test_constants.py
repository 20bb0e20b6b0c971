"""Constants of several modules: stacked as PSI stacks them, or one file per module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.errors import FileError
from gaincal.formulas.formula import Constant
from gaincal.sources import constants
from gaincal.sources.constants import FileSlabs, load_constant
from gaincal.sources.files import Spec

Array = npt.NDArray[Any]
MODULES, Y, X = 3, 4, 6
PIXELS = (MODULES, Y, X)
GAIN = Constant("gain", ("stage", "module", "y", "x"), "ADU/keV")
WHOLE = np.random.default_rng(3).normal(40, 1, (3, MODULES, Y, X))


def load(text: str) -> Array:
    constant, _ = load_constant(Spec.parse(text), GAIN, ("stage",), PIXELS)
    assert constant.labels == ((0, 1, 2),)
    return np.asarray(constant.values)


def test_modules_below_each_other(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "gains.h5", "w") as file:
        file["gains"] = WHOLE.reshape(3, MODULES * Y, X)
    np.testing.assert_array_equal(load(f"{tmp_path}/gains.h5"), WHOLE)


@pytest.mark.parametrize("pattern", ["gainMaps_M{module:03d}.bin", "gainMaps_M{module:3}.bin"])
def test_a_gain_map_of_psi_per_module(tmp_path: Path, pattern: str) -> None:
    for module in range(MODULES):
        WHOLE[:, module].tofile(tmp_path / f"gainMaps_M{module:03d}.bin")
    np.testing.assert_array_equal(load(f"{tmp_path}/{pattern}"), WHOLE)


def test_a_dataset_per_module(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for module in range(MODULES):
            file[f"m{module}/gain"] = WHOLE[:, module]
    np.testing.assert_array_equal(load(f"{tmp_path}/all.h5::/m{{module}}/gain"), WHOLE)


def test_modules_without_a_file_are_nan(tmp_path: Path) -> None:
    for module in (0, 2):
        np.save(tmp_path / f"m{module}.npy", WHOLE[:, module])
    constant, provenance = load_constant(Spec(tmp_path / "m{module}.npy", None), GAIN, ("stage",), PIXELS)
    values = np.asarray(constant.values)
    np.testing.assert_array_equal(values[:, [0, 2]], WHOLE[:, [0, 2]])
    assert np.isnan(values[:, 1]).all()
    assert provenance.description == "2 of 3 modules"
    assert provenance.note == "gain: no file for module 1, whose pixels will be flagged"
    assert provenance.date


def test_axes_that_the_file_names(tmp_path: Path) -> None:
    for module in range(MODULES):
        with h5py.File(tmp_path / f"m{module}.h5", "w") as file:
            file["gain"] = WHOLE[:, module].transpose(2, 1, 0)
            file["gain"].attrs["dims"] = ["x", "y", "gain"]
    np.testing.assert_array_equal(load(f"{tmp_path}/m{{module}}.h5::/gain"), WHOLE)


def test_modules_that_differ_are_refused(tmp_path: Path) -> None:
    for module in range(MODULES):
        np.save(tmp_path / f"m{module}.npy", WHOLE[: 3 - module, module])
    with pytest.raises(FileError, match="that of another module"):
        load(f"{tmp_path}/m{{module}}.npy")


def test_integers_of_modules_stay_what_they_are(tmp_path: Path) -> None:
    counts = np.full((3, Y, X), 2**24 + 1, np.uint32)  # which float32 cannot hold
    for module in range(MODULES):
        np.save(tmp_path / f"m{module}.npy", counts)
    declared = Constant("count", ("stage", "module", "y", "x"), "1", "uint32")
    constant, _ = load_constant(Spec(tmp_path / "m{module}.npy", None), declared, ("stage",), PIXELS)
    values = np.asarray(constant.values)
    assert values.dtype == np.uint32
    assert (values == 2**24 + 1).all()
    (tmp_path / "m1.npy").unlink()
    with pytest.raises(FileError, match="cannot be marked"):
        load_constant(Spec(tmp_path / "m{module}.npy", None), declared, ("stage",), PIXELS)


def test_types_of_modules_that_differ_are_refused(tmp_path: Path) -> None:
    for module in range(MODULES):
        np.save(tmp_path / f"m{module}.npy", WHOLE[:, module].astype(np.float32 if module else np.float64))
    with pytest.raises(FileError, match="that of another module float64"):
        load(f"{tmp_path}/m{{module}}.npy")


def test_no_module_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nor that of any other module"):
        load(f"{tmp_path}/m{{module}}.npy")


def test_a_pattern_needs_modules(tmp_path: Path) -> None:
    np.save(tmp_path / "m0.npy", WHOLE[:, 0])
    declared = Constant("gain", ("stage", "y", "x"), "ADU/keV")
    with pytest.raises(FileError, match="the frames have none"):
        load_constant(Spec(tmp_path / "m{module}.npy", None), declared, ("stage",), (Y, X))


def test_what_is_large_stays_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "MAX_LOADED_BYTES", WHOLE.nbytes - 1)
    with h5py.File(tmp_path / "gain.h5", "w") as file:
        file["gain"] = WHOLE
    constant, _ = load_constant(Spec(tmp_path / "gain.h5", None), GAIN, ("stage",), PIXELS)
    assert isinstance(constant.values, FileSlabs)
    assert constant.values.shape == WHOLE.shape
    for place in np.ndindex(3, MODULES):
        np.testing.assert_array_equal(constant.values.slab(place), WHOLE[place])


def test_labels_of_one_axis_are_enough(tmp_path: Path) -> None:
    values = np.zeros((3, 2, Y, X))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["offset/offset"], file["offset/cell"] = values, [9, 4]
    declared = Constant("offset", ("stage", "cell", "y", "x"), "ADU")
    spec = Spec.parse(f"{tmp_path}/c.h5::/offset")
    constant, _ = load_constant(spec, declared, ("stage", "cell"), (Y, X))
    assert constant.labels == ((0, 1, 2), (9, 4))


def test_pedestals_are_not_taken_for_noise(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "pedestal.h5", "w") as file:
        file["gains"], file["gainsRMS"] = np.full((3, Y, X), 3000.0), np.full((3, Y, X), 12.0)
    for name, level in (("pedestal", 3000), ("noise", 12)):
        declared = Constant(name, ("stage", "y", "x"), "ADU")
        constant, _ = load_constant(Spec(tmp_path / "pedestal.h5", None), declared, ("stage",), (Y, X))
        assert np.asarray(constant.values)[0, 0, 0] == level
    with pytest.raises(FileError, match="several datasets"):
        load_constant(
            Spec(tmp_path / "pedestal.h5", None), Constant("gain_error", ("stage", "y", "x"), "1"), ("stage",), (Y, X)
        )
