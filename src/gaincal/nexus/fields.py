"""Small fields of an untrusted file: checked type, checked size, strict text."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import TrustError
from gaincal.nexus.dataset import PlainDataset, check_budget, element_type
from gaincal.nexus.trust import Place

Array = npt.NDArray[Any]
MAX_FIELD_BYTES = 64 << 20
MIN_CHECKED_FIELD, MAX_FIELD_INFLATION = 16 << 20, 100
MAX_TEXT_BYTES = 1 << 20
MAX_ATTRIBUTE_BYTES = 65_536
SMALL = 1024
"""Values."""


def read_array(place: Place, most: int = MAX_FIELD_BYTES) -> Array:
    """Values of a numeric, boolean or fixed-length text dataset, in native byte order."""
    if place.dataset.is_virtual:
        raise TrustError(place.file, place.path, "is a virtual dataset, which is not allowed here", code="odd-layout")
    check_budget(place, most, MIN_CHECKED_FIELD, MAX_FIELD_INFLATION)
    small = _read_small(place)
    return PlainDataset(place).read_all() if small is None else small


def _read_small(place: Place) -> Array | None:
    """A few values that lie in one piece, a third as dear as through what chunks need; None for any other field."""
    dataset = place.dataset
    if dataset.chunks is not None or dataset.size > SMALL:
        return None
    values = np.empty(dataset.shape, element_type(place).newbyteorder("="))
    if not 0 < values.nbytes <= dataset.id.get_storage_size():
        return None
    try:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    except (OSError, RuntimeError) as error:
        raise place.error("cannot be read", "copy the file again", code="bad-chunk") from error
    return values


def read_text(place: Place) -> str:
    """The text of a scalar field, of fixed or variable length."""
    dataset = place.dataset
    kind = dataset.id.get_type()
    if kind.get_class() != h5py.h5t.STRING or dataset.size != 1:
        raise place.error("is not a text", code="odd-type")
    if not kind.is_variable_str():
        return decode(place, bytes(read_array(place, MAX_TEXT_BYTES).reshape(())[()]))
    if dataset.is_virtual or dataset.chunks is not None:
        problem = "is a text of variable length, neither compact nor contiguous"
        raise TrustError(place.file, place.path, problem, code="odd-layout")
    value: object = np.asarray(dataset[()]).reshape(()).item()
    text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    if len(text) > MAX_TEXT_BYTES:
        raise TrustError(place.file, place.path, "is a text beyond all measure", code="over-budget")
    return decode(place, text)


def decode(place: Place, value: bytes) -> str:
    """Strict UTF-8 without NUL and control characters; line breaks and tabs may stand in descriptions."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise place.error("is not UTF-8 text", code="bad-text") from None
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise place.error("contains control characters", code="bad-text")
    return text


def read_column(place: Place) -> list[str] | list[int] | list[float]:
    """A one-dimensional column of the calibration group, as Python values."""
    values = read_array(place)
    if values.ndim != 1:
        raise place.error(f"has {values.ndim} dimensions, a column has 1", code="odd-type")
    if values.dtype.kind != "S":
        return values.tolist()  # type: ignore[no-any-return]
    texts = [decode(place, bytes(v)) for v in values]
    if not all(t.isascii() and t.isprintable() for t in texts):
        raise place.error("a column holds printable ASCII", code="bad-text")
    return texts


def attribute_size(place: Place, name: str) -> int | None:
    """Bytes that an attribute takes; None for one without any value."""
    try:
        return int(h5py.h5a.open(place.item.id, name.encode()).get_storage_size())
    except RuntimeError:  # h5py takes the size 0 for an error
        return None


def attribute_text(place: Place, name: str) -> str | None:
    """A text attribute, None if it is absent or anything else."""
    if name not in place.item.attrs:
        return None
    size = attribute_size(place, name)
    if size is None:
        return None
    if size > MAX_ATTRIBUTE_BYTES:
        raise TrustError(place.file, place.path, f"attribute {name} is beyond all measure", code="over-budget")
    value = place.item.attrs[name]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) and value.isprintable() else None


def attribute_numbers(place: Place, name: str, count: int) -> Array | None:
    """An attribute of so many finite numbers as float64, None if it is absent or anything else."""
    try:
        stored = h5py.h5a.open(place.item.id, name.encode())
        if stored.get_storage_size() > MAX_ATTRIBUTE_BYTES or math.prod(stored.shape) != count:
            return None
        kind = stored.dtype
        values = np.empty(stored.shape, kind)
        if kind.kind not in "iuf":
            return None
        stored.read(values)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError):  # absent, or of a type that h5py cannot express
        return None
    return values.reshape(-1).astype(np.float64) if np.isfinite(values).all() else None
