"""A master that is open when it is needed, in whatever process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from gaincal.errors import FileError
from gaincal.formulas.program import Program
from gaincal.kernels.threads import available_threads
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import Master, open_master


class Handle:
    """A master, opened once per process and reopened after a fork or a pickle; the same file or an error."""

    def __init__(self, path: str, options: Mapping[str, Any], checksum: str | None = None) -> None:
        self.path, self.options, self.checksum = os.path.abspath(path), dict(options), checksum
        self._lock = threading.Lock()
        self._master: Master | None = None
        self._evaluations: dict[Program, Evaluation] = {}
        self._process = -1

    @property
    def master(self) -> Master:
        """The open master of this process."""
        with self._lock:
            if self._master is None or self._process != os.getpid():
                self._master = self._open()
                self._evaluations.clear()
                self._process = os.getpid()
            return self._master

    def evaluation(self, program: Program) -> Evaluation:
        """What computes a program from the open master, with the threads that this process may use."""
        master, threads = self.master, available_threads()
        found = self._evaluations.get(program)
        if found is None or found.calibration is not master.calibration or found.threads != threads:
            found = Evaluation(master.calibration, master.words, program, threads)
            self._evaluations[program] = found
        return found

    def _open(self) -> Master:
        master = open_master(self.path, **self.options)
        found = master.stored.checksum
        if self.checksum is not None and found != self.checksum:
            master.resolver.close()
            problem = "holds another calibration than when this view was made"
            raise FileError(self.path, "", problem, "open it again", code="checksum-differs")
        self.checksum = found
        return master

    def close(self) -> None:
        """Close its files until somebody asks again."""
        with self._lock:
            if self._master is not None and self._process == os.getpid():
                self._master.resolver.close()
            self._master = None
            self._evaluations.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "options": self.options, "checksum": self.checksum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["options"], state["checksum"])  # type: ignore[misc]
