"""A master as another program wants it: counts image by image, and a file that says the rest."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.nexus import names
from gaincal.nexus.described import copy_entry, write_mask, write_range
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.frames import signal_group
from gaincal.nexus.handle import Handle
from gaincal.nexus.read import locate
from gaincal.nexus.readers import Reader, check_facts, program_for
from gaincal.nexus.slab import slab
from gaincal.nexus.trust import Resolver

Array = npt.NDArray[Any]


def has_calibration(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a calibration, whole or damaged; looks at groups only."""
    with Resolver(path) as resolver:
        return bool(locate(resolver))


class Frames:
    """The frames of a master for a program; its files are open while somebody reads, in whatever process.

    Parameters
    ----------
    path : str or path
    reader : Reader
    """

    def __init__(self, path: str | os.PathLike[str], reader: Reader) -> None:
        self.reader = reader
        self._handle = Handle(os.fspath(path), {})

    def describe(self, file: h5py.File) -> tuple[int, ...]:
        """Write what an applied file says of all frames, without their values.

        Parameters
        ----------
        file : h5py.File
            Empty.

        Returns
        -------
        shape : tuple of int
            (frame, y, x)

        Raises
        ------
        FileError, TrustError, BindError, RequestError
            If there are no counts, or the program cannot do without something that nobody stated.
        """
        try:
            master = self._handle.master
            program = program_for(self.reader, master)
            layout = master.calibration.layout
            shape = (layout.frames, *slab(layout.pixels))
            entry = copy_entry(file, master, 0, layout.frames, self.reader)
            detector = file[master.detector.path]
            check_facts(self.reader, detector, master.resolver.named)
            signal_group(entry, len(shape)).create_dataset(names.IMAGE, shape, program.dtype, chunks=(1, *shape[1:]))
            write_mask(detector, master, program, None, self.reader)
            write_range(detector, program, self.reader)
            return shape
        finally:
            self._handle.close()  # whoever reads images opens it again, maybe in another process

    def image(self, index: int) -> Array:
        """Counts (y, x) of a frame; raises FileError.  One thread computes: such programs start many processes."""
        master = self._handle.master
        evaluation = Evaluation(master.calibration, master.words, program_for(self.reader, master))
        pixels = evaluation.shape[1:]
        values, _ = evaluation.read((index, *(0,) * len(pixels)), (1, *pixels))
        return np.asarray(values.reshape(slab(pixels)))
