"""Write docs/reference/mask-bits.md from the table of mask conventions.

python docs/make_mask_bits.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gaincal.nexus.names import PIXEL_MASK_BITS
from gaincal.sources.mask_bits import Convention, Reason, conventions

PAGE = Path(__file__).parent / "reference" / "mask-bits.md"
INTRODUCTION = """\
# Mask bits

Written by `docs/make_mask_bits.py` from `src/gaincal/sources/mask_bits.toml`; do not edit.

NXmx, European XFEL, PSI and LCLS use the same bits of a bad-pixel mask for different reasons. Copied as they are, they
turn into each other: a gain that deviates becomes a beamstop. gaincal translates the masks it is given by this table. A
mask is read by the convention that you name; without a name, a boolean mask as `boolean`, any other as `nxmx`.

- A bit that the convention does not define is refused (`mask-bits`), never dropped.
- A bit that does not make a pixel bad in NXmx is left out, or becomes bit 31, and gaincal says so.
- Files do not say which convention they follow. `psi-auto` lets the bits decide, and refuses where they do not
  (`ambiguous`).
- A mask with further axes, by memory cell or gain stage, is refused: which of them count is your decision.
"""
COLUMNS = """\
## Columns

`certainty` of bit and name:

| certainty | |
|---|---|
| source | read in the source named below |
| one copy | as source, but other public copies of the table lack it |
| collision | the facility uses the bit for two reasons, and no file says which |

`mapping`, how the bits of NXmx were chosen:

| mapping | |
|---|---|
| defined | NXmx or gaincal itself says so |
| inference | by gaincal, from what the reason means; no facility publishes one |
| either | one of the bits applies, and the mask does not say which: both are set |

With both bits set the pixel is bad whichever of the two reasons you let count.

Names in capitals are the facility's own. The meanings are in the words of gaincal.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([INTRODUCTION, COLUMNS, *(_section(c) for c in conventions().values())])


def _section(convention: Convention) -> str:
    body = _choice(convention) if convention.one_of else "\n".join(_tables(convention))
    sources = f"Source: {convention.source}."
    return f"## {convention.name}\n\n{convention.title}. {convention.about}\n\n{body}\n{sources}\n"


def _choice(convention: Convention) -> str:
    return f"One of {', '.join(f'[{name}](#{name})' for name in convention.one_of)}.\n"


def _tables(convention: Convention) -> Iterator[str]:
    head = ("bit", "reason", "bits of NXmx", "meaning", "certainty", "mapping")
    yield _table(head, (_row(reason) for reason in convention.reasons))
    notes = [r for r in convention.reasons if r.note]
    if notes:
        yield "Noted where it occurs:\n\n" + "".join(f"- {r.bit}, {r.name}: {r.note}\n" for r in notes)
    if convention.refused:
        yield "Refused, as are all other bits:\n\n" + "".join(_refusals(convention))


def _row(reason: Reason) -> tuple[str, ...]:
    bits = ", ".join(f"{bit} {PIXEL_MASK_BITS[bit]}" for bit in reason.nxmx) or "none"
    return str(reason.bit), f"`{reason.name}`", bits, reason.meaning, reason.certainty, reason.mapping


def _refusals(convention: Convention) -> Iterator[str]:
    for why in dict.fromkeys(convention.refused.values()):
        yield f"- {_ranges([b for b, w in convention.refused.items() if w == why])}: {why}\n"


def _ranges(bits: list[int]) -> str:
    """Numbers in ascending order, those in a row as one range."""
    starts = [b for b in bits if b - 1 not in bits]
    ends = [b for b in bits if b + 1 not in bits]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
