"""``gaincal geometry``."""

from __future__ import annotations

import click

from gaincal.cli.common import json_option, print_done, trust_option


@click.command()
@click.argument("file")
@click.option("-o", "target", metavar="OUT.geom", help="Write the geometry as a .geom file.")
@click.option("--split", is_flag=True, help="Cut modules of known detectors into ASICs.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@trust_option
@json_option
def geometry(
    file: str, target: str | None, split: bool, overwrite: bool, trust: tuple[str, ...], as_json: bool
) -> None:
    """Say where the panels of FILE are: a .geom file, or a NeXus file with a detector."""
    from gaincal.verbs.geometry import geometry as run

    found = run(file, target, split=split, overwrite=overwrite, trust=trust)
    print_done(found, as_json, found.lines())
