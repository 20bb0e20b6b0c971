"""Output that is whole or absent, whatever happens while it is written.

HDF5 crashes the process when a disk runs full and its objects are dropped, so it writes through a
Python file object that remembers the first error, swallows what follows and lets HDF5 close in
peace.  The file appears under its name only after it is on the disk.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py

from gaincal.errors import OutputError, RequestError

PART = ".part"
OBJECT_FORMAT = ("v110", "v110")
COPY_BLOCK = 16 << 20
MAX_CLAIMS = 10
PERMISSIONS = 0o777
BEGIN_TO_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of Linux."""
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class _Sink:
    """What h5py's file-object driver needs, on a descriptor; keeps the first error instead of raising it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.position, self.end = 0, os.fstat(descriptor).st_size
        self.pushed = self.end
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.end)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        return os.pread(self.descriptor, self.end - self.position if size < 0 else size, self.position)

    def readinto(self, buffer: memoryview) -> int:
        with memoryview(buffer).cast("B") as view:
            done = os.preadv(self.descriptor, [view], self.position)
            view[done:] = bytes(len(view) - done)  # HDF5 may read past what it has written so far
            self.position += len(view)
            return len(view)

    def write(self, data: bytes | memoryview) -> int:
        with memoryview(data).cast("B") as view:
            done = 0
            while self.error is None and done < len(view):
                with self._kept():
                    done += os.pwrite(self.descriptor, view[done:], self.position + done)
            self.position += len(view)
            self.end = max(self.end, self.position)
            return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.end = self.position if size is None else size
        with self._kept():
            os.ftruncate(self.descriptor, self.end)
        return self.end

    def flush(self) -> None:
        """Nothing is buffered here."""

    def push(self) -> None:
        """Ask the system to begin with what is new on the disk: what is left for fsync then is little."""
        if _sync_file_range is not None:
            _sync_file_range(self.descriptor, self.pushed, self.end - self.pushed, BEGIN_TO_WRITE)
            self.pushed = self.end

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


class AtomicFile:
    """A file that is being written.

    Attributes
    ----------
    file : h5py.File
    target : Path
    """

    def __init__(self, file: h5py.File, target: Path, sink: _Sink) -> None:
        self.file, self.target, self._sink = file, target, sink

    def check(self) -> None:
        """Raise what went wrong on the disk so far: HDF5 is not told, so long work must ask."""
        if self._sink.error is not None:
            raise self._sink.error

    def push(self) -> None:
        """Let the system write to the disk while the program goes on."""
        self._sink.push()


@contextmanager
def atomic_output(
    target: str | os.PathLike[str], *, overwrite: bool = False, start_from: Path | None = None
) -> Iterator[AtomicFile]:
    """Write an HDF5 file that appears under its name only when it is complete and on the disk.

    Parameters
    ----------
    target : str or path
    overwrite : bool
        Replace an existing file.
    start_from : Path, optional
        Begin with a copy of this file instead of an empty one.

    Raises
    ------
    OutputError
        If the file exists, another process is writing it, or the disk refuses; nothing is left.
    """
    path = Path(target)
    part = path.with_name(path.name + PART)
    refuse_existing(path, overwrite)
    with _owned(path, part) as descriptor:
        try:
            refuse_existing(path, overwrite)
            if start_from is not None:
                os.fchmod(descriptor, start_from.stat().st_mode & PERMISSIONS)
                _copy(start_from, descriptor)
            sink = _Sink(descriptor)
            mode = "w" if start_from is None else "r+"
            # No chunk cache: whole chunks are written once, and a full disk finds nothing to flush.
            with h5py.File(sink, mode, libver=OBJECT_FORMAT, rdcc_nbytes=0) as file:
                output = AtomicFile(file, path, sink)
                yield output
            output.check()
            os.fsync(descriptor)
            _appear(part, path, overwrite)
            _sync_directory(path.parent)
        except BaseException as error:
            cause = sink.error if "sink" in locals() and sink.error else error
            if isinstance(cause, OSError):
                reason = cause.strerror or str(cause)
                raise OutputError(path, "", f"cannot be written: {reason}", code="write-failed") from error
            raise


def write_text(target: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> None:
    """Write a small text file that appears under its name only when it is complete; raises OutputError."""
    write_bytes(target, text.encode("utf-8"), overwrite=overwrite)


def write_bytes(target: str | os.PathLike[str], content: bytes, *, overwrite: bool = False) -> None:
    """Write a small file that appears under its name only when it is complete; raises OutputError."""
    path = Path(target)
    part = path.with_name(path.name + PART)
    refuse_existing(path, overwrite)
    with _owned(path, part) as descriptor:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            _appear(part, path, overwrite)
            _sync_directory(path.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(path, "", f"cannot be written: {reason}", code="write-failed") from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError if something is there that must not be replaced: a file, or what is none, as a device."""
    if path.exists() and not path.is_file():
        raise OutputError(path, "", "is not a regular file", "choose another name", code="exists")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(path, "", "exists already", "choose another name or say --overwrite", code="exists")


def refuse_input(path: Path, inputs: Iterable[Path]) -> None:
    """Raise RequestError if the output is one of the files that are read, by whatever name."""
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise RequestError(f"the output {path} is {source}, which is read: choose another name")


@contextmanager
def _owned(path: Path, part: Path) -> Iterator[int]:
    """The part file, for this process alone: what a killed one left is taken over, after an error nothing is left."""
    try:
        for _ in range(MAX_CLAIMS):
            descriptor = _claim(path, part)
            if descriptor is None:
                continue  # another writer finished, and renamed the file, between our opening and locking it
            try:
                os.ftruncate(descriptor, 0)
                yield descriptor
            finally:
                os.close(descriptor)
            return
        raise _busy(path)
    except BaseException:
        _discard(path, part)
        raise


def _discard(path: Path, part: Path) -> None:
    """Remove the part file, wherever an interrupt fell, unless it is another process's."""
    with suppress(OSError, OutputError):
        descriptor = _claim(path, part)
        if descriptor is not None:
            part.unlink()
            os.close(descriptor)


def _busy(path: Path) -> OutputError:
    return OutputError(path, "", "is being written by another process", code="busy")


def _claim(path: Path, part: Path) -> int | None:
    """Open and lock the part file; None if it is no longer the one of that name."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise OutputError(path, "", f"cannot be written: {error.strerror}", code="write-failed") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            problem = f"cannot be written: {part} is in the way"
            raise OutputError(path, "", problem, "remove it", code="write-failed")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path) from None
        except OSError:
            pass  # a file system without locks: the last one to rename wins, and its file is whole
        if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _appear(part: Path, path: Path, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite`, only if nothing has taken it meanwhile."""
    if not overwrite:
        try:
            os.link(part, path)
        except FileExistsError:
            raise OutputError(path, "", "has appeared meanwhile", "say --overwrite", code="exists") from None
        except OSError:
            refuse_existing(path, overwrite)  # a file system without hard links
        else:
            part.unlink()
            return
    os.replace(part, path)


def _copy(source: Path, descriptor: int) -> None:
    with source.open("rb") as stream:
        while block := stream.read(COPY_BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
