"""What boxes cover and leave, beside an array in which every cell is painted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaincal.nexus import boxes
from gaincal.nexus.boxes import Box, coverage, remainder

SHAPE = (9, 3, 4)


@st.composite
def box(draw: st.DrawFn) -> Box:
    start = tuple(draw(st.integers(0, n - 1)) for n in SHAPE)
    return start, tuple(draw(st.integers(1, n - s)) for s, n in zip(start, SHAPE, strict=True))


def paint(painted: list[Box]) -> npt.NDArray[np.int64]:
    times = np.zeros(SHAPE, np.int64)
    for start, count in painted:
        times[tuple(slice(s, s + n) for s, n in zip(start, count, strict=True))] += 1
    return times


def corners(painted: list[Box]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    starts = np.array([b[0] for b in painted], np.int64).reshape(-1, len(SHAPE))
    return starts, starts + np.array([b[1] for b in painted], np.int64).reshape(starts.shape)


@given(st.lists(box(), max_size=6))
def test_boxes_and_what_they_leave_make_the_whole(given_boxes: list[Box]) -> None:
    holes, overlapping = coverage(SHAPE, *corners(given_boxes))
    times = paint(given_boxes)
    np.testing.assert_array_equal(paint(holes), times == 0)
    assert overlapping == bool((times > 1).any())


@given(box(), box())
def test_a_box_is_its_inner_box_and_the_remainder(outer: Box, other: Box) -> None:
    start = tuple(max(a, b) for a, b in zip(outer[0], other[0], strict=True))
    stop = tuple(min(a + n, b + m) for a, n, b, m in zip(*outer, *other, strict=True))
    if any(b <= a for a, b in zip(start, stop, strict=True)):
        return
    inner = start, tuple(b - a for a, b in zip(start, stop, strict=True))
    np.testing.assert_array_equal(paint([inner, *remainder(outer, inner)]), paint([outer]))


def test_holes_along_the_frames_are_one_box_each() -> None:
    given_boxes: list[Box] = [((0, 0, 0), (4, 1, 4)), ((5, 0, 0), (4, 1, 4)), ((0, 2, 0), (9, 1, 4))]
    holes, _ = coverage(SHAPE, *corners(given_boxes))
    assert sorted(holes) == [((0, 1, 0), (9, 1, 4)), ((4, 0, 0), (1, 1, 4))]


def test_what_would_take_too_much_to_tell_may_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "MAX_CELLS", 2)
    assert coverage(SHAPE, *corners([((1, 0, 0), (2, 3, 4))])) == ([], True)
