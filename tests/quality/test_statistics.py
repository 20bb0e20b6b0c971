"""Statistics of small runs against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FLAG_BITS, Run, build_run, build_virtual_run, make_constants, make_words, write_raw

from gaincal.errors import RequestError
from gaincal.nexus.read import open_master
from gaincal.quality.parts import missing_shares, parts_of
from gaincal.quality.statistics import Statistics, collect
from gaincal.verbs.embed import embed

VOID = ("invalid_gain_code", "saturated", "error_word", "adc_limit", "no_calibration", "masked", "no_value", "missing")


def statistics(run: Run, frames: int | None = None) -> Statistics:
    master = open_master(run.master)
    with master.resolver:
        return collect(master, frames)


@pytest.fixture(scope="module", params=["module", "modules", "virtual"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "virtual":
        return build_virtual_run(directory)
    shape = (9, 3, 8, 16) if request.param == "modules" else (9, 16, 32)
    return build_run(directory, shape, request.param)


def test_every_number_is_that_of_plain_numpy(run: Run) -> None:
    found = statistics(run)
    values, flags = run.expected("energy")
    assert (found.output, found.units, found.photon) == ("energy", "keV", pytest.approx(12.4))
    assert found.frames.tolist() == list(range(len(run.words)))
    for k, part in enumerate(found.parts):
        inside = (slice(None), *part.index)
        mine, own = flags[inside], values[inside]
        void = np.zeros(mine.shape, bool)
        for name, bit in FLAG_BITS.items():
            raised = (mine >> np.uint32(bit) & 1).astype(bool)
            assert found.flags[name][k] == raised.sum(), name
            void |= raised & (name in VOID)
        there = ~run.missing[inside]
        assert (found.looked_at[k], found.present[k], found.valid[k]) == (there.size, there.sum(), (~void).sum())
        stage = run.steps["stage"][inside]
        for s, label in enumerate(found.stages):
            assert found.stage_counts[:, k, s].sum() == ((stage == label) & there).sum()
        counted = found.spectrum[:, k].sum() + found.outside[k].sum()
        assert counted == (~void).sum()
        assert found.outside[k, 0] == pytest.approx((own[~void] < found.edges[0]).sum(), abs=2)


def test_the_spectrum_is_numpys(run: Run) -> None:
    found = statistics(run)
    values, _ = run.expected("energy")
    wanted = np.histogram(values[np.isfinite(values)], found.edges)[0]
    mine = found.spectrum.sum((0, 1))
    assert np.abs(np.cumsum(mine - wanted)).max() <= 2  # float32 at the edge of a bin
    assert mine.sum() > 50


def test_the_mean_is_that_of_valid_values(run: Run) -> None:
    found = statistics(run)
    values, flags = run.expected("energy")
    with pytest.warns(RuntimeWarning, match="empty slice"):
        wanted = np.nanmean(values.astype(np.float64), axis=0)
    np.testing.assert_allclose(found.mean, wanted, rtol=1e-6)
    np.testing.assert_array_equal(found.always, np.bitwise_and.reduce(flags, axis=0))


def test_slices_divide_the_frames(run: Run) -> None:
    found = statistics(run)
    assert found.first[0] == 0
    assert found.first[-1] == len(found.frames)
    assert len(found.spectrum) == len(found.stage_counts) == len(found.first) - 1
    per_slice = found.stage_counts.sum((1, 2)) / np.diff(found.first)
    assert per_slice.max() <= found.mean.size


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_sample_is_even_and_has_both_ends(run: Run, frames: int) -> None:
    found = statistics(run, frames)
    assert len(found.frames) == frames
    assert found.run_frames == len(run.words)
    assert found.frames[0] == 0
    if frames > 1:
        assert found.frames[-1] == len(run.words) - 1


def test_missing_words_are_known_of_every_frame(run: Run) -> None:
    """Although one frame was looked at."""
    found = statistics(run, 1)
    for k, part in enumerate(found.parts):
        inside = run.missing[(slice(None), *part.index)]
        wanted = inside.reshape(len(inside), -1).mean(1)
        np.testing.assert_allclose(found.missing[:, k], wanted, atol=1e-6)


def test_chunks_never_written_are_missing(tmp_path: Path) -> None:
    words = make_words((5, 2, 8, 16))
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        data = file.create_dataset("data", words.shape, np.uint16, chunks=(2, 1, 4, 16))
        data[:2], data[2:4, 0], data[4, 1, :4] = words[:2], words[2:4, 0], words[4, 1, :4]
    pedestal, gain = make_constants(words.shape[1:])
    constants = {"pedestal": pedestal, "gain": gain}
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau_modules", constants=constants)
    master = open_master(tmp_path / "m.nxs")
    with master.resolver:
        shares = missing_shares(master.words, parts_of(master), 5)
    np.testing.assert_array_equal(shares, [[0, 0], [0, 0], [0, 1], [0, 1], [1, 0.5]])


def test_progress_is_told(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    master = open_master(run.master)
    with master.resolver:
        collect(master, 3, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_a_photon_energy_the_range_follows_the_data(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = random.normal(3000, 20, (4, 64, 64)).astype(np.uint16)
    write_raw(tmp_path / "raw.h5", words)
    pedestal, gain = np.full((3, 64, 64), 2990.0), np.full((3, 64, 64), 41.0)
    constants = {"pedestal": pedestal, "gain": gain}
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau", constants=constants)
    master = open_master(tmp_path / "m.nxs")
    with master.resolver:
        found = collect(master)
    assert found.photon is None
    assert found.outside.sum() < 0.001 * words.size
    assert np.count_nonzero(found.spectrum.sum((0, 1))) > 50


def test_a_run_without_frames_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw.h5", np.zeros((0, 8, 16), np.uint16))
    pedestal, gain = make_constants((8, 16))
    constants = {"pedestal": pedestal, "gain": gain}
    embed(tmp_path / "raw.h5", tmp_path / "m.nxs", formula="jungfrau", constants=constants)
    master = open_master(tmp_path / "m.nxs")
    with master.resolver, pytest.raises(RequestError, match="no frames"):
        collect(master)
