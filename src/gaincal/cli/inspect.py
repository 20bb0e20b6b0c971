"""``gaincal info`` and ``gaincal validate``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from gaincal.cli.common import calibration_option, json_option, print_json, print_lines, trust_option
from gaincal.errors import one_line

FINDINGS_EXIT = 8
"""Of ``validate``, where it found errors."""


@click.command()
@click.argument("file")
@calibration_option
@trust_option
@json_option
def info(file: str, calibration: str | None, trust: tuple[str, ...], as_json: bool) -> None:
    """Say what FILE holds: words, formula, constants, outputs, flags."""
    from gaincal.verbs.inspect import info as run

    found = run(file, calibration=calibration, trust=trust)
    if as_json:
        print_json(found)
    else:
        print_lines(_info_lines(found))


def _info_lines(found: dict[str, Any]) -> list[str]:
    if found["calibration"] is None:
        lines = [f"{found['file']}: no calibration; its largest datasets:"]
        lines += [f"  {d['path']}  {d['dtype']} {tuple(d['shape'])}" for d in found["datasets"]]
        return lines + _account_lines(found["account"])
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
    lines += _account_lines(found["account"])
    lines += [f"  ids         {name}: {low} to {high}" for name, (low, high) in found["ids"].items()]
    if found["metadata_missing"]:
        lines.append(f"  not stated  {', '.join(found['metadata_missing'])}")
    return lines


def _account_lines(account: dict[str, Any] | None) -> list[str]:
    """What became of the frames of all modules, in a line."""
    if account is None:
        return []
    modules = account["modules"]
    counts = ("recorded", "written", "missing", "duplicate", "rejected")
    sums = ", ".join(f"{sum(row[name] for row in modules)} {name}" for name in counts)
    present = sum(row["written"] > 0 for row in modules)
    return [f"  account     {present} of {len(modules)} modules, by {account['matched_by']}: {sums}"]


@click.command()
@click.argument("file")
@trust_option
@json_option
def validate(file: str, trust: tuple[str, ...], as_json: bool) -> None:
    """List everything that is wrong with FILE, with a stable code, the place and a remedy."""
    from gaincal.progress import progress
    from gaincal.verbs.inspect import ERROR
    from gaincal.verbs.inspect import validate as run

    with progress("validate", "datasets") as advance:
        findings = run(file, trust=trust, progress=advance)
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            remedy = f" -> {f.remedy}" if f.remedy else ""
            click.echo(one_line(f"{f.severity:8} {f.code:20} {f.place}: {f.problem}{remedy}"))
        click.echo(f"{sum(f.severity == ERROR for f in findings)} errors, {len(findings)} findings")
    if any(f.severity == ERROR for f in findings):
        sys.exit(FINDINGS_EXIT)
