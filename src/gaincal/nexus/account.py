"""What became of everything that the modules of a run recorded, as columns in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.nexus import names
from gaincal.nexus.group import new_group
from gaincal.nexus.write import discard, field

Array = npt.NDArray[Any]
MAX_TEXT = 1000


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


def write_account(detector: h5py.Group, matched_by: str, account: Sequence[ModuleAccount], **facts: str | float) -> None:
    """Store an account in a detector, one column per field, and facts of how frames were matched.

    Parameters
    ----------
    detector : h5py.Group
    matched_by : str
        Names of the ids.
    account : sequence of ModuleAccount
    **facts : str, int or float
    """
    discard(detector, names.ACCOUNT_GROUP)
    group = new_group(detector, names.ACCOUNT_GROUP, names.COLLECTION)
    field(group, "matched_by", matched_by)
    for name, value in facts.items():
        field(group, name, value)
    rows = [asdict(row) for row in account]
    for name in rows[0]:
        group.create_dataset(name, data=_column([row[name] for row in rows]))


def _column(values: list[Any]) -> Array:
    """Numbers, or text of fixed length, which a reader of an untrusted file can take in."""
    if not isinstance(values[0], str):
        return np.array(values, np.int64)
    texts = [v[:MAX_TEXT].encode("ascii", "backslashreplace") or b"-" for v in values]
    return np.array(texts, np.bytes_)
