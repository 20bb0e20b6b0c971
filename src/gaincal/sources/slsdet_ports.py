"""The ``.raw`` files of the UDP ports of a JUNGFRAU: the headers of all frames, checked.

Every port (a module has one or two) writes its own files; each frame in them is a header and the pixels of that port.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.nexus.trust import reading
from gaincal.sources.slsdet_master import COPY_AGAIN, HEADER_BYTES, Master, find_pieces, open_file

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]

HEADER = np.dtype(
    [
        ("number", "<u8"),
        ("exposure", "<u4"),
        ("packets", "<u4"),
        ("bunch_id", "<u8"),
        ("timestamp", "<u8"),
        ("module", "<u2"),
        ("row", "<u2"),
        ("column", "<u2"),
        ("spec2", "<u2"),
        ("info", "<u4"),
        ("spec4", "<u2"),
        ("type", "u1"),
        ("version", "u1"),
        ("mask", "u1", (64,)),
    ]
)
JUNGFRAU, HEADER_VERSION = 3, 2
BATCH = 4096


@dataclass(frozen=True)
class Port:
    """The files of a UDP port, the headers of all its frames, and how many different packets each frame has."""

    name: str
    files: tuple[Path, ...]
    headers: Array
    caught: Array


def packets_caught(headers: Array) -> Flags:
    """Which packets of each frame arrived: (frame, 512)."""
    return np.unpackbits(headers["mask"], axis=-1, bitorder="little").astype(bool)


def load_ports(master: Master) -> tuple[Port, ...]:
    """Read the headers of all files of a run; raises FileError where one is missing or damaged."""
    ports = tuple(_load_port(master, f"d{n}", files) for n, files in enumerate(find_pieces(master)))
    counts = [len(port.headers) for port in ports]
    if counts[0] != master.frames:
        problem = f"states {master.frames} frames, the files of d0 hold {counts[0]}"
        raise FileError(master.file, "", problem, COPY_AGAIN, code="incomplete")
    for port, count in zip(ports, counts, strict=True):
        # A receiver starts another file only when there is a frame for it.
        if 0 < count < max(counts) and count % master.per_file == 0:
            problem = f"is the last file of {port.name}, and full, but other ports have up to {max(counts)} frames"
            raise FileError(port.files[-1], "", problem, COPY_AGAIN, code="incomplete")
    return ports


def _load_port(master: Master, name: str, files: list[Path]) -> Port:
    loaded = [_load_headers(master, file) for file in files]
    for file, (headers, _) in zip(files, loaded, strict=True):
        if len(headers) > master.per_file or (file != files[-1] and len(headers) < master.per_file):
            problem = f"has {len(headers)} frames, the master says {master.per_file} per file"
            raise FileError(file, "", problem, COPY_AGAIN, code="incomplete")
    headers = np.concatenate([h for h, _ in loaded])
    numbers, counts = np.unique(headers["number"], return_counts=True)
    if (counts > 1).any():
        problem = f"{name} has frame_number {numbers[counts > 1][0]} more than once"
        raise FileError(files[0], "", problem, COPY_AGAIN, code="frames-differ")
    return Port(name, tuple(files), headers, np.concatenate([c for _, c in loaded]))


def _load_headers(master: Master, file: Path) -> tuple[Array, Array]:
    """Headers of a file's frames, and how many different packets each has."""
    with open_file(file, master.file.parent) as stream, reading(file):
        count, rest = divmod(os.fstat(stream.fileno()).st_size, master.stride)
        if rest:
            problem = f"ends {rest} bytes into a frame of {master.stride}: truncated, or frames of another size"
            raise FileError(file, "", problem, COPY_AGAIN, code="incomplete")
        headers, caught = np.zeros(count, HEADER), np.zeros(count, np.int64)
        for first in range(0, count, BATCH):
            batch = headers[first : first + BATCH]
            for k in range(len(batch)):
                stream.seek((first + k) * master.stride)
                if stream.readinto(batch[k : k + 1].view(np.uint8).data) != HEADER_BYTES:
                    raise FileError(file, "", "became shorter", "read it when it is complete", code="incomplete")
            caught[first : first + BATCH] = _check_headers(master, file, first, batch)
    return headers, caught


def _check_headers(master: Master, file: Path, first: int, headers: Array) -> Array:
    """Number of packets in each frame; raises FileError where there is no header of such a frame."""
    for k in np.flatnonzero((headers["type"] != JUNGFRAU) | (headers["version"] != HEADER_VERSION))[:1]:
        stated = f"detector type {headers['type'][k]}, version {headers['version'][k]}"
        problem = f"frame {first + k} has a header of {stated}; a JUNGFRAU has {JUNGFRAU}, {HEADER_VERSION}"
        if first + k:
            raise FileError(file, "", problem, "frames of another size?", code="wrong-shape")
        raise FileError(file, "", problem, "only this can be read", code="unsupported")
    bits = packets_caught(headers)
    beyond = bits[:, master.packets :].any(axis=1) | (headers["packets"] > master.packets)
    caught: Array = bits.sum(axis=1)
    for k in np.flatnonzero(beyond)[:1]:
        problem = f"frame {first + k} has more packets than the {master.packets} of its image"
        raise FileError(file, "", problem, "frames of another size?", code="wrong-shape")
    # More than the mask names can arrive: one of them twice.
    for k in np.flatnonzero(headers["packets"] < caught)[:1]:
        problem = f"frame {first + k} counts {headers['packets'][k]} packets, its mask names {caught[k]}"
        raise FileError(file, "", problem, COPY_AGAIN, code="unreadable")
    return caught
