"""The conformance files: gaincal and a reader that shares nothing with it give the expected bits."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import h5py
import independent_reader
import numpy as np
import pytest

from gaincal.errors import GaincalError
from gaincal.kernels import pipeline
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import open_master

FOLDER = Path(__file__).parent.parent / "nexus" / "conformance"
FAMILIES = (
    *("agipd", "cspad", "epix10ka", "gotthard2", "gotthard2_split", "jungfrau_cells_modules", "jungfrau_hg0"),
    *("jungfrau_split", "jungfrau_wide", "linear", "lpd", "moench", "mpccd", "percival"),
)
CASES = ("cells", "jungfrau", "missing", "operations", *(f"family_{name}" for name in FAMILIES))
REFUSED = ("checksum", "missing_column", "missing_constant", "operation", "version")


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_no_file_is_missing_and_none_is_forgotten() -> None:
    expected = {f"{c}.nxs" for c in CASES} | {f"{c}.expected.h5" for c in CASES}
    assert {p.name for p in FOLDER.iterdir() if p.suffix in (".nxs", ".h5")} == expected | {
        f"refuse_{r}.nxs" for r in REFUSED
    }


@pytest.mark.parametrize("case", CASES)
def test_gaincal_gives_the_expected_bits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default output compiled, the others in NumPy: that both give the same bits is shown for every formula."""
    opened = open_master(FOLDER / f"{case}.nxs")
    with opened.resolver, h5py.File(FOLDER / f"{case}.expected.h5") as expected:
        for key in (k for k in expected if not k.endswith("_flags")):
            name = key.partition(".")[0]
            program = opened.calibration.program(name, expected[key].dtype.name)
            compiled = opened.calibration.formula.output().name == name
            monkeypatch.setattr(pipeline, "UNCOMPILED_WORDS", -1 if compiled else 1 << 40)
            evaluation = Evaluation(opened.calibration, opened.words, program)
            values, flags = evaluation.read((0,) * len(evaluation.shape), evaluation.shape, with_flags=True)
            assert flags is not None
            assert same_bits(values, expected[key][()]), key
            assert same_bits(flags, expected[f"{key}_flags"][()]), key


@pytest.mark.parametrize("case", CASES)
def test_the_independent_reader_gives_the_expected_bits(case: str) -> None:
    with h5py.File(FOLDER / f"{case}.expected.h5") as expected:
        for key in (k for k in expected if not k.endswith("_flags")):
            name, _, _ = key.partition(".")
            values, flags = independent_reader.read(str(FOLDER / f"{case}.nxs"), name, expected[key].dtype.name)
            assert same_bits(np.asarray(values), expected[key][()]), key
            assert same_bits(np.asarray(flags), expected[f"{key}_flags"][()]), key


@pytest.mark.parametrize("reason", REFUSED)
def test_both_readers_refuse(reason: str) -> None:
    path = FOLDER / f"refuse_{reason}.nxs"
    with pytest.raises(GaincalError, match=r"refuse_\w+\.nxs"):
        open_master(path)
    with pytest.raises((ValueError, KeyError)):
        independent_reader.read(str(path))


def test_the_independent_reader_is_short_and_shares_nothing() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert source.count("\n") <= 150
    tree = ast.parse(source)
    imported = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {"h5py", "numpy"} | sys.stdlib_module_names
