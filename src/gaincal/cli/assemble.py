"""``gaincal assemble``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from gaincal.cli.common import json_option, pairs, print_done, trust_option
from gaincal.errors import RequestError

ABSENT = "absent"


def _numbered(named: tuple[str, ...]) -> dict[int, str | None]:
    """Files of modules by their place."""
    given = pairs(named, "--module")
    if not all(number.isdecimal() for number in given):
        raise RequestError("--module K=FILE: K is the place of a module in a frame, counted from 0")
    return {int(k): None if file == ABSENT else file for k, file in given.items()}


@click.command()
@click.argument("files", nargs=-1, metavar="FILE[::/PATH]...")
@click.option("-o", "--output", required=True, metavar="RUN", help="The file to write.")
@click.option("--module", "modules", multiple=True, metavar="K=FILE|absent", help="The file of module K. Repeatable.")
@click.option("--id", "ids", multiple=True, metavar="NAME[=/PATH]", help="What identifies frames, the first by which.")
@click.option("--tolerance", type=float, metavar="T", help="Ids no further apart than T are equal: for times.")
@click.option("--ids", "select", default="union", metavar="union|intersection", help="Frames that any, or all, have.")
@click.option("--require", type=int, default=1, metavar="N", help="Only frames that at least N modules have.")
@click.option("--duplicates", default="first", metavar="first|last|reject", help="Which of repeated frames is kept.")
@click.option("--layout", default="stacked", metavar="stacked|assembled", help="(module, y, x), or one image (y, x).")
@click.option("--gap", type=int, default=0, metavar="ROWS", help="Rows between modules of one image.")
@click.option("--source", default="auto", metavar="NAME", help="auto, plain, arrays, euxfel, slsdet or swissfel.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@trust_option
@json_option
def assemble(
    files: tuple[str, ...],
    output: str,
    modules: tuple[str, ...],
    ids: tuple[str, ...],
    tolerance: float | None,
    select: str,
    require: int,
    duplicates: str,
    layout: str,
    gap: int,
    source: str,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put FILES of modules together to one RUN, frame by frame, by ids that are equal.

    The words stay where they are. What a module lacks is a gap, flagged when the words are calibrated.
    Then: gaincal embed RUN -o MASTER --formula ... --constant ...
    """
    from gaincal.progress import progress
    from gaincal.verbs.assemble import assemble as run

    located = {name: where or None for name, _, where in (text.partition("=") for text in ids)}
    with progress("assemble", "modules") as advance:
        done = run(
            files,
            output,
            modules=_numbered(modules),
            ids=located,
            tolerance=tolerance,
            select=select,
            require=require,
            duplicates=duplicates,
            layout=layout,
            gap=gap,
            source=source,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    head = f"{done.path}: words {done.shape}, matched by {done.account.matched_by}"
    print_done(done, as_json, [head, *_account_lines(asdict(done.account)["modules"])])


def _account_lines(modules: list[dict[str, Any]]) -> list[str]:
    """A table of what became of all that the modules recorded."""
    counts = ("recorded", "written", "missing", "duplicate", "rejected", "expected")
    lines = ["  module  " + "".join(f"{name:>10}" for name in counts) + "  file"]
    for row in modules:
        problem = f" ({row['problem']})" if row["problem"] else ""
        lines.append(f"  {row['module']:6}  " + "".join(f"{row[n]:10}" for n in counts) + f"  {row['file']}{problem}")
    total = "".join(f"{sum(row[n] for row in modules):10}" for n in counts)
    return [*lines, f"  {'all':>6}  {total}"]
