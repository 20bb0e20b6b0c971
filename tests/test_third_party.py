"""Programs that know nothing of gaincal read what it writes, and validators find no error that is ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import h5py
import numpy as np
import pytest
from module_files import PULSES, write_modules

from gaincal import apply, assemble, embed
from gaincal.demo import APPLIED, MASTER, SETTINGS, demo

GROUP = "/entry/instrument/detector/calibration/jungfrau"

FOR = {"dials": "for_dials.nxs", "xds": "for_xds_master.h5", "crystfel": "for_crystfel.h5"}
"""Files for one program each."""

KNOWN_PYNXTOOLS = (
    # NXmx defines pixel_mask and module_offset itself; the check takes their endings for reserved suffixes.
    r"Reserved suffix '_mask' was used in /entry/instrument/detector/pixel_mask,",
    r"Reserved suffix '_offset' was used in /entry/instrument/detector/module/module_offset,",
    # NXcollection allows all groups, but its groups are walked as if it did not.
    rf"Field {GROUP}(/\w+)? has no documentation\.",
)
UNSTATED = (
    # Facts of the experiment, and the geometry, are stated when a calibration is put in.
    r"The required field /entry/\S+ hasn't been supplied\.",
    r"This required (field|group) is not in the NeXus file",
)
KNOWN_NXCHECK = (
    # NXmx requires a source directly in NXentry.
    r"NXsource is an invalid class in NXentry",
    # NXmx defines this field, the base class does not.
    r"This field is not defined in NXentry",
)
KNOWN_NXVALIDATE = (
    r"This recommended group is not in the NeXus file",
    r"This recommended field is not in the NeXus file",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo run: master and counts with all metadata."""
    directory = tmp_path_factory.mktemp("run")
    demo(directory, frames=3)
    for reader, name in FOR.items():
        apply(directory / MASTER, directory / name, reader=reader)
    return directory


ASSEMBLED, OF_MODULES = "assembled.nxs", "of_modules.nxs"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of modules, what they make together, and a master of it with all metadata."""
    directory = tmp_path_factory.mktemp("modules")
    files = write_modules(directory, 30, 3)
    how = {"layout": "assembled", "gap": 2}
    assemble([files.pattern], directory / ASSEMBLED, ids={"pulse_id": PULSES}, **how)  # type: ignore[arg-type]
    flat = {name: np.ones((3, 16, 8), np.float32) for name in ("pedestal", "gain")}
    embed(directory / ASSEMBLED, directory / OF_MODULES, formula="jungfrau", constants=flat, settings=SETTINGS)
    return directory


def in_copy(run: Path, tmp_path: Path, name: str, code: str) -> list[str]:
    """Run code on a copy of the run, in its folder and in a process of its own; its JSON output."""
    for file in run.iterdir():
        if file.name == name or file.suffix == ".h5" or file.name == ASSEMBLED:
            shutil.copy(file, tmp_path)
    return in_process(tmp_path, name, code)


def in_process(folder: Path, name: str, code: str) -> list[str]:
    """Run code on a file in a process of its own; its JSON output."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(code), name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return [str(line) for line in found]


def unknown(lines: list[str], known: tuple[str, ...]) -> list[str]:
    return [line for line in lines if not any(re.search(k, line) for k in known)]


def problems(lines: list[str], known: tuple[str, ...]) -> list[str]:
    """What nexusformat complains of, but for what is known."""
    complaints = [
        line for line in lines if re.search(r"invalid|not defined|not in the|must|should|missing|error", line, re.I)
    ]
    return [line for line in unknown(complaints, known) if not line.startswith(("Total number", "counted"))]


PYNXTOOLS = """
    import json, logging, sys, h5py
    from pynxtools.dataconverter.validation import validate_hdf_group_against
    lines = []
    class Keep(logging.Handler):
        def emit(self, record):
            if record.levelno > logging.INFO:
                lines.append(record.getMessage())
    logger = logging.getLogger("pynxtools")
    logger.propagate = False
    logger.addHandler(Keep())
    with h5py.File(sys.argv[1]) as file:
        validate_hdf_group_against("NXmx", file["entry"], sys.argv[1], False)
    print(json.dumps(lines))
"""

NEXUSFORMAT = """
    import io, json, logging, re, sys
    from nexusformat.nexus import validate
    text = io.StringIO()
    for handler in validate.logger.handlers:
        handler.stream = text
    validate.logger.setLevel(logging.{level})
    result = validate.{function}(sys.argv[1])
    assert result is not None, "gave up"
    lines = [re.sub(r"\\x1b\\[[0-9;]*m", "", l).strip() for l in text.getvalue().splitlines()]
    print(json.dumps([*lines, f"counted {{result}}"]))
"""


# pynxtools fails on text of fixed length, which XDS's plug-in asks for.
@pytest.mark.parametrize("name", [MASTER, APPLIED, *(n for reader, n in FOR.items() if reader != "xds")])
def test_pynxtools_finds_no_error_of_ours(run: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("pynxtools")
    lines = in_copy(run, tmp_path, name, PYNXTOOLS)
    assert unknown(lines, KNOWN_PYNXTOOLS) == []


@pytest.mark.parametrize("name", [ASSEMBLED, OF_MODULES])
def test_validators_find_no_error_of_ours_in_assembled_runs(modules: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("pynxtools")
    pytest.importorskip("nexusformat")
    lines = in_copy(modules, tmp_path, name, PYNXTOOLS)
    lacking = UNSTATED if name == ASSEMBLED else ()
    assert unknown(lines, (*KNOWN_PYNXTOOLS, *lacking)) == []
    for function, known in (("validate_file", KNOWN_NXCHECK), ("validate_application", KNOWN_NXVALIDATE)):
        lines = in_copy(modules, tmp_path, name, NEXUSFORMAT.format(function=function, level="WARNING"))
        assert problems(lines, (*known, *lacking)) == []


@pytest.mark.parametrize("name", [MASTER, APPLIED, *FOR.values()])
@pytest.mark.parametrize(
    ("function", "known"), [("validate_file", KNOWN_NXCHECK), ("validate_application", KNOWN_NXVALIDATE)]
)
def test_nexusformat_finds_no_error_of_ours(
    run: Path, tmp_path: Path, name: str, function: str, known: tuple[str, ...]
) -> None:
    pytest.importorskip("nexusformat")
    lines = in_copy(run, tmp_path, name, NEXUSFORMAT.format(function=function, level="WARNING"))
    assert problems(lines, known) == []


@pytest.mark.parametrize("name", [MASTER, APPLIED, *FOR.values()])
def test_nxmx_opens_the_file_and_walks_the_chain(run: Path, name: str) -> None:
    nxmx = pytest.importorskip("nxmx")
    with h5py.File(run / name) as file:
        (entry,) = nxmx.NXmx(file).entries
        detector = entry.instruments[0].detectors[0]
        chain = nxmx.get_dependency_chain(detector.modules[0].fast_pixel_direction)
        assert [t.path.rsplit("/", 1)[-1] for t in chain] == ["fast_pixel_direction", "module_offset", "translation"]
        # nxmx gives millimetres
        corner = nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(detector.modules[0].module_offset))
        np.testing.assert_allclose(corner[0, :3, 3], [-102.4 * 75e-3, 256 * 75e-3, 100], atol=1e-9)
        assert list(detector.modules[0].data_size) == [512, 1024]
        assert float(entry.instruments[0].beams[0].incident_wavelength.to("angstrom").magnitude) == pytest.approx(
            12.398419843320026 / 12.4
        )
        assert entry.samples[0].name == "simulated crystal"


def test_a_reader_of_the_master_is_not_offered_raw_words(run: Path) -> None:
    nxmx = pytest.importorskip("nxmx")
    with h5py.File(run / MASTER) as file:
        (entry,) = nxmx.NXmx(file).entries
        offered = [data[data.signal] for data in entry.data]
        assert [d.ndim for d in offered] == [2]
        assert all(d.dtype == np.float32 for d in offered)


@pytest.mark.parametrize("name", [APPLIED, *FOR.values()])
def test_a_reader_of_the_applied_file_is_offered_counts_and_a_mask(run: Path, name: str) -> None:
    nxmx = pytest.importorskip("nxmx")
    with h5py.File(run / name) as file:
        (entry,) = nxmx.NXmx(file).entries
        signal = entry.data[0][entry.data[0].signal]
        assert (signal.dtype, signal.shape) == (np.int32, (3, 512, 1024))
        detector = entry.instruments[0].detectors[0]
        counts, mask = signal[()], detector.pixel_mask[()]
        assert mask.shape == (512, 1024)
        assert counts.max() < detector.saturation_value
        assert counts[counts != -(2**31)].min() >= detector.underload_value


def test_nexusformat_plots_the_preview_of_the_master(run: Path) -> None:
    nexus = pytest.importorskip("nexusformat.nexus")
    root = nexus.nxload(str(run / MASTER))
    assert root.plottable_data.nxsignal.nxname == "preview"


@pytest.mark.parametrize("name", [MASTER, APPLIED, *FOR.values()])
def test_h5dump_of_hdf5_1_10_reads_the_file(run: Path, name: str) -> None:
    h5dump = shutil.which("h5dump")
    if h5dump is None:
        pytest.skip("h5dump is not installed (Debian: hdf5-tools)")
    done = subprocess.run([h5dump, "-H", name], cwd=run, capture_output=True, text=True, check=True)
    assert "pixel_mask" in done.stdout or name == MASTER
    dumped = subprocess.run(
        [h5dump, "-d", "/entry/instrument/detector/calibration/jungfrau/steps/operation", MASTER],
        cwd=run,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"divide' in dumped.stdout


def test_nxlint_accepts_the_proposed_definition() -> None:
    validate = pytest.importorskip("nexusformat.nexus.validate")
    folder = Path(__file__).parent.parent / "nexus"
    assert validate.lint_nxdl(str(folder / "NXformula.nxdl.xml")) in ([], None)
