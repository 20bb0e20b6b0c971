"""CrystFEL's .geom text: what is understood, what is refused, and that nothing is lost on the way through."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from geom import HEAD, panel

from gaincal.errors import FileError, RequestError, TrustError
from gaincal.geometry.crystfel import parse_geom, read_geom, stated_beam
from gaincal.geometry.crystfel_lines import MAX_BYTES, MAX_PANELS
from gaincal.geometry.crystfel_text import to_geom
from gaincal.geometry.panels import BadRegion, Geometry, Group


def test_a_panel_in_metres() -> None:
    found = parse_geom("clen = 98.6 mm ; measured\nres = 10000\n" + panel(fs="-0.5x +0.25y - 1e-1z", ss="+x"))
    (only,) = found.panels
    assert (only.row, only.column, only.rows, only.columns, only.module) == (0, 0, 5, 10, None)
    assert only.corner == (-5 / 10000, 2 / 10000, 0.0)
    assert only.fast == (-0.5 / 10000, 0.25 / 10000, -0.1 / 10000)
    assert only.slow == (1 / 10000, 0.0, 0.0)
    assert found.distance == 98.6 / 1000
    assert found.pixels == (5, 10)


def test_positions_are_those_of_pixel_centres_and_nan_elsewhere() -> None:
    found = parse_geom(HEAD + panel(box=(2, 4, 1, 2)) + "p0/coffset = 0.02\n")
    positions = found.positions((4, 6))
    assert positions.shape == (4, 6, 3)
    assert np.isnan(positions[0]).all()
    assert np.isnan(positions[:, 5]).all()
    np.testing.assert_allclose(positions[1, 2], [-4.5e-4, 2.5e-4, 0.12], atol=1e-15)
    np.testing.assert_allclose(positions[2, 4], [-2.5e-4, 3.5e-4, 0.12], atol=1e-15)


def test_defaults_hold_for_panels_that_come_later_only() -> None:
    text = HEAD + "adu_per_eV = 1\n" + panel("a") + "adu_per_eV = 2\nres = 20000\n" + panel("b", (0, 9, 5, 9))
    a, b = parse_geom(text + "a/max_adu = 7\n").panels
    assert (dict(a.carried), a.resolution) == ({"adu_per_eV": "1", "max_adu": "7"}, 10000)
    assert (dict(b.carried), b.resolution) == ({"adu_per_eV": "2"}, 20000)


def test_modules_are_dims_with_a_fixed_index() -> None:
    text = HEAD + "dim0 = %\ndim2 = ss\ndim3 = fs\n" + panel("a") + "a/dim1 = 3\n" + panel("b") + "b/dim1 = 0\n"
    found = parse_geom(text)
    assert [p.module for p in found.panels] == [3, 0]
    assert found.pixels == (4, 5, 10)


def test_the_distance_may_stand_in_the_data_files_and_must_be_stated_then() -> None:
    found = parse_geom("clen = /LCLS/EncoderValue mm\ncoffset = 0.5\nres = 1e4\n" + panel())
    assert (found.distance, found.distance_from) == (None, "/LCLS/EncoderValue mm")
    with pytest.raises(RequestError, match=r"stands in the data files, at '/LCLS/EncoderValue mm'; state it: distance"):
        found.positions()
    np.testing.assert_allclose(found.placed_at(0.2).positions()[..., 2], 0.2, atol=1e-16)


def test_panels_may_have_distances_of_their_own() -> None:
    text = HEAD + panel("a") + panel("b", (0, 9, 5, 9)) + "b/clen = 0.3\nb/coffset = -0.05\n"
    found = parse_geom(text)
    np.testing.assert_allclose(found.positions()[[0, 5], 0, 2], [0.1, 0.25], atol=1e-15)


@pytest.mark.parametrize(
    ("line", "beam"),
    [
        ("photon_energy = 9300", ("photon_energy", 9.3)),
        ("photon_energy = 9.3 keV", ("photon_energy", 9.3)),
        ("photon_energy = 9300 eV", ("photon_energy", 9.3)),
        ("wavelength = 1.5 A", ("wavelength", 1.5)),
        ("wavelength = 1.5e-10 m", ("wavelength", 1.5)),
        ("photon_energy = /LCLS/photon_energy_eV", None),
        ("photon_energy = -1", None),
        ("wavelength = 1.5", None),
    ],
)
def test_the_beam_is_told_where_it_is_stated(line: str, beam: tuple[str, float] | None) -> None:
    found = stated_beam(parse_geom(f"{line}\n{HEAD}{panel()}"))
    assert (found is None) == (beam is None)
    if found and beam:
        assert found[0] == beam[0]
        assert found[1] == pytest.approx(beam[1], rel=1e-15)


EVERYTHING = """; comment
photon_energy = /path/to/energy
clen = 0.0986
coffset = -0.0003
res = 13333.3
adu_per_eV = 0.11 ; a default
mask0_data = /mask
mask0_badbits = 0xffff
max_adu = 250000
dim0 = %
dim2 = ss
dim3 = fs
badB/min_x = -11.5
badB/max_x = 12
badB/min_y = -110
badB/max_y = 1.2e2
"""


def everything() -> Geometry:
    rng = np.random.default_rng(5)
    text = EVERYTHING
    for k in range(8):
        a, b = rng.normal(size=2)
        name, box = f"p{k // 2}a{k % 2}", (0, 9, 5 * (k % 2), 5 * (k % 2) + 4)
        text += panel(name, box, *rng.normal(0, 1000, 2), fs=f"{a:+}x {b:+}y +1e-3z", ss=f"{-b:+.6f}x {a:+.6f}y")
        text += f"{name}/dim1 = {k // 2}\n{name}/no_index = {k % 2}\n"
    text += "rigid_group_q0 = p0a0,p0a1,p1a0,p1a1\nrigid_group_q1 = p2a0,p2a1,p3a0,p3a1\n"
    text += "".join(f"rigid_group_p{k} = p{k}a0,p{k}a1\n" for k in range(4))
    text += "rigid_group_collection_quadrants = q0,q1\n"
    text += "badA/min_ss = 6\nbadA/max_ss = 7\nbadA/min_fs = 0\nbadA/max_fs = 3\nbadA/panel = p1a1\n"
    return parse_geom(text)


def test_text_geometry_text_geometry_is_the_same_to_the_last_bit() -> None:
    first = everything()
    again = parse_geom(to_geom(first))
    assert again == first
    assert to_geom(again) == to_geom(first)
    assert first.bad == (BadRegion("badB", None, (-11.5, 12, -110, 120)), BadRegion("badA", "p1a1", (1, 2, 0, 3)))
    assert first.groups[0] == Group("q0", ("p0a0", "p0a1", "p1a0", "p1a1"), True)
    assert first.collections == (("quadrants", ("q0", "q1")),)


def test_bad_regions_and_panels_not_to_be_used() -> None:
    bad = everything().bad_pixels((4, 10, 10))
    assert bad[:, 5:].all()  # no_index = 1
    assert not bad[1, :5].all()
    one = parse_geom(HEAD + panel(x=-5, y=-2) + "badX/min_x = -1\nbadX/max_x = 1\nbadX/min_y = 0\nbadX/max_y = 1\n")
    np.testing.assert_array_equal(np.argwhere(one.bad_pixels((5, 10))), [[2, 4], [2, 5]])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no panels"),
        ("hello", "line 1: 'hello' is not NAME = VALUE"),
        (HEAD + "a/colour = red", "line 3: 'colour' is no field"),
        (HEAD + "colour = red", "line 3: 'colour' is no field"),
        (HEAD + "detector_shift_x = 1", "line 3: 'detector_shift_x' is not understood; add it to corner_x"),
        (HEAD + panel() + "p0/res = nan", "res = nan: not a finite number"),
        (HEAD + panel() + "p0/res = 1e999", "res = 1e999: not a finite number"),
        (HEAD + panel() + "p0/res = 0", "res must be above zero"),
        (HEAD + panel() + "p0/res = __import__('os')", "not a finite number"),
        (HEAD + panel() + "p0/min_fs = -1", "not a whole number from 0"),
        (HEAD + panel() + "p0/min_fs = 1.5", "not a whole number from 0"),
        (HEAD + panel() + "p0/max_fs = 99999999999", "not a whole number from 0"),
        (HEAD + panel() + "p0/min_fs = 50", "above its max"),
        (HEAD + panel() + "p0/fs = 1x 2x", "not a direction"),
        (HEAD + panel() + "p0/fs = 1x 2y", "not a direction"),
        (HEAD + panel() + "p0/fs = 0x +0y", "has no length"),
        (HEAD + panel() + "p0/fs = y", "fs and ss are parallel"),
        (HEAD + panel() + "p0/fs = 1e300x\np0/res = 1e-300", "beyond all measure"),
        (HEAD + panel() + f"p0/fs = x{' ' * 100_000}q", "longer than 65536"),
        (HEAD + panel() + f"p0/fs = x{' ' * 10_000}q", "not a direction"),
        (HEAD + panel() + "p0/dim0 = fs\np0/dim1 = ss", "fs after ss"),
        (
            HEAD + panel() + "p0/dim0 = %\np0/dim1 = 0\np0/dim2 = 3\np0/dim3 = ss\np0/dim4 = fs",
            "at most are understood",
        ),
        (HEAD + panel("a") + panel("b"), "panels a and b have a pixel of the data in common"),
        (HEAD + panel("a") + panel("b", (0, 9, 5, 9)) + "b/clen = /somewhere", "from different places"),
        (HEAD + panel("a") + "dim0 = 0\ndim1 = ss\ndim2 = fs\n" + panel("b"), "of different dimensions"),
        ("clen = 5 feet\nres = 1\n" + panel(), "line 1: clen = 5 feet: the unit must be m or mm"),
        ("clen = 1\n" + panel(), "panel p0 has no res"),
        (HEAD + panel() + "rigid_group_q0 = p0,p1", "neither a panel nor a group p1"),
        (HEAD + panel() + "group_a = b\ngroup_b = a", "contains itself"),
        (HEAD + panel() + "group_a = a", "contains itself"),
        (HEAD + "group_a/res = 3", "cannot be a panel"),
        (HEAD + panel() + "bad/min_x = 3", "bad needs"),
        (HEAD + panel() + "badx/min_ss=1\nbadx/max_ss=2\nbadx/min_fs=1\nbadx/max_fs=2\nbadx/panel=q", "no panel q"),
        (HEAD + "p\x1b[31m/res = 1", "other than printable ASCII"),
        (HEAD + "a b/res = 1", "cannot be a name"),
        (HEAD + "x" * 100 + "/res = 1", "cannot be a name"),
        ("".join(f"p{k}/res = 1\n" for k in range(MAX_PANELS + 1)), f"more than {MAX_PANELS} panels"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_the_place(text: str, complaint: str) -> None:
    with pytest.raises(FileError, match=re.escape(complaint)) as caught:
        parse_geom(text, "my.geom")
    assert str(caught.value).startswith("my.geom")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.code == "geometry"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be opened"):
        read_geom(tmp_path / "absent.geom")
    with pytest.raises(TrustError, match="is not a regular file"):
        read_geom(tmp_path)
    os.mkfifo(tmp_path / "pipe.geom")
    with pytest.raises(TrustError, match="is not a regular file"):
        read_geom(tmp_path / "pipe.geom")
    large = tmp_path / "large.geom"
    large.write_bytes(b";" * (MAX_BYTES + 1))
    with pytest.raises(FileError, match="longer than 4 MiB"):
        read_geom(large)
    binary = tmp_path / "binary.geom"
    binary.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(FileError, match="line 1"):
        read_geom(binary)


def test_comments_may_be_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.geom"
    path.write_bytes(b"\xef\xbb\xbf; gr\xfc\xdfe \x00\r\n" + (HEAD + panel()).replace("\n", "\r\n").encode())
    assert read_geom(path) == parse_geom(HEAD + panel())
