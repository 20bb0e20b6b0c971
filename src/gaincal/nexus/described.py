"""What an NXmx file says about calibrated frames: the master's metadata, the mask, the range of values."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.formulas.program import MISSING_BIT, NO_VALUE_BIT, Program
from gaincal.nexus import names
from gaincal.nexus.fields import read_array
from gaincal.nexus.read import Master, descend, of_class
from gaincal.nexus.readers import Reader
from gaincal.nexus.scaling import FIELDS
from gaincal.nexus.slab import slab, slab_modules
from gaincal.nexus.write import array_field, copy_tree, field

Array = npt.NDArray[Any]
ABOUT_WORDS = ("bit_depth_readout", "saturation_value", "underload_value", *FIELDS.values())
"""Facts of a detector that hold for its words, not for what becomes of them."""
MISSING_MASK_BIT = 1
"""Where every frame is missing the pixel counts as dead."""
LOW_BITS = (1 << names.BAD_BITS) - 1


def copy_entry(file: h5py.File, master: Master, first: int, count: int, reader: Reader | None) -> h5py.Group:
    """Carry the metadata over: everything of the entry but words, calibration and pictures.

    Parameters
    ----------
    file : h5py.File
        Empty.
    master : Master
    first, count : int
        Frames to keep of lists with a value for each.
    reader : Reader or None
        The program that it is for: they take the first detector and the first data, so there are no others.
    """
    source, pixels = master.entry, master.calibration.layout.pixels
    detector = master.detector.path
    skip = {f"{detector}/{name}" for name in (names.RAW_GROUP, names.CALIBRATION_GROUP, names.PIXEL_MASK, *ABOUT_WORDS)}
    skip |= {f"{source.path}/{names.DATA_PATH.rsplit('/', 1)[-1]}"}
    if reader is not None:
        others = descend(master.resolver, source, names.INSTRUMENT, names.DETECTOR)
        others += of_class(master.resolver, source, names.DATA)
        skip |= {place.path for place in others if place.path != detector}
    entry = file.create_group(source.path, track_order=True)
    words = frozenset().union(*(w.identities for w in master.words.values()))
    cut = (master.calibration.layout.frames, first, count)
    copy_tree(master.resolver, source, entry, frozenset(skip), cut, words)
    file.attrs[names.DEFAULT_ATTRIBUTE] = source.path.strip("/")
    if reader is not None:
        slab_modules(file[detector], pixels, master.resolver.named)
    return entry


def write_mask(
    detector: h5py.Group,
    master: Master,
    program: Program,
    always: npt.NDArray[np.uint32] | None,
    reader: Reader | None,
) -> None:
    """Write the mask of the master, and the pixels that have a reason in every frame.

    Parameters
    ----------
    detector : h5py.Group
    master : Master
    program : Program
    always : ndarray of uint32 or None
        Flags that a pixel has in every frame; None if nobody looked.
    reader : Reader or None
        The program that it is for: they take a pixel for bad whatever bit it has, so just those reasons stay
        that make a pixel bad here.
    """
    place = master.resolver.find(names.PIXEL_MASK, master.detector)
    pixels = master.calibration.layout.pixels
    mask = np.zeros(pixels, np.uint32)
    given = read_array(place) if place is not None else mask
    if given.shape == pixels and given.dtype.kind in "iu":
        mask |= given.astype(np.uint32)
    if reader is not None:
        mask &= np.uint32(_counted_bits(master))
    if always is not None:
        bits = {bit: f.pixel_mask_bit for bit, f in enumerate(master.calibration.formula.flags)}
        voiding = {bit for bit, flag in program.flags if flag.voids} | {MISSING_BIT, NO_VALUE_BIT}
        for bit, target in (bits | {MISSING_BIT: MISSING_MASK_BIT}).items():
            if target is not None and (reader is None or bit in voiding):
                mask |= ((always >> np.uint32(bit)) & np.uint32(1)) << np.uint32(target)
    mask = mask.reshape(slab(pixels)) if reader is not None else mask
    array_field(detector, names.PIXEL_MASK, mask, compression="gzip")


def _counted_bits(master: Master) -> int:
    """Bits of the mask that make a pixel bad, as far as the user chose."""
    if master.reasons is None or names.MASKED in master.reasons:
        return LOW_BITS
    return sum(1 << bit for bit, name in names.PIXEL_MASK_BITS.items() if name in master.reasons) & LOW_BITS


def write_range(detector: h5py.Group, program: Program, reader: Reader | None) -> None:
    """Write what programs need to tell counts from sentinels: both ends are valid values."""
    if program.limits is None:
        return
    low, high = program.limits
    kind = np.dtype(program.dtype).type
    for name, value in (("saturation_value", high - 1), ("underload_value", low)):
        field(detector, name, kind(value))
    if reader is None or reader.bit_depth:
        field(detector, "bit_depth_readout", np.int32(8 * np.dtype(program.dtype).itemsize))
