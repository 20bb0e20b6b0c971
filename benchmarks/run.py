"""Measure everything at full size and print ratios: ``python benchmarks/run.py [--json FILE] [--only WORD]``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

import agipd
import cells
import dark_runs
import runs
import starting
import switched
import test_applying
import test_reading
from measure import speed_ratio, take_turns
from test_kernel import FRAMES, family_tasks, numpy_select, one_by_one, peers, tasks

from gaincal import constants
from gaincal.formulas import catalog

ROUNDS = 9
NUMPY_FRAMES = 8
FAMILY_FRAMES = 64
READ_FRAMES, APPLY_FRAMES, DARK_FRAMES = 100, 4000, 4000
APPLY_FLOATS = 1000
CELLS, TRAINS = 64, 8
MEMORY_FRAMES, DARK_MODULES, MEMORY_DARKS = 10_000, 16, 200
Found = dict[str, dict[str, float]]
DARK_PEAK = """
import sys
import gaincal.kernels.dark_loops
from gaincal.verbs.darks import darks

darks((), sys.argv[2], stages={0: sys.argv[1]}, formula="jungfrau_modules", method=sys.argv[3])
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""
PEAK = """
import sys
import gaincal.kernels.stream
from gaincal.verbs.apply import apply

def peak():  # of this process alone: getrusage counts its parent, too
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

before = peak()
apply(sys.argv[1], sys.argv[2], output="counts", dtype="int16")
print(peak() - before)
"""


def kernel() -> Found:
    """The kernel in memory, one thread, relative to copying u2 to f4."""
    found = {}
    for case in switched.SWITCHED:
        times = take_turns(tasks(case, FRAMES) | peers(case, FRAMES), ROUNDS)
        found[case] = {name: speed_ratio(times, name, "copy") for name in times if name != "copy"}
        small = take_turns(tasks(case, NUMPY_FRAMES) | {"numpy": numpy_select(case, NUMPY_FRAMES)}, ROUNDS)
        found[case]["kernel over numpy"] = speed_ratio(small, "kernel", "numpy")
    times = take_turns(one_by_one("0 %", FRAMES), ROUNDS)
    found["0 %, frame by frame"] = {"kernel": speed_ratio(times, "kernel", "copy")}
    ratio = found["0 %"]["kernel"] / found["10 % random"]["kernel"]
    found["0 % over 10 %"] = {"kernel": ratio}
    return found


def families() -> Found:
    """Every formula of the catalogue, unswitched, relative to copying u2 to its output."""
    return {
        name: {"kernel": speed_ratio(take_turns(family_tasks(name, FAMILY_FRAMES), ROUNDS), "kernel", "copy")}
        for name in catalog.names()
    }


def agipd_trains() -> Found:
    """AGIPD, one cell of 1 and 8 trains, relative to reading u2 + u2 and writing f4."""
    return {
        f"{trains} trains": {"kernel": speed_ratio(take_turns(agipd.tasks(trains), ROUNDS), "kernel", "copy")}
        for trains in (1, 8, 16)
    }


def reading() -> Found:
    """Blocks of ten calibrated frames from bitshuffle-LZ4, relative to h5py's raw frames."""
    found: Found = {}
    with TemporaryDirectory() as folder:
        for case in ("0 %", "2 % clustered"):
            master = runs.build(Path(folder) / "run", case, READ_FRAMES)
            for threads in (1, 2):
                os.environ["SLURM_CPUS_PER_TASK"] = str(threads)
                times = take_turns(test_reading.tasks(master, READ_FRAMES), ROUNDS)
                times |= take_turns(test_reading.single(master, READ_FRAMES), ROUNDS)
                found[f"{case}, {threads} threads"] = {
                    "blocks": speed_ratio(times, "calibrated", "h5py raw"),
                    "frame by frame": speed_ratio(times, "calibrated frames", "h5py raw frames"),
                    "one pixel": speed_ratio(times, "calibrated pixel", "h5py raw pixel"),
                }
        for stored in ("bitshuffle-Zstd", "gzip", "none"):
            master = runs.build(Path(folder) / "run", "2 % clustered", READ_FRAMES, stored)
            times = take_turns(test_reading.tasks(master, READ_FRAMES), 3)
            found[f"{stored}, 2 threads"] = {"blocks": speed_ratio(times, "calibrated", "h5py raw")}
    return found


def applying() -> Found:
    """``apply`` from file to file, relative to reading the raw frames through h5py."""
    found: Found = {}
    with TemporaryDirectory() as folder:
        for case in ("0 %", "2 % clustered"):
            for threads in (1, 2):
                own = found.setdefault(f"{case}, {threads} threads", {})
                for name, frames in (("counts", APPLY_FRAMES), ("energy", APPLY_FLOATS)):
                    master = runs.build(Path(folder) / f"run{frames}", case, frames)
                    every = test_applying.tasks(master, frames, threads)
                    times = take_turns({n: every[n] for n in (name, "h5py raw")}, 7, 1)
                    own[name] = speed_ratio(times, name, "h5py raw")
    return found


def agipd_run() -> Found:
    """``apply`` to a run of AGIPD, constants of all cells held or not, relative to h5py reading the words."""
    found: Found = {}
    with TemporaryDirectory() as folder:
        master = cells.build(Path(folder), CELLS, TRAINS)
        for case, most in (("held", 4 << 30), ("not held", 512 << 20)):
            constants.CACHE.most = most
            times = take_turns(cells.tasks(master, 2), 3, 1)
            names = ("signal", "counts")
            found[f"{case}, 2 threads"] = {n: speed_ratio(times, n, "h5py raw") for n in names}
    return found


def taking_darks() -> Found:
    """``darks`` from file to file, relative to h5py's raw words, and to the words as decoded here."""
    found: Found = {}
    with TemporaryDirectory() as folder:
        for stored in dark_runs.FILTERS:
            run = dark_runs.build(Path(folder) / "dark.h5", DARK_FRAMES, stored)
            for threads in (1, 2):
                times = take_turns(dark_runs.tasks(run, DARK_FRAMES, threads), 7, 1)
                names = ("h5py raw", "decoded")
                found[f"{stored}, {threads} threads"] = {f"over {n}": speed_ratio(times, "darks", n) for n in names}
            run.unlink()
    return found


def memory() -> Found:
    """Peak memory of ``apply`` over the imports, in MiB."""
    with TemporaryDirectory() as folder:
        master = runs.build(Path(folder) / "run", "2 % clustered", MEMORY_FRAMES)
        command = [sys.executable, "-c", PEAK, str(master), str(Path(folder) / "out.nxs")]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {f"apply, {MEMORY_FRAMES} frames": {"MiB": peak}, **_dark_memory()}


def _dark_memory() -> Found:
    """Peak memory of ``darks`` with all imports: more frames than a block holds do not change it."""
    found: Found = {}
    with TemporaryDirectory() as folder:
        run = dark_runs.build(Path(folder) / "dark.h5", MEMORY_DARKS, "bitshuffle-LZ4", DARK_MODULES)
        for method in ("mean", "median"):
            command = [sys.executable, "-c", DARK_PEAK, str(run), str(Path(folder) / f"{method}.nxs"), method]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[f"darks ({method}), {DARK_MODULES} modules"] = {"MiB": peak}
    return found


def starts() -> Found:
    """Seconds of a fresh process; they depend on the machine, unlike all ratios above."""
    with TemporaryDirectory() as folder:
        return {"start": starting.all_starts(runs.build(Path(folder) / "run", "2 % clustered", 4))}


PARTS: tuple[Callable[[], Found], ...] = (
    kernel,
    families,
    agipd_trains,
    reading,
    applying,
    agipd_run,
    taking_darks,
    memory,
    starts,
)


def main() -> None:
    """Print what was measured, part by part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    parser.add_argument("--only", metavar="WORD", help="only the parts whose name contains this")
    chosen = parser.parse_args()
    found: dict[str, Found] = {}
    for part in PARTS:
        if chosen.only and chosen.only not in part.__name__:
            continue
        print(f"{part.__name__}: {part.__doc__}")
        found[part.__name__] = part()
        for case, ratios in found[part.__name__].items():
            print(f"  {case:28}", "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
