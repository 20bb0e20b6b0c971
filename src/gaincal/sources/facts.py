"""When constants hold: what the sources say of their darks, and what the user states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from gaincal.errors import RequestError
from gaincal.nexus.constantsfile import Fact
from gaincal.nexus.trust import reading
from gaincal.nexus.write import parse_number

TEXTS = ("detector_name", "module_serials", "start_time", "end_time", "gain_mode")
NUMBERS = ("exposure_time", "temperature", "high_voltage")
TIMES = ("start_time", "end_time")
HASHED_BYTES = 4 << 20
"""Of each source file enter its checksum: the first and last half of so many bytes, and its size."""


def parse_facts(given: Mapping[str, object]) -> dict[str, Fact]:
    """Facts that a user states; raises RequestError for an unknown name, a bad number or a bad time."""
    parsed: dict[str, Fact] = {}
    for name, value in given.items():
        if name in NUMBERS:
            parsed[name] = parse_number(name, str(value))
        elif name in TEXTS:
            parsed[name] = str(value)
        else:
            raise RequestError(f"nothing is called '{name}'; there are {', '.join((*TEXTS, *NUMBERS))}")
    for name in TIMES:
        if name in parsed and parse_time(parsed[name]) is None:
            raise RequestError(f"{name}={parsed[name]}: not a time; write it like 2026-01-31T12:00:00+01:00")
    return parsed


def parse_time(value: object) -> datetime | None:
    """A time as ISO 8601 writes it; one without a zone is taken as UTC.  None if it is none."""
    try:
        time = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def merged(facts: Iterable[Mapping[str, Fact]]) -> dict[str, Fact]:
    """What is true of all runs of a set: the earliest start, the latest end, and all else where they agree."""
    stated = list(facts)
    every = {name for own in stated for name in own}
    found: dict[str, Fact] = {}
    for name in (n for n in (*TEXTS, *NUMBERS) if n in every):
        values = [own[name] for own in stated if name in own]
        if name in TIMES:
            found[name] = sorted(values, key=_moment)[0 if name == TIMES[0] else -1]
        elif len(set(values)) == 1 and len(values) == len(stated):
            found[name] = values[0]
    return found


def _moment(value: object) -> datetime:
    return parse_time(value) or datetime.max.replace(tzinfo=timezone.utc)


def file_checksum(file: Path) -> str:
    """A checksum of a source file that does not read terabytes: its size, its beginning and its end."""
    digest = hashlib.sha256()
    with reading(file), file.open("rb") as stream:
        size = stream.seek(0, 2)
        digest.update(f"{size}|".encode())
        for first in sorted({0, max(0, size - HASHED_BYTES // 2)}):
            stream.seek(first)
            digest.update(stream.read(HASHED_BYTES // 2))
    return f"sha256 of size, first and last 2 MiB:{digest.hexdigest()}"
