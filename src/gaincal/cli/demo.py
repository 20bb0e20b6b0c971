"""``gaincal demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("-o", "directory", default="gaincal-demo", metavar="DIR", help="Where to write; default: gaincal-demo.")
@click.option("--frames", type=click.IntRange(1, 10_000), default=40, show_default=True, help="How many frames.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier demo.")
def demo(directory: str, frames: int, overwrite: bool) -> None:
    """Simulate a small JUNGFRAU run, embed, apply, and draw it."""
    from gaincal.demo import demo as run
    from gaincal.progress import progress

    with progress("demo", "frames") as advance:
        lines = run(Path(directory), frames=frames, overwrite=overwrite, progress=advance)
    click.echo("\n".join(lines))
