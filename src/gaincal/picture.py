"""The one picture that shows whether a calibration is right: raw, gain stage, calibrated, spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm

Array = npt.NDArray[Any]
STAGE_COLOURS = ("#b0b0b0", "#e9ecef", "#3b7dd8", "#d1495b")


def draw(path: Path, raw: Array, stage: Array, photons: Array, all_photons: Array) -> None:
    """Draw four panels into a PNG.

    Parameters
    ----------
    path : Path
    raw : ndarray (y, x) of uint16
        Words of a frame.
    stage : ndarray (y, x) of int8
        Its gain stages, -1 for none.
    photons : ndarray (y, x)
        Its calibrated image.
    all_photons : ndarray (frame, y, x)
        Of all frames, for the spectrum.
    """
    figure, panels = plt.subplots(2, 2, figsize=(14, 8), layout="constrained")
    _draw_raw(figure, panels[0, 0], raw)
    _draw_stage(figure, panels[0, 1], stage)
    _draw_photons(figure, panels[1, 0], photons)
    _draw_spectrum(panels[1, 1], all_photons)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_raw(figure: Any, panel: Any, raw: Array) -> None:
    image = panel.imshow(raw, cmap="viridis", vmin=0, vmax=0xFFFF, interpolation="nearest")
    figure.colorbar(image, ax=panel, label="word: 2 gain bits, 14 ADC bits", shrink=0.8)
    panel.set_title("raw words as recorded")


def _draw_stage(figure: Any, panel: Any, stage: Array) -> None:
    norm = BoundaryNorm([-1.5, -0.5, 0.5, 1.5, 2.5], 4)
    # A switched spot covers a few pixels: enlarge it, or nobody sees it at this size.
    image = panel.imshow(_spread(stage), cmap=ListedColormap(STAGE_COLOURS), norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=panel, ticks=[-1, 0, 1, 2], shrink=0.8)
    shares = [100 * float((stage == s).mean()) for s in (-1, 0, 1, 2)]
    bar.ax.set_yticklabels([f"{n}  {p:.2f} %" for n, p in zip(("none", "G0", "G1", "G2"), shares, strict=True)])
    panel.set_title("gain stage (switched pixels drawn larger)")


def _spread(stage: Array) -> Array:
    """Let every switched pixel cover its neighbours."""
    spread = stage.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            spread = np.maximum(spread, np.roll(stage, (dy, dx), (0, 1)))
    return spread


def _draw_photons(figure: Any, panel: Any, photons: Array) -> None:
    shown = np.where(np.isfinite(photons), np.maximum(photons, 0.1), np.nan)
    colours = mpl.colormaps["inferno"].with_extremes(bad="#00c8ff")
    image = panel.imshow(shown, cmap=colours, norm=LogNorm(0.1, 1e4), interpolation="nearest")
    figure.colorbar(image, ax=panel, label="photons (flagged pixels: blue)", shrink=0.8)
    panel.set_title("calibrated")


def _draw_spectrum(panel: Any, photons: Array) -> None:
    counts, edges = np.histogram(photons[np.isfinite(photons)], bins=500, range=(-0.5, 8.5))
    panel.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color="#3b7dd8")
    for whole in range(9):
        panel.axvline(whole, color="#d1495b", linewidth=0.8, linestyle="--")
    panel.set_yscale("log")
    panel.set_xlim(-0.5, 8.5)
    panel.set_xlabel("photons per pixel; dashed: where whole photons must be")
    panel.set_ylabel("pixels")
    panel.set_title("photon spectrum of all frames")
