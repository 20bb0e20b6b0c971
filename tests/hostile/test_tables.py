"""A formula in a file is data of strangers: whatever its tables say, it is a formula, or it is refused by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import few

from hostile.harness import (
    CALIBRATION,
    CHECKSUM,
    DETECTOR,
    GIVEN,
    LIMIT_SECONDS,
    RAW,
    Case,
    Refused,
    Right,
    Run,
    Worker,
    X,
    Y,
    commanded_once,
    probe,
    replace_field,
    require,
    run_case,
    stamp,
)

FORMULA = Refused("FileError", "formula")
CHANGED = Refused("FileError", "checksum-differs")
BIND = Refused("BindError", "bind")
ODD = Refused("FileError", "odd-type")
MAP = np.full((3, Y, X), 40.0, np.float32)


def column(path: str, change: Callable[[list[Any]], list[Any]], stamped: bool = True) -> Callable[[Run], None]:
    """A file whose column is another, with or without the right checksum."""

    def build(run: Run) -> None:
        with h5py.File(run.master, "r+") as file:
            group = file[CALIBRATION]
            values = change(group[path][()].tolist())
            replace_field(group, path, np.array(values))
            if stamped:
                stamp(file)

    return build


def field(path: str, data: Any, **options: Any) -> Callable[[Run], None]:
    def build(run: Run) -> None:
        with h5py.File(run.master, "r+") as file:
            replace_field(file[CALIBRATION], path, data, **options)
            stamp(file)

    return build


def without(path: str) -> Callable[[Run], None]:
    def build(run: Run) -> None:
        with h5py.File(run.master, "r+") as file:
            del file[CALIBRATION][path]
            stamp(file)

    return build


def put_at(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value, *values[index + 1 :]]


def cell(run: Run, path: str, index: tuple[int, ...], value: float) -> None:
    """Change one value of a constant, without a new checksum."""
    with h5py.File(run.master, "r+") as file:
        file[CALIBRATION][path][index] = value


def steps_in_another_order(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        steps = file[f"{CALIBRATION}/steps"]
        for name in list(steps):
            values = steps[name][()]
            replace_field(steps, name, values[[1, 0, *range(2, len(values))]])
        stamp(file)


def changed_constant(run: Run) -> None:
    cell(run, "gain/gain", (0, 3, 4), 41.5)


def changed_input(run: Run) -> None:
    cell(run, f"{GIVEN}/photon_energy", (), 6.2)


def changed_text(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        text = file[f"{CALIBRATION}/fit_formula_description"][()]
        replace_field(file[CALIBRATION], "fit_formula_description", np.bytes_(text.replace(b"14", b"13")))


def two_calibrations(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file.copy(CALIBRATION, file[f"{DETECTOR}/calibration"], "second")


def two_calibrations_in_two_detectors(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file.copy(DETECTOR, file["/entry/instrument"], "other")


def no_calibration(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[CALIBRATION]


def no_checksum(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/{CHECKSUM}"]


def group_as_checksum(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/{CHECKSUM}"]
        file.create_group(f"{CALIBRATION}/{CHECKSUM}")


def checksum_of_numbers(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        replace_field(file[CALIBRATION], CHECKSUM, np.int32(7))


def checksum_with_control_characters(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        replace_field(file[CALIBRATION], CHECKSUM, np.bytes_(b"sha256:\x1b[2J"))


def checksum_that_is_not_utf8(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        replace_field(file[CALIBRATION], CHECKSUM, np.bytes_(b"sha256:\xff\xfe"))


def checksum_of_megabytes(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        replace_field(file[CALIBRATION], CHECKSUM, "x" * (4 << 20), dtype=h5py.string_dtype())


def checksum_of_a_huge_declared_length(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/{CHECKSUM}"]
        kind = h5py.h5t.C_S1.copy()
        kind.set_size((1 << 31) - 1)
        h5py.h5d.create(file[CALIBRATION].id, CHECKSUM.encode(), kind, h5py.h5s.create_simple((1,)))


def text_column_of_a_huge_declared_length(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/steps/name"]
        kind = h5py.h5t.C_S1.copy()
        kind.set_size((1 << 31) - 1)
        h5py.h5d.create(file[f"{CALIBRATION}/steps"].id, b"name", kind, h5py.h5s.create_simple((1,)))


def text_column_of_variable_length(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        names = [n.decode() for n in file[f"{CALIBRATION}/steps/name"][()]]
        replace_field(file[CALIBRATION], "steps/name", np.array(names, object), dtype=h5py.string_dtype())


def virtual_column(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        stored = file[f"{CALIBRATION}/steps/name"]
        layout = h5py.VirtualLayout(stored.shape, stored.dtype)
        layout[:] = h5py.VirtualSource(".", f"{CALIBRATION}/steps/copied", stored.shape)
        file[f"{CALIBRATION}/steps"].move("name", "copied")
        file[f"{CALIBRATION}/steps"].create_virtual_dataset("name", layout)


def huge_constant(run: Run) -> None:
    """Forty gigabytes of zeros in a small file."""
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/gain/gain"]
        chunk = (1, 4096, 4096)
        made = file[f"{CALIBRATION}/gain"].create_dataset(
            "gain", (640, *chunk[1:]), "f4", chunks=chunk, compression="gzip"
        )
        made.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(64 << 20), 9))


def large_constant(run: Run) -> None:
    """192 MiB of zeros, below every other limit, in the place of a map of a few pixels."""
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/gain/gain"]
        chunk = (1, 4096, 4096)
        made = file[f"{CALIBRATION}/gain"].create_dataset(
            "gain", (3, *chunk[1:]), "f4", chunks=chunk, compression="gzip"
        )
        for k in range(3):
            made.id.write_direct_chunk((k, 0, 0), zlib.compress(bytes(64 << 20), 9))


def constant_never_written(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        del file[f"{CALIBRATION}/gain/gain"]
        file[f"{CALIBRATION}/gain"].create_dataset("gain", (3, Y, X), "f4", chunks=(1, Y, X))


def nested_group_in_the_calibration(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        file.create_group(f"{CALIBRATION}/gain/deeper/still")


def words_of_a_path_with_dots(run: Run) -> None:
    column("inputs/path", put_at(0, f"{DETECTOR}/calibration/../raw/data".encode()))(run)


def big_endian_constants(run: Run) -> None:
    with h5py.File(run.master, "r+") as file:
        values = file[f"{CALIBRATION}/gain/gain"][()]
        replace_field(file[CALIBRATION], "gain/gain", values.astype(">f4"))


TABLES: dict[str, tuple[Callable[[Run], None], Refused | Right]] = {
    "unknown operation": (column("steps/operation", put_at(0, b"execute")), FORMULA),
    "unknown operation that is required": (column("formula/required_operations", lambda v: [*v, b"execute"]), FORMULA),
    "operation that is not announced": (column("formula/required_operations", lambda v: v[1:]), FORMULA),
    "format version 2": (column("formula/format_version", lambda _: [2]), FORMULA),
    "format version 0": (column("formula/format_version", lambda _: [0]), FORMULA),
    "two format versions": (column("formula/format_version", lambda _: [1, 1]), FORMULA),
    "format version as text": (column("formula/format_version", lambda _: [b"1"]), FORMULA),
    "compute dtype of 16 bits": (column("formula/compute_dtype", lambda _: [b"float16"]), FORMULA),
    "missing column": (without("steps/argument_2"), FORMULA),
    "missing column of paths": (without("inputs/path"), FORMULA),
    "missing table": (without("tables/stage_of_code"), FORMULA),
    "missing group": (without("flags"), FORMULA),
    "missing constant": (without("gain/gain"), Refused("FileError", "not-found")),
    "missing labels": (without("gain/stage"), Refused("FileError", "not-found")),
    "unknown column": (field("steps/comment", np.array([b"x"])), FORMULA),
    "column that is too short": (column("steps/argument_1", lambda v: v[1:]), FORMULA),
    "column of paths that is too long": (column("inputs/path", lambda v: [*v, b"/x"]), FORMULA),
    "column of paths that is too short": (column("inputs/path", lambda v: v[:1]), FORMULA),
    "paths that are numbers": (column("inputs/path", lambda v: [1] * len(v)), FORMULA),
    "column of two dims": (field("steps/name", np.array([[b"x"]])), ODD),
    "scalar column": (field("formula/name", np.bytes_(b"x")), ODD),
    "steps that need each other not, in another order": (steps_in_another_order, Right()),
    "step of the name of an input": (column("steps/name", put_at(0, b"raw")), FORMULA),
    "step before what it needs": (column("steps/argument_1", put_at(0, b"energy")), FORMULA),
    "step that needs itself": (column("steps/argument_1", put_at(0, b"adc")), FORMULA),
    "name with quotes": (column("steps/name", put_at(0, b'a"] = 1')), FORMULA),
    "name with a line break": (column("steps/name", put_at(0, b"a\nb")), Refused("FileError", "bad-text")),
    "name that is not ASCII": (column("steps/name", put_at(0, "ä".encode())), Refused("FileError", "bad-text")),
    "name that is not UTF-8": (column("steps/name", put_at(0, b"\xff\xfe")), Refused("FileError", "bad-text")),
    "name with a NUL": (column("steps/name", put_at(0, b"ad\0c")), Refused("FileError", "bad-text")),
    "number beyond all integers": (column("steps/argument_2", put_at(0, b"9" * 200)), FORMULA),
    "number beyond all reals": (column("steps/argument_2", put_at(0, b"1e999")), FORMULA),
    "bits beyond the word": (column("steps/argument_3", put_at(0, b"33")), FORMULA),
    "text of a kilobyte": (column("formula/title", lambda _: [b"x" * 1024]), FORMULA),
    "text of a megabyte": (column("formula/title", lambda _: [b"x" * (1 << 20)]), FORMULA),
    "steps beyond the limit": (column("steps/name", lambda _: [b"x%d" % k for k in range(300)]), FORMULA),
    "fill that is not whole": (column("outputs/fill", put_at(0, 0.5)), FORMULA),
    "fill that is infinite": (column("outputs/fill", put_at(0, float("inf"))), FORMULA),
    "two defaults": (column("outputs/default", lambda v: [1] * len(v)), FORMULA),
    "default of 7": (column("outputs/default", put_at(0, 7)), FORMULA),
    "flag that voids by 2": (column("flags/voids", put_at(0, 2)), FORMULA),
    "bit that is not defined": (column("flags/pixel_mask_bit", put_at(0, 5)), FORMULA),
    "unit that is unknown": (column("outputs/units", put_at(0, b"furlong")), FORMULA),
    "table of reals": (field("tables/stage_of_code", np.zeros(4)), FORMULA),
    "table without entries": (field("tables/stage_of_code", np.zeros(0, np.int32)), FORMULA),
    "table beyond the limit": (field("tables/stage_of_code", np.zeros(65_537, np.int32)), FORMULA),
    "no steps": (column("steps/name", lambda _: np.zeros(0, "S1").tolist()), FORMULA),
    "labels twice": (field("gain/stage", np.array([0, 1, 1], np.int32)), BIND),
    "labels below zero": (field("gain/stage", np.array([0, 1, -1], np.int32)), BIND),
    "labels beyond the limit": (field("gain/stage", np.array([0, 1, 65_536], np.int32)), BIND),
    "labels that are NaN": (field("gain/stage", np.array([0, 1, np.nan])), ODD),
    "labels of two dims": (field("gain/stage", np.zeros((3, 1), np.int32)), ODD),
    "too many labels": (field("gain/stage", np.arange(4, dtype=np.int32)), BIND),
    "constant of other pixels": (field("gain/gain", MAP[:, 1:]), BIND),
    "constant of other dims": (field("gain/gain", MAP[0]), BIND),
    "constant of text": (field("gain/gain", np.full((3, Y, X), b"4")), BIND),
    "constant that is complex": (field("gain/gain", MAP.astype(np.complex64)), ODD),
    "photon energy of two values": (field(f"{GIVEN}/photon_energy", np.ones(2)), BIND),
    "photon energy as text": (field(f"{GIVEN}/photon_energy", np.bytes_(b"12.4")), BIND),
    "inputs that lie nowhere": (column("inputs/path", lambda v: [b""] * len(v)), BIND),
    "input that lies at a group": (
        column("inputs/path", put_at(0, RAW.encode())), Refused("FileError", "not-a-dataset")),
    "input that lies at a constant": (
        column("inputs/path", put_at(0, b"gain/gain")), Refused("FileError", "not-words")),
    "changed formula": (column("steps/argument_3", put_at(0, b"13"), stamped=False), CHANGED),
    "changed name": (column("formula/name", lambda _: [b"jungfrav"], stamped=False), CHANGED),
    "changed constant": (changed_constant, CHANGED),
    "changed input": (changed_input, CHANGED),
    "changed text": (changed_text, CHANGED),
    "no checksum": (no_checksum, Refused("FileError", "no-checksum")),
    "group as checksum": (group_as_checksum, Refused("FileError", "odd-layout")),
    "checksum of numbers": (checksum_of_numbers, ODD),
    "checksum with control characters": (checksum_with_control_characters, Refused("FileError", "bad-text")),
    "checksum that is not UTF-8": (checksum_that_is_not_utf8, Refused("FileError", "bad-text")),
    "checksum of megabytes": (checksum_of_megabytes, Refused("TrustError", "over-budget")),
    "checksum of a huge declared length": (checksum_of_a_huge_declared_length, Refused("TrustError", "over-budget")),
    "column of a huge declared length": (text_column_of_a_huge_declared_length, Refused("TrustError", "over-budget")),
    "column of variable length": (text_column_of_variable_length, ODD),
    "virtual column": (virtual_column, Refused("TrustError", "odd-layout")),
    "huge constant": (huge_constant, Refused("TrustError", "over-budget")),
    "large constant": (large_constant, Refused("TrustError", "over-budget")),
    "constant never written": (constant_never_written, Refused("FileError", "incomplete")),
    "nested group": (nested_group_in_the_calibration, Refused("FileError", "odd-layout")),
    "path with dots": (words_of_a_path_with_dots, Refused("FileError", "not-found")),
    "big-endian constants": (big_endian_constants, Right()),
}  # fmt: skip


CASES = dict(zip(TABLES, commanded_once([Case(*table) for table in TABLES.values()]), strict=True))
FIRST = sum(case.command_line for case in CASES.values())
"""One of each outcome."""


@pytest.mark.parametrize("name", few(sorted(CASES, key=lambda n: not CASES[n].command_line), FIRST))
def test_a_formula_holds_or_is_refused_by_name(name: str, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run_case(worker, unharmed, tmp_path, CASES[name])


@pytest.mark.parametrize("build", [two_calibrations, two_calibrations_in_two_detectors])
def test_two_calibrations_want_a_choice(
    build: Callable[[Run], None], worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run = unharmed.copy(tmp_path)
    build(run)
    answer = probe(worker, run, run.master)
    for verb in ("open", "read", "info"):
        assert answer[verb]["code"] == "ambiguous"
    assert [answer[f"cli {verb}"]["exit"] for verb in ("info", "apply", "validate")] == [4, 4, 0]


def test_a_file_without_a_calibration_says_how_to_get_one(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    no_calibration(run)
    answer = probe(worker, run, run.master)
    assert answer["open"]["code"] == "no-calibration"
    assert "gaincal embed" in answer["cli apply"]["err"]
    assert [answer[f"cli {verb}"]["exit"] for verb in ("info", "apply", "validate")] == [0, 4, 8]


def test_the_right_one_of_two_calibrations_is_chosen_by_name(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    two_calibrations(run)
    arguments = ["info", str(run.master), "--calibration", "second", "--json"]
    assert worker.ask({"do": "command", "arguments": arguments, "foreign": str(run.foreign)})["exit"] == 0


def test_a_restamped_file_is_right(worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    with h5py.File(run.master, "r+") as file:
        stamp(file)
    require(run, probe(worker, run, run.master), Right())


CELLS = (b"", b"0", b"-1", b"1e999", b"raw", b"energy", b"nan", b"frame", b"y", b"\x01", b"[", b'"', b"bits", b"2" * 99)


def shuffled_cells(run: Run, seed: int) -> None:
    """Exchange or replace some cells of the tables, and make the checksum right again."""
    random = np.random.default_rng(seed)
    with h5py.File(run.master, "r+") as file:
        group = file[CALIBRATION]
        tables = [f"{t}/{c}" for t in ("formula", "inputs", "constants", "steps", "outputs", "flags") for c in group[t]]
        for _ in range(random.integers(1, 4)):
            path = str(random.choice(tables))
            values = group[path][()].tolist()
            at, other = random.integers(len(values), size=2)
            if random.random() < 0.4:
                values[at], values[other] = values[other], values[at]
            elif isinstance(values[0], bytes):
                values[at] = CELLS[random.integers(len(CELLS))]
            else:
                values[at] = type(values[0])(random.choice([-1, 0, 1, 2, 31, 2**31 - 1]))
            kind = {bytes: None, int: np.int32, float: np.float64}[type(values[0])]
            replace_field(group, path, np.array(values, kind))
        stamp(file)


@pytest.mark.parametrize("seed", range(10))
def test_shuffled_tables_are_formulas_or_errors(seed: int, worker: Worker, unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    for number in range(8):
        (run.home / "shuffled.nxs").write_bytes(run.master.read_bytes())
        shuffled = Run(run.home, run.foreign, run.reference)
        target = run.home / "master.nxs"
        original = target.read_bytes()
        shuffled_cells(shuffled, 100 * seed + number)
        answer = probe(worker, run, target, command_line=False)
        target.write_bytes(original)
        assert "crash" not in answer
        for verb in ("open", "read", "validate"):
            assert answer[verb].get("error") != "traceback", answer[verb]
            assert answer[verb]["cpu"] < LIMIT_SECONDS
