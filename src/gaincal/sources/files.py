"""Find raw words, constants, masks and ids in the files that facilities write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.dataset import element_type
from gaincal.nexus.fields import read_array
from gaincal.nexus.trust import Place, Resolver, reading

Array = npt.NDArray[Any]
SEPARATOR = "::"
NPY_MAGIC = b"\x93NUMPY"
BY_MODULE = re.compile(r"\{module(?::0?([0-9])d?)?\}")
MAX_SEARCHED = 2000
MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Spec:
    """A file and, optionally, an HDF5 path in it: ``run.h5::/data/JF01/data``."""

    file: Path
    path: str | None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Split ``FILE[::/path]``."""
        file, separator, path = text.partition(SEPARATOR)
        return cls(Path(file), path if separator else None)

    @property
    def names_modules(self) -> bool:
        """Whether ``{module}`` or ``{module:02d}`` stands in it for the number of a module."""
        return BY_MODULE.search(f"{self.file}{self.path or ''}") is not None


def module_spec(spec: Spec, module: int) -> Spec:
    """A spec with the number of a module in place of ``{module}``."""

    def named(text: str) -> str:
        return BY_MODULE.sub(lambda match: str(module).zfill(int(match[1] or 0)), text)

    return Spec(Path(named(str(spec.file))), spec.path and named(spec.path))


def find_words(resolver: Resolver, path: str | None, rank: int) -> Place:
    """The dataset with the raw words: the one named, or the only one that can be.

    Raises
    ------
    FileError
        If several could be, or none.
    """
    if path is not None:
        return resolver.get(path)
    candidates = [p for p in datasets(resolver) if p.item.ndim == rank and element_type_or_none(p) == "u"]
    return only(resolver, candidates, f"raw words (unsigned integers of {rank} dimensions)")


def element_type_or_none(place: Place) -> str | None:
    """Kind of a dataset's elements, None where they are odd."""
    try:
        return element_type(place).kind
    except FileError:
        return None


def datasets(resolver: Resolver) -> Iterable[Place]:
    """Datasets of a file, by a bounded walk that ignores what it may not follow."""
    pending = [(resolver.get("/"), 0)]
    searched = 0
    while pending:
        place, depth = pending.pop()
        for name in resolver.members(place):
            searched += 1
            if searched > MAX_SEARCHED:
                return
            try:
                member = resolver.walk(place, name)
            except FileError:
                continue
            if isinstance(member.item, h5py.Dataset):
                yield member
            elif isinstance(member.item, h5py.Group) and depth < MAX_DEPTH:
                pending.append((member, depth + 1))


def only(resolver: Resolver, candidates: list[Place], what: str) -> Place:
    """The one candidate; raises FileError where there are several, or none."""
    # Hard links give one dataset several names.
    distinct = {c.identity: c for c in sorted(candidates, key=lambda c: c.path)[::-1]}
    candidates = list(distinct.values())
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(sorted(c.path for c in candidates)[:8])
    problem = f"several datasets could hold the {what}: {listed}" if candidates else f"no dataset holds {what}"
    raise FileError(resolver.named, "", problem, f"name it: {resolver.named}{SEPARATOR}/path", code="ambiguous")


def read_npy(file: Path) -> Array:
    """Values of a NumPy file; raises FileError for anything else."""
    with reading(file):
        with file.open("rb") as stream:
            if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise FileError(file, "", "is not a NumPy array file", code="not-npy")
        return np.asarray(np.load(file, allow_pickle=False))


def load_numbers(spec: Spec, shape: tuple[int, ...]) -> Array:
    """Read what comes with the frames or pixels: ids, memory cells, a configuration.

    Parameters
    ----------
    spec : Spec
        HDF5 or ``.npy``.
    shape : tuple of int
        What it must have; dims of length 1 at the end are left out.

    Raises
    ------
    FileError
        If the shape is another, or the elements are no numbers.
    """
    if spec.file.suffix == ".npy":
        values = read_npy(spec.file)
    else:
        with Resolver(spec.file) as resolver, reading(spec.file):
            values = read_array(resolver.get(spec.path or "/"))
    if values.shape not in (shape, (*shape, 1)) or values.dtype.kind not in "iuf":
        problem = f"is {values.dtype}{values.shape}, expected numbers {shape}"
        raise FileError(spec.file, spec.path or "", problem, code="wrong-shape")
    return values.reshape(shape)
