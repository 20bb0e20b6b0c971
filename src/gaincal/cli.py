"""The command line; every command imports what it needs when it runs."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from gaincal._version import __version__
from gaincal.errors import GaincalError, OutputError, RequestError, one_line

FINDINGS_EXIT = 8
SIGNAL_EXIT = 128


def _terminate(number: int, _frame: object) -> None:
    """Unwind on SIGTERM, as on Ctrl-C, so that nothing half-written stays."""
    sys.exit(SIGNAL_EXIT + number)


class _Commands(click.Group):
    """Turns errors into one line and an exit code; a traceback only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(context)
        except (GaincalError, OSError, MemoryError) as error:
            if context.params.get("debug"):
                raise
            text = str(error) if isinstance(error, GaincalError) else one_line(f"{type(error).__name__}: {error}")
            click.echo(f"gaincal: {text}", err=True)
            context.exit(error.exit_code if isinstance(error, GaincalError) else OutputError.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gaincal")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Raw detector words, with the formula that calibrates them, calibrated when somebody reads.

    \b
    Exit codes: 0 done; 1 other error; 2 wrong request; 3 formula; 4 file; 5 file not trusted;
    6 formula and data do not fit; 7 output not written; 8 validate found errors.
    """  # noqa: D301  (\b is click's mark for lines that stay as they are)


def _trust(command: Any) -> Any:
    option = click.option(
        "--trust-dir", "trust", multiple=True, metavar="DIR", help="Files below DIR may be opened, too. Repeatable."
    )
    return option(command)


def _as_json(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")(command)


def _pairs(values: Iterable[str], option: str) -> dict[str, str]:
    """NAME=VALUE arguments as a dict."""
    pairs: dict[str, str] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name or not text:
            raise RequestError(f"{option} {value}: write NAME=VALUE")
        if name in pairs:
            raise RequestError(f"{option} {name} is given twice")
        pairs[name] = text
    return pairs


def _print_json(content: Any) -> None:
    click.echo(json.dumps(_plain(content), indent=2, default=str, allow_nan=False))


def _plain(content: Any) -> Any:
    """What JSON can say: NaN and infinities become null."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@main.command()
@click.argument("raw", metavar="RAW[::/PATH]")
@click.option("-o", "--output", metavar="MASTER", help="The master file to write.")
@click.option("--in-place", is_flag=True, help="Put the calibration into the raw file (through a copy).")
@click.option(
    "--formula", metavar="NAME|FILE", help="A formula of the catalogue, or a TOML file; else what the run says."
)
@click.option("--source", default="auto", metavar="NAME", help="auto, plain, arrays, euxfel, slsdet or swissfel.")
@click.option("--constant", multiple=True, metavar="NAME=FILE[::/PATH]", help="A constant of the formula. Repeatable.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An input (photon_energy) or metadata.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FILE::/PATH", help="Another input, as the formula declares it."
)
@click.option("--mask", metavar="FILE[::/PATH]", help="Bad-pixel mask: true/false or NXmx bits.")
@click.option("--mask-bits", metavar="NAME", help="Whose bits the mask has, if not NXmx's: euxfel, psi, lcls ...")
@click.option("--id", "ids", multiple=True, metavar="NAME=FILE::/PATH", help="Numbers of the frames: pulse_id ...")
@click.option("--geometry", metavar="FILE.geom", help="Where the panels are: CrystFEL's geometry file.")
@click.option("--copy-raw", is_flag=True, help="Copy the words into the master instead of linking them.")
@click.option("--overwrite", is_flag=True, help="Replace an existing master.")
@_trust
@_as_json
def embed(
    raw: str,
    output: str | None,
    in_place: bool,
    formula: str | None,
    source: str,
    constant: tuple[str, ...],
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    mask: str | None,
    mask_bits: str | None,
    ids: tuple[str, ...],
    geometry: str | None,
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
        constants=_pairs(constant, "--constant"),
        settings=_pairs(settings, "--set"),
        inputs=_pairs(inputs, "--input"),
        mask=mask,
        mask_bits=mask_bits,
        ids=_pairs(ids, "--id"),
        geometry=geometry,
        copy_raw=copy_raw,
        in_place=in_place,
        overwrite=overwrite,
        trust=trust,
    )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.path}: outputs {', '.join(done.outputs) or 'none'}")
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)


ABSENT = "absent"


def _numbered(named: tuple[str, ...]) -> dict[int, str | None]:
    """Files of modules by their place."""
    given = _pairs(named, "--module")
    if not all(number.isdecimal() for number in given):
        raise RequestError("--module K=FILE: K is the place of a module in a frame, counted from 0")
    return {int(k): None if file == ABSENT else file for k, file in given.items()}


@main.command()
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
@_trust
@_as_json
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
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.path}: words {done.shape}, matched by {done.account.matched_by}")
    click.echo("\n".join(one_line(line) for line in _account_lines(asdict(done.account)["modules"])))
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)


def _account_lines(modules: list[dict[str, Any]]) -> list[str]:
    """A table of what became of all that the modules recorded."""
    counts = ("recorded", "written", "missing", "duplicate", "rejected", "expected")
    lines = ["  module  " + "".join(f"{name:>10}" for name in counts) + "  file"]
    for row in modules:
        problem = f" ({row['problem']})" if row["problem"] else ""
        lines.append(f"  {row['module']:6}  " + "".join(f"{row[n]:10}" for n in counts) + f"  {row['file']}{problem}")
    total = "".join(f"{sum(row[n] for row in modules):10}" for n in counts)
    return [*lines, f"  {'all':>6}  {total}"]


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


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN[::/PATH]]...")
@click.option("-o", "--output", required=True, metavar="CONSTANTS", help="The constants file to write.")
@click.option("--stage", "stages", multiple=True, metavar="N=RUN", help="A run that is all in one stage. Repeatable.")
@click.option("--formula", metavar="NAME|FILE", help="A formula of the catalogue, or a TOML file.")
@click.option("--source", default="auto", metavar="NAME", help="auto, plain, arrays, euxfel, slsdet or swissfel.")
@click.option("--method", default="mean", metavar="NAME", help="mean (one pass), median, or gated (two passes).")
@click.option("--clip", default=6.0, help="mean: leave out words beyond so many standard deviations; 0: none.")
@click.option("--gate", default=5.0, help="gated: half width of the gate around the median.")
@click.option("--majority", default=0.5, help="Part of the words that must be in the stage of their frame.")
@click.option("--threshold", "thresholds", multiple=True, metavar="NAME=VALUE", help="When a pixel is bad: noisy=8 ...")
@click.option(
    "--set", "facts", multiple=True, metavar="NAME=VALUE", help="When they hold: start_time, exposure_time ..."
)
@click.option("--max-memory", default=1024, type=click.IntRange(1), metavar="MIB", help="For sums; default: 1024.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Threads; default: all there are.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@_trust
@_as_json
def darks(
    runs: tuple[str, ...],
    output: str,
    stages: tuple[str, ...],
    thresholds: tuple[str, ...],
    facts: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Take pedestal, noise and bad pixels, with reasons, from dark RUNs.

    The stage of a frame is the one that was forced, where the files say so, else the one of most of its words.
    """
    from gaincal.nexus.write import parse_number
    from gaincal.progress import progress
    from gaincal.verbs.darks import darks as run

    limits = {name: parse_number(name, text) for name, text in _pairs(thresholds, "--threshold").items()}
    with progress("darks", "frames") as advance:
        done = run(
            runs,
            output,
            stages={_stage(n): path for n, path in _pairs(stages, "--stage").items()},
            thresholds=limits,
            facts=_pairs(facts, "--set"),
            progress=advance,
            **options,
        )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.path}: {done.constant} and noise of {len(done.stages)} stage(s)")
    for line in done.stages:
        about = f"{done.constant} {line.get('pedestal', math.nan):.1f} ADU, noise {line.get('noise', math.nan):.2f} ADU"
        click.echo(f"  stage {line['stage']}: {line['frames']} frames of modules, {about}, {line['bad']} bad pixels")
    for name, count in done.reasons.items():
        click.echo(f"  {name:20} {count:12} pixels")
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)


def _stage(text: str) -> int:
    if not text.isdecimal():
        raise RequestError(f"--stage {text}=...: a stage is a number")
    return int(text)


@main.command()
@click.argument("master")
@click.option("-o", "target", metavar="OUT", help="The file to write; default: MASTER_OUTPUT.nxs beside the master.")
@click.option("--for", "reader", metavar="dials|xds|crystfel", help="Write counts as this program accepts them.")
@click.option("--output", metavar="NAME", help="Output of the formula; its default one if not given.")
@click.option("--dtype", metavar="T", help="One of the dtypes that the output declares.")
@click.option("--flagged", callback=_flagged, metavar="nan|zero|NUMBER", help="Value of flagged pixels.")
@click.option("--frames", callback=_range, metavar="A:B", help="Only frames A to B - 1.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace an input: photon_energy=12.4.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@click.option("--profile", metavar="PROGRAM", help="Reproduce another program: jungfrau_utils, aare ...")
@click.option("--reasons", metavar="NAME,NAME", help="Only these flags and mask reasons make a pixel bad.")
@click.option("--errors", is_flag=True, help="Write standard deviations, too.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Threads, or workers; default: all there are.")
@click.option("--max-memory", type=click.IntRange(1), metavar="MIB", help="For frames on their way; default: 1024.")
@click.option("--scheduler", metavar="ADDRESS|local", help="Compute on a dask cluster, or with processes here.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@_trust
@_as_json
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
    reasons: str | None,
    errors: bool,
    jobs: int | None,
    max_memory: int | None,
    scheduler: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the calibrated frames of MASTER as a standard NXmx file."""
    from gaincal.nexus.write import parse_number
    from gaincal.progress import progress

    inputs = {name: parse_number(name, text) for name, text in _pairs(settings, "--set").items()}
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
            reasons=None if reasons is None else [name for name in reasons.split(",") if name],
            errors=errors,
            reader=reader,
            jobs=jobs,
            max_memory=max_memory,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.path}: {done.frames} frames of {done.output} ({done.units}) as {done.dtype}")
    total = done.frames * done.pixels
    for name, count in done.flags.items():
        if count:
            click.echo(f"  {name:20} {count:12} pixels  {100 * count / total:.4f} %")
    if done.missing_frames:
        click.echo(f"  {done.missing_frames} frames are missing entirely")
    if done.not_tested:
        click.echo(f"  not tested: {', '.join(done.not_tested)}")
    if done.settings:
        click.echo(f"{done.settings}: what to tell the program")


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


@main.command()
@click.argument("run")
@click.option("-o", "directory", metavar="DIRECTORY", help="Where the views go; default: beside RUN.")
@click.option("--sweeps", metavar="TABLE", help="CSV or TOML: name, first and frames (or ranges), axes.")
@click.option("--every", type=int, metavar="N", help="Sweeps of N frames each.")
@click.option("--inverse-beam", type=int, metavar="WEDGE", help="Sweeps A and B of interleaved wedges of WEDGE frames.")
@click.option("--axis", "axes", multiple=True, metavar="NAME=START[:STEP]", help="Where an axis is. Repeatable.")
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    metavar="NAME=X,Y,Z[,UNIT]",
    help="An axis that RUN does not have. Repeatable.",
)
@click.option("--allow-rest", is_flag=True, help="With --every: what remains becomes a shorter sweep.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where RUN has several.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@_trust
@_as_json
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
    from gaincal.sources.sweeps import parse_direction, parse_motion
    from gaincal.verbs.views import summary
    from gaincal.verbs.views import views as make

    with progress("views", "sweeps") as advance:
        done = make(
            run,
            directory,
            sweeps=sweeps,
            every=every,
            inverse_beam=inverse_beam,
            axes=_parsed(axes, "--axis", parse_motion),
            directions=_parsed(vectors, "--vector", parse_direction),
            allow_rest=allow_rest,
            calibration=calibration,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo("\n".join(one_line(line) for line in summary(done)))
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)


def _parsed(values: tuple[str, ...], option: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """NAME=VALUE arguments, each VALUE parsed."""
    found = {}
    for name, text in _pairs(values, option).items():
        try:
            found[name] = parse(text)
        except ValueError as error:
            raise RequestError(f"{option} {name}={text}: {error}") from None
    return found


@main.command()
@click.argument("file")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@_trust
@_as_json
def info(file: str, calibration: str | None, trust: tuple[str, ...], as_json: bool) -> None:
    """Say what FILE holds: words, formula, constants, outputs, flags."""
    from gaincal.verbs.inspect import info as run

    found = run(file, calibration=calibration, trust=trust)
    if as_json:
        _print_json(found)
    else:
        click.echo("\n".join(one_line(line) for line in _info_lines(found)))


def _info_lines(found: dict[str, Any]) -> list[str]:
    if found["calibration"] is None:
        lines = [f"{found['file']}: no calibration; its largest datasets:"]
        return lines + [f"  {d['path']}  {d['dtype']} {tuple(d['shape'])}" for d in found["datasets"]]
    formula = found["formula"]
    lines = [f"{found['file']}", f"  calibration {found['calibration']}  {found['checksum'][:23]}..."]
    lines += [f"  a view of   {found['view_of']}"] if found["view_of"] else []
    lines += [f"  further calibrations: {', '.join(found['others'])}"] if found["others"] else []
    lines += [f"  formula     {formula['name']} version {formula['version']}, {formula['compute']}: {formula['title']}"]
    for raw in found["raw"]:
        checked = "with checksums" if raw["checksummed"] else "unchecked (no checksums)"
        lines.append(f"  {raw['name']:11} {raw['dtype']} {tuple(raw['shape'])}, {', '.join(raw['storage'])}, {checked}")
        lines.append(f"              {raw['path']}")
        if raw["gaps"] or raw["unwritten_chunks"]:
            lines.append(f"              missing: {raw['gaps']} parts, {raw['unwritten_chunks']} chunks never written")
    for output in found["outputs"]:
        state = "" if output["available"] else f"  not available: needs {', '.join(output['lacking'])}"
        mark = " (default)" if output["default"] else ""
        lines.append(f"  output      {output['name']} [{output['units']}] {' or '.join(output['dtypes'])}{mark}{state}")
    for name, value in found["inputs"].items():
        lines.append(f"  input       {name} = {'not given' if value is None else value}")
    for constant in found["constants"]:
        bad = f", {constant['not_finite']} not finite" if constant["not_finite"] else ""
        lines.append(f"  constant    {constant['name']} [{constant['units']}] {tuple(constant['shape'])}{bad}")
        lines.append(f"              from {constant['source']}")
    lines += [f"  masked      {count} pixels {name}" for name, count in found["masked"].items()]
    flags = ", ".join(f["name"] + ("" if f["tested"] else " (not tested)") for f in found["flags"])
    lines.append(f"  flags       {flags}")
    lines += [f"  ids         {name}: {low} to {high}" for name, (low, high) in found["ids"].items()]
    if found["metadata_missing"]:
        lines.append(f"  not stated  {', '.join(found['metadata_missing'])}")
    return lines


@main.command()
@click.argument("file")
@_trust
@_as_json
def validate(file: str, trust: tuple[str, ...], as_json: bool) -> None:
    """List everything that is wrong with FILE, with a stable code, the place and a remedy."""
    from gaincal.progress import progress
    from gaincal.verbs.inspect import ERROR
    from gaincal.verbs.inspect import validate as run

    with progress("validate", "datasets") as advance:
        findings = run(file, trust=trust, progress=advance)
    if as_json:
        _print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            remedy = f" -> {f.remedy}" if f.remedy else ""
            click.echo(one_line(f"{f.severity:8} {f.code:20} {f.place}: {f.problem}{remedy}"))
        click.echo(f"{sum(f.severity == ERROR for f in findings)} errors, {len(findings)} findings")
    if any(f.severity == ERROR for f in findings):
        sys.exit(FINDINGS_EXIT)


@main.command()
@click.argument("file")
@click.option("-o", "target", metavar="OUT.geom", help="Write the geometry as a .geom file.")
@click.option("--split", is_flag=True, help="Cut modules of known detectors into ASICs.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@_trust
@_as_json
def geometry(
    file: str, target: str | None, split: bool, overwrite: bool, trust: tuple[str, ...], as_json: bool
) -> None:
    """Say where the panels of FILE are: a .geom file, or a NeXus file with a detector."""
    from gaincal.verbs.geometry import geometry as run

    found = run(file, target, split=split, overwrite=overwrite, trust=trust)
    if as_json:
        _print_json(asdict(found))
    else:
        click.echo("\n".join(one_line(line) for line in found.lines()))


@main.group()
def formula() -> None:
    """List, show and check formulas."""


@formula.command("list")
@_as_json
def formula_list(as_json: bool) -> None:
    """The formulas that gaincal brings along."""
    from gaincal.formulas import catalog

    found = [catalog.get(name) for name in catalog.names()]
    if as_json:
        _print_json([{"name": f.name, "version": f.version, "title": f.title, "digest": f.digest} for f in found])
    else:
        width = max(len(f.name) for f in found)
        click.echo("\n".join(f"{f.name:{width}}  {f.title}" for f in found))
        click.echo(f"for --profile: {', '.join(catalog.profiles())}")


@formula.command("show")
@click.argument("name_or_file")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@_trust
def formula_show(name_or_file: str, calibration: str | None, trust: tuple[str, ...]) -> None:
    """The text of a formula of the catalogue, of a profile, of a TOML file, or of a NeXus file."""
    from gaincal.formulas import catalog
    from gaincal.formulas.formula import Formula

    if name_or_file in catalog.names():
        click.echo(catalog.source(name_or_file), nl=False)
    elif name_or_file in catalog.profiles():
        click.echo(catalog.profile(name_or_file).to_toml(), nl=False)
    elif name_or_file.endswith(".toml"):
        click.echo(Formula.load(name_or_file).to_toml(), nl=False)
    else:
        from gaincal.verbs.inspect import stored_formula

        click.echo(stored_formula(name_or_file, calibration=calibration, trust=trust).to_toml(), nl=False)


@formula.command("check")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_as_json
def formula_check(file: Path, as_json: bool) -> None:
    """Check a formula in a TOML file; says where and what is wrong."""
    from gaincal.formulas.formula import Formula

    found = Formula.load(file)
    if as_json:
        _print_json({"name": found.name, "version": found.version, "digest": found.digest})
    else:
        outputs = ", ".join(f"{o.name} [{o.units}]" for o in found.outputs)
        click.echo(f"{file}: formula '{found.name}' is good: {len(found.steps)} steps; outputs {outputs}")


@main.command()
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
@_trust
@_as_json
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

    _need("matplotlib", "plot")
    from gaincal.report.show import show as run

    done = run(
        master,
        target,
        frame=frame,
        output=output,
        stored=stored,
        inputs={name: parse_number(name, text) for name, text in _pairs(settings, "--set").items()},
        calibration=calibration,
        profile=profile,
        reasons=None if reasons is None else [name for name in reasons.split(",") if name],
        overwrite=overwrite,
        trust=trust,
    )
    if as_json:
        _print_json(asdict(done))
        return
    where = done.path or "window closed"
    click.echo(f"{where}: frame {done.frame} of {done.frames}, {done.output} ({done.units})")
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)


def _frames(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter("a number above 0, or all", context, parameter)


@main.command()
@click.argument("master")
@click.option("-o", "target", metavar="FILE.nxs", help="Write factors and refined gains, as constants.")
@click.option("--frames", default="all", callback=_frames, metavar="N|all", help="Look at N frames; default: all.")
@click.option("--per-module", is_flag=True, help="One factor per module; none of pixels of their own.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace an input: photon_energy=12.4.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@_trust
@_as_json
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
    from gaincal.nexus.write import parse_number
    from gaincal.progress import progress
    from gaincal.verbs.refine import refine as run

    with progress("refine", "frames") as advance:
        done = run(
            master,
            target,
            frames=frames,
            per_pixel=not per_module,
            inputs={name: parse_number(name, text) for name, text in _pairs(settings, "--set").items()},
            calibration=calibration,
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.output} of {done.frames} of {done.run_frames} frames, in {done.units}")
    click.echo("  module        zero peak  photon peak  expected  gain factor           drift  pixels of their own")
    for m in done.modules:
        numbers = (f"{'-' if v is None else f'{v:.4f}'}" for v in (m.zero, m.photon, m.expected, m.drift))
        zero, photon, expected, drift = numbers
        factor = "-" if m.factor is None or m.error is None else f"{m.factor:.4f} +- {m.error:.1g}"
        click.echo(f"  {m.name:12} {zero:>10} {photon:>12} {expected:>9}  {factor:18} {drift:>8} {m.pixels:>12}")
    for note in done.notes:
        click.echo(f"note: {one_line(note)}", err=True)
    if done.path is not None:
        click.echo(
            f"{done.path}: factors{'' if any('only factors' in n for n in done.notes) else ' and refined gains'}"
        )


@main.command()
@click.argument("file")
@click.option("-o", "target", required=True, metavar="FILE.html", help="The page to write, and FILE.json beside it.")
@click.option("--previous", metavar="FILE", help="Compare constants with those of this file.")
@click.option(
    "--frames", default="200", callback=_frames, metavar="N|all", help="Look at N frames, evenly spread; 200."
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Replace an input: photon_energy=12.4.")
@click.option("--calibration", metavar="NAME", help="Which calibration, where the file has several.")
@click.option("--reasons", metavar="NAME,NAME", help="Only these flags and mask reasons make a pixel bad.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@_trust
@_as_json
def report(
    file: str,
    target: str,
    previous: str | None,
    frames: int | None,
    settings: tuple[str, ...],
    calibration: str | None,
    reasons: str | None,
    overwrite: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how good a run is, or a file of constants, on one page: verdict, peaks, stages, bad pixels, maps."""
    from gaincal.nexus.write import parse_number
    from gaincal.progress import progress

    _need("matplotlib", "report")
    _need("jinja2", "report")
    from gaincal.report.command import report as run

    with progress("report", "frames") as advance:
        done = run(
            file,
            target,
            previous=previous,
            frames=frames,
            inputs={name: parse_number(name, text) for name, text in _pairs(settings, "--set").items()},
            calibration=calibration,
            reasons=None if reasons is None else [name for name in reasons.split(",") if name],
            overwrite=overwrite,
            trust=trust,
            progress=advance,
        )
    if as_json:
        _print_json(asdict(done))
        return
    click.echo(f"{done.path}: {done.verdict}. {one_line(done.reason)}")
    for name, value in done.numbers.items():
        click.echo(f"  {name:12} {value}")


def _need(module: str, extra: str) -> None:
    """Say how to get what an extra brings."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise RequestError(f"{module} is not installed: pip install 'gaincal[{extra}]' brings it")


@main.command()
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
