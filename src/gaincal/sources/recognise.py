"""Which facility wrote a run: every source is asked, and exactly one must know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError, RequestError
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Readable, Words
from gaincal.sources import arrays, assembled, euxfel, slsdet, swissfel
from gaincal.sources.run import RawRun, RawWords

Array = npt.NDArray[Any]
AUTO, PLAIN = "auto", "plain"
SOURCES: MappingProxyType[str, Callable[[Path, str | None], RawRun | None]] = MappingProxyType(
    {
        "arrays": arrays.recognise,
        "assembled": assembled.recognise,
        "euxfel": euxfel.recognise,
        "slsdet": lambda path, inside: slsdet.recognise(path) if inside is None else None,
        "swissfel": swissfel.recognise,
    }
)


def recognise(path: Path, inside: str | None, source: str = AUTO) -> RawRun | None:
    """Find out which facility wrote a run.

    Parameters
    ----------
    path : Path
        A file or a folder.
    inside : str or None
        Which detector or dataset of it.
    source : str
        ``auto``, ``plain`` for a dataset of words in an HDF5 file, or the name of a source.

    Returns
    -------
    RawRun or None
        None for a plain file.

    Raises
    ------
    FileError
        If the run is damaged or ambiguous, or a folder that no source knows.
    RequestError
        If there is no such source, or it does not know the run.
    """
    if source == PLAIN:
        return None
    if source != AUTO and source not in SOURCES:
        raise RequestError(f"no source '{source}'; there are {AUTO}, {PLAIN}, {', '.join(SOURCES)}")
    asked = SOURCES if source == AUTO else {source: SOURCES[source]}
    found = [run for ask in asked.values() if (run := ask(path, inside)) is not None]
    if len(found) > 1:
        listed = ", ".join(run.kind for run in found)
        raise FileError(path, "", f"could be from any of {listed}", "say which: --source NAME", code="ambiguous")
    if not found and source != AUTO:
        raise RequestError(f"{path} is no run of source '{source}'")
    if not found and path.is_dir():
        problem = f"is a folder that none of {', '.join(SOURCES)} knows"
        raise FileError(path, "", problem, "name the file of the words", code="unknown-run")
    return found[0] if found else None


def readers(run: RawRun, resolver: Resolver) -> dict[str, Readable]:
    """What reads the words of a run.

    Parameters
    ----------
    run : RawRun
    resolver : Resolver
        May open all files of the run.
    """
    shape = (run.frames, *run.pixels)
    return {name: _reader(words, shape, resolver) for name, words in run.words.items()}


def _reader(words: RawWords, shape: tuple[int, ...], resolver: Resolver) -> Readable:
    if words.read is not None:
        return FrameReader(shape, words)
    start = resolver.get("/")
    named = {(p.file, p.path) for p in words.parts}
    places = {(file, path): resolver.beside(start, str(file), path) for file, path in named}
    if len(words.parts) == 1:
        (place,) = places.values()
        (part,) = words.parts
        if place.dataset.shape == part.target[1] == part.source[1] == shape:
            return Words(resolver, place)
    return Words.of_parts(
        resolver, shape, words.dtype, [(p.target, places[p.file, p.path], p.source) for p in words.parts]
    )


class FrameReader:
    """Reads boxes of words that a source delivers by frames."""

    def __init__(self, shape: tuple[int, ...], words: RawWords) -> None:
        self.shape, self.dtype, self._words = shape, words.dtype, words

    def read(
        self,
        start: tuple[int, ...],
        count: tuple[int, ...],
        threads: int = 1,  # noqa: ARG002  (formats without compression: there is nothing to decode)
    ) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Words of a box, and where there are none."""
        assert self._words.read is not None
        words, missing = self._words.read(start[0], count[0])
        window = (slice(None), *(slice(s, s + n) for s, n in zip(start[1:], count[1:], strict=True)))
        return np.ascontiguousarray(words[window]), None if missing is None else missing[window]

    def packing(self, first: int, count: int, shares: int) -> None:  # noqa: ARG002
        """Words of no HDF5 file are not compressed."""
        return

    def packed(self, first: int, count: int, threads: int = 1) -> None:  # noqa: ARG002
        """As `packing`."""
        return
