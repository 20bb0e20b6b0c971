"""``info`` and ``validate``: what a file holds, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import h5py
import numpy as np

from gaincal.constants import LargeConstant
from gaincal.errors import FileError, GaincalError
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import needs
from gaincal.nexus import names
from gaincal.nexus.account import read_account
from gaincal.nexus.boxes import Box
from gaincal.nexus.dataset import PlainDataset
from gaincal.nexus.fields import attribute_text
from gaincal.nexus.group import read_calibration
from gaincal.nexus.read import Master, choose, descend, locate, of_class, open_master
from gaincal.nexus.slabs import slab_places
from gaincal.nexus.trust import Place, Resolver, reading
from gaincal.nexus.words import Words
from gaincal.nexus.write import missing_metadata
from gaincal.sources.files import datasets

ERROR, WARNING, NOTE = "error", "warning", "note"
MAX_LISTED = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something that `validate` noticed.

    Parameters
    ----------
    code : str
        Stable name, listed in ``docs/reference/findings.md``.
    severity : {'error', 'warning', 'note'}
    place : str
        File and HDF5 path.
    problem, remedy : str
    """

    code: str
    severity: str
    place: str
    problem: str
    remedy: str = ""


def info(
    path: str | os.PathLike[str],
    *,
    calibration: str | None = None,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> dict[str, Any]:
    """Describe a file without reading a word of it.

    Parameters
    ----------
    path : str or path
    calibration : str, optional
        Which calibration, where the file has several.
    trust : iterable of str or path
        Directories, beside the file's own, whose files may be opened.

    Returns
    -------
    dict
        Of plain values, ready for JSON: ``calibration`` is None for a file without one, whose
        datasets are listed instead.

    Raises
    ------
    FileError, TrustError, BindError, RequestError
    """
    with Resolver(path, trust) as resolver, reading(path):
        located = locate(resolver)
        if not located and calibration is None:
            detectors = descend(resolver, resolver.get("/"), names.ENTRY, names.INSTRUMENT, names.DETECTOR)
            account = _describe_account(resolver, detectors[0]) if detectors else None
            return {
                "file": os.fspath(path),
                "calibration": None,
                "account": account,
                "datasets": _listed(resolver),
            }
    master = open_master(path, trust=trust, calibration=calibration)
    with master.resolver, reading(path):
        return {
            "file": os.fspath(path),
            "calibration": master.located.group.path,
            "view_of": str(master.stored.origin.file) if master.stored.origin else None,
            "others": [c.name for c in located if c.name != master.located.name],
            "checksum": master.stored.checksum,
            "raw": [_describe_words(name, words) for name, words in master.words.items()],
            "ids": {name: [v.min().item(), v.max().item()] for name, v in master.ids.items() if v.size},
            "account": None if master.stored.origin else _describe_account(master.resolver, master.detector),
            **_describe_formula(master),
            "metadata_missing": _missing_metadata(master),
        }


def stored_formula(
    path: str | os.PathLike[str],
    *,
    calibration: str | None = None,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> Formula:
    """The formula of a file, without looking at its raw data; raises FileError or TrustError."""
    with Resolver(path, trust) as resolver, reading(path):
        return read_calibration(resolver, choose(resolver, calibration).group).formula


def _listed(resolver: Resolver) -> list[dict[str, Any]]:
    found = sorted(datasets(resolver), key=lambda p: -(p.item.size or 0))[:MAX_LISTED]
    return [{"path": p.path, "shape": list(p.item.shape or ()), "dtype": _dtype_name(p)} for p in found]


def _dtype_name(place: Place) -> str:
    try:
        return str(place.item.dtype)
    except TypeError:  # a type that h5py cannot express
        return "?"


def _describe_account(resolver: Resolver, detector: Place) -> dict[str, Any] | None:
    """What became of all that the modules of an assembled run recorded."""
    group = resolver.find(names.ACCOUNT_GROUP, detector)
    return None if group is None else asdict(read_account(resolver, group))


def _describe_words(name: str, words: Words) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"{words.place.file}::{words.place.path}",
        "shape": list(words.shape),
        "dtype": words.dtype.name,
        "storage": sorted({s.pipeline.describe() for s in words.sources}),
        "checksummed": all(s.pipeline.checksummed for s in words.sources),
        "datasets": len(words.sources),
        "gaps": len(words.gaps),
        "unwritten_chunks": sum(s.unwritten() for s in words.sources),
    }


def _describe_formula(master: Master) -> dict[str, Any]:
    calibration = master.calibration
    formula = calibration.formula
    tested, available = set(calibration.tested_flags()), set(calibration.available_outputs())
    return {
        "formula": {
            "name": formula.name,
            "version": formula.version,
            "title": formula.title,
            "compute": formula.compute,
            "digest": formula.digest,
        },
        "outputs": [
            {
                "name": o.name,
                "units": o.units,
                "dtypes": [o.dtype, *(dtype for dtype, _ in o.alternatives)],
                "default": o.default,
                "available": o.name in available,
                "lacking": sorted(needs(formula, o.name) - calibration.given),
            }
            for o in formula.outputs
        ],
        "flags": [{"name": f.name, "voids": f.voids, "tested": f.name in tested} for f in formula.flags],
        "inputs": {i.name: _input_value(master, i.name) for i in formula.inputs if i.name not in calibration.words},
        "constants": [_describe_constant(master, c.name) for c in formula.constants],
        "masked": _count_masked(calibration.arrays.get(names.PIXEL_MASK)),
    }


def _count_masked(mask: Any) -> dict[str, int]:
    """Pixels per reason of the pixel mask; a pixel can have several."""
    if mask is None:
        return {}
    counts = {name: int(np.count_nonzero(mask >> np.uint32(bit) & 1)) for bit, name in names.PIXEL_MASK_BITS.items()}
    return {name: count for name, count in counts.items() if count}


def _input_value(master: Master, name: str) -> Any:
    array = master.calibration.arrays.get(name)
    if array is None:
        return None
    return float(str(array.reshape(())[()])) if array.size == 1 else f"{array.dtype.name} {array.shape}"


def _describe_constant(master: Master, name: str) -> dict[str, Any]:
    calibration = master.calibration
    values = calibration.arrays.get(name)
    declared = next(c for c in calibration.formula.constants if c.name == name)
    real = declared.dtype is None
    return {
        "name": name,
        "units": declared.units,
        "dims": list(declared.dims),
        "shape": list(calibration.large[name].values.shape if values is None else values.shape),
        "labels": [list(axis) for axis in calibration.labels.get(name, ())],
        "not_finite": int(np.count_nonzero(~np.isfinite(values))) if real and values is not None else None,
        "source": f"default {declared.default:g}" if name in calibration.defaulted else master.stored.sources[name],
    }


def _missing_metadata(master: Master) -> list[str]:
    entry = master.entry
    detector = master.detector.path.removeprefix(f"{entry.path}/")
    return missing_metadata(lambda path: master.resolver.find(path, entry) is not None, detector)


def validate(
    path: str | os.PathLike[str],
    *,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> list[Finding]:
    """List everything that is wrong, doubtful or worth knowing about a file.

    Parameters
    ----------
    path : str or path
    trust : iterable of str or path
        Directories, beside the file's own, whose files may be opened.
    progress : callable (done, total) -> None, optional
        Told after every dataset whose chunks were checked.

    Returns
    -------
    list of Finding
        Errors first.
    """
    try:
        with Resolver(path, trust) as resolver, reading(path):
            found: list[str | None] = [c.group.path for c in locate(resolver)]
    except GaincalError as error:
        return [_finding(error, os.fspath(path))]
    findings: list[Finding] = []
    for name in found or [None]:
        findings += _validate_one(path, name, tuple(trust), progress)
    return sorted(findings, key=lambda f: (ERROR, WARNING, NOTE).index(f.severity))


def _validate_one(
    path: str | os.PathLike[str],
    name: str | None,
    trust: tuple[str | os.PathLike[str], ...],
    progress: Progress | None,
) -> list[Finding]:
    try:
        master = open_master(path, trust=trust, calibration=name)
    except GaincalError as error:
        return [_finding(error, os.fspath(path))]
    with master.resolver:
        try:
            with reading(path):
                return [*_formula_findings(master), *_words_findings(master, progress), *_entry_findings(master)]
        except GaincalError as error:
            return [_finding(error, os.fspath(path))]


def _finding(error: GaincalError, path: str) -> Finding:
    if isinstance(error, FileError):
        place = f"{error.file}::{error.place}" if error.place else error.file
        return Finding(error.code, ERROR, place, error.problem, error.remedy)
    return Finding(error.code, ERROR, path, str(error))


def _formula_findings(master: Master) -> list[Finding]:
    calibration, place = master.calibration, f"{master.resolver.named}::{master.located.group.path}"
    findings = []
    for output in calibration.formula.outputs:
        lacking = sorted(needs(calibration.formula, output.name) - calibration.given)
        if lacking:
            remedy = f"embed with --set {lacking[0]}=VALUE, or give it when reading"
            findings.append(
                Finding("output-unavailable", NOTE, place, f"{output.name} needs {', '.join(lacking)}", remedy)
            )
    for name in sorted({f.name for f in calibration.formula.flags} - set(calibration.tested_flags())):
        findings.append(Finding("flag-not-tested", NOTE, place, f"flag {name} is not tested: its inputs are not there"))
    for constant in calibration.formula.constants:
        large = calibration.large.get(constant.name)
        bad = _describe_constant(master, constant.name)["not_finite"] if large is None else _count_bad(large)
        if bad:
            problem = f"{bad} values are not finite; such pixels are flagged"
            findings.append(Finding("constant-not-finite", NOTE, f"{place}/{constant.name}", problem))
    return findings


def _count_bad(constant: LargeConstant) -> int:
    """Read a constant that opening the file did not, so that its checksums are compared; count what is not finite."""
    slabs = (constant.values.slab(place) for place in slab_places(constant.values.shape))
    return sum(int(np.count_nonzero(~np.isfinite(slab))) for slab in slabs)


def _words_findings(master: Master, progress: Progress | None) -> list[Finding]:
    findings = []
    for words in master.words.values():
        alike: dict[str, list[Box]] = {}
        for piece in words.gaps:
            alike.setdefault(piece.reason, []).append(piece.box)
        for reason, boxes in islice(alike.items(), MAX_LISTED):
            where = f"{words.place.file}::{words.place.path}"
            more = f" (and {len(boxes) - 1} more parts)" if len(boxes) > 1 else ""
            problem = f"words from {boxes[0][0]}, {boxes[0][1]} of them{more}, are missing: {reason}"
            findings.append(Finding("words-missing", WARNING, where, problem, "such pixels are flagged as missing"))
    # Two words inputs can be parts of one dataset.
    sources = {source.place.identity: source for words in master.words.values() for source in words.sources}
    for done, source in enumerate(sources.values(), start=1):
        findings += _source_findings(source)
        if progress is not None:
            progress(done, len(sources))
    return findings


def _source_findings(source: PlainDataset) -> list[Finding]:
    where = f"{source.place.file}::{source.place.path}"
    findings = []
    if source.unwritten():
        problem = f"{source.unwritten()} chunks were never written"
        findings.append(Finding("words-missing", WARNING, where, problem, "such pixels are flagged as missing"))
    if not source.pipeline.checksummed:
        problem = "the words carry no checksum: a flipped bit would go unnoticed"
        findings.append(Finding("words-unchecked", NOTE, where, problem, "write them with fletcher32"))
    return findings + [_finding(error, where) for error in islice(source.damaged(), MAX_LISTED)]


def _entry_findings(master: Master) -> list[Finding]:
    findings = []
    lacking = _missing_metadata(master)
    if lacking:
        problem = "NXmx needs, and the file does not state: " + ", ".join(lacking)
        remedy = f"embed with --set {lacking[0]}=VALUE ..."
        findings.append(Finding("metadata-missing", WARNING, master.resolver.named, problem, remedy))
    entry = master.entry
    raw = frozenset().union(*(w.identities for w in master.words.values()))
    for data in of_class(master.resolver, entry, names.DATA):
        signal = attribute_text(data, names.SIGNAL_ATTRIBUTE)
        image = master.resolver.find(signal, data) if signal else None
        if image is None or not isinstance(image.item, h5py.Dataset):
            continue
        if image.identity in raw:
            problem = f"offers the raw words as its image '{signal}'"
            remedy = "programs would take them for counts: embed with --in-place"
            findings.append(Finding("raw-as-image", ERROR, f"{data.file}::{data.path}", problem, remedy))
    return findings
