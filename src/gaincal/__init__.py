"""gaincal: raw detector words, with the formula that calibrates them, calibrated when somebody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gaincal._version import __version__

if TYPE_CHECKING:
    from gaincal.errors import GaincalError
    from gaincal.formulas.formula import Formula
    from gaincal.lazy import open_calibrated, open_calibrated_dataset
    from gaincal.nexus.constantsfile import read_constants
    from gaincal.verbs.apply import apply
    from gaincal.verbs.assemble import assemble
    from gaincal.verbs.darks import darks
    from gaincal.verbs.embed import embed
    from gaincal.verbs.views import views

__all__ = [
    "Formula",
    "GaincalError",
    "__version__",
    "apply",
    "assemble",
    "darks",
    "embed",
    "open_calibrated",
    "open_calibrated_dataset",
    "read_constants",
    "views",
]

_HOME = {
    "Formula": "gaincal.formulas.formula",
    "GaincalError": "gaincal.errors",
    "apply": "gaincal.verbs.apply",
    "assemble": "gaincal.verbs.assemble",
    "darks": "gaincal.verbs.darks",
    "embed": "gaincal.verbs.embed",
    "open_calibrated": "gaincal.lazy",
    "open_calibrated_dataset": "gaincal.lazy",
    "read_constants": "gaincal.nexus.constantsfile",
    "views": "gaincal.verbs.views",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: each brings only what it needs."""
    if name not in _HOME:
        raise AttributeError(f"module 'gaincal' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
