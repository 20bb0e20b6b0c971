"""What is the same in every frame: computed once per tile of pixels and kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gaincal.formulas.checks import FRAME, literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import Type
from gaincal.formulas.program import Program

MOST_KEPT = 8
"""Numbers kept for each pixel of a tile, on the stack of a thread."""


def pixelwise(kind: Type) -> bool:
    """Whether a value varies from pixel to pixel of a frame."""
    return bool(kind.dims - {FRAME})


def known(kind: Type) -> bool:
    """Whether a value is one number, whatever the pixel."""
    return kind.kind == "integer" and kind.low == kind.high


def still_names(program: Program, types: Mapping[str, Type]) -> frozenset[str]:
    """Maps of the pixels, and steps on nothing else.

    Parameters
    ----------
    program : Program
    types : mapping of str to Type
        The program's own, or those under an assumption: where the stage is known, so is the plane.
    """
    reached = {t.name for t in program.tables}
    reached |= {i.name for i in program.given if pixelwise(types[i.name]) and FRAME not in types[i.name].dims}
    for step in program.steps:
        if known(types[step.name]) or all(a in reached or literal_value(a) is not None for a in step.arguments):
            reached.add(step.name)
    return frozenset(reached)


def kept_names(program: Program, types: Mapping[str, Type], names: Iterable[str]) -> tuple[str, ...]:
    """Steps on maps alone that some names come from: conditions, and numbers that are worth it."""
    still = still_names(program, types)
    _, asked = needed(program, names, still)
    chosen = [s for s in program.steps if s.name in still & asked and pixelwise(types[s.name])]
    conditions = [s.name for s in chosen if types[s.name].kind == "logical"]
    numbers = [s.name for s in chosen if types[s.name].kind != "logical" and not _loaded(s, types)]
    return (*conditions, *numbers[:MOST_KEPT])


def needed(program: Program, names: Iterable[str], present: Iterable[str]) -> tuple[list[Step], set[str]]:
    """The steps that lead from what is present to some names, in order, and everything that they ask for."""
    wanted, steps = set(names), []
    for step in reversed(program.steps):
        if step.name in wanted and step.name not in present:
            steps.append(step)
            wanted |= set(step.arguments)
    return steps[::-1], wanted


def _loaded(step: Step, types: Mapping[str, Type]) -> bool:
    """Whether a step takes the values of one plane as they are: keeping them would spare nothing."""
    indices = [a for a in step.arguments[1:] if literal_value(a) is None]
    return step.operation == "select" and not any(pixelwise(types[a]) for a in indices)
