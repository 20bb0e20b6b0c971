"""Bad-pixel masks of facilities: every bit of every convention, what is refused, what is told, and which shapes fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from contract import same_bits

from gaincal.errors import FileError, RequestError
from gaincal.nexus.names import PIXEL_MASK_BITS
from gaincal.sources.files import Spec
from gaincal.sources.mask_bits import BOOLEAN, NXMX, conventions, reason_names, reasons_of, translate
from gaincal.sources.masks import read_mask

Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent.parent
PIXELS = (4, 6)
MODULES = (2, 4, 6)

GAP, DEAD, UNDER, OVER, NOISY, CLUSTER, USER, VIRTUAL = (1 << b for b in (0, 1, 2, 3, 4, 6, 8, 31))
EITHER = UNDER | OVER
JUNGFRAU_UTILS = {20: GAP, 21: 0, 22: 0}
EXPECTED: dict[str, dict[int, int]] = {
    "nxmx": {b: 1 << b for b in (0, 1, 2, 3, 4, 6, 8, 31)},
    "boolean": {0: USER},
    "euxfel": dict.fromkeys((2, 3, 6, 7, 9, 10, 11, 13, 14, 15, 19, 21), DEAD)
    | dict.fromkeys((0, 4, 5, 8, 20), EITHER)
    | {1: NOISY, 17: NOISY, 12: OVER, 16: VIRTUAL, 18: GAP, 22: 0, 23: USER, 30: USER, 31: USER},
    "psi-until-2026": dict.fromkeys((0, 1, 3, 4, 6, 7, 8, 9), DEAD) | {5: DEAD | USER} | JUNGFRAU_UTILS,
    "psi": dict.fromkeys((1, 2, 4, 5, 6, 8, 9, 10, 12), DEAD) | {0: USER} | JUNGFRAU_UTILS,
    "lcls": {0: NOISY, 1: DEAD, 2: OVER, 3: UNDER, 4: OVER, 5: UNDER, 6: DEAD},
    "lcls-until-2021": {0: NOISY, 1: OVER, 2: UNDER, 3: DEAD, 4: OVER, 5: UNDER},
    "gaincal-darks": {0: DEAD, 1: DEAD, 2: NOISY, 3: DEAD, 4: DEAD, 5: NOISY, 6: UNDER, 7: OVER},
}
"""Bits of NXmx, as integers, by convention and bit; written down a second time, on purpose."""
KNOWN = [(name, bit) for name, bits in EXPECTED.items() for bit in bits]
UNKNOWN = [(name, bit) for name, bits in EXPECTED.items() for bit in range(64) if bit not in bits]


def one(bit: int) -> Array:
    """A mask with a single pixel that has a bit, in the smallest type of the facilities that holds it."""
    values = np.zeros(PIXELS, np.uint32 if bit < 32 else np.uint64)
    values[1, 2] = values.dtype.type(1 << bit)
    return values


def saved(folder: Path, values: Array) -> Spec:
    np.save(folder / "mask.npy", values)
    return Spec(folder / "mask.npy", None)


def in_hdf5(folder: Path, values: Array, axes: list[str] | None = None, name: str = "pixel_mask") -> Spec:
    with h5py.File(folder / "mask.h5", "w") as file:
        file[name] = values
        if axes is not None:
            file[name].attrs["dims"] = axes
    return Spec(folder / "mask.h5", name)


# --- the table -----------------------------------------------------------------------------


def test_all_conventions_are_expected() -> None:
    assert set(conventions()) == {*EXPECTED, "psi-auto"}
    for name, bits in EXPECTED.items():
        assert {r.bit for r in conventions()[name].reasons} == set(bits)


@pytest.mark.parametrize("name", EXPECTED)
def test_entries_are_complete_and_differ(name: str) -> None:
    convention = conventions()[name]
    reasons = convention.reasons
    assert convention.title
    assert convention.about
    assert convention.source
    assert [r.bit for r in reasons] == sorted({r.bit for r in reasons})
    assert len({r.name for r in reasons}) == len(reasons)
    assert not {r.bit for r in reasons} & set(convention.refused)
    for reason in reasons:
        assert reason.name.isidentifier()
        assert reason.meaning
        assert set(reason.nxmx) <= set(PIXEL_MASK_BITS)
        assert reason.certainty in ("source", "one copy", "collision")
        assert reason.mapping in ("defined", "inference", "either")
        assert (reason.mapping == "either") == (len(reason.nxmx) == 2)
        assert (reason.mapping == "defined") == (name in (NXMX, BOOLEAN, "gaincal-darks"))


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {NXMX}))
def test_whatever_does_not_make_a_pixel_bad_is_noted(name: str) -> None:
    for reason in conventions()[name].reasons:
        assert bool(reason.note) == (not any(bit < 16 for bit in reason.nxmx))


def test_the_names_of_nxmx_are_those_of_the_table() -> None:
    assert {r.bit: r.name for r in conventions()[NXMX].reasons} == dict(PIXEL_MASK_BITS)


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_mask_bits", ROOT / "docs" / "make_mask_bits.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text("utf-8") == script.page(), "run docs/make_mask_bits.py"


# --- bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "bit"), KNOWN)
def test_every_bit_of_every_convention(name: str, bit: int) -> None:
    done = translate(one(bit), name)
    wanted = np.zeros(PIXELS, np.uint32)
    wanted[1, 2] = EXPECTED[name][bit]
    same_bits(done.mask, wanted)
    assert list(done.counts.values()) == [1]
    assert done.convention == name


@pytest.mark.parametrize(("name", "bit"), UNKNOWN)
def test_every_other_bit_is_refused_by_number(name: str, bit: int) -> None:
    with pytest.raises(FileError, match=rf"{conventions()[name].title} does not define: {bit}(?!\d)") as caught:
        translate(one(bit) | np.uint32(1), name)
    assert caught.value.code == "mask-bits"


@pytest.mark.parametrize("name", EXPECTED)
def test_all_bits_at_once(name: str) -> None:
    every = np.full(PIXELS, sum(1 << bit for bit in EXPECTED[name]), np.uint64)
    done = translate(every, name)
    wanted = np.bitwise_or.reduce(np.array(list(EXPECTED[name].values()), np.uint32))
    same_bits(done.mask, np.full(PIXELS, wanted, np.uint32))
    assert set(done.counts.values()) == {24}
    assert len(done.counts) == len(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_translated_is_a_mask_of_nxmx(name: str) -> None:
    first = translate(np.array([1 << bit for bit in EXPECTED[name]], np.uint64), name)
    again = translate(first.mask, NXMX)
    same_bits(again.mask, first.mask)
    assert not again.notes


@pytest.mark.parametrize("dtype", ["u4", ">u4", "i8", ">i8", "u8"])
def test_every_integer_holds_a_mask(dtype: str) -> None:
    done = translate(np.array([0, 4, 1 << 10, 1 << 12], dtype), "psi")
    same_bits(done.mask, np.array([0, DEAD, DEAD, DEAD], np.uint32))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2"])
def test_small_integers_hold_low_bits(dtype: str) -> None:
    same_bits(translate(np.array([0, 1, 8], dtype), "lcls").mask, np.array([0, NOISY, UNDER], np.uint32))


def test_the_values_are_left_alone() -> None:
    values = one(22)
    translate(values, "euxfel")
    same_bits(values, one(22))


def test_true_is_a_reason_of_the_user() -> None:
    done = translate(np.eye(4, 6, dtype=bool), BOOLEAN)
    same_bits(done.mask, np.eye(4, 6).astype(np.uint32) * np.uint32(USER))
    assert done.counts == {"bad": 4}


@pytest.mark.parametrize("name", [*EXPECTED, "psi-auto"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), PIXELS])
def test_nothing_bad_is_nothing_bad(name: str, shape: tuple[int, ...]) -> None:
    done = translate(np.zeros(shape, np.uint32), name)
    same_bits(done.mask, np.zeros(shape, np.uint32))
    assert not done.counts


# --- counts and notes ----------------------------------------------------------------------


def test_pixels_are_counted_by_the_reason_of_the_facility() -> None:
    values = np.array([0, 0b10, 0b10, 0b1010, 0b1000], np.uint32)
    done = translate(values, "euxfel")
    assert done.counts == {"NOISE_OUT_OF_THRESHOLD": 3, "NO_DARK_DATA": 2}
    same_bits(done.mask, np.array([0, NOISY, NOISY, NOISY | DEAD, DEAD], np.uint32))
    assert not done.notes


def test_larger_pixels_are_good_and_told() -> None:
    values = np.array([0, 1 << 22, (1 << 22) | 2], np.uint32)
    done = translate(values, "euxfel")
    same_bits(done.mask, np.array([0, 0, NOISY], np.uint32))
    assert done.counts["NON_STANDARD_SIZE"] == 2
    (note,) = done.notes
    assert note.startswith("2 pixels have bit 22 of European XFEL, NON_STANDARD_SIZE")


def test_interpolated_pixels_are_virtual_and_told() -> None:
    done = translate(np.array([1 << 16], np.uint32), "euxfel")
    same_bits(done.mask, np.array([VIRTUAL], np.uint32))
    assert "INTERPOLATED" in done.notes[0]


def test_a_bit_with_two_meanings_counts_for_both() -> None:
    done = translate(np.array([1 << 5], np.int64), "psi-until-2026")
    assert reasons_of(done.mask) == {"dead": 1, "user": 1}
    assert done.counts == {"additional_or_wrong_gain_hg1": 1}


# --- refusals ------------------------------------------------------------------------------


def test_unnamed_bits_are_refused_with_what_is_known_of_them() -> None:
    with pytest.raises(FileError, match=r"mask: .*: 24 \(without a name at European XFEL\)"):
        translate(np.array([1 << 24], np.uint32), "euxfel")


def test_where_another_convention_defines_the_bits_it_is_named() -> None:
    values = np.array([1 << 10, 1], np.int64)
    with pytest.raises(FileError, match=r"conventions that define all its bits: 'euxfel', 'psi';"):
        translate(values, "psi-until-2026")
    with pytest.raises(FileError, match="translate it to the NXmx bits 0, 1, 2, 3, 4, 6, 8, 31"):
        translate(np.array([1 << 50]), "psi-until-2026")


def test_many_unknown_bits_are_cut_short() -> None:
    with pytest.raises(FileError, match=r"and 52 more"):
        translate(np.array([(1 << 64) - 1], np.uint64), "lcls-until-2021")


def test_names_of_no_convention_are_refused() -> None:
    with pytest.raises(RequestError, match="no mask convention 'desy'; there are nxmx, boolean, euxfel"):
        translate(one(0), "desy")


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {BOOLEAN}))
def test_booleans_hold_no_bits(name: str) -> None:
    with pytest.raises(FileError, match="the convention of boolean masks is 'boolean'") as caught:
        translate(np.zeros(3, bool), name)
    assert caught.value.code == "odd-type"


def test_reals_are_no_mask() -> None:
    with pytest.raises(FileError, match="is float32"):
        translate(np.zeros(3, np.float32), NXMX)


@pytest.mark.parametrize("name", EXPECTED)
def test_negative_numbers_are_no_mask(name: str) -> None:
    with pytest.raises(FileError, match="negative"):
        translate(np.array([0, -(1 << 31)], np.int64), name)


# --- the two tables of PSI -----------------------------------------------------------------


@pytest.mark.parametrize("bit", [2, 10, 12])
def test_bits_that_only_the_new_table_has_decide(bit: int) -> None:
    done = translate(np.array([1, 1 << bit]), "psi-auto")
    assert done.convention == "psi"
    same_bits(done.mask, np.array([USER, DEAD], np.uint32))
    assert "read as 'psi'" in done.notes[0]


@pytest.mark.parametrize("bit", [3, 7])
def test_bits_that_only_the_old_table_has_decide(bit: int) -> None:
    done = translate(np.array([1, 1 << bit]), "psi-auto")
    assert done.convention == "psi-until-2026"
    same_bits(done.mask, np.array([DEAD, DEAD], np.uint32))


@pytest.mark.parametrize("bit", [0, 1, 4, 5, 6, 8, 9, 20, 21, 22])
def test_bits_of_both_tables_do_not_decide(bit: int) -> None:
    with pytest.raises(
        FileError, match=r"name the convention: 'psi-until-2026' \(PSI before 2026-02-15\) or 'psi'"
    ) as caught:
        translate(np.array([1 << bit]), "psi-auto")
    assert caught.value.code == "ambiguous"


@pytest.mark.parametrize("bits", [(3, 10), (2, 7), (11,), (2, 30)])
def test_bits_that_fit_no_table_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(FileError, match="together fit none of") as caught:
        translate(np.array([1 << bit for bit in bits]), "psi-auto")
    assert caught.value.code == "mask-bits"


# --- reasons of NXmx -----------------------------------------------------------------------


def test_reasons_have_names() -> None:
    wanted = ("gap", "dead", "under_responding", "over_responding", "noisy", "cluster", "user", "virtual")
    assert reason_names() == wanted


@pytest.mark.parametrize(("bit", "name"), PIXEL_MASK_BITS.items())
def test_every_reason_is_counted(bit: int, name: str) -> None:
    assert reasons_of(one(bit)) == {name: 1}


def test_reasons_are_counted_each_by_itself() -> None:
    assert reasons_of(np.array([0, 3, 2, 1 << 31, (1 << 31) | 64], np.uint32)) == {
        "gap": 1,
        "dead": 2,
        "cluster": 1,
        "virtual": 2,
    }
    assert reasons_of(np.zeros(PIXELS, np.uint32)) == {}


def test_bits_that_nexus_does_not_define_are_counted_too() -> None:
    assert reasons_of(np.array([1 << 5, 1 << 30, 1], np.uint32)) == {"gap": 1, "bit_5": 1, "bit_30": 1}


# --- files ---------------------------------------------------------------------------------


def test_without_a_name_integers_are_nxmx_and_booleans_boolean(tmp_path: Path) -> None:
    assert read_mask(saved(tmp_path, one(1)), PIXELS).convention == NXMX
    assert read_mask(saved(tmp_path, one(1) > 0), PIXELS).convention == BOOLEAN


@pytest.mark.parametrize("name", [n for n in EXPECTED if n != BOOLEAN])
def test_files_are_read_by_the_convention_named(tmp_path: Path, name: str) -> None:
    values = np.zeros(PIXELS, np.int64)
    bits = list(EXPECTED[name])
    values.reshape(-1)[: min(len(bits), 24)] = [1 << bit for bit in bits[:24]]
    wanted = translate(values, name).mask
    same_bits(read_mask(saved(tmp_path, values), PIXELS, name).mask, wanted)
    same_bits(read_mask(in_hdf5(tmp_path, values), PIXELS, name).mask, wanted)


def test_the_error_names_the_file(tmp_path: Path) -> None:
    spec = in_hdf5(tmp_path, one(24), name="/bad/mask")
    with pytest.raises(FileError, match=r"mask\.h5::/bad/mask: sets bits that European XFEL does not define: 24"):
        read_mask(spec, PIXELS, "euxfel")


def test_integers_can_be_called_boolean(tmp_path: Path) -> None:
    same_bits(read_mask(saved(tmp_path, np.eye(4, 6, dtype=np.uint8)), PIXELS, BOOLEAN).mask[0, 0], np.uint32(USER))
    with pytest.raises(FileError, match="boolean does not define: 1"):
        read_mask(saved(tmp_path, np.full(PIXELS, 2, np.uint8)), PIXELS, BOOLEAN)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, bool])
@pytest.mark.parametrize("write", [saved, in_hdf5])
def test_modules_may_be_stacked(tmp_path: Path, write: Any, dtype: Any) -> None:
    values = (np.arange(48).reshape(8, 6) % 5 == 0).astype(dtype)
    wanted = translate(values.reshape(MODULES), BOOLEAN).mask
    for shape in ((8, 6), MODULES):
        same_bits(read_mask(write(tmp_path, values.reshape(shape)), MODULES, BOOLEAN).mask, wanted)


@pytest.mark.parametrize("shape", [(6, 8), (2, 24), (48,), (4, 12), (1, 8, 6), (4, 2, 6)])
def test_other_shapes_are_no_stacked_modules(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for write in (saved, in_hdf5):
        with pytest.raises(FileError, match=r"the frames are \(2, 4, 6\)") as caught:
            read_mask(write(tmp_path, np.zeros(shape, np.uint32)), MODULES)
        assert caught.value.code == "wrong-shape"


def test_frames_without_modules_stack_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the frames are"):
        read_mask(saved(tmp_path, np.zeros((24,), np.uint32)), PIXELS)


@pytest.mark.parametrize("shape", [(3, *MODULES), (352, *MODULES, 3)])
def test_a_mask_by_stage_or_cell_is_refused_with_advice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for write in (saved, in_hdf5):
        with pytest.raises(FileError, match=r"numpy\.bitwise_or\.reduce") as caught:
            read_mask(write(tmp_path, np.zeros(shape, np.uint8)), MODULES, "lcls")
        assert caught.value.code == "wrong-shape"


@pytest.mark.parametrize(
    ("axes", "shape", "said"),
    [
        (["cell", "slow_scan", "fast_scan", "gain"], (5, 4, 6, 3), "unknown: cell, gain"),
        (["memory_cells", "y", "x"], (5, 4, 6), "unknown: memory_cells"),
        (["y", "z"], PIXELS, "unknown: z; missing: x"),
    ],
)
def test_constants_with_other_axes_are_refused_by_name(
    tmp_path: Path, axes: list[str], shape: tuple[int, ...], said: str
) -> None:
    spec = in_hdf5(tmp_path, np.zeros(shape, np.uint32), axes)
    with pytest.raises(FileError, match=rf"{said}; a mask by cell or stage is no pixel_mask"):
        read_mask(spec, PIXELS, "euxfel")


@pytest.mark.parametrize("axes", [["module", "y", "x"], ["x", "slow_scan", "modules"], ["y", "module", "x"]])
def test_axes_that_are_named_are_put_in_order(tmp_path: Path, axes: list[str]) -> None:
    values = np.arange(48, dtype=np.uint32).reshape(MODULES) % 2 * np.uint32(8)
    place = {"module": 0, "modules": 0, "y": 1, "slow_scan": 1, "x": 2}
    spec = in_hdf5(tmp_path, values.transpose([place[a] for a in axes]), axes)
    same_bits(read_mask(spec, MODULES, "euxfel").mask, translate(values, "euxfel").mask)


def test_named_axes_of_other_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the frames are"):
        read_mask(in_hdf5(tmp_path, np.zeros((6, 4), np.uint32), ["y", "x"]), PIXELS, "euxfel")


def test_reals_in_a_file_are_no_mask(tmp_path: Path) -> None:
    for write in (saved, in_hdf5):
        with pytest.raises(FileError, match=r"is float64\(4, 6\), no mask") as caught:
            read_mask(write(tmp_path, np.zeros(PIXELS)), PIXELS)
        assert caught.value.code == "wrong-shape"


def test_a_mask_of_64_bits_for_many_modules_is_read(tmp_path: Path) -> None:
    pixels = (18, 512, 1024)
    values = np.zeros((18 * 512, 1024), np.int64)
    values[-1, -1] = 1 << 12
    mask = read_mask(in_hdf5(tmp_path, values), pixels, "psi-auto").mask
    assert mask.shape == pixels
    assert reasons_of(mask) == {"dead": 1}
