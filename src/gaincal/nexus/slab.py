"""Frames of stacked modules as the slabs that readers take: (module, y, x) is (module * y, x), in the same order."""

from __future__ import annotations

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.write import discard, field, members_of_class

IMAGE_DIMS = 2


def slab(pixels: tuple[int, ...]) -> tuple[int, ...]:
    """Shape (y, x) of a frame whose leading dims are laid below each other."""
    return (int(np.prod(pixels[:-1])), pixels[-1]) if len(pixels) > IMAGE_DIMS else pixels


def slab_modules(detector: h5py.Group, pixels: tuple[int, ...], named: str) -> None:
    """Let the modules of a detector say where they lie in the slab.

    Parameters
    ----------
    detector : h5py.Group
        Of the file that is being written.
    pixels : tuple of int
        Shape of a stacked frame, (module, y, x).
    named : str
        The file to complain about.

    Raises
    ------
    FileError
        If a module does not lie in one of the stacked images.
    """
    if len(pixels) <= IMAGE_DIMS:
        return
    for module in members_of_class(detector, "NXdetector_module"):
        origin, size = (_read(module, name) for name in ("data_origin", "data_size"))
        if origin is None or size is None or len(origin) != len(pixels) != len(size):
            continue  # says where it lies in another way: readers see what they see
        if any(n != 1 for n in size[:-IMAGE_DIMS]) or np.any(origin < 0) or np.any(origin + size > pixels):
            problem = f"lies at {origin.tolist()}, size {size.tolist()}: not in one image of frames {pixels}"
            raise FileError(named, module.name, problem, code="odd-module")
        image = int(np.ravel_multi_index(tuple(origin[:-IMAGE_DIMS]), pixels[:-IMAGE_DIMS]))
        first = np.array([image * pixels[-2] + origin[-2], origin[-1]], np.int64)
        for name, value in (("data_origin", first), ("data_size", size[-IMAGE_DIMS:])):
            discard(module, name)
            field(module, name, value)


def _read(module: h5py.Group, name: str) -> npt.NDArray[np.int64] | None:
    dataset = module.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "iu" or dataset.ndim != 1:
        return None
    return np.asarray(dataset[()], np.int64)
