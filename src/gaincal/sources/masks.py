"""Bad-pixel masks of facilities, as an NXmx ``pixel_mask``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus import names
from gaincal.nexus.arrangement import Arrangement
from gaincal.nexus.fields import MAX_FIELD_BYTES, read_array
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.sources import euxfel_constants
from gaincal.sources.files import Spec, read_npy
from gaincal.sources.mask_bits import BOOLEAN, NXMX, Translation, translate

Array = npt.NDArray[Any]
MODULE_RANK = 3
NOT_A_PIXEL_MASK = (
    "a mask by cell or stage is no pixel_mask, which has the axes of a frame: combine it yourself, with "
    "numpy.bitwise_or.reduce for pixels that are bad in any of them, and save that as .npy"
)


def read_mask(
    spec: Spec, pixels: tuple[int, ...], convention: str | None = None, lies: Arrangement | None = None
) -> Translation:
    """Read a bad-pixel mask, and translate it to the bits of NXmx.

    Parameters
    ----------
    spec : Spec
        HDF5, by default ``/pixel_mask``, or ``.npy``.
    pixels : tuple of int
        Shape of a frame; a mask of frames with modules may also have its modules stacked, (module * y, x).
    convention : str, optional
        Whose bits they are (`mask_bits.conventions`); else a boolean mask (true: bad) sets the bit 'user', and
        an integer mask must use the bits that NXmx defines.
    lies : Arrangement, optional
        How modules lie in a frame, if that is known: then the mask may also be one of stacked modules.

    Raises
    ------
    RequestError
        If there is no such convention.
    FileError
        If the shape is another, or bits are set that the convention does not define.
    """
    lies = lies if lies is not None and lies.in_one_image else None
    values = _mask_values(spec, pixels, pixels if lies is None else lies.stack)
    if values.shape != pixels and lies is not None:
        values = lies.arranged(values.reshape(lies.stack))
    default = BOOLEAN if values.dtype.kind == "b" else NXMX
    translated = translate(values.reshape(pixels), convention or default, file=spec.file, place=spec.path or "")
    gaps = None if lies is None else lies.mask
    return translated if gaps is None else replace(translated, mask=translated.mask | gaps)


def _mask_values(spec: Spec, pixels: tuple[int, ...], stack: tuple[int, ...]) -> Array:
    if spec.file.suffix == ".npy":
        values = read_npy(spec.file)
        _check_mask_shape(spec, values, pixels, stack)
    else:
        with Resolver(spec.file) as resolver, reading(spec.file):
            place = resolver.get(spec.path or f"/{names.PIXEL_MASK}")
            if euxfel_constants.DIMS in place.dataset.attrs:
                values = _mask_by_axes(spec, place, stack)
            else:
                _check_mask_shape(spec, place.dataset, pixels, stack)
                # Masks of 64 bits per pixel can be larger than other fields.
                values = read_array(place, max(MAX_FIELD_BYTES, 8 * int(np.prod(pixels))))
    if values.dtype.kind not in "biu":
        problem = f"is {values.dtype}{values.shape}, no mask; the frames are {pixels}"
        raise FileError(spec.file, spec.path or "", problem, code="wrong-shape")
    return values


def _check_mask_shape(
    spec: Spec, values: Array | h5py.Dataset, pixels: tuple[int, ...], stack: tuple[int, ...]
) -> None:
    below = (stack[0] * stack[1], stack[2]) if len(stack) == MODULE_RANK else stack
    if values.shape in (pixels, stack, below):
        return
    problem = f"has shape {values.shape}, the frames are {pixels}"
    remedy = NOT_A_PIXEL_MASK if values.shape and len(values.shape) > len(pixels) else ""
    raise FileError(spec.file, spec.path or "", problem, remedy, code="wrong-shape")


def _mask_by_axes(spec: Spec, place: Place, pixels: tuple[int, ...]) -> Array:
    """A mask that names its axes; refused where there are others than those of a frame."""
    try:
        return euxfel_constants.load(spec.file, place.path, euxfel_constants.PIXEL_DIMS[-len(pixels) :], pixels)[0]
    except FileError as error:
        if error.code != "wrong-shape":
            raise
        raise place.error(error.problem, NOT_A_PIXEL_MASK, code="wrong-shape") from None
