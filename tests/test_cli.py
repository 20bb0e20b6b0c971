"""The command line: what it prints for people and programs, its exit codes, and what it does not import."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from conftest import PHOTON_ENERGY, Command, Run, build_run, make_constants, write_raw

from gaincal import __version__, progress
from gaincal.cli import main
from gaincal.formulas.catalog import source
from gaincal.formulas.formula import Formula
from gaincal.kernels.libraries import plugins

HEAVY = ("numba", "llvmlite", "xarray", "dask", "matplotlib", "pandas", "scipy")
MAIN = "from gaincal.cli import main; main(prog_name='gaincal')"


@dataclass(frozen=True)
class Bench:
    """Files for commands."""

    directory: Path
    raw: Path
    master: Path
    toml: Path
    constants: tuple[str, ...]

    def __truediv__(self, name: str) -> Path:
        return self.directory / name


def make_bench(directory: Path) -> Bench:
    run = build_run(directory, (6, 8, 16))
    np.save(directory / "pedestal.npy", run.pedestal)
    np.save(directory / "gain.npy", run.gain)
    (directory / "mine.toml").write_text(source("jungfrau"))
    (directory / "bad.toml").write_text(source("jungfrau").replace("(adc - pedestal[stage])", "(adc - pedestal[stage]"))
    constants = [f"{n}={directory / n}.npy" for n in ("pedestal", "gain")]
    options = tuple(text for c in constants for text in ("--constant", c))
    return Bench(directory, run.raw, run.master, directory / "mine.toml", options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Files that no test changes."""
    bench = make_bench(tmp_path_factory.mktemp("shared"))
    (bench / "text.nxs").write_text("not HDF5")
    (bench / "existing.nxs").write_bytes(b"precious")
    content = bytearray(bench.master.read_bytes())
    (bench / "changed.nxs").write_bytes(content)
    with h5py.File(bench / "changed.nxs", "r+") as file:
        file["/entry/instrument/detector/calibration/jungfrau/gain/gain"][0, 0, 0] += 1
    pedestal, _ = make_constants((8, 15))
    np.save(bench / "narrow.npy", pedestal)
    far = bench / "far"
    far.mkdir()
    (far / "master.nxs").write_bytes(content)
    with h5py.File(far / "master.nxs", "r+") as file:
        del file["/entry/instrument/detector/raw/data"]
        file["/entry/instrument/detector/raw/data"] = h5py.ExternalLink("../raw.h5", "/data")
    return bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Files that a test may change."""
    return make_bench(tmp_path)


# --- what is printed -----------------------------------------------------------------------


def test_embed_says_what_it_made(bench: Bench, gaincal: Command) -> None:
    result = gaincal("embed", bench.raw, "-o", bench / "new.nxs", "--formula", "jungfrau", *bench.constants)
    assert result.code == 0
    assert result.out == f"{bench / 'new.nxs'}: outputs energy\n"
    assert result.err.startswith("note: NXmx needs, and nobody stated: ")


def test_embed_prints_json(bench: Bench, gaincal: Command) -> None:
    options = (
        "--set",
        "photon_energy=12.4",
        "--mask",
        bench / "mask.npy",
        "--id",
        f"n={bench / 'pulses.h5'}::/pulse_id",
    )
    formula = ("--formula", bench.toml, "--copy-raw", "--json")
    result = gaincal("embed", f"{bench.raw}::/data", "-o", bench / "new.nxs", *formula, *bench.constants, *options)
    assert result.code == 0
    assert set(result.json) == {"path", "checksum", "outputs", "notes"}
    assert result.json["path"] == str(bench / "new.nxs")
    assert result.json["outputs"] == ["energy", "photons", "counts", "energy_variance"]


def test_embed_in_place(bench: Bench, gaincal: Command) -> None:
    assert gaincal("embed", bench.raw, "--in-place", "--formula", "jungfrau", *bench.constants).code == 0
    assert gaincal("info", bench.raw, "--json").json["formula"]["name"] == "jungfrau"


def test_apply_says_what_it_made_and_why_pixels_are_bad(bench: Bench, gaincal: Command) -> None:
    result = gaincal("apply", bench.master, "-o", bench / "out.nxs", "--output", "counts", "--dtype", "int16")
    assert result.code == 0
    first, *rest = result.out.splitlines()
    assert first == f"{bench / 'out.nxs'}: 6 frames of counts (photon) as int16"
    assert re.search(r"saturated +\d+ pixels +\d+\.\d{4} %", "\n".join(rest))
    assert result.err == ""


def test_apply_prints_json(bench: Bench, gaincal: Command) -> None:
    options = ("--frames", "1:4", "--flagged", "zero", "--set", "photon_energy=6.2", "--jobs", "2", "--json")
    result = gaincal("apply", bench.master, "--output", "photons", *options)
    assert result.code == 0
    keys = {"path", "output", "dtype", "units", "frames", "missing_frames", "pixels", "flags", "not_tested", "settings"}
    assert set(result.json) == keys
    assert result.json["path"] == str(bench / "master_photons.nxs")
    assert (result.json["frames"], result.json["pixels"]) == (3, 128)
    assert all(isinstance(count, int) for count in result.json["flags"].values())


@pytest.mark.parametrize(("text", "value"), [("zero", 0.0), ("-5", -5.0), ("nan", np.nan)])
def test_apply_fills_flagged_pixels_as_told(bench: Bench, gaincal: Command, text: str, value: float) -> None:
    assert gaincal("apply", bench.master, "-o", bench / "out.nxs", "--flagged", text).code == 0
    with h5py.File(bench / "out.nxs") as file:
        np.testing.assert_array_equal(file["/entry/data/data"][:, 0, 0], np.full(6, value))


def test_info_prints_what_a_file_holds(shared: Bench, gaincal: Command) -> None:
    result = gaincal("info", shared.master)
    assert result.code == 0
    for part in ("jungfrau version 1", "uint16 (6, 8, 16)", "photon_energy = 12.4", "photons [photon]", "pulse_id"):
        assert part in result.out


def test_info_prints_json(shared: Bench, gaincal: Command) -> None:
    found = gaincal("info", shared.master, "--json").json
    keys = "file calibration view_of others checksum raw ids account formula outputs flags inputs constants masked"
    assert set(found) == {*keys.split(), "metadata_missing"}


def test_info_lists_the_datasets_of_any_other_file(shared: Bench, gaincal: Command) -> None:
    assert "/data  uint16 (6, 8, 16)" in gaincal("info", shared.raw).out
    found = gaincal("info", shared.raw, "--json").json
    assert found == {
        "file": str(shared.raw),
        "calibration": None,
        "account": None,
        "datasets": [{"path": "/data", "shape": [6, 8, 16], "dtype": "uint16"}],
    }


def test_info_prints_only_json_that_any_parser_takes(bench: Bench, gaincal: Command) -> None:
    with h5py.File(bench.master, "r+") as file:
        file["/entry/instrument/detector/raw/time"] = np.array([0.0, np.nan, np.inf, 1.0, 2.0, 3.0])
    assert "time" in gaincal("info", bench.master, "--json").json["ids"]


def test_validate_lists_findings(shared: Bench, gaincal: Command) -> None:
    result = gaincal("validate", shared.master)
    assert result.code == 0
    assert "metadata-missing" in result.out
    assert result.out.splitlines()[-1].startswith("0 errors, ")


def test_validate_prints_json_and_fails_for_errors(shared: Bench, gaincal: Command) -> None:
    result = gaincal("validate", shared / "changed.nxs", "--json")
    assert result.code == 8
    (finding,) = result.json
    assert set(finding) == {"code", "severity", "place", "problem", "remedy"}
    assert (finding["code"], finding["severity"]) == ("checksum-differs", "error")


def test_formulas_are_listed(gaincal: Command) -> None:
    assert gaincal("formula", "list").out.startswith("jungfrau ") or "\njungfrau " in gaincal("formula", "list").out
    for entry in gaincal("formula", "list", "--json").json:
        assert set(entry) == {"name", "version", "title", "digest"}


def test_a_formula_is_shown_from_everywhere(shared: Bench, gaincal: Command) -> None:
    assert gaincal("formula", "show", "jungfrau").out == source("jungfrau")
    for place in (shared.toml, shared.master):
        assert Formula.from_toml(gaincal("formula", "show", place).out) == Formula.from_toml(source("jungfrau"))


def test_a_formula_is_checked(shared: Bench, gaincal: Command) -> None:
    assert "'jungfrau' is good" in gaincal("formula", "check", shared.toml).out
    assert set(gaincal("formula", "check", shared.toml, "--json").json) == {"name", "version", "digest"}


def test_the_version_is_printed(gaincal: Command) -> None:
    assert gaincal("--version").out.strip().endswith(__version__)


def _commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(_commands()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], gaincal: Command) -> None:
    for option in ("--help", "-h"):
        result = gaincal(*path, option)
        assert result.code == 0
        assert result.out.startswith(f"Usage: {' '.join(('gaincal', *path))}")
        assert len(result.out.splitlines()) > 4


# --- failures ------------------------------------------------------------------------------

FAILURES: dict[str, tuple[int, str]] = {
    "apply {d}/master.nxs --output electrons": (2, "'electrons'"),
    "apply {d}/master.nxs --output counts --flagged nan": (2, "NaN"),
    "apply {d}/master.nxs --output counts --dtype int8": (2, "int8"),
    "apply {d}/master.nxs --set photon_energy": (2, "NAME=VALUE"),
    "apply {d}/master.nxs --set photon_energy=1 --set photon_energy=2": (2, "twice"),
    "apply {d}/master.nxs --set photon_energy=x": (2, "photon_energy=x"),
    "apply {d}/master.nxs --frames 6:": (2, "the run has 6"),
    "apply {d}/master.nxs --calibration agipd": (2, "'agipd'"),
    "embed {d}/raw.h5 --formula jungfrau": (2, "-o MASTER"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfau": (2, "'jungfau'"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfrau --set nonsense=1": (2, "'nonsense'"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfrau --constant dark={d}/gain.npy": (2, "'dark'"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula {d}/bad.toml": (3, "steps.energy"),
    "formula check {d}/bad.toml": (3, "steps.energy"),
    "info {d}/none.nxs": (4, "none.nxs"),
    "info {d}/text.nxs": (4, "text.nxs"),
    "info {d}/changed.nxs": (4, "checksum differs"),
    "apply {d}/raw.h5": (4, "has no calibration"),
    "apply {d}/changed.nxs": (4, "checksum differs"),
    "formula show {d}/none.nxs": (4, "none.nxs"),
    "formula check {d}/none.toml": (4, "none.toml"),
    "formula show {d}/none.toml": (4, "none.toml"),
    "embed {d}/none.h5 -o {d}/existing.nxs --overwrite --formula jungfrau": (4, "none.h5"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfrau --constant gain={d}/none.npy": (4, "none.npy"),
    "info {d}/far/master.nxs": (5, "--trust-dir"),
    "apply {d}/far/master.nxs": (5, "--trust-dir"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfrau --constant gain={d}/gain.npy": (6, "pedestal"),
    "embed {d}/raw.h5 -o {d}/new.nxs --formula jungfrau --constant gain={d}/gain.npy "
    "--constant pedestal={d}/narrow.npy": (6, "(3, 8, 15)"),
    "apply {d}/master.nxs -o {d}/existing.nxs": (7, "exists already"),
    "apply {d}/master.nxs -o {d}/nowhere/out.nxs": (7, "cannot be written"),
    "embed {d}/raw.h5 -o {d}/existing.nxs --formula jungfrau": (7, "exists already"),
    "validate {d}/none.nxs": (8, ""),
    "validate {d}/text.nxs": (8, ""),
    "validate {d}/far/master.nxs": (8, ""),
}


@pytest.mark.parametrize("command", FAILURES)
def test_failures_are_one_line_and_an_exit_code(shared: Bench, gaincal: Command, command: str) -> None:
    code, words = FAILURES[command]
    result = gaincal(*command.format(d=shared.directory).split())
    assert result.code == code
    assert "Traceback" not in result.err
    if code == 8:
        assert "1 errors" in result.out
        return
    assert result.out == ""
    assert words in result.err
    first, *rest = result.err.splitlines()
    assert first.startswith("gaincal: ")
    assert not rest or (code == 3 and len(rest) == 2 and rest[1].strip() == "^")
    assert not (shared / "new.nxs").exists()


def test_what_exists_stays_as_it_was(shared: Bench) -> None:
    assert (shared / "existing.nxs").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "command",
    [
        "nonsense",
        "apply",
        "apply a.nxs --frames 1",
        "apply a.nxs --frames a:b",
        "apply a.nxs --flagged much",
        "apply a.nxs --jobs 0",
        "embed raw.h5",
        "info --nonsense a.nxs",
        "formula",
    ],
)
def test_wrong_usage_is_exit_code_2(gaincal: Command, command: str) -> None:
    result = gaincal(*command.split())
    assert result.code == 2 or (command == "formula" and result.code == 0)
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback(shared: Bench) -> None:
    for options, shown in ((["--debug"], True), ([], False)):
        done = _run(["-c", MAIN, *options, "info", str(shared / "text.nxs")])
        assert done.returncode != 0
        assert ("Traceback" in done.stderr) is shown
        assert "text.nxs" in done.stderr


def test_names_in_files_cannot_control_the_terminal(bench: Bench, gaincal: Command) -> None:
    with h5py.File(bench / "odd.h5", "w") as file:
        file["red\x1b[31m"] = np.zeros(3, np.uint16)
        file["good"] = np.zeros(3, np.uint16)
    for command in ("info", "validate"):
        result = gaincal(command, bench / "odd.h5")
        assert "\x1b" not in result.out + result.err


def test_an_interrupt_leaves_no_file(bench: Bench, monkeypatch: pytest.MonkeyPatch, gaincal: Command) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gaincal.nexus.evaluate.Evaluation.storing", interrupt)
    before = sorted(os.listdir(bench.directory))
    assert gaincal("apply", bench.master, "-o", bench / "out.nxs").code != 0
    assert sorted(os.listdir(bench.directory)) == before


# --- processes of their own ----------------------------------------------------------------


def in_a_process(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a command, in whose process nobody has imported anything."""
    program = f'gaincal() {{ {sys.executable} -c "{MAIN}" "$@"; }}; {command}'
    found = os.environ | environment
    return subprocess.run(["bash", "-c", program], env=found, capture_output=True, text=True, check=False)


def test_compressed_words_are_copied_though_nobody_has_imported_their_filter(bench: Bench) -> None:
    constants = " ".join(bench.constants)
    settings = f"--formula jungfrau {constants} --set photon_energy=12.4"
    done = in_a_process(f"gaincal embed {bench.raw} -o {bench / 'copy.nxs'} --copy-raw {settings}")
    assert done.returncode == 0, done.stderr


def test_plugins_that_hdf5_finds_by_itself_do_not_hinder_writing(bench: Bench) -> None:
    counts = f"gaincal apply {bench.master} --output counts -o {bench / 'counts.nxs'}"
    done = in_a_process(counts, HDF5_PLUGIN_PATH=plugins().PLUGIN_PATH)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_needs_to_read_what_is_printed(bench: Bench) -> None:
    done = in_a_process("gaincal formula list | true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "1\n"
    assert done.stderr == ""
    assert in_a_process(f"gaincal apply {bench.master} -o {bench / 'quiet.nxs'} 2>&-").returncode == 0


def test_a_truncated_file_is_not_taken_for_a_locked_one(bench: Bench) -> None:
    content = bench.raw.read_bytes()
    bench.raw.write_bytes(content[:-1])
    done = in_a_process(f"gaincal info {bench.master}")
    bench.raw.write_bytes(content)
    assert done.returncode == 4
    assert "is it HDF5, and complete?" in done.stderr


# --- progress ------------------------------------------------------------------------------


def test_a_log_gets_plain_lines(bench: Bench, gaincal: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    result = gaincal("apply", bench.master, "-o", bench / "out.nxs")
    assert re.fullmatch(r"apply: 6 of 6 frames \(\d+ per second\)\n", result.err)
    assert "\r" not in result.err


def test_a_short_run_logs_nothing(bench: Bench, gaincal: Command) -> None:
    assert gaincal("apply", bench.master, "-o", bench / "out.nxs").err == ""


def test_a_terminal_gets_a_bar(bench: Bench) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", MAIN, "apply", str(bench.master), "-o", str(bench / "out.nxs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, text=True) as process:
        os.close(follower)
        shown = b""
        try:
            while block := os.read(leader, 4096):
                shown += block
        except OSError:
            pass
        finally:
            os.close(leader)
        assert process.stdout is not None
        assert "6 frames of energy" in process.stdout.read()
    assert process.returncode == 0
    assert b"apply" in shown
    assert b"\r" in shown
    assert b"6/6" in shown


# --- start-up ------------------------------------------------------------------------------


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


LIGHT = [
    "--help",
    "apply --help",
    "info {m}",
    "info {m} --json",
    "validate {m}",
    "formula list",
    "formula show {m}",
    "formula check {t}",
]


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_nothing_heavy(shared: Bench, command: str) -> None:
    arguments = command.format(m=shared.master, t=shared.toml).split()
    code = (
        "import sys\nfrom gaincal.cli import main\n"
        f"try: main({arguments!r}, prog_name='gaincal')\nexcept SystemExit as e: assert not e.code, e.code\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = _run(["-c", code])
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = _run(["-c", f"import sys, gaincal\nprint(sorted(set({(*HEAVY, 'numpy', 'h5py')!r}) & set(sys.modules)))"])
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["gaincal.verbs.embed", "gaincal.verbs.apply", "gaincal.cli", "gaincal.demo"])
def test_public_names_are_functions_whatever_was_imported_before(first: str) -> None:
    code = f"import {first}, gaincal\nassert callable(gaincal.embed) and callable(gaincal.apply), gaincal.embed"
    done = _run(["-c", code])
    assert done.returncode == 0, done.stderr


def test_commands_start_fast(shared: Bench) -> None:
    """Beside importing NumPy and h5py at the same time, which is half of ``info`` and no part of ``--help``."""
    programs = {
        "libraries": ["-c", "import numpy, h5py"],
        "--help": ["-c", MAIN, "--help"],
        "info": ["-c", MAIN, "info", str(shared.master)],
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(5):
        for name, arguments in programs.items():
            taken[name].append(_seconds(arguments))
    least = {name: min(times) for name, times in taken.items()}
    assert least["--help"] < 1.2 * least["libraries"], least
    assert least["info"] < 4.5 * least["libraries"], least


def _seconds(arguments: list[str]) -> float:
    """CPU time of a process, which others that run meanwhile hardly change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert _run(arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_master_of_several_calibrations_is_listed_and_chosen(plain: Run, tmp_path: Path, gaincal: Command) -> None:
    (tmp_path / "second.toml").write_text(source("jungfrau").replace('name    = "jungfrau"', 'name    = "second"'))
    write_raw(tmp_path / "raw.h5", plain.words)
    np.save(tmp_path / "map.npy", np.ones((3, 16, 32)))
    maps = [f"--constant={name}={tmp_path / 'map.npy'}" for name in ("pedestal", "gain")]
    raw = f"{tmp_path / 'raw.h5'}::/data"
    for formula in ("jungfrau", tmp_path / "second.toml"):
        energy = f"--set=photon_energy={PHOTON_ENERGY}"
        assert gaincal("embed", raw, "--in-place", "--formula", formula, *maps, energy).code == 0
    assert gaincal("apply", tmp_path / "raw.h5").code == 4
    assert gaincal("apply", tmp_path / "raw.h5", "--calibration", "second").code == 0
    assert gaincal("info", tmp_path / "raw.h5", "--calibration", "second", "--json").json["others"] == ["jungfrau"]
