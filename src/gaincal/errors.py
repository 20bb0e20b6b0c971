"""The errors gaincal raises on purpose: each one names the place, the fault and the way out."""

from __future__ import annotations

import os
from typing import ClassVar


def one_line(text: str) -> str:
    """Show untrusted text on one line: whatever cannot be printed becomes an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class GaincalError(Exception):
    """Base of every error that gaincal raises on purpose.

    Attributes
    ----------
    code : str
        Stable name of the fault, listed in ``docs/reference/findings.md``.
    exit_code : int
        What the command line returns for it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(one_line(message))
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[GaincalError], args: tuple[object, ...], state: dict[str, object]) -> GaincalError:
    """Recreate an error in another process without running its constructor again."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class FormulaError(GaincalError):
    """A formula breaks a rule of the format.

    Attributes
    ----------
    problem : str
        What is wrong, without the place.
    where : str
        Which part of the formula: ``steps.energy``, ``constants.gain`` ...
    text, position : str or None, int or None
        The expression and the index of the character that the caret stands under.
    """

    exit_code = 3

    def __init__(self, problem: str, *, where: str = "", text: str | None = None, position: int | None = None) -> None:
        self.problem, self.where, self.text, self.position = one_line(problem), one_line(where), text, position
        place = where if position is None else f"{where} at character {position + 1}"
        super().__init__(f"{place}: {problem}" if place else problem, code="formula")

    def __str__(self) -> str:
        line = str(self.args[0])
        if self.text is None or self.position is None:
            return line
        return f"{line}\n    {_window(self.text, self.position)}"


def _window(text: str, position: int, width: int = 60) -> str:
    """Cut out the surroundings of a position and put a caret under it."""
    start = max(0, min(position - width // 2, len(text) - width))
    shown = "".join(c if c.isprintable() and c.isascii() else "?" for c in text[start : start + width])
    return f"{shown}\n    {' ' * (position - start)}^"


class FileError(GaincalError):
    """A file, or a place in it, is not what gaincal needs or trusts.

    Attributes
    ----------
    file, place : str
        The file, and the HDF5 path inside it (empty for the file as a whole).
    problem, remedy : str
        What is wrong, and what to do.
    """

    exit_code = 4

    def __init__(self, file: str | os.PathLike[str], place: str, problem: str, remedy: str = "", *, code: str) -> None:
        self.file, self.place = one_line(os.fspath(file)), one_line(place)
        self.problem, self.remedy = one_line(problem), one_line(remedy)
        where = f"{self.file}::{self.place}" if place else self.file
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""), code=code)


class TrustError(FileError):
    """A file asks for something that gaincal does not do for a file it was not told to trust."""

    exit_code = 5


class BindError(GaincalError):
    """Formula, constants and raw data do not fit together."""

    exit_code = 6

    def __init__(self, message: str) -> None:
        super().__init__(message, code="bind")


class RequestError(GaincalError):
    """The caller asks for what is not there: an output, a dtype, a frame range."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request")


class OutputError(FileError):
    """A file cannot be written; nothing of it was left behind."""

    exit_code = 7
