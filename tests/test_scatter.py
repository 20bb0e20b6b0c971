"""``apply`` on a dask cluster: the file that plain `apply` writes, whatever happens to workers and parts on the way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy.typing as npt
import pytest
from conftest import Run, build_run
from contract import same_bits

from gaincal.errors import FileError, OutputError, RequestError
from gaincal.nexus.atomic import atomic_output
from gaincal.scatter import apply_on, connected, worker
from gaincal.scatter.order import cut
from gaincal.scatter.parts import NOTE
from gaincal.verbs.apply import apply

distributed = pytest.importorskip("distributed")
pytestmark = [
    # Workers that are killed, and clusters that are closed while something is under way, leave these behind.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # old versions of distributed, of tornado
]

Array = npt.NDArray[Any]
Client = Any
COUNTS = {"output": "counts", "dtype": "int16"}
HOW_TO = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "on-slurm.md"
MASK = "/entry/instrument/detector/pixel_mask"
NOT_COMPARED = ("/entry/process/date", "/entry/data/data", "/entry/data/data_errors")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers with a thread each."""
    with connected("local", 2) as found:
        yield found


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few frames are enough to make several parts."""
    monkeypatch.setattr("gaincal.scatter.order.MIN_FRAMES", 1)
    for module in ("cluster", "command"):
        monkeypatch.setattr(f"gaincal.scatter.{module}.POLL", 0.2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.nxs"


def parts(target: Path) -> list[Path]:
    return sorted(target.with_suffix(".parts").iterdir())


def times(target: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in parts(target)}


def contents(path: Path, place: str) -> Any:
    with h5py.File(path) as file:
        return file[place][()]


def described(path: Path) -> dict[str, Any]:
    """Everything in a file but the frames and the time."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        found[f"/{name}@"] = {key: repr(value) for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset) and f"/{name}" not in NOT_COMPARED:
            found[f"/{name}"] = (item.dtype, item.shape, repr(item[()].tobytes() if item.shape else item[()]))

    with h5py.File(path) as file:
        file.visititems(visit)
        found["@"] = {key: repr(value) for key, value in file.attrs.items()}
    return found


def same_file(found: Path, wanted: Path) -> None:
    """The same bits, and the same metadata, around a virtual dataset."""
    assert described(found) == described(wanted)
    with h5py.File(found) as a, h5py.File(wanted) as b:
        for name in {"data", "data_errors"} & set(b["/entry/data"]):
            assert a["/entry/data"][name].is_virtual
            same_bits(a["/entry/data"][name][()], b["/entry/data"][name][()])


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the same file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", COUNTS),
        ("plain", {"output": "energy", "errors": True, "frames": (2, -1), "flagged": -1.0}),
        ("virtual", {"output": "energy", "errors": True}),
        ("virtual", {"output": "photons", "inputs": {"photon_energy": 9.0}, "reasons": ["saturated", "noisy"]}),
        ("modules", COUNTS),
        ("strip", {}),
        ("single", {}),
    ],
)
def test_the_file_is_that_of_plain_apply(
    client: Client, runs: Callable[[str], Run], tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    run, seen = runs(kind), list[tuple[int, int]]()
    wanted = apply(run.master, tmp_path / "plain.nxs", **options)
    found = apply_on(client, run.master, tmp_path / "far.nxs", **options, progress=lambda *n: seen.append(n))
    assert replace(found, path=wanted.path) == wanted
    same_file(found.path, wanted.path)
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (min(wanted.frames, 8), (wanted.frames, wanted.frames))
    assert [path.name for path in parts(found.path)] == [f"{k:06}.nxs" for k in range(len(seen))]


def test_a_file_for_a_program_is_that_of_plain_apply(
    client: Client, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run = runs("modules")
    wanted = apply(run.master, tmp_path / "plain.h5", reader="crystfel")
    found = apply_on(client, run.master, tmp_path / "far.h5", reader="crystfel")
    same_file(found.path, wanted.path)
    assert wanted.settings is not None
    assert found.settings is not None
    assert found.settings.read_text().replace("far.h5", "plain.h5") == wanted.settings.read_text()


def test_the_default_name_is_that_of_plain_apply(client: Client, own: Run) -> None:
    assert apply_on(client, own.master, output="counts").path == own.master.with_name("master_counts.nxs")


def test_a_pixel_that_is_bad_for_changing_reasons_is_not_dead(client: Client, own: Run, out: Path) -> None:
    with h5py.File(own.raw, "r+") as file:
        file["data"][:3, 3, 3], file["data"][3:, 3, 3] = 0x8123, 0x3FFF
    apply(own.master, out.with_name("plain.nxs"))
    apply_on(client, own.master, out)
    same_file(out, out.with_name("plain.nxs"))
    assert all(contents(part, MASK)[3, 3] & 2 for part in parts(out))
    assert not contents(out, MASK)[3, 3] & 2


def test_the_frames_move_with_their_parts(client: Client, plain: Run, out: Path, tmp_path: Path) -> None:
    apply_on(client, plain.master, out, **COUNTS)
    wanted = contents(out, "/entry/data/data")
    (tmp_path / "100% else").mkdir()
    for path in (out, out.with_suffix(".parts")):
        shutil.move(path, tmp_path / "100% else")
    same_bits(contents(tmp_path / "100% else" / "out.nxs", "/entry/data/data"), wanted)


def test_a_lost_part_reads_as_the_fill(client: Client, plain: Run, out: Path) -> None:
    apply_on(client, plain.master, out, **COUNTS)
    wanted = contents(out, "/entry/data/data")
    parts(out)[0].unlink()
    found = contents(out, "/entry/data/data")
    assert set(found[0].ravel().tolist()) == {-(2**15)}
    same_bits(found[1:], wanted[1:])


def test_names_with_a_per_cent_sign(client: Client, plain: Run, tmp_path: Path) -> None:
    apply_on(client, plain.master, tmp_path / "50%b.nxs", **COUNTS)
    same_bits(contents(tmp_path / "50%b.nxs", "/entry/data/data"), plain.expected("counts", "int16")[0])


def test_a_part_is_a_file_of_its_own(client: Client, plain: Run, out: Path) -> None:
    apply_on(client, plain.master, out, **COUNTS)
    same_bits(contents(parts(out)[0], "/entry/data/data"), plain.expected("counts", "int16")[0][:1])


def test_targets_that_differ_in_their_suffix_do_not_share_parts(client: Client, plain: Run, out: Path) -> None:
    other = out.with_suffix(".h5")
    apply_on(client, plain.master, out, **COUNTS)
    apply_on(client, plain.master, other)
    same_bits(contents(out, "/entry/data/data"), plain.expected("counts", "int16")[0])
    same_bits(contents(other, "/entry/data/data"), plain.expected("energy")[0])


@pytest.mark.parametrize(
    ("frames", "threads", "wanted"),
    [(1, 2, 1), (99, 2, 1), (100, 2, 2), (2_000, 2, 8), (300, 64, 6), (10**6, 16, 64), (10**6, 4_000, 2_000)],
)
def test_the_cut(monkeypatch: pytest.MonkeyPatch, frames: int, threads: int, wanted: int) -> None:
    monkeypatch.setattr("gaincal.scatter.order.MIN_FRAMES", 50)
    assert cut(frames, threads) == wanted


def test_workers_let_go_of_the_files(client: Client, plain: Run, out: Path) -> None:
    apply_on(client, plain.master, out)
    assert set(client.run(lambda: len(worker._masters._open)).values()) == {0}


# --- what is there already -----------------------------------------------------------------


def test_parts_are_used_again(client: Client, plain: Run, out: Path) -> None:
    done = apply_on(client, plain.master, out, **COUNTS)
    before, described_before = times(out), described(out)
    out.unlink()
    assert apply_on(client, plain.master, out, **COUNTS, jobs=1) == done  # whatever this run would have cut
    assert times(out) == before
    assert described(out) == described_before


def _flipped(path: Path) -> None:
    with h5py.File(path) as file:
        place = file["/entry/data/data"].id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(place.byte_offset + place.size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0x10]))


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _unreadable(path: Path) -> None:
    path.write_bytes(b"not HDF5")


def _of_plain_apply(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file[NOTE]


def _swapped(path: Path) -> None:
    shutil.copy(path.with_name("000002.nxs"), path)


def _gone(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + ".part").write_bytes(b"what a killed worker left")


@pytest.mark.parametrize("spoil", [_flipped, _cut_off, _unreadable, _of_plain_apply, _swapped, _gone])
def test_a_spoiled_part_is_replaced(client: Client, plain: Run, out: Path, spoil: Callable[[Path], None]) -> None:
    apply_on(client, plain.master, out, **COUNTS)
    before = times(out)
    out.unlink()
    spoil(parts(out)[1])
    apply_on(client, plain.master, out, **COUNTS)
    changed = {name for name, when in times(out).items() if before[name] != when}
    assert changed == {"000001.nxs"}
    same_bits(contents(out, "/entry/data/data"), plain.expected("counts", "int16")[0])


def _other_words(run: Run) -> None:
    with h5py.File(run.raw, "r+") as file:
        file["data"][0] = 1234


def _other_mask(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file[MASK][...] ^= 2


@pytest.mark.slow  # what decides is in gaincal alone: once, on the current set, is enough
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"output": "photons"}, None),
        ({"flagged": 0}, None),
        ({"inputs": {"photon_energy": 9.0}}, None),
        ({"reasons": ["saturated"]}, None),
        ({"frames": (1, None)}, None),
        ({}, _other_words),
        ({}, _other_mask),
    ],
)
def test_parts_of_something_else_are_replaced(
    client: Client, own: Run, out: Path, options: dict[str, Any], change: Callable[[Run], None] | None
) -> None:
    apply_on(client, own.master, out, output="counts")
    before = times(out)
    if change is not None:
        change(own)
    apply_on(client, own.master, out, **{"output": "counts", **options}, overwrite=True)
    apply(own.master, out.with_name("plain.nxs"), **{"output": "counts", **options})
    same_file(out, out.with_name("plain.nxs"))
    assert not set(before.values()) & set(times(out).values())


def test_parts_of_another_cut_do_not_stay(client: Client, plain: Run, out: Path) -> None:
    apply_on(client, plain.master, out, output="counts")
    (out.with_suffix(".parts") / "notes.txt").write_text("mine")
    apply_on(client, plain.master, out, jobs=1, overwrite=True)
    assert [path.name for path in parts(out)] == [*(f"{k:06}.nxs" for k in range(4)), "notes.txt"]


# --- workers that die ----------------------------------------------------------------------


def _slow() -> None:
    """Make tasks of this worker take long enough to be killed in."""
    write = worker._write

    def slow(part: Any, order: Any) -> None:
        time.sleep(0.3)
        write(part, order)

    worker._write = slow  # type: ignore[assignment]


def test_a_killed_worker_loses_nothing(client: Client, plain: Run, out: Path) -> None:
    client.wait_for_workers(2)
    client.run(_slow)
    victim = next(iter(client.run(os.getpid).values()))

    seen: list[int] = []

    def kill(done: int, total: int) -> None:
        if not seen:
            os.kill(victim, signal.SIGKILL)
        seen.append(done)

    try:
        done = apply_on(client, plain.master, out, **COUNTS, jobs=2, progress=kill)
    finally:
        client.restart()
    assert len(seen) == 8
    wanted = apply(plain.master, out.with_name("plain.nxs"), **COUNTS)
    assert replace(done, path=wanted.path) == wanted
    same_file(out, wanted.path)


def _kill_itself() -> None:
    def die(part: Any, order: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    worker._write = die  # type: ignore[assignment]


def test_workers_that_die_one_after_another_end_it(client: Client, plain: Run, out: Path) -> None:
    allowed = client.cluster.scheduler.allowed_failures
    client.cluster.scheduler.allowed_failures = 0
    client.run(_kill_itself)
    try:
        with pytest.raises(OutputError, match=r"workers died one after another at frames \d+:\d+") as caught:
            apply_on(client, plain.master, out)
    finally:
        client.cluster.scheduler.allowed_failures = allowed
        client.restart()
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_run_without_workers_ends(monkeypatch: pytest.MonkeyPatch, plain: Run, out: Path) -> None:
    monkeypatch.setattr("gaincal.scatter.cluster.PATIENCE", 0.3)
    options = {"n_workers": 0, "dashboard_address": "127.0.0.1:0", "silence_logs": "CRITICAL"}
    with distributed.LocalCluster(**options) as cluster, connected(cluster.scheduler_address) as lonely:
        for jobs in (None, 2):
            with pytest.raises(RequestError, match="no workers for 0 seconds; start some: dask worker tcp://"):
                apply_on(lonely, plain.master, out, jobs=jobs)
    assert not out.exists()


# --- errors --------------------------------------------------------------------------------


def test_an_error_of_a_task_arrives_and_ends_it(client: Client, own: Run, out: Path) -> None:
    with h5py.File(own.raw) as file:
        offset = file["data"].id.get_chunk_info(5).byte_offset
    with own.raw.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x5a\xa5\x5a\xa5")
    with pytest.raises(FileError, match=rf"raw\.h5::/data chunk .*, on worker {socket.gethostname()}") as caught:
        apply_on(client, own.master, out)
    assert caught.value.code == "bad-chunk"
    assert not out.exists()
    assert parts(out)


def test_a_master_that_workers_do_not_see(
    client: Client, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain.master.parent)  # of this process alone
    with pytest.raises(FileError, match=rf"/proc/self/cwd/master\.nxs: .*, on worker {socket.gethostname()}"):
        apply_on(client, "/proc/self/cwd/master.nxs", tmp_path / "out.nxs")


def test_words_that_workers_do_not_see_are_not_missing(
    client: Client, own: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own.master.parent)
    own.raw.rename(own.raw.with_name("moved.h5"))
    own.raw.symlink_to("/proc/self/cwd/moved.h5")
    with pytest.raises(FileError, match=r"(moved|raw)\.h5.*, on worker ") as caught:
        apply_on(client, own.master, out, trust=["/proc/self/cwd"])
    assert not out.exists()
    assert caught.value.exit_code in (4, 5)


def test_a_folder_that_workers_do_not_see(
    client: Client, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"out\.parts/\d{6}\.nxs: cannot be written: No such file .*, on worker "):
        apply_on(client, plain.master, "/proc/self/cwd/out.nxs")


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk(client: Client, plain: Run, out: Path) -> None:
    client.run(_limit, 8192)
    try:
        with pytest.raises(OutputError, match=r"\d{6}\.nxs: cannot be written: File too large, on worker") as caught:
            apply_on(client, plain.master, out)
        wait_until(lambda: not parts(out))  # the other worker was about to find out, too
    finally:
        client.run(_limit, resource.RLIM_INFINITY)
    assert caught.value.code == "write-failed"
    assert not out.exists()


def test_an_existing_file_is_refused_and_untouched(client: Client, plain: Run, out: Path) -> None:
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        apply_on(client, plain.master, out)
    assert out.read_bytes() == b"precious"
    assert not out.with_suffix(".parts").exists()


def test_two_commands_do_not_write_the_same(client: Client, plain: Run, out: Path) -> None:
    with pytest.raises(OutputError) as caught, atomic_output(out):
        apply_on(client, plain.master, out)
    assert caught.value.code == "busy"


@pytest.mark.slow
def test_a_part_that_another_worker_writes_is_waited_for(client: Client, plain: Run, out: Path) -> None:
    apply_on(client, plain.master, out)
    out.unlink()
    first = parts(out)[0]
    first.unlink()
    code = f"""
import time
from gaincal.nexus.atomic import atomic_output
with atomic_output({str(first)!r}) as written:
    print("writing", flush=True)
    time.sleep(1)
    raise SystemExit
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        apply_on(client, plain.master, out)
        assert other.wait() == 0
    same_bits(contents(out, "/entry/data/data"), plain.expected("energy")[0])


def test_without_dask_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RequestError, match=r"pip install 'gaincal\[dask\]'"), connected("local"):
        pass


@pytest.mark.parametrize("address", ["nowhere", "tcp://nowhere", "smoke://signals:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    text = f"--scheduler {address}: .*write tcp://HOST:PORT, or local"
    with pytest.raises(RequestError, match=text), connected(address):
        pass


def test_a_scheduler_that_is_not_there() -> None:
    import dask

    patience = dask.config.set({"distributed.comm.timeouts.connect": "0.5s"})
    with patience, pytest.raises(RequestError, match="no dask scheduler at"), connected("tcp://127.0.0.1:1"):
        pass


# --- the command ---------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from gaincal.cli import main; main(prog_name='gaincal')", "apply"]


def test_the_command(client: Client, plain: Run, out: Path) -> None:
    address = client.scheduler_info()["address"]
    options = [str(plain.master), "-o", str(out), "--output", "counts", "--scheduler", address, "--json"]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["frames"] == 12
    assert done.stderr == ""
    same_bits(contents(out, "/entry/data/data"), plain.expected("counts", "int32")[0])


def running(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append((path.parent / "cmdline").read_text())
    return found


@pytest.mark.slow
def test_an_interrupt_ends_the_command_and_its_workers(client: Client, tmp_path: Path) -> None:
    run = build_run(tmp_path, (3000, 64, 128))
    out = tmp_path / "out.nxs"
    command = [*COMMAND, str(run.master), "-o", str(out), "--scheduler", "local", "--jobs", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:  # type: ignore[call-overload]
        wait_until(lambda: bool(list(tmp_path.glob("out.parts/*.nxs"))), 60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    *progress, last = errors.strip().splitlines()
    assert (process.returncode, last) == (1, "Aborted!")
    assert all(line.startswith("apply: ") for line in progress if line)  # on a slow machine
    assert not out.exists()
    wait_until(lambda: not running(process.pid))
    before = times(out)
    apply_on(client, run.master, out)
    assert {name for name, when in times(out).items() if before.get(name) == when}
    same_bits(contents(out, "/entry/data/data"), run.expected("energy")[0])


# --- the how-to ----------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    text = HOW_TO.read_text("utf-8").partition("## Several machines")[2]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_how_to_runs(
    own: Run, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a cluster of the same interface, which needs no Slurm."""

    class SLURMCluster:
        def __init__(self, **_: object) -> None:
            self.scheduler_address = client.scheduler_info()["address"]

        def __enter__(self) -> SLURMCluster:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def scale(self, jobs: int) -> None:
            assert jobs > 0

    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = SLURMCluster  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    exec(compile(block, str(HOW_TO), "exec"), {"__name__": "__main__"})
    same_bits(contents(tmp_path / "counts.nxs", "/entry/data/data"), own.expected("counts", "int32")[0])


@pytest.mark.slow
def test_the_script_of_the_how_to_runs(own: Run, tmp_path: Path) -> None:
    """With an srun that starts one process here."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    (script,) = blocks("bash")
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    search = f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "SLURM_NTASKS": "1", "TMPDIR": str(tmp_path)}
    script = script.replace("8786", port)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    same_bits(contents(tmp_path / "counts.nxs", "/entry/data/data"), own.expected("counts", "int32")[0])
