"""``show``: a picture of one frame."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gaincal.errors import RequestError
from gaincal.nexus.atomic import refuse_existing, refuse_input, write_bytes
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.trust import reading
from gaincal.quality.look import Look, look_at
from gaincal.report.canvas import Canvas
from gaincal.report.draw import draw_beam, draw_flags, draw_outlines, draw_stage, draw_values, figure, png, style
from gaincal.report.laboratory import Laboratory
from gaincal.report.place import canvas_of

WIDTH = 15.0
PNG = ".png"
ACROSS = 1.25
"""Wider detectors than this have their stage and flags below, not beside."""
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True)
class Shown:
    """What was drawn.

    Parameters
    ----------
    path : str or None
        The picture; None if it was a window.
    frame : int
    frames : int
        Of the run.
    output, units : str
    ids : dict of str to number
        What the frame is called in the file.
    flags : dict of str to int
        Pixels by reason.
    laboratory : bool
        Whether pixels are where they are in the laboratory, or as they are stored.
    notes : list of str
    """

    path: str | None
    frame: int
    frames: int
    output: str
    units: str
    ids: dict[str, float]
    flags: dict[str, int]
    laboratory: bool
    notes: list[str]


def show(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    frame: int = 0,
    output: str | None = None,
    stored: bool = False,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> Shown:
    """Draw a frame: calibrated, gain stage and flags, in the laboratory where the file says where pixels are.

    Parameters
    ----------
    path : str or path
        A master.
    target : str or path, optional
        A ``.png`` file to write; a window opens if None.
    frame : int
        Negative numbers count from the end.
    output : str, optional
        Which output of the formula; that in keV, or in photons, if None.
    stored : bool
        Draw pixels as they are stored, even where the file says where they are.
    inputs, calibration, profile, reasons, trust
        As for `gaincal.nexus.read.open_master`.
    overwrite : bool
        Replace an existing `target`.

    Returns
    -------
    Shown

    Raises
    ------
    FileError, TrustError, BindError, RequestError, OutputError
    """
    _check_target(path, target, overwrite)
    master = open_master(path, trust=trust, calibration=calibration, inputs=inputs, profile=profile, reasons=reasons)
    with master.resolver, reading(path):
        look = look_at(master, frame, output)
        canvas, notes = canvas_of(master, stored)
        ids = {name: values[look.frame].item() for name, values in master.ids.items()}
    make = figure if target is not None else _windowed
    drawn = draw_look(look, canvas, _title(path, master, look, ids), make)
    if target is None:
        _show_windows()
    else:
        write_bytes(target, png(drawn), overwrite=overwrite)
    laboratory = isinstance(canvas, Laboratory)
    frames = master.calibration.layout.frames
    shown = None if target is None else os.fspath(target)
    return Shown(shown, look.frame, frames, look.output, look.units, ids, look.reasons(), laboratory, notes)


def draw_look(look: Look, canvas: Canvas, title: str, make: Callable[[float, float], Figure] = figure) -> Figure:
    """Draw a frame on a figure that `make` makes of width and height."""
    rows, columns = canvas.image(look.flags.astype(np.float32)).shape
    aspect = columns / rows
    with style():
        wide = aspect > ACROSS
        # What is drawn, and room for colour bars and legends.
        if wide:
            drawn = make(WIDTH, min(2.2 + 1.24 * WIDTH / aspect, 14))
            grid = drawn.add_gridspec(2, 2, height_ratios=(1.9, 1))
            places = [grid[0, :], grid[1, 0], grid[1, 1]]
        else:
            drawn = make(WIDTH, 9)
            grid = drawn.add_gridspec(2, 2, width_ratios=(1.7, 1))
            places = [grid[:, 0], grid[0, 1], grid[1, 1]]
        main, second, third = (drawn.add_subplot(place) for place in places)
        drawn.suptitle(title, fontsize=11)
        draw_values(main, look, canvas)
        if look.stage is not None:
            draw_stage(second, look.stage, canvas)
        else:
            second.set_axis_off()
        draw_flags(third, look, canvas)
        for axes in (main, second, third):
            draw_outlines(axes, canvas)
        draw_beam(main, canvas, look.energy)
    return drawn


def _title(path: str | os.PathLike[str], master: Master, look: Look, ids: Mapping[str, float]) -> str:
    called = "".join(f", {name} {value}" for name, value in ids.items())
    return f"{Path(path).name}: frame {look.frame} of {master.calibration.layout.frames}{called}"


def _check_target(path: str | os.PathLike[str], target: str | os.PathLike[str] | None, overwrite: bool) -> None:
    if target is None:
        if not has_display():
            raise RequestError("there is no display for a window: say where to write a picture: -o FILE.png")
        return
    if Path(target).suffix.lower() != PNG:
        raise RequestError(f"{os.fspath(target)}: pictures are PNG files: call it .png")
    refuse_input(Path(target), [Path(path)])
    refuse_existing(Path(target), overwrite)


def has_display() -> bool:
    """Whether a window can be opened."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in DISPLAYS)


def _windowed(width: float, height: float) -> Figure:
    """A figure in a window; raises RequestError if matplotlib has nothing to draw windows with."""
    from matplotlib import pyplot as plt

    if plt.get_backend().lower() == "agg":
        raise RequestError("matplotlib finds nothing to draw windows with (Tk, Qt ...): write a picture: -o FILE.png")
    return plt.figure(figsize=(width, height), layout="constrained")


def _show_windows() -> None:
    from matplotlib import pyplot as plt

    plt.show()
