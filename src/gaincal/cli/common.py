"""What the commands share: options, arguments of the form NAME=VALUE, and what is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import click

from gaincal.errors import RequestError, one_line


def trust_option(command: Any) -> Any:
    """Give a command ``--trust-dir``, as the argument ``trust``."""
    option = click.option(
        "--trust-dir", "trust", multiple=True, metavar="DIR", help="Files below DIR may be opened, too. Repeatable."
    )
    return option(command)


def json_option(command: Any) -> Any:
    """Give a command ``--json``, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")(command)


def settings_option(command: Any) -> Any:
    """Give a command ``--set``, as the argument ``settings``; see `parse_numbers`."""
    shown = "Replace an input: photon_energy=12.4."
    return click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=shown)(command)


def calibration_option(command: Any) -> Any:
    """Give a command ``--calibration``."""
    shown = "Which calibration, where the file has several."
    return click.option("--calibration", metavar="NAME", help=shown)(command)


def reasons_option(command: Any) -> Any:
    """Give a command ``--reasons``, a list of names or None."""
    shown = "Only these flags and mask reasons make a pixel bad."
    return click.option("--reasons", metavar="NAME,NAME", callback=_names, help=shown)(command)


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name for name in value.split(",") if name]


def axis_options(command: Any) -> Any:
    """Give a command ``--axis`` and ``--vector``, as the arguments ``axes`` and ``vectors``."""
    motion, direction = "NAME=START[:STEP]", "NAME=X,Y,Z[,UNIT]"
    axis = click.option("--axis", "axes", multiple=True, metavar=motion, help="Where an axis is. Repeatable.")
    lacks = "An axis that the file does not have. Repeatable."
    return axis(click.option("--vector", "vectors", multiple=True, metavar=direction, help=lacks)(command))


def parse_axes(axes: Iterable[str], vectors: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What ``--axis`` and ``--vector`` say, by the names that the verbs have for it."""
    from gaincal.sources.sweeps import parse_direction, parse_motion

    motions, directions = pairs(axes, "--axis"), pairs(vectors, "--vector")
    return {
        "axes": {n: _parsed(n, text, "--axis", parse_motion) for n, text in motions.items()},
        "directions": {n: _parsed(n, text, "--vector", parse_direction) for n, text in directions.items()},
    }


def _parsed(name: str, text: str, option: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise RequestError(f"{option} {name}={text}: {error}") from None


def pairs(values: Iterable[str], option: str) -> dict[str, str]:
    """NAME=VALUE arguments as a dict."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name or not text:
            raise RequestError(f"{option} {value}: write NAME=VALUE")
        if name in found:
            raise RequestError(f"{option} {name} is given twice")
        found[name] = text
    return found


def parse_numbers(values: Iterable[str], option: str) -> dict[str, float]:
    """NAME=NUMBER arguments as a dict."""
    from gaincal.nexus.write import parse_number

    return {name: parse_number(name, text) for name, text in pairs(values, option).items()}


def print_json(content: Any) -> None:
    """Print for a program."""
    click.echo(json.dumps(_plain(content), indent=2, default=str, allow_nan=False))


def _plain(content: Any) -> Any:
    """What JSON can say: NaN and infinities become null."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def print_lines(lines: Iterable[str]) -> None:
    """Print for people; what a file says cannot begin another line."""
    click.echo("\n".join(one_line(line) for line in lines))


def print_done(done: Any, as_json: bool, lines: Iterable[str]) -> None:
    """Print what a verb did, a dataclass: all of it for a program, or some lines for people, and its notes."""
    if as_json:
        print_json(asdict(done))
        return
    print_lines(lines)
    print_notes(getattr(done, "notes", ()))


def print_notes(notes: Iterable[str]) -> None:
    """Tell people what they may want to know, where it disturbs no other program."""
    for note in notes:
        click.echo(f"note: {one_line(note)}", err=True)


def need(module: str, extra: str) -> None:
    """Say how to get what an extra brings; raises RequestError."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise RequestError(f"{module} is not installed: pip install 'gaincal[{extra}]' brings it")


def frames_of(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """How many frames are looked at, None for all."""
    if value == "all":
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter("a number above 0, or all", context, parameter)
