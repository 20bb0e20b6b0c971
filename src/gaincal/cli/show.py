"""``gaincal show``."""

from __future__ import annotations

from dataclasses import asdict

import click

from gaincal.cli.common import json_option, need, pairs, print_json, print_notes, trust_option


@click.command()
@click.argument("master")
@click.option("-o", "target", metavar="FILE.png", help="The picture to write; default: a window.")
@click.option("--frame", type=int, default=0, show_default=True, help="Which frame; -1 is the last.")
@click.option("--output", metavar="NAME", help="Output of the formula; that in keV, or photons, if not given.")
@click.option("--stored", is_flag=True, help="Draw pixels as they are stored, not where they are.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace an input: photon_energy=12.4.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@click.option("--profile", metavar="PROGRAM", help="Reproduce another program: jungfrau_utils, aare ...")
@click.option("--reasons", metavar="NAME,NAME", help="Only these flags and mask reasons make a pixel bad.")
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
    reasons: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw a frame of MASTER: calibrated, gain stages, flags, where its pixels are in the laboratory."""
    from gaincal.nexus.write import parse_number

    need("matplotlib", "plot")
    from gaincal.report.show import show as run

    done = run(
        master,
        target,
        frame=frame,
        output=output,
        stored=stored,
        inputs={name: parse_number(name, text) for name, text in pairs(settings, "--set").items()},
        calibration=calibration,
        profile=profile,
        reasons=None if reasons is None else [name for name in reasons.split(",") if name],
        overwrite=overwrite,
        trust=trust,
    )
    if as_json:
        print_json(asdict(done))
        return
    where = done.path or "window closed"
    click.echo(f"{where}: frame {done.frame} of {done.frames}, {done.output} ({done.units})")
    print_notes(done.notes)
