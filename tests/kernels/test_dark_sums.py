"""Dark frames: the compiled loops give the bits of the NumPy reference, whatever the blocks, threads and storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest

from gaincal.kernels import dark_reference as reference
from gaincal.kernels.dark_rules import GROUP, TILE, WARM, Stage, gate, moments, quantile
from gaincal.kernels.darks import Histograms, Sums, tell_stages
from gaincal.nexus.trust import Resolver
from gaincal.nexus.words import Words

Array = npt.NDArray[Any]
G0 = Stage(0, (0, 0x3FFF), (0, 0x3FFE), (0x8000, 0xBFFF), 0)
G2 = Stage(2, (0xC000, 0xFFFF), (0xC001, 0xFFFE), (0x8000, 0xBFFF), 0xC000)
WHOLE = Stage(0, (0, 0xFFFF), (0, 0xFFFF))
STAGES = {"G0": G0, "G2": G2, "all 16 bits": WHOLE}


def dark_words(frames: int, pixels: int, stage: Stage, seed: int = 1) -> Array:
    """Words around a pedestal, with wrong stages, undefined codes, special words and outliers among them."""
    rng = np.random.default_rng(seed)
    pedestal, noise = rng.normal(3000, 100, pixels), rng.uniform(0, 40, pixels)
    words = np.clip(np.rint(rng.normal(pedestal, noise, (frames, pixels))), 0, 0x3FFF).astype(np.uint16) + stage.zero
    words = words.astype(np.uint16)
    odd = rng.random(words.shape) < 0.02
    words[odd] = rng.integers(0, 1 << 16, np.count_nonzero(odd))
    words[:, :40] = rng.choice(np.array([0xC000, 0xFFFF, 0x3FFF, 0x4000, 0x8000, 0], np.uint16), (frames, 40))
    words[:, 40] = stage.good[0]
    return words


def summed(words: Array, stage: Stage, clip: float) -> dict[str, Array]:
    low, width = reference.windows(words, stage, clip) if clip else gate(np.nan, np.nan, 1, stage)
    low, width = np.broadcast_to(low, words.shape[1]), np.broadcast_to(width, words.shape[1])
    return {"low": low, "width": width, **reference.sums(words, stage, low, width)}


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, name)


def added(gathering: Any, blocks: list[Any], threads: int = 1) -> Any:
    for block in blocks:
        gathering.add(block, np.zeros((block.shape[0], gathering.modules), np.int64), threads)
    gathering.finish()
    return gathering


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("clip", [0.0, 4.5])
@pytest.mark.parametrize("frames", [3, WARM, 57])
def test_sums_are_those_of_the_reference(stage: Stage, clip: float, frames: int) -> None:
    words = dark_words(frames, TILE + 77, stage)
    found = added(Sums([stage], 1, words.shape[1], clip), [words])
    assert_same(found.result(0), summed(words, stage, clip))


@pytest.mark.parametrize("cut", [1, 5, GROUP, 23])
def test_blocks_threads_and_modules_make_no_difference(cut: int) -> None:
    words = dark_words(50, 3 * (2 * TILE + 64), G0)
    blocks = [words[k : k + cut] for k in range(0, 50, cut)]
    found = added(Sums([G0], 3, words.shape[1] // 3, 5.0), blocks, threads=2).result(0)
    for module in range(3):
        own = slice(module * (2 * TILE + 64), (module + 1) * (2 * TILE + 64))
        assert_same({n: a[own] for n, a in found.items()}, summed(words[:, own], G0, 5.0))


def test_frames_are_sorted_into_bins_module_by_module() -> None:
    words = np.concatenate([dark_words(60, 2 * TILE, G0), dark_words(60, 2 * TILE, G2, 2)], axis=1)
    bins = np.random.default_rng(3).integers(-1, 2, (60, 2))
    gathering = Sums([G0, G2], 2, 2 * TILE, 5.0)
    for first in range(0, 60, 13):
        gathering.add(words[first : first + 13], bins[first : first + 13])
    gathering.finish()
    for b, stage in enumerate((G0, G2)):
        for module in range(2):
            own = slice(module * 2 * TILE, (module + 1) * 2 * TILE)
            chosen = words[bins[:, module] == b][:, own]
            assert_same({n: a[own] for n, a in gathering.result(b).items()}, summed(chosen, stage, 5.0))
            assert gathering.offered[b, module] == len(chosen)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("frames", [5, 48])
def test_histograms_are_those_of_the_reference(stage: Stage, frames: int) -> None:
    words = dark_words(frames, TILE + 50, stage)
    base, shift = reference.grids(words, stage)
    expected = {"base": base, "shift": shift, **reference.histograms(words, stage, base, shift)}
    found = added(Histograms([stage], 1, words.shape[1]), [words[:7], words[7:]], threads=2)
    assert_same(found.result(0), expected)


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("frames", [1, 48])
def test_compiled_quantiles_are_those_of_numpy(stage: Stage, frames: int) -> None:
    words = dark_words(frames, TILE + 50, stage)
    found = added(Histograms([stage], 1, words.shape[1]), [words])
    parts = (0.0, 0.1, 0.5, 0.84, 1.0)
    h = found.result(0)
    for part, values in zip(parts, found.quantiles(0, parts, threads=2), strict=True):
        expected = quantile(part, h["below"], h["counts"], h["above"], h["base"], h["shift"], stage.zero)
        np.testing.assert_array_equal(values.view(np.int64), expected.view(np.int64), str(part))
    assert np.isfinite(found.quantiles(0, (0.5,))).any()


def test_compressed_words_give_the_same(tmp_path: Path) -> None:
    words = dark_words(40, 2 * TILE, G0)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset(
            "raw",
            data=words.reshape(40, 64, 128),
            chunks=(1, 64, 128),
            fletcher32=True,
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
    with Resolver(tmp_path / "w.h5") as resolver:
        packed = Words(resolver, resolver.get("/raw")).packed(0, 40)
        assert packed is not None
        assert_same(added(Sums([G0], 1, 2 * TILE, 5.0), [packed], threads=2).result(0), summed(words, G0, 5.0))
        limits = [G0.right, G2.right]
        np.testing.assert_array_equal(tell_stages(packed, 1, limits), tell_stages(words, 1, limits))


def test_stages_are_told_from_every_16th_tile() -> None:
    words = dark_words(5, 2 * 17 * TILE, G0)
    found = tell_stages(words, 2, [G0.right, G2.right], threads=2)
    for module in range(2):
        own = words[:, module * 17 * TILE :][:, : 17 * TILE].reshape(5, 17, TILE)[:, [0, 16]].reshape(5, -1)
        for k, stage in enumerate((G0, G2)):
            expected = reference.within(own, stage.right).mean(axis=1)
            np.testing.assert_allclose(found[:, module, k], expected, rtol=1e-12)


def test_the_largest_sums_do_not_overflow() -> None:
    words = np.full((400, 64), 0x3FFE, np.uint16)
    found = added(Sums([G0], 1, 64), [words]).result(0)
    assert found["total"][0] == 400 * 0x3FFE
    assert found["squares"][0] == 400 * 0x3FFE**2


def test_moments_are_those_of_numpy() -> None:
    words = dark_words(200, 300, G2)[:, 41:]
    found = summed(words, G2, 4.0)
    result = moments(found["used"], found["total"], found["squares"], found["low"], G2.zero)
    low, width = found["low"].astype(int), found["width"].astype(int)
    kept = np.where((words >= low) & (words <= low + width), words.astype(float) - G2.zero, np.nan)
    np.testing.assert_allclose(result.mean, np.nanmean(kept, axis=0), rtol=1e-13)
    np.testing.assert_allclose(result.noise, np.nanstd(kept, axis=0, ddof=1), rtol=1e-9)
    nothing = moments(*(np.zeros(1, t) for t in (np.uint32, np.uint64, np.uint64, np.uint16)), 0)
    assert np.isnan(nothing.mean[0])
    assert np.isnan(nothing.noise[0])


def test_quantiles_are_those_of_grouped_data() -> None:
    words = np.random.default_rng(4).normal(5000, 25, (900, 200)).round().astype(np.uint16)
    base, shift = reference.grids(words, G0)
    h = reference.histograms(words, G0, base, shift)
    found = quantile(0.5, h["below"], h["counts"], h["above"], base, shift, 0)
    assert np.abs(found - np.median(words, axis=0)).max() < 2.5
    scatter = np.std(found - 5000)
    assert scatter < 1.3 * 1.2533 * 25 / np.sqrt(900)
    far = np.full(1, 900, np.uint32)
    assert np.isnan(quantile(0.5, far, h["counts"][:1] * 0, far * 0, base[:1], shift[:1], 0))[0]


def test_a_gate_holds_whole_words_of_its_stage() -> None:
    low, width = gate(np.array([100.0, np.nan, 1.0]), np.array([10.0, 5.0, 20.0]), 3, G2)
    assert low.tolist() == [0xC000 + 69, 0xC001, 0xC001]
    assert (low + width).tolist() == [0xC000 + 131, 0xFFFE, 0xC000 + 62]
