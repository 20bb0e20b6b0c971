"""The demo: every file is there, the picture too, and the calibrated photons are the simulated ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import write_raw

from gaincal import demo as demo_module
from gaincal.demo import APPLIED, FIRST_PULSE, GAIN, MASTER, PEDESTAL, PICTURE, RAW, demo
from gaincal.errors import OutputError
from gaincal.lazy import open_calibrated, open_calibrated_dataset
from gaincal.simulate import NOISE, PHOTON_ENERGY, TYPICAL_GAIN, Module, make_frames, make_module
from gaincal.verbs.embed import embed
from gaincal.verbs.inspect import validate

Array = npt.NDArray[Any]
FRAMES = 3
FILES = [RAW, PEDESTAL, GAIN, MASTER, APPLIED]
SHAPE = (64, 96)


@contextmanager
def small_module() -> Iterator[None]:
    """Let the demo simulate a small module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "make_module", lambda: make_module(SHAPE))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory = tmp_path_factory.mktemp("demo") / "new"
    with small_module():
        return directory, demo(directory, frames=FRAMES)


def test_every_file_is_made_and_named(made: tuple[Path, list[str]]) -> None:
    directory, lines = made
    files = [*FILES, PICTURE] if find_spec("matplotlib") else FILES
    assert sorted(p.name for p in directory.iterdir()) == sorted(files)
    assert all(any(str(directory / name) in line for line in lines) for name in files)


def test_the_master_has_all_outputs_and_ids(made: tuple[Path, list[str]]) -> None:
    view = open_calibrated(made[0] / MASTER, "counts")
    assert view.shape == (FRAMES, *SHAPE)
    assert view["pulse_id"].values.tolist() == [FIRST_PULSE + 4 * n for n in range(FRAMES)]


def test_its_master_is_complete(made: tuple[Path, list[str]]) -> None:
    assert [f.code for f in validate(made[0] / MASTER) if f.severity != "note"] == []


def test_a_second_run_refuses_and_overwriting_replaces(made: tuple[Path, list[str]]) -> None:
    directory = made[0]
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    with small_module():
        with pytest.raises(OutputError, match="--overwrite"):
            demo(directory, frames=FRAMES)
        assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} == before
        demo(directory, frames=FRAMES, overwrite=True)
    after = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    assert all(after[name] > before[name] for name in before)


def test_progress_counts_the_frames(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with small_module():
        demo(tmp_path, frames=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_is_a_png_of_some_size(made: tuple[Path, list[str]]) -> None:
    content = (made[0] / PICTURE).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1400, 800)
    assert len(content) > 20_000


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_has_four_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    from gaincal import picture

    drawn: list[list[str]] = []
    monkeypatch.setattr(pyplot, "close", lambda figure: drawn.append([a.get_title() for a in figure.axes]))
    photons = np.random.default_rng(0).poisson(0.5, (2, *SHAPE)).astype(np.float32)
    photons[:, 0, 0] = np.nan
    stage = np.zeros(SHAPE, np.int8)
    stage[3, 4], stage[5, 6] = 1, -1
    picture.draw(tmp_path / "p.png", np.full(SHAPE, 3000, np.uint16), stage, photons[0], photons)
    titles = [title for title in drawn[0] if title]
    assert len(titles) == 4
    for word in ("raw", "stage", "calibrated", "spectrum"):
        assert any(word in title for title in titles)


def test_without_matplotlib_the_demo_says_how_to_get_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "find_spec", lambda _: None)
    with small_module():
        lines = demo(tmp_path, frames=1)
    assert any("gaincal[plot]" in line for line in lines)
    assert not (tmp_path / PICTURE).exists()


def test_any_number_of_frames_can_be_simulated(tmp_path: Path) -> None:
    with small_module():
        demo(tmp_path, frames=1)
    assert open_calibrated(tmp_path / MASTER).shape == (1, *SHAPE)


# --- the truth -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Module, Array]:
    directory = tmp_path_factory.mktemp("simulated")
    module = make_module((128, 160))
    frames, photons = (np.array(part) for part in zip(*make_frames(module, 6), strict=True))
    write_raw(directory / "raw.h5", frames)
    embed(
        directory / "raw.h5",
        directory / "master.nxs",
        formula="jungfrau",
        constants={"pedestal": module.pedestal, "gain": module.gain},
        settings={"photon_energy": PHOTON_ENERGY},
    )
    return directory / "master.nxs", module, photons


def test_calibrated_photons_are_the_simulated_ones_within_the_noise(simulated: tuple[Path, Module, Array]) -> None:
    master, _, truth = simulated
    dataset = open_calibrated_dataset(master, "photons")
    found, stage = dataset["photons"].values, dataset["stage"].values
    good = np.isfinite(found)
    assert good.mean() > 0.999
    for number, (noise, gain) in enumerate(zip(NOISE, TYPICAL_GAIN, strict=True)):
        sigma = np.hypot(noise, 0.3) / abs(gain) / PHOTON_ENERGY
        pulls = (found - truth)[good & (stage == number)] / sigma
        assert pulls.size > 30, f"stage {number} must be reached"
        assert np.abs(pulls).max() < 6.5
        assert np.abs(pulls.mean()) < 5 / np.sqrt(pulls.size)
        assert 0.8 < pulls.std() < 1.25


def test_counts_in_the_first_stage_are_exact(simulated: tuple[Path, Module, Array]) -> None:
    master, _, truth = simulated
    dataset = open_calibrated_dataset(master, "counts")
    first = (dataset["stage"].values == 0) & (dataset["flags"].values == 0)
    assert (dataset["counts"].values == truth)[first].all()


def test_dead_pixels_are_flagged() -> None:
    module = make_module((512, 1024))
    words, _ = next(make_frames(module, 1))
    assert module.dead.any()
    assert (words[module.dead] == 0x3FFF).all()


def test_the_simulation_is_the_same_every_time() -> None:
    first, second = ([words.tobytes() for words, _ in make_frames(make_module(SHAPE), 2)] for _ in range(2))
    assert first == second
