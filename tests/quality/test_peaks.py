"""Peaks of known histograms: their places, their errors, and none where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gaincal.quality.peaks import Peak, photon_peak, zero_peak

Array = npt.NDArray[Any]
PHOTON, NOISE = 12.4, 0.37
EDGES = np.linspace(-2 * PHOTON, 8 * PHOTON, 1001)


def histogram(
    seed: int, pixels: int = 400_000, flux: float = 0.1, gain: float = 1.0, offset: float = 0.0, shared: float = 0.3
) -> Array:
    """Pixels with Poisson photons, of which a part shares its charge with another pixel, and noise."""
    random = np.random.default_rng(seed)
    whole = random.poisson(flux * (1 - shared), pixels)
    halves = random.poisson(2 * flux * shared, pixels)
    energy = PHOTON * (whole + np.where(halves > 0, random.random(pixels) * halves, 0))
    values = gain * energy + offset + random.normal(0, NOISE, pixels)
    return np.histogram(values, EDGES)[0]


def found(counts: Array) -> tuple[Peak, Peak]:
    zero = zero_peak(counts, EDGES, PHOTON)
    assert zero is not None
    peak = photon_peak(counts, EDGES, PHOTON, zero.width)
    assert peak is not None
    return zero, peak


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.7])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (1.07, 0.3), (0.85, -0.4)])
def test_both_peaks_are_where_they_were_put(gain: float, offset: float, shared: float) -> None:
    for seed in range(5):
        zero, peak = found(histogram(seed, gain=gain, offset=offset, shared=shared))
        assert abs(zero.centre - offset) < 0.01 * NOISE + 5 * zero.error
        assert abs(peak.centre - gain * PHOTON - offset) < 0.0015 * PHOTON + 5 * peak.error
        assert zero.width == pytest.approx(NOISE, rel=0.03)
        assert peak.width == pytest.approx(NOISE, rel=0.1)


def test_errors_of_centres_are_what_they_scatter() -> None:
    pairs = [found(histogram(seed, pixels=60_000, shared=0.0)) for seed in range(60)]
    for k, truth in ((0, 0.0), (1, PHOTON)):
        pulls = np.array([(p[k].centre - truth) / p[k].error for p in pairs])
        assert abs(pulls.mean()) < 0.5
        assert 0.75 < pulls.std() < 1.3


def test_counts_are_those_of_the_gaussian() -> None:
    _, peak = found(histogram(1, shared=0.0))
    assert peak.counts == pytest.approx(400_000 * 0.1 * np.exp(-0.1), rel=0.03)


def test_no_photons_no_peak() -> None:
    counts = histogram(2, flux=0.0)
    zero = zero_peak(counts, EDGES, PHOTON)
    assert zero is not None
    assert photon_peak(counts, EDGES, PHOTON, zero.width) is None


def test_a_shelf_without_a_peak_is_no_peak() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(0, NOISE, 100_000), random.uniform(0, 3 * PHOTON, 20_000)])
    assert photon_peak(np.histogram(values, EDGES)[0], EDGES, PHOTON, NOISE) is None


def test_too_few_counts_are_not_fitted() -> None:
    counts = histogram(4, pixels=100)
    assert zero_peak(counts, EDGES, PHOTON) is None
    assert photon_peak(counts, EDGES, PHOTON, NOISE) is None
    assert zero_peak(np.zeros(1000, np.int64), EDGES) is None


def test_a_gain_that_is_far_off_is_not_taken_for_good() -> None:
    """A peak is looked for up to 40 % beside its place, and no further."""
    counts = histogram(5, gain=2.0, shared=0.0)
    peak = photon_peak(counts, EDGES, PHOTON, NOISE)
    assert peak is None or abs(peak.centre - PHOTON) > 0.3 * PHOTON


def test_noise_wider_than_half_a_photon_has_no_photon_peak() -> None:
    random = np.random.default_rng(6)
    values = PHOTON * random.poisson(0.2, 300_000) + random.normal(0, 0.8 * PHOTON, 300_000)
    counts = np.histogram(values, EDGES)[0]
    assert photon_peak(counts, EDGES, PHOTON, 0.8 * PHOTON) is None


def test_a_peak_of_few_bins_is_found() -> None:
    """All values in one bin, as integers have them."""
    counts = np.zeros(1000, np.int64)
    counts[199:202] = 50, 5000, 60
    zero = zero_peak(counts, EDGES, PHOTON)
    assert zero is None or abs(zero.centre - (EDGES[200] + EDGES[201]) / 2) < 0.1
