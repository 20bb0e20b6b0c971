"""NumPy files of raw words: taken as they are, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from catalogue import independent

from gaincal import embed, open_calibrated, open_calibrated_dataset
from gaincal.errors import FileError, RequestError
from gaincal.sources.arrays import recognise

Array = npt.NDArray[Any]
SEGMENTS, ROWS, COLUMNS = 2, 352, 384


@pytest.mark.parametrize("shape", [(5, 16), (5, 8, 16), (5, 2, 8, 16)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "u4"])
def test_words_of_any_rank(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    words = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    np.save(tmp_path / "raw.npy", words)
    run = recognise(tmp_path / "raw.npy")
    assert run is not None
    assert (run.frames, run.pixels, run.formula) == (5, shape[1:], None)
    read = run.words["raw"].read
    assert read is not None
    found, missing = read(1, 3)
    assert missing is None
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, words[1:4])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((2, 3, 4), np.int16), "words are unsigned"),
        (np.zeros((2, 3, 4), np.float32), "words are unsigned"),
        (np.zeros(4, np.uint16), "words are unsigned"),
        (np.zeros((2, 3, 4), np.uint64), "words are unsigned"),
        (np.asfortranarray(np.zeros((2, 3, 4), np.uint16)), "column by column"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, values: Array, said: str) -> None:
    np.save(tmp_path / "raw.npy", values)
    with pytest.raises(FileError, match=said):
        recognise(tmp_path / "raw.npy")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x93NUMPY\x01\x00\xff\xff{}"]
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "raw.npy").write_bytes(content)
    with pytest.raises(FileError) as caught:
        recognise(tmp_path / "raw.npy")
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.zeros((4, 8, 16), np.uint16))
    whole = (tmp_path / "raw.npy").read_bytes()
    (tmp_path / "raw.npy").write_bytes(whole[:-100])
    with pytest.raises(FileError):
        recognise(tmp_path / "raw.npy")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.array([[{"a": 1}]], object), allow_pickle=True)
    with pytest.raises(FileError):
        recognise(tmp_path / "raw.npy")


def test_other_files_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "raw.h5").write_bytes(b"")
    assert recognise(tmp_path / "raw.h5") is None
    assert recognise(tmp_path) is None


def test_a_path_inside_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.zeros((4, 8, 16), np.uint16))
    with pytest.raises(FileError, match="has no paths"):
        recognise(tmp_path / "raw.npy", "/raw")


def test_ten_thousand_pixel_epix10ka_as_lcls_exports_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frames, shape = 4, (SEGMENTS, ROWS, COLUMNS)
    words = rng.integers(0, 1 << 15, (frames, *shape), dtype=np.uint16)
    config = rng.integers(0, 16, shape).astype(np.uint8)
    trbit = rng.integers(0, 2, shape).astype(np.uint8)
    gain = np.array([16.4, 5.466, 0.164, 16.4, 5.466, 0.164, 0.164]).reshape(7, 1, 1, 1) * rng.uniform(
        0.9, 1.1, (7, *shape)
    )
    pedestal = rng.normal(3000, 50, (7, *shape))
    for name, values in {"raw": words, "config": config, "trbit": trbit, "gain": gain, "pedestal": pedestal}.items():
        np.save(tmp_path / f"{name}.npy", values)
    constants = {n: tmp_path / f"{n}.npy" for n in ("pedestal", "gain")}
    inputs = {n: tmp_path / f"{n}.npy" for n in ("config", "trbit")}
    master = tmp_path / "m.nxs"
    done = embed(tmp_path / "raw.npy", master, formula="epix10ka_modules", constants=constants, inputs=inputs)
    assert any("NumPy array" in note for note in done.notes)
    wanted = independent.epix10ka(words, config, trbit, pedestal, gain)
    with open_calibrated_dataset(master) as found:
        np.testing.assert_array_equal(found["stage"].values, wanted.stage)
        energy = found["energy"].values
    bad = np.isnan(wanted.value)
    np.testing.assert_array_equal(np.isnan(energy), bad)
    np.testing.assert_allclose(energy[~bad], wanted.value[~bad], rtol=1e-4, atol=1e-2)
    (tmp_path / "raw.npy").unlink()  # the words were copied
    with open_calibrated(master) as array:
        np.testing.assert_array_equal(array[1, 1].values, energy[1, 1])


def test_a_formula_must_be_named(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.zeros((4, 8, 16), np.uint16))
    with pytest.raises(RequestError, match="name a formula"):
        embed(tmp_path / "raw.npy", tmp_path / "m.nxs", constants={})


def test_strips_are_stored_frame_by_frame(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 1 << 12, (50, 1280), dtype=np.uint16)
    np.save(tmp_path / "raw.npy", words)
    maps = {"pedestal": np.full((4, 1280), 900.0), "gain": np.ones((4, 1280))}
    embed(tmp_path / "raw.npy", tmp_path / "m.nxs", formula="gotthard2", constants=maps)
    with open_calibrated_dataset(tmp_path / "m.nxs") as found:
        np.testing.assert_array_equal(found["raw"].values, words)
    with h5py.File(tmp_path / "m.nxs") as file:
        assert file["/entry/instrument/detector/raw/data"].chunks == (1, 1280)
