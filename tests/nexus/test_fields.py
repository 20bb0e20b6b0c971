"""Small fields: their type and size are known before they are read, and text is text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gaincal.errors import FileError, TrustError
from gaincal.nexus.fields import attribute_text, decode, read_array, read_column, read_text
from gaincal.nexus.trust import Place, Resolver

Make = Callable[[h5py.File], object]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[Make], Place]]:
    """Makes a file and returns its object ``x``."""
    opened: list[Resolver] = []

    def at(make: Make) -> Place:
        with h5py.File(tmp_path / "f.h5", "w") as file:
            make(file)
        opened.append(Resolver(tmp_path / "f.h5"))
        return opened[-1].get("x")

    yield at
    for resolver in opened:
        resolver.close()


def dataset(data: Any, **options: Any) -> Make:
    return lambda file: file.create_dataset("x", data=data, **options)


VALUES = [
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.arange(6, dtype=">f8"),
    np.array([True, False]),
    np.array(3.5),
    np.array([b"ab", b"c"]),
    np.zeros((0, 4), np.uint16),
    np.zeros(0, "S1"),
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_values_are_read_in_native_byte_order(values: Any, place: Callable[[Make], Place]) -> None:
    found = read_array(place(dataset(values)))
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype.newbyteorder("=")
    assert found.shape == values.shape


@pytest.mark.parametrize(("make", "code"), [
    (lambda f: f.create_dataset("x", (3,), "i4", external=[("other.bin", 0, 12)]), "external-storage"),
    (lambda f: f.create_dataset("x", (3,), "i4"), "incomplete"),
    (lambda f: f.create_dataset("x", (3, 4), "i4", chunks=(1, 4)), "incomplete"),
    (lambda f: f.create_dataset("x", (1 << 15, 1 << 15), "f4"), "over-budget"),
    (lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "odd-type"),
    (lambda f: f.create_dataset("x", data=np.zeros(2, "c8")), "odd-type"),
    (lambda f: f.create_dataset("x", (2,), h5py.string_dtype()), "odd-type"),
    (lambda f: f.create_dataset("x", data=np.zeros(2, "u2"), dtype=h5py.enum_dtype({"A": 0}, "u2")), "odd-type"),
    (lambda f: f.create_group("x"), "not-a-dataset"),
])  # fmt: skip
def test_what_cannot_be_read_with_care_is_refused(make: Make, code: str, place: Callable[[Make], Place]) -> None:
    with pytest.raises(FileError) as caught:
        read_array(place(make))
    assert caught.value.code == code


def test_virtual_fields_are_refused(place: Callable[[Make], Place]) -> None:
    def make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3,), "i4")
        layout[:] = h5py.VirtualSource(".", "y", (3,))
        file.create_virtual_dataset("x", layout)

    with pytest.raises(TrustError, match="virtual"):
        read_array(place(make))


def test_the_budget_counts_bytes(place: Callable[[Make], Place]) -> None:
    found = place(dataset(np.zeros(100, np.float64)))
    assert read_array(found, 800).size == 100
    with pytest.raises(TrustError, match="declares 800 bytes, at most 799"):
        read_array(found, 799)


@pytest.mark.parametrize(("data", "options"), [
    ("sample ä", {"dtype": h5py.string_dtype()}),
    (np.bytes_("sample ä".encode()), {}),
    (np.array(["sample ä"], object), {"dtype": h5py.string_dtype()}),
    (np.array(["sample ä".encode()]), {"chunks": (1,), "fletcher32": True}),
])  # fmt: skip
def test_texts_of_all_kinds_are_read(data: Any, options: dict[str, Any], place: Callable[[Make], Place]) -> None:
    assert read_text(place(dataset(data, **options))) == "sample ä"


@pytest.mark.parametrize("data", [np.array(1.0), np.array([b"a", b"b"]), np.zeros(0, "S1")])
def test_other_fields_are_no_text(data: Any, place: Callable[[Make], Place]) -> None:
    with pytest.raises(FileError, match="is not a text"):
        read_text(place(dataset(data)))


@pytest.mark.parametrize(("value", "text"), [
    (b"", ""), (b"a\tb\nc", "a\tb\nc"), ("µm".encode(), "µm"), (b"~", "~"),
])  # fmt: skip
def test_text_is_utf8_with_breaks_and_tabs(value: bytes, text: str, place: Callable[[Make], Place]) -> None:
    assert decode(place(dataset(1)), value) == text


@pytest.mark.parametrize("value", [
    b"\xff", b"a\xc3", b"a\0b", b"a\x1b[2J", b"\r", b"\x7f", "\u202e".encode(), "\u2028".encode(), b"\xed\xb3\xbf",
])  # fmt: skip
def test_other_bytes_are_no_text(value: bytes, place: Callable[[Make], Place]) -> None:
    with pytest.raises(FileError) as caught:
        decode(place(dataset(1)), value)
    assert caught.value.code == "bad-text"


@pytest.mark.parametrize(("data", "column"), [
    (np.array([b"raw", b""]), ["raw", ""]), (np.array([1, 2], np.int32), [1, 2]), (np.array([0.5]), [0.5]),
    (np.zeros(0, "S1"), []), (np.array([1], ">i8"), [1]),
])  # fmt: skip
def test_columns_become_values_of_python(data: Any, column: list[Any], place: Callable[[Make], Place]) -> None:
    found = read_column(place(dataset(data)))
    assert found == column
    assert [type(v) for v in found] == [type(v) for v in column]


@pytest.mark.parametrize(("data", "code"), [
    (np.bytes_(b"raw"), "odd-type"), (np.array([[b"raw"]]), "odd-type"), (np.array(["ä".encode()]), "bad-text"),
    (np.array([b"a\nb"]), "bad-text"), (np.array([b"a\xff"]), "bad-text"), (np.array([b"a\0b"]), "bad-text"),
])  # fmt: skip
def test_other_fields_are_no_columns(data: Any, code: str, place: Callable[[Make], Place]) -> None:
    with pytest.raises(FileError) as caught:
        read_column(place(dataset(data)))
    assert caught.value.code == code


ATTRIBUTES: list[tuple[Any, str | None]] = [
    ("NXdata", "NXdata"),
    (np.bytes_(b"NXdata"), "NXdata"),
    (np.array(["NXdata"], object), "NXdata"),
    ("", ""),
    ("a\x1b[2J", None),
    (np.array(["a", "b"], object), None),
    (3, None),
    (np.zeros(0), None),
    (h5py.Empty("f4"), None),
    (h5py.Empty("S10"), None),
]


@pytest.mark.parametrize(("value", "text"), ATTRIBUTES, ids=str)
def test_an_attribute_is_a_text_or_nothing(value: Any, text: str | None, place: Callable[[Make], Place]) -> None:
    found = place(lambda file: file.create_group("x").attrs.__setitem__("a", value))
    assert attribute_text(found, "a") == text
    assert attribute_text(found, "b") is None


def test_an_attribute_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w", libver="latest") as file:
        file.create_group("x").attrs["a"] = np.zeros(1 << 17, np.uint8)
    with Resolver(tmp_path / "f.h5") as resolver, pytest.raises(TrustError, match="beyond all measure"):
        attribute_text(resolver.get("x"), "a")
