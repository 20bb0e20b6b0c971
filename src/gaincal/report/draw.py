"""Panels of pictures: values, words, stages and flags of a frame; curves and maps.

Everything is drawn on `matplotlib.figure.Figure` itself: no state of pyplot, no backend to choose.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

from gaincal.quality.look import Look
from gaincal.quality.rules import percent
from gaincal.report.canvas import Canvas
from gaincal.report.laboratory import Laboratory, rings

Array = npt.NDArray[Any]
STAGE_COLOURS = ("#eef1f4", "#3b7dd8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#2e4057", "#00798c")
NO_STAGE_COLOUR, FLAGGED_COLOUR, GOOD_COLOUR = "#9aa0a6", "#9fd8e6", "#f3f4f6"
REASON_COLOURS = ("#3b7dd8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#00798c", "#b5651d", "#e377c2")
LINE, EXPECTED = "#2b62b0", "#c2334a"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.formatter.useoffset": False,  # a pedestal is 4000.1, and not 0.1 with 4e3 somewhere else
    "text.parse_math": False,  # names come from files
}
SPREAD_BELOW = 0.004
"""Where fewer points of a picture than this share stand out, each is drawn with its neighbours, or nobody sees it."""
SEEN_OF = 400
"""A point is seen if it takes one of so many parts of a picture's edge."""
PIXELS_PER_INCH = 110
SUPERSCRIPTS = dict(
    zip("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", strict=True)
)
MISSING_COLOUR = "#9aa0a6"


def style() -> Any:
    """The context in which everything is drawn."""
    return mpl.rc_context(STYLE)


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Figure, dpi: int = PIXELS_PER_INCH, colours: int | None = None) -> bytes:
    """A figure as PNG, of at most so many colours if asked for."""
    buffer = io.BytesIO()
    with style():
        drawn.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    if colours is None:
        return buffer.getvalue()
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(colours).save(smaller, "PNG", optimize=True)
    return min(buffer.getvalue(), smaller.getvalue(), key=len)


def draw_values(axes: Any, look: Look, canvas: Canvas) -> None:
    """Calibrated values; logarithmic where it is known what a photon gives."""
    image = canvas.image(look.values)
    there = canvas.image(np.ones_like(look.values))
    colours = mpl.colormaps["inferno"].with_extremes(bad=(0, 0, 0, 0))
    # Where there is a pixel but no value, the background shows.
    show(axes, np.where(np.isfinite(image), np.nan, there), canvas, ListedColormap([FLAGGED_COLOUR]), Normalize(0, 1))
    finite = image[np.isfinite(image)]
    if look.photon is not None and look.photon > 0:
        low, high = look.photon / 10, max(10 * look.photon, float(finite.max(initial=0)))
        drawn = show(axes, np.clip(image, low, None), canvas, colours, LogNorm(low, high))
    else:
        low, high = np.percentile(finite, [0.5, 99.9]) if finite.size else (0, 1)
        drawn = show(axes, image, canvas, colours, Normalize(low, max(high, np.nextafter(low, math.inf))))
    add_bar(axes, drawn, f"{look.output} ({look.units})")
    whole = "" if canvas.step == 1 else f", the highest of {canvas.step} x {canvas.step} pixels"
    axes.set_title(f"calibrated{whole}; without a value: light blue")


def draw_words(axes: Any, name: str, words: Array, canvas: Canvas) -> None:
    """Raw words."""
    image = canvas.image(words.astype(np.float32))
    low, high = (float(words.min()), float(words.max())) if words.size else (0.0, 1.0)
    drawn = show(axes, image, canvas, mpl.colormaps["viridis"], Normalize(low, max(high, low + 1)))
    add_bar(axes, drawn, "word")
    axes.set_title(f"{name} as recorded")


def draw_stage(axes: Any, stage: Array, canvas: Canvas) -> None:
    """Gain stages, with their shares."""
    labels = sorted({int(v) for v in np.unique(stage)} | {0})
    shares = {label: float(np.mean(stage == label)) for label in labels}
    # The higher the rarer: a switched pixel, or one without a stage, must not vanish among its neighbours.
    order = sorted(labels, key=lambda label: -shares[label])
    places = np.vectorize(order.index, otypes=[np.float32])(np.array(labels))
    image = places[np.searchsorted(labels, stage)].astype(np.float32)
    image = spread(canvas.image(image))
    colours = [NO_STAGE_COLOUR if v < 0 else STAGE_COLOURS[v % len(STAGE_COLOURS)] for v in order]
    names = [f"{'none' if v < 0 else f'stage {v}'}  {percent(shares[v])}" for v in order]
    legend_image(axes, image, canvas, colours, names)
    axes.set_title("gain stage")


def draw_flags(axes: Any, look: Look, canvas: Canvas) -> None:
    """Why pixels are bad; a pixel with several reasons shows the rarest of them."""
    reasons = look.reasons()
    image = np.zeros(look.flags.shape, np.float32)
    for k, name in enumerate(reasons, start=1):
        image[look.flags >> np.uint32(look.bits[name]) & np.uint32(1) != 0] = k
    share = float(np.mean(look.flags != 0))
    shown = spread(canvas.image(image))
    names = [f"good  {percent(1 - share)}", *(f"{n}  {c}" for n, c in reasons.items())]
    colours = [GOOD_COLOUR, *reason_colours(reasons)]
    legend_image(axes, shown, canvas, colours, names)
    axes.set_title("flags" + (", by their rarest reason" if len(reasons) > 1 else ""))


def draw_outlines(axes: Any, canvas: Canvas) -> None:
    """Outlines of the panels, in the laboratory."""
    if not isinstance(canvas, Laboratory):
        return
    for outline in canvas.outlines():
        axes.plot(outline[:, 0], outline[:, 1], color="#7b8794", linewidth=0.5)
    axes.set_xlim(canvas.extent[:2])
    axes.set_ylim(canvas.extent[2:])


def draw_beam(axes: Any, canvas: Canvas, energy: float | None) -> None:
    """Where the beam goes, and rings of resolution around it, in the laboratory."""
    if not isinstance(canvas, Laboratory):
        return
    colour = "#12a37f"
    angles = canvas.two_theta()
    for angle, text in rings(angles, energy):
        lines = axes.contour(canvas.x, canvas.y, angles, [angle], colors=[colour], linewidths=0.9, linestyles="dashed")
        place = canvas.label_place(angles, angle)
        for label in axes.clabel(lines, fmt={lines.levels[0]: text}, fontsize=8, manual=[place]):
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    right, top = canvas.extent[1], canvas.extent[3]
    if right <= 0 <= canvas.extent[0] and canvas.extent[2] <= 0 <= top:
        axes.plot([0], [0], "+", color=colour, markersize=14, markeredgewidth=1.6)


def reason_colours(reasons: Iterable[str]) -> list[str]:
    """A colour for each reason; grey for what is missing."""
    return [
        MISSING_COLOUR if name == "missing" else REASON_COLOURS[k % len(REASON_COLOURS)]
        for k, name in enumerate(reasons)
    ]


def add_bar(axes: Any, drawn: Any, label: str) -> None:
    """A colour bar right beside the panel, whatever room there is."""
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.015, 0.1, 0.018, 0.8)))
    bar.set_label(label)
    if isinstance(drawn.norm, LogNorm):
        plain_powers(bar.ax.yaxis)


def plain_powers(axis: Any) -> None:
    """Numbers on a logarithmic axis without the markup of mathematics, which is switched off."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    if value <= 0 or 1e-4 < value < 1e5:
        return f"{value:g}"
    exponent = round(math.log10(value))
    return "10" + "".join(SUPERSCRIPTS[c] for c in str(exponent))


def legend_image(axes: Any, image: Array, canvas: Canvas, colours: Sequence[str], names: Sequence[str]) -> None:
    """An image of numbers 0, 1, 2 ..., each with a colour and a name."""
    from matplotlib.patches import Patch

    norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
    show(axes, image, canvas, ListedColormap(list(colours)), norm)
    patches = [Patch(facecolor=c, edgecolor="#888", label=n) for c, n in zip(colours, names, strict=True)]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def show(axes: Any, image: Array, canvas: Canvas, colours: Any, norm: Any) -> Any:
    """An image of pixels, with the axes of its canvas."""
    aspect = "auto" if min(image.shape) == 1 else "equal"
    drawn = axes.imshow(image, cmap=colours, norm=norm, extent=canvas.extent, interpolation="nearest", aspect=aspect)
    axes.set_xlabel(canvas.labels[0])
    axes.set_ylabel(canvas.labels[1])
    return drawn


def spread(image: Array) -> Array:
    """Let rare points, which are above 0, cover their neighbours, but no place that is no pixel."""
    if np.count_nonzero(image > 0) >= SPREAD_BELOW * np.isfinite(image).sum() or min(image.shape) == 1:
        return image
    reach = max(1, max(image.shape) // SEEN_OF)
    wide = np.pad(np.nan_to_num(image, nan=-1), reach, mode="edge")
    for axis in (0, 1):
        wide = np.lib.stride_tricks.sliding_window_view(wide, 2 * reach + 1, axis).max(-1)
    return np.asarray(np.where(np.isfinite(image), wide, np.nan))
