"""A second reader of stored calibrations, written from docs/formula-spec.md alone; it shares nothing with gaincal.

A model for readers in other languages: no parser, only a loop over rows. It is not hardened: it trusts HDF5 and the
formula, follows no virtual dataset to its sources, and computes all frames to return some."""
import math
from hashlib import sha256

import h5py
import numpy as np

NO_VALUE, CLIPPED, MISSING = (np.uint32(1 << bit) for bit in (29, 30, 31))
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10

def read(path: str, output: str | None = None, dtype: str | None = None, frames: slice = slice(None)) -> tuple:
    """Return (values, uint32 flags): of the default output unless named, in the first of its dtypes unless named."""
    with h5py.File(path, "r") as file, np.errstate(all="ignore"):
        detectors = members(members(members([file], b"NXentry"), b"NXinstrument"), b"NXdetector")
        (group,) = members([next(d["calibration"] for d in detectors if "calibration" in d)], b"NXcalibration")
        check(group)
        known, gone = load(group, real := np.dtype(group["formula/compute_dtype"][0].decode()))
        for row in rows(group["steps"]):
            arguments = [row[f"argument_{k}"] for k in (1, 2, 3, 4) if row[f"argument_{k}"]]
            if all(text in known or not text[0].isalpha() for text in arguments):  # else an input is not there
                known[row["name"]] = evaluate(row["operation"], arguments, known, real)
        outputs = sorted(rows(group["outputs"]), key=lambda row: -row["default"])  # the default, the others in order
        for row in outputs:
            if row["name"] == (output or outputs[0]["name"]) and dtype in (None, row["dtype"]) and row["name"] in known:
                return tuple(array[frames] for array in deliver(row, rows(group["flags"]), known, gone))
    raise ValueError(f"{path} has no output {output} {dtype}, or an input that it needs is not there")

def members(groups: list[h5py.Group], nx_class: bytes) -> list[h5py.Group]:
    return [item for g in groups for item in g.values() if np.bytes_(item.attrs.get("NX_class", "")) == nx_class]

def check(group: h5py.Group) -> None:
    parts = {"": group} | {f"{name}/": part for name, part in group.items() if isinstance(part, h5py.Group)}
    fields = {(p + n).encode(): f for p, part in parts.items() for n, f in part.items() if isinstance(f, h5py.Dataset)}
    checksum = fields.pop(b"integrity/checksum")[()].item().decode()
    for name in {*group["constants/name"][()]} & {*map(str.encode, group)}:  # each slab has a checksum of its own
        field, sums = fields.pop(name + b"/" + name), fields[name + b"/checksums"]
        if any(sha256(encoded(field, k)).digest() != sums[k].tobytes() for k in np.ndindex(field.shape[:-2])):
            raise ValueError(f"{field.name}: the checksum of a slab differs")
    if checksum != "sha256:" + sha256(b"".join(p + b"|" + encoded(fields[p], ()) for p in sorted(fields))).hexdigest():
        raise ValueError(f"{group.name}: the checksum differs")
    unknown = {name.decode() for name in group["formula/required_operations"][()]} - {"select", *OPERATIONS}
    if unknown or group["formula/format_version"][0] != 1:
        raise ValueError(f"{group.name}: a format or operations {unknown} that are not known here")

def encoded(field: h5py.Dataset, place: tuple) -> bytes:
    if field.dtype.kind not in "iufSb":
        raise ValueError(f"{field.name}: type {field.dtype} has no place here")
    data = np.array(field[place], field.dtype.newbyteorder("<"))  # with its dtype a text keeps the NULs at its end
    return f"{field.dtype.str[1:]}|{','.join(map(str, data.shape))}|".encode() + data.tobytes()

def rows(group: h5py.Group) -> list[dict]:
    columns = [[v.decode() if isinstance(v, bytes) else v.item() for v in field[()]] for field in group.values()]
    return [dict(zip(group, row, strict=True)) for row in zip(*columns, strict=True)]

def load(group: h5py.Group, real: np.dtype) -> tuple[dict, np.ndarray]:
    """Tables, inputs and constants by name, all axes in line with (frame, pixels ...); and where words are missing."""
    known = {name: field[()].astype(np.int64) for name, field in group["tables"].items()}
    inputs = [(row, group[row["path"]]) for row in rows(group["inputs"]) if row["path"]]
    dims = max((row["dims"].split() for row, _ in inputs if row["dims"].startswith("frame ")), key=len)
    gone = np.logical_or.reduce([missing(field) for row, field in inputs if row["dims"].split() == dims])
    for row, field in inputs:
        pixels = [n for n, dim in zip(gone.shape, dims, strict=True) if dim in row["dims"].split() and dim != "frame"]
        lined = numbers(field, row["dtype"], real).reshape(-1, *pixels)
        known[row["name"]] = lined.reshape(*lined.shape, *[1] * (gone.ndim - lined.ndim))
    for row in rows(group["constants"]):  # what is not there is its default in every place, whatever the label
        known[row["name"]] = np.asarray(row["default"]).astype(np.int64 if row["dtype"] else real)
    for row in (row for row in rows(group["constants"]) if row["name"] in group):
        data, named = group[row["name"]], [axis for axis in row["dims"].split() if axis not in dims]
        values = numbers(data[row["name"]], row["dtype"], real)
        values = values.reshape(*values.shape, *[1] * (len(named) + gone.ndim - 1 - values.ndim))
        known[row["name"]] = (values, [data[axis][()] for axis in named]) if named else values
    return known, gone

def missing(field: h5py.Dataset) -> np.ndarray:  # the words in chunks that were never written
    gone = np.zeros(field.shape, bool)
    for chunk in field.iter_chunks() if field.chunks else ():
        gone[chunk] = field.id.get_chunk_info_by_coord(tuple(part.start for part in chunk)).byte_offset is None
    return gone

def numbers(field: h5py.Dataset, declared: str, real: np.dtype) -> np.ndarray:
    if field.dtype.kind not in "iuf" or (declared and field.dtype.newbyteorder("=") != np.dtype(declared)):
        raise ValueError(f"{field.name}: {field.dtype} instead of {declared or 'numbers'}")
    return np.asarray(field[()]).astype(np.int64 if declared else real)  # int64 holds all integers of a formula

def evaluate(operation: str, arguments: list[str], known: dict, real: np.dtype) -> np.ndarray:
    operands = [known[t] if t in known else (np.int64 if t.strip("-").isdigit() else real.type)(t) for t in arguments]
    if operation == "select":
        return select(*operands[0], operands[1:]) if isinstance(operands[0], tuple) else operands[0]
    if operation in ("divide", "sqrt", "exp", "log", "power") or any(x.dtype == real for x in operands):
        operands = [x.astype(real) if x.dtype == np.int64 else x for x in operands]
    return OPERATIONS[operation](*operands)

def select(values: np.ndarray, labels: list, indices: list) -> np.ndarray:
    places = [np.asarray(sum((i == label) * (k + 1) for k, label in enumerate(axis)) - 1)  # -1: no such label
              for i, axis in zip(indices, labels, strict=True)]
    exists = np.min(np.broadcast_arrays(*places), axis=0) >= 0
    pixels = np.ix_(*map(range, values.shape[len(labels):]))  # every pixel takes its own
    return np.where(exists, values[(*places, *pixels)], values.dtype.type(-1 if values.dtype == np.int64 else np.nan))

def exponential(x: np.ndarray) -> np.ndarray:
    k = np.rint((inside := np.where((x < 710) & (x > -746), x, 0).astype(np.float64)) * 1.4426950408889634)
    r, h = (inside - k * LN2_HIGH) - k * LN2_LOW, np.floor(k * 0.5)
    p = np.polyval([1 / math.factorial(n) for n in range(13, -1, -1)], r)  # p = p * r + 1/n!, again and again
    p = (p * np.ldexp(1.0, h.astype(int))) * np.ldexp(1.0, (k - h).astype(int))
    return np.select([np.isnan(x), x >= 710, x <= -746], [np.nan, np.inf, 0], p).astype(x.dtype)

def logarithm(x: np.ndarray) -> np.ndarray:
    m, e = np.frexp(np.where((x > 0) & (x < np.inf), x, 1).astype(np.float64))  # 0.5 <= m < 1
    small = 2 * m <= 1.4142135623730951
    f, e = np.where(small, 2 * m, m) - 1, np.where(small, e - 1.0, e)
    s = f / (2 + f)
    h, r = (0.5 * f) * f, (s * s + s * s) * np.polyval([1 / (2 * n + 3) for n in range(10, -1, -1)], s * s)
    p = e * LN2_HIGH - ((h - (s * (h + r) + e * LN2_LOW)) - f)
    return np.select([np.isnan(x) | (x < 0), x == 0, x == np.inf], [np.nan, -np.inf, np.inf], p).astype(x.dtype)

OPERATIONS = {
    "bits": lambda x, offset, length: (x >> offset) & ((1 << length) - 1),
    "join": lambda low, length, high: low + (high << length),
    "lookup": lambda table, i: np.where((i >= 0) & (i < len(table)), table[np.clip(i, 0, len(table) - 1)], -1),
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
    "negate": np.negative, "abs": np.abs, "sqrt": np.sqrt, "exp": exponential, "log": logarithm,
    "power": lambda x, n: math.prod([x] * abs(int(n)), start=x.dtype.type(1)) ** (1 if n >= 0 else -1),
    "min": lambda a, b: np.where(np.isnan(a), a, np.where(np.isnan(b) | (b < a), b, a)),  # np.minimum: any sign of 0
    "max": lambda a, b: np.where(np.isnan(a), a, np.where(np.isnan(b) | (b > a), b, a)),
    "clip": lambda x, low, high: OPERATIONS["min"](OPERATIONS["max"](x, low), high),
    "floor": np.floor, "trunc": np.trunc, "round_half_even": np.rint, "finite": np.isfinite, "where": np.where,
    "round_half_away": lambda x: np.where(np.abs(x - np.trunc(x)) >= 0.5, np.trunc(x) + np.sign(x), np.trunc(x)),
    "less": np.less, "less_equal": np.less_equal, "greater": np.greater, "greater_equal": np.greater_equal,
    "equal": np.equal, "not_equal": np.not_equal, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
}

def deliver(row: dict, flag_rows: list[dict], known: dict, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dtype, flags, void = np.dtype(row["dtype"]), np.zeros(gone.shape, np.uint32), np.zeros(gone.shape, bool)
    for bit, flag in enumerate(flag_rows):
        raised = known.get(flag["when"], np.False_)  # a flag that cannot be tested keeps its bit, at 0
        flags |= raised * np.uint32(1 << bit)
        void |= raised & bool(flag["voids"])
    value = known[row["name"]].astype(dtype if dtype.kind == "f" else np.float64)  # float64 holds all of them exactly
    finite, limited, fill = np.isfinite(value), np.False_, np.nan
    if dtype.kind != "f":
        info, fill = np.iinfo(dtype), int(row["fill"])
        low, high = info.min + (fill == info.min), info.max - (fill == info.max)  # the fill is one end: not a value
        below, above = finite & (value <= low - 1), finite & (value >= high + 1)
        value = np.where(finite & ~below & ~above, value, 0).astype(dtype)
        value, limited = np.select([below, above], [dtype.type(low), dtype.type(high)], value), below | above
    flags |= (~void & ~finite) * NO_VALUE | (~void & limited) * CLIPPED
    return np.where(void | ~finite | gone, dtype.type(fill), value), np.where(gone, MISSING, flags)
