"""``apply`` on many machines: parts of a run as dask tasks, and one virtual dataset over what they wrote.

A part is what plain `apply` writes for some of the frames, and a note of what went into it.  The note
alone decides whether a part is used again: a task can run twice, die in the middle or be begun anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaincal.scatter.cluster import connected
    from gaincal.scatter.command import apply_on

__all__ = ["apply_on", "connected"]

_HOME = {"apply_on": "gaincal.scatter.command", "connected": "gaincal.scatter.cluster"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a worker needs neither."""
    if name not in _HOME:
        raise AttributeError(f"module 'gaincal.scatter' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
