"""Killed, interrupted, or on a full disk: the output is absent or whole, and what was read is as it was."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hostile.harness import Worker, make_run

from gaincal.lazy import open_calibrated
from gaincal.nexus.atomic import PART, atomic_output
from gaincal.verbs.embed import embed

Verb = tuple[str, ...]
FRAMES, Y, X = 36, 128, 256
KILLS = 15
EMBEDDING = ("link", "copy", "in place")


class Scene:
    """A run of some dozens of frames, large enough that writing them takes a while."""

    def __init__(self, home: Path) -> None:
        self.home, self.raw, self.master = home, home / "raw.h5", home / "master.nxs"
        random = np.random.default_rng(4)
        words = random.integers(0, 1 << 14, (FRAMES, Y, X)).astype(np.uint16)
        with h5py.File(self.raw, "w") as file:
            file.create_dataset("words", data=words, chunks=(1, Y, X), fletcher32=True)
        for name in ("pedestal", "gain"):
            with h5py.File(home / f"{name}.h5", "w") as file:
                file["gains"] = random.normal(1000 if name == "pedestal" else 40, 5, (3, Y, X)).astype(np.float32)
        given = {n: home / f"{n}.h5" for n in ("pedestal", "gain")}
        embed(self.raw, self.master, formula="jungfrau", constants=given, settings={"photon_energy": 12.4})
        self.wanted: npt.NDArray[np.float32] = open_calibrated(self.master).values
        shutil.copy(self.raw, home / "raw.saved")

    def arguments(self, how: str) -> list[str]:
        """The command, and where it writes: `target`."""
        if how == "apply":
            return ["apply", str(self.master), "-o", str(self.target(how)), "--jobs", "1"]
        command = ["embed", str(self.raw), "--formula", "jungfrau", "--set=photon_energy=12.4"]
        command += [f"--constant={n}={self.home / n}.h5" for n in ("pedestal", "gain")]
        where = {"link": ["-o", str(self.target(how))], "copy": ["-o", str(self.target(how)), "--copy-raw"]}
        return command + where.get(how, ["--in-place"])

    def target(self, how: str) -> Path:
        return self.raw if how == "in place" else self.home / "out.nxs"

    def reset(self) -> None:
        (self.home / "out.nxs").unlink(missing_ok=True)
        shutil.copy(self.home / "raw.saved", self.raw)

    def inputs(self) -> list[str]:
        names = ("raw.saved", "master.nxs", "pedestal.h5", "gain.h5")
        return [hashlib.sha256((self.home / n).read_bytes()).hexdigest() for n in names]

    def whole(self, how: str) -> bool:
        """Whether the output is there; if it is, all of it must be right."""
        target = self.target(how)
        if how == "in place" and self.raw.read_bytes() == (self.home / "raw.saved").read_bytes():
            return False
        if how != "in place":
            assert self.raw.read_bytes() == (self.home / "raw.saved").read_bytes()
        if not target.exists():
            return False
        if how == "apply":
            with h5py.File(target) as file:
                values = file["/entry/data/data"][()]
        else:
            values = open_calibrated(target).values
        np.testing.assert_array_equal(values, self.wanted)
        return True

    @property
    def parts(self) -> list[Path]:
        return list(self.home.glob(f"*{PART}"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    process = Worker(make_run(tmp_path_factory.mktemp("warm")))
    yield process
    process.close()


def ask(
    worker: Worker, scene: Scene, how: str, signal: str = "", delay: float = 0, until: Path | None = None
) -> dict[str, float]:
    request = {"do": "kill" if signal else "command", "arguments": scene.arguments(how), "foreign": str(scene.home)}
    request |= {"until": str(until or scene.home)}
    answer: dict[str, float] = worker.ask({**request, "signal": signal, "delay": delay})
    assert "crash" not in answer, answer
    return answer


def duration(worker: Worker, scene: Scene, how: str) -> float:
    times = []
    for _ in range(2):
        scene.reset()
        answer = ask(worker, scene, how)
        assert answer["exit"] == 0, answer
        assert scene.whole(how)
        times.append(answer["seconds"])
    scene.reset()
    return min(times)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["apply", "embed"])
def test_a_killed_run_leaves_all_or_nothing(verb: str, scene: Scene, worker: Worker) -> None:
    before = scene.inputs()
    ways = ("apply",) if verb == "apply" else EMBEDDING
    seconds = {how: duration(worker, scene, how) for how in ways}
    ends, stale = [], 0
    for number, share in enumerate(np.random.default_rng(7).permutation(np.linspace(0.05, 1.2, KILLS))):
        how = ways[number % len(ways)]
        scene.reset()
        status = ask(worker, scene, how, "SIGKILL", float(share) * seconds[how])["status"]
        assert status in (0, -9)
        stale += bool(scene.parts)
        ends.append(scene.whole(how))
        assert status != 0 or ends[-1]
        scene.reset()
        assert ask(worker, scene, how)["exit"] == 0
        assert scene.whole(how)
        assert scene.parts == []
    for _ in range(KILLS):  # on a busy machine no share of what it took before may fall into the writing
        if not stale:
            scene.reset()
            ask(worker, scene, ways[0], "SIGKILL", 0, scene.home / f"out.nxs{PART}")
            stale += bool(scene.parts)
    scene.reset()
    assert scene.inputs() == before
    assert stale > 0, "no kill fell into the writing"
    assert not all(ends)


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("how", ["apply", "copy"])
def test_an_interrupted_run_leaves_nothing(how: str, signal: str, scene: Scene, worker: Worker) -> None:
    part = scene.home / f"out.nxs{PART}"
    for delay in (0.002, 0.005, 0.01):
        scene.reset()
        status = ask(worker, scene, how, signal, delay, part)["status"]
        left = scene.parts
        for path in left:
            path.unlink()
        assert left == []
        assert scene.whole(how) or status != 0  # a signal may come after the file has got its name
    scene.reset()


LIMITED = """
import resource, sys
from gaincal import cli
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
cli.main(sys.argv[1:])
"""
PROGRAM = """
import resource, sys
from pathlib import Path
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed
from gaincal.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
home = Path(sys.argv[1])
constants = dict(pedestal=home / "pedestal.h5", gain=home / "gain.h5")
verbs = [lambda: apply(home / "master.nxs", home / "out.nxs", jobs=1)]
for k in range(3):
    options = dict(formula="jungfrau", constants=constants, copy_raw=True)
    verbs.append(lambda: embed(home / "raw.h5", home / "out.nxs", **options))
failed = 0
for verb in verbs:
    try:
        verb()
    except OutputError as error:
        assert (error.code, str(error).count("cannot be written: File too large")) == ("write-failed", 1), error
        failed += 1
print("failed", failed)
"""


def limited(program: str, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program.format(limit=limit), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("how", "limit"), [
    ("apply", 2_000), ("apply", 150_000), ("apply", 1_500_000), ("link", 1_000), ("link", 300_000),
    ("copy", 1_000_000), ("in place", 1_000_000), ("in place", 2_400_000),
])  # fmt: skip
def test_a_full_disk_is_one_line_and_nothing_left(how: str, limit: int, scene: Scene) -> None:
    scene.reset()
    done = limited(LIMITED, limit, *scene.arguments(how))
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr.startswith("gaincal: ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written: File too large" in done.stderr
    assert scene.parts == []
    assert not scene.whole(how)


def test_a_program_survives_a_full_disk(scene: Scene) -> None:
    scene.reset()
    done = limited(PROGRAM, 800_000, str(scene.home))
    assert (done.returncode, done.stdout, done.stderr) == (0, "failed 4\n", "")
    assert scene.parts == []


def test_an_existing_output_is_kept(scene: Scene, worker: Worker) -> None:
    for how in ("apply", "link"):
        scene.reset()
        (scene.home / "out.nxs").write_text("precious")
        assert ask(worker, scene, how)["exit"] == 7
        assert (scene.home / "out.nxs").read_text() == "precious"
        scene.reset()


def test_the_second_of_two_runs_is_told(scene: Scene, worker: Worker) -> None:
    scene.reset()
    with suppress(KeyboardInterrupt), atomic_output(scene.home / "out.nxs"):
        answers = [ask(worker, scene, how) for how in ("apply", "link")]
        raise KeyboardInterrupt
    assert [a["exit"] for a in answers] == [7, 7]
    assert all("is being written by another process" in str(a["err"]) for a in answers)
    assert scene.parts == []
