"""What a broken module changes: the rule that names it, with the number that was put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from broken_runs import FRAMES, ODD, SHAPE, make_run

from gaincal.nexus.read import open_master
from gaincal.quality.found import PartPeaks, find_peaks
from gaincal.quality.reasons import FRAMES as BY_FRAMES
from gaincal.quality.reasons import MASK, reasons_of
from gaincal.quality.rules import BAD, DOUBTFUL, GOOD, NOT_JUDGED, Rule, near, percent, verdict, worst
from gaincal.quality.run_rules import judge_run, six_numbers
from gaincal.quality.statistics import Statistics, collect
from gaincal.simulate import PHOTON_ENERGY, TYPICAL_GAIN

Array = npt.NDArray[Any]


def look(path: Path) -> tuple[Statistics, tuple[PartPeaks, ...], dict[str, Rule]]:
    master = open_master(path)
    with master.resolver:
        found = collect(master)
    peaks = find_peaks(found)
    return found, peaks, {r.name: r for r in judge_run(found, peaks)}


def test_a_healthy_run_is_good(tmp_path: Path) -> None:
    found, peaks, rules = look(make_run(tmp_path))
    assert {r.state for r in rules.values()} == {GOOD}
    assert verdict(rules.values()) == GOOD
    numbers = {n.name: n for n in six_numbers(found, peaks)}
    assert list(numbers) == ["frames", "valid", "first_stage", "zero", "photon", "noise"]
    assert numbers["frames"].value == "100 %"
    assert float(numbers["photon"].value.split()[0]) == pytest.approx(PHOTON_ENERGY, rel=0.005)
    assert float(numbers["noise"].value.split()[0]) == pytest.approx(15 / TYPICAL_GAIN[0], rel=0.05)


def lost(frame: int, module: int) -> bool:
    return module == ODD and frame % 2 == 0


BROKEN: dict[str, tuple[dict[str, Any], str, float, float]] = {
    # what is done, the rule that notices, the value it must find, and how exactly
    "codes": ({"spoil": lambda w, r: np.where(r.random(w.shape) < 0.5, 0x8000 | w & 0x3FFF, w)}, "no-stage", 0.5, 0.02),
    "values": ({"spoil": lambda w, r: np.where(r.random(w.shape) < 0.2, 0x3FFF, w)}, "without-value", 0.2, 0.02),
    "pedestal": ({"spoil": lambda w, _: w + np.uint16(100)}, "zero-off", 100 / 41 / PHOTON_ENERGY, 0.005),
    "chips": (  # a third of the module; its zero-photon peak is at 0
        {"spoil": lambda w, _: np.where(np.arange(SHAPE[0])[:, None] < SHAPE[0] // 3, w - np.uint16(100), w)},
        "too-low",
        0.5,
        0.03,
    ),
    "gain": ({"gain": 1.08}, "gain-off", 0.08, 0.004),
    "noise": ({"noise": 70.0}, "odd-noise", 70 / 15, 0.4),
    "silent": ({"noise": 0.01}, "odd-noise", np.inf, 0),  # no spread, so no peak that could be fitted
    "drift": (
        {"spoil": lambda w, _: w + np.arange(FRAMES, dtype=np.uint16)[:, None, None] * np.uint16(10)},
        "drift",
        110 / 41 / PHOTON_ENERGY,
        0.01,
    ),
    "missing": ({"missing": lost}, "words-missing", 0.5, 0.001),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_module_is_named_and_measured(tmp_path: Path, how: str) -> None:
    options, name, value, exact = BROKEN[how]
    _, _, rules = look(make_run(tmp_path, **options))
    assert rules[name].state == BAD, rules
    assert rules[name].where == f"module {ODD}"
    assert rules[name].value == pytest.approx(value, abs=exact)
    assert verdict(rules.values()) == BAD


def test_constants_that_are_all_wrong_are_not_good(tmp_path: Path) -> None:
    """They leave no zero-photon peak in any module, and so nothing that the other rules could judge."""
    found, peaks, _ = look(make_run(tmp_path))
    rules = {r.name: r for r in judge_run(found, [replace(p, zero=None, photon=None) for p in peaks])}
    assert (rules["no-zero-peak"].state, rules["no-zero-peak"].value) == (DOUBTFUL, 1)
    assert {rules[n].state for n in ("odd-noise", "too-low", "zero-off", "gain-off", "noise")} == {NOT_JUDGED}
    assert verdict(rules.values()) == DOUBTFUL


def test_what_nobody_stated_is_not_judged(tmp_path: Path) -> None:
    _, peaks, rules = look(make_run(tmp_path, settings={}))
    judged = {name for name, rule in rules.items() if rule.state != NOT_JUDGED}
    assert judged == {"words-missing", "without-value", "no-stage", "no-zero-peak", "odd-noise", "too-low"}
    assert all("photon energy" in r.why for n, r in rules.items() if n not in judged)
    assert all(p.zero is not None and p.photon is None for p in peaks)


def test_a_run_without_words_has_nothing_to_judge_but_that(tmp_path: Path) -> None:
    found, peaks, rules = look(make_run(tmp_path, missing=lambda *_: True))
    assert rules["words-missing"].state == BAD
    assert {r.state for n, r in rules.items() if n != "words-missing"} == {NOT_JUDGED}
    assert {n.value for n in six_numbers(found, peaks)} >= {"0 %", "not found"}


def test_reasons_are_those_of_the_mask_and_of_the_frames(tmp_path: Path) -> None:
    mask = np.zeros((3, *SHAPE), np.uint32)
    mask[0, :2], mask[1, 5, :7], mask[2, 0, 0] = 1 << 1, 1 << 4, 1 << 31
    always: Callable[..., Array] = lambda w, _: np.where(np.arange(SHAPE[1]) == 9, 0x3FFF, w)  # noqa: E731
    path = make_run(tmp_path, mask=mask, spoil=always)
    master = open_master(path)
    with master.resolver:
        found = collect(master)
        reasons = {r.name: r for r in reasons_of(master.calibration, found)}
    assert {n: (r.source, r.count, r.voids) for n, r in reasons.items()} == {
        "dead": (MASK, 2 * SHAPE[1], True),
        "noisy": (MASK, 7, True),
        "virtual": (MASK, 1, False),
        "adc_limit": (BY_FRAMES, SHAPE[0], True),
    }
    assert reasons["adc_limit"].share == pytest.approx(SHAPE[0] / mask.size)


# --- small things ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "state"),
    [(None, NOT_JUDGED), (float("nan"), NOT_JUDGED), (0.1, GOOD), (0.15, DOUBTFUL), (0.3, BAD), (float("inf"), BAD)],
)
def test_a_rule_has_two_limits(value: float | None, state: str) -> None:
    assert Rule("x", "x", value, 0.1, 0.2, "%").state == state


def test_the_verdict_is_the_worst() -> None:
    rules = [Rule("x", "x", v, 1, 2, "") for v in (None, 0.5, 1.5, 2.5)]
    assert [verdict(rules[:n]) for n in range(5)] == [NOT_JUDGED, NOT_JUDGED, GOOD, DOUBTFUL, BAD]


def test_the_worst_is_named_only_among_several() -> None:
    assert worst({"a": 1.0, "b": 2.0, "c": None}) == (2.0, "b")
    assert worst({"a": 1.0}) == (1.0, "")
    assert worst({"a": 0.0, "b": 0.0}) == (0.0, "")
    assert worst({"a": None, "b": float("nan")}) == (None, "")


def test_numbers_are_shown_as_exactly_as_they_mean_something() -> None:
    assert near(-9.9e-5, 12.4) == "0.000"
    assert near(12.3993, 12.4) == "12.399"
    assert near(0.00123, None) == "0.00123"
    assert percent(0.99999) == "> 99.99 %"
