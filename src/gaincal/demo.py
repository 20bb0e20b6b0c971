"""``demo``: a simulated run from raw words to calibrated frames, with a picture."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import OutputError
from gaincal.kernels.libraries import plugins
from gaincal.nexus.atomic import atomic_output
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import open_master
from gaincal.simulate import PHOTON_ENERGY, Module, make_frames, make_module
from gaincal.verbs.apply import apply
from gaincal.verbs.embed import embed

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
RAW, PEDESTAL, GAIN = "raw.h5", "pedestal.h5", "gainMaps_M001.bin"
MASTER, APPLIED, PICTURE = "master.nxs", "counts.nxs", "picture.png"
FIRST_PULSE = 7_000_000_000
SETTINGS = {
    "photon_energy": PHOTON_ENERGY,
    "start_time": "2026-01-01T12:00:00Z",
    "end_time": "2026-01-01T12:00:01Z",
    "source_name": "simulated source",
    "instrument_name": "simulated beamline",
    "sample_name": "simulated crystal",
    "detector_name": "JUNGFRAU 0.5M, simulated",
    "sensor_material": "Si",
    "sensor_thickness": 320e-6,
    "pixel_size": 75e-6,
    "distance": 0.1,
    "beam_center_x": -102.4,
    "beam_center_y": 256,
    "frame_time": 1e-3,
    "exposure_time": 1e-5,
}


def demo(directory: Path, *, frames: int = 40, overwrite: bool = False, progress: Progress | None = None) -> list[str]:
    """Simulate, embed, apply and draw.

    Parameters
    ----------
    directory : Path
        Created if needed.
    frames : int
        Frames to simulate.
    overwrite : bool
        Replace the files of an earlier demo.
    progress : callable (done, total) -> None, optional
        Told after every simulated frame.

    Returns
    -------
    list of str
        What was made, line by line.

    Raises
    ------
    OutputError
        If files are there already, or cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        for name in (RAW, PEDESTAL, GAIN, MASTER, APPLIED, PICTURE):
            if (directory / name).exists():
                raise OutputError(
                    directory / name, "", "exists already", "choose -o DIR or say --overwrite", code="exists"
                )
    module = make_module()
    _write_constants(directory, module)
    _write_raw(directory / RAW, module, frames, progress)
    embedded = embed(
        f"{directory / RAW}::/data/JF01T01V01/data",
        directory / MASTER,
        formula="jungfrau",
        constants={"pedestal": directory / PEDESTAL, "gain": directory / GAIN},
        settings=SETTINGS,
        ids={"pulse_id": f"{directory / RAW}::/data/JF01T01V01/pulse_id"},
        source="plain",  # frames of a demonstration may be smaller than a module
        overwrite=True,
    )
    applied = apply(directory / MASTER, directory / APPLIED, output="counts", overwrite=True)
    flagged = ", ".join(f"{n} {c}" for n, c in applied.flags.items() if c)
    lines = [
        f"{directory / RAW}: {frames} simulated frames, as a detector writes them",
        f"{directory / PEDESTAL}, {directory / GAIN}: its constants, as PSI writes them",
        f"{directory / MASTER}: formula and constants, linking the raw words; outputs {', '.join(embedded.outputs)}",
        f"{directory / APPLIED}: photon counts for programs that know nothing of gaincal; flagged: {flagged}",
    ]
    return [*lines, *_picture(directory), *_next_steps(directory)]


def _write_constants(directory: Path, module: Module) -> None:
    module.gain.astype("<f8").tofile(directory / GAIN)
    with atomic_output(directory / PEDESTAL, overwrite=True) as written:
        written.file.create_dataset("gains", data=module.pedestal)


def _write_raw(path: Path, module: Module, frames: int, progress: Progress | None) -> None:
    shape = module.dead.shape
    with atomic_output(path, overwrite=True) as written:
        group = written.file.create_group("data/JF01T01V01")
        filters = plugins().Bitshuffle(cname="lz4")
        words = group.create_dataset(
            "data", (frames, *shape), np.uint16, chunks=(1, *shape), fletcher32=True, **filters
        )
        group.create_dataset("pulse_id", data=FIRST_PULSE + 4 * np.arange(frames, dtype=np.uint64))
        for frame, (image, _) in enumerate(make_frames(module, frames)):
            words[frame] = image
            if progress is not None:
                progress(frame + 1, frames)


def _picture(directory: Path) -> list[str]:
    if find_spec("matplotlib") is None:
        return ["no picture: pip install 'gaincal[plot]' brings matplotlib"]
    from gaincal.picture import draw

    master = open_master(directory / MASTER)
    with master.resolver:
        frames = master.calibration.layout.frames
        origin, pixels = (0, 0, 0), master.calibration.layout.pixels
        stage = master.calibration.stage_step()
        assert stage is not None
        programs = {
            "raw": master.calibration.step_program("raw", "uint16"),
            "stage": master.calibration.step_program(stage, "int8"),
            "photons": master.calibration.program("photons"),
        }
        read = {n: Evaluation(master.calibration, master.words, p).read for n, p in programs.items()}
        one = {name: reader(origin, (1, *pixels))[0][0] for name, reader in read.items()}
        draw(
            directory / PICTURE, one["raw"], one["stage"], one["photons"], read["photons"](origin, (frames, *pixels))[0]
        )
    return [f"{directory / PICTURE}: raw, gain stage and calibrated image of a frame, and the photon spectrum"]


def _next_steps(directory: Path) -> list[str]:
    return [
        "",
        "look on:",
        f"  gaincal info {directory / MASTER}",
        f"  python -c \"import gaincal; print(gaincal.open_calibrated('{directory / MASTER}', 'photons'))\"",
    ]
