"""``gaincal report``."""

from __future__ import annotations

from dataclasses import asdict

import click

from gaincal.cli.common import (
    calibration_option,
    frames_of,
    json_option,
    need,
    parse_numbers,
    print_json,
    reasons_option,
    settings_option,
    trust_option,
)
from gaincal.errors import one_line


@click.command()
@click.argument("file")
@click.option("-o", "target", required=True, metavar="FILE.html", help="The page to write, and FILE.json beside it.")
@click.option("--previous", metavar="FILE", help="Compare constants with those of this file.")
@click.option(
    "--frames", default="200", callback=frames_of, metavar="N|all", help="Look at N frames, evenly spread; 200."
)
@settings_option
@calibration_option
@reasons_option
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@trust_option
@json_option
def report(
    file: str,
    target: str,
    previous: str | None,
    frames: int | None,
    settings: tuple[str, ...],
    calibration: str | None,
    reasons: list[str] | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how good a run is, or a file of constants, on one page: verdict, peaks, stages, bad pixels, maps."""
    from gaincal.progress import progress

    need("matplotlib", "report")
    need("jinja2", "report")
    from gaincal.report.command import report as run

    with progress("report", "frames") as advance:
        done = run(
            file,
            target,
            previous=previous,
            frames=frames,
            inputs=parse_numbers(settings, "--set"),
            calibration=calibration,
            reasons=reasons,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        print_json(asdict(done))
        return
    click.echo(f"{done.path}: {done.verdict}. {one_line(done.reason)}")
    for name, value in done.numbers.items():
        click.echo(f"  {name:12} {value}")
