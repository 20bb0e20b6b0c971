"""Views: every kind of result over every kind of file obeys the contract; and what only xarray users see."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from conftest import FLAG_BITS, RUN_KINDS, Run, build_run, detector_formula, few, make_constants
from contract import View, ViewContract, outer, same_bits

from gaincal.errors import BindError, FileError, RequestError, TrustError
from gaincal.lazy import GaincalBackend, open_calibrated, open_calibrated_dataset
from gaincal.nexus import group
from gaincal.nexus.evaluate import Evaluation
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
UNITS = {"energy": "keV", "photons": "photon", "counts": "photon"}
PRODUCTS: dict[str, dict[str, Any]] = {
    "energy": {"output": "energy"},
    "photons": {"output": "photons"},
    "photons, flagged 0": {"output": "photons", "flagged": 0},
    "counts": {"output": "counts"},
    "counts int16": {"output": "counts", "dtype": "int16"},
    "counts, flagged 0": {"output": "counts", "flagged": 0},
    "counts int16, flagged 7": {"output": "counts", "dtype": "int16", "flagged": 7},
    "flags": {"output": "counts"},
    "stage": {},
    "raw": {},
}
FEW = ("photons", "flags", "raw")
"""Enough where only the layout is another."""
DIMS = {"strip": ("frame", "x"), "modules": ("frame", "module", "y", "x")}


def expected(run: Run, product: str) -> Array:
    options = PRODUCTS[product]
    output = options.get("output", "energy")
    dtype = options.get("dtype", "int32" if output == "counts" else "float32")
    values, flags = run.expected(output, dtype, options.get("flagged"))
    if product == "flags":
        return flags
    if product == "stage":
        return np.where(run.missing, -1, run.steps["stage"]).astype(np.int8)
    if product == "raw":
        return np.where(run.missing, 0, run.words).astype(np.uint16)
    return values


def view_of(run: Run, kind: str, product: str) -> View:
    options = PRODUCTS[product]

    def lazily(chunks: Any) -> xr.DataArray:
        if product in ("flags", "stage", "raw"):
            return open_calibrated_dataset(run.master, chunks=chunks, **options)[product]
        return open_calibrated(run.master, chunks=chunks, **options)

    maps = (run.pedestal, run.gain)
    return View(lazily, DIMS.get(kind, ("frame", "y", "x")), expected(run, product), maps)


VIEWS = [("plain", p) for p in PRODUCTS] + [(k, "counts int16") for k in RUN_KINDS if k != "plain"]
"""Every result, and every layout: all that old versions of xarray need to show."""
MORE = [(k, p) for k in RUN_KINDS if k != "plain" for p in FEW]
MORE += [("virtual", "stage"), ("odd", "energy"), ("odd", "counts"), ("odd", "stage")]


@pytest.fixture(scope="module", params=few([*VIEWS, *MORE], len(VIEWS)), ids="-".join)
def view(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> View:
    kind, product = request.param
    return view_of(runs(kind), kind, product)


class TestEveryView(ViewContract):
    """All laws, for every result of every kind of run."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Enough words for several threads."""
    return build_run(tmp_path_factory.mktemp("large"), (5, 300, 260))


@pytest.mark.parametrize(("output", "dtype"), [("photons", "float32"), ("counts", "int32")])
def test_work_for_several_threads_gives_what_the_formula_says(large: Run, output: str, dtype: str) -> None:
    same_bits(open_calibrated(large.master, output), large.expected(output, dtype)[0])


def test_a_window_equals_the_part_of_the_whole(large: Run) -> None:
    key = (slice(4, 0, -2), slice(3, 299, 7), np.array([259, 0, 0, -2]))
    same_bits(open_calibrated(large.master)[key], outer(large.expected("energy")[0], key))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_applied_files_are_the_same_for_any_number_of_jobs(large: Run, tmp_path: Path, jobs: int) -> None:
    apply(large.master, tmp_path / "applied.nxs", output="counts", jobs=jobs)
    same_bits(_image(tmp_path / "applied.nxs"), large.expected("counts", "int32")[0])


def _image(path: Path) -> Array:
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(path) as file:
        return np.asarray(file["/entry/data/data"][()])


# --- one evaluation for all ----------------------------------------------------------------


@pytest.mark.parametrize("kind", few(["virtual", "plain", "odd", "strip", "modules", "single"]))
@pytest.mark.parametrize(
    ("output", "dtype"), [("energy", "float32"), ("photons", "float32"), ("counts", "int32"), ("counts", "int16")]
)
def test_files_and_views_hold_the_same_bits(
    runs: Callable[[str], Run], kind: str, output: str, dtype: str, tmp_path: Path
) -> None:
    run = runs(kind)
    apply(run.master, tmp_path / "applied.nxs", output=output, dtype=dtype)
    same_bits(_image(tmp_path / "applied.nxs"), np.asarray(open_calibrated(run.master, output, dtype=dtype)))


@pytest.mark.filterwarnings("ignore:The specified .*hunks separate the stored chunks")
def test_the_smallest_chunks_hold_the_same(runs: Callable[[str], Run]) -> None:
    pytest.importorskip("dask")
    run = runs("odd")
    same_bits(open_calibrated(run.master, chunks=1).compute(scheduler="threads"), run.expected("energy")[0])


@pytest.mark.filterwarnings("ignore")
def test_dask_workers_hold_the_same(virtual: Run) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        chunked = open_calibrated_dataset(virtual.master, "counts", chunks={"frame": 2})
        found = chunked.compute()
    same_bits(found["counts"], virtual.expected("counts", "int32")[0])
    same_bits(found["flags"], virtual.expected("counts", "int32")[1])


def test_dask_never_confuses_two_views(plain: Run) -> None:
    pytest.importorskip("dask")
    options: list[dict[str, Any]] = [
        {"output": "energy"},
        {"output": "photons"},
        {"output": "photons", "flagged": 0},
        {"output": "photons", "inputs": {"photon_energy": 6.2}},
        {"output": "counts"},
        {"output": "counts", "dtype": "int16"},
    ]
    names = {open_calibrated(plain.master, chunks={}, **o).data.name for o in options}
    assert len(names) == len(options)


def test_chunks_by_default_hold_whole_frames(plain: Run) -> None:
    pytest.importorskip("dask")
    chunks = open_calibrated(plain.master, chunks={}).chunks
    assert chunks is not None
    assert chunks[1:] == ((16,), (32,))


# --- what xarray users see -----------------------------------------------------------------


def test_xarray_opens_the_file_by_the_name_of_the_engine(plain: Run) -> None:
    if "gaincal" not in xr.backends.list_engines():
        pytest.skip("the entry point is not registered: gaincal is not installed here")
    dataset = xr.open_dataset(plain.master, engine="gaincal", output="photons")
    assert list(dataset.data_vars) == ["photons", "flags", "stage", "raw"]
    same_bits(dataset["photons"], plain.expected("photons")[0])


def test_dropped_variables_are_left_out(plain: Run) -> None:
    dataset = xr.open_dataset(plain.master, engine=GaincalBackend, drop_variables=["flags", "raw"])
    assert list(dataset.data_vars) == ["energy", "energy_variance", "stage"]


@pytest.mark.parametrize("output", UNITS)
def test_outputs_state_their_units(plain: Run, output: str) -> None:
    view = open_calibrated(plain.master, output)
    assert view.name == output
    assert view.attrs["units"] == UNITS[output]


def test_the_default_output_is_the_formulas(plain: Run) -> None:
    assert open_calibrated(plain.master).name == "energy"


def test_frame_numbers_and_ids_survive_slicing(plain: Run) -> None:
    part = open_calibrated(plain.master)[[7, 2, 2], 3:5][::-1]
    np.testing.assert_array_equal(part["frame"], [2, 2, 7])
    np.testing.assert_array_equal(part["pulse_id"], plain.pulses[[2, 2, 7]])


def test_frames_are_found_by_number_and_by_id(plain: Run) -> None:
    view = open_calibrated(plain.master)
    same_bits(view.sel(frame=slice(3, 5)), plain.expected("energy")[0][3:6])
    chosen = view.swap_dims(frame="pulse_id").sel(pulse_id=plain.pulses[4])
    same_bits(chosen, plain.expected("energy")[0][4])


def test_flags_say_what_each_bit_means(plain: Run) -> None:
    flags = open_calibrated_dataset(plain.master)["flags"]
    meanings = dict(zip(flags.attrs["flag_meanings"].split(), flags.attrs["flag_masks"].tolist(), strict=True))
    assert meanings == {name: 1 << bit for name, bit in FLAG_BITS.items()}
    assert flags.attrs["flag_masks"].dtype == np.uint32


def test_the_dataset_states_where_its_values_come_from(plain: Run) -> None:
    attributes = open_calibrated_dataset(plain.master).attrs
    assert attributes["formula"] == "jungfrau version 1"
    assert attributes["calibration_checksum"].startswith("sha256:")
    assert attributes["flags_tested"].split() == [n for n, bit in FLAG_BITS.items() if bit < 29]


def test_opening_and_indexing_compute_nothing(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(Evaluation, "read", refuse)
    view = open_calibrated(plain.master)[3:9, ::2][[1, 2]]
    assert view.shape == (2, 8, 32)
    repr(view)
    with pytest.raises(AssertionError, match="something was read"):
        view.values  # noqa: B018


def test_only_the_frames_asked_for_are_read(tmp_path: Path) -> None:
    run = build_run(tmp_path, (4, 8, 16))
    _damage_last_chunk(run.raw)
    view = open_calibrated(run.master)
    same_bits(view[:3], run.expected("energy")[0][:3])
    with pytest.raises(FileError):
        view[3].values  # noqa: B018


def _damage_last_chunk(path: Path) -> None:
    import h5py

    with h5py.File(path) as file:
        info = file["data"].id.get_chunk_info(3)
    with path.open("r+b") as stream:
        stream.seek(info.byte_offset + 5)
        byte = stream.read(1)
        stream.seek(info.byte_offset + 5)
        stream.write(bytes([byte[0] ^ 1]))


def test_statistics_agree_with_numpy(plain: Run) -> None:
    values = plain.expected("photons", fill=0)[0]
    np.testing.assert_array_equal(open_calibrated(plain.master, "photons", flagged=0).max("frame"), values.max(0))


# --- requests ------------------------------------------------------------------------------


def test_a_given_input_replaces_the_stored_one(plain: Run) -> None:
    found = open_calibrated(plain.master, "photons", inputs={"photon_energy": 6.2})
    with np.errstate(all="ignore"):
        values = plain.steps["energy"] / np.float32(6.2)
    good = np.isfinite(plain.expected("photons")[0])
    np.testing.assert_array_equal(np.asarray(found)[good], values[good])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "electrons"}, ["'electrons'", "energy, photons, counts"]),
        ({"output": "counts", "dtype": "int8"}, ["int8", "int32, int16"]),
        ({"output": "counts", "flagged": float("nan")}, ["counts", "NaN"]),
        ({"output": "counts", "dtype": "int16", "flagged": 40_000}, ["int16", "40000"]),
        ({"output": "counts", "flagged": 0.5}, ["counts", "0.5"]),
        ({"inputs": {"photon_enrgy": 12.4}}, ["photon_enrgy", "photon_energy"]),
        ({"inputs": {"raw": 12.4}}, ["raw"]),
        ({"calibration": "agipd"}, ["agipd", "jungfrau"]),
    ],
)
def test_impossible_requests_are_refused_by_name(plain: Run, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        open_calibrated(plain.master, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_float_output_takes_nan_for_flagged_pixels(plain: Run) -> None:
    same_bits(open_calibrated(plain.master, flagged=float("nan")), plain.expected("energy")[0])


@pytest.mark.parametrize("name", ["nothing.nxs", "text.nxs", "."])
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.nxs").write_text("not HDF5")
    with pytest.raises(FileError):
        open_calibrated(tmp_path / name)


def test_a_file_without_a_calibration_is_refused(plain: Run) -> None:
    with pytest.raises(FileError, match="has no calibration") as caught:
        open_calibrated(plain.raw)
    assert caught.value.code == "no-calibration"


# --- the file behind a view ----------------------------------------------------------------


def test_a_view_refuses_a_file_whose_calibration_was_replaced(own: Run) -> None:
    view = open_calibrated(own.master)
    payload = pickle.dumps(view)
    pedestal, gain = make_constants((8, 16), seed=9)
    embed(own.raw, own.master, formula="jungfrau", constants={"pedestal": pedestal, "gain": gain}, overwrite=True)
    with pytest.raises(FileError) as caught:
        pickle.loads(payload).values  # noqa: B018
    assert caught.value.code == "checksum-differs"


def test_a_view_refuses_a_file_that_is_gone(own: Run) -> None:
    payload = pickle.dumps(open_calibrated(own.master))
    own.master.unlink()
    with pytest.raises(FileError):
        pickle.loads(payload).values  # noqa: B018


def test_a_file_may_move_with_its_directory(own: Run, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for file in (own.master, own.raw):
        file.rename(tmp_path / "moved" / file.name)
    same_bits(open_calibrated(tmp_path / "moved" / own.master.name), own.expected("energy")[0])


def test_a_relative_path_survives_a_change_of_directory(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.master.parent)
    view = open_calibrated(own.master.name)
    payload = pickle.dumps(view)
    monkeypatch.chdir("/")
    same_bits(pickle.loads(payload), own.expected("energy")[0])


def test_close_lets_go_of_every_file(own: Run) -> None:
    dataset = open_calibrated_dataset(own.master)
    dataset["energy"].values  # noqa: B018
    assert _open_files(own)
    dataset.close()
    assert not _open_files(own)


def test_a_view_remembers_how_it_computes_until_it_is_closed(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Evaluation] = []
    real = Evaluation.__init__

    def count(self: Evaluation, *arguments: Any) -> None:
        made.append(self)
        real(self, *arguments)

    monkeypatch.setattr(Evaluation, "__init__", count)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    with open_calibrated(own.master) as view:
        wanted = [view[k].values for k in range(3)]
        assert len(made) == 1
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
        same_bits(view[1].values, wanted[1])
        assert [e.threads for e in made] == [1, 2]
        view.close()
        same_bits(view[2].values, wanted[2])
        assert len(made) == 3
        assert made[2].calibration is not made[1].calibration


def test_the_end_of_a_with_block_closes(own: Run) -> None:
    with open_calibrated_dataset(own.master) as dataset:
        same_bits(dataset["energy"], own.expected("energy")[0])
    assert not _open_files(own)


def test_a_view_lets_go_of_its_files(own: Run) -> None:
    view = open_calibrated(own.master)
    same_bits(view, own.expected("energy")[0])
    view.close()
    assert not _open_files(own)


def test_a_closed_view_reads_again(own: Run) -> None:
    dataset = open_calibrated_dataset(own.master)
    dataset.close()
    same_bits(dataset["energy"], own.expected("energy")[0])


def _open_files(run: Run) -> list[str]:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [t for t in targets if t in (str(run.master), str(run.raw))]


def test_words_in_another_tree_need_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(tmp_path / "raw", (3, 8, 16))
    master = tmp_path / "calibrated" / "master.nxs"
    master.parent.mkdir()
    embed(run.raw, master, formula=detector_formula(), constants={"pedestal": run.pedestal, "gain": run.gain})
    with pytest.raises(TrustError, match="--trust-dir"):
        open_calibrated(master)
    view = open_calibrated(master, trust=[run.raw.parent])
    same_bits(pickle.loads(pickle.dumps(view)), np.asarray(view))
    monkeypatch.setenv("GAINCAL_TRUST_DIRS", str(run.raw.parent))
    same_bits(open_calibrated(master), np.asarray(view))


@pytest.mark.parametrize("kind", [k for k in RUN_KINDS if k != "strip"])
def test_constants_read_slab_by_slab_give_the_same_bits(
    kind: str, runs: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(kind)
    monkeypatch.setattr(group, "MAX_LOADED_BYTES", 0)
    for product in ("energy", "counts"):
        with open_calibrated(run.master, product) as array:
            same_bits(array.values, expected(run, product))
            same_bits(array[1:3, ..., 2:5].values, expected(run, product)[1:3, ..., 2:5])
    with open_calibrated_dataset(run.master, "counts") as dataset:
        same_bits(dataset["flags"].values, expected(run, "flags"))


def test_large_constants_are_maps(runs: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs("strip")
    monkeypatch.setattr(group, "MAX_LOADED_BYTES", 0)
    with pytest.raises(BindError, match="too large"):
        open_calibrated(run.master)
