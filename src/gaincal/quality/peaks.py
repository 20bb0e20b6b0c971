"""Peaks in histograms of calibrated values: that of no photon, and that of one.

A zero-photon peak is the noise of the pixels that no photon hit.  The peak of one photon sits on a shelf: photons
that share their charge among pixels leave anything between nothing and all of it in one.  Both are fitted as
C. Redford et al., "First full dynamic range calibration of the JUNGFRAU photon detector", JINST 13 (2018) C01027,
fit fluorescence spectra: a Gaussian, and the shelf as a complementary error function of the same centre and width.
The fit minimises Neyman's chi-square by the method of K. Levenberg (Quart. Appl. Math. 2 (1944) 164) and
D. Marquardt (J. SIAM 11 (1963) 431).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MIN_COUNTS = 200
"""In a window, to fit anything."""
MIN_RISE = 6.0
"""Standard deviations by which a photon peak must stand above the valley before it."""
NEAR_ZERO, NEAR_PHOTON = 0.45, (0.6, 1.4)
"""Where the peaks are looked for, in photons."""
BELOW, ABOVE = 2.5, 2.0
"""Widths of a photon peak that are fitted, below and above its centre."""
AROUND_ZERO = 1.5
HALF_WIDTH = math.sqrt(2 * math.log(2))
MAX_STEPS = 60
SETTLED = 1e-9
_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass(frozen=True)
class Peak:
    """A fitted peak.

    Parameters
    ----------
    centre, width : float
        Mean and standard deviation of the Gaussian, in the units of the histogram.
    error : float
        Standard deviation of the centre.
    counts : float
        In the Gaussian.
    chi_square : float
        Per degree of freedom.
    """

    centre: float
    width: float
    error: float
    counts: float
    chi_square: float


def zero_peak(counts: Array, edges: Array, photon: float | None = None) -> Peak | None:
    """Fit the peak of pixels that no photon hit.

    Parameters
    ----------
    counts : ndarray (bin,)
    edges : ndarray (bin + 1,)
        Of equal bins.
    photon : float, optional
        What one photon gives; the peak is then looked for within 0.45 of it.

    Returns
    -------
    Peak or None
        None if there are too few counts, or no peak.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    near = np.ones(len(centres), bool) if photon is None else np.abs(centres) < NEAR_ZERO * abs(photon)
    start = _start(counts, centres, near)
    if start is None:
        return None
    top, width = start
    for _ in range(2):  # the second time the window is where the peak is
        window = np.abs(centres - top) <= max(AROUND_ZERO * width, 2.5 * (edges[1] - edges[0]))
        found = _fit(counts, centres, window, (top, width), shelf=False)
        if found is None:
            return None
        top, width = found.centre, found.width
    return found


def photon_peak(counts: Array, edges: Array, photon: float, noise: float) -> Peak | None:
    """Fit the peak of one photon.

    Parameters
    ----------
    counts : ndarray (bin,)
    edges : ndarray (bin + 1,)
        Of equal bins.
    photon : float
        Where it is expected; it is looked for from 0.6 to 1.4 of this.
    noise : float
        Width of the zero-photon peak, which that of a photon has at least.

    Returns
    -------
    Peak or None
        None if there are too few counts, or no peak that stands out.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    bin_width = float(edges[1] - edges[0])
    smooth = _smooth(counts, max(1, round(0.5 * noise / bin_width)))
    near = (centres >= NEAR_PHOTON[0] * photon) & (centres <= NEAR_PHOTON[1] * photon)
    if counts[near].sum() < MIN_COUNTS:
        return None
    top = float(centres[near][np.argmax(smooth[near])])
    found, width = None, max(noise, bin_width)
    for _ in range(2):
        if not _stands_out(counts, centres, top, width, photon):
            return None
        window = (centres >= top - BELOW * width) & (centres <= top + ABOVE * width)
        found = _fit(counts, centres, window, (top, width), shelf=True)
        if found is None or not NEAR_PHOTON[0] < found.centre / photon < NEAR_PHOTON[1]:
            return None
        top, width = found.centre, found.width
    return found


def _stands_out(counts: Array, centres: Array, top: float, width: float, photon: float) -> bool:
    """Whether there are more counts around the top than around the valley between none and one photon."""
    if top - BELOW * width < NEAR_ZERO * photon:
        return False
    half = max(width, float(centres[1] - centres[0]))
    peak = counts[np.abs(centres - top) <= half].sum()
    before = np.abs(centres - (top - 3 * half)) <= half
    valley = counts[before].sum()
    return bool(peak - valley > MIN_RISE * math.sqrt(peak + valley))


def _start(counts: Array, centres: Array, near: Array) -> tuple[float, float] | None:
    """Top and width of the highest peak, as far as a histogram shows them at a glance."""
    inside = np.where(near, counts, 0)
    if inside.sum() < MIN_COUNTS:
        return None
    smooth = _smooth(inside, 1)
    top = int(np.argmax(smooth))
    half = smooth < smooth[top] / 2
    left = top - int(np.argmax(half[top::-1])) if half[: top + 1].any() else 0
    right = top + int(np.argmax(half[top:])) if half[top:].any() else len(half) - 1
    width = (right - left) / 2 * float(centres[1] - centres[0]) / HALF_WIDTH
    return float(centres[top]), max(width, float(centres[1] - centres[0]) / 2)


def _smooth(counts: Array, half: int) -> Array:
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    return np.asarray(np.convolve(np.asarray(counts, np.float64), kernel, "same"))


def _fit(counts: Array, centres: Array, window: Array, start: tuple[float, float], shelf: bool) -> Peak | None:
    x, y = centres[window], counts[window].astype(np.float64)
    if len(x) < 5 + shelf or y.sum() < MIN_COUNTS:
        return None
    values = np.array([y.max(), *start, *([0.1 * y.max()] if shelf else [])])
    weights = 1 / np.maximum(y, 1)
    fitted = _least_squares(x, y, weights, values)
    if fitted is None:
        return None
    values, covariance, chi_square = fitted
    height, centre, width = values[:3]
    spread = abs(width)
    if height <= 0 or not x[0] <= centre <= x[-1] or not 0 < spread <= x[-1] - x[0]:
        return None
    step = float(x[1] - x[0])
    # The bins widen a peak by their own width (Sheppard).
    narrower = math.sqrt(max(spread**2 - step**2 / 12, step**2 / 144))
    total = height * spread * math.sqrt(2 * math.pi) / step
    error = math.sqrt(covariance[1, 1])
    return Peak(float(centre), narrower, error, float(total), chi_square / (len(x) - len(values)))


def _least_squares(x: Array, y: Array, weights: Array, values: Array) -> tuple[Array, Array, float] | None:
    damping, (model, slopes) = 1e-3, _model(x, values)
    chi = float((weights * (y - model) ** 2).sum())
    for _ in range(MAX_STEPS):
        normal = slopes.T @ (weights[:, None] * slopes)
        damped = normal + damping * np.diag(np.diag(normal) + 1e-300)
        try:
            step = np.linalg.solve(damped, slopes.T @ (weights * (y - model)))
        except np.linalg.LinAlgError:
            return None
        tried = values + step
        new_model, new_slopes = _model(x, tried)
        new_chi = float((weights * (y - new_model) ** 2).sum())
        if not np.isfinite(new_chi) or new_chi > chi:
            damping *= 10
            if damping > 1e12:
                break
            continue
        settled = chi - new_chi <= SETTLED * chi
        values, model, slopes, chi, damping = tried, new_model, new_slopes, new_chi, damping / 10
        if settled:
            break
    try:
        covariance = np.linalg.inv(slopes.T @ (weights[:, None] * slopes))
    except np.linalg.LinAlgError:
        return None
    return (values, covariance, chi) if np.isfinite(covariance).all() and covariance[1, 1] >= 0 else None


def _model(x: Array, values: Array) -> tuple[Array, Array]:
    """A Gaussian (height, centre, width), on a shelf of some height if there is a fourth value; and its slopes."""
    height, centre, width = values[:3]
    width = width if width else 1e-300
    with np.errstate(all="ignore"):
        z = (x - centre) / width
        bell = np.exp(-0.5 * z**2)
        model, slopes = height * bell, [bell, height * bell * z / width, height * bell * z**2 / width]
        if len(values) > 3:
            falling = _erfc(z / math.sqrt(2)).astype(np.float64) / 2
            density = bell / math.sqrt(2 * math.pi) / width
            model = model + values[3] * falling
            slopes[1] = slopes[1] + values[3] * density
            slopes[2] = slopes[2] + values[3] * density * z
            slopes.append(falling)
    return model, np.stack(slopes, axis=1)
