"""Complete formulas, one TOML file per detector family."""

from __future__ import annotations

from importlib import resources

from gaincal.errors import RequestError
from gaincal.formulas.document import read_document
from gaincal.formulas.formula import Formula


def names() -> list[str]:
    """Names of all formulas that gaincal brings along."""
    files = (f.name for f in resources.files(__name__).iterdir())
    return sorted(f.removesuffix(".toml") for f in files if f.endswith(".toml"))


def source(name: str) -> str:
    """The TOML text of a formula as it was written, comments and all.

    Raises
    ------
    RequestError
        If there is no formula of that name.
    """
    if name not in names():
        raise RequestError(f"no formula '{name}' in the catalogue; it has {', '.join(names())}")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def get(name: str) -> Formula:
    """A formula of the catalogue, by name; raises RequestError if there is none."""
    return read_document(source(name))
