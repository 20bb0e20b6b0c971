"""The laws of a lazy view: what every view of every file must obey, whoever makes it.

Inherit `ViewContract` and give it a ``view`` fixture of module scope or wider.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings

Array = npt.NDArray[Any]
Key = tuple[Any, ...]
MAX_PICKLE = 20_000
SLICES_ARE_LARGE = [HealthCheck.data_too_large]
"""The slices of old versions of hypothesis are made from much data."""
PATIENCE = 60.0


class View:
    """A view, how to open it in chunks, what it must hold, and the maps that its pickle must not carry."""

    def __init__(
        self, open_: Callable[[Any], xr.DataArray], dims: tuple[str, ...], expected: Array, maps: tuple[Array, ...] = ()
    ) -> None:
        self.open, self.dims, self.expected, self.maps = open_, dims, expected, maps

    @cached_property
    def lazy(self) -> xr.DataArray:
        return self.open(None)

    @cached_property
    def whole(self) -> Array:
        return np.asarray(self.lazy)


def same_bits(found: Any, expected: Array) -> None:
    """Assert that two arrays are the same to the last bit, NaN, signs of zero and all."""
    values = np.asarray(found)
    assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
    assert values.tobytes() == expected.tobytes()


def outer(array: Array, key: Key) -> Array:
    """NumPy's indexing, one axis at a time: xarray never moves an axis as NumPy does for mixed keys."""
    if Ellipsis in [k for k in key if not isinstance(k, np.ndarray)]:
        at = next(n for n, k in enumerate(key) if k is Ellipsis)
        key = (*key[:at], *[slice(None)] * (array.ndim - len(key) + 1), *key[at + 1 :])
    for axis, k in reversed(list(enumerate(key))):
        array = array[(slice(None),) * axis + (k,)]
    return array


def read(view: xr.DataArray, key: Key) -> Array:
    """Read in whatever process this runs in."""
    return np.asarray(view[key])


@st.composite
def keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Key:
    """Keys of integers, slices, an ellipsis and at most one array of integers or booleans."""
    with_array = draw(st.integers(-1, len(shape) - 1))
    key = [draw(_array(n) if axis == with_array else _plain(n)) for axis, n in enumerate(shape)]
    if draw(st.booleans()):
        first = draw(st.integers(0, len(shape)))
        last = draw(st.integers(first, len(shape)))
        return (*key[:first], Ellipsis, *key[last:])
    return tuple(key[: draw(st.integers(0, len(shape)))])


def _plain(length: int) -> st.SearchStrategy[Any]:
    whole = st.just(slice(None))
    return st.one_of(st.slices(length), whole, st.integers(-length, length - 1)) if length else whole


def _array(length: int) -> st.SearchStrategy[Array]:
    if not length:
        return st.just(np.empty(0, np.int64))
    integers = st.lists(st.integers(-length, length - 1), max_size=8).map(lambda v: np.array(v, np.int64))
    booleans = st.integers(0, 2**length - 1).map(lambda v: (v >> np.arange(length, dtype=object) & 1).astype(bool))
    return st.one_of(integers, booleans)


class ViewContract:
    """The laws; inherited by a class whose ``view`` fixture yields a `View`."""

    def test_it_says_what_it_is_before_anything_is_read(self, view: View) -> None:
        fresh = view.open(None)
        assert (fresh.dtype, fresh.shape, fresh.dims) == (view.expected.dtype, view.expected.shape, view.dims)
        assert fresh.nbytes == view.expected.nbytes

    def test_it_holds_what_the_formula_says(self, view: View) -> None:
        same_bits(view.whole, view.expected)

    def test_reading_twice_gives_the_same(self, view: View) -> None:
        same_bits(view.lazy, view.whole)
        same_bits(view.lazy.values, view.whole)

    @settings(max_examples=15, suppress_health_check=SLICES_ARE_LARGE)
    @given(data=st.data())
    def test_indexing_equals_numpy(self, view: View, data: st.DataObject) -> None:
        key = data.draw(keys(view.whole.shape))
        same_bits(view.lazy[key], outer(view.whole, key))

    @settings(max_examples=15, suppress_health_check=SLICES_ARE_LARGE)
    @given(data=st.data())
    def test_composed_indexing_equals_numpy(self, view: View, data: st.DataObject) -> None:
        first = data.draw(keys(view.whole.shape))
        inner = outer(view.whole, first)
        second = data.draw(keys(inner.shape))
        same_bits(view.lazy[first][second], outer(inner, second))

    @settings(max_examples=10, suppress_health_check=SLICES_ARE_LARGE)
    @given(data=st.data())
    def test_points_equal_numpy(self, view: View, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, 5)) if view.whole.size else 0
        points = [
            np.array(data.draw(st.lists(st.integers(-n, n - 1), min_size=count, max_size=count)), np.int64)
            if n
            else np.empty(0, np.int64)
            for n in view.whole.shape
        ]
        wanted = {dim: xr.DataArray(p, dims="point") for dim, p in zip(view.dims, points, strict=True)}
        same_bits(view.lazy.isel(wanted), view.whole[tuple(points)])

    def test_positions_past_the_end_are_refused(self, view: View) -> None:
        for axis, length in enumerate(view.whole.shape):
            with pytest.raises(IndexError):
                view.lazy[(slice(None),) * axis + (length,)].values  # noqa: B018

    def test_pickles_carry_no_data(self, view: View) -> None:
        payload = pickle.dumps(view.lazy)
        assert len(payload) < MAX_PICKLE
        assert not any(a.ravel()[:6].tobytes() in payload for a in view.maps)
        same_bits(pickle.loads(payload), view.whole)

    def test_a_part_survives_a_pickle(self, view: View) -> None:
        key = (slice(None, None, -2),)
        same_bits(pickle.loads(pickle.dumps(view.lazy[key])), view.whole[key])

    def test_copies_hold_the_same(self, view: View) -> None:
        for duplicate in (copy.copy(view.lazy), copy.deepcopy(view.lazy), view.lazy.copy(deep=True)):
            same_bits(duplicate, view.whole)

    def test_threads_may_read_at_once(self, view: View) -> None:
        rng, shared = np.random.default_rng(3), view.open(None)
        wanted = [tuple(_random_slice(rng, n) for n in view.whole.shape) for _ in range(32)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda key: np.asarray(shared[key]), wanted))
        for key, values in zip(wanted, found, strict=True):
            same_bits(values, view.whole[key])

    def test_a_new_process_reads_the_same(self, view: View, spawned: Executor) -> None:
        same_bits(spawned.submit(read, view.lazy, (Ellipsis,)).result(PATIENCE), view.whole)

    def test_a_forked_process_reads_the_same(self, view: View) -> None:
        key = (slice(1, None),)
        same_bits(view.lazy, view.whole)
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            same_bits(pool.submit(read, view.lazy, key).result(PATIENCE), view.whole[key])
        same_bits(view.lazy, view.whole)

    @pytest.mark.filterwarnings("ignore:The specified .*hunks separate the stored chunks")
    @pytest.mark.parametrize("chunks", ["auto", {"frame": 1}], ids=str)
    def test_chunks_hold_the_same(self, view: View, chunks: Any) -> None:
        pytest.importorskip("dask")
        chunked = view.open(chunks)
        assert chunked.chunks is not None
        assert (chunked.dtype, chunked.shape) == (view.whole.dtype, view.whole.shape)
        same_bits(chunked.compute(scheduler="threads"), view.whole)


def _random_slice(rng: np.random.Generator, length: int) -> slice:
    start, stop = sorted(int(v) for v in rng.integers(0, length + 1, 2))
    return slice(start, stop, int(rng.integers(1, 4)))
