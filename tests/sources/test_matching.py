"""Frames are the same if their ids are equal, whatever order, holes and repetitions files have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaincal.errors import GaincalError, RequestError
from gaincal.nexus.account import ModuleAccount
from gaincal.nexus.arrangement import Arrangement
from gaincal.sources import matching
from gaincal.sources.keys import close_keys
from gaincal.sources.matching import DUPLICATES, FIRST, LAST, REJECT, Matched, Rule, Store, Stretch, match

Array = npt.NDArray[Any]
Recorded = dict[int, list[int | None]]


def stretch(number: int, ids: list[int | None] | Array, dtype: str = "u8") -> Stretch:
    """Rows of a module; None for one that cannot be used."""
    usable = np.array([i is not None for i in ids], bool)
    values = np.array([0 if i is None else i for i in ids], dtype)
    rows = np.arange(len(values))
    places = {"raw": Store(Path(f"/m{number}.h5"), "/data", (0, 0), (4, 5))}
    return Stretch(number, places, (values,), rows, np.zeros(len(rows), np.uint8), usable, {}, file=f"m{number}.h5")


def matched(recorded: Recorded, rule: Rule) -> Matched:
    return match([stretch(n, ids) for n, ids in recorded.items()], rule)


def by_hand(recorded: Recorded, rule: Rule) -> tuple[list[int], dict[int, dict[int, int]]]:
    """The table of ids, and for each module the row of each id: slowly, with dicts."""
    kept: dict[int, dict[int, int]] = {}
    for number, ids in recorded.items():
        rows: dict[int, list[int]] = {}
        for row, identity in enumerate(ids):
            if identity is not None:
                rows.setdefault(identity, []).append(row)
        choose = {FIRST: lambda r: r[0], LAST: lambda r: r[-1], REJECT: lambda r: r[0] if len(r) == 1 else None}
        chosen = {i: choose[rule.duplicates](r) for i, r in rows.items()}
        kept[number] = {i: r for i, r in chosen.items() if r is not None}
    needed = sum(map(bool, kept.values())) if rule.intersection else rule.require
    counts = Counter(i for rows in kept.values() for i in rows)
    return sorted(i for i, count in counts.items() if count >= needed), kept


rules = st.one_of(
    st.builds(Rule, st.sampled_from(DUPLICATES), st.integers(1, 4)),
    st.builds(Rule, st.sampled_from(DUPLICATES), st.just(1), st.just(True)),
)
ids = st.lists(st.one_of(st.none(), st.integers(0, 12), st.sampled_from([2**63, 2**64 - 1])), max_size=12)


@given(st.dictionaries(st.integers(0, 5), ids, min_size=1, max_size=4), rules)
def test_every_row_and_every_frame_is_accounted_for(recorded: Recorded, rule: Rule) -> None:
    found = matched(recorded, rule)
    table, kept = by_hand(recorded, rule)
    assert found.ids[0].tolist() == table
    account = found.account("pulse_id", dict.fromkeys(range(6), ("", "")))
    for row in account.modules:
        rows = kept.get(row.module, {})
        wanted = {table.index(i): r for i, r in rows.items() if i in table}
        if row.module in found.modules:
            module = found.modules[row.module]
            assert dict(zip(module.at.tolist(), module.kept.tolist(), strict=True)) == wanted
            parts = list(module.parts("raw", Arrangement(6, (4, 5)), row.module))
            read = {p.target[0][0] + k: p.source[0][0] + k for p in parts for k in range(p.target[1][0])}
            assert read == wanted
        stated = recorded.get(row.module, [])
        usable = [i for i in stated if i is not None]
        assert row.recorded == len(stated)
        assert row.written == len(wanted)
        assert row.missing == len(table) - len(wanted)
        assert row.duplicate == len(usable) - len(rows)
        assert row.rejected == len(stated) - len(usable) + len(rows) - len(wanted)
        places = {("row", k) for k in range(len(stated))} | {("frame", i) for i in table if i not in rows}
        assert row.expected == len(places) == row.written + row.missing + row.duplicate + row.rejected


def test_rows_in_order_are_one_part() -> None:
    found = matched({0: list(range(100)), 1: list(range(50, 100))}, Rule())
    (part,) = found.modules[1].parts("raw", Arrangement(2, (4, 5), "assembled", 3), 1)
    assert part.target == ((50, 7, 0), (50, 4, 5))
    assert part.source == ((0, 0, 0), (50, 4, 5))


def test_large_ids_are_not_rounded() -> None:
    first = 2**60
    found = matched({0: [first, first + 1], 1: [first + 1]}, Rule())
    assert found.ids[0].tolist() == [first, first + 1]
    assert found.modules[1].at.tolist() == [1]


def test_a_place_where_an_id_would_stand_is_not_its_place() -> None:
    found = matched({0: [10, 20, 30], 1: [15, 25, 30]}, Rule(require=2))
    assert found.ids[0].tolist() == [30]
    assert [m.kept.tolist() for m in found.modules.values()] == [[2], [2]]


@given(st.lists(st.integers(0, 60), max_size=40, unique=True), st.integers(0, 2**32 - 1), st.booleans())
def test_times_within_the_tolerance_are_one_frame(frames: list[int], seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    dtype, unit = ("u8", 1000) if whole else ("f8", 1e-3)
    stretches, has = [], {}
    for number in range(3):
        own = [f for f in frames if rng.random() < 0.8]
        rng.shuffle(own)
        jitter = rng.uniform(0, 0.3 * unit, len(own))
        stretches.append(stretch(number, np.array(own, "f8") * unit + jitter, dtype))
        has[number] = own
    found = match(stretches, Rule(tolerance=0.3 * unit))
    table = sorted({f for own in has.values() for f in own})
    assert np.floor(found.ids[0] / unit + 1e-9).astype(int).tolist() == table
    for number, own in has.items():
        module = found.modules[number]
        assert [table[k] for k in module.at] == sorted(own)
        assert [own[k] for k in module.kept] == sorted(own)


def test_equal_times_of_a_module_are_one_frame_recorded_again() -> None:
    found = match([stretch(0, np.array([1.0, 1.0, 2.0]), "f8"), stretch(1, np.array([1.1]), "f8")], Rule(tolerance=0.2))
    assert found.ids[0].tolist() == [1.0, 2.0]
    assert found.modules[0].duplicate == 1
    assert found.modules[1].at.tolist() == [0]


def test_rows_that_cannot_be_used_do_not_matter_for_times() -> None:
    rows = stretch(0, [100, None, 200])
    assert match([rows], Rule(tolerance=5)).ids[0].tolist() == [100, 200]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([[1.0], [1.8], [2.6]], r"1\.0 of module 0 and 2\.6 of module 2 are further apart"),
        ([[1.0, 1.5], [1.2]], r"1\.0 and 1\.5 of module 0 are both within the tolerance"),
        ([[1.0], [1.5, 1.2]], r"1\.2 and 1\.5 of module 1 are both within the tolerance"),
    ],
)
def test_ambiguous_times_are_refused_by_name(times: list[list[float]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        match([stretch(n, np.array(t), "f8") for n, t in enumerate(times)], Rule(tolerance=1.0))


def test_a_tolerance_of_nothing_is_equality() -> None:
    keys = close_keys([np.array([1.0, 2.0]), np.array([2.0, 1.0 + 1e-15])], ["a", "b"], 0.0)
    assert [k.tolist() for k in keys.of] == [[0, 2], [2, 1]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"duplicates": "some"},
        {"require": 0},
        {"require": 2, "intersection": True},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
    ],
)
def test_rules_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Rule(**wrong)


def test_what_is_not_accounted_for_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = matched({0: [1, 2, 2, 3]}, Rule())
    monkeypatch.setattr(
        matching, "ModuleAccount", lambda n, file, recorded, *r: ModuleAccount(n, file, recorded + 1, *r)
    )
    with pytest.raises(GaincalError, match="not accounted for") as caught:
        found.account("pulse_id", {0: ("", "")})
    assert caught.value.code == "unbalanced"
