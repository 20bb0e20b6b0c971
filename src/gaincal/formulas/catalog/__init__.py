"""Complete formulas, one TOML file per detector family.

A formula for frames (y, x) is also there for frames of several modules, as ``NAME_modules``: the same
text with one dim more, so that there is no second copy of the rules.
"""

from __future__ import annotations

import re
from importlib import resources

from gaincal.errors import RequestError
from gaincal.formulas.document import read_document
from gaincal.formulas.formula import Formula

MODULES = "_modules"


def names() -> list[str]:
    """Names of all formulas that gaincal brings along."""
    files = {f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")}
    return sorted(files | {name + MODULES for name in files if _WORDS in _text(name)})


def source(name: str) -> str:
    """The TOML text of a formula as it was written, comments and all.

    Raises
    ------
    RequestError
        If there is no formula of that name.
    """
    if name not in names():
        raise RequestError(f"no formula '{name}' in the catalogue; it has {', '.join(names())}")
    return with_modules(_text(name.removesuffix(MODULES))) if name.endswith(MODULES) else _text(name)


def get(name: str) -> Formula:
    """A formula of the catalogue, by name; raises RequestError if there is none."""
    return read_document(source(name))


_WORDS = 'dims  = ["frame", "y", "x"]'


def with_modules(text: str) -> str:
    """The text of a formula for frames (y, x), for frames (module, y, x); what comes by frame comes by module too."""
    head, formula, rest = text.partition("[formula]")
    name = next(line for line in rest.splitlines() if line.startswith("name "))
    rest = rest.replace(name, f'{name[:-1]}{MODULES}"', 1).replace('"y", "x"]', '"module", "y", "x"]')
    return f"{head}{formula}{rest}".replace('["frame"]', '["frame", "module"]')


def _text(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def profiles() -> list[str]:
    """Names of the formulas that say what other programs make of words and constants of `jungfrau`."""
    files = resources.files(__name__).joinpath("profiles").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def profile(name: str) -> Formula:
    """A formula of `profiles`, or with ``_modules`` the same for several; what its text leaves out is as in `jungfrau`.

    Raises
    ------
    RequestError
        If there is no profile of that name.
    """
    if name.removesuffix(MODULES) not in profiles():
        raise RequestError(f"no profile '{name}'; there are {', '.join(profiles())}")
    text = _text(f"profiles/{name.removesuffix(MODULES)}")
    sections = re.split(r"^(?=\[)", _text("jungfrau"), flags=re.MULTILINE)[1:]
    own = set(re.findall(r"^\[.*?\]", text, re.MULTILINE))
    text = "\n".join([text, *(s for s in sections if s.partition("]")[0] + "]" not in own)])
    return read_document(with_modules(text) if name.endswith(MODULES) else text)
