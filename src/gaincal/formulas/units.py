"""The small unit algebra of formulas: products of powers of a closed set of symbols, never converted."""

from __future__ import annotations

import re
from dataclasses import dataclass

SYMBOLS = ("ADU", "photon", "electron", "keV", "eV", "s", "K", "V", "m")
MAX_POWER = 64
MAX_TEXT = 64
_FACTOR = re.compile(r"(1|[A-Za-z]+)(?:\^(-?[0-9]{1,2}))?")


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of powers of unit symbols; the empty product is the dimensionless ``1``.

    Parameters
    ----------
    powers : tuple of (str, int)
        Symbol and non-zero exponent, in the order of `SYMBOLS`.
    """

    powers: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read ``keV``, ``ADU/keV``, ``ADU^2*s``, ``1/keV`` or ``1``.

        Raises
        ------
        ValueError
            If the text is not a product of known symbols.
        """
        if len(text) > MAX_TEXT:
            raise ValueError(f"unit longer than {MAX_TEXT} characters")
        powers: dict[str, int] = {}
        parts = re.split(r"([*/])", text)
        for operator, factor in zip(["*", *parts[1::2]], parts[0::2], strict=True):
            match = _FACTOR.fullmatch(factor)
            if match is None or (match[1] != "1" and match[1] not in SYMBOLS):
                raise ValueError(f"unit '{text}' is not a product of {', '.join(SYMBOLS)} and 1")
            if match[1] != "1":
                power = int(match[2] or 1)
                powers[match[1]] = powers.get(match[1], 0) + (power if operator == "*" else -power)
        return cls._of(powers)

    @classmethod
    def _of(cls, powers: dict[str, int]) -> Unit:
        if any(abs(p) > MAX_POWER for p in powers.values()):
            raise ValueError(f"unit power beyond {MAX_POWER}")
        return cls(tuple((s, powers[s]) for s in SYMBOLS if powers.get(s)))

    def __mul__(self, other: Unit) -> Unit:
        powers = dict(self.powers)
        for symbol, power in other.powers:
            powers[symbol] = powers.get(symbol, 0) + power
        return self._of(powers)

    def __truediv__(self, other: Unit) -> Unit:
        return self * other**-1

    def __pow__(self, exponent: int) -> Unit:
        return self._of({s: p * exponent for s, p in self.powers})

    def root(self) -> Unit:
        """The square root; raises ValueError where a power is odd."""
        if any(p % 2 for _, p in self.powers):
            raise ValueError(f"the square root of '{self}' is no unit")
        return Unit(tuple((s, p // 2) for s, p in self.powers))

    def __str__(self) -> str:
        over = "*".join(_factor(s, p) for s, p in self.powers if p > 0) or "1"
        under = "".join("/" + _factor(s, -p) for s, p in self.powers if p < 0)
        return over + under


def _factor(symbol: str, power: int) -> str:
    return symbol if power == 1 else f"{symbol}^{power}"


ONE = Unit()
