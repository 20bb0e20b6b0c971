"""DIALS reads masters: a format class that calibrates the raw words when dxtbx asks for an image.

dxtbx finds it through the entry point group ``dxtbx.format``, in whatever Python DIALS runs; only dxtbx
imports this module.  The base class of dxtbx makes the models (beam, detector, goniometer, scan) from an
NXmx file: it is shown one with what `gaincal apply --for dials` says of the same frames, so that both ways
give the same models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dxtbx.nexus
import h5py
import numpy as np
from dxtbx import flumpy
from dxtbx.format.FormatNXmx import FormatNXmx
from libtbx.utils import Sorry

from gaincal.errors import FileError, GaincalError
from gaincal.nexus import names
from gaincal.nexus.described import copy_entry, write_mask, write_range
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.frames import signal_group
from gaincal.nexus.handle import Handle
from gaincal.nexus.read import Master, locate
from gaincal.nexus.readers import READERS, check_facts, program_for
from gaincal.nexus.slab import slab
from gaincal.nexus.trust import Resolver

READER = READERS["dials"]


class FormatNXmxGaincal(FormatNXmx):  # type: ignore[misc]  # dxtbx has no types, and is not there to be checked
    """NXmx files that hold raw words and their calibration."""

    _image_file: str

    @staticmethod
    def understand(image_file: str) -> bool:
        """Whether the file has a calibration; dxtbx asks this of every NXmx file, so it never raises."""
        try:
            with Resolver(image_file) as resolver:
                return bool(locate(resolver))
        except Exception:
            return False

    def _start(self) -> None:
        """Make the models from what an applied file would say."""
        self._frames = Handle(self._image_file, {})
        with _refusing(self._image_file), tempfile.TemporaryDirectory(prefix="gaincal-") as folder:
            described = Path(folder) / "described.nxs"
            try:
                with h5py.File(described, "w") as file:
                    self._shape = describe(self._frames.master, file)
            finally:
                self._frames.close()  # what reads images opens it again, maybe in another process
            self._start_from(str(described))
            self._check_scan()

    def _start_from(self, described: str) -> None:
        master, self._image_file = self._image_file, described
        try:
            super()._start()
            with h5py.File(described, "r") as file:
                entry = self._get_nxmx(file).entries[0]
                self._slices = dxtbx.nexus.get_detector_module_slices(entry.instruments[0].detectors[0])
        finally:
            self._image_file = master

    def _check_scan(self) -> None:
        frames = self._shape[0]
        if self.get_num_images() != frames:
            problem = f"has {frames} frames, its goniometer {self.get_num_images()} positions"
            raise FileError(self._image_file, "", problem, "mend the raw file and embed again", code="odd-scan")

    def get_raw_data(self, index: int) -> tuple[Any, ...]:
        """Counts of an image, one ``flex.int`` for every panel; flagged pixels lie below the trusted range."""
        with _refusing(self._image_file):
            master = self._frames.master
            # One thread: DIALS starts a process for every core itself.
            evaluation = Evaluation(master.calibration, master.words, program_for(READER, master))
            pixels = evaluation.shape[1:]
            values, _ = evaluation.read((index, *(0,) * len(pixels)), (1, *pixels))
        image = values.reshape(self._shape[1:])
        return tuple(flumpy.from_numpy(np.ascontiguousarray(image[rows, columns])) for rows, columns in self._slices)


@contextmanager
def _refusing(file: str) -> Iterator[None]:
    """Say what gaincal refuses as DIALS says what it refuses: one line, without a traceback."""
    try:
        yield
    except FileError as error:
        raise Sorry(str(error)) from None
    except GaincalError as error:
        raise Sorry(f"{file}: {error}") from None


def describe(master: Master, file: h5py.File) -> tuple[int, ...]:
    """Write what an applied file says of all frames, without their values.

    Parameters
    ----------
    master : Master
    file : h5py.File
        Empty.

    Returns
    -------
    shape : tuple of int
        (frame, y, x)

    Raises
    ------
    RequestError, FileError
        If there are no counts, or DIALS cannot do without something that nobody stated.
    """
    program = program_for(READER, master)
    layout = master.calibration.layout
    shape = (layout.frames, *slab(layout.pixels))
    entry = copy_entry(file, master, 0, layout.frames, shape[1:])
    detector = file[master.detector.path]
    check_facts(READER, detector, master.resolver.named)
    signal_group(entry, len(shape)).create_dataset(names.IMAGE, shape, program.dtype, chunks=(1, *shape[1:]))
    write_mask(detector, master, program, None, READER)
    write_range(detector, program, READER)
    return shape
