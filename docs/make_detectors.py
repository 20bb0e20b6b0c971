"""Write the pages of docs/reference/detectors from the formulas of the catalogue.

python docs/make_detectors.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gaincal.formulas import catalog
from gaincal.formulas.formula import Flag, Formula, Output

HERE = Path(__file__).parent
FOLDER = HERE / "reference" / "detectors"
MEASURED: dict[str, tuple[int, int | None, float, float]] = {
    "agipd": (0, 6, 0.8, 1.2e-07),
    "cspad": (0, 0, 5.6e-05, 1.1e-07),
    "epix10ka": (0, 0, 0.007, 1.2e-07),
    "gotthard2": (0, 0, 0.0021, 1.1e-07),
    "gotthard2_split": (0, 0, 0.002, 1e-07),
    "jungfrau": (0, 0, 0.0078, 1.1e-07),
    "jungfrau_cells": (0, 0, 0.0078, 1.1e-07),
    "jungfrau_hg0": (0, 0, 0.0078, 1.1e-07),
    "jungfrau_split": (0, 0, 0.0039, 1.1e-07),
    "jungfrau_wide": (0, 0, 0.0078, 1.1e-07),
    "linear": (0, None, 0.0001, 1.1e-07),
    "lpd": (0, 6, 0.062, 6e-08),
    "moench": (0, 0, 5.6e-05, 1.1e-07),
    "mpccd": (0, 6, 0.0001, 1.1e-07),
    "percival": (0, 0, 0.0089, 6.8e-05),
}
"""From tests/catalogue/differences.py: ULP of float64 (value, variance); float32 (units of the value, relative)."""

VARIANCE = """\
`{variance}` is the variance of `{value}`: noise, error of the offset, error of the gain, and shot noise. A constant
that is not given counts as 0, so without any of them it is the shot noise alone; it needs `{inputs}`. It holds for one
frame: errors of constants are the same in all frames and do not average out.

The shot noise is that of the measured signal, and noise above zero counts as signal. At zero signal the variance is
therefore too large. Measured on dark frames of a simulated JUNGFRAU at 12.4 keV, pulls have a width of 0.26 in G0, 0.47
in G1 and 0.89 in G2 instead of 1. Set `one_photon` to 0 to leave the shot noise out.
"""


def pages() -> dict[str, str]:
    """The text of every page, by file name."""
    names = [n for n in catalog.names() if not n.endswith(catalog.MODULES)]
    return {f"{name}.md": _page(name) for name in names}


def _page(name: str) -> str:
    formula, text = catalog.get(name), catalog.source(name)
    remarks = _remarks(text)
    parts = [
        f"# {name}: {formula.title}",
        "Written by `docs/make_detectors.py` from the formula itself; do not edit.",
        "\n".join(f"- {line}" for line in _head(text)),
        *_modules(formula),
        "## Inputs",
        _table(
            ("input", "dims", "units", "type", ""),
            (
                (_code(i.name), _dims(i.dims), _unit(i.units), i.dtype or "real", remarks.get(i.name, ""))
                for i in formula.inputs
            ),
        ),
        "## Constants",
        _table(
            ("constant", "dims", "units", "if not given", ""),
            (
                (_code(c.name), _dims(c.dims), _unit(c.units), _default(c.default), remarks.get(c.name, ""))
                for c in formula.constants
            ),
        ),
        "## Steps",
        f"```toml\n{_steps(text)}```",
        "## Outputs",
        _table(("output", "units", "types (fill)", ""), (_output(o) for o in formula.outputs)),
        *_variance(formula),
        "## Flags",
        "All void the value. Further flags that belong to every formula are in [Flags](../flags.md).",
        _table(
            ("bit", "flag", "raised where", "bit in `pixel_mask`", ""),
            (_flag(bit, f, text, remarks) for bit, f in enumerate(formula.flags)),
        ),
        "## Accuracy",
        _accuracy(formula),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _head(text: str) -> Iterator[str]:
    """The comment before the formula, a line each."""
    for line in text.partition("[formula]")[0].splitlines():
        yield line.removeprefix("# ").replace("|", "\\|").replace(" * ", " \\* ")


def _modules(formula: Formula) -> list[str]:
    own = formula.name + catalog.MODULES
    if own not in catalog.names():
        return []
    moved = [i.name for i in catalog.get(own).inputs if i.dims == ("frame", "module")]
    verb = "have" if len(moved) > 1 else "has"
    more = f"; {' and '.join(map(_code, moved))} then {verb} dims `frame module`" if moved else ""
    return [f"For frames of several modules, (frame, module, y, x), the same formula is called `{own}`{more}."]


def _remarks(text: str) -> dict[str, str]:
    """The comments beside inputs, constants and flags."""
    found = re.findall(r"^(?:\[\w+\.(\w+)\]|(\w+) +=.*\}) +# (.*)$", text, re.MULTILINE)
    return {section or flag: remark for section, flag, remark in found}


def _steps(text: str) -> str:
    start = text.index("[tables]" if "[tables]" in text else "[steps]")
    return text[start : text.index("[outputs]")].rstrip() + "\n"


def _output(output: Output) -> tuple[str, ...]:
    types = ((output.dtype, output.fill), *output.alternatives)
    listed = ", ".join(f"{dtype} ({'NaN' if fill is None else fill})" for dtype, fill in types)
    role = "the default" if output.default else f"variance of `{output.variance_of}`" if output.variance_of else ""
    return _code(output.name), _unit(output.units), listed, role


def _variance(formula: Formula) -> list[str]:
    default = formula.output()
    variance = formula.variance(default.name)
    if variance is None:
        return []
    needed = "` and `".join(n for n in ("adu_per_kev", "photon_energy") if n in {i.name for i in formula.inputs})
    return [VARIANCE.format(variance=variance.name, value=default.name, inputs=needed)]


def _flag(bit: int, flag: Flag, text: str, remarks: dict[str, str]) -> tuple[str, ...]:
    match = re.search(rf'^{flag.name} += {{ when = "(.*?)"', text, re.MULTILINE)
    assert match is not None
    mask = "none" if flag.pixel_mask_bit is None else str(flag.pixel_mask_bit)
    mask = "the mask itself" if flag.name == "masked" else mask
    return str(bit), _code(flag.name), _code(match[1]), mask, remarks.get(flag.name, "")


def _accuracy(formula: Formula) -> str:
    value, variance, absolute, relative = MEASURED[formula.name]
    unit = formula.output().units
    unit = "" if unit == "1" else f" {unit}"
    of_variance = {None: "", 0: ", and its variance too"}.get(variance, f", and its variance up to {variance} ULP")
    exact = "is exactly" if value == 0 else f"differs by at most {value} ULP from"
    return (
        "Kernel and reference evaluator agree bit for bit on every word. Computed in float64, the value of every word\n"
        f"{exact} that of an independent program{of_variance}. In float32, with constants of a usual size,\n"
        f"the largest difference from it is {absolute:g}{unit}; relatively {relative:g} for values above 10{unit}."
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _dims(dims: tuple[str, ...]) -> str:
    return _code(" ".join(dims)) if dims else "none"


def _unit(units: str) -> str:
    return units.replace("^", "\\^")


def _default(number: float | None) -> str:
    return "must be given" if number is None else f"{number:g}"


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
