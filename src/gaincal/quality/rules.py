"""Rules that judge: a value, two limits, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

GOOD, DOUBTFUL, BAD, NOT_JUDGED = "good", "doubtful", "bad", "not judged"
_ORDER = (NOT_JUDGED, GOOD, DOUBTFUL, BAD)


@dataclass(frozen=True)
class Rule:
    """A rule, applied.

    Parameters
    ----------
    name : str
        Stable, for programs.
    text : str
        What is judged.
    value : float or None
        None if it could not be judged.
    doubtful, bad : float
        Above these it is so.
    units : str
        Of all three; ``%`` is a share, times 100.
    where : str
        The module that is worst, if there are several.
    why : str
        Why it could not be judged, or what to do.
    """

    name: str
    text: str
    value: float | None
    doubtful: float
    bad: float
    units: str
    where: str = ""
    why: str = ""

    @property
    def remark(self) -> str:
        """Where it is worst, and why or what to do if it is not good."""
        parts = [self.where if self.state != NOT_JUDGED else "", self.why if self.state != GOOD else ""]
        return ": ".join(p for p in parts if p)

    @property
    def shown(self) -> tuple[str, str, str]:
        """Value and limits as people read them."""
        return self._shown(self.value), self._shown(self.doubtful), self._shown(self.bad, endless="never")

    def _shown(self, value: float | None, endless: str = "beyond all") -> str:
        if value is None or math.isnan(value):
            return "-"
        if math.isinf(value):
            return endless
        return f"{100 * value:.3g} %" if self.units == "%" else f"{value:.3g} {self.units}".strip()

    @property
    def state(self) -> str:
        """What comes out: good, doubtful, bad, or not judged."""
        if self.value is None or math.isnan(self.value):
            return NOT_JUDGED
        return BAD if self.value > self.bad else DOUBTFUL if self.value > self.doubtful else GOOD


@dataclass(frozen=True)
class Number:
    """One of the numbers that stand on top.

    Parameters
    ----------
    name, text, value : str
        For programs, for people, as people read it.
    note : str
    """

    name: str
    text: str
    value: str
    note: str = ""


def verdict(rules: Iterable[Rule]) -> str:
    """The worst of all that was judged."""
    return max((r.state for r in rules), key=_ORDER.index, default=NOT_JUDGED)


def oddness(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """By what factor each value is above or below the median of the others; None where that cannot be said."""
    found: dict[str, float | None] = {}
    for name, value in values.items():
        others = [v for n, v in values.items() if n != name and v is not None and v > 0]
        if value is None or not value > 0 or not others:
            found[name] = None
            continue
        usual = median(others)
        found[name] = max(value / usual, usual / value)
    return found


def worst(values: dict[str, float | None]) -> tuple[float | None, str]:
    """The highest of the values that there are, and whose it is; no name if there is one alone, or none above 0."""
    found = {name: value for name, value in values.items() if value is not None and not math.isnan(value)}
    if not found:
        return None, ""
    name = max(found, key=lambda n: found[n])
    return found[name], name if len(values) > 1 and found[name] > 0 else ""


def near(value: float, scale: float | None) -> str:
    """A value to a thousandth of a scale or better, so that a rounding error does not look like a number."""
    if scale is None or not scale:
        return f"{value:.4g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(scale))) + 1)
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def percent(share: float) -> str:
    """A share as people read it: never 0 % or 100 % unless it is."""
    if share in (0.0, 1.0) or not math.isfinite(share):
        return f"{100 * share:.0f} %" if math.isfinite(share) else "?"
    if 1 - share < 5e-5:
        return "> 99.99 %"
    return f"{100 * share:.2f} %" if share >= 1e-4 else f"{100 * share:.1g} %"
