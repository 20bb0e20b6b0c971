"""Runs that `gaincal assemble` put together: a file with words, ids and the account of every module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.formulas import catalog
from gaincal.nexus import names
from gaincal.nexus.account import Account, read_account, read_arrangement
from gaincal.nexus.dataset import element_type
from gaincal.nexus.fields import read_array, read_text
from gaincal.nexus.read import descend, read_ids
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.sources.run import Part, RawRun, RawWords

Array = npt.NDArray[Any]
KIND = "assembled"


def recognise(path: Path, inside: str | None = None) -> RawRun | None:
    """Recognise a run that was assembled; None for anything else, and for a master, which has a calibration.

    Raises
    ------
    FileError
        If it is such a file, but not as it was written.
    """
    if inside is not None or not path.is_file() or not h5py.is_hdf5(path):
        return None
    with Resolver(path) as resolver, reading(path):
        for detector in descend(resolver, resolver.get("/"), names.ENTRY, names.INSTRUMENT, names.DETECTOR)[:1]:
            account = resolver.find(names.ACCOUNT_GROUP, detector)
            calibrated = resolver.find(names.CALIBRATION_GROUP, detector)
            return None if account is None or calibrated is not None else _run(resolver, detector, account)
    return None


def _run(resolver: Resolver, detector: Place, group: Place) -> RawRun:
    account = read_account(resolver, group)
    modules = len(account.modules)
    where = _where(detector, _text(resolver, group, "words").split(", "))
    words = {n: resolver.get(path) for n, path in where.items()}
    shapes = {place.dataset.shape for place in words.values()}
    if len(shapes) != 1:
        raise detector.error(f"has words of {len(shapes)} different shapes", code="not-words")
    (shape,) = shapes
    whole = ((0,) * len(shape), shape)
    formula = _text(resolver, group, "formula")
    lies = read_arrangement(resolver, group, shape[1:], modules)
    present = sum(row.written > 0 for row in account.modules)
    return RawRun(
        kind=KIND,
        description=f"{present} of {modules} modules, {shape[0]} frames matched by {account.matched_by}",
        detector=_text(resolver, detector, "description"),
        formula=formula if formula in catalog.names() else None,
        frames=shape[0],
        pixels=shape[1:],
        words={n: RawWords(_dtype(p), (Part(whole, resolver.master, where[n], whole),)) for n, p in words.items()},
        inputs=_recorded(resolver, detector, (shape[:1], (shape[0], modules))),
        maps=_recorded(resolver, detector, (shape[1:],)),
        ids=read_ids(resolver, detector, shape[0]),
        files=tuple(resolver.opened),
        notes=tuple(_notes(account)),
        lies=lies,
        account=account,
    )


def _notes(account: Account) -> Iterator[str]:
    gone = [f"{row.module} ({row.problem})" for row in account.modules if not row.written]
    if gone:
        yield f"modules without words: {', '.join(gone)}"


def _where(detector: Place, inputs: list[str]) -> dict[str, str]:
    """Paths of the words, which may be links, by the names of inputs."""
    fields_of = {n: names.RAW_FIELD if len(inputs) == 1 else n for n in inputs}
    return {n: f"{detector.path}/{names.RAW_GROUP}/{member}" for n, member in fields_of.items()}


def _dtype(place: Place) -> np.dtype[Any]:
    return element_type(place).newbyteorder("=")


def _text(resolver: Resolver, group: Place, name: str) -> str:
    """A text of a group, empty if it has none."""
    place = resolver.find(name, group)
    return "" if place is None else read_text(place)


def _recorded(resolver: Resolver, detector: Place, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Array]:
    """Inputs that were recorded with the words, of some shapes."""
    group = resolver.find(names.RECORDED_GROUP, detector)
    places = {n: resolver.walk(group, n) for n in resolver.members(group)} if group else {}
    return {n: read_array(p) for n, p in places.items() if p.dataset.shape in shapes}
