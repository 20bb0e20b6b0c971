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
    constants_from: str | None,
    max_age: float | None,
    on_mismatch: str,
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    mask: str | None,
    mask_bits: str | None,
    ids: tuple[str, ...],
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
        constants_from=constants_from,
        max_age=max_age,
        on_mismatch=on_mismatch,
        settings=_pairs(settings, "--set"),
        inputs=_pairs(inputs, "--input"),
        mask=mask,
        mask_bits=mask_bits,
        ids=_pairs(ids, "--id"),
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
@click.option("--threshold", "thresholds", multiple=True, metavar="NAME=VALUE", help="When pixels are bad: noisy=8")
@click.option("--set", "facts", multiple=True, metavar="NAME=VALUE", help="When they hold: start_time ...")
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


@main.group()
def constants() -> None:
    """Compare constants files."""


@constants.command("diff")
@click.argument("first")
@click.argument("second")
@_as_json
def constants_diff(first: str, second: str, as_json: bool) -> None:
    """Say what has changed from FIRST to SECOND: constants, bad pixels, and how they were taken."""
    from gaincal.verbs.constants import diff

    found = diff(first, second)
    if as_json:
        _print_json(asdict(found))
        return
    for d in found.differences:
        where = ", ".join(f"{axis} {label}" for axis, label in d.labels.items())
        about = f"median {d.median:+.3f}, scatter {d.scatter:.3f}, largest {d.largest:.1f} {d.units}"
        click.echo(f"{d.constant:10} {where:18} {about}; {d.beyond} pixels far off")
    for line in found.lacking:
        click.echo(line)
    click.echo("bad pixels " + ", ".join(f"{name}: {count}" for name, count in found.masked.items()))
    for name, count in found.now_bad.items():
        click.echo(f"  now {name:16} {count:12} pixels")
    for name, (old, new) in found.facts.items():
        click.echo(f"{name}: {one_line(str(old))} -> {one_line(str(new))}")


@main.command()
@click.argument("master")
@click.option("-o", "target", metavar="OUT", help="The file to write; default: MASTER_OUTPUT.nxs beside the master.")
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
