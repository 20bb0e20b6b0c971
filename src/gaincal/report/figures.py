"""The figures of a report, each a PNG with a title and a sentence."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, LogNorm, Normalize

from gaincal.quality.cells import Cells
from gaincal.quality.found import PartPeaks
from gaincal.quality.look import Look
from gaincal.quality.planes import Plane
from gaincal.quality.reasons import Reason
from gaincal.quality.rules import near, percent
from gaincal.quality.statistics import NO_STAGE, Statistics
from gaincal.report import draw
from gaincal.report.canvas import Canvas, Stored, mean_of

Array = npt.NDArray[Any]
WIDTH, HEIGHT = 6.4, 3.8
"""Inches; so two of them stand beside each other on a wide screen, and one alone on a narrow one."""
COLOURS = 160
EDGE = 560
MOST_COLUMNS = 400
ROBUST = 1.4826
MANY_SIGMA = 5.0
NARROWEST_DRIFT = 0.06
"""Photons, on the axis of the drift."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Parameters
    ----------
    title, caption : str
    png : bytes
    """

    title: str
    caption: str
    png: bytes

    @property
    def data(self) -> str:
        """As a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def picture(title: str, caption: str, fill: Callable[[Any], None], height: float = HEIGHT) -> Picture:
    """Draw one panel; `fill` gets its axes."""
    with draw.style():
        drawn = draw.figure(WIDTH, height)
        fill(drawn.add_subplot())
        return Picture(title, caption, draw.png(drawn, colours=COLOURS))


# --- a frame --------------------------------------------------------------------------------


def of_frame(look: Look, canvas: Canvas) -> list[Picture]:
    """Words, stages, values and flags of a frame."""
    small = Stored(look.flags.shape, EDGE)

    def calibrated(axes: Any) -> None:
        draw.draw_values(axes, look, canvas)
        draw.draw_outlines(axes, canvas)
        draw.draw_beam(axes, canvas, look.energy)

    found = [picture("Calibrated", f"{look.output} in {look.units}.", calibrated, _height(canvas))]
    for name, words in list(look.words.items())[:2]:
        fill = partial(draw.draw_words, name=name, words=words, canvas=small)
        found.append(picture("Raw", "Words as recorded.", fill, _height(small)))
    stage = look.stage
    if stage is not None:
        fill = partial(draw.draw_stage, stage=stage, canvas=canvas)
        found.append(picture("Gain stage", "Rare pixels are drawn larger.", fill, _height(canvas)))
    fill = partial(draw.draw_flags, look=look, canvas=canvas)
    found.append(picture("Flags", "Why pixels are bad, with their numbers.", fill, _height(canvas)))
    return found


def _height(canvas: Canvas) -> float:
    """Of a figure of pixels, so that wide detectors leave no empty room."""
    left, right, bottom, top = canvas.extent
    return float(np.clip(0.62 * WIDTH * abs((top - bottom) / (right - left)) + 1.1, 1.6, HEIGHT))


# --- the run --------------------------------------------------------------------------------


def spectrum(found: Statistics, peaks: Sequence[PartPeaks]) -> Picture:
    """All valid pixels by their value, with the peaks that are expected and found."""
    whole, total = peaks[-1], found.spectrum.sum((0, 1))

    def fill(axes: Any) -> None:
        axes.stairs(np.maximum(total, 0.5), found.edges, baseline=0.5, fill=True, color="#9db8dc")
        several = found.spectrum.shape[1] > 1
        for k in range(found.spectrum.shape[1] if several else 0):
            axes.stairs(
                np.maximum(found.spectrum[:, k].sum(0), 0.5), found.edges, baseline=None, linewidth=0.4, alpha=0.5
            )
        if found.photon is not None:
            for n in range(8):
                label = "expected" if n == 0 else None
                axes.axvline(n * found.photon, color=draw.EXPECTED, linewidth=0.8, linestyle="--", label=label)
        for peak, name in ((whole.zero, "zero photons"), (whole.photon, "one photon")):
            if peak is not None:
                axes.plot([peak.centre], [max(total.max(), 1) * 1.6], "v", color=draw.LINE, markersize=7)
                text = near(peak.centre, found.photon)
                axes.plot([], [], "v", color=draw.LINE, label=f"found: {name} at {text} {found.units}")
        axes.set_yscale("log")
        draw.plain_powers(axes.yaxis)
        axes.set_xlim(found.edges[0], found.edges[-1])
        axes.set_ylim(0.5, max(total.max(), 1) * 30)
        axes.set_xlabel(f"{found.output} ({found.units})")
        axes.set_ylabel("pixels")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(framealpha=1, edgecolor="white", loc="upper right", fontsize=8)

    caption = "Pixels by their value, all frames that were looked at"
    caption += "; thin lines: each module." if found.spectrum.shape[1] > 1 else "."
    if whole.photon is None and found.photon is not None:
        caption += " No peak of one photon stands out."
    return picture("Photon spectrum", caption, fill)


def stages(found: Statistics) -> Picture | None:
    """Per cent of pixels per stage over time."""
    if not found.stages:
        return None
    counts = found.stage_counts.sum(1).astype(float)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts / counts.sum(1, keepdims=True)
    frames = _middles(found)

    def fill(axes: Any) -> None:
        lowest = 50 / max(1.0, float(counts.sum(1).max()))
        for k, label in enumerate(found.stages):
            if label == NO_STAGE and not counts[:, k].any():
                continue
            name = "none" if label == NO_STAGE else f"stage {label}"
            colour = draw.NO_STAGE_COLOUR if label == NO_STAGE else _line_colour(label)
            axes.plot(
                frames, np.maximum(shares[:, k], lowest), "o-", color=colour, markersize=3, linewidth=1, label=name
            )
        axes.set_yscale("log")
        axes.set_ylim(lowest / 2, 200)
        draw.plain_powers(axes.yaxis)
        _frame_axis(axes)
        axes.set_ylabel("% of pixels")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

    caption = "Each point is a slice of the run; what is below the axis is none at all."
    return picture("Pixels per gain stage", caption, fill)


def drift(found: Statistics, peaks: Sequence[PartPeaks]) -> Picture | None:
    """The zero-photon peak of every module over time."""
    shown = [p for p in peaks[: len(found.parts)] if any(s.zero for s in p.slices)]
    if not shown or len(found.first) < 3:
        return None
    frames = _middles(found)

    def fill(axes: Any) -> None:
        for k, part in enumerate(shown):
            there = [(f, s.zero) for f, s in zip(frames, part.slices, strict=True) if s.zero is not None]
            places, centres = [f for f, _ in there], [z.centre for _, z in there]
            colour = colormaps["viridis"](k / max(1, len(shown) - 1)) if len(shown) > 1 else draw.LINE
            axes.plot(places, centres, "o-", color=colour, markersize=3, linewidth=1, label=part.name)
            if len(shown) == 1:
                widths = [z.width for _, z in there]
                low, high = (np.add(centres, np.multiply(sign, widths)) for sign in (-1, 1))
                axes.fill_between(places, low, high, color=draw.LINE, alpha=0.12, label="width")
        axes.axhline(0, color=draw.EXPECTED, linewidth=0.8, linestyle="--")
        if found.photon is not None:  # or noise would look like a drift
            low, high = axes.get_ylim()
            least = NARROWEST_DRIFT * abs(found.photon)
            axes.set_ylim(min(low, -least), max(high, least))
        _frame_axis(axes)
        axes.set_ylabel(f"zero-photon peak ({found.units})")
        columns = -(-len(shown) // 16)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, ncols=columns)

    return picture("Pedestal drift", "Where the pixels without a photon are; they should stay at 0.", fill)


def strip(found: Statistics) -> Picture:
    """Modules by frames: what there is, and what is missing."""
    there = 1 - found.missing.T
    columns = min(MOST_COLUMNS, there.shape[1])
    edges = np.linspace(0, there.shape[1], columns + 1).astype(int)
    # The worst frame of each column: a single gap must be seen.
    shown = np.minimum.reduceat(there, edges[:-1], axis=1)

    def fill(axes: Any) -> None:
        colours = ListedColormap([*colormaps["autumn"](np.linspace(0, 0.9, 63)), "#3f8f6b"])
        extent = (0, there.shape[1], there.shape[0] - 0.5, -0.5)
        drawn = axes.imshow(
            shown, cmap=colours, norm=Normalize(0, 1), extent=extent, aspect="auto", interpolation="nearest"
        )
        draw.add_bar(axes, drawn, "share of the words there")
        _frame_axis(axes)
        count = there.shape[0]
        places = np.unique(np.linspace(0, count - 1, min(count, 16)).astype(int))
        axes.set_yticks(places, [found.parts[k].name for k in places])

    whole = int((found.missing == 0).all(1).sum())
    caption = (
        f"Green: complete. {whole} of {found.run_frames} frames have all their words; a column shows its worst frame."
    )
    return picture("Frames of each module", caption, fill, min(HEIGHT, 1.6 + 0.2 * there.shape[0]))


def mean_image(found: Statistics, canvas: Canvas) -> Picture:
    """The mean of all valid values."""
    image = canvas.image(found.mean, mean_of)

    def fill(axes: Any) -> None:
        axes.set_facecolor("#e3e6ea")
        finite = image[np.isfinite(image)]
        if found.photon is not None and found.photon > 0:
            low, high = found.photon / 100, max(found.photon, float(finite.max(initial=0)))
            norm: Normalize = LogNorm(low, high)
            shown = np.clip(image, low, None)
        else:
            low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
            norm, shown = Normalize(low, max(high, low + 1e-12)), image
        draw.add_bar(axes, draw.show(axes, shown, canvas, colormaps["inferno"], norm), found.units)

    return picture("Mean image", f"Mean of the valid values of {len(found.frames)} frames.", fill, _height(canvas))


def reason_map(listed: Sequence[Reason], canvas: Canvas) -> Picture | None:
    """Pixels that are bad in every frame, coloured by reason."""
    return map_of_pixels(
        {r.name: r.pixels for r in listed}, canvas, "In every frame that was looked at; rare ones are drawn larger."
    )


def map_of_pixels(listed: Mapping[str, Array], canvas: Canvas, caption: str) -> Picture | None:
    """Pixels coloured by reason: bool (*pixels) by name; one with several shows the rarest."""
    ordered = sorted(((n, p) for n, p in listed.items() if p.any()), key=lambda item: -np.count_nonzero(item[1]))
    if not ordered:
        return None
    image = np.zeros(ordered[0][1].shape, np.float32)
    for k, (_, pixels) in enumerate(ordered, start=1):
        image[pixels] = k
    counted = [f"{name}  {np.count_nonzero(pixels)}" for name, pixels in ordered]
    names = [f"good  {percent(float(np.mean(image == 0)))}", *counted]
    colours = [draw.GOOD_COLOUR, *draw.reason_colours(name for name, _ in ordered)]

    def fill(axes: Any) -> None:
        draw.legend_image(axes, draw.spread(canvas.image(image)), canvas, colours, names)

    return picture("Bad pixels", caption, fill, _height(canvas))


# --- constants ------------------------------------------------------------------------------


def of_plane(plane: Plane, canvas: Canvas) -> Picture:
    """A map of a constant, and its histogram."""
    low, high, outside = robust_limits(plane.values)
    finite = plane.values[np.isfinite(plane.values)]
    middle = f"median {np.median(finite):.5g} {plane.units}" if finite.size else "no value"
    spread = f", spread {ROBUST * np.median(np.abs(finite - np.median(finite))):.3g}" if finite.size else ""
    caption = f"{middle}{spread}; {_left_out(plane.values, outside)}."
    return _map_and_histogram(plane, canvas, (low, high), "viridis", caption, plane.title)


def of_cells(found: Cells) -> Picture:
    """A constant from memory cell to memory cell, a line for each module."""
    middle = np.nanmedian(found.medians) if np.isfinite(found.medians).any() else 0.0

    def fill(axes: Any) -> None:
        for line in found.medians:
            axes.plot(found.cells, line, color=draw.LINE, linewidth=0.8, alpha=max(0.5, 1 / len(found.medians)))
        axes.set_xlabel("memory cell")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(f"{found.name}, {found.units}")
        axes.margins(x=0.01)

    caption = f"Medians of modules; median {middle:.5g} {found.units}, {len(found.cells)} cells."
    return picture(found.title, caption, fill, HEIGHT * 0.7)


def of_difference(plane: Plane, previous: Plane, canvas: Canvas) -> Picture:
    """What became of a constant since the previous set."""
    with np.errstate(invalid="ignore"):
        values = plane.values.astype(np.float64) - previous.values
    change = Plane(plane.name, plane.units, plane.stage, values, plane.note)
    finite = values[np.isfinite(values)]
    low, high, outside = robust_limits(values)
    most = max(abs(low), abs(high))
    middle = f"median change {np.median(finite):.4g} {plane.units}" if finite.size else "nothing to compare"
    caption = f"{middle}; {_left_out(values, outside)}."
    return _map_and_histogram(change, canvas, (-most, most), "RdBu_r", caption, f"{plane.title}: change")


def _left_out(values: Array, outside: float) -> str:
    """What a map does not show: pixels beyond its scale, and those without a value, if there are any."""
    void = float(np.mean(~np.isfinite(values)))
    return f"{percent(outside)} outside the scale" + (f", {percent(void)} without a value" if void else "")


def robust_limits(values: Array) -> tuple[float, float, float]:
    """Limits of a scale around the median, and the share of values outside."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0, 0.0
    middle = float(np.median(finite))
    spread = ROBUST * float(np.median(np.abs(finite - middle)))
    half = MANY_SIGMA * spread or max(float(np.abs(finite - middle).max()), abs(middle) * 1e-3, 1e-12)
    low, high = max(middle - half, float(finite.min())), min(middle + half, float(finite.max()))
    high = high if high > low else low + max(abs(low) * 1e-6, 1e-12)
    return low, high, float(np.mean((finite < low) | (finite > high)))


def _map_and_histogram(
    plane: Plane, canvas: Canvas, limits: tuple[float, float], colours: str, caption: str, title: str
) -> Picture:
    with draw.style():
        drawn = draw.figure(WIDTH, min(HEIGHT, max(2.4, _height(canvas))) - 0.5)
        left, right = drawn.subplots(1, 2, width_ratios=(1.8, 1))
        _map(plane, canvas, limits, colours)(left)
        finite = plane.values[np.isfinite(plane.values)].astype(np.float64)
        right.hist(np.clip(finite, *limits), bins=100, range=limits, color=draw.LINE)
        right.set_yscale("log")
        draw.plain_powers(right.yaxis)
        right.set_xlabel(plane.units)
        right.set_ylabel("pixels")
        right.locator_params(axis="x", nbins=2)  # three numbers of five digits do not run into each other
        right.tick_params(axis="x", labelsize=8)
        return Picture(title, caption, draw.png(drawn, colours=COLOURS))


def _map(plane: Plane, canvas: Canvas, limits: tuple[float, float], colours: str) -> Callable[[Any], None]:
    image = canvas.image(plane.values, mean_of)

    def fill(axes: Any) -> None:
        axes.set_facecolor("#e3e6ea")
        drawn = draw.show(axes, image, canvas, colormaps[colours], Normalize(*limits))
        draw.add_bar(axes, drawn, plane.units)

    return fill


def _middles(found: Statistics) -> Array:
    """The frame in the middle of each slice."""
    return np.array([found.frames[a:b].mean() for a, b in zip(found.first[:-1], found.first[1:], strict=True)])


def _frame_axis(axes: Any) -> None:
    axes.set_xlabel("frame")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _line_colour(stage: int) -> str:
    return "#56606b" if stage == 0 else draw.STAGE_COLOURS[stage % len(draw.STAGE_COLOURS)]
