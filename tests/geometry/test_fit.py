"""Geometries fitted to words: stacks, slabs, modules cut into ASICs, gaps closed, parts found."""

from __future__ import annotations

import numpy as np
import pytest
from geom import HEAD, panel

from gaincal.errors import BindError
from gaincal.geometry.arm import STILL, Arm, beam_center
from gaincal.geometry.crystfel import parse_geom
from gaincal.geometry.fit import as_slab, fitted, split_asics
from gaincal.geometry.panels import Geometry
from gaincal.geometry.square import squared
from gaincal.geometry.tree import nodes
from gaincal.sources.run import jungfrau_maps

JUNGFRAU = "clen = 0.1\nres = 13333.3333333\n"


def modules(rows: int, columns: int, count: int = 2, stacked: bool = False, head: str = JUNGFRAU) -> Geometry:
    """Modules one below the other in the data, apart and turned in space."""
    text = head + ("dim0 = %\ndim2 = ss\ndim3 = fs\n" if stacked else "")
    for k in range(count):
        top = 0 if stacked else k * rows
        box = (0, columns - 1, top, top + rows - 1)
        text += panel(f"m{k}", box, x=1000.0 * k, y=-700.0 * k, fs="-0.6x +0.8y", ss="-0.8x -0.6y")
        text += f"m{k}/dim1 = {k}\n" if stacked else ""
    return parse_geom(text)


@pytest.mark.parametrize("stacked", [False, True])
def test_stack_and_slab_are_the_same_pixels(stacked: bool) -> None:
    given = modules(40, 30, stacked=stacked)
    as_stack, slab = fitted(given, (2, 40, 30)), fitted(given, (80, 30))
    assert (as_stack.pixels, slab.pixels) == ((2, 40, 30), (80, 30))
    np.testing.assert_array_equal(as_stack.positions().reshape(80, 30, 3), slab.positions())
    np.testing.assert_array_equal(as_slab(as_stack, 42).positions()[42:82], as_stack.positions()[1])


@pytest.mark.parametrize("pixels", [(40, 30), (81, 30), (80, 31), (1, 40, 30), (2, 41, 30), (2, 30, 40)])
def test_other_pixels_are_refused(pixels: tuple[int, ...]) -> None:
    with pytest.raises(BindError, match=r"is for data of \(80, 30\), the words of a frame are"):
        fitted(modules(40, 30), pixels)


def test_a_panel_across_two_modules_is_refused() -> None:
    with pytest.raises(BindError, match="is for data of"):
        fitted(parse_geom(HEAD + panel(box=(0, 9, 0, 19))), (2, 10, 10))


def test_an_absent_module_leaves_a_hole() -> None:
    given = modules(40, 30, stacked=True)
    positions = fitted(given, (3, 40, 30)).positions((3, 40, 30))
    assert np.isfinite(positions[:2]).all()
    assert np.isnan(positions[2]).all()


@pytest.mark.parametrize("size", [(512, 1024), (514, 1030)])
def test_cutting_modules_of_jungfrau_into_chips_moves_no_pixel(size: tuple[int, int]) -> None:
    given = modules(*size)
    cut = split_asics(given)
    assert len(cut.panels) == 16
    assert cut.levels == ("module", "asic")
    assert cut.panels[9].parents == ("m1",)
    np.testing.assert_allclose(cut.positions(), given.positions(), atol=1e-15)


def test_chips_take_the_place_of_their_pixels_in_the_drawing() -> None:
    """Plain pixels lie exactly where the drawing has them; wide ones half a pixel beside their centres."""
    given = modules(514, 1030)
    chips = fitted(given, (2, 512, 1024))
    assert len(chips.panels) == 16
    assert {(p.rows, p.columns) for p in chips.panels} == {(256, 256)}
    drawn = given.positions().reshape(2, 514, 1030, 3)
    rows = np.arange(512) + 2 * (np.arange(512) // 256)
    columns = np.arange(1024) + 2 * (np.arange(1024) // 256)
    found = chips.positions()
    plain = drawn[:, rows[:, None], columns]
    np.testing.assert_allclose(found, plain, atol=1e-15)
    # The centre of a wide pixel is that of the two pixels of the drawing that it covers.
    wide = (drawn[:, 100, 255] + drawn[:, 100, 256]) / 2
    np.testing.assert_allclose(np.linalg.norm(found[:, 100, 255] - wide, axis=-1), 75e-6 / 2, rtol=1e-6)
    area = jungfrau_maps((512, 1024))["pixel_area"]
    assert (area[100, 255], area[100, 256], area[100, 254]) == (2, 2, 1)


def test_modules_in_halves_are_cut_whatever_they_were_taken_for() -> None:
    text = JUNGFRAU + "".join(panel(f"m{k}", (0, 1029, 514 * k, 514 * k + 513), x=2000.0 * k) for k in range(4))
    halves = parse_geom(text + "group_top = m0,m1\ngroup_low = m2,m3\n")
    assert halves.levels == ("module", "asic")
    cut = fitted(halves, (4, 512, 1024))
    assert (len(cut.panels), cut.levels) == (32, ("quadrant", "module", "asic"))
    assert cut.panels[31].parents == ("low", "m3")


def test_a_bad_region_is_cut_with_its_panel() -> None:
    region = "badA/min_ss = 200\nbadA/max_ss = 300\nbadA/min_fs = 250\nbadA/max_fs = 260\nbadA/panel = m0\n"
    text = JUNGFRAU + panel("m0", (0, 1029, 0, 513)) + region
    given = parse_geom(text)
    drawn = fitted(given, (514, 1030)).bad_pixels((514, 1030))
    np.testing.assert_array_equal(drawn, given.bad_pixels((514, 1030)))
    assert drawn.sum() == 101 * 11
    words = fitted(given, (512, 1024)).bad_pixels((512, 1024))
    expected = np.zeros((512, 1024), bool)
    expected[200:299, 250:259] = True
    np.testing.assert_array_equal(words, expected)


def test_other_detectors_are_not_cut() -> None:
    assert len(fitted(modules(512, 1024, head="clen = 0.1\nres = 10000\n"), (2, 512, 1024)).panels) == 2


# --- parts -----------------------------------------------------------------------------------


def named(*names: str, groups: str = "") -> Geometry:
    text = "".join(panel(name, (0, 9, 5 * k, 5 * k + 4)) for k, name in enumerate(names))
    return parse_geom(HEAD + text + groups)


@pytest.mark.parametrize(
    ("names", "groups", "levels", "parents", "rule"),
    [
        (("q0m1a2", "q0m1a3", "q1m0a0"), "", ("quadrant", "module", "asic"), ("q0", "q0m1"), "names"),
        (("p12a0", "p12a1"), "", ("module", "asic"), ("p12",), "names"),
        (("q0a0", "q1a0"), "", ("quadrant", "asic"), ("q0",), "names"),
        (("left", "right"), "", ("module",), (), "flat"),
        (("a", "b", "c"), "group_m0 = a\ngroup_m1 = b,c\ngroup_all = m0,m1\n", ("module", "asic"), ("m0",), "groups"),
        (("a", "b", "c"), "group_q0 = a\ngroup_q1 = b,c\n", ("quadrant", "module"), ("q0",), "groups"),
        (("a", "b", "c"), "group_q0 = a,b\ngroup_q1 = b,c\n", ("module",), (), "flat"),
        (("a", "b", "c"), "group_q0 = a\n", ("module",), (), "flat"),
    ],
)
def test_parts_are_found(
    names: tuple[str, ...], groups: str, levels: tuple[str, ...], parents: tuple[str, ...], rule: str
) -> None:
    found = named(*names, groups=groups)
    assert found.levels == levels
    assert found.panels[0].parents == parents
    assert found.rule.startswith(rule)


def test_a_known_detector_has_quadrants() -> None:
    found = modules(512, 128, 16, stacked=True, head="clen = 1\nres = 5000\n")
    assert found.rule == "table of AGIPD 1M"
    assert [p.parents for p in found.panels[3:5]] == [("q0",), ("q1",)]
    assert len(split_asics(found).panels) == 128


def test_labels_use_the_numbers_of_names_where_they_differ() -> None:
    found = named("q0m1a2", "q0m1a3", "q1m0a0")
    assert [n.label for n in nodes(found)] == [
        *("D0", "D0Q0", "D0Q0M1", "D0Q0M1A2", "D0Q0M1A3"),
        *("D0Q1", "D0Q1M0", "D0Q1M0A0"),
    ]
    assert [n.label for n in nodes(named("left", "right"))] == ["D0", "D0M0", "D0M1"]


# --- arm, right angles -----------------------------------------------------------------------


def test_the_beam_center_of_one_panel_counts_along_its_rows_and_columns() -> None:
    found = parse_geom(HEAD + panel(x=3.0, y=4.0, fs="-x", ss="-y"))
    assert beam_center(found, STILL) == pytest.approx((3e-4, 4e-4), abs=1e-15)
    moved = beam_center(found, Arm(x=1e-4, y=-1e-4))
    assert moved == pytest.approx((4e-4, 3e-4), abs=1e-15)
    turned = beam_center(found, Arm(two_theta=45.0, axis=(0, 1, 0)))
    assert turned == pytest.approx((3e-4 + 0.1, 4e-4), abs=1e-12)
    assert beam_center(found, Arm(two_theta=90.1, axis=(0, 1, 0))) is None


def test_the_beam_center_of_several_panels_counts_from_the_upper_left_as_the_sample_sees_it() -> None:
    found = modules(40, 30)
    corners = found.corners()
    assert beam_center(found, STILL) == pytest.approx((corners[..., 0].max(), corners[..., 1].max()), abs=1e-15)


def test_rounded_directions_are_made_perpendicular() -> None:
    given = parse_geom(HEAD + panel(box=(0, 191, 0, 175), fs="-0.003266x -0.999993y", ss="+0.999994x -0.003263y"))
    better, moved, skewed = squared(given)
    (p,) = better.panels
    cosine = np.dot(p.fast, p.slow) / np.linalg.norm(p.fast) / np.linalg.norm(p.slow)
    assert abs(cosine) < 1e-15
    assert not skewed
    shift = np.linalg.norm(better.positions() - given.positions(), axis=-1).max()
    assert 0 < shift <= moved < 0.05e-6
    np.testing.assert_allclose(np.linalg.norm(p.fast), np.linalg.norm(given.panels[0].fast), rtol=1e-14)


def test_a_skewed_panel_stays_as_it_is() -> None:
    given = parse_geom(HEAD + panel(fs="x +0.1y", ss="y"))
    assert squared(given) == (given, 0.0, ["p0"])
