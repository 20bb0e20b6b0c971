"""Pictures of frames: every pixel where it belongs, rings where they belong, and one line where there is nothing."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Command, build_run, make_constants, make_words, write_raw

pytest.importorskip("matplotlib")

from gaincal.errors import OutputError, RequestError
from gaincal.geometry.panels import Geometry, Panel
from gaincal.nexus.read import open_master
from gaincal.quality.look import look_at
from gaincal.quality.rules import percent
from gaincal.report import show as show_module
from gaincal.report.canvas import GAP, Stored, mean_of
from gaincal.report.laboratory import Laboratory, faces_the_beam, rings
from gaincal.report.show import show
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
PITCH = 1e-4
AXES = ((-PITCH, 0.0, 0.0), (0.0, -PITCH, 0.0))
"""Of a panel: columns to the right as the sample sees it, rows down."""


def two_panels(tilt: float = 0.0) -> Geometry:
    """One panel upright, one a quarter turn, beside the beam; both tilted around x."""
    c, s = math.cos(tilt), math.sin(tilt)
    right, up, left, down = (-PITCH, 0, 0), (0, PITCH * c, PITCH * s), (PITCH, 0, 0), (0, -PITCH * c, -PITCH * s)
    first = Panel("a", 0, 0, 0, 20, 30, (-0.001, 0.003 * c, 0.003 * s), right, down, 1 / PITCH)
    second = Panel("b", 1, 0, 0, 20, 30, (0.002, -0.001 * c, -0.001 * s), up, left, 1 / PITCH)
    return Geometry((first, second), 0.1)


def ramp(pixels: tuple[int, ...]) -> Array:
    return np.arange(math.prod(pixels), dtype=np.float32).reshape(pixels)


def point_of(canvas: Laboratory, x: float, y: float) -> tuple[int, int]:
    """Row and column of the picture that show a place in mm."""
    left, _, _, top = canvas.extent
    return int((top - y) / canvas.point), int((left - x) / canvas.point)


def test_every_pixel_is_where_the_geometry_puts_it() -> None:
    geometry = two_panels()
    values = ramp((2, 20, 30))
    canvas = Laboratory(geometry)
    image = canvas.image(values)
    assert canvas.step == 1
    places = 1e3 * geometry.positions()[..., :2]
    for index in np.ndindex(values.shape):
        row, column = point_of(canvas, *places[index])
        assert image[row, column] == values[index], index
    assert np.isfinite(image).sum() == pytest.approx(values.size, rel=0.06)


def test_x_points_to_the_left_and_y_up() -> None:
    canvas = Laboratory(two_panels())
    left, right, bottom, top = canvas.extent
    assert left > 0 > right
    assert top > 0 > bottom


def test_large_detectors_show_the_highest_of_several_pixels() -> None:
    values = np.zeros((2, 20, 30), np.float32)
    values[0, 7, 11] = 5
    canvas = Laboratory(two_panels(), edge=20)
    assert canvas.step > 1
    assert np.nanmax(canvas.image(values)) == 5
    assert 0 < np.nanmax(canvas.image(values, mean_of)) < 5


def test_gaps_narrower_than_a_point_do_not_look_like_broken_columns() -> None:
    """Eight ASICs in a row, 2 pixels apart, in a picture whose points are 8 pixels wide: no point is a gap."""
    size, gap = 256, 2
    panels = [
        Panel(str(k), k, 0, 0, size, size, (PITCH * (4 * size - k * (size + gap)), 0.01, 0), *AXES, 1 / PITCH)
        for k in range(8)
    ]
    canvas = Laboratory(Geometry(tuple(panels), 0.1), edge=size)
    assert canvas.step == 8
    image = canvas.image(np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, size, size)))
    middle = image[image.shape[0] // 2]
    first, last = np.flatnonzero(np.isfinite(middle))[[0, -1]]
    counts = np.unique(middle[first : last + 1], return_counts=True)[1]
    assert counts == pytest.approx([1e3 * PITCH * size / canvas.point] * 8, abs=2)


def test_a_rim_covers_no_other_panel_and_no_wide_gap() -> None:
    """A point shows the panel that its middle is on, whatever value is there."""
    size, gap = 64, 24
    places = [0, size, 2 * size + gap]
    panels = [
        Panel(str(k), k, 0, 0, size, size, (-PITCH * at, 0.01, 0), *AXES, 1 / PITCH) for k, at in enumerate(places)
    ]
    geometry = Geometry(tuple(panels), 0.1)
    canvas = Laboratory(geometry, edge=(3 * size + gap) // 8)
    assert canvas.step > 4
    values = np.ones((3, size, size), np.float32)
    values[1] = np.nan
    image = canvas.image(values)
    x = canvas.x / 1e3 / PITCH
    empty = np.isnan(image[image.shape[0] // 2])
    assert empty[(-x > size) & (-x < 2 * size)].all()
    assert empty[(-x > 2 * size + 0.5 * canvas.step + 1) & (-x < places[2] - 0.5 * canvas.step - 1)].all()
    assert not empty[(-x > 0) & (-x < size) | (-x > places[2]) & (-x < places[2] + size)].any()


def test_labels_of_rings_have_room() -> None:
    """Also of those that only cross the corners of the picture."""
    size = 200
    corner = (PITCH * size / 2, PITCH * size / 2, 0.0)
    canvas = Laboratory(Geometry((Panel("a", 0, 0, 0, size, size, corner, *AXES, 1 / PITCH),), 0.02))
    angles = canvas.two_theta()
    left, right, bottom, top = canvas.extent
    for angle, _ in rings(angles, None):
        x, y = canvas.label_place(angles, angle)
        assert math.atan2(math.hypot(x, y), 20) == pytest.approx(angle, abs=0.02)
        assert min(left - x, x - right, y - bottom, top - y) > 0.055 * (left - right)


@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_angles_are_those_of_the_pixels(tilt: float) -> None:
    geometry = two_panels(tilt)
    canvas = Laboratory(geometry)
    angles = canvas.two_theta()
    positions = geometry.positions()
    for index in ((0, 0, 0), (0, 19, 29), (1, 10, 3)):
        x, y, z = positions[index]
        row, column = point_of(canvas, 1e3 * x, 1e3 * y)
        assert angles[row, column] == pytest.approx(math.atan2(math.hypot(x, y), z), abs=PITCH / 0.1)


def test_rings_are_bragg_spacings() -> None:
    angles = np.linspace(0, 0.8, 100)
    found = rings(angles, 12.4)
    assert len(found) == 4
    for angle, text in found:
        assert float(text.split()[0]) == pytest.approx(12.39842 / 12.4 / (2 * math.sin(angle / 2)), rel=1e-5)
    assert [a for a, _ in found] == sorted(a for a, _ in found)
    degrees = rings(angles, None)
    assert all(math.degrees(a) == pytest.approx(float(t[:-1])) for a, t in degrees)


def test_a_detector_seen_from_the_side_is_noticed() -> None:
    assert faces_the_beam(two_panels(0.5))
    assert not faces_the_beam(two_panels(1.3))


def test_modules_of_a_stack_lie_beside_each_other() -> None:
    values = ramp((6, 10, 12))
    canvas = Stored(values.shape)
    image = canvas.image(values)
    assert np.isfinite(image).sum() == values.size
    places = [np.argwhere(image == values[k, 0, 0])[0].tolist() for k in range(6)]
    across = len({x for _, x in places})
    assert places == [[k // across * (10 + GAP), k % across * (12 + GAP)] for k in range(6)]


@pytest.mark.parametrize("pixels", [(64,), (48, 64), (5, 48, 64)])
def test_stored_pixels_are_binned_by_their_highest(pixels: tuple[int, ...]) -> None:
    values = ramp(pixels)
    canvas = Stored(pixels, edge=32)
    image = canvas.image(values)
    assert max(image.shape) <= 32
    assert np.nanmax(image) == values.max()


# --- looking --------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [0, 4, -1])
def test_a_look_is_what_plain_numpy_finds(tmp_path: Path, frame: int) -> None:
    run = build_run(tmp_path, (6, 8, 16))
    master = open_master(run.master)
    with master.resolver:
        look = look_at(master, frame)
    values, flags = run.expected("energy")
    np.testing.assert_array_equal(look.values, values[frame])
    np.testing.assert_array_equal(look.flags, flags[frame])
    np.testing.assert_array_equal(look.stage, run.steps["stage"][frame])
    np.testing.assert_array_equal(look.words["raw"], run.words[frame])
    counts = {n: int((flags[frame] >> np.uint32(b) & 1).sum()) for n, b in look.bits.items()}
    assert look.reasons() == {n: c for n, c in counts.items() if c}
    assert list(look.reasons().values()) == sorted(look.reasons().values(), reverse=True)


def test_sentinels_are_no_values(tmp_path: Path) -> None:
    run = build_run(tmp_path, (6, 8, 16))
    master = open_master(run.master)
    with master.resolver:
        look = look_at(master, 2, "counts")
    np.testing.assert_array_equal(np.isnan(look.values), run.expected("counts", "int32")[0][2] == -(2**31))


# --- drawing --------------------------------------------------------------------------------


def flat(directory: Path, shape: tuple[int, ...] = (3, 40, 60), **settings: Any) -> Path:
    """A master of a single flat module with a place."""
    directory.mkdir(exist_ok=True)
    write_raw(directory / "raw.h5", make_words(shape))
    pedestal, gain = make_constants(shape[1:])
    stated = {"photon_energy": 12.4, "pixel_size": 75e-6, "distance": 0.1, "beam_center_x": 20, "beam_center_y": 9.5}
    stated |= settings
    constants = {"pedestal": pedestal, "gain": gain}
    embed(directory / "raw.h5", directory / "m.nxs", formula="jungfrau", constants=constants, settings=stated)
    return directory / "m.nxs"


def size_of(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_a_frame_is_drawn_where_its_pixels_are(tmp_path: Path) -> None:
    done = show(flat(tmp_path), tmp_path / "p.png", frame=-1)
    assert done.laboratory
    assert (done.frame, done.frames, done.output, done.units, done.notes) == (2, 3, "energy", "keV", [])
    width, height = size_of(tmp_path / "p.png")
    assert width == 1650
    assert 800 < height < 1700


def test_pixels_are_drawn_as_stored_if_asked_for_or_if_nobody_knows_better(tmp_path: Path) -> None:
    assert not show(flat(tmp_path), tmp_path / "p.png", stored=True).laboratory
    run = build_run(tmp_path / "stack", (2, 3, 8, 16), "modules")
    done = show(run.master, tmp_path / "s.png", output="counts")
    assert (done.laboratory, done.units, done.ids) == (False, "photon", {"pulse_id": int(run.pulses[0])})
    assert size_of(tmp_path / "s.png")[0] == 1650


def test_panels_say_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    original = show_module.png
    monkeypatch.setattr(show_module, "png", lambda figure: drawn.append(figure) or original(figure))
    done = show(flat(tmp_path), tmp_path / "p.png")
    main_panel, stage, flags = drawn[0].axes
    assert "calibrated" in main_panel.get_title()
    texts = [t.get_text() for t in flags.get_legend().get_texts()]
    assert [t.split()[0] for t in texts] == ["good", *done.flags]
    assert all(str(done.flags[t.split()[0]]) in t for t in texts[1:])
    assert {t.get_text().split("  ")[0] for t in stage.get_legend().get_texts()} >= {"stage 0", "stage 1", "none"}
    assert main_panel.get_xlim()[0] > main_panel.get_xlim()[1]
    labels = [t.get_text() for t in main_panel.texts]
    assert any(t.endswith("\N{LATIN CAPITAL LETTER A WITH RING ABOVE}") for t in labels)


def test_names_from_files_are_no_formulas_of_mathtext(tmp_path: Path) -> None:
    source = flat(tmp_path)
    odd = tmp_path / "$\\frac{1}$.nxs"
    odd.write_bytes(source.read_bytes())
    show(odd, tmp_path / "p.png")
    assert size_of(tmp_path / "p.png")[0] == 1650


def test_a_window_opens_where_a_display_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    opened: list[int] = []
    plt.close("all")  # whatever other tests of this process have left
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: opened.extend(plt.get_fignums()))
    try:
        assert show(flat(tmp_path), None).path is None
    finally:
        plt.close("all")
    assert len(opened) == 1


REFUSED: dict[str, tuple[int, str]] = {
    "show {d}/m.nxs": (2, "-o FILE.png"),
    "show {d}/m.nxs -o {d}/p.pdf": (2, "call it .png"),
    "show {d}/m.nxs -o {d}/p.png --frame 3": (2, "the run has 3"),
    "show {d}/m.nxs -o {d}/p.png --output electrons": (2, "electrons"),
    "show {d}/raw.h5 -o {d}/p.png": (4, "has no calibration"),
    "show {d}/m.nxs -o {d}/there.png": (7, "exists already"),
    "show {d}/m.nxs -o {d}/nowhere/p.png": (7, "cannot be written"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gaincal: Command, command: str) -> None:
    for name in show_module.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    flat(tmp_path)
    (tmp_path / "there.png").write_bytes(b"precious")
    code, words = REFUSED[command]
    shown = gaincal(*command.format(d=tmp_path).split())
    assert shown.code == code
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "p.png").exists()
    assert (tmp_path / "there.png").read_bytes() == b"precious"


def test_the_command_says_what_it_drew(tmp_path: Path, gaincal: Command) -> None:
    master = flat(tmp_path)
    found = gaincal("show", master, "-o", tmp_path / "p.png", "--json").json
    assert set(found) == {"path", "frame", "frames", "output", "units", "ids", "flags", "laboratory", "notes"}


def test_the_file_that_is_read_is_no_output(tmp_path: Path) -> None:
    master = flat(tmp_path)
    (tmp_path / "m.png").symlink_to(master)
    with pytest.raises(RequestError, match="which is read"):
        show(master, tmp_path / "m.png", overwrite=True)
    show(master, tmp_path / "p.png")
    with pytest.raises(OutputError):
        show(master, tmp_path / "p.png")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.99999, "> 99.99 %"), (0.5, "50.00 %"), (1e-7, "1e-05 %"), (math.nan, "?")],
)
def test_shares_are_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text
