"""Reports of constants files: what was put into dark frames is what the page and its rules say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from matplotlib.figure import Figure

from gaincal.errors import FileError
from gaincal.nexus.atomic import atomic_output
from gaincal.nexus.constantsfile import ConstantsSet, ConstantsWriter, read_constants
from gaincal.quality.cells import Cells, cells_of_set
from gaincal.quality.planes import Plane, planes_of_set
from gaincal.quality.rules import BAD, DOUBTFUL, GOOD, NOT_JUDGED, Rule
from gaincal.quality.set_rules import judge_set, reason_counts, six_numbers_of_set
from gaincal.report import draw, figures
from gaincal.report.canvas import Stored
from gaincal.report.command import report
from gaincal.report.of_constants import stages_lacking
from gaincal.simulate import make_module
from gaincal.verbs.darks import darks

Array = npt.NDArray[Any]
MODULES, FRAMES, SHAPE = 3, 50, (32, 48)
NOISE = (15.0, 8.0, 8.0)
DEAD, NOISY = 7, 5


def make_set(
    directory: Path,
    name: str,
    shift: float = 0.0,
    stages: tuple[int, ...] = (0, 1, 2),
    loud: int | None = None,
    frames: int = FRAMES,
) -> Path:
    """Constants of dark frames with forced gains; some pixels of each module are dead, some noisy."""
    random = np.random.default_rng(3)
    with h5py.File(directory / f"{name}.h5", "w") as file:
        shape = (frames * len(stages), MODULES, *SHAPE)
        data = file.create_dataset("data", shape, np.uint16, chunks=(1, 1, *SHAPE), fletcher32=True)
        for k in range(MODULES):
            module = make_module(SHAPE, seed=k)
            for at, stage in enumerate(stages):
                width = np.full(SHAPE, NOISE[stage] * (5 if k == loud else 1))
                width[1, :NOISY] *= 12
                adc = np.rint(module.pedestal[stage] + shift + random.normal(0, 1, (frames, *SHAPE)) * width)
                adc[:, 0, :DEAD] = 100
                words = adc.astype(np.uint16) | np.uint16((0, 0x4000, 0xC000)[stage])
                data[at * frames : (at + 1) * frames, k] = words
    darks([directory / f"{name}.h5"], directory / f"{name}.nxs", formula="jungfrau_modules")
    return directory / f"{name}.nxs"


def judged(path: Path, previous: Path | None = None) -> tuple[ConstantsSet, dict[str, Rule]]:
    found = read_constants(path)
    before = [] if previous is None else planes_of_set(read_constants(previous))
    return found, {r.name: r for r in judge_set(found, stages_lacking(found), before)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sets")
    return {
        "good": make_set(directory, "good"),
        "moved": make_set(directory, "moved", shift=30.0, stages=(0, 1)),
        "loud": make_set(directory, "loud", loud=1),
        "few": make_set(directory, "few", frames=6),
    }


def test_a_healthy_set_is_good(sets: dict[str, Path]) -> None:
    found, rules = judged(sets["good"])
    assert {n: r.state for n, r in rules.items()} == {
        "stages-lacking": GOOD,
        "bad-pixels": GOOD,
        "odd-noise": GOOD,
        "pedestal-error": GOOD,
        "pedestal-moved": NOT_JUDGED,
    }
    assert rules["pedestal-error"].value == pytest.approx(1 / np.sqrt(FRAMES), rel=0.05)
    numbers = {n.name: n.value for n in six_numbers_of_set(found, [], list(rules.values()))}
    assert len(numbers) == 6
    assert numbers["stages"] == "3 of 3"
    assert float(numbers["noise"].split()[0]) == pytest.approx(NOISE[0], rel=0.05)
    assert numbers["words"] == str(FRAMES)


def test_a_stage_that_is_not_there_and_a_pedestal_that_moved_are_told(sets: dict[str, Path]) -> None:
    found, rules = judged(sets["moved"], sets["good"])
    assert stages_lacking(found) == [2]
    assert (rules["stages-lacking"].state, rules["stages-lacking"].value) == (DOUBTFUL, 1)
    assert rules["pedestal-moved"].state == DOUBTFUL
    assert rules["pedestal-moved"].value == pytest.approx(30 / NOISE[1], rel=0.1)
    assert rules["pedestal-moved"].where.endswith("stage 1")


def test_a_loud_module_and_too_few_frames_are_told(sets: dict[str, Path]) -> None:
    rule = judged(sets["loud"])[1]["odd-noise"]
    assert (rule.state, rule.where.split(",")[0]) == (BAD, "module 1")
    assert rule.value == pytest.approx(5, rel=0.1)
    assert judged(sets["few"])[1]["pedestal-error"].state in (DOUBTFUL, BAD)


def test_reasons_are_counted_by_stage(sets: dict[str, Path]) -> None:
    listed = reason_counts(read_constants(sets["good"]))
    pixels, counts = listed["dead"]
    assert int(pixels.sum()) >= MODULES * DEAD
    assert pixels[:, 0, :DEAD].all()
    assert set(counts) == {"0", "1", "2"}
    assert listed["noisy"][0][:, 1, :NOISY].all()


def test_the_page_says_so(sets: dict[str, Path], tmp_path: Path) -> None:
    done = report(sets["loud"], tmp_path / "r.html", previous=sets["good"])
    content = (tmp_path / "r.html").read_text("utf-8")
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert done.verdict == found["verdict"] == "bad"
    assert found["kind"] == "constants"
    assert found["stages"] == [0, 1, 2]
    assert found["lacking"] == []
    assert {p["name"] for p in found["planes"]} == {"pedestal", "noise"}
    assert {b["reason"] for b in found["bad_pixels"]} >= {"dead", "noisy"}
    for title in ("Bad pixels", "pedestal, stage 2", "pedestal, stage 2: change", "noise, stage 0: change"):
        assert f"<b>{title}.</b>" in content
    assert "http:" not in content


def test_a_module_without_dark_words_is_told_as_such(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "c.nxs") as written:
        writer = ConstantsWriter(written.file, (2, *SHAPE))
        for name, value, absent in (("pedestal", 3000.0, np.nan), ("counts", 100, 0)):
            writer.create(name, np.float32 if name == "pedestal" else np.uint32, "ADU", {"stage": ()})
            writer.put(name, (0,), np.stack([np.full(SHAPE, value), np.full(SHAPE, absent)]))
        writer.finish(np.zeros((2, *SHAPE), np.uint32), {}, {}, {})
    rule = judged(tmp_path / "c.nxs")[1]["pedestal-error"]
    assert (rule.state, rule.remark) == (BAD, "module 1, stage 0: most of its pixels have no dark words")


# --- what is drawn --------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    found: list[Figure] = []
    original = draw.png

    def png(figure: Figure, **options: Any) -> bytes:
        content = original(figure, **options)
        found.append(figure)
        return content

    monkeypatch.setattr(draw, "png", png)
    return found


@pytest.mark.parametrize(
    ("middle", "spread"),
    [(14100, 167), (13584, 153), (14500, 40), (14100, 1.3), (-0.1156, 0.0021), (-1.45, 0.033), (4000, 2.5), (3000, 0)],
)
def test_numbers_at_the_axes_of_a_map_do_not_run_into_each_other(
    drawn: list[Figure], middle: float, spread: float
) -> None:
    values = np.random.default_rng(0).normal(middle, spread, (128, 256))
    figures.of_plane(Plane("pedestal", "ADU", 0, values), Stored(values.shape))
    for axes in drawn[0].axes:
        boxes = [t.get_window_extent() for t in axes.get_xticklabels() if inside(t, axes.get_xlim())]
        assert len(boxes) > 0
        assert all(b.x0 - a.x1 > 2 for a, b in pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= drawn[0].bbox.x1 for box in boxes)


def inside(label: Any, limits: tuple[float, float]) -> bool:
    """Whether a label of an axis is drawn."""
    return bool(label.get_text()) and min(limits) <= label.get_position()[0] <= max(limits)


def test_a_map_says_how_many_pixels_have_no_value(drawn: list[Figure]) -> None:
    values = np.random.default_rng(0).normal(1, 0.1, (10, 20))
    canvas = Stored(values.shape)
    assert "without a value" not in figures.of_plane(Plane("gain", "ADU/keV", 1, values), canvas).caption
    values[:, :15] = np.nan
    plane = Plane("gain", "ADU/keV", 1, values)
    assert figures.of_plane(plane, canvas).caption.endswith(", 75.00 % without a value.")
    assert figures.of_difference(plane, plane, canvas).caption.endswith(", 75.00 % without a value.")
    assert len(drawn) == 3


def test_lines_of_cells_have_whole_cells_and_whole_numbers(drawn: list[Figure]) -> None:
    medians = 4000 + np.array([[0, 0.1, 0, 0.05]])
    figures.of_cells(Cells("offset", "ADU", 0, (0, 1, 2, 3), medians))
    axes = drawn[0].axes[0]
    assert all("." not in t.get_text() for t in axes.get_xticklabels())
    assert all(t.get_text().startswith(("4000", "3999")) for t in axes.get_yticklabels())
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_a_set_that_was_changed_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    changed = tmp_path / "changed.nxs"
    changed.write_bytes(sets["good"].read_bytes())
    with h5py.File(changed, "r+") as file:
        file["entry/constants/pixel_mask"][0, 0, 0] ^= 1
    with pytest.raises(FileError, match="checksum differs"):
        report(changed, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_set_without_pedestals_has_no_report(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "gain.nxs") as written:
        writer = ConstantsWriter(written.file, SHAPE)
        writer.create("gain", np.float32, "ADU/keV", {})
        writer.put("gain", (), np.ones(SHAPE))
        writer.finish(None, {}, {}, {})
    with pytest.raises(FileError, match=r"gain\.nxs.*has no pedestal"):
        report(tmp_path / "gain.nxs", tmp_path / "r.html")


def test_every_memory_cell_is_seen(tmp_path: Path) -> None:
    levels = 3000.0 + 10 * np.arange(8).reshape(4, 2)
    with atomic_output(tmp_path / "cells.nxs") as written:
        writer = ConstantsWriter(written.file, (2, *SHAPE))
        writer.create("pedestal", np.float32, "ADU", {"stage": (), "cell": (3, 5, 6, 9)})
        for k, cell in enumerate((3, 5, 6, 9)):
            writer.put("pedestal", (0, cell), np.broadcast_to(levels[k, :, None, None], (2, *SHAPE)))
        writer.finish(np.zeros((2, *SHAPE), np.uint32), {}, {}, {})
    (found,) = cells_of_set(read_constants(tmp_path / "cells.nxs"))
    assert (found.name, found.stage, found.cells) == ("pedestal", 0, (3, 5, 6, 9))
    np.testing.assert_array_equal(found.medians, levels.T)
    report(tmp_path / "cells.nxs", tmp_path / "r.html")
    assert "Memory cells" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["cells"][0]["medians"] == levels.T.tolist()
