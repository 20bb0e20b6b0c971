"""``gaincal darks``."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from gaincal.cli.common import json_option, pairs, parse_numbers, print_json, print_notes, trust_option
from gaincal.errors import RequestError


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN[::/PATH]]...")
@click.option("-o", "--output", required=True, metavar="CONSTANTS", help="The constants file to write.")
@click.option("--stage", "stages", multiple=True, metavar="N=RUN", help="A run that is all in one stage. Repeatable.")
@click.option("--formula", metavar="NAME|FILE", help="A formula of the catalogue, or a TOML file.")
@click.option("--source", default="auto", metavar="NAME", help="auto, plain, arrays, euxfel, slsdet or swissfel.")
@click.option("--method", default="mean", metavar="NAME", help="mean (one pass), median, or gated (two passes).")
@click.option("--clip", default=6.0, help="mean: leave out words beyond so many standard deviations; 0: none.")
@click.option("--gate", default=5.0, help="gated: half width of the gate around the median.")
@click.option("--majority", default=0.5, help="Part of the words that must be in the stage of their frame.")
@click.option("--threshold", "thresholds", multiple=True, metavar="NAME=VALUE", help="When pixels are bad: noisy=8")
@click.option("--set", "facts", multiple=True, metavar="NAME=VALUE", help="When they hold: start_time ...")
@click.option("--max-memory", default=1024, type=click.IntRange(1), metavar="MIB", help="For sums; default: 1024.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Threads; default: all there are.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@trust_option
@json_option
def darks(
    runs: tuple[str, ...],
    output: str,
    stages: tuple[str, ...],
    thresholds: tuple[str, ...],
    facts: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Take pedestal, noise and bad pixels, with reasons, from dark RUNs.

    The stage of a frame is the one that was forced, where the files say so, else the one of most of its words.
    """
    from gaincal.progress import progress
    from gaincal.verbs.darks import darks as run

    limits = parse_numbers(thresholds, "--threshold")
    with progress("darks", "frames") as advance:
        done = run(
            runs,
            output,
            stages={_stage(n): path for n, path in pairs(stages, "--stage").items()},
            thresholds=limits,
            facts=pairs(facts, "--set"),
            progress=advance,
            **options,
        )
    if as_json:
        print_json(asdict(done))
        return
    click.echo(f"{done.path}: {done.constant} and noise of {len(done.stages)} stage(s)")
    for line in done.stages:
        about = f"{done.constant} {line.get('pedestal', math.nan):.1f} ADU, noise {line.get('noise', math.nan):.2f} ADU"
        click.echo(f"  stage {line['stage']}: {line['frames']} frames of modules, {about}, {line['bad']} bad pixels")
    for name, count in done.reasons.items():
        click.echo(f"  {name:20} {count:12} pixels")
    print_notes(done.notes)


def _stage(text: str) -> int:
    if not text.isdecimal():
        raise RequestError(f"--stage {text}=...: a stage is a number")
    return int(text)
