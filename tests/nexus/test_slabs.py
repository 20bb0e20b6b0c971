"""Checksums slab by slab: of any shape, and of constants that are larger than is good to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Run

from gaincal import open_calibrated
from gaincal.errors import FileError
from gaincal.nexus import group
from gaincal.nexus.slabs import array_digest, checksums_shape, slab, slab_places
from gaincal.verbs.inspect import validate

Array = npt.NDArray[Any]
GAIN = "/entry/instrument/detector/calibration/jungfrau/gain/gain"


@pytest.mark.parametrize(
    ("shape", "leading"),
    [((), ()), ((5,), ()), ((4, 6), ()), ((3, 4, 6), (3,)), ((3, 2, 4, 6), (3, 2)), ((0, 4, 6), (0,))],
)
def test_a_slab_is_what_the_last_two_dims_hold(shape: tuple[int, ...], leading: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    assert checksums_shape(shape) == (*leading, 32)
    places = list(slab_places(shape))
    assert len(places) == np.prod(leading, dtype=int)
    for place in places:
        part = slab(values, place)
        np.testing.assert_array_equal(part, values[place])
        text = f"f4|{','.join(str(n) for n in part.shape)}|".encode() + part.tobytes()
        assert array_digest(part) == hashlib.sha256(text).digest()


@pytest.fixture
def damaged(runs: Callable[[str], Run], tmp_path: Path) -> Path:
    """A master in which one number of one plane of the gains was changed, with the checksum of its chunk made right."""
    master = runs("plain").master
    target = tmp_path / "master.nxs"
    copyfile(master, target)
    copyfile(runs("plain").raw, tmp_path / runs("plain").raw.name)
    with h5py.File(target, "r+") as file:
        file[GAIN][1, 2, 3] *= 2
    return target


def test_a_changed_number_is_found_when_the_file_is_opened(damaged: Path) -> None:
    with pytest.raises(FileError, match="its checksum differs") as caught:
        open_calibrated(damaged)
    assert caught.value.code == "checksum-differs"


def test_a_changed_number_of_a_large_constant_is_found_when_it_is_read(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "MAX_LOADED_BYTES", 0)
    with open_calibrated(damaged) as array, pytest.raises(FileError, match="its checksum differs"):
        array.values  # noqa: B018
    assert "checksum-differs" in {f.code for f in validate(damaged)}


def test_a_slab_that_was_never_written_is_refused(
    runs: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "master.nxs"
    copyfile(runs("plain").master, target)
    with h5py.File(target, "r+") as file:
        field = file[GAIN]
        shape, attributes = field.shape, dict(field.attrs)
        del file[GAIN]
        fresh = file.create_dataset(GAIN, shape, np.float32, chunks=(1, *shape[1:]))
        fresh.attrs.update(attributes)
    with pytest.raises(FileError, match="never written") as caught:
        open_calibrated(target)
    assert caught.value.code == "incomplete"
