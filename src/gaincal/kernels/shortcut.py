"""What can be assumed where a whole vector of pixels is in the first stage, found from the steps.

Real detectors switch in few pixels and in clusters, so nearly every vector of pixels is in one
stage.  For such a vector the bounds of the word (or of the stage) are narrower than declared, and
with them the bounds of everything computed from it: comparisons become constants, lookups and
selections vanish.  The rules that type the steps find this by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gaincal.formulas.checks import FRAME, literal_type, literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import OPERATIONS, Type
from gaincal.formulas.program import Program


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
    """

    name: str
    low: int
    high: int
    types: dict[str, Type]


def find_shortcut(program: Program) -> Shortcut | None:
    """The assumption that the first index which varies by pixel chooses its first label."""
    kinds = dict(program.types)
    steps = {step.name: step for step in program.steps}
    stage = _stage(program, kinds, steps)
    if stage is None:
        return None
    name, label = stage
    for candidate, low, high in (*_word_bounds(name, label, kinds, steps), (name, label, label)):
        if low < kinds[candidate].low or high > kinds[candidate].high:
            continue  # labels and tables may name what no word can give
        types = _narrowed(program, candidate, low, high)
        if types[name].low == types[name].high == label:
            return Shortcut(candidate, low, high, types)
    return None


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


def _stage(program: Program, kinds: dict[str, Type], steps: dict[str, Step]) -> tuple[str, int] | None:
    labels = dict(program.labels)
    for step in program.steps:
        if step.operation != "select":
            continue
        for axis, index in zip(labels[step.arguments[0]], step.arguments[1:], strict=True):
            if index in steps and kinds[index].dims - {FRAME}:
                return index, axis[0]
    return None


def _word_bounds(name: str, label: int, kinds: dict[str, Type], steps: dict[str, Step]) -> list[tuple[str, int, int]]:
    """Bounds of a word whose highest bits alone, looked up, give the label.

    A special word at the end of the range is left out: no word within bounds needs to be asked.
    """
    lookup = steps[name]
    if lookup.operation != "lookup" or lookup.arguments[1] not in steps:
        return []
    bits = steps[lookup.arguments[1]]
    if bits.operation != "bits" or bits.arguments[0] in steps:
        return []
    offset = int(bits.arguments[1])
    entries = kinds[lookup.arguments[0]].entries
    word = bits.arguments[0]
    tested = {v for s in steps.values() if s.operation == "equal" and word in s.arguments for v in _literals(s)}
    found = []
    for code in (code for code, e in enumerate(entries) if e == label):
        low, high = code << offset, ((code + 1) << offset) - 1
        while low in tested and low < high:
            low += 1
        while high in tested and low < high:
            high -= 1
        found.append((word, low, high))
    return found


def _literals(step: Step) -> set[int | float]:
    return {v for v in map(literal_value, step.arguments) if v is not None}


def _narrowed(program: Program, name: str, low: int, high: int) -> dict[str, Type]:
    """Type everything again with one value between narrower bounds."""
    types = dict(program.types)
    types[name] = replace(types[name], low=low, high=high)
    for step in program.steps:
        if step.name == name:
            continue
        kinds = []
        for argument in step.arguments:
            value = literal_value(argument)
            kinds.append(types[argument] if value is None else literal_type(value))
        types[step.name] = OPERATIONS[step.operation].result(tuple(kinds))
    return types
