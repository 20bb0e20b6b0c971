"""``report``: one page about a run, or about constants, and the same for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gaincal._version import __version__
from gaincal.errors import OutputError, RequestError
from gaincal.nexus.atomic import refuse_existing, refuse_input, write_text
from gaincal.nexus.constantsfile import is_constants_file, read_constants
from gaincal.nexus.read import open_master
from gaincal.nexus.trust import Resolver, reading
from gaincal.quality.planes import Plane, planes_of, planes_of_set
from gaincal.quality.rules import Rule
from gaincal.quality.statistics import SAMPLE, Progress
from gaincal.report.of_constants import report_constants
from gaincal.report.of_run import report_run, see
from gaincal.report.page import Page

FORMAT = 1
PAGES = (".html", ".htm")
MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Reported:
    """What was written.

    Parameters
    ----------
    path, json_path : str
    verdict : str
        good, doubtful, bad, or not judged.
    reason : str
        What made it.
    numbers : dict of str to str
    frames : int
        That were looked at.
    """

    path: str
    json_path: str
    verdict: str
    reason: str
    numbers: dict[str, str]
    frames: int


def report(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    previous: str | os.PathLike[str] | None = None,
    frames: int | None = SAMPLE,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    reasons: Iterable[str] | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Reported:
    """Say how good a run or a set of constants is, on one self-contained page, and in a JSON file beside it.

    Parameters
    ----------
    path : str or path
        A master, or a constants file.
    target : str or path
        The ``.html`` file to write; the JSON file has the same name with ``.json``.
    previous : str or path, optional
        A master or constants file with the constants to compare with.
    frames : int, optional
        Most frames to look at, evenly spread; all if None.
    inputs, calibration, reasons, trust
        As for `gaincal.nexus.read.open_master`.
    overwrite : bool
        Replace both files.
    progress : callable (done, total) -> None, optional
        Told after every frame.

    Returns
    -------
    Reported

    Raises
    ------
    FileError, TrustError, BindError, RequestError, OutputError
    """
    page_path = Path(target)
    if page_path.suffix.lower() not in PAGES:
        raise RequestError(f"{os.fspath(target)}: a report is a page: call it .html")
    json_path = page_path.with_suffix(".json")
    if not page_path.parent.is_dir():
        raise OutputError(page_path, "", "cannot be written: there is no such directory", code="write-failed")
    for written in (page_path, json_path):
        refuse_input(written, [Path(p) for p in (path, previous) if p is not None])
        refuse_existing(written, overwrite)
    before = [] if previous is None else _planes(previous, trust)
    if _is_set(path):
        page, content = report_constants(read_constants(path), before)
    else:
        master = open_master(path, trust=trust, calibration=calibration, inputs=inputs, reasons=reasons)
        with master.resolver, reading(path):
            seen = see(master, frames, progress)
        page, content = report_run(seen, before)
    text = page.html()
    if len(text.encode()) > MAX_BYTES:
        raise OutputError(page_path, "", f"would have {len(text.encode())} bytes", "report it", code="write-failed")
    document = _document(path, page, content)
    write_text(json_path, json.dumps(document, indent=1, allow_nan=False) + "\n", overwrite=overwrite)
    write_text(page_path, text, overwrite=overwrite)
    numbers = {n.name: n.value for n in page.numbers}
    return Reported(os.fspath(target), os.fspath(json_path), page.verdict, page.reason, numbers, len(content["frames"]))


def _is_set(path: str | os.PathLike[str]) -> bool:
    with Resolver(path) as resolver, reading(path):
        return is_constants_file(resolver)


def _planes(path: str | os.PathLike[str], trust: Iterable[str | os.PathLike[str]]) -> list[Plane]:
    if _is_set(path):
        return planes_of_set(read_constants(path))
    master = open_master(path, trust=trust)
    with master.resolver, reading(path):
        return planes_of(master.calibration)


def _document(path: str | os.PathLike[str], page: Page, content: dict[str, Any]) -> dict[str, Any]:
    document = {
        "format": FORMAT,
        "program": "gaincal",
        "version": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "file": os.fspath(path),
        "kind": "run" if "modules" in content else "constants",
        "verdict": page.verdict,
        "reason": page.reason,
        "numbers": [asdict(n) for n in page.numbers],
        "rules": [_rule(r) for r in page.rules],
        **content,
    }
    plain = _finite(document)
    assert isinstance(plain, dict)
    return plain


def _rule(rule: Rule) -> dict[str, Any]:
    return {**asdict(rule), "state": rule.state}


def _finite(content: Any) -> Any:
    """What JSON can say: NaN and infinities become null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
