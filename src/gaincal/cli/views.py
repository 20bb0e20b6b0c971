"""``gaincal views``."""

from __future__ import annotations

import click

from gaincal.cli.common import axis_options, json_option, parse_axes, print_done, trust_option


@click.command()
@click.argument("run")
@click.option("-o", "directory", metavar="DIRECTORY", help="Where the views go; default: beside RUN.")
@click.option("--sweeps", metavar="TABLE", help="CSV or TOML: name, first and frames (or ranges), axes.")
@click.option("--every", type=int, metavar="N", help="Sweeps of N frames each.")
@click.option("--inverse-beam", type=int, metavar="WEDGE", help="Sweeps A and B of interleaved wedges of WEDGE frames.")
@axis_options
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
    from gaincal.verbs.views import summary
    from gaincal.verbs.views import views as make

    with progress("views", "sweeps") as advance:
        done = make(
            run,
            directory,
            sweeps=sweeps,
            every=every,
            inverse_beam=inverse_beam,
            **parse_axes(axes, vectors),
            allow_rest=allow_rest,
            calibration=calibration,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    print_done(done, as_json, summary(done))
