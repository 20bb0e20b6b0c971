"""The JSON master of a JUNGFRAU run of slsDetectorPackage, checked, and the files that it stands for."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gaincal.errors import FileError, TrustError
from gaincal.nexus.trust import TRUST_VARIABLE, reading

HEADER_BYTES = 112
ROWS, COLUMNS, ROWS_PER_PACKET = 512, 1024, 4
MAX_MASTER_BYTES, MAX_PORTS, MAX_COUNT = 1 << 20, 1024, 1 << 40
NO_ROI = (-1, 0xFFFFFFFF)
COPY_AGAIN = "copy the files of the run again"

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|ms|us|ns)")
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_MASTER = re.compile(r"(?P<stem>.+)_master_(?P<run>\d{1,9})\.json")
_PIECE = re.compile(r"(?P<stem>.+)_d(?P<port>0|[1-9]\d{0,5})_f(?P<piece>0|[1-9]\d{0,5})_(?P<run>\d{1,9})\.raw")


@dataclass(frozen=True)
class Master:
    """What the master says of a run, in agreement with a JUNGFRAU."""

    file: Path
    version: float
    ports: int
    ports_y: int
    interfaces: int
    frames: int
    expected: int
    per_file: int
    rows_read: int
    stated: Mapping[str, str | float]

    @property
    def rows(self) -> int:
        """Of a port."""
        return ROWS // self.interfaces

    @property
    def packets(self) -> int:
        """That make the image of a port."""
        return self.rows // ROWS_PER_PACKET

    @property
    def stride(self) -> int:
        """Bytes from one frame of a port to the next."""
        return HEADER_BYTES + self.rows * COLUMNS * 2

    @property
    def pixels(self) -> tuple[int, ...]:
        """The shape of a frame."""
        modules = self.ports // self.interfaces
        return (ROWS, COLUMNS) if modules == 1 else (modules, ROWS, COLUMNS)


def find_master(path: Path) -> Path | None:
    """The real path of the master that a master, ``.raw`` file or directory means; None if it means none."""
    if path.is_dir():
        with reading(path):
            masters = sorted(e for e in os.listdir(path) if _MASTER.fullmatch(e))
        if len(masters) > 1:
            problem = f"holds {len(masters)} masters: {', '.join(masters[:8])}"
            raise FileError(path, "", problem, "name one of them", code="ambiguous")
        path = path / masters[0] if masters else path
    piece = _PIECE.fullmatch(path.name)
    if piece is not None:
        master = path.with_name(f"{piece['stem']}_master_{piece['run']}.json")
        if not master.exists():
            raise FileError(path, "", f"its master {master.name} is not beside it", "put it there", code="not-found")
        path = master
    real = Path(os.path.realpath(path))
    return real if _MASTER.fullmatch(path.name) and _MASTER.fullmatch(real.name) else None


def open_file(file: Path, directory: Path) -> io.FileIO:
    """Open a regular file that lies, behind all links, in the directory of the master or in a trusted one."""
    real = Path(os.path.realpath(file))
    trusted = [Path(os.path.realpath(d)) for d in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if d]
    if not any(real.is_relative_to(root) for root in (directory, *trusted)):
        problem, remedy = f"leads to {real}, outside the directory of its master", f"if you trust it: {TRUST_VARIABLE}"
        raise TrustError(file, "", problem, remedy, code="foreign-file")
    try:
        # A fifo would block for ever without O_NONBLOCK.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(file, "", f"cannot be opened: {error.strerror}", code="not-found") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrustError(file, "", "is not a regular file", code="not-a-file")
    return io.FileIO(descriptor)


def load_master(file: Path) -> Master | None:
    """Read and check a master; None if it is the JSON of something else."""
    with open_file(file, file.parent) as stream, reading(file):
        text = stream.read(MAX_MASTER_BYTES + 1)
        if len(text) > MAX_MASTER_BYTES:
            problem = f"has more than {MAX_MASTER_BYTES} bytes, too many for a master"
            raise TrustError(file, "", problem, code="over-budget")
        facts = json.loads(text)
    if not isinstance(facts, dict) or "Detector Type" not in facts:
        return None
    version = _check_kind(file, facts)
    x, y = (_number(file, facts, f"Geometry/{axis}", 1, MAX_PORTS) for axis in "xy")
    master = Master(
        file=file,
        version=version,
        ports=x * y,
        ports_y=y,
        interfaces=_number(file, facts, "Number of UDP Interfaces", 1, 2),
        frames=_number(file, facts, "Frames in File", 0, MAX_COUNT),
        expected=_number(file, facts, "Total Frames", 0, MAX_COUNT),
        per_file=_number(file, facts, "Max Frames Per File", 0, MAX_COUNT) or MAX_COUNT,  # 0: no limit
        rows_read=_number(file, facts, "Number of rows", ROWS_PER_PACKET, ROWS, ROWS),
        stated=_stated(facts),
    )
    _check_image(master, facts, x)
    return master


def _stated(facts: dict[str, Any]) -> dict[str, str | float]:
    """When the run was taken (a time without its zone) and the exposure in s, where the master says it."""
    found: dict[str, str | float] = {"detector_name": "Jungfrau"}
    try:
        time = datetime.strptime(str(facts.get("Timestamp")), "%a %b %d %H:%M:%S %Y")
        found["start_time"] = time.isoformat()
    except ValueError:
        pass
    exposure = _DURATION.fullmatch(str(facts.get("Exptime")))
    if exposure:
        found["exposure_time"] = float(exposure[1]) / _PER_SECOND[exposure[2]]
    return found


def _check_kind(file: Path, facts: dict[str, Any]) -> float:
    kind, version = facts["Detector Type"], facts.get("Version")
    if kind != "Jungfrau":
        problem = f"is of a detector of type {str(kind)[:40]}"
        raise FileError(file, "", problem, "only Jungfrau can be read", code="unsupported")
    if isinstance(version, bool) or not isinstance(version, int | float) or not 7 <= version < 9:
        problem = f"has version {str(version)[:40]}"
        raise FileError(file, "", problem, "only 7 and 8 can be read", code="unsupported")
    return float(version)


def _check_image(master: Master, facts: dict[str, Any], ports_x: int) -> None:
    """Refuse images that are not whole halves or modules of 16 bits."""
    file, image = master.file, master.stride - HEADER_BYTES
    _number(file, facts, "Dynamic Range", 16, 16, 16)
    _number(file, facts, "Pixels/x", COLUMNS, COLUMNS)
    _number(file, facts, "Pixels/y", master.rows, master.rows)
    _number(file, facts, "Image Size in bytes" if master.version < 8 else "Image Size", image, image)
    if master.ports > MAX_PORTS or master.ports_y % master.interfaces:
        problem = f"has {ports_x} x {master.ports_y} ports, and {master.interfaces} in each module"
        raise FileError(file, "", problem, COPY_AGAIN, code="wrong-shape")
    whole = {"xmin": 0, "xmax": ports_x * COLUMNS - 1, "ymin": 0, "ymax": master.ports_y * master.rows - 1}
    regions = facts.get("Receiver Rois", facts.get("Receiver Roi", []))
    for region in regions if isinstance(regions, list) else [regions]:
        given = region if isinstance(region, dict) else {"xmin": region}
        if any(given.get(k, -1) not in (*NO_ROI, edge) for k, edge in whole.items()):
            problem = f"holds a region of interest: {str(region)[:80]}"
            raise FileError(file, "", problem, "only whole modules can be read", code="unsupported")


def _number(file: Path, facts: Any, key: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number of the master within limits; ``a/b`` is b in a."""
    value = facts
    for name in key.split("/"):
        value = value.get(name, default) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = "is missing" if value is None else f"is {str(value)[:40]}"
        problem = f"'{key}' {shown}, needed is {low}" + (f" to {high}" if high != low else "")
        raise FileError(file, "", problem, "is the master damaged?", code="wrong-shape")
    return value


def find_pieces(master: Master) -> list[list[Path]]:
    """The files of every port in their order; raises FileError where one is missing."""
    named = _MASTER.fullmatch(master.file.name)
    assert named is not None
    found: dict[int, dict[int, Path]] = {n: {} for n in range(master.ports)}
    with reading(master.file.parent):
        for name in os.listdir(master.file.parent):
            piece = _PIECE.fullmatch(name)
            if piece and piece.group("stem", "run") == named.group("stem", "run"):
                found.setdefault(int(piece["port"]), {})[int(piece["piece"])] = master.file.with_name(name)
    if len(found) > master.ports:
        problem = f"states {master.ports} ports, but there are files of {len(found)}"
        raise FileError(master.file, "", problem, "is this the right master?", code="wrong-shape")
    for port, pieces in found.items():
        gone = next((k for k in range(max(pieces, default=0)) if k not in pieces), None if pieces else 0)
        if gone is not None:
            problem = f"{named['stem']}_d{port}_f{gone}_{named['run']}.raw is not beside it"
            raise FileError(master.file, "", problem, COPY_AGAIN, code="incomplete")
    return [[found[port][k] for k in sorted(found[port])] for port in range(master.ports)]
