"""The version of gaincal, written into every file it makes."""

from __future__ import annotations

__version__ = "0.1.0"
