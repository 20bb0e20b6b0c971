"""Modules lie in a frame one way, in boxes, in arrays and in the mask of what is between them."""

from __future__ import annotations

import numpy as np
import pytest

from gaincal.errors import RequestError
from gaincal.nexus.arrangement import ASSEMBLED, LAYOUTS, STACKED, Arrangement

WAYS = [Arrangement(3, (4, 5)), Arrangement(3, (4, 5), ASSEMBLED), Arrangement(3, (4, 5), ASSEMBLED, 2)]
WAYS += [Arrangement(1, (4, 5)), Arrangement(1, (4, 5), ASSEMBLED, 2), Arrangement(3, (7,))]


@pytest.mark.parametrize("lies", WAYS)
def test_boxes_arrays_and_mask_agree(lies: Arrangement) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 1000, (2, *lies.stack))
    whole = lies.arranged(values, -1)
    assert whole.shape == (2, *lies.shape)
    rest = np.ones(whole.shape, bool)
    for module in range(lies.modules):
        (start, count) = lies.box(0, 2, module)
        box = tuple(slice(s, s + n) for s, n in zip(start, count, strict=True))
        np.testing.assert_array_equal(whole[box].reshape(2, *lies.pixels), values[:, module])
        rest[box] = False
    assert (whole[rest] == -1).all()
    mask = np.zeros(lies.shape, np.uint32) if lies.mask is None else lies.mask
    assert mask.dtype == np.uint32
    np.testing.assert_array_equal(mask, rest[0])


def test_an_image_without_gaps_is_a_stack_in_another_shape() -> None:
    values = np.arange(60).reshape(3, 4, 5)
    assert np.shares_memory(Arrangement(3, (4, 5), ASSEMBLED).arranged(values), values)


@pytest.mark.parametrize(
    ("pixels", "layout", "gap"),
    [((4, 5), "else", 0), ((4, 5), STACKED, 1), ((4, 5), ASSEMBLED, -1), ((7,), ASSEMBLED, 0)],
)
def test_what_is_no_arrangement(pixels: tuple[int, ...], layout: str, gap: int) -> None:
    with pytest.raises(RequestError):
        Arrangement(3, pixels, layout, gap)
    assert LAYOUTS == (STACKED, ASSEMBLED)
