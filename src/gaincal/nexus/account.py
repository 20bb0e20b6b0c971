"""What became of everything that the modules of a run recorded, as columns in a file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.nexus import names
from gaincal.nexus.arrangement import ASSEMBLED, Arrangement
from gaincal.nexus.fields import read_array, read_column, read_text
from gaincal.nexus.group import new_group
from gaincal.nexus.trust import Place, Resolver
from gaincal.nexus.write import discard, field

Array = npt.NDArray[Any]
MAX_TEXT = 1000
MAX_MODULES = 1024


@dataclass(frozen=True)
class ModuleAccount:
    """What became of the rows that one module recorded.

    ``recorded == written + duplicate + rejected`` and ``frames == written + missing``, where frames are those of the
    run; so ``expected``, all that is to be accounted for, is ``written + missing + duplicate + rejected``.

    Parameters
    ----------
    module : int
    file : str
        Names of its files.
    recorded : int
        Rows in these files.
    written : int
        Frames of the run that have words of this module.
    missing : int
        Frames of the run that have none.
    duplicate : int
        Rows left out because another one has the same ids.
    rejected : int
        Rows left out for another reason: without ids or words, or of a frame that too few modules have.
    expected : int
        Rows recorded, and frames of the run of which there is no row that could be used.
    problem : str
        Why there is nothing, or why rows were rejected.
    """

    module: int
    file: str
    recorded: int
    written: int
    missing: int
    duplicate: int
    rejected: int
    expected: int
    problem: str = ""

    @property
    def balanced(self) -> bool:
        """Whether everything is accounted for."""
        kept = self.recorded == self.written + self.duplicate + self.rejected
        return kept and self.expected == self.written + self.missing + self.duplicate + self.rejected


_COLUMNS = tuple(f.name for f in fields(ModuleAccount))
_TEXTS = ("file", "problem")
_EMPTY = "-"
"""In place of an empty text, which no HDF5 string of fixed length can be."""


@dataclass(frozen=True)
class Account:
    """How the frames of modules were matched, and what became of all that they recorded.

    Parameters
    ----------
    matched_by : str
        The ids that are equal, separated by commas.
    duplicates : str
        Which of several rows of a module with the same ids was kept: first, last, or none (``reject``).
    required : int
        How many modules must have a frame.
    modules : tuple of ModuleAccount
    tolerance : float, optional
        How far apart ids may lie that count as equal.
    """

    matched_by: str
    duplicates: str
    required: int
    modules: tuple[ModuleAccount, ...]
    tolerance: float | None = None


def write_account(detector: h5py.Group, account: Account, lies: Arrangement) -> h5py.Group:
    """Store an account in a detector, one column for each field, and how the modules lie in a frame."""
    discard(detector, names.ACCOUNT_GROUP)
    group = new_group(detector, names.ACCOUNT_GROUP, names.COLLECTION)
    for name in ("matched_by", "duplicates", "required", "tolerance"):
        if getattr(account, name) is not None:
            field(group, name, getattr(account, name))
    field(group, "layout", lies.layout)
    field(group, "gap", lies.gap)
    for name in _COLUMNS:
        group.create_dataset(name, data=_column([getattr(row, name) for row in account.modules]))
    return group


def _column(values: list[Any]) -> Array:
    """Numbers, or text of fixed length, which a reader of an untrusted file can take in."""
    if not isinstance(values[0], str):
        return np.array(values, np.int64)
    texts = [v.encode("ascii", "backslashreplace")[:MAX_TEXT] or _EMPTY.encode() for v in values]
    return np.array(texts, np.bytes_)


def read_account(resolver: Resolver, group: Place) -> Account:
    """Read an account; raises FileError if it is not as it was written."""
    columns = {name: read_column(resolver.walk(group, name)) for name in _COLUMNS}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or not 0 < max(lengths) <= MAX_MODULES:
        raise group.error(f"has columns of {sorted(lengths)} rows", "assemble it again", code="wrong-shape")
    for name, values in columns.items():
        if not isinstance(values[0], str if name in _TEXTS else int):
            raise group.error(f"has a column {name} of another type", "assemble it again", code="odd-type")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    modules = tuple(_module(row) for row in rows)
    tolerance = resolver.find("tolerance", group)
    return Account(
        read_text(resolver.walk(group, "matched_by")),
        read_text(resolver.walk(group, "duplicates")),
        int(_number(resolver.walk(group, "required"))),
        modules,
        None if tolerance is None else _number(tolerance),
    )


def _module(row: dict[str, Any]) -> ModuleAccount:
    values: dict[str, Any] = {name: "" if value == _EMPTY else value for name, value in row.items()}
    return ModuleAccount(**values)


def read_arrangement(resolver: Resolver, group: Place, shape: tuple[int, ...], modules: int) -> Arrangement:
    """How modules lie in frames of a shape; raises FileError if it is not as it was written."""
    layout, gap = read_text(resolver.walk(group, "layout")), int(_number(resolver.walk(group, "gap")))
    pixels = shape if modules == 1 else shape[1:]
    if layout == ASSEMBLED and modules > 1 and len(shape) == 2:
        pixels = ((shape[0] + gap) // modules - gap, shape[1])
    try:
        lies = Arrangement(modules, pixels, layout, gap)
    except RequestError as error:
        raise group.error(str(error), "assemble it again", code="wrong-shape") from None
    if lies.shape != shape:
        problem = f"says {modules} modules with gaps of {gap} rows, which do not make frames of {shape}"
        raise group.error(problem, "assemble it again", code="wrong-shape")
    return lies


def _number(place: Place) -> float:
    values = read_array(place)
    if values.shape != () or values.dtype.kind not in "iuf" or not np.isfinite(values):
        raise place.error(f"is {values.dtype}{values.shape}, not one number", code="odd-type")
    return float(values)
