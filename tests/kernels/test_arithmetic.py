"""The same bits, whatever libraries that were loaded before have done to the arithmetic of a thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from conftest import write_raw
from spoiler import FIELDS, flushes, spoil

import gaincal
from gaincal.kernels import libraries, pipeline
from gaincal.kernels.arithmetic import ieee
from gaincal.kernels.threads import run_all
from gaincal.verbs.embed import embed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in FIELDS, reason="how to spoil the arithmetic is not known here"
)


@contextmanager
def spoiled() -> Iterator[None]:
    with ieee():
        spoil()
        yield


def test_arithmetic_is_mended_and_left_as_it_was() -> None:
    assert not flushes()
    with spoiled():
        assert flushes()
        with ieee():
            assert not flushes()
        assert flushes()
    assert not flushes()


@pytest.mark.parametrize("threads", [1, 3])
def test_jobs_compute_with_small_numbers_in_all_threads(threads: int) -> None:
    found: list[bool] = []
    with spoiled():
        run_all([lambda: found.append(flushes())] * 6, threads)
        assert found == [False] * 6
        assert flushes()


def embedded(folder: Path) -> Path:
    """A master whose energies, and the gains of one stage, are subnormal."""
    folder.mkdir()
    words = (3000 + np.arange(4 * 8 * 64).reshape(4, 8, 64) % 3 + (np.arange(64) % 2 << 14)).astype(np.uint16)
    write_raw(folder / "raw.h5", words)
    gain = np.broadcast_to(np.array([2e38, 9e-39, 1.0]).reshape(3, 1, 1), (3, 8, 64))
    constants = {"pedestal": np.full((3, 8, 64), 3000.0), "gain": gain}
    embed(f"{folder / 'raw.h5'}::/data", folder / "master.nxs", formula="jungfrau", constants=constants)
    return folder / "master.nxs"


@pytest.mark.parametrize("compiled", [False, True])
def test_embedding_and_reading_give_the_same_bits(
    tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "UNCOMPILED_WORDS", -1 if compiled else 1 << 30)
    with ieee():
        wanted = np.array([0.0, 1.0, 2.0], np.float32) / np.array([[2e38], [9e-39]], np.float32)
    with spoiled():
        found = gaincal.open_calibrated(embedded(tmp_path / "run"))[0].values
        assert found[0, :6].tobytes() == wanted[[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]].tobytes()
        assert flushes()


def test_loading_the_plug_ins_leaves_the_arithmetic_as_it_is(tmp_path: Path) -> None:
    """With those that are there, and with some that certainly spoil it."""
    libraries.plugins()
    assert not flushes()
    (tmp_path / "hdf5plugin.py").write_text(
        "import spoiler\nfrom types import SimpleNamespace\nspoiler.spoil()\n"
        "def get_config(): return SimpleNamespace(registered_filters={})\n"
    )
    code = """
        from gaincal.kernels import libraries
        from spoiler import flushes
        libraries.plugins()
        assert not flushes()
        import sys; sys.modules.pop("hdf5plugin")
        import hdf5plugin
        assert flushes()
    """
    paths = [tmp_path, Path(__file__).parent.parent, *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    subprocess.run([sys.executable, "-c", dedent(code)], env=environment, check=True)
