"""``darks``: constants from dark runs, with a mask that says why."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal._version import __version__
from gaincal.dark.judge import CONVENTION, REASONS, Evidence, Thresholds, judge
from gaincal.dark.measure import Found, Method, Survey
from gaincal.dark.recipe import CELL_AXIS, STAGE_AXIS, THRESHOLDS, Recipe, find_recipe
from gaincal.dark.series import NONE, Series, make_series
from gaincal.errors import FileError, RequestError
from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula
from gaincal.kernels.threads import available_threads, run_all
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.constantsfile import COUNTS, STAGE, THRESHOLD, ConstantsWriter, Fact
from gaincal.nexus.constantsfile import REASONS as REASONS_FIELD
from gaincal.nexus.trust import reading
from gaincal.sources.facts import file_checksum, merged, parse_facts
from gaincal.sources.files import Spec
from gaincal.sources.gather import find_readers, find_template, known_facts, open_raw, suggested_formula
from gaincal.sources.mask_bits import reasons_of, translate
from gaincal.sources.recognise import AUTO, recognise

Array = npt.NDArray[Any]
NOISE, DIGITAL = "noise", "digital"
DEFAULT_MEMORY = 1024
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Darks:
    """What `darks` made.

    Parameters
    ----------
    path : Path
    checksum : str
    constant : str
        What the pedestal is called: pedestal or offset.
    stages : list of dict
        For each stage: label, frames of modules that were used, median pedestal and noise in ADU, bad pixels.
    lacking : list of int
        Stages of the formula that no frame was in.
    rejected : dict of str to int
        Frames of modules that were not used, by reason.
    masked : dict of str to int
        Pixels by NXmx reason.
    reasons : dict of str to int
        Pixels by reason, in any stage or cell.
    notes : list of str
    """

    path: Path
    checksum: str
    constant: str
    stages: list[dict[str, Any]]
    lacking: list[int]
    rejected: dict[str, int]
    masked: dict[str, int]
    reasons: dict[str, int]
    notes: list[str]


def darks(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    stages: Mapping[int, str | os.PathLike[str]] | None = None,
    formula: str | os.PathLike[str] | Formula | None = None,
    method: str = "mean",
    clip: float = 6.0,
    gate: float = 5.0,
    majority: float = 0.5,
    thresholds: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    source: str = AUTO,
    max_memory: int = DEFAULT_MEMORY,
    jobs: int | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Darks:
    """Take pedestal, noise and bad pixels from dark runs.

    Parameters
    ----------
    runs : sequence of str or path
        ``FILE[::/path]`` of words, or runs as facilities write them.  The stage of each frame is the one that the
        files say was forced, else the one that most of its words are in.
    output : str or path
        The constants file to write.
    stages : mapping of int to str or path, optional
        Runs all of whose frames should be in one stage.
    formula : str, path or Formula, optional
        What the first run calls for if None.
    method : {'mean', 'median', 'gated'}
        ``mean``: one pass over the words.  ``median``: one pass, with histograms.  ``gated``: a second pass for the
        mean of the words in a gate around the median.
    clip, gate, majority : float
        See `gaincal.dark.measure.Method`.
    thresholds : mapping of str to float, optional
        When a pixel is bad; see `gaincal.dark.judge.Thresholds`.
    facts : mapping of str to object, optional
        start_time, end_time, exposure_time (s), temperature (K), high_voltage (V), detector_name, module_serials,
        gain_mode: they replace what the runs say.
    source : str
        Which facility wrote the runs.
    max_memory : int
        MiB for sums and histograms; stages and cells that do not fit are taken one after the other.
    jobs : int, optional
        Threads.
    overwrite : bool
        Replace an existing file.
    trust : iterable of str or path
        Directories whose files the runs may lead to.
    progress : callable (done, total) -> None, optional

    Returns
    -------
    Darks

    Raises
    ------
    FormulaError, FileError, TrustError, OutputError, RequestError
    """
    limits = Thresholds().changed(thresholds or {})
    how = Method(method, clip, gate, majority)
    stated = parse_facts(facts or {})
    target = Path(output)
    refuse_existing(target, overwrite)
    named = [(None, os.fspath(r)) for r in runs] + [(s, os.fspath(r)) for s, r in (stages or {}).items()]
    if not named:
        raise RequestError("name a dark run, or one for each stage: --stage 0=RUN")
    with ExitStack() as stack:
        opened = _Opened(stack, source, trust)
        series = [opened.series(stage, text, formula) for stage, text in named]
        _check_alike(series)
        refuse_input(target, opened.files)
        threads = jobs or available_threads()
        survey = Survey(series, how, max_memory << 20, threads, progress or _silent)
        writing = _Writing(survey, limits)
        with atomic_output(target, overwrite=overwrite) as written:
            checksum = writing.write(written.file, {**merged(opened.facts), **stated}, opened.files)
    return Darks(target, checksum, survey.recipe.constant, *writing.summary(), notes=opened.notes + writing.notes)


def _silent(_done: int, _total: int) -> None:
    """Nobody wants to know."""


class _Opened:
    """The runs of a set, open as long as a stack lasts."""

    def __init__(self, stack: ExitStack, source: str, trust: Iterable[str | os.PathLike[str]]) -> None:
        self.stack, self.source, self.trust = stack, source, list(trust)
        self.recipe: Recipe | None = None
        self.files: list[Path] = []
        self.facts: list[Mapping[str, Fact]] = []
        self.notes: list[str] = []

    def series(self, stage: int | None, text: str, formula: str | os.PathLike[str] | Formula | None) -> Series:
        """Open a run; the first one says which formula."""
        spec = Spec.parse(text)
        run = recognise(spec.file, spec.path, self.source)
        if self.recipe is None:
            self.recipe = find_recipe(_load(formula if formula is not None else suggested_formula(run)))
        resolver = self.stack.enter_context(open_raw(spec, run, self.trust))
        self.stack.enter_context(reading(spec.file))
        _, words = find_readers(resolver, spec, self.recipe.formula, run)
        self.files += [f for f in (run.files if run else resolver.opened) if f not in self.files]
        self.facts.append(known_facts(resolver, None if run else find_template(resolver), run, {}))
        self.notes += [f"{spec.file.name}: {run.description}"] if run else []
        return make_series(spec.file, run, self.recipe, dict(words), stage)


def _load(formula: str | os.PathLike[str] | Formula) -> Formula:
    if isinstance(formula, Formula):
        return formula
    text = os.fspath(formula)
    return catalog.get(text) if text in catalog.names() else Formula.load(text)


def _check_alike(series: Sequence[Series]) -> None:
    for other in series[1:]:
        if other.pixels != series[0].pixels:
            problem = f"has frames of {other.pixels}, those of {series[0].file} are {series[0].pixels}"
            raise FileError(other.file, "", problem, "one detector a set", code="wrong-shape")


class _Writing:
    """Writes what a survey finds, stage by stage, and keeps the numbers for the summary."""

    def __init__(self, survey: Survey, limits: Thresholds) -> None:
        self.survey, self.limits, self.recipe = survey, limits, survey.recipe
        self.pixels = survey.series[0].pixels
        self.mask = np.zeros(math.prod(self.pixels), np.uint32)
        self.reasons = np.zeros_like(self.mask)
        self.lines: dict[int, dict[str, Any]] = {}
        self.notes: list[str] = []

    def write(self, file: Any, validity: Mapping[str, Fact], files: Sequence[Path]) -> str:
        """Measure and write everything; returns the checksum."""
        writer = ConstantsWriter(file, self.pixels)
        name, axes = self.recipe.constant, self._axes()
        for field, kind, units in (
            (name, np.float32, "ADU"),
            (NOISE, np.float32, "ADU"),
            (COUNTS, np.uint32, None),
            (REASONS_FIELD, np.uint32, None),
        ):
            writer.create(field, kind, units, axes)
        for found in self.survey.measure(self.recipe.value):
            self._put(writer, found)
        if not self.lines:
            first = self.survey.series[0].file
            rejected = ", ".join(f"{n}: {c}" for n, c in self.survey.rejected().items() if c)
            raise FileError(first, "", f"has no dark frame that could be used ({rejected})", code="no-darks")
        if self.recipe.digital:
            self._thresholds(writer, axes)
        self._note_doubts()
        return writer.finish(self.mask.reshape(self.pixels), REASONS, validity, self._parameters(files))

    def summary(self) -> tuple[list[dict[str, Any]], list[int], dict[str, int], dict[str, int], dict[str, int]]:
        """Stages, lacking ones, rejected frames, masked pixels and reasons."""
        lacking = [label for label in self.recipe.labels if label not in self.lines]
        counts = {n: int(np.count_nonzero(self.reasons >> np.uint32(b) & np.uint32(1))) for n, b in REASONS.items()}
        lines = [dict(line) for line in self.lines.values()]
        return lines, lacking, self.survey.rejected(), reasons_of(self.mask), {n: c for n, c in counts.items() if c}

    def _axes(self) -> dict[str, tuple[int, ...]]:
        cells = sorted({int(c) for s in self.survey.series for c in np.unique(s.cells)} - {NONE})
        return {a: () if a == STAGE_AXIS else tuple(cells) for a in self.recipe.axes}

    def _labels(self, label: int, cell: int) -> tuple[int, ...]:
        return tuple({STAGE_AXIS: label, CELL_AXIS: cell}[axis] for axis in self.recipe.axes)

    def _put(self, writer: ConstantsWriter, found: Found) -> None:
        """Judge and write a stage of a cell."""
        place, moments = self._labels(found.label, found.cell), found.moments
        bits = self._judged(found)
        usable = moments.used >= self.limits.min_frames
        values = (
            (self.recipe.constant, np.where(usable, moments.mean, np.nan)),
            (NOISE, np.where(usable, moments.noise, np.nan)),
            (COUNTS, moments.used),
            (REASONS_FIELD, bits),
        )
        for name, plane in values:
            writer.put(name, place, plane)
        self.reasons |= bits
        self.mask |= translate(bits, CONVENTION).mask
        self._count(found, bits)

    def _judged(self, found: Found) -> Array:
        """The reasons of every pixel, judged module by module."""
        size = len(found.right) // len(found.frames)
        bits = np.empty(len(found.right), np.uint32)

        def work(module: int, frames: int) -> None:
            own, m = slice(module * size, (module + 1) * size), found.moments
            evidence = Evidence(frames, found.right[own], found.undefined[own], m.used[own], m.mean[own], m.noise[own])
            bits[own] = judge(evidence, self.limits)

        run_all([partial(work, *given) for given in enumerate(found.frames.tolist())], self.survey.threads)
        return bits

    def _count(self, found: Found, bits: Array) -> None:
        line = self.lines.setdefault(found.label, {"stage": found.label, "frames": 0, "cells": 0, "bad": 0})
        good = bits == 0
        if not line["cells"] and good.any():
            line["pedestal"] = float(np.median(found.moments.mean[good]))
            line["noise"] = float(np.median(found.moments.noise[good]))
        line["frames"] += int(found.frames.sum())
        line["cells"] += 1
        line["bad"] = max(line["bad"], int(np.count_nonzero(~good)))

    def _thresholds(self, writer: ConstantsWriter, axes: Mapping[str, tuple[int, ...]]) -> None:
        """Midpoints between what neighbouring stages give on the plane that tells them."""
        writer.create(DIGITAL, np.float32, "ADU", axes)
        for found in self.survey.measure(self.recipe.digital):
            writer.put(DIGITAL, self._labels(found.label, found.cell), found.moments.mean)
        writer.create(THRESHOLDS, np.float32, "ADU", {THRESHOLD if a == STAGE else a: v for a, v in axes.items()})
        present = sorted(self.lines)
        for lower, upper in ((k, k + 1) for k in present if k + 1 in present):
            for cell in axes[CELL_AXIS]:
                between = [writer.get(DIGITAL, self._labels(k, cell)).astype(np.float64) for k in (lower, upper)]
                writer.put(THRESHOLDS, (lower, cell), (between[0] + between[1]) / 2)

    def _note_doubts(self) -> None:
        lacking = [label for label in self.recipe.labels if label not in self.lines]
        if lacking:
            self.notes.append(
                f"no frame was in stage {', '.join(map(str, lacking))}: the set is complete for the others"
            )
        rejected = {n: c for n, c in self.survey.rejected().items() if c}
        if rejected:
            self.notes.append("frames of modules not used: " + ", ".join(f"{n} {c}" for n, c in rejected.items()))

    def _parameters(self, files: Sequence[Path]) -> dict[str, Fact]:
        method = self.survey.method
        parameters: dict[str, Fact] = {
            "program": "gaincal",
            "version": __version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "formula": self.recipe.formula.name,
            "method": method.name,
            "clip": method.clip,
            "gate": method.gate,
            "majority": method.majority,
        }
        parameters |= {f"threshold_{n}": v for n, v in self.limits.stated().items()}
        parameters |= {f"frames_used_stage_{label}": int(line["frames"]) for label, line in self.lines.items()}
        parameters |= {f"frames_rejected_{n}": count for n, count in self.survey.rejected().items()}
        for k, file in enumerate(files):
            parameters[f"source_{k}"] = f"{file.name}, {file_checksum(file)}"
        return parameters
