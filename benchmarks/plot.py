"""Draw what was measured: ``python benchmarks/run.py --json FILE``, then ``python benchmarks/plot.py FILE FOLDER``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

Ratios = Mapping[str, Mapping[str, float]]
"""Case to name to ratio."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""Of Okabe and Ito: they differ for colour-blind people, and in grey."""
INK = "#222222"
WIDTH, DPI = 7.0, 150
"""Inches, and pixels per inch: text is readable when the picture is shown 700 pixels wide."""
BAR, GAP, HEAD, LEGEND, FOOT = 0.2, 0.1, 0.45, 0.24, 0.08
"""Heights in inches: a bar, what is between cases, title and yardstick, legend, and below the last case."""
MARGIN = 0.1
"""Inches around the picture."""
STYLE = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "ytick.color": INK}


@dataclass(frozen=True)
class Picture:
    """Bars of one part of the measurements.

    Parameters
    ----------
    title : str
        What the bars are.
    yardstick : str
        What has the speed 1.
    names : tuple of str
        What is drawn, as far as it was measured.
    labels : tuple of str, optional
        What it is called; as the names if there are none.
    """

    title: str
    yardstick: str
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def label(self, name: str) -> str:
        return self.labels[self.names.index(name)] if self.labels else name


PICTURES = {
    "kernel": Picture(
        "Calibrating jungfrau in memory, one thread, by part of switched pixels",
        "copying uint16 to float32",
        ("kernel", "kernel and flags", "aare"),
        ("energies", "energies and flags", "aare, energies"),
    ),
    "families": Picture(
        "Every formula of the catalogue in memory, one thread", "copying the words to the output's type", ("kernel",)
    ),
    "reading": Picture(
        "Reading calibrated frames, by part of switched pixels, or by how words are stored",
        "h5py reading raw frames",
        ("blocks", "frame by frame", "one pixel"),
        ("10 frames at a time", "frame by frame", "one pixel of all frames"),
    ),
    "applying": Picture(
        "gaincal apply, from file to file, by part of switched pixels",
        "h5py reading raw frames",
        ("counts", "energy"),
        ("counts, int16, compressed", "energies, float32"),
    ),
}
NOT_OF_THE_YARDSTICK = {"kernel": ("0 % over 10 %",)}
PARTS = {
    "kernel": (
        "Calibrating in memory",
        "One thread, `jungfrau`, 100 frames of 512 x 1024. 1 is the speed of copying the words to float32. "
        "`kernel over numpy` is relative to `numpy.select` instead, on 8 frames; `0 % over 10 %` is the first "
        "number of the table over the third. `frame by frame` calls the kernel for each of the 100 frames.",
    ),
    "families": (
        "Every formula of the catalogue",
        "One thread, in memory, all pixels in the first stage. 1 is the speed of copying a formula's words to the "
        "type of its output.",
    ),
    "agipd_trains": (
        "AGIPD with constants for every memory cell",
        "One thread, in memory, 64 cells: 134 MB of constants. 1 is the speed of reading both words and writing "
        "float32.",
    ),
    "reading": (
        "Reading calibrated frames from a file",
        "Through `open_calibrated`. 1 is the speed of h5py reading the same raw frames, or that one pixel of all "
        "frames. The rows of other filters are of 2 % clustered.",
    ),
    "applying": (
        "gaincal apply",
        "4,000 frames as counts, 1,000 as energies, from file to file. 1 is the speed of h5py reading the raw frames "
        "of the same file, ten at a time.",
    ),
    "agipd_run": (
        "gaincal apply to a run of AGIPD-1M",
        "16 modules, 64 cells, 8 trains: 2.1 GB of words and 2.1 GB of constants, all of which are held in memory or a "
        "quarter. 1 is the speed of h5py reading the words alone.",
    ),
    "taking_darks": (
        "gaincal darks",
        "4,000 frames, `mean`, from file to file. 1 is the speed of h5py reading the raw words, or of decoding them "
        "into an array.",
    ),
    "memory": (
        "Memory",
        "Most memory in MiB: of `apply` beside the program itself, of `darks` with all imports.",
    ),
    "starts": (
        "Starting",
        "Seconds of a fresh process, which depend on the machine, unlike the ratios. `with dask` has dask and pint "
        "installed, too: xarray imports them where it finds them.",
    ),
}
INTRODUCTION = (
    "What `python benchmarks/run.py` measured on one machine (2 cores, Zen 4). [Speed](../speed.md) says what it means."
)


def draw(path: Path, picture: Picture, cases: Ratios) -> None:
    """Draw the bars of a part into a PNG."""
    found = {c: [(n, r[n]) for n in picture.names if n in r] for c, r in cases.items()}
    found = {case: bars for case, bars in found.items() if bars}
    several = any(len(bars) > 1 for bars in found.values())
    head = HEAD + (LEGEND if several else 0)
    height = head + FOOT + sum(BAR * len(bars) + GAP for bars in found.values())
    with mpl.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(WIDTH, height))
        drawn = _bars(panel, picture, found)
        most = 1.1 * max([1.0, *(ratio for bars in found.values() for _, ratio in bars)])
        panel.set_xlim(0, most)
        panel.axvline(1, color=INK, linewidth=1, zorder=3)
        for side in ("top", "right", "bottom"):
            panel.spines[side].set_visible(False)
        panel.tick_params(left=False, bottom=False, labelbottom=False)
        longest = max(label.get_window_extent().width for label in panel.get_yticklabels()) / figure.dpi
        figure.subplots_adjust((longest + 2 * MARGIN) / WIDTH, FOOT / height, 1 - MARGIN / WIDTH, 1 - head / height)
        above = {"textcoords": "offset points", "xycoords": ("data", "axes fraction")}
        panel.annotate(f"1 = {picture.yardstick}", (1, 1), (0, 4), ha=_side(1 / most), **above)
        figure.text(MARGIN / WIDTH, 1 - MARGIN / height, picture.title, va="top", weight="bold")
        if several:
            kinds = [n for n in picture.names if n in drawn]
            place = {"loc": "upper left", "bbox_to_anchor": (0, 1 - (MARGIN + 0.14) / height), "frameon": False}
            size = {"handlelength": 1, "handleheight": 0.8, "columnspacing": 1.4, "borderpad": 0.3}
            labels = [picture.label(n) for n in kinds]
            figure.legend([drawn[n] for n in kinds], labels, ncol=len(kinds), **place, **size)
        figure.savefig(path, dpi=DPI, facecolor="white")
        plt.close(figure)


def _side(place: float) -> str:
    """Where a text at a place of the axis is anchored, so that it stays within."""
    return "left" if place < 0.25 else "right" if place > 0.75 else "center"


def _bars(panel: Any, picture: Picture, found: Mapping[str, Sequence[tuple[str, float]]]) -> dict[str, Any]:
    """Draw the bars from top to bottom; returns one of each kind, for the legend."""
    drawn: dict[str, Any] = {}
    places, y = [], 0.0
    for bars in found.values():
        places.append(y + BAR * len(bars) / 2)
        for name, ratio in bars:
            colour = COLOURS[picture.names.index(name)]
            (bar,) = panel.barh(y + BAR / 2, ratio, 0.88 * BAR, color=colour, zorder=2)
            panel.annotate(
                f"{ratio:.2f}",
                (ratio, y + BAR / 2),
                (3, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=8,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
            drawn.setdefault(name, bar)
            y += BAR
        y += GAP
    panel.set_ylim(y - GAP / 2, -GAP / 2)
    panel.set_yticks(places, [_case(case) for case in found])
    return drawn


def _case(case: str) -> str:
    """A case, as it is shown."""
    return case.replace("none, ", "not compressed, ").replace("1 threads", "1 thread").replace("1 trains", "1 train")


def table(cases: Ratios, digits: int) -> list[str]:
    """A part as a Markdown table."""
    names = list(dict.fromkeys(name for ratios in cases.values() for name in ratios))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for case, ratios in cases.items():
        cells = [f"{ratios[name]:.{digits}f}" if name in ratios else "" for name in names]
        lines.append(f"| {_case(case)} | " + " | ".join(cells) + " |")
    return lines


def write_tables(path: Path, found: Mapping[str, Ratios]) -> None:
    """Write everything that was measured as a page."""
    lines = ["# All ratios", "", INTRODUCTION, ""]
    for part, cases in found.items():
        title, about = PARTS.get(part, (part, ""))
        lines += [f"## {title}", "", about, "", *table(cases, 0 if part == "memory" else 2), ""]
    path.write_text("\n".join(lines), "utf-8")


def main() -> None:
    """Draw a picture of every part that there is one for, and write all numbers as tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, help="what benchmarks/run.py --json wrote")
    parser.add_argument("folder", type=Path, help="where the pictures go, and ratios.md")
    chosen = parser.parse_args()
    found = json.loads(chosen.json.read_text("utf-8"))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for part, picture in PICTURES.items():
        if part in found:
            left_out = NOT_OF_THE_YARDSTICK.get(part, ())
            cases = {case: ratios for case, ratios in found[part].items() if case not in left_out}
            draw(chosen.folder / f"{part}.png", picture, cases)
    write_tables(chosen.folder / "ratios.md", found)


if __name__ == "__main__":
    main()
