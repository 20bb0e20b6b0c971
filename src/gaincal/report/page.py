"""The page of a report: what it says, and how it becomes HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from gaincal.quality.rules import GOOD, NOT_JUDGED, Number, Rule, verdict
from gaincal.report.figures import Picture

TEMPLATE = "page.html"
REASONS = {
    GOOD: "Nothing is beyond the limits of the rules below.",
    NOT_JUDGED: "There was nothing that could be judged.",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """A report.

    Parameters
    ----------
    title, subtitle, sampled : str
    numbers : sequence of Number
    rules : sequence of Rule
    sections : sequence of Section
    provenance : sequence of (str, str)
    """

    title: str
    subtitle: str
    sampled: str
    numbers: Sequence[Number]
    rules: Sequence[Rule]
    sections: Sequence[Section] = field(default_factory=tuple)
    provenance: Sequence[tuple[str, str]] = ()

    @property
    def verdict(self) -> str:
        """The worst of all rules."""
        return verdict(self.rules)

    @property
    def reason(self) -> str:
        """What made the verdict, in a sentence."""
        found = self.verdict
        if found in REASONS:
            return REASONS[found]
        own = [r for r in self.rules if r.state == found]
        said = "; ".join(f"{r.text}: {r.shown[0]}{f' ({r.where})' if r.where else ''}" for r in own)
        return said[:1].upper() + said[1:] + "."

    def html(self) -> str:
        """As one self-contained page; everything in it is escaped."""
        text = files("gaincal.report").joinpath(TEMPLATE).read_text("utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        return environment.from_string(text).render(page=self)
