"""Bad-pixel masks in the bits of NXmx, translated from those of facilities by the table in ``mask_bits.toml``."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, RequestError
from gaincal.nexus.names import PIXEL_MASK_BITS

Array = npt.NDArray[Any]
TABLE = "mask_bits.toml"
NXMX = "nxmx"
BOOLEAN = "boolean"
MAX_LISTED = 6


@dataclass(frozen=True, slots=True)
class Reason:
    """What one bit of a convention means.

    Attributes
    ----------
    bit : int
    name, meaning : str
    nxmx : tuple of int
        Bits of NXmx set instead; none for what does not make a pixel bad.
    certainty, mapping : str
        How sure the meaning is, and how the bits of NXmx were chosen; see ``docs/reference/mask-bits.md``.
    note : str
        What a user must be told where the bit is set.
    """

    bit: int
    name: str
    nxmx: tuple[int, ...]
    meaning: str
    certainty: str
    mapping: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Convention:
    """The bits of one kind of mask.

    Attributes
    ----------
    name, title, about, source : str
    reasons : tuple of Reason
    refused : mapping of int to str
        Why a bit that is known cannot be translated.
    one_of : tuple of str
        The conventions among which the bits of a mask decide; then there are no reasons.
    """

    name: str
    title: str
    about: str
    source: str
    reasons: tuple[Reason, ...]
    refused: Mapping[int, str]
    one_of: tuple[str, ...]

    def unknown(self, word: int) -> list[int]:
        """Bits of a word that have no meaning here."""
        return list(_bits(word & ~_word(r.bit for r in self.reasons)))


@dataclass(frozen=True, slots=True)
class Translation:
    """A mask in the bits of NXmx.

    Attributes
    ----------
    mask : ndarray of uint32
    convention : str
        The one that was read; the one decided on where the bits decide.
    counts : mapping of str to int
        Pixels by the facility's reason, for reasons that occur.
    notes : tuple of str
        What the mask alone does not say.
    """

    mask: npt.NDArray[np.uint32]
    convention: str
    counts: Mapping[str, int]
    notes: tuple[str, ...]


@cache
def conventions() -> Mapping[str, Convention]:
    """All conventions, by name."""
    text = resources.files("gaincal.sources").joinpath(TABLE).read_text(encoding="utf-8")
    return MappingProxyType({name: _convention(name, entry) for name, entry in tomllib.loads(text).items()})


def _convention(name: str, entry: dict[str, Any]) -> Convention:
    reasons = tuple(Reason(**row | {"nxmx": tuple(row["nxmx"])}) for row in entry.get("bits", ()))
    refused = {bit: row["why"] for row in entry.get("refused", ()) for bit in row["bits"]}
    one_of = tuple(entry.get("one_of", ()))
    return Convention(name, entry["title"], entry["about"], entry["source"], reasons, refused, one_of)


def translate(values: Array, convention: str, *, file: str | os.PathLike[str] = "mask", place: str = "") -> Translation:
    """Translate a mask to the bits of NXmx.

    Parameters
    ----------
    values : ndarray
        Integers or booleans, of any shape.
    convention : str
        A name in `conventions`.
    file, place : str or path, str
        What errors name.

    Returns
    -------
    Translation

    Raises
    ------
    RequestError
        If there is no such convention.
    FileError
        If a bit is set that the convention does not define, or the bits had to decide and do not.
    """
    chosen = _named(convention)
    words = _words(values, chosen, file, place)
    present = _present(words)
    notes = []
    if chosen.one_of:
        chosen = _decided(present, chosen, file, place)
        notes.append(f"read as '{chosen.name}' ({chosen.title}), which the bits of the mask decide")
    _refuse_unknown(present, chosen, file, place)
    mask = np.zeros(words.shape, np.uint32)
    counts = {}
    for reason in chosen.reasons:
        if present >> reason.bit & 1:
            bad = _has(words, reason.bit)
            np.bitwise_or(mask, np.uint32(_word(reason.nxmx)), out=mask, where=bad)
            counts[reason.name] = int(np.count_nonzero(bad))
            if reason.note:
                notes.append(_told(chosen, reason, counts[reason.name]))
    return Translation(mask, chosen.name, MappingProxyType(counts), tuple(notes))


def reason_names() -> tuple[str, ...]:
    """Names of the reasons that NXmx defines, in the order of their bits."""
    return tuple(PIXEL_MASK_BITS.values())


def reasons_of(mask: Array) -> dict[str, int]:
    """Count the pixels of an NXmx mask by reason.

    Parameters
    ----------
    mask : ndarray of unsigned integers

    Returns
    -------
    dict of str to int
        Only reasons that occur; a bit that NXmx does not define is called ``bit_5``.
    """
    named = ((bit, PIXEL_MASK_BITS.get(bit, f"bit_{bit}")) for bit in _bits(_present(mask)))
    return {name: int(np.count_nonzero(_has(mask, bit))) for bit, name in named}


def _named(name: str) -> Convention:
    if name not in conventions():
        raise RequestError(f"no mask convention '{name}'; there are {', '.join(conventions())}")
    return conventions()[name]


def _words(values: Array, convention: Convention, file: str | os.PathLike[str], place: str) -> Array:
    """The values as integers without a sign that matters; raises FileError for what no mask of this kind holds."""
    kind = values.dtype.kind
    if kind == "b" and convention.name == BOOLEAN:
        return values.astype(np.uint8)
    if kind not in "iu":
        problem = f"is {values.dtype}, which cannot hold the bits of {convention.title}"
        remedy = f"the convention of boolean masks is '{BOOLEAN}'" if kind == "b" else ""
        raise FileError(file, place, problem, remedy, code="odd-type")
    if kind == "i" and values.size and values.min() < 0:
        raise FileError(file, place, "has negative values, so it is no mask", code="mask-bits")
    return values


def _decided(present: int, choice: Convention, file: str | os.PathLike[str], place: str) -> Convention:
    """The one convention that defines all bits of a mask."""
    fitting = [name for name in choice.one_of if not conventions()[name].unknown(present)]
    # Without any bit there is nothing that they could mean differently.
    if len(fitting) == 1 or (fitting and not present):
        return conventions()[fitting[0]]
    listed = " or ".join(f"'{name}' ({conventions()[name].title})" for name in choice.one_of)
    bits = _listed(list(_bits(present)))
    if fitting:
        problem = f"sets bits {bits}, which do not tell which table they follow"
        raise FileError(file, place, problem, f"name the convention: {listed}", code="ambiguous")
    problem = f"sets bits {bits}, which together fit none of {listed}"
    raise FileError(file, place, problem, _way_out(present), code="mask-bits")


def _refuse_unknown(present: int, convention: Convention, file: str | os.PathLike[str], place: str) -> None:
    unknown = convention.unknown(present)
    if not unknown:
        return
    bits = _listed([f"{b} ({convention.refused[b]})" if b in convention.refused else b for b in unknown])
    problem = f"sets bits that {convention.title} does not define: {bits}"
    raise FileError(file, place, problem, _way_out(present), code="mask-bits")


def _way_out(present: int) -> str:
    known = [f"'{c.name}'" for c in conventions().values() if c.reasons and not c.unknown(present)]
    if known:
        return f"conventions that define all its bits: {', '.join(known)}; name the one it follows"
    return f"translate it to the NXmx bits {', '.join(str(b) for b in PIXEL_MASK_BITS)}"


def _told(convention: Convention, reason: Reason, count: int) -> str:
    return f"{count} pixels have bit {reason.bit} of {convention.title}, {reason.name}: {reason.note}"


def _listed(items: list[Any]) -> str:
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(str(item) for item in items[:MAX_LISTED]) + more


def _present(words: Array) -> int:
    """All bits that occur."""
    return int(np.bitwise_or.reduce(words, axis=None))


def _has(words: Array, bit: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.not_equal(words & words.dtype.type(1 << bit), 0)
    return found


def _bits(word: int) -> Iterator[int]:
    return (bit for bit in range(word.bit_length()) if word >> bit & 1)


def _word(bits: Iterator[int] | tuple[int, ...]) -> int:
    return sum(1 << bit for bit in bits)
