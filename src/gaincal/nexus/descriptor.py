"""Our own way into the file of a dataset, for what is read without HDF5."""

from __future__ import annotations

import os
import weakref

import h5py

from gaincal.kernels.codecs import Bytes


class Descriptor:
    """A file descriptor of our own, so that nobody else closes it while there is something to read.

    Attributes
    ----------
    number : int
    """

    def __init__(self, file: h5py.File) -> None:
        self.number = os.dup(file.id.get_vfd_handle())
        weakref.finalize(self, os.close, self.number)

    def read_into(self, array: Bytes, place: int) -> int:
        """Read bytes from a place of the file; returns how many there were."""
        done = 0
        with array.data as view:
            while done < len(view):
                count = os.preadv(self.number, [view[done:]], place + done)
                if count == 0:
                    break
                done += count
        return done


def find_descriptor(dataset: h5py.Dataset) -> Descriptor | None:
    """Direct access to the file of a dataset; None where HDF5 alone knows where its bytes lie."""
    file = dataset.file
    if file.driver != "sec2" or file.userblock_size:
        return None
    return Descriptor(file)
