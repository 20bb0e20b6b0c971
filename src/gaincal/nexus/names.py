"""Every NeXus name that gaincal reads or writes, once."""

from __future__ import annotations

from types import MappingProxyType

NX_CLASS = "NX_class"
APPLICATION = "NXmx"
ENTRY = "NXentry"
INSTRUMENT = "NXinstrument"
DETECTOR = "NXdetector"
COLLECTION = "NXcollection"
CALIBRATION = "NXcalibration"
PARAMETERS = "NXparameters"
DATA = "NXdata"
NOTE = "NXnote"
PROCESS = "NXprocess"

ENTRY_PATH = "/entry"
DATA_PATH = "/entry/data"
PROCESS_PATH = "/entry/process"
INSTRUMENT_PATH = "/entry/instrument"
BEAM_PATH = "/entry/instrument/beam"
DETECTOR_PATH = "/entry/instrument/detector"
TRANSFORMATIONS = "transformations"
MODULE = "module"

RAW_GROUP = "raw"
RAW_FIELD = "data"
CALIBRATION_GROUP = "calibration"
PIXEL_MASK = "pixel_mask"
PREVIEW = "preview"
INTEGRITY = "integrity"
SLAB_CHECKSUMS = "checksums"
CHECKSUM = "integrity/checksum"
GIVEN = "given"
SOURCE_SUFFIX = "_source"
IMAGE = "data"

UNIT_ATTRIBUTE = "units"
AXES_ATTRIBUTE = "axes"
SIGNAL_ATTRIBUTE = "signal"
DEFAULT_ATTRIBUTE = "default"

PHOTON_ENERGY = "photon_energy"
"""The input that the beam's wavelength states, too; in keV."""
KEV_ANGSTROM = 12.398419843320026
"""Planck's constant times the speed of light (2019 SI), in keV angstrom."""

PIXEL_MASK_BITS = MappingProxyType(
    {
        0: "gap",
        1: "dead",
        2: "under responding",
        3: "over responding",
        4: "noisy",
        6: "part of a cluster of problematic pixels",
        8: "user defined",
        31: "virtual pixel",
    }
)
