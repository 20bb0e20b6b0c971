"""``open_calibrated``: calibrated frames as a lazy xarray view, computed when somebody indexes.

Indexing composes a key without reading anything; reading takes just the chunks that the key needs
and computes just its pixels, with the same functions that `apply` uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from gaincal.formulas.checks import FRAME
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import RESERVED_FLAGS, Program
from gaincal.nexus.handle import Handle
from gaincal.nexus.read import Master
from gaincal.nexus.trust import directories

Array = npt.NDArray[Any]
Chunks = int | str | Mapping[Any, Any] | tuple[Any, ...] | None
FLAGS, RAW, STAGE = "flags", "raw", "stage"
MIN_FRAMES_PER_CHUNK = 50


class CalibratedArray(BackendArray):
    """A lazy array over a master: calibrated values, flags, stages or raw words.

    ``array[key]`` takes xarray's indexers and returns what ``numpy.asarray(array)[key]`` would.
    Threads may read at once.  Pickles carry the path and the checksum of the calibration, no data.

    Attributes
    ----------
    shape : tuple of int
        (frame, *pixels)
    dtype : numpy.dtype
        Of what you get.
    """

    def __init__(self, handle: Handle, program: Program, kind: str) -> None:
        self.handle, self.program, self.kind = handle, program, kind
        self.shape = handle.master.calibration.layout.shape
        self.dtype = np.dtype(np.uint32 if kind == FLAGS else program.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        if not isinstance(key, indexing.VectorizedIndexer):
            # xarray's adapter takes slices with negative steps apart, and gets some of them wrong.
            return self._read(key.tuple)
        result = indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)
        return np.asarray(result)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        options = repr(sorted(self.handle.options.items(), key=str))
        return (self.handle.path, self.handle.checksum, options, self.kind, repr(self.program))

    def _read(self, key: tuple[Any, ...]) -> Array:
        """Read for one outer indexer per dim: runs of frames, the box around the pixels, then exactly these."""
        box = [_range(k, n) for k, n in zip(key, self.shape, strict=True)]
        kept = tuple(0 if np.ndim(k) == 0 and not isinstance(k, slice) else slice(None) for k in key)
        if all(box):
            return self._box(box)[kept]
        wanted = [_positions(k, n) for k, n in zip(key, self.shape, strict=True)]
        counts = [len(w) for w in wanted]
        if 0 in counts:
            return np.empty(counts, self.dtype)[kept]
        frames, places = np.unique(wanted[0], return_inverse=True)
        window = [range(int(w.min()), int(w.max()) + 1) for w in wanted[1:]]
        runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
        found = [self._box([range(int(run[0]), int(run[-1]) + 1), *window]) for run in runs]
        values = found[0] if len(found) == 1 else np.concatenate(found)
        if not np.array_equal(places, np.arange(len(values))):
            values = values[places.reshape(-1)]
        for axis, (positions, inside) in enumerate(zip(wanted[1:], window, strict=True), start=1):
            if not np.array_equal(positions, inside):
                values = np.take(values, positions - inside.start, axis)
        return np.asarray(values[kept])

    def _box(self, ranges: Sequence[range]) -> Array:
        start, count = tuple(r.start for r in ranges), tuple(len(r) for r in ranges)
        values, flags = self.handle.evaluation(self.program).read(start, count, with_flags=self.kind == FLAGS)
        return values if flags is None else flags


def _range(key: Any, length: int) -> range:
    """The positions that an integer or a slice selects, if they follow each other; else none."""
    if isinstance(key, slice):
        found = range(length)[key]
        return found if found.step == 1 else range(0)
    if isinstance(key, (int, np.integer)):
        place = range(length)[key]
        return range(place, place + 1)
    return range(0)


def _positions(key: Any, length: int) -> Array:
    """Positions along an axis that an integer, a slice or a list of integers selects."""
    return np.atleast_1d(np.arange(length)[key])


def open_calibrated(
    path: str | os.PathLike[str],
    output: str | None = None,
    *,
    flagged: float | None = None,
    chunks: Chunks = None,
    dtype: str | None = None,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> xr.DataArray:
    """Open the calibrated frames of a file, lazily.

    Parameters
    ----------
    path : str or path
        A master, as ``gaincal embed`` makes it.
    output : str, optional
        Which output of the formula; its default one if None.
    flagged : float, optional
        Value of flagged pixels; the declared fill (NaN for floating-point outputs) if None.
    chunks : optional
        Make dask arrays, as in `xarray.open_dataset`; ``{}`` for chunks that suit the file.
    dtype : str, optional
        One of the dtypes that the output declares; its first if None.
    inputs : mapping of str to float, optional
        Replace inputs of the formula, such as photon_energy in keV.
    calibration : str, optional
        Which calibration, where the file has several.
    profile : str, optional
        Reproduce what another program makes of the same words: ``jungfrau_utils``, ``aare`` ...
    reasons : iterable of str, optional
        Flags of the formula, and reasons of the pixel mask (``dead``, ``noisy`` ...), that make a pixel
        bad; all of them if None.  Pixels with other reasons keep their value.
    trust : iterable of str or path
        Directories, beside the file's own, whose files may be opened.

    Returns
    -------
    xarray.DataArray
        (frame, *pixels) in the declared dtype, with ``units``, and frame numbers and ids as coordinates.

    Raises
    ------
    FileError, TrustError
        If the file is damaged or leads where it must not.
    BindError
        If formula, constants and words do not fit.
    RequestError
        If there is no such output, dtype or input.

    Examples
    --------
    >>> frames = open_calibrated("master.nxs", output="photons")  # doctest: +SKIP
    >>> frames[0:10].mean("frame")  # doctest: +SKIP
    """
    dataset = open_calibrated_dataset(
        path,
        output,
        flagged=flagged,
        chunks=chunks,
        dtype=dtype,
        inputs=inputs,
        calibration=calibration,
        profile=profile,
        reasons=reasons,
        trust=trust,
        extras=False,
    )
    array = dataset[next(iter(dataset.data_vars))]
    array.set_close(dataset.close)
    return array


def open_calibrated_dataset(
    path: str | os.PathLike[str],
    output: str | None = None,
    *,
    flagged: float | None = None,
    chunks: Chunks = None,
    dtype: str | None = None,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
    trust: Iterable[str | os.PathLike[str]] = (),
    extras: bool = True,
) -> xr.Dataset:
    """Open the calibrated frames with their flags, gain stages and raw words, lazily.

    Parameters
    ----------
    path, output, flagged, chunks, dtype, inputs, calibration, profile, reasons, trust
        As for `open_calibrated`.
    extras : bool
        Add ``flags`` (uint32, one bit per reason, see its ``flag_meanings``), ``stage`` (int8 or int32, -1
        for none), the words (``raw``), and the variance of the output where the formula declares one.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    FileError, TrustError, BindError, RequestError
        As for `open_calibrated`.
    """
    return xr.open_dataset(
        os.fspath(path),
        engine=GaincalBackend,
        chunks=chunks,
        cache=False,
        output=output,
        flagged=flagged,
        dtype=dtype,
        inputs=inputs,
        calibration=calibration,
        profile=profile,
        reasons=None if reasons is None else tuple(reasons),
        trust=directories(trust),
        extras=extras,
    )


class GaincalBackend(BackendEntrypoint):
    """``xarray.open_dataset(path, engine="gaincal")``; takes the options of `open_calibrated_dataset`."""

    description = "Calibrated detector frames from NXmx files with a formula"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "output",
        "flagged",
        "dtype",
        "inputs",
        "calibration",
        "profile",
        "reasons",
        "trust",
        "extras",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        output: str | None = None,
        flagged: float | None = None,
        dtype: str | None = None,
        inputs: Mapping[str, float] | None = None,
        calibration: str | None = None,
        profile: str | None = None,
        reasons: Iterable[str] | None = None,
        trust: Iterable[str] = (),
        extras: bool = True,
    ) -> xr.Dataset:
        """Build the dataset; see `open_calibrated_dataset`."""
        options = {"trust": directories(trust), "calibration": calibration, "inputs": dict(inputs or {})}
        options |= {"profile": profile, "reasons": None if reasons is None else tuple(reasons)}
        handle = Handle(os.fspath(filename_or_obj), options)
        master = handle.master
        program = master.calibration.program(output, dtype, flagged)
        declared = master.calibration.formula.output(program.value)
        attributes = {"units": declared.units, "long_name": f"{declared.name} ({declared.units})"}
        variables = {program.value: _variable(CalibratedArray(handle, program, program.value), master, attributes)}
        if extras:
            variables |= _extras(handle, program)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        kept = {n: v for n, v in variables.items() if n not in dropped}
        dataset = xr.Dataset(
            kept,
            _coordinates(master, frozenset({*variables, *master.calibration.formula.checked.pixel_dims})),
            _provenance(master),
        )
        dataset.set_close(handle.close)
        return dataset


def _variable(array: CalibratedArray, master: Master, attributes: Mapping[str, Any]) -> xr.Variable:
    dims = (FRAME, *master.calibration.formula.checked.pixel_dims)
    variable = xr.Variable(dims, indexing.LazilyIndexedArray(array), attributes)
    frames = max(1, min(MIN_FRAMES_PER_CHUNK, array.shape[0]))
    variable.encoding["preferred_chunks"] = dict(zip(dims, (frames, *array.shape[1:]), strict=True))
    return variable


def _extras(handle: Handle, program: Program) -> dict[str, xr.Variable]:
    """Flags, stage and raw words, as far as they have names of their own."""
    master = handle.master
    calibration = master.calibration
    bits = {flag.name: bit for bit, flag in enumerate(calibration.formula.flags)} | RESERVED_FLAGS
    meaning = {
        "long_name": "reasons why a pixel is bad",
        "flag_masks": np.array([1 << bit for bit in bits.values()], np.uint32),
        "flag_meanings": " ".join(bits),
    }
    extras = {FLAGS: _variable(CalibratedArray(handle, program, FLAGS), master, meaning)}
    variance = calibration.variance_program(program.value)
    if variance is not None:
        declared = calibration.formula.output(variance.value)
        attributes = {"units": declared.units, "long_name": f"variance of {declared.variance_of}"}
        extras[variance.value] = _variable(CalibratedArray(handle, variance, variance.value), master, attributes)
    stage = calibration.stage_step()
    if stage is not None:
        delivered = calibration.step_program(stage, _stage_dtype(calibration.formula, stage))
        attributes = {"long_name": "gain stage, -1 for none"}
        extras[STAGE] = _variable(CalibratedArray(handle, delivered, STAGE), master, attributes)
    for name in calibration.words:
        item = next(i for i in calibration.formula.inputs if i.name == name)
        delivered = calibration.step_program(name, str(item.dtype))
        extras[name] = _variable(CalibratedArray(handle, delivered, RAW), master, {"units": item.units})
    return extras


def _stage_dtype(formula: Formula, stage: str) -> str:
    kind = formula.checked.types[stage]
    return "int8" if kind.low >= -128 and kind.high <= 127 else "int32"


def _coordinates(master: Master, taken: frozenset[str]) -> dict[str, xr.Variable]:
    """Frame numbers, which survive slicing, ids and inputs that come by frame, but none called like a variable."""
    calibration = master.calibration
    coordinates = {FRAME: xr.Variable(FRAME, np.arange(calibration.layout.frames))}
    found = {n: xr.Variable(FRAME, v) for n, v in master.ids.items()}
    for item in calibration.formula.inputs:
        array = calibration.arrays.get(item.name)
        dims = item.dims or (FRAME,)
        if array is not None and dims[0] == FRAME and array.ndim == len(dims):
            found[item.name] = xr.Variable(dims, array)
    return coordinates | {name: variable for name, variable in found.items() if name not in {FRAME, *taken}}


def _provenance(master: Master) -> dict[str, Any]:
    formula = master.calibration.formula
    return {
        "formula": f"{formula.name} version {formula.version}",
        "formula_digest": formula.digest,
        "calibration_checksum": master.stored.checksum,
        "flags_tested": " ".join(master.calibration.tested_flags()),
    }
