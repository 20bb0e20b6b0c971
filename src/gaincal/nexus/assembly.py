"""Write the run that files of modules make together: words, ids and account, and no calibration yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from gaincal.nexus import names
from gaincal.nexus.account import Account, write_account
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.atomic import AtomicFile
from gaincal.nexus.group import new_group
from gaincal.nexus.run import copy_frames, map_words, outside, relative_name
from gaincal.nexus.words import Readable, Words
from gaincal.nexus.write import array_field, field, write_skeleton

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Assembly:
    """What an assembled file holds.

    Parameters
    ----------
    words : mapping of str to Readable
        By the name of the formula's input.
    lies : Arrangement
    ids : mapping of str to ndarray (frame,)
    inputs : mapping of str to ndarray
        By frame, by frame and module, or by pixel.
    account : Account
    detector : str
        The facility's name of it.
    formula : str, optional
        That the run calls for.
    """

    words: Mapping[str, Readable]
    lies: Arrangement
    ids: Mapping[str, Array]
    inputs: Mapping[str, Array]
    account: Account
    detector: str = ""
    formula: str | None = None


def write_assembly(written: AtomicFile, assembly: Assembly) -> list[str]:
    """Write an assembled run into an empty file: an NXmx entry without an image; returns what the user should know."""
    known = {"detector_name": assembly.detector} if assembly.detector else {}
    entry = write_skeleton(written.file, known, ())
    detector = entry[names.DETECTOR_PATH]
    new_group(entry, names.DATA_PATH, names.DATA)
    raw = new_group(detector, names.RAW_GROUP, names.DATA)
    fields = {n: names.RAW_FIELD if len(assembly.words) == 1 else n for n in assembly.words}
    raw.attrs[names.SIGNAL_ATTRIBUTE] = next(iter(fields.values()))
    raw.attrs[names.AXES_ATTRIBUTE] = ["."] * (1 + len(assembly.lies.shape))
    for name, words in assembly.words.items():
        if isinstance(words, Words):
            map_words(raw, fields[name], words, partial(relative_name, written))
        else:
            copy_frames(raw, fields[name], words, written.check)
        written.check()
    for name, values in assembly.ids.items():
        array_field(raw, name, values)
    if assembly.inputs:
        inputs = new_group(detector, names.RECORDED_GROUP, names.COLLECTION)
        for name, values in assembly.inputs.items():
            array_field(inputs, name, values)
    mask = assembly.lies.mask
    if mask is not None:
        array_field(detector, names.PIXEL_MASK, mask, compression="gzip")
    account = write_account(detector, assembly.account, assembly.lies)
    field(account, "words", ", ".join(assembly.words))
    if assembly.formula:
        field(account, "formula", assembly.formula)
    return outside(written.target, [w for w in assembly.words.values() if isinstance(w, Words)])
