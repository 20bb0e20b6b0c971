"""``gaincal views``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from gaincal.cli.common import json_option, pairs, print_json, print_lines, print_notes, trust_option
from gaincal.errors import RequestError


@click.command()
@click.argument("run")
@click.option("-o", "directory", metavar="DIRECTORY", help="Where the views go; default: beside RUN.")
@click.option("--sweeps", metavar="TABLE", help="CSV or TOML: name, first and frames (or ranges), axes.")
@click.option("--every", type=int, metavar="N", help="Sweeps of N frames each.")
@click.option("--inverse-beam", type=int, metavar="WEDGE", help="Sweeps A and B of interleaved wedges of WEDGE frames.")
@click.option("--axis", "axes", multiple=True, metavar="NAME=START[:STEP]", help="Where an axis is. Repeatable.")
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    metavar="NAME=X,Y,Z[,UNIT]",
    help="An axis that RUN does not have. Repeatable.",
)
@click.option("--allow-rest", is_flag=True, help="With --every: what remains becomes a shorter sweep.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where RUN has several.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@trust_option
@json_option
def views(
    run: str,
    directory: str | None,
    sweeps: str | None,
    every: int | None,
    inverse_beam: int | None,
    axes: tuple[str, ...],
    vectors: tuple[str, ...],
    allow_rest: bool,
    calibration: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write one NXmx master per sweep of RUN: its frames and its goniometer, and links to all else.

    Inverse beam, many samples in one acquisition, grid scans: programs take one sweep per file.
    """
    from gaincal.progress import progress
    from gaincal.sources.sweeps import parse_direction, parse_motion
    from gaincal.verbs.views import summary
    from gaincal.verbs.views import views as make

    with progress("views", "sweeps") as advance:
        done = make(
            run,
            directory,
            sweeps=sweeps,
            every=every,
            inverse_beam=inverse_beam,
            axes=_parsed(axes, "--axis", parse_motion),
            directions=_parsed(vectors, "--vector", parse_direction),
            allow_rest=allow_rest,
            calibration=calibration,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        print_json(asdict(done))
        return
    print_lines(summary(done))
    print_notes(done.notes)


def _parsed(values: tuple[str, ...], option: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """NAME=VALUE arguments, each VALUE parsed."""
    found = {}
    for name, text in pairs(values, option).items():
        try:
            found[name] = parse(text)
        except ValueError as error:
            raise RequestError(f"{option} {name}={text}: {error}") from None
    return found
