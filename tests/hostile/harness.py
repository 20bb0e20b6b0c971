"""An unharmed run to start from, the process that opens what became of it, and what must hold then."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.lazy import open_calibrated_dataset
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
FRAMES, Y, X = 6, 16, 32
SHAPE = (FRAMES, Y, X)
FRAME = Y * X
DETECTOR = "/entry/instrument/detector"
RAW = f"{DETECTOR}/raw"
WORDS = f"{RAW}/data"
CALIBRATION = f"{DETECTOR}/calibration/jungfrau"
CHECKSUM = "integrity/checksum"
GIVEN = "given"
STORED = "/data/words"
CANARY = b"TOP-SECRET-"
LIMIT_SECONDS = 2.0
"""Of CPU time, which other processes do not make longer; who waits for ever runs out of patience."""
PEAK = 128 << 20
PATIENCE_SECONDS = 120
BATCH = 250
EXIT_CODES = {"FileError": 4, "TrustError": 5, "BindError": 6, "RequestError": 2, "OutputError": 7}


def words(seed: int = 1) -> Array:
    """Words of all stages, none of them zero, with noise in the low bits only: every filter can shrink them."""
    random = np.random.default_rng(seed)
    stages = np.repeat(random.integers(0, 4, (FRAMES, Y)), X).reshape(SHAPE)
    return np.asarray(stages << 14 | random.integers(1, 16, SHAPE) << 2 | 0x100, np.uint16)


def constants() -> dict[str, Array]:
    random = np.random.default_rng(2)
    shape = (3, Y, X)
    return {
        "pedestal": random.normal(1000, 10, shape).astype(np.float32),
        "gain": random.normal(40, 1, shape).astype(np.float32),
    }


@dataclass(frozen=True)
class Run:
    """A directory with ``raw.h5`` and ``master.nxs``, and a foreign one beside it.

    Attributes
    ----------
    home, foreign : Path
    reference : Path
        What the unharmed master gives.
    """

    home: Path
    foreign: Path
    reference: Path

    @property
    def master(self) -> Path:
        return self.home / "master.nxs"

    @property
    def raw(self) -> Path:
        return self.home / "raw.h5"

    @property
    def theirs(self) -> Path:
        """A file of somebody else, with words that would fit."""
        return self.foreign / "their.h5"

    def copy(self, directory: Path) -> Run:
        shutil.copytree(self.home, directory / "run")
        shutil.copytree(self.foreign, directory / "run-of-others")
        return Run(directory / "run", directory / "run-of-others", self.reference)


def make_run(directory: Path, copy_raw: bool = False, **filters: Any) -> Run:
    run = Run(directory / "run", directory / "run-of-others", directory / "reference.npz")
    run.home.mkdir(parents=True)
    run.foreign.mkdir()
    with h5py.File(run.raw, "w") as file:
        file.create_dataset(STORED, data=words(), chunks=(1, Y, X), **({"fletcher32": True} | filters))
    with h5py.File(run.theirs, "w") as file:
        file.create_dataset("/group/data", data=words(99), chunks=(1, Y, X))
        file["/group"].attrs["NX_class"] = "NXdata"
    (run.foreign / "secret.bin").write_bytes(CANARY * 8192)
    settings = {"photon_energy": 12.4, "sample_name": "unharmed"}
    embed(run.raw, run.master, formula="jungfrau", constants=constants(), settings=settings, copy_raw=copy_raw)
    with open_calibrated_dataset(run.master) as found:
        np.savez(run.reference, values=found["energy"].values, flags=found["flags"].values)
    return run


def put(master: Path, make: Callable[[h5py.Group], object], path: str = WORDS) -> None:
    """Replace an object of a file: `make` gets the group and creates the last component."""
    parent, _, name = path.rpartition("/")
    with h5py.File(master, "r+") as file:
        if name in file[parent]:
            del file[parent][name]
        make(file[parent])


def put_words(master: Path, data: Any, **options: Any) -> None:
    put(master, lambda group: group.create_dataset("data", data=data, **options))


def put_mappings(
    file: Path, *sources: tuple[slice, str, str, tuple[int, ...], slice | None], path: str = WORDS
) -> None:
    """Put a virtual dataset there: (target frames, file, path, shape, source frames) of each mapping."""
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    for target, name, dataset, shape, part in sources:
        source = h5py.VirtualSource(name, dataset, shape)
        layout[target] = source if part is None else source[part]
    put(file, lambda group: group.create_virtual_dataset(path.rpartition("/")[2], layout), path)


def put_mapping(
    file: Path, name: str, dataset: str = STORED, shape: tuple[int, ...] = SHAPE, part: slice | None = None
) -> None:
    put_mappings(file, (slice(None), name, dataset, shape, part))


def stamp(file: h5py.File, path: str = CALIBRATION) -> None:
    """Make the checksums right again, as section 8 of the specification defines them."""
    group = file[path]
    constants = _declared_constants(group)
    for name in constants:
        _stamp_slabs(group, name)
    fields: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        held = name.split("/", maxsplit=1)[0] if name.count("/") == 1 else ""
        constant = held in constants and name == f"{held}/{held}"
        if isinstance(item, h5py.Dataset) and name != "integrity/checksum" and not constant:
            fields[name] = item

    group.visititems(visit)
    digest = hashlib.sha256()
    for name in sorted(fields, key=str.encode):
        data = np.empty(fields[name].shape, fields[name].dtype)
        if data.size:
            fields[name].read_direct(data)
        digest.update(f"{name}|".encode() + _hashed(data))
    del group["integrity/checksum"]
    group.create_dataset("integrity/checksum", data=np.bytes_("sha256:" + digest.hexdigest()))


def _declared_constants(group: h5py.Group) -> set[str]:
    names = group["constants/name"][()] if "constants/name" in group else ()
    return {bytes(n).decode("ascii", "replace") for n in np.ravel(names) if isinstance(n, bytes)}


def _stamp_slabs(group: h5py.Group, name: str) -> None:
    """Write the checksums of a constant's slabs anew, where it has any that can be read."""
    path = f"{name}/{name}"
    if not name or path not in group or not isinstance(group[path], h5py.Dataset):
        return
    if group[path].dtype.kind not in "iufbS" or group[path].size > 10**8:
        return
    values = np.asarray(group[path][()])
    sums = np.zeros((*values.shape[:-2], 32), np.uint8)
    for place in np.ndindex(values.shape[:-2]):
        sums[place] = np.frombuffer(hashlib.sha256(_hashed(values[place])).digest(), np.uint8)
    if f"{name}/checksums" in group:
        del group[f"{name}/checksums"]
    group[f"{name}/checksums"] = sums


def _hashed(data: Any) -> bytes:
    """What a checksum takes of an array: type, shape, little-endian values."""
    data = np.asarray(data)
    kind = "b1" if data.dtype == np.bool_ else f"{data.dtype.kind}{data.dtype.itemsize}"
    little = data.astype(data.dtype.newbyteorder("<")) if data.dtype.kind in "iuf" else data
    return f"{kind}|{','.join(str(n) for n in data.shape)}|".encode() + np.ascontiguousarray(little).tobytes()


def replace_field(group: h5py.Group, path: str, data: Any, **options: Any) -> None:
    if path in group:
        del group[path]
    group.create_dataset(path, data=data, **options)


# --- the process that opens files --------------------------------------------------------------


class Worker:
    """Sends requests to ``worker.py``, and starts another one where it crashed."""

    def __init__(self, unharmed: Run) -> None:
        self._unharmed = unharmed
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer; ``{"crash": how}`` where a signal (or, for a hang, this) ended the process instead."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        if not ready:
            process.kill()
        self._process = None
        code = process.wait()
        self._close(process)
        if code >= 0:
            raise RuntimeError(f"worker.py failed by itself, not by a signal: exit code {code}, see its standard error")
        return {"crash": f"hangs after {PATIENCE_SECONDS} s" if not ready else f"ended with {code}"}

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(PATIENCE_SECONDS)
            self._close(self._process)
            self._process = None

    @staticmethod
    def _close(process: subprocess.Popen[str]) -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with_pending = stream
                try:
                    with_pending.close()
                except BrokenPipeError:
                    pass

    def _start(self) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("worker.py")
        environment = {k: v for k, v in os.environ.items() if k != "GAINCAL_TRUST_DIRS"}
        return subprocess.Popen(
            [sys.executable, str(script), str(self._unharmed.master)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )


# --- what must hold ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """An error of this class and code: when the file is opened, or only when its damaged words are read."""

    kind: str
    code: str
    reading: bool = False


@dataclass(frozen=True)
class Gone:
    """So many pixels are flagged as missing; all others are right."""

    pixels: int


@dataclass(frozen=True)
class Right:
    """All values and flags are those of the unharmed file."""


@dataclass(frozen=True)
class Case:
    """A hostile file: how to make it out of an unharmed run, and how it must end."""

    build: Callable[[Run], object]
    outcome: Refused | Gone | Right
    path: Callable[[Run], Path] = lambda run: run.master
    command_line: bool = True

    def __str__(self) -> str:
        return getattr(self.build, "__name__", "case")


def probe(
    worker: Worker, run: Run, path: Path, trust: tuple[Path, ...] = (), command_line: bool = True
) -> dict[str, Any]:
    """Do everything with a file that a user can do."""
    request = {
        "command_line": command_line,
        "do": "probe",
        "path": str(path),
        "reference": str(run.reference),
        "trust": [str(t) for t in trust],
        "output": str(run.home / "applied.nxs"),
        "foreign": str(run.foreign),
    }
    answer: dict[str, Any] = worker.ask(request)
    return answer


def require(run: Run, answer: dict[str, Any], outcome: Refused | Gone | Right) -> None:
    """Nothing crashed, hung, printed a traceback or opened a foreign file, and the end is the right one."""
    assert "crash" not in answer, answer
    assert answer["foreign"] == []
    for verb in {"open", "read", "info", "validate"} & set(answer):
        assert answer[verb].get("error") != "traceback", answer[verb]["text"]
        assert answer[verb].get("text", "").isprintable()
        assert answer[verb]["cpu"] < LIMIT_SECONDS, verb
    for verb in [v for v in answer if v.startswith("cli ")]:
        assert "Traceback" not in answer[verb]["err"], answer[verb]["err"]
        assert answer[verb]["cpu"] < LIMIT_SECONDS, verb
    assert answer["peak"] < PEAK
    assert CANARY.decode() not in json.dumps(answer)
    if isinstance(outcome, Refused):
        _require_refused(run, answer, outcome)
        return
    missing = outcome.pixels if isinstance(outcome, Gone) else 0
    assert answer["read"].get("text") is None
    assert answer["read"]["result"] == {"missing": missing, "wrong": 0, "shape": list(SHAPE)}
    assert ("words-missing" in _codes(answer, "warning")) == bool(missing)
    assert _codes(answer, "error") == []
    if "cli info" not in answer:
        return
    assert [answer[f"cli {verb}"]["exit"] for verb in ("info", "apply", "validate")] == [0, 0, 0]
    assert json.loads(answer["cli apply"]["out"])["flags"]["missing"] == missing


def _require_refused(run: Run, answer: dict[str, Any], wanted: Refused) -> None:
    fault = {"error": wanted.kind, "code": wanted.code, "exit": EXIT_CODES[wanted.kind]}
    for verb in {"read"} if wanted.reading else {"open", "read", "info"} & set(answer):
        assert {k: answer[verb].get(k) for k in fault} == fault, answer[verb]
    assert wanted.code in _codes(answer, "error"), answer["validate"]
    if "cli info" not in answer:
        return
    for verb in ("apply",) if wanted.reading else ("info", "apply"):
        found = answer[f"cli {verb}"]
        assert found["exit"] == EXIT_CODES[wanted.kind], found
        assert found["err"].startswith("gaincal: ")
        assert found["err"].count("\n") == 1
        assert found["err"].rstrip("\n").isprintable()
        assert found["out"] == ""
    assert answer["cli validate"]["exit"] == 8
    assert not list(run.home.glob("applied.nxs*"))


def _codes(answer: dict[str, Any], severity: str) -> list[str]:
    return [code for code, found, _, _ in answer["validate"].get("result", []) if found == severity]


def commanded_once(cases: list[Case]) -> list[Case]:
    """Only the first case of each outcome goes through the command line, which prints what the library raises."""
    seen: set[Refused | Gone | Right] = set()
    kept = []
    for case in cases:
        kept.append(replace(case, command_line=case.outcome not in seen))
        seen.add(case.outcome)
    return kept


def run_case(worker: Worker, unharmed: Run, directory: Path, case: Case) -> None:
    run = unharmed.copy(directory)
    case.build(run)
    require(run, probe(worker, run, case.path(run), command_line=case.command_line), case.outcome)


Edit = list[tuple[int, int]]
"""Offsets in a file, and the bits to flip there."""


def endings(worker: Worker, run: Run, edits: list[Edit]) -> list[tuple[str, str]]:
    """How reading ends for every edit of the master: (ending, text); a crash is one of the endings."""
    scratch = run.home / "edited.nxs"
    ends = scratch.with_name(f"{scratch.name}.ends")
    request = {"do": "mutations", "path": str(run.master), "reference": str(run.reference), "scratch": str(scratch)}
    found: list[tuple[str, str]] = []
    while len(found) < len(edits):
        ends.write_text("")
        answer = worker.ask({**request, "edits": edits[len(found) : len(found) + BATCH]})
        found += [(end, text) for end, text in map(json.loads, ends.read_text().splitlines())]
        if isinstance(answer, dict):
            found.append(("crash", answer["crash"]))
    return found
