"""``gaincal show``."""

from __future__ import annotations

from dataclasses import asdict

import click

from gaincal.cli.common import (
    calibration_option,
    json_option,
    need,
    parse_numbers,
    print_json,
    print_notes,
    reasons_option,
    settings_option,
    trust_option,
)


@click.command()
@click.argument("master")
@click.option("-o", "target", metavar="FILE.png", help="The picture to write; default: a window.")
@click.option("--frame", type=int, default=0, show_default=True, help="Which frame; -1 is the last.")
@click.option("--output", metavar="NAME", help="Output of the formula; that in keV, or photons, if not given.")
@click.option("--stored", is_flag=True, help="Draw pixels as they are stored, not where they are.")
@settings_option
@calibration_option
@click.option("--profile", metavar="PROGRAM", help="Reproduce another program: jungfrau_utils, aare ...")
@reasons_option
@click.option("--overwrite", is_flag=True, help="Replace an existing picture.")
@trust_option
@json_option
def show(
    master: str,
    target: str | None,
    frame: int,
    output: str | None,
    stored: bool,
    settings: tuple[str, ...],
    calibration: str | None,
    profile: str | None,
    reasons: list[str] | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw a frame of MASTER: calibrated, gain stages, flags, where its pixels are in the laboratory."""
    need("matplotlib", "plot")
    from gaincal.report.show import show as run

    done = run(
        master,
        target,
        frame=frame,
        output=output,
        stored=stored,
        inputs=parse_numbers(settings, "--set"),
        calibration=calibration,
        profile=profile,
        reasons=reasons,
        overwrite=overwrite,
        trust=trust,
    )
    if as_json:
        print_json(asdict(done))
        return
    where = done.path or "window closed"
    click.echo(f"{where}: frame {done.frame} of {done.frames}, {done.output} ({done.units})")
    print_notes(done.notes)
