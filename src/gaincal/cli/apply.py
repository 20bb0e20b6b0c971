"""``gaincal apply``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from gaincal.cli.common import (
    calibration_option,
    json_option,
    parse_numbers,
    print_done,
    reasons_option,
    settings_option,
    trust_option,
)


def _range(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int | None, int | None] | None:
    if value is None:
        return None
    first, separator, stop = value.partition(":")
    try:
        if separator:
            return (int(first) if first else None, int(stop) if stop else None)
    except ValueError:
        pass
    raise click.BadParameter("write A:B, A: or :B", context, parameter)


def _flagged(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return 0.0 if value == "zero" else float(value)
    except ValueError:
        raise click.BadParameter("nan, zero or a number", context, parameter) from None


@click.command()
@click.argument("master")
@click.option("-o", "target", metavar="OUT", help="The file to write; default: MASTER_OUTPUT.nxs beside the master.")
@click.option("--for", "reader", metavar="dials|xds|crystfel", help="Write counts as this program accepts them.")
@click.option("--output", metavar="NAME", help="Output of the formula; its default one if not given.")
@click.option("--dtype", metavar="T", help="One of the dtypes that the output declares.")
@click.option("--flagged", callback=_flagged, metavar="nan|zero|NUMBER", help="Value of flagged pixels.")
@click.option("--frames", callback=_range, metavar="A:B", help="Only frames A to B - 1.")
@settings_option
@calibration_option
@click.option("--profile", metavar="PROGRAM", help="Reproduce another program: jungfrau_utils, aare ...")
@reasons_option
@click.option("--errors", is_flag=True, help="Write standard deviations, too.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Threads, or workers; default: all there are.")
@click.option("--max-memory", type=click.IntRange(1), metavar="MIB", help="For frames on their way; default: 1024.")
@click.option("--scheduler", metavar="ADDRESS|local", help="Compute on a dask cluster, or with processes here.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@trust_option
@json_option
def apply(
    master: str,
    target: str | None,
    reader: str | None,
    output: str | None,
    dtype: str | None,
    flagged: float | None,
    frames: tuple[int | None, int | None] | None,
    settings: tuple[str, ...],
    calibration: str | None,
    profile: str | None,
    reasons: list[str] | None,
    errors: bool,
    jobs: int | None,
    max_memory: int | None,
    scheduler: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the calibrated frames of MASTER as a standard NXmx file."""
    from gaincal.progress import progress

    inputs = parse_numbers(settings, "--set")
    with _applying(scheduler, jobs) as run, progress("apply", "frames") as advance:
        done = run(
            master,
            target,
            output=output,
            dtype=dtype,
            flagged=flagged,
            frames=frames,
            inputs=inputs,
            calibration=calibration,
            profile=profile,
            reasons=reasons,
            errors=errors,
            reader=reader,
            jobs=jobs,
            max_memory=max_memory,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    print_done(done, as_json, _lines(done))


def _lines(done: Any) -> list[str]:
    """What people want to know of an applied file."""
    lines = [f"{done.path}: {done.frames} frames of {done.output} ({done.units}) as {done.dtype}"]
    total = done.frames * done.pixels
    lines += [f"  {n:20} {count:12} pixels  {100 * count / total:.4f} %" for n, count in done.flags.items() if count]
    if done.missing_frames:
        lines.append(f"  {done.missing_frames} frames are missing entirely")
    if done.not_tested:
        lines.append(f"  not tested: {', '.join(done.not_tested)}")
    return lines + ([f"{done.settings}: what to tell the program"] if done.settings else [])


@contextmanager
def _applying(scheduler: str | None, jobs: int | None) -> Iterator[Callable[..., Any]]:
    """What applies: this process, or a cluster for as long as the context lasts."""
    if scheduler is None:
        from gaincal.verbs.apply import apply as run

        yield run
        return
    from gaincal.scatter import apply_on, connected

    with connected(scheduler, jobs) as client:
        yield partial(apply_on, client)
