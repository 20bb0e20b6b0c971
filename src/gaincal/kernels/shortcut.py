"""What can be assumed where a whole vector of pixels is in the first stage, found from the steps.

Real detectors switch in few pixels and in clusters, so nearly every vector of pixels is in one
stage.  For such a vector the bounds of the word (or of the stage) are narrower than declared, and
with them the bounds of everything computed from it: comparisons become constants, lookups and
selections vanish.  The rules that type the steps find this by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from gaincal.formulas.checks import FRAME, literal_type, literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import OPERATIONS, Type
from gaincal.formulas.program import Program
from gaincal.kernels.still import still_names

OPPOSITE = {
    "less": "greater_equal",
    "less_equal": "greater",
    "greater": "less_equal",
    "greater_equal": "less",
    "equal": "not_equal",
    "not_equal": "equal",
}
ABOVE = ("greater", "greater_equal", "less", "less_equal")
END_DTYPE = "uint16"
MOST_CODES = 16
"""Bits that can have more values than this do not tell a stage."""


@dataclass(frozen=True)
class Ends:
    """Why a stage is the first: a word lies below an end that each pixel has, whatever the frame.

    Parameters
    ----------
    word : str
        A uint16.
    comparisons : tuple of Step
        Whether the word is above a map of reals: the stage comes from these and from maps alone.
    """

    word: str
    comparisons: tuple[Step, ...]


@dataclass(frozen=True)
class Shortcut:
    """An assumption that is true of most vectors, and the types that follow from it.

    Parameters
    ----------
    name : str
        The word or step that is assumed to lie within bounds.
    low, high : int
        The bounds.
    types : dict of str to Type
        Types of everything under the assumption.
    ends : Ends, optional
        How to ask for it in another way than to compute it.
    """

    name: str
    low: int
    high: int
    types: dict[str, Type]
    ends: Ends | None = None


def find_shortcut(program: Program) -> Shortcut | None:
    """The assumption under which the first index that varies by pixel and frame no longer does.

    Best are bounds of a word within which the first label is chosen.  Else within them the index
    may still depend on the frame (a gain setting) or on the pixel (a map of them): planes are then
    chosen frame by frame, or once for all frames.  Where no bounds do, the index itself is asked.
    """
    kinds = dict(program.types)
    stage = _stage(program, kinds)
    if stage is None:
        return None
    name, label = stage
    found = []
    for candidate, low, high in (*_word_bounds(program, name, kinds), (name, label, label)):
        if low < kinds[candidate].low or high > kinds[candidate].high:
            continue  # labels may name what no word can give
        types = _narrowed(program, candidate, low, high)
        if not types[name].dims > {FRAME}:
            ends = find_ends(program, name) if candidate == name else None
            found.append(Shortcut(candidate, low, high, types, ends))
    first = (label, label)
    return min(found, key=lambda s: (s.name == name, (s.types[name].low, s.types[name].high) != first), default=None)


def compared(types: Mapping[str, Type], operation: str, arguments: tuple[str, ...]) -> bool | None:
    """What a comparison of integers gives whatever the pixel, if their bounds decide it."""
    literals = [literal_value(n) for n in arguments]
    a, b = (types[n] if v is None else literal_type(v) for n, v in zip(arguments, literals, strict=True))
    if a.kind != "integer" or b.kind != "integer":
        return None
    always = {
        "less": a.high < b.low,
        "less_equal": a.high <= b.low,
        "greater": a.low > b.high,
        "greater_equal": a.low >= b.high,
        "equal": a.low == a.high == b.low == b.high,
        "not_equal": a.high < b.low or a.low > b.high,
    }
    if always[operation]:
        return True
    return False if always[OPPOSITE[operation]] else None


def rare_words(program: Program) -> dict[str, tuple[str, int]]:
    """Steps that ask whether a word is one special number, with the word and the number: hardly ever true."""
    types = dict(program.types)
    words = {i.name for i in program.inputs if i.dtype and types[i.name].dims > {FRAME}}
    found = {}
    for step in program.steps:
        if step.operation == "equal" and step.arguments[0] in words:
            number = literal_value(step.arguments[1])
            if isinstance(number, int):
                found[step.name] = (step.arguments[0], number)
    return found


def find_ends(program: Program, name: str) -> Ends | None:
    """How a step comes from maps and from comparisons of one word with maps, if it does."""
    still, steps = still_names(program, dict(program.types)), {step.name: step for step in program.steps}
    words = {i.name for i in program.inputs if i.name in program.by_row and i.dtype == END_DTYPE}
    left, found = [name], dict[str, Step]()
    while left:
        asked = left.pop()
        if asked in still or literal_value(asked) is not None or asked in found:
            continue
        step = steps.get(asked)
        if step is None:
            return None
        if _exceeds(program, step, words, still):
            found[asked] = step
        else:
            left += step.arguments
    compared = {word for step in found.values() for word in words.intersection(step.arguments)}
    return Ends(compared.pop(), tuple(found.values())) if len(compared) == 1 else None


def above(step: Step) -> tuple[str, str]:
    """The word and the number of a comparison that asks whether the one is above the other."""
    a, b = step.arguments
    return (a, b) if step.operation.startswith("greater") else (b, a)


def _exceeds(program: Program, step: Step, words: AbstractSet[str], still: AbstractSet[str]) -> bool:
    """Whether a step asks if a word is above a map of reals."""
    if step.operation not in ABOVE:
        return False
    word, end = above(step)
    return word in words and end in still and dict(program.types)[end].kind == "real"


def _stage(program: Program, kinds: dict[str, Type]) -> tuple[str, int] | None:
    """The first index that varies by pixel and frame, and the first label on its axis."""
    labels = dict(program.labels)
    for step in program.steps:
        if step.operation != "select":
            continue
        for axis, index in zip(labels[step.arguments[0]], step.arguments[1:], strict=True):
            if literal_value(index) is None and kinds[index].dims > {FRAME}:
                return index, axis[0]
    return None


def _word_bounds(program: Program, name: str, kinds: dict[str, Type]) -> list[tuple[str, int, int]]:
    """Bounds of the words that a step comes from, within which the bits that it asks for are known.

    A special word at the end of the range is left out: no word within bounds needs to be asked.
    """
    found = []
    for word, offset, codes in _asked_words(program, name, kinds):
        tested = {v for s in program.steps if s.operation == "equal" and word in s.arguments for v in _literals(s)}
        for code in range(codes if codes <= MOST_CODES else 0):
            low, high = code << offset, ((code + 1) << offset) - 1
            while low in tested and low < high:
                low += 1
            while high in tested and low < high:
                high -= 1
            found.append((word, low, high))
    return found


def _asked_words(program: Program, name: str, kinds: dict[str, Type]) -> list[tuple[str, int, int]]:
    """Words that a step comes from: the lowest bit asked for, and how many values the bits from there on can have."""
    words = {i.name for i in program.inputs if i.dtype and kinds[i.name].dims > {FRAME}}
    wanted, found = {name}, []
    for step in reversed(program.steps):
        if step.name not in wanted:
            continue
        wanted |= set(step.arguments)
        if step.operation == "bits" and step.arguments[0] in words:
            offset = int(step.arguments[1])
            found.append((step.arguments[0], offset, (kinds[step.arguments[0]].high >> offset) + 1))
        elif step.operation == "lookup" and step.arguments[1] in words:
            found.append((step.arguments[1], 0, len(kinds[step.arguments[0]].entries)))
    return found


def _literals(step: Step) -> set[int | float]:
    return {v for v in map(literal_value, step.arguments) if v is not None}


def _narrowed(program: Program, name: str, low: int, high: int) -> dict[str, Type]:
    """Type everything again with one value between narrower bounds; what is a known number varies no more."""
    types = dict(program.types)
    types[name] = _settled(replace(types[name], low=low, high=high))
    for step in program.steps:
        if step.name == name:
            continue
        kinds = []
        for argument in step.arguments:
            value = literal_value(argument)
            kinds.append(types[argument] if value is None else literal_type(value))
        types[step.name] = _settled(OPERATIONS[step.operation].result(tuple(kinds)))
    return types


def _settled(kind: Type) -> Type:
    known = kind.kind == "integer" and kind.low == kind.high and not kind.axes
    return replace(kind, dims=frozenset()) if known else kind
