"""``gaincal constants``."""

from __future__ import annotations

from dataclasses import asdict

import click

from gaincal.cli.common import json_option, print_json
from gaincal.errors import one_line


@click.group()
def constants() -> None:
    """Compare constants files."""


@constants.command("diff")
@click.argument("first")
@click.argument("second")
@json_option
def constants_diff(first: str, second: str, as_json: bool) -> None:
    """Say what has changed from FIRST to SECOND: constants, bad pixels, and how they were taken."""
    from gaincal.verbs.constants import diff

    found = diff(first, second)
    if as_json:
        print_json(asdict(found))
        return
    for d in found.differences:
        where = ", ".join(f"{axis} {label}" for axis, label in d.labels.items())
        about = f"median {d.median:+.3f}, scatter {d.scatter:.3f}, largest {d.largest:.1f} {d.units}"
        click.echo(f"{d.constant:10} {where:18} {about}; {d.beyond} pixels far off")
    for line in found.lacking:
        click.echo(line)
    click.echo("bad pixels " + ", ".join(f"{name}: {count}" for name, count in found.masked.items()))
    for name, count in found.now_bad.items():
        click.echo(f"  now {name:16} {count:12} pixels")
    for name, (old, new) in found.facts.items():
        click.echo(f"{name}: {one_line(str(old))} -> {one_line(str(new))}")
