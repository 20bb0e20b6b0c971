"""Words are what they seem to be: plain unsigned integers. Text is text."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hostile.harness import (
    CALIBRATION,
    DETECTOR,
    FRAMES,
    RAW,
    SHAPE,
    Case,
    Refused,
    Right,
    Run,
    Worker,
    X,
    Y,
    commanded_once,
    probe,
    put,
    put_words,
    run_case,
    stamp,
    words,
)

ODD = Refused("FileError", "odd-type")
NOT_WORDS = Refused("FileError", "not-words")


def of_type(run: Run, kind: h5py.h5t.TypeID, shape: tuple[int, ...] = SHAPE) -> None:
    def make(group: h5py.Group) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        h5py.h5d.create(group.id, b"data", kind, h5py.h5s.create_simple(shape), dcpl=plist)

    put(run.master, make)


def signed(run: Run) -> None:
    put_words(run.master, words().astype(np.int16))


def floats(run: Run) -> None:
    put_words(run.master, words().astype(np.float32))


def text(run: Run) -> None:
    put_words(run.master, np.full(SHAPE, b"ab"))


def truths(run: Run) -> None:
    put_words(run.master, words() > 7)


def big_endian(run: Run) -> None:
    put_words(run.master, words().astype(">u2"), chunks=(2, Y, X), fletcher32=True)


def wider(run: Run) -> None:
    put_words(run.master, words().astype(np.uint32))


def narrower(run: Run) -> None:
    put_words(run.master, words().astype(np.uint8))


def compound(run: Run) -> None:
    put_words(run.master, np.zeros(SHAPE, [("a", "u2"), ("b", "f4")]))


def opaque(run: Run) -> None:
    put_words(run.master, np.zeros(SHAPE, "V2"))


def bit_field(run: Run) -> None:
    of_type(run, h5py.h5t.STD_B16LE)


def twelve_bits(run: Run) -> None:
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    kind.set_offset(2)
    of_type(run, kind)


def three_bytes(run: Run) -> None:
    kind = h5py.h5t.STD_U32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    of_type(run, kind)


def time(run: Run) -> None:
    of_type(run, h5py.h5t.UNIX_D32LE)


def enumeration(run: Run) -> None:
    put_words(run.master, words(), dtype=h5py.enum_dtype({"A": 0}, "u2"))


def variable_length(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", (FRAMES,), h5py.vlen_dtype(np.uint16)))


def variable_length_text(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", SHAPE, h5py.string_dtype()))


def references(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("data", SHAPE, h5py.ref_dtype))


def arrays(run: Run) -> None:
    of_type(run, h5py.h5t.array_create(h5py.h5t.STD_U16LE, (Y, X)), (FRAMES,))


def no_values(run: Run) -> None:
    put(run.master, lambda group: group.__setitem__("data", h5py.Empty("u2")))


def a_group(run: Run) -> None:
    put(run.master, lambda group: group.create_group("data"))


def a_named_type(run: Run) -> None:
    put(run.master, lambda group: group.__setitem__("data", np.dtype("u2")))


def scalar(run: Run) -> None:
    put_words(run.master, np.uint16(7))


def one_dimension(run: Run) -> None:
    put_words(run.master, words().ravel())


def two_dimensions(run: Run) -> None:
    put_words(run.master, words()[0])


def four_dimensions(run: Run) -> None:
    put_words(run.master, words()[..., None])


def frames_of_another_shape(run: Run) -> None:
    put_words(run.master, words().transpose(0, 2, 1))


def pixel_mask_of_another_shape(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("pixel_mask", data=np.zeros((X, Y), np.uint32)),
        f"{DETECTOR}/pixel_mask")  # fmt: skip


def ids_of_an_odd_type(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("x", (FRAMES,), h5py.ref_dtype), f"{RAW}/x")


def ids_that_are_text(run: Run) -> None:
    put(run.master, lambda group: group.create_dataset("x", data=np.full(FRAMES, b"ab")), f"{RAW}/x")


def attributes_of_odd_types(run: Run) -> None:
    """What h5py cannot read, and what it reads as something else, on groups and fields that are copied."""
    with h5py.File(run.master, "r+") as file:
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        for place in (file["/entry/sample"], file["/entry/sample/name"], file[DETECTOR], file[RAW]):
            place.attrs["reference"] = file.ref
            place.attrs["nothing"] = h5py.Empty("f4")
            place.attrs["control"] = "a\x1b[31m\n\u202e"
            place.attrs["bytes"] = np.bytes_(b"ab\xff")
            place.attrs["list"] = np.array(["x", "y"], object)
            three = h5py.h5t.STD_U32LE.copy()
            three.set_precision(24)
            three.set_size(3)
            h5py.h5a.create(place.id, b"time", h5py.h5t.UNIX_D32LE, space)
            h5py.h5a.create(place.id, b"three", three, space)
            h5py.h5a.create(place.id, b"bits", h5py.h5t.STD_B16LE, space)
            h5py.h5a.create(place.id, b"name\xff", h5py.h5t.STD_U16LE, space)


def text_that_is_no_text(run: Run) -> None:
    """Names, members and fields that are not UTF-8, beside those that matter."""
    with h5py.File(run.master, "r+") as file:
        sample = file["/entry/sample"]
        sample.create_dataset("bytes", data=np.array(b"ab\xff\xfe", object), dtype=h5py.string_dtype())
        sample.create_dataset("control", data="a\x1b[31m\u202e")
        sample.create_dataset("nul", data=np.bytes_(b"ab\0cd"))
        sample.create_group(b"member\xff")
        sample.create_group("a\x1b[2Jb")
        sample["type"] = np.dtype("u2")


def class_that_is_no_text(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(h5py.h5t.VARIABLE)
        kind.set_cset(h5py.h5t.CSET_UTF8)
        sample = file["/entry/sample"]
        del sample.attrs["NX_class"]
        made = h5py.h5a.create(sample.id, b"NX_class", kind, h5py.h5s.create(h5py.h5s.SCALAR))
        made.write(np.array(b"NX\xff", object))


def class_of_the_detector_with_control_characters(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file[DETECTOR].attrs["NX_class"] = "NXdetector\x1b"


def many_members(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        group = file.create_group("/entry/instrument/detector/calibration/jungfrau/many")
        for k in range(20_000):
            group.id.links.create_soft(b"%d" % k, b"/x")


def many_members_beside_the_entry(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        group = file.create_group("/other")
        for k in range(20_000):
            group.id.links.create_soft(b"%d" % k, b"/x")


def many_members_of_the_sample(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        sample = file["/entry/sample"]
        for k in range(20_000):
            sample.id.links.create_soft(b"%d" % k, b"/x")


def deep_nesting(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        group = file["/entry/sample"]
        for _ in range(2000):
            group = group.create_group("a")


def large_attribute(run: Run) -> None:
    with h5py.File(run.master, "r+", libver="latest") as file:
        file["/entry/sample"].attrs["large"] = np.zeros(5_000_000, np.uint8)
        file["/entry/sample"].attrs["NX_class"] = "NXsample" * 20_000


def number_in_the_note_of_a_constant(run: Run) -> None:
    """``bytes(2**25)`` would be 32 MiB of text, of any number of bytes up to 2 GiB."""
    with h5py.File(run.master, "r+") as file:
        note = file[f"{CALIBRATION}/gain_source"]
        del note["file_name"]
        note["file_name"] = np.int32(2**25)
        stamp(file)


CASES = [
    *(Case(build, NOT_WORDS) for build in (signed, floats, text, truths, scalar, one_dimension)),
    *(Case(build, ODD) for build in (
        compound,
        opaque,
        bit_field,
        twelve_bits,
        three_bytes,
        time,
        enumeration,
        variable_length,
        variable_length_text,
        references,
        arrays,
        no_values,
        ids_of_an_odd_type,
    )),
    *(Case(build, Refused("FileError", "not-a-dataset")) for build in (a_group, a_named_type)),
    *(Case(build, Refused("BindError", "bind")) for build in (
        wider,
        narrower,
        two_dimensions,
        four_dimensions,
        frames_of_another_shape,
    )),
    *(Case(build, Right()) for build in (
        big_endian,
        pixel_mask_of_another_shape,
        ids_that_are_text,
        attributes_of_odd_types,
        text_that_is_no_text,
        class_that_is_no_text,
        many_members_beside_the_entry,
        deep_nesting,
        large_attribute,
        number_in_the_note_of_a_constant,
    )),
    Case(many_members, Refused("TrustError", "too-many-members")),
]  # fmt: skip


@pytest.mark.parametrize("case", commanded_once(CASES), ids=str)
def test_words_are_plain_unsigned_integers(case: Case, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run_case(worker, unharmed, tmp_path, case)


def test_a_class_with_control_characters_is_no_class(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    class_of_the_detector_with_control_characters(run)
    answer = probe(worker, run, run.master)
    assert answer["open"]["code"] == "no-calibration"
    assert answer["cli info"]["exit"] == 0


def test_a_group_of_too_many_members_is_not_copied(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    many_members_of_the_sample(run)
    arguments = ["apply", str(run.master), "-o", str(run.home / "applied.nxs")]
    answer = worker.ask({"do": "command", "arguments": arguments, "foreign": str(run.foreign)})
    assert answer["exit"] in (0, 5)
    assert answer["err"].count("\n") == (answer["exit"] != 0)


@pytest.mark.parametrize("build", [text_that_is_no_text, attributes_of_odd_types, deep_nesting, no_values])
def test_a_file_without_a_calibration_is_described(
    build: object, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run = unharmed.copy(tmp_path)
    assert callable(build)
    build(run)
    with h5py.File(run.master, "r+") as file:
        del file[CALIBRATION]
    answer = worker.ask({"do": "command", "arguments": ["info", str(run.master)], "foreign": str(run.foreign)})
    assert answer["exit"] == 0, answer
    assert all(line.isprintable() for line in answer["out"].splitlines())
