"""The run behind a view: a view links the run's formula and constants, and notes which these were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gaincal.errors import FileError
from gaincal.nexus import names
from gaincal.nexus.fields import read_text
from gaincal.nexus.trust import Place, Resolver

GONE = ("not-found", "not-hdf5")
FIELDS = ("file", "path", "checksum")


@dataclass(frozen=True)
class Origin:
    """The calibration of a run, to which that of a view refers.

    Parameters
    ----------
    file : Path
        Real path of the run.
    path : str
        HDF5 path of the calibration in it.
    checksum : str
        Of that calibration.
    """

    file: Path
    path: str
    checksum: str


def find_origin(resolver: Resolver, place: Place) -> Origin | None:
    """The calibration that one refers to; None if it stands for itself.

    Raises
    ------
    FileError
        If the run is not there, or its calibration was changed since.
    TrustError
        If the run lies where it must not.
    """
    noted = [resolver.find(f"{names.VIEW_OF}/{name}", place) for name in FIELDS]
    if all(n is None for n in noted):
        return None
    file, path, checksum = (read_text(n) if n is not None else "" for n in noted)
    if not (file and path and checksum):
        raise place.error("does not say completely of which run it is a view", "make it again", code="odd-layout")
    remedy = "put the run back where it was, as seen from the view; or make the views again"
    try:
        run = resolver.beside(place, file, path)
        found = read_text(resolver.walk(run, names.CHECKSUM))
    except FileError as error:
        if error.code not in GONE:
            raise
        problem = f"is a view of {file}::{path}, which cannot be read: {error.problem}"
        raise place.error(problem, remedy, code=error.code) from error
    if found != checksum:
        problem = f"is a view of {file}::{path}, which holds another calibration since"
        raise place.error(problem, "make the views again: gaincal views", code="checksum-differs")
    return Origin(run.file, run.path, checksum)
