"""The only way into a file: a resolver that takes nothing in it on trust.

HDF5 follows links, virtual sources and external storage to any file of the user, searches the
working directory for what it does not find, and crashes on cycles.  So every path is walked here
component by component, and every other file is opened here, by its real path, if it lies below a
directory that the user trusts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import h5py

from gaincal.errors import FileError, TrustError
from gaincal.kernels.libraries import plugins

PLUGIN_VARIABLE = "HDF5_PLUGIN_PATH"
TRUST_VARIABLE = "GAINCAL_TRUST_DIRS"
MAX_HOPS = 32
MAX_COMPONENTS = 64
MAX_MEMBERS = 10_000
MAX_FILES = 4096


class Place:
    """An object in a file, with the names needed to talk about it.

    Attributes
    ----------
    file : Path
        Real path of the file that holds the object.
    path : str
        HDF5 path in that file.
    item : h5py.Group or h5py.Dataset
    """

    __slots__ = ("_dataset", "file", "item", "path")

    def __init__(self, file: Path, path: str, item: h5py.Group | h5py.Dataset) -> None:
        self.file, self.path, self.item = file, path, item
        self._dataset: h5py.Dataset | None = None

    def error(self, problem: str, remedy: str = "", *, code: str) -> FileError:
        """A complaint about this object."""
        return FileError(self.file, self.path, problem, remedy, code=code)

    @property
    def identity(self) -> tuple[Path, int]:
        """File and address of the object, the same under all of its names."""
        return self.file, int(h5py.h5o.get_info(self.item.id).addr)

    @property
    def dataset(self) -> h5py.Dataset:
        """The object as a dataset; raises FileError if it is none, or keeps its values in other files."""
        if self._dataset is not None:  # of a virtual dataset, asking means a copy of all of its mappings
            return self._dataset
        if not isinstance(self.item, h5py.Dataset):
            raise self.error("is not a dataset", code="not-a-dataset")
        if self.item.id.get_create_plist().get_external_count():
            problem = "keeps its values in external raw files, which can name any file"
            raise TrustError(self.file, self.path, problem, "copy it with h5repack", code="external-storage")
        self._dataset = self.item
        return self.item

    @property
    def group(self) -> h5py.Group:
        """The object as a group; raises FileError if it is none."""
        if not isinstance(self.item, h5py.Group):
            raise self.error("is not a group", code="not-a-group")
        return self.item


@contextmanager
def reading(file: str | os.PathLike[str], place: str = "") -> Iterator[None]:
    """Turn what h5py raises on a damaged file into one line."""
    try:
        yield
    except FileError:
        raise
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        text = str(error) or type(error).__name__
        raise FileError(file, place, f"cannot be read: {text}", code="unreadable") from error


def directories(trust: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Directories that a user names, or the one: its letters are none, of which one would be the root."""
    return tuple(os.fspath(t) for t in ([trust] if isinstance(trust, str | os.PathLike) else trust))


class Resolver:
    """Opens a master file and whatever it may lead to.

    Parameters
    ----------
    master : str or path
        The file that the user named.
    trust : iterable of str or path, or one of them
        Further directories whose files may be opened, beside the master's own and those in the
        environment variable ``GAINCAL_TRUST_DIRS``.

    Raises
    ------
    FileError
        If the master is not a regular file that HDF5 can read.
    """

    def __init__(self, master: str | os.PathLike[str], trust: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.master = Path(os.path.realpath(master))
        listed = os.environ.get(TRUST_VARIABLE, "").split(os.pathsep)
        trusted = [*directories(trust), *(d for d in listed if d)]
        self.roots = [self.master.parent, *(Path(os.path.realpath(t)) for t in trusted)]
        self._files: dict[Path, h5py.File] = {}
        self.named = os.fspath(master)
        self._open(self.master, self.named)

    @classmethod
    def of_nothing(cls, named: str | os.PathLike[str]) -> Resolver:
        """A resolver without a file, for a run whose files are not HDF5."""
        resolver = cls.__new__(cls)
        resolver.master, resolver.named = Path(os.path.realpath(named)), os.fspath(named)
        resolver.roots, resolver._files = [], {}
        return resolver

    def __enter__(self) -> Resolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file that was opened."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    @property
    def opened(self) -> list[Path]:
        """Real paths of all files that were opened."""
        return list(self._files)

    def get(self, path: str) -> Place:
        """Walk to an object of the master; raises FileError or TrustError where that is not possible."""
        return self.walk(Place(self.master, "/", self._files[self.master]["/"]), path)

    def find(self, path: str, start: Place | None = None) -> Place | None:
        """Like `get` (or `walk`), but None where nothing of that name exists."""
        try:
            return self.get(path) if start is None else self.walk(start, path)
        except FileError as error:
            if error.code == "not-found":
                return None
            raise

    def beside(self, place: Place, name: str, path: str) -> Place:
        """Walk to an object of another file that `place` names (``.`` is the same file)."""
        file = place.file if name == "." else self._file(place, name)
        return self.walk(Place(file, "/", self._files[file]["/"]), path)

    def walk(self, start: Place, path: str) -> Place:
        """Walk from a group along a path, following only links that stay within the rules."""
        place = Place(start.file, "/", self._files[start.file]["/"]) if path.startswith("/") else start
        components = self._components(start, path)
        hops = 0
        while components:
            name = components.pop(0)
            link = self._link(place, name)
            if isinstance(link, h5py.HardLink):
                place = Place(place.file, f"{place.path.rstrip('/')}/{name}", place.group[name])
                continue
            hops += 1
            if hops > MAX_HOPS:
                raise TrustError(place.file, place.path, f"more than {MAX_HOPS} links in a row", code="link-cycle")
            here = Place(place.file, f"{place.path.rstrip('/')}/{name}", place.item)
            if isinstance(link, h5py.ExternalLink):
                file = self._file(here, link.filename)
                place = Place(file, "/", self._files[file]["/"])
            elif link.path.startswith("/"):
                place = Place(place.file, "/", self._files[place.file]["/"])
            components = self._components(here, link.path) + components
            if len(components) > MAX_COMPONENTS:
                raise TrustError(here.file, here.path, "the path becomes too long", code="link-cycle")
        return place

    def members(self, place: Place) -> list[str]:
        """Names in a group, in alphabetical order; raises TrustError where there are too many."""
        group = place.group
        if len(group) > MAX_MEMBERS:
            problem = f"has {len(group)} members, at most {MAX_MEMBERS} are allowed"
            raise TrustError(place.file, place.path, problem, code="too-many-members")
        names = sorted(name for name in group if isinstance(name, str))
        return [name for name in names if name.isprintable()]

    def _components(self, place: Place, path: str | bytes) -> list[str]:
        if isinstance(path, bytes) or not path.isprintable() or path.startswith("b'"):
            raise TrustError(place.file, place.path, "a name that is not printable text", code="bad-name")
        components = [c for c in path.split("/") if c not in ("", ".")]
        if len(components) > MAX_COMPONENTS:
            problem = f"a path of more than {MAX_COMPONENTS} components"
            raise TrustError(place.file, place.path, problem, code="link-cycle")
        return components

    def _link(self, place: Place, name: str) -> h5py.HardLink | h5py.SoftLink | h5py.ExternalLink:
        try:
            link = place.group.get(name, getlink=True)
        except TypeError:  # a link class that h5py does not know
            raise TrustError(place.file, place.path, f"'{name}' is a user-defined link", code="odd-link") from None
        if link is None:
            where = f"{place.path.rstrip('/')}/{name}"
            raise FileError(place.file, where, "does not exist", code="not-found")
        return link

    def _file(self, place: Place, name: str) -> Path:
        """Open a file that an untrusted file names, if it lies below a trusted directory."""
        if not name.isprintable() or not name:
            raise TrustError(place.file, place.path, "names a file that is not printable text", code="bad-name")
        target = Path(os.path.realpath(place.file.parent / name))
        if not any(target.is_relative_to(root) for root in self.roots):
            problem = f"leads to {target}, outside the directory of {self.named}"
            remedy = f"if you trust it: --trust-dir {target.parent}, trust=[...] or {TRUST_VARIABLE}"
            raise TrustError(place.file, place.path, problem, remedy, code="foreign-file")
        if target not in self._files:
            if len(self._files) >= MAX_FILES:
                raise TrustError(place.file, place.path, f"leads to more than {MAX_FILES} files", code="too-many-files")
            self._open(target, target)
        return target

    def _open(self, real: Path, shown: str | os.PathLike[str]) -> None:
        try:
            # A fifo would block HDF5 for ever; O_NONBLOCK keeps this test itself from blocking.
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise FileError(shown, "", f"cannot be opened: {error.strerror}", code="not-found") from None
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
        if not regular:
            raise TrustError(shown, "", "is not a regular file", code="not-a-file")
        if os.environ.get(PLUGIN_VARIABLE):
            plugins()  # a filter that HDF5 finds there first may not be able to write, and stays while words are open
        try:
            self._files[real] = h5py.File(real, "r", locking="best-effort")
        except OSError as error:
            remedy = (
                "if it is being written, or on NFS or GPFS: set HDF5_USE_FILE_LOCKING=FALSE"
                if "lock file" in str(error)
                else "is it HDF5, and complete?"
            )
            raise FileError(shown, "", f"cannot be opened: {error}", remedy, code="not-hdf5") from None
