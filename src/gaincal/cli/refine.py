"""``gaincal refine``."""

from __future__ import annotations

from dataclasses import asdict

import click

from gaincal.cli.common import (
    calibration_option,
    frames_of,
    json_option,
    parse_numbers,
    print_json,
    print_notes,
    settings_option,
    trust_option,
)


@click.command()
@click.argument("master")
@click.option("-o", "target", metavar="FILE.nxs", help="Write factors and refined gains, as constants.")
@click.option("--frames", default="all", callback=frames_of, metavar="N|all", help="Look at N frames; default: all.")
@click.option("--per-module", is_flag=True, help="One factor per module; none of pixels of their own.")
@settings_option
@calibration_option
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@trust_option
@json_option
def refine(
    master: str,
    target: str | None,
    frames: int | None,
    per_module: bool,
    settings: tuple[str, ...],
    calibration: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find out from photon peaks how far the gains of MASTER are off, and how its pedestal drifts."""
    from gaincal.progress import progress
    from gaincal.verbs.refine import refine as run

    with progress("refine", "frames") as advance:
        done = run(
            master,
            target,
            frames=frames,
            per_pixel=not per_module,
            inputs=parse_numbers(settings, "--set"),
            calibration=calibration,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        print_json(asdict(done))
        return
    click.echo(f"{done.output} of {done.frames} of {done.run_frames} frames, in {done.units}")
    click.echo("  module        zero peak  photon peak  expected  gain factor           drift  pixels of their own")
    for m in done.modules:
        numbers = (f"{'-' if v is None else f'{v:.4f}'}" for v in (m.zero, m.photon, m.expected, m.drift))
        zero, photon, expected, drift = numbers
        factor = "-" if m.factor is None or m.error is None else f"{m.factor:.4f} +- {m.error:.1g}"
        click.echo(f"  {m.name:12} {zero:>10} {photon:>12} {expected:>9}  {factor:18} {drift:>8} {m.pixels:>12}")
    print_notes(done.notes)
    if done.path is not None:
        click.echo(
            f"{done.path}: factors{'' if any('only factors' in n for n in done.notes) else ' and refined gains'}"
        )
