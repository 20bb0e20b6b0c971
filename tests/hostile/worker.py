"""A second process that opens hostile files, so that a crash of a library is an answer and not the end of the tests.

Requests and answers are lines of JSON. Whoever sends `mutations` gets one answer for a whole batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal import cli
from gaincal.errors import GaincalError
from gaincal.lazy import open_calibrated_dataset
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import open_master
from gaincal.verbs import inspect

Answer = dict[str, Any]
MISSING = np.uint32(1 << 31)
IN_OPEN, IN_ISDIR = 0x20, 0x40000000
EVENT = struct.Struct("iIII")


class Watch:
    """Which files of a directory any code of this process opens, HDF5's own included (inotify)."""

    def __init__(self, directory: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0 or libc.inotify_add_watch(self.descriptor, directory.encode(), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> list[str]:
        names, data, position = [], b"", 0
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.descriptor, 65536):
                data += block
        os.close(self.descriptor)
        while position < len(data):
            _, mask, _, length = EVENT.unpack_from(data, position)
            name = data[position + EVENT.size : position + EVENT.size + length].rstrip(b"\0").decode()
            position += EVENT.size + length
            if not mask & IN_ISDIR:
                names.append(name)
        return names


def values_and_flags(path: str, trust: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]:
    with open_calibrated_dataset(path, trust=trust) as dataset:
        return dataset["energy"].values, dataset["flags"].values


def evaluated(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint32]]:
    """The same as `values_and_flags`, in one go and without xarray, for those who read thousands of files."""
    master = open_master(path)
    with master.resolver:
        evaluation = Evaluation(master.calibration, master.words, master.calibration.program("energy"))
        values, flags = evaluation.read((0,) * len(evaluation.shape), evaluation.shape, with_flags=True)
    assert flags is not None
    return values, flags


def compared(values: npt.NDArray[Any], flags: npt.NDArray[np.uint32], reference: str) -> Answer:
    """Pixels that are missing, and pixels that are neither missing nor those of the unharmed file."""
    with np.load(reference) as stored:
        wanted, reasons = stored["values"], stored["flags"]
    if values.shape != wanted.shape:
        return {"shape": list(values.shape), "missing": int((flags == MISSING).sum()), "wrong": -1}
    missing = flags == MISSING
    same = (values.view(np.uint32) == wanted.view(np.uint32)) & (flags == reasons)
    void = missing & np.isnan(values)
    return {"missing": int(missing.sum()), "wrong": int((~same & ~void).sum()), "shape": list(values.shape)}


def guarded(verb: Callable[[], Any]) -> Answer:
    """What a verb returned, or the error that it raised on purpose, or a traceback."""
    started = time.process_time()
    answer: Answer = {}
    try:
        answer["result"] = verb()
    except GaincalError as error:
        text = str(error)
        answer |= {"error": type(error).__name__, "code": error.code, "exit": error.exit_code, "text": text}
    except BaseException:
        answer |= {"error": "traceback", "code": "", "exit": 1, "text": traceback.format_exc()}
    return answer | {"cpu": time.process_time() - started}


def command(*arguments: str) -> Answer:
    """Run the command line in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    started, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments), standalone_mode=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            code = 1
            traceback.print_exc()
    taken = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    return {"exit": code, "out": out.getvalue(), "err": err.getvalue(), "peak": peak(), **taken}


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes of memory that this process had since `forget_peak`, beyond what it has now."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * (int(status["VmHWM"].split()[0]) - int(status["VmRSS"].split()[0]))


def probe(path: str, reference: str, trust: list[str], output: str, command_line: bool) -> Answer:
    """Everything that a user may do with a file, one after the other."""

    def opened() -> None:
        open_master(path, trust=trust).resolver.close()

    def read() -> Answer:
        return compared(*values_and_flags(path, trust), reference)

    def validated() -> list[list[str]]:
        return [[f.code, f.severity, f.place, f.problem] for f in inspect.validate(path, trust=trust)]

    options = [word for directory in trust for word in ("--trust-dir", directory)]
    answer = {
        "open": guarded(opened),
        "read": guarded(read),
        "validate": guarded(validated),
    }
    if not command_line:
        return answer
    return answer | {
        "info": guarded(lambda: json.dumps(inspect.info(path, trust=trust), default=str)),
        "cli info": command("info", path, *options),
        "cli apply": command("apply", path, "-o", output, "--json", "--jobs", "1", *options),
        "cli validate": command("validate", path, "--json", *options),
    }


def mutate(path: str, reference: str, scratch: str, edits: list[list[list[int]]]) -> int:
    """For every edit (pairs of an offset and bits to flip): how reading the edited file ends, as a line of a file."""
    original = Path(path).read_bytes()
    known = {(f.code, f.problem) for f in inspect.validate(path)}
    with Path(f"{scratch}.ends").open("w", buffering=1) as ends:
        for edit in edits:
            edited = bytearray(original)
            for offset, flip in edit:
                edited[offset] ^= flip
            Path(scratch).write_bytes(edited)
            found = guarded(lambda: compared(*evaluated(scratch), reference))
            ends.write(json.dumps([_ending(found, scratch, known), found.get("text", "")]) + "\n")
    return len(edits)


def _ending(found: Answer, scratch: str, known: set[tuple[str, str]]) -> str:
    if "error" in found:
        return "traceback" if found["error"] == "traceback" else "error"
    if found["result"]["missing"] == 0 and found["result"]["wrong"] == 0:
        return "same"
    new = {(f.code, f.problem) for f in inspect.validate(scratch)} - known
    return "finding" if new else "silent"


def serve(request: Answer) -> Any:
    forget_peak()
    if request["do"] == "probe":
        watch = Watch(request["foreign"])
        wanted = ("path", "reference", "trust", "output", "command_line")
        answer = probe(*(request[key] for key in wanted))
        answer["peak"] = peak()
        return answer | {"foreign": watch.opened()}
    if request["do"] == "mutations":
        keys = ("path", "reference", "scratch", "edits")
        return mutate(*(request[key] for key in keys))
    if request["do"] == "command":
        watch = Watch(request["foreign"])
        return command(*request["arguments"]) | {"foreign": watch.opened()}
    return _killed(request) if request["do"] == "kill" else None


def _killed(request: Answer) -> Answer:
    """Run a command in a fork and send it a signal some time after a file appears: how it ended."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(command(*request["arguments"])["exit"])
    awaited, deadline = Path(request["until"]), time.monotonic() + 10
    while not awaited.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(request["delay"])
    os.kill(child, signal.Signals[request["signal"]])
    status = os.waitpid(child, 0)[1]
    return {"status": os.waitstatus_to_exitcode(status)}


def requests(stream: io.TextIOBase) -> Iterator[Answer]:
    for line in stream:
        yield json.loads(line)


def warm_up(master: str) -> None:
    """Load libraries and compile the kernels, so that times are those of the file alone."""
    import hdf5plugin  # noqa: F401

    values_and_flags(master, [])
    with tempfile.TemporaryDirectory() as directory:
        command("apply", master, "-o", f"{directory}/applied.nxs", "--jobs", "1")
    inspect.validate(master)


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")  # plug-ins of HDF5 print to the real standard output
    os.dup2(2, 1)
    warm_up(sys.argv[1])
    for request in requests(sys.stdin):  # type: ignore[arg-type]
        channel.write(json.dumps(serve(request)) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
