"""Sources: which dataset is meant, and what a constant, a mask or an id looks like in the files of facilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from contract import same_bits

from gaincal.errors import FileError, TrustError
from gaincal.formulas.formula import Constant
from gaincal.nexus.trust import Resolver
from gaincal.sources.constants import load_constant
from gaincal.sources.files import Spec, datasets, find_words, load_numbers
from gaincal.sources.masks import read_mask

Array = npt.NDArray[Any]
PIXELS = (4, 6)
GAIN = Constant("gain", ("stage", "y", "x"), "ADU/keV")
FLAT = Constant("flat", ("y", "x"), "1")
MAP = np.arange(72.0).reshape(3, 4, 6)


def hdf5(path: Path, **content: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name.replace("__", "/")] = values
    return path


@pytest.mark.parametrize(
    ("text", "file", "path"),
    [
        ("run.h5", "run.h5", None),
        ("run.h5::/data", "run.h5", "/data"),
        ("a/b.h5::data/x", "a/b.h5", "data/x"),
        ("run.h5::", "run.h5", ""),
        ("a:b.h5", "a:b.h5", None),
    ],
)
def test_a_spec_is_a_file_and_perhaps_a_path(text: str, file: str, path: str | None) -> None:
    assert Spec.parse(text) == Spec(Path(file), path)


def found(path: Path, rank: int = 3, wanted: str | None = None) -> str:
    with Resolver(path) as resolver:
        return find_words(resolver, wanted, rank).path


def test_the_only_unsigned_dataset_of_the_rank_holds_the_words(tmp_path: Path) -> None:
    content = {
        "a__words": np.zeros((2, 4, 6), np.uint16),
        "b": np.zeros((2, 4, 6), np.int16),
        "c": np.zeros(3, np.uint16),
    }
    assert found(hdf5(tmp_path / "raw.h5", **content)) == "/a/words"


@pytest.mark.parametrize("count", [0, 2])
def test_words_that_are_not_unique_are_refused(tmp_path: Path, count: int) -> None:
    path = hdf5(tmp_path / "raw.h5", other=1.0, **{f"w{n}": np.zeros((2, 4, 6), np.uint16) for n in range(count)})
    with pytest.raises(FileError, match="/w0, /w1" if count else "no dataset holds raw words") as caught:
        found(path)
    assert caught.value.code == "ambiguous"
    assert f"{path}::/path" in caught.value.remedy


def test_a_named_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "raw.h5", a=np.zeros((2, 4, 6), np.uint16), b=np.zeros((2, 4, 6), np.uint16))
    assert found(path, wanted="/b") == "/b"


def test_a_search_ends_in_a_loop_of_links(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "raw.h5", a__words=np.zeros((2, 4, 6), np.uint16))
    with h5py.File(path, "r+") as file:
        file["a/again"], file["a/soft"], file["a/gone"] = file["a"], h5py.SoftLink("/a/soft"), h5py.SoftLink("/no")
    with Resolver(path) as resolver:
        assert "/a/words" in [p.path for p in datasets(resolver)]


def test_a_loop_of_hard_links_does_not_make_words_ambiguous(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "raw.h5", a__words=np.zeros((2, 4, 6), np.uint16))
    with h5py.File(path, "r+") as file:
        file["alias"] = file["a/words"]
    assert found(path) in ("/a/words", "/alias")


# --- constants -----------------------------------------------------------------------------


def load(path: Path | str, declared: Constant = GAIN) -> tuple[Array, Any]:
    axes = tuple(d for d in declared.dims if d not in ("y", "x"))
    constant, _ = load_constant(Spec.parse(str(path)), declared, axes, PIXELS)
    return constant.values, constant.labels


@pytest.mark.parametrize("planes", [1, 3, 4, 6])
def test_bin_files_hold_planes_of_doubles(tmp_path: Path, planes: int) -> None:
    values = np.arange(planes * 24.0).reshape(planes, *PIXELS)
    values.astype("<f8").tofile(tmp_path / "gain.bin")
    loaded, labels = load(tmp_path / "gain.bin")
    same_bits(loaded, values)
    assert labels == (tuple(range(planes)),)


@pytest.mark.parametrize("planes", [3, 4, 6])
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i2"])
def test_psi_files_hold_their_constants_in_gains(tmp_path: Path, planes: int, dtype: str) -> None:
    values = np.arange(planes * 24).reshape(planes, *PIXELS).astype(dtype)
    loaded, labels = load(hdf5(tmp_path / "gain.h5", gains=values, gain=values + 1))
    same_bits(loaded, values.astype(np.dtype(dtype).newbyteorder("=")))
    assert labels == (tuple(range(planes)),)


def test_without_gains_the_dataset_of_the_constants_name_is_taken(tmp_path: Path) -> None:
    same_bits(load(hdf5(tmp_path / "c.h5", gain=MAP, other=MAP + 1))[0], MAP)


def test_else_the_only_one_of_the_rank_is_taken(tmp_path: Path) -> None:
    same_bits(load(hdf5(tmp_path / "c.h5", deep__map=MAP, flat=MAP[0]))[0], MAP)


def test_several_candidates_are_listed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="/a, /b") as caught:
        load(hdf5(tmp_path / "c.h5", a=MAP, b=MAP))
    assert caught.value.code == "ambiguous"


def test_a_named_path_wins(tmp_path: Path) -> None:
    same_bits(load(f"{hdf5(tmp_path / 'c.h5', gains=MAP, mine=MAP + 1)}::/mine")[0], MAP + 1)


def test_labels_lie_beside_the_constant(tmp_path: Path) -> None:
    hdf5(tmp_path / "c.h5", g__gain=MAP, g__stage=np.array([2, 0, 1], np.uint8))
    assert load(f"{tmp_path / 'c.h5'}::/g/gain")[1] == ((2, 0, 1),)


@pytest.mark.parametrize("stage", [np.array([0.0, 1.0, 2.0]), np.array([[0, 1, 2]]), np.array(3)])
def test_what_is_no_list_of_integers_is_no_label(tmp_path: Path, stage: Array) -> None:
    assert load(hdf5(tmp_path / "c.h5", gain=MAP, stage=stage))[1] == ((0, 1, 2),)


def test_a_constant_without_axes_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", MAP[0])
    loaded, labels = load(tmp_path / "flat.npy", FLAT)
    same_bits(loaded, MAP[0])
    assert labels == ()


def test_pickles_in_npy_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "gain.npy", np.array([{"no": "code"}], object), allow_pickle=True)
    with pytest.raises(FileError):
        load(tmp_path / "gain.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not NumPy at all", b"PK\x03\x04"])
def test_damaged_npy_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gain.npy").write_bytes(content)
    with pytest.raises(FileError, match=r"gain\.npy"):
        load(tmp_path / "gain.npy")


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_another_rank_is_refused_with_the_shape(tmp_path: Path, rank: int) -> None:
    shape = (2, 3, 4, 6)[:rank]
    np.save(tmp_path / "gain.npy", np.zeros(shape))
    with pytest.raises(FileError) as caught:
        load(tmp_path / "gain.npy")
    assert str(shape) in str(caught.value)
    assert "(stage, y, x)" in str(caught.value)


def test_a_constant_in_another_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    hdf5(tmp_path / "b" / "target.h5", gains=MAP)
    with h5py.File(tmp_path / "a" / "c.h5", "w") as file:
        file["gains"] = h5py.ExternalLink(str(tmp_path / "b" / "target.h5"), "/gains")
    with pytest.raises(TrustError):
        load(tmp_path / "a" / "c.h5")


def test_the_provenance_names_file_and_kind(tmp_path: Path) -> None:
    MAP.astype("<f8").tofile(tmp_path / "gainMaps_M001.bin")
    _, provenance = load_constant(Spec(tmp_path / "gainMaps_M001.bin", None), GAIN, ("stage",), PIXELS)
    assert (provenance.file_name, provenance.description) == ("gainMaps_M001.bin", "float64 planes")
    assert provenance.date.startswith("20")


# --- masks and ids -------------------------------------------------------------------------


def test_true_is_bad(tmp_path: Path) -> None:
    bad = np.eye(4, 6, dtype=bool)
    np.save(tmp_path / "mask.npy", bad)
    same_bits(read_mask(Spec(tmp_path / "mask.npy", None), PIXELS).mask, bad.astype(np.uint32) * np.uint32(256))


def test_a_boolean_mask_in_hdf5_is_the_same(tmp_path: Path) -> None:
    bad = np.eye(4, 6, dtype=bool)
    path = hdf5(tmp_path / "mask.h5", pixel_mask=bad)
    same_bits(read_mask(Spec(path, None), PIXELS).mask, bad.astype(np.uint32) * np.uint32(256))


@pytest.mark.parametrize("bit", range(32))
def test_mask_bits_are_those_of_nexus(tmp_path: Path, bit: int) -> None:
    mask = np.full(PIXELS, 1 << bit, np.uint32)
    np.save(tmp_path / "mask.npy", mask)
    if bit in (0, 1, 2, 3, 4, 6, 8, 31):
        same_bits(read_mask(Spec(tmp_path / "mask.npy", None), PIXELS).mask, mask)
        return
    with pytest.raises(FileError) as caught:
        read_mask(Spec(tmp_path / "mask.npy", None), PIXELS)
    assert caught.value.code == "mask-bits"


@pytest.mark.parametrize(
    "mask", [np.full(PIXELS, -1, np.int32), np.full(PIXELS, 1 << 40), np.full(PIXELS, 1 << 63, np.uint64)]
)
def test_mask_values_out_of_range_are_refused(tmp_path: Path, mask: Array) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(FileError):
        read_mask(Spec(tmp_path / "mask.npy", None), PIXELS)


@pytest.mark.parametrize("dtype", ["u1", "i8", "u8", "f8", ">u4"])
def test_ids_are_numbers_of_any_kind(tmp_path: Path, dtype: str) -> None:
    values = np.arange(5).astype(dtype)
    path = hdf5(tmp_path / "ids.h5", a=values, b=values[:, None])
    for name in ("/a", "/b"):
        same_bits(load_numbers(Spec(path, name), (5,)), values.astype(np.dtype(dtype).newbyteorder("=")))


@pytest.mark.parametrize(
    "values", [np.zeros(4), np.zeros((5, 2)), np.float64(1.0), np.zeros(5, "S3"), np.zeros(5, bool)]
)
def test_ids_that_are_not_one_number_per_frame_are_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(FileError, match=r"expected numbers \(5,\)"):
        load_numbers(Spec(hdf5(tmp_path / "ids.h5", a=values), "/a"), (5,))


def test_ids_need_a_path(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a dataset"):
        load_numbers(Spec(hdf5(tmp_path / "ids.h5", a=np.zeros(5)), None), (5,))
