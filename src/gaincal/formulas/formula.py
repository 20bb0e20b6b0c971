"""`Formula`: how raw words become physical values, as frozen data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaincal.formulas.checks import CheckedFormula

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Input:
    """Something that comes with the data: the raw words, a memory cell, a photon energy.

    ``dtype`` is an unsigned integer type for words and labels, None for a real number.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """A calibration map: named axes first (``stage``, ``cell``), then pixel dims.

    ``default`` stands in every place where a file does not bring the constant.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    dtype: str | None = None
    default: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup table of integers; -1 is 'no stage'."""

    name: str
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation; an argument is a name or a number (``14`` an integer, ``0.5`` or ``2.0`` a real).

    Numbers are kept as text, as they are stored: 2 and 2.0 differ, which Python's equality hides.
    """

    name: str
    operation: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A step offered as a result, with the dtype it is delivered in.

    ``fill`` stands where a flag voids the value, None meaning NaN (which would not equal itself).
    ``alternatives`` are further (dtype, fill) pairs a caller may ask for instead.
    ``variance_of`` names the output whose variance this is.
    """

    name: str
    units: str
    dtype: str
    fill: int | None = None
    default: bool = False
    alternatives: tuple[tuple[str, int | None], ...] = ()
    variance_of: str | None = None


@dataclass(frozen=True, slots=True)
class Flag:
    """A reason why a pixel is bad: raised where the logical step ``when`` holds.

    ``pixel_mask_bit`` is the NXmx bit for a pixel that has the flag in every frame, or None.
    """

    name: str
    when: str
    voids: bool = True
    pixel_mask_bit: int | None = None


@dataclass(frozen=True)
class Formula:
    """A complete formula; equal and hashed by content.

    Build one with `from_toml`, `load` or `gaincal.formulas.catalog.get`; every constructor checks it.

    Parameters
    ----------
    name, version, title
        What it is called, for people and for the provenance of files.
    compute : {'float32', 'float64'}
        Type in which all arithmetic with reals is done.
    inputs, constants, tables, steps, outputs, flags
        The parts, in order; names are unique over all of them.

    Raises
    ------
    FormulaError
        If it breaks a rule of ``docs/formula-spec.md``.
    """

    name: str
    version: int
    title: str
    compute: str
    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...]
    tables: tuple[Table, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    flags: tuple[Flag, ...]

    def __post_init__(self) -> None:
        from gaincal.formulas.document import check_text

        _ = self.checked
        check_text(self)

    def __reduce__(self) -> tuple[object, ...]:
        # Without what is cached; the other process checks again.
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    @classmethod
    def from_toml(cls, text: str) -> Formula:
        """Read the TOML face of a formula; raises FormulaError with the place."""
        from gaincal.formulas.document import read_document

        return read_document(text)

    @classmethod
    def load(cls, path: str | Path) -> Formula:
        """Read a formula from a TOML file.

        Raises
        ------
        FormulaError
            If the file's text breaks a rule.
        FileError
            If the file cannot be read.
        """
        from gaincal.formulas.document import read_file

        return read_file(Path(path))

    def to_toml(self) -> str:
        """Write the TOML face: ``Formula.from_toml(f.to_toml()) == f`` for every formula."""
        from gaincal.formulas.document import write_document

        return write_document(self)

    @cached_property
    def checked(self) -> CheckedFormula:
        """The formula with the type of every value."""
        from gaincal.formulas.checks import check

        return check(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, as ``sha256:...``; the same on every machine."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=True)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    def with_compute(self, compute: str) -> Formula:
        """The same formula evaluated in ``float32`` or ``float64``."""
        return replace(self, compute=compute)

    def variance(self, name: str) -> Output | None:
        """The output that is the variance of another one, if the formula declares it."""
        return next((o for o in self.outputs if o.variance_of == name), None)

    def output(self, name: str | None = None) -> Output:
        """Look up an output by name, or the default one.

        Raises
        ------
        RequestError
            If the formula has no output of that name.
        """
        from gaincal.errors import RequestError

        for output in self.outputs:
            if output.name == name or (name is None and output.default):
                return output
        names = ", ".join(o.name for o in self.outputs)
        raise RequestError(f"formula '{self.name}' has no output '{name}'; it has {names}")
