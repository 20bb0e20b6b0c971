"""DIALS reads masters: a format class that calibrates the raw words when dxtbx asks for an image.

dxtbx finds it through the entry point group ``dxtbx.format``, in whatever Python DIALS runs; only dxtbx
imports this module, for every NXmx file that it is shown.  So gaincal itself is imported when it is needed.

The base class of dxtbx makes the models (beam, detector, goniometer, scan) from an NXmx file: it is shown
one with what `gaincal apply --for dials` says of the same frames, so that both ways give the same models.
"""

from __future__ import annotations

import logging
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


class FormatNXmxGaincal(FormatNXmx):  # type: ignore[misc]  # dxtbx has no types, and is not there to be checked
    """NXmx files that hold raw words and their calibration."""

    _image_file: str

    @staticmethod
    def understand(image_file: str) -> bool:
        """Whether the file has a calibration; dxtbx asks this of every NXmx file, so it never raises."""
        try:
            from gaincal.clients.frames import has_calibration

            return has_calibration(image_file)
        except ImportError as error:
            logging.getLogger(__name__).warning("gaincal cannot be used: %s", error)
        except Exception:
            logging.getLogger(__name__).debug("not for gaincal", exc_info=True)
        return False

    def _start(self) -> None:
        """Make the models from what an applied file would say."""
        from gaincal.clients.frames import Frames
        from gaincal.nexus.readers import READERS

        self._frames = Frames(self._image_file, READERS["dials"])
        with _refusing(self._image_file), tempfile.TemporaryDirectory(prefix="gaincal-") as folder:
            described = Path(folder) / "described.nxs"
            with h5py.File(described, "w") as file:
                frames = self._frames.describe(file)[0]
            self._start_from(str(described))
            if self.get_num_images() != frames:
                problem = f"has {frames} frames, its goniometer {self.get_num_images()} positions"
                raise FileError(self._image_file, "", problem, "mend the raw file and embed again", code="odd-scan")

    def _start_from(self, described: str) -> None:
        """Let the base class read another file."""
        master, self._image_file = self._image_file, described
        try:
            super()._start()
            with h5py.File(described, "r") as file:
                entry = self._get_nxmx(file).entries[0]
                self._panels = dxtbx.nexus.get_detector_module_slices(entry.instruments[0].detectors[0])
        finally:
            self._image_file = master

    def get_raw_data(self, index: int) -> tuple[Any, ...]:
        """Counts of an image, one ``flex.int`` for every panel; flagged pixels lie below the trusted range."""
        with _refusing(self._image_file):
            image = self._frames.image(index)
        return tuple(flumpy.from_numpy(np.ascontiguousarray(image[rows, columns])) for rows, columns in self._panels)


@contextmanager
def _refusing(file: str) -> Iterator[None]:
    """Say what gaincal refuses as DIALS says what it refuses: one line, without a traceback."""
    try:
        yield
    except FileError as error:
        raise Sorry(str(error)) from None
    except GaincalError as error:
        raise Sorry(f"{file}: {error}") from None
