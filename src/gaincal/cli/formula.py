"""``gaincal formula``."""

from __future__ import annotations

from pathlib import Path

import click

from gaincal.cli.common import calibration_option, json_option, print_json, trust_option


@click.group()
def formula() -> None:
    """List, show and check formulas."""


@formula.command("list")
@json_option
def formula_list(as_json: bool) -> None:
    """The formulas that gaincal brings along."""
    from gaincal.formulas import catalog

    found = [catalog.get(name) for name in catalog.names()]
    if as_json:
        print_json([{"name": f.name, "version": f.version, "title": f.title, "digest": f.digest} for f in found])
    else:
        width = max(len(f.name) for f in found)
        click.echo("\n".join(f"{f.name:{width}}  {f.title}" for f in found))
        click.echo(f"for --profile: {', '.join(catalog.profiles())}")


@formula.command("show")
@click.argument("name_or_file")
@calibration_option
@trust_option
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
@json_option
def formula_check(file: Path, as_json: bool) -> None:
    """Check a formula in a TOML file; says where and what is wrong."""
    from gaincal.formulas.formula import Formula

    found = Formula.load(file)
    if as_json:
        print_json({"name": found.name, "version": found.version, "digest": found.digest})
    else:
        outputs = ", ".join(f"{o.name} [{o.units}]" for o in found.outputs)
        click.echo(f"{file}: formula '{found.name}' is good: {len(found.steps)} steps; outputs {outputs}")
