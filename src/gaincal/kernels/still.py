"""What is the same in every frame: its conditions are computed once per tile and kept as bits."""

from __future__ import annotations

from collections.abc import Mapping

from gaincal.formulas.checks import FRAME, literal_value
from gaincal.formulas.operations import Type
from gaincal.formulas.program import Program


def still_names(program: Program, types: Mapping[str, Type]) -> frozenset[str]:
    """Maps of the pixels, and steps on nothing else.

    Parameters
    ----------
    program : Program
    types : mapping of str to Type
        The program's own, or those under an assumption: where the stage is known, so is the plane.
    """
    maps = {item.name for item in program.given if types[item.name].dims and FRAME not in types[item.name].dims}
    return _follow(program, types, maps)


def kept_conditions(program: Program, types: Mapping[str, Type]) -> tuple[str, ...]:
    """The conditions on maps alone that the steps of every frame, or the flags, ask for."""
    still = still_names(program, types)
    varying = still - _follow(program, types, set())
    asked = {a for step in program.steps if step.name not in still for a in step.arguments}
    asked |= {flag.when for _, flag in program.flags}
    return tuple(s.name for s in program.steps if s.name in varying & asked and types[s.name].kind == "logical")


def _follow(program: Program, types: Mapping[str, Type], names: set[str]) -> frozenset[str]:
    """The names, tables, and all steps that need nothing but these and numbers."""
    reached = names | {table.name for table in program.tables}
    for step in program.steps:
        kind = types[step.name]
        known = kind.kind == "integer" and kind.low == kind.high
        if known or all(a in reached or literal_value(a) is not None for a in step.arguments):
            reached.add(step.name)
    return frozenset(reached)
