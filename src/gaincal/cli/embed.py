"""``gaincal embed``."""

from __future__ import annotations

import click

from gaincal.cli.common import axis_options, json_option, pairs, parse_axes, print_done, trust_option
from gaincal.errors import RequestError


@click.command()
@click.argument("raw", metavar="RAW[::/PATH]")
@click.option("-o", "--output", metavar="MASTER", help="The master file to write.")
@click.option("--in-place", is_flag=True, help="Put the calibration into the raw file (through a copy).")
@click.option(
    "--formula", metavar="NAME|FILE", help="A formula of the catalogue, or a TOML file; else what the run says."
)
@click.option("--source", default="auto", metavar="NAME", help="auto, plain, arrays, euxfel, slsdet or swissfel.")
@click.option("--constant", multiple=True, metavar="NAME=FILE[::/PATH]", help="A constant of the formula. Repeatable.")
@click.option("--constants", "constants_from", metavar="DIR|FILE", help="The nearest set of gaincal darks that fits.")
@click.option("--max-age", type=float, metavar="HOURS", help="--constants: most time between darks and run.")
@click.option("--on-mismatch", default="refuse", metavar="refuse|warn", help="--constants: what if none fits.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An input (photon_energy) or metadata.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FILE::/PATH", help="Another input, as the formula declares it."
)
@click.option("--mask", metavar="FILE[::/PATH]", help="Bad-pixel mask: true/false or NXmx bits.")
@click.option("--mask-bits", metavar="NAME", help="Whose bits the mask has, if not NXmx's: euxfel, psi, lcls ...")
@click.option("--id", "ids", multiple=True, metavar="NAME=FILE::/PATH", help="Numbers of the frames: pulse_id ...")
@click.option("--geometry", metavar="FILE.geom", help="Where the panels are: CrystFEL's geometry file.")
@axis_options
@click.option("--copy-raw", is_flag=True, help="Copy the words into the master instead of linking them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing master.")
@trust_option
@json_option
def embed(
    raw: str,
    output: str | None,
    in_place: bool,
    formula: str | None,
    source: str,
    constant: tuple[str, ...],
    constants_from: str | None,
    max_age: float | None,
    on_mismatch: str,
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    mask: str | None,
    mask_bits: str | None,
    ids: tuple[str, ...],
    geometry: str | None,
    axes: tuple[str, ...],
    vectors: tuple[str, ...],
    copy_raw: bool,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put a formula and its constants into a new master that links RAW (or into RAW itself).

    RAW is a file with a dataset of words, or a run: a European XFEL folder, a SwissFEL file, a master
    of slsDetectorPackage's .raw files.

    Constants: HDF5 (PSI's /gains, or a dataset you name), .npy, or PSI's .bin gain maps.
    """
    from gaincal.verbs.embed import embed as run

    if not in_place and output is None:
        raise RequestError("say where to write: -o MASTER, or --in-place")
    done = run(
        raw,
        output,
        formula=formula,
        source=source,
        constants=pairs(constant, "--constant"),
        constants_from=constants_from,
        max_age=max_age,
        on_mismatch=on_mismatch,
        settings=pairs(settings, "--set"),
        inputs=pairs(inputs, "--input"),
        mask=mask,
        mask_bits=mask_bits,
        ids=pairs(ids, "--id"),
        geometry=geometry,
        **parse_axes(axes, vectors),
        copy_raw=copy_raw,
        in_place=in_place,
        overwrite=overwrite,
        trust=trust,
    )
    print_done(done, as_json, [f"{done.path}: outputs {', '.join(done.outputs) or 'none'}"])
