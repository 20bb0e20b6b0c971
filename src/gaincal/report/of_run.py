"""The report of a run: what is on its page and in its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gaincal.nexus.read import Master
from gaincal.quality.found import PartPeaks, find_peaks
from gaincal.quality.look import Look, look_at
from gaincal.quality.peaks import Peak
from gaincal.quality.planes import Plane, planes_of
from gaincal.quality.reasons import FRAMES, Reason, reasons_of
from gaincal.quality.rules import near, percent
from gaincal.quality.run_rules import judge_run, six_numbers
from gaincal.quality.statistics import Progress, Statistics, collect
from gaincal.report import figures
from gaincal.report.canvas import Canvas, Stored
from gaincal.report.laboratory import Laboratory
from gaincal.report.page import Page, Section, Table
from gaincal.report.place import canvas_of
from gaincal.report.sections import constants_section

MOST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Seen:
    """All that a report needs of a file; what follows reads nothing.

    Parameters
    ----------
    master : Master
    found : Statistics
    look : Look
        One frame.
    canvas : Canvas
        Where its pixels are.
    notes : list of str
        Why they are not drawn in the laboratory.
    planes : list of Plane
        Constants.
    """

    master: Master
    found: Statistics
    look: Look
    canvas: Canvas
    notes: list[str]
    planes: list[Plane]


def see(master: Master, frames: int | None, progress: Progress | None) -> Seen:
    """Read at most so many frames, all if None."""
    found = collect(master, frames, progress)
    canvas, notes = canvas_of(master, edge=figures.EDGE)
    look = look_at(master, chosen_frame(found))
    return Seen(master, found, look, canvas, notes, planes_of(master.calibration))


def report_run(seen: Seen, previous: Sequence[Plane]) -> tuple[Page, dict[str, Any]]:
    """Say how good a run is.

    Parameters
    ----------
    seen : Seen
    previous : sequence of Plane
        Constants to compare with.

    Returns
    -------
    page : Page
    content : dict
        The same for programs.
    """
    master, found = seen.master, seen.found
    peaks = find_peaks(found)
    rules, numbers = judge_run(found, peaks), six_numbers(found, peaks)
    reasons = reasons_of(master.calibration, found)
    sampled = _sampled(found)
    page = Page(
        title=Path(master.resolver.named).name,
        subtitle=_subtitle(master, found),
        sampled=sampled,
        numbers=numbers,
        rules=rules,
        sections=[s for s in _sections(seen, peaks, reasons, previous) if s is not None],
        provenance=_provenance(master, sampled),
    )
    return page, _content(found, peaks, reasons)


def _sampled(found: Statistics) -> str:
    count, total = len(found.frames), found.run_frames
    looked = f"all {total} frames" if count == total else f"{count} of {total} frames, evenly spread (--frames)"
    return f"Looked at: {looked}. Which words are missing is known of all frames."


def _subtitle(master: Master, found: Statistics) -> str:
    formula = master.calibration.formula
    shape = " x ".join(str(n) for n in master.calibration.layout.pixels)
    return f"{formula.title}. {found.run_frames} frames of {shape} pixels; {found.output} in {found.units}."


def _sections(
    seen: Seen, peaks: Sequence[PartPeaks], reasons: Sequence[Reason], previous: Sequence[Plane]
) -> list[Section | None]:
    found, canvas = seen.found, seen.canvas
    return [
        Section(f"Frame {seen.look.frame}", seen.notes, figures.of_frame(seen.look, canvas)),
        Section(
            "Photons", (), [figures.spectrum(found, peaks), *_if(figures.drift(found, peaks))], [_peaks(found, peaks)]
        ),
        Section("Gain stages and frames", (), [*_if(figures.stages(found)), figures.strip(found)], _missing(found)),
        Section(
            "Bad pixels and mean",
            (),
            [*_if(figures.reason_map(reasons, canvas)), figures.mean_image(found, canvas)],
            [_reasons(reasons)],
        ),
        constants_section(seen.planes, previous, _flat(canvas, found)),
    ]


def _flat(canvas: Canvas, found: Statistics) -> Canvas:
    """Constants are drawn as they are stored: chips and rows show there."""
    return Stored(found.mean.shape, figures.EDGE) if isinstance(canvas, Laboratory) else canvas


def chosen_frame(found: Statistics) -> int:
    """The frame in the middle of those that were looked at and are complete, else of all of them."""
    complete = found.frames[found.missing[found.frames].max(1) == 0]
    among = complete if len(complete) else found.frames
    return int(among[len(among) // 2])


def _if(picture: figures.Picture | None) -> list[figures.Picture]:
    return [] if picture is None else [picture]


# --- tables ---------------------------------------------------------------------------------


def _peaks(found: Statistics, peaks: Sequence[PartPeaks]) -> Table:
    head = ["", f"zero peak ({found.units})", "noise", "drift", "photon peak", "expected", "gain factor"]
    scale = found.photon
    expected = "-" if found.photon is None else f"{found.photon:.5g}"
    rows = []
    for part in [*peaks[: MOST_ROWS - 1], *peaks[-1:]] if len(peaks) > MOST_ROWS else peaks:
        gain, error = part.gain(found.photon), part.gain_error(found.photon)
        factor = "-" if gain is None or error is None else f"{gain:.4f} \N{PLUS-MINUS SIGN} {error:.1g}"
        cells = [_centre(part.zero, scale), "-" if part.zero is None else near(part.zero.width, scale)]
        cells.append("-" if part.drift is None else near(part.drift, scale))
        rows.append([part.name, *cells, _centre(part.photon, scale), expected, factor])
    return Table(head, rows)


def _centre(peak: Peak | None, scale: float | None) -> str:
    return "not found" if peak is None else f"{near(peak.centre, scale)} \N{PLUS-MINUS SIGN} {peak.error:.1g}"


def _missing(found: Statistics) -> list[Table]:
    lost = found.missing
    if not lost.any():
        return []
    rows = []
    for k, part in enumerate(found.parts):
        gone, partly = int((lost[:, k] == 1).sum()), int(((lost[:, k] > 0) & (lost[:, k] < 1)).sum())
        if gone or partly:
            rows.append([part.name, str(gone), str(partly), percent(float(lost[:, k].mean()))])
    return [Table(["module", "frames missing", "frames in part", "words missing"], rows[:MOST_ROWS])]


def _reasons(reasons: Sequence[Reason]) -> Table:
    head = ["reason", "said by", "pixels in every frame", "of all pixel values", "has a value"]
    rows = [
        [
            r.name,
            "frames" if r.source == FRAMES else "mask of the file",
            str(r.count),
            percent(r.share),
            _yes(not r.voids),
        ]
        for r in reasons
    ]
    return Table(head, rows or [["none", "", "0", "0 %", ""]])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _provenance(master: Master, sampled: str) -> list[tuple[str, str]]:
    formula = master.calibration.formula
    lines = [
        ("file", str(master.resolver.named)),
        ("calibration", master.located.group.path),
        ("formula", f"{formula.name} version {formula.version}, {formula.digest}"),
        ("checksum of the calibration", master.stored.checksum),
    ]
    lines += [(f"constant {name}", text) for name, text in master.stored.sources.items()]
    for name, values in master.ids.items():
        if values.size:
            lines.append((name, f"{values.min()} to {values.max()}"))
    return [*lines, ("frames", sampled)]


# --- for programs ---------------------------------------------------------------------------


def _content(found: Statistics, peaks: Sequence[PartPeaks], reasons: Sequence[Reason]) -> dict[str, Any]:
    return {
        "output": found.output,
        "units": found.units,
        "photon": found.photon,
        "run_frames": found.run_frames,
        "frames": found.frames.tolist(),
        "modules": [_module(found, k, peaks) for k in range(len(found.parts))],
        "all": _part(peaks[-1], found.photon),
        "stages": {
            "labels": list(found.stages),
            "first_frames": found.frames[found.first[:-1]].tolist(),
            "pixels": found.stage_counts.sum(1).tolist(),
        },
        "spectrum": {"edges": found.edges[[0, -1]].tolist(), "pixels": found.spectrum.sum((0, 1)).tolist()},
        "flags": {name: int(counts.sum()) for name, counts in found.flags.items()},
        "bad_pixels": [
            {"reason": r.name, "source": r.source, "pixels": r.count, "share": r.share, "has_value": not r.voids}
            for r in reasons
        ],
    }


def _module(found: Statistics, k: int, peaks: Sequence[PartPeaks]) -> dict[str, Any]:
    lost = found.missing[:, k]
    return {
        **_part(peaks[k], found.photon),
        "frames_missing": int((lost == 1).sum()),
        "frames_in_part": int(((lost > 0) & (lost < 1)).sum()),
        "pixels": int(found.looked_at[k]),
        "pixels_present": int(found.present[k]),
        "pixels_valid": int(found.valid[k]),
        "outside_spectrum": found.outside[k].tolist(),
    }


def _part(part: PartPeaks, photon: float | None) -> dict[str, Any]:
    return {
        "name": part.name,
        "zero_peak": None if part.zero is None else asdict(part.zero),
        "photon_peak": None if part.photon is None else asdict(part.photon),
        "gain_factor": part.gain(photon),
        "gain_factor_error": part.gain_error(photon),
        "drift": part.drift,
        "zero_peak_over_time": [
            [s.first, s.last, None if s.zero is None else s.zero.centre, None if s.zero is None else s.zero.error]
            for s in part.slices
        ],
    }
