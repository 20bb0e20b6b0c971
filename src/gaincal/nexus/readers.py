"""What programs that know nothing of gaincal accept, one row for each; `apply --for` writes by it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np

from gaincal.errors import FileError, RequestError, one_line
from gaincal.formulas.program import Program
from gaincal.geometry.crystfel_text import to_geom
from gaincal.geometry.fit import as_slab
from gaincal.nexus import names
from gaincal.nexus.geometry_read import read_geometry
from gaincal.nexus.read import Master
from gaincal.nexus.slab import IMAGE_DIMS
from gaincal.nexus.write import members_of_class, own

COUNTS = "counts"
"""The output that programs get which take whole photons."""
SENTINEL = float(np.iinfo(np.int32).min)
"""Value of flagged pixels where an output in real numbers must not have NaN; exact in float32."""
BELOW = MappingProxyType({"int16": -32_767})
"""Below it lie only flagged pixels, however the reader rounds; `BELOW_OTHERS` for every other dtype."""
BELOW_OTHERS = -2_147_483_000


@dataclass(frozen=True)
class Reader:
    """A program, and what it takes.

    Parameters
    ----------
    title : str
        The program's name for people.
    dtypes : tuple of str
        Those it reads correctly; the first is written if nobody chooses.
    file_name : str
        Of the file to write if nobody says, with ``{stem}`` of the master.
    needs : tuple of str
        Facts without which it cannot read the file: keys of `FACTS`.
    bit_depth : bool
        Whether ``bit_depth_readout`` does it good.
    ending : str
        How the name of the file must end.
    fixed_text : bool
        Whether attributes must be text of fixed length, ended by NUL.
    settings_name, settings : str
        Name of a file, with ``{stem}`` of the file written, and the text in it: what the user has to tell the
        program.  Empty for none.
    panels : bool
        Whether the text ends with the panels of a ``.geom`` file.
    """

    title: str
    dtypes: tuple[str, ...]
    file_name: str
    needs: tuple[str, ...]
    bit_depth: bool = False
    ending: str = ""
    fixed_text: bool = False
    settings_name: str = ""
    settings: str = ""
    panels: bool = False


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "dials": Reader(
            title="DIALS",
            dtypes=("int32", "int16"),
            file_name="{stem}_dials.nxs",
            needs=("wavelength", "sensor_material", "sensor_thickness", "module"),
        ),
        "xds": Reader(
            title="XDS",
            dtypes=("int32", "int16"),
            file_name="{stem}_xds_master.h5",
            needs=("pixel_size",),
            bit_depth=True,
            ending="_master.h5",
            fixed_text=True,
            settings_name="{stem}.XDS.INP",
            settings="""\
! Lines for XDS.INP: how the plug-in durin finds {file}. Say where durin lies; geometry and wavelength are yours.
! LIB= .../durin-plugin.so
NAME_TEMPLATE_OF_DATA_FRAMES= {template}
DATA_RANGE= 1 {frames}
NX= {columns}  NY= {rows}
MINIMUM_VALID_PIXEL_VALUE= 0  ! bad pixels are negative
OVERLOAD= {highest}
""",
        ),
        "crystfel": Reader(
            title="CrystFEL",
            dtypes=("int32", "int16", "float32", "float64"),
            file_name="{stem}_crystfel.h5",
            needs=(),
            settings_name="{stem}.geom",
            settings="""\
; How {file} is laid out, for CrystFEL.{modules}
data = {signal}
mask = {mask}
mask_good = 0x0000
mask_bad = 0xffff
flag_lessthan = {below}
{gain}
{energy}
""",
            panels=True,
        ),
    }
)
FACTS: Mapping[str, str] = MappingProxyType(
    {
        "wavelength": "wavelength (or photon_energy)",
        "sensor_material": "sensor_material",
        "sensor_thickness": "sensor_thickness",
        "module": "geometry (pixel_size, distance, beam_center_x, beam_center_y, or the raw file's own)",
        "pixel_size": "pixel_size",
    }
)
LAYOUT = "dim0 = %\ndim1 = ss\ndim2 = fs\n"
GAIN = MappingProxyType({"photon": "adu_per_photon = 1", "keV": "adu_per_eV = 0.001"})


def get_reader(name: str) -> Reader:
    """The row of a program; raises RequestError for one that there is none for."""
    if name not in READERS:
        raise RequestError(f"nothing is known of '{name}'; there are {', '.join(READERS)}")
    return READERS[name]


def program_for(
    reader: Reader,
    master: Master,
    output: str | None = None,
    dtype: str | None = None,
    flagged: float | None = None,
) -> Program:
    """What computes the values that a program takes.

    Parameters
    ----------
    reader : Reader
    master : Master
    output, dtype : str, optional
        Choices of the user; `COUNTS`, in its first dtype, if None.
    flagged : float, optional
        A choice that is not the user's here.

    Raises
    ------
    RequestError
        If the program would read something else than what was measured.
    """
    if flagged is not None:
        raise RequestError(f"the value of flagged pixels follows from {reader.title}: leave out --flagged")
    if len(master.calibration.layout.pixels) < IMAGE_DIMS:
        raise RequestError(f"{reader.title} takes images; frames of {master.resolver.named} are strips")
    formula = master.calibration.formula
    if output is None and COUNTS not in {o.name for o in formula.outputs}:
        listed = ", ".join(o.name for o in formula.outputs)
        raise RequestError(f"formula '{formula.name}' counts no photons: choose an output of {listed}")
    program = master.calibration.program(output or COUNTS, dtype)
    if program.dtype not in reader.dtypes:
        problem = f"{reader.title} takes {' or '.join(reader.dtypes)}; {program.value} is {program.dtype}"
        raise RequestError(f"{problem}: choose another output or dtype, or leave out --for")
    return program if program.limits else master.calibration.program(output or COUNTS, dtype, SENTINEL)


def check_name(reader: Reader, file: Path) -> None:
    """Raise RequestError for the name of a file that a program would not find."""
    if not file.name.endswith(reader.ending):
        raise RequestError(f"{reader.title} looks for files whose names end in {reader.ending}: rename {file.name}")


def check_facts(reader: Reader, detector: h5py.Group, named: str) -> None:
    """Raise FileError, for the file of that name, if a program cannot do without what it lacks; names all of it."""
    beams = members_of_class(detector.parent, "NXbeam")
    modules = members_of_class(detector, "NXdetector_module")
    found = {
        "wavelength": any(own(beam, "incident_wavelength") is not None for beam in beams[:1]),
        "sensor_material": own(detector, "sensor_material") is not None,
        "sensor_thickness": own(detector, "sensor_thickness") is not None,
        "module": any(own(module, "fast_pixel_direction") is not None for module in modules),
        "pixel_size": all(own(detector, f"{axis}_pixel_size") is not None for axis in "xy"),
    }
    lacking = [FACTS[fact] for fact in reader.needs if not found[fact]]
    if lacking:
        problem = f"{reader.title} cannot do without {', '.join(lacking)}, which nobody stated"
        raise FileError(named, detector.name, problem, "embed again with --set", code="no-metadata")


def settings(reader: Reader, master: Master, program: Program, file: Path, frames: tuple[int, ...]) -> str:
    """What the user must tell a program.

    Parameters
    ----------
    reader : Reader
    master : Master
    program : Program
        What was computed.
    file : Path
        What was written.
    frames : tuple of int
        (frame, y, x) of it.
    """
    units = master.calibration.formula.output(program.value).units
    energy = master.calibration.arrays.get(names.PHOTON_ENERGY)
    stack = master.calibration.layout.pixels
    stated = None if energy is None or energy.size != 1 else float(energy.reshape(())) * 1000
    facts = {
        "file": one_line(file.name),
        "template": one_line(re.sub(r"master\.h5$", "??????.h5", os.path.abspath(file))),
        "signal": f"{master.entry.path}/{names.DATA_PATH.rsplit('/', 1)[-1]}/{names.IMAGE}",
        "mask": f"{master.detector.path}/{names.PIXEL_MASK}",
        "frames": frames[0],
        "rows": frames[1],
        "columns": frames[2],
        "modules": f" Module k begins at ss = {stack[-IMAGE_DIMS]} * k." if len(stack) > IMAGE_DIMS else "",
        "highest": program.limits[1] - 1 if program.limits else "",
        "below": BELOW.get(program.dtype, BELOW_OTHERS),
        "gain": GAIN.get(units, f"; adu_per_photon = ... : the values are in {units}"),
        "energy": f"photon_energy = {stated:.7g}" if stated else "; photon_energy = ... eV",
    }
    return reader.settings.format_map(facts) + (_panels(master, frames[1:]) if reader.panels else "")


def _panels(master: Master, pixels: tuple[int, ...]) -> str:
    """The panels of a master in images (y, x) of all its modules, as CrystFEL wants them; else why there are none."""
    name = master.resolver.master.name
    why = f"nobody stated where those of {name} are"
    try:
        found = read_geometry(master.resolver, master.detector)
    except FileError as error:
        found, why = None, str(error)
    if found is not None:
        found = as_slab(found, master.calibration.layout.pixels[-IMAGE_DIMS])
        if all(has <= room for has, room in zip(found.pixels, pixels, strict=True)):
            return to_geom(found)
        why = f"{name} has them for data of {found.pixels}, not {pixels}"
    return f"{LAYOUT}; Add the panels: {one_line(why)}\n"


def fix_text(file: h5py.File) -> None:
    """Make the attributes that old readers ask for text of fixed length, ended by NUL."""

    def visit(_: str, item: h5py.Group | h5py.Dataset) -> None:
        for name in (names.NX_CLASS, names.UNIT_ATTRIBUTE):
            value = item.attrs.get(name)
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and text.isascii():
                _write_fixed(item, name, text.encode("ascii"))

    file.visititems(visit)


def _write_fixed(item: h5py.Group | h5py.Dataset, name: str, text: bytes) -> None:
    del item.attrs[name]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    attribute = h5py.h5a.create(item.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(text, f"S{len(text) + 1}"), mtype=kind)
