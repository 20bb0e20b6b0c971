"""``gaincal darks`` on runs whose truth is known, on real dark frames, and on what facilities write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from conftest import BITSHUFFLE

from gaincal.cli import main
from gaincal.dark.judge import REASONS, Evidence, Thresholds, judge
from gaincal.errors import FileError, RequestError
from gaincal.kernels import dark_reference as reference
from gaincal.kernels.dark_rules import Stage, moments
from gaincal.nexus.constantsfile import ConstantsSet, read_constants
from gaincal.simulate import DarkTruth, make_dark_truth, make_darks
from gaincal.sources.recognise import recognise
from gaincal.verbs.darks import darks
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
SMALL, FRAMES = (128, 256), 200
METHODS = {"mean": 1.1, "median": 1.4, "gated": 1.4}
G0 = Stage(0, (0, 0x3FFF), (0, 0x3FFE), (0x8000, 0xBFFF), 0)


def write_words(path: Path, words: Array, **stored: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=words, chunks=(1, *words.shape[1:]), **(stored or BITSHUFFLE))
    return path


def planes(found: ConstantsSet, name: str = "pedestal") -> Array:
    values = found.constants[name].values
    assert isinstance(values, np.ndarray)
    return values


def in_limits(found: ConstantsSet, truth: DarkTruth, row: int, stage: int, frames: int) -> tuple[float, float]:
    """Rms error and bias of the pedestals of good pixels, in units of the statistical limit."""
    limit = np.sqrt((truth.noise**2 + 1 / 12) / frames)
    error = ((planes(found)[row] - truth.pedestal[stage]) / limit)[truth.good]
    return float(np.sqrt(np.mean(error**2))), float(np.mean(error))


def caught(found: ConstantsSet, truth: DarkTruth, row: int) -> tuple[dict[str, float], float]:
    """Which part of the pixels of each planted class has its reason, and which part of the good ones has any."""
    reasons = planes(found, "reasons")[row]
    hit = {
        name: float(np.mean(reasons[planted] >> REASONS[name] & 1))
        for name, planted in (("dead", truth.dead), ("noisy", truth.noisy), ("switching", truth.switching))
    }
    return hit, float(np.mean(reasons[truth.good] != 0))


@pytest.fixture
def shared_data() -> Path:
    folder = Path(os.environ.get("GAINCAL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real frames: {folder} is not there")
    return folder


@pytest.fixture(scope="module")
def truth() -> DarkTruth:
    return make_dark_truth(SMALL)


@pytest.fixture(scope="module")
def runs(truth: DarkTruth, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("darks")
    return [write_words(folder / f"g{k}.h5", np.stack(list(make_darks(truth, k, FRAMES)))) for k in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_pedestals_come_close_to_the_statistical_limit(
    method: str, truth: DarkTruth, runs: list[Path], tmp_path: Path
) -> None:
    done = darks((), tmp_path / "c.nxs", stages=dict(enumerate(runs)), formula="jungfrau", method=method)
    found = read_constants(done.path)
    assert found.labels("pedestal") == {"stage": (0, 1, 2)}
    assert done.rejected["other_stage"] == 3 * round(0.02 * FRAMES)
    frames = FRAMES - round(0.02 * FRAMES)
    for stage in range(3):
        error, bias = in_limits(found, truth, stage, stage, frames)
        assert error < METHODS[method]
        assert abs(bias) < 0.1
        hit, false = caught(found, truth, stage)
        assert min(hit.values()) >= 0.995
        assert false <= 1e-4


def test_without_clipping_photons_lift_the_mean(truth: DarkTruth, runs: list[Path], tmp_path: Path) -> None:
    darks((), tmp_path / "c.nxs", stages={0: runs[0]}, formula="jungfrau", clip=0)
    assert in_limits(read_constants(tmp_path / "c.nxs"), truth, 0, 0, FRAMES)[1] > 0.5


@pytest.fixture(scope="module")
def whole_module(tmp_path_factory: pytest.TempPathFactory) -> tuple[DarkTruth, Path]:
    truth = make_dark_truth()
    folder = tmp_path_factory.mktemp("module")
    return truth, write_words(folder / "g0.h5", np.stack(list(make_darks(truth, 0, 400))))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_module(method: str, whole_module: tuple[DarkTruth, Path], tmp_path: Path) -> None:
    truth, run = whole_module
    darks((), tmp_path / "c.nxs", stages={0: run}, formula="jungfrau", method=method)
    found = read_constants(tmp_path / "c.nxs")
    error, bias = in_limits(found, truth, 0, 0, 392)
    hit, false = caught(found, truth, 0)
    assert error < METHODS[method]
    assert abs(bias) < 0.1
    assert min(hit.values()) >= 0.995
    assert false <= 1e-4


def test_most_words_tell_the_stage_of_a_frame(truth: DarkTruth, runs: list[Path], tmp_path: Path) -> None:
    words = [h5py.File(r)["raw"][:60] for r in runs]
    mixed = write_words(tmp_path / "mixed.h5", np.concatenate(words))
    done = darks([mixed], tmp_path / "c.nxs", formula="jungfrau")
    assert [line["stage"] for line in done.stages] == [0, 1, 2]
    assert sum(line["frames"] for line in done.stages) == 180
    found = read_constants(tmp_path / "c.nxs")
    for stage in range(3):
        assert in_limits(found, truth, stage, stage, 60)[0] < 1.15


def test_memory_and_threads_change_nothing(runs: list[Path], tmp_path: Path) -> None:
    many = darks(runs, tmp_path / "a.nxs", formula="jungfrau", jobs=2)
    few = darks(runs, tmp_path / "b.nxs", formula="jungfrau", jobs=1, max_memory=1)
    assert many.stages == few.stages
    a, b = read_constants(many.path), read_constants(few.path)
    for name in a.constants:
        np.testing.assert_array_equal(planes(a, name), planes(b, name), name)


@pytest.mark.parametrize("method", METHODS)
def test_modules_that_do_not_fit_are_taken_one_after_the_other(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    words = rng.normal(3000, 15, (40, 3, 64, 128)).round().astype(np.uint16)
    words[7, 1] |= 0x4000
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("raw", data=words, chunks=(1, 1, 64, 128), **BITSHUFFLE)
    found = []
    for memory in (1, 64):
        out = tmp_path / f"{memory}.nxs"
        done = darks(
            (), out, stages={0: tmp_path / "d.h5"}, formula="jungfrau_modules", method=method, max_memory=memory
        )
        assert done.rejected["other_stage"] == 1
        found.append(read_constants(out))
    for name in found[0].constants:
        np.testing.assert_array_equal(planes(found[0], name), planes(found[1], name), name)


def test_a_frame_without_words_is_missing_and_not_dark(runs: list[Path], tmp_path: Path) -> None:
    words = h5py.File(runs[0])["raw"][:20]
    with h5py.File(tmp_path / "holes.h5", "w") as file:
        dataset = file.create_dataset("raw", words.shape, "u2", chunks=(1, *SMALL), **BITSHUFFLE)
        for k in range(18):
            dataset[k] = words[k]
    done = darks((), tmp_path / "c.nxs", stages={0: tmp_path / "holes.h5"}, formula="jungfrau")
    assert done.rejected["missing"] == 2


def test_the_real_dark_frames(shared_data: Path, tmp_path: Path) -> None:
    master = shared_data / "jungfrau_dark_raw" / "jungfrau_single_master_0.json"
    done = CliRunner().invoke(main, ["darks", str(master), "-o", str(tmp_path / "c.nxs"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])
    assert told["lacking"] == [1, 2]
    found = read_constants(tmp_path / "c.nxs")
    assert found.labels("pedestal") == {"stage": (0,)}
    pedestal, noise = planes(found)[0], planes(found, "noise")[0]
    assert np.nanmean(pedestal) == pytest.approx(2912, abs=1)
    assert np.nanmedian(noise) == pytest.approx(27, abs=2)
    run = recognise(master, None)
    assert run is not None
    assert run.words["raw"].read is not None
    words = run.words["raw"].read(0, 10)[0].reshape(10, -1)
    low, width = reference.windows(words, G0, 6.0)
    s = reference.sums(words, G0, low, width)
    expected = moments(s["used"], s["total"], s["squares"], low, 0)
    enough = s["used"] >= 5
    np.testing.assert_array_equal(pedestal.reshape(-1), np.where(enough, expected.mean, np.nan).astype(np.float32))
    np.testing.assert_array_equal(noise.reshape(-1), np.where(enough, expected.noise, np.nan).astype(np.float32))
    assert found.validity["exposure_time"] == 1e-5


def test_forced_gains_of_swissfel_are_believed_and_checked(truth: DarkTruth, tmp_path: Path) -> None:
    wide = make_dark_truth()
    frames = [np.stack(list(make_darks(wide, k, 20, wrong=0.1, leak=0))) for k in range(3)]
    with h5py.File(tmp_path / "JF.h5", "w") as file:
        file["general/detector_name"] = np.bytes_("JF01T01V01")
        group = file.create_group("data/JF01T01V01")
        group.create_dataset("data", data=np.concatenate(frames), chunks=(1, 512, 1024), **BITSHUFFLE)
        group["pulse_id"] = np.arange(60, dtype=np.uint64)[:, None]
        group["is_good_frame"] = np.ones((60, 1), np.uint8)
        group["daq_rec"] = (np.repeat([0, 1, 3], 20).astype(np.uint32) << 12)[:, None]
    done = darks([tmp_path / "JF.h5"], tmp_path / "c.nxs")
    assert [line["frames"] for line in done.stages] == [18, 18, 18]
    assert done.rejected["other_stage"] == 6
    assert read_constants(done.path).validity == {"detector_name": "JF01T01V01"}


def test_storage_cells_have_pedestals_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cells = np.arange(64) % 4
    words = rng.normal(3000 + 50 * cells[:, None, None], 10, (64, 512, 1024)).round().astype(np.uint16)
    with h5py.File(tmp_path / "JF.h5", "w") as file:
        file["general/detector_name"] = np.bytes_("JF01T01V01")
        group = file.create_group("data/JF01T01V01")
        group.create_dataset("data", data=words, chunks=(1, 512, 1024), **BITSHUFFLE)
        group["pulse_id"] = np.arange(64, dtype=np.uint64)[:, None]
        group["daq_rec"] = (cells.astype(np.uint32) << 8)[:, None]
    darks([tmp_path / "JF.h5"], tmp_path / "c.nxs", max_memory=60)
    found = read_constants(tmp_path / "c.nxs")
    assert found.labels("pedestal") == {"stage": (0,), "cell": (0, 1, 2, 3)}
    np.testing.assert_allclose(planes(found)[0].mean(axis=(1, 2)), [3000, 3050, 3100, 3150], atol=0.1)


@pytest.mark.parametrize("who_says_it", ["user", "files"])
def test_thresholds_of_agipd_lie_between_the_stages(who_says_it: str, tmp_path: Path) -> None:
    pytest.importorskip("extra_data", reason="not in the oldest dependency set")
    from extra_data.tests.mockdata import write_file
    from extra_data.tests.mockdata.detectors import AGIPDModule

    for stage in range(3):
        folder = tmp_path / f"r{stage}"
        folder.mkdir()
        module = AGIPDModule("SPB_DET_AGIPD1M-1/DET/0CH0", frames_per_train=4)
        path = folder / "RAW-R0001-AGIPD00-S00000.h5"
        write_file(str(path), [module], 12)
        with h5py.File(path, "r+") as file:
            data = file["INSTRUMENT/SPB_DET_AGIPD1M-1/DET/0CH0:xtdf/image/data"]
            rng = np.random.default_rng(stage)
            values = np.stack(
                [rng.normal(5000 + stage, 8, (48, 512, 128)), rng.normal(4000 + 1000 * stage, 5, (48, 512, 128))], 1
            )
            data[...] = values.round().reshape(data.shape)
        if who_says_it == "files":
            with h5py.File(folder / "RAW-R0001-DA01-S00000.h5", "w") as file:
                file["RUN/SPB_IRU_AGIPD1M1/MDL/FPGA_COMP/gainModeIndex/value"] = np.array([stage + 1], np.int32)
    runs = [tmp_path / f"r{k}" for k in range(3)]
    named = ((), dict(enumerate(runs))) if who_says_it == "user" else (runs, {})
    done = darks(named[0], tmp_path / "c.nxs", stages=named[1])
    assert "gain_mode" not in read_constants(done.path).validity  # each run has another
    assert done.constant == "offset"
    found = read_constants(done.path)
    assert found.labels("thresholds")["threshold"] == (0, 1)
    np.testing.assert_allclose(planes(found, "thresholds")[:, :, 0].mean(axis=(1, 2, 3)), [4500, 5500], atol=0.5)
    assert np.isnan(planes(found, "offset")[:, :, 1:]).all()
    np.testing.assert_allclose(planes(found, "offset")[:, :, 0].mean(axis=(1, 2, 3)), [5000, 5001, 5002], atol=0.1)


def test_strips_with_bits_that_nobody_looks_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    words = rng.normal(1000, 8, (3, 60, 1280)).round().astype(np.uint16)
    words |= np.array([0, 1, 3], np.uint16)[:, None, None] << 12
    words |= rng.integers(0, 4, words.shape).astype(np.uint16) << 14
    words[:, :2, 3] = 0x2000 | 900
    words[0, :20, 4] = 0x1000 | 900
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["raw"] = words.reshape(-1, 1280)
    done = darks([tmp_path / "g.h5"], tmp_path / "c.nxs", formula="gotthard2", source="plain")
    assert [(line["stage"], line["frames"]) for line in done.stages] == [(0, 60), (1, 60), (2, 60)]
    found, values = read_constants(done.path), (words & 0x0FFF).astype(float)
    usual = np.delete(np.arange(1280), [3, 4])
    np.testing.assert_allclose(planes(found)[:, usual], values[:, :, usual].mean(axis=1), atol=0.2)
    assert (planes(found, "counts")[:, 3] == 58).all()
    assert (planes(found, "reasons")[:, 3] >> REASONS["undefined_code"] & 1).all()
    assert planes(found, "counts")[0, 4] == 40
    assert planes(found, "reasons")[0, 4] >> REASONS["switching"] & 1


def test_stages_of_settings_are_stated(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    switched = {0: 0, 3: 0, 5: 0x4000}  # always high; high that switches, before and after
    runs = {}
    for stage, bit in switched.items():
        words = rng.normal(3000 + stage, 8, (60, 32, 64)).round().astype(np.uint16) | np.uint16(bit)
        words[:, 1, 1] = rng.choice([3000, 3000 | 0x4000, 3000 | 0x8000], 60)
        runs[stage] = write_words(tmp_path / f"r{stage}.h5", words)
    with pytest.raises(
        RequestError, match="does not tell stages without settings: --stage 0=RUN for each of 0, 1, 2, 3"
    ):
        darks([runs[0]], tmp_path / "c.nxs", formula="epix10ka", source="plain")
    done = darks((), tmp_path / "c.nxs", stages=runs, formula="epix10ka", source="plain")
    assert done.lacking == [1, 2, 4, 6]
    found = read_constants(done.path)
    np.testing.assert_allclose(np.median(planes(found), axis=(1, 2)), [3000, 3003, 3005], atol=0.5)
    assert planes(found, "counts")[0, 1, 1] == 60  # FH is told whether the bit is set or not
    assert [
        bool(r >> REASONS["switching"] & 1 or r >> REASONS["wrong_gain"] & 1) for r in planes(found, "reasons")[:, 1, 1]
    ] == [False, True, True]
    wrong = darks((), tmp_path / "d.nxs", stages={0: runs[0], 3: runs[5]}, formula="epix10ka", source="plain")
    assert wrong.rejected["undecided"] == 60


def test_constants_of_a_dark_reproduce_photons(shared_data: Path, tmp_path: Path) -> None:
    with h5py.File(shared_data / "jungfrau_module" / "frames.h5") as file:
        raw, photons, pedestal, gain = (file[n][()] for n in ("raw", "reference_photons", "pedestal", "gain"))
    rng = np.random.default_rng(2)
    noise, frames = 15.0, 64
    words = np.stack(
        [np.clip(np.rint(rng.normal(pedestal[0], noise)), 1, 0x3FFD).astype(np.uint16) for _ in range(frames)]
    )
    darks((), tmp_path / "c.nxs", stages={0: write_words(tmp_path / "d.h5", words)}, formula="jungfrau")
    write_words(tmp_path / "raw.h5", raw)
    master = tmp_path / "m.nxs"
    embed(
        tmp_path / "raw.h5",
        master,
        formula="jungfrau",
        constants={"pedestal": tmp_path / "c.nxs", "gain": gain[:1]},
        settings={"photon_energy": 12.4},
    )
    import gaincal

    found = gaincal.open_calibrated(master, "photons").values
    good = np.isfinite(found) & (raw < 0x3FFF)
    assert good.mean() > 0.9
    limit = noise / np.sqrt(frames) / (gain[0] * 12.4)
    error = (found - photons) / limit
    assert np.sqrt(np.mean(error[good] ** 2)) < 1.2


def test_what_cannot_be_is_refused(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "c.nxs"
    with pytest.raises(RequestError, match="no stage 7"):
        darks((), out, stages={7: runs[0]}, formula="jungfrau")
    with pytest.raises(RequestError, match="no method 'mode'"):
        darks(runs, out, formula="jungfrau", method="mode")
    with pytest.raises(RequestError, match="no threshold is called 'loud'"):
        darks(runs, out, formula="jungfrau", thresholds={"loud": 3})
    with pytest.raises(RequestError, match="name a dark run"):
        darks((), out, formula="jungfrau")
    with pytest.raises(RequestError, match="its adc is not told by a word alone"):
        darks(runs, out, formula="linear")
    with pytest.raises(FileError, match=r"no dark frame that could be used \(other_stage: 200"):
        darks((), out, stages={2: runs[0]}, formula="jungfrau")
    with pytest.raises(RequestError, match="is read: choose another name"):
        darks(runs, runs[0], formula="jungfrau", overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_the_median_of_few_frames_is_refused(truth: DarkTruth, tmp_path: Path) -> None:
    """The bins of their histograms would span the whole range of words."""
    short = write_words(tmp_path / "short.h5", np.stack(list(make_darks(truth, 0, 15, wrong=0))))
    with pytest.raises(RequestError, match="needs 16 frames of every module, here are 15: record more, or say"):
        darks([short], tmp_path / "median.nxs", formula="jungfrau", method="median")
    assert not (tmp_path / "median.nxs").exists()
    darks([short], tmp_path / "mean.nxs", formula="jungfrau")


def test_reasons_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    n, frames = 2000, 100
    right, undefined = np.full(n, frames, np.uint32), np.zeros(n, np.uint32)
    used, mean, noise = right.copy(), rng.normal(3000, 50, n), rng.normal(15, 1, n)
    right[0] = used[0] = 10
    undefined[1], right[1], used[1] = 1, 99, 99
    right[2], used[2] = 97, 97
    used[3], mean[3], noise[3] = 0, np.nan, np.nan
    noise[4], noise[5], mean[6], mean[7] = 0, 80, 1000, 6000
    right[8] = used[8] = 2
    used[9] = 80
    bits = judge(Evidence(frames, right, undefined, used, mean, noise), Thresholds())
    told = [[name for name, bit in REASONS.items() if b >> bit & 1] for b in bits[:10].tolist()]
    assert told == [
        ["wrong_gain"],
        ["undefined_code"],
        ["switching"],
        ["dead"],
        ["dead"],
        ["noisy"],
        ["pedestal_low"],
        ["pedestal_high"],
        ["too_few_frames", "wrong_gain"],
        ["noisy"],
    ]
    assert not bits[10:].any()
