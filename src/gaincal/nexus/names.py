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
SAMPLE = "NXsample"
PROCESS = "NXprocess"

ENTRY_PATH = "/entry"
DATA_PATH = "/entry/data"
PROCESS_PATH = "/entry/process"
INSTRUMENT_PATH = "/entry/instrument"
BEAM_PATH = "/entry/instrument/beam"
DETECTOR_PATH = "/entry/instrument/detector"
TRANSFORMATIONS = "transformations"
MODULE = "module"
DETECTOR_MODULE = "NXdetector_module"
DETECTOR_GROUP = "NXdetector_group"
TRANSFORMATIONS_CLASS = "NXtransformations"
DETECTOR_GROUP_NAME = "detector_group"
AXIS, ARRAY = "AXIS_", "ARRAY_"
"""Begin the names of a detector's axes and of its panels; the label of a `Node` follows."""
DEPENDS_ON, VECTOR, OFFSET, OFFSET_UNITS = "depends_on", "vector", "offset", "offset_units"
TRANSFORMATION_TYPE, TRANSLATION, ROTATION = "transformation_type", "translation", "rotation"
EQUIPMENT_COMPONENT = "equipment_component"
DATA_ORIGIN, DATA_SIZE = "data_origin", "data_size"
FAST_DIRECTION, SLOW_DIRECTION = "fast_pixel_direction", "slow_pixel_direction"

RAW_GROUP = "raw"
RAW_FIELD = "data"
CALIBRATION_GROUP = "calibration"
ACCOUNT_GROUP = "account"
RECORDED_GROUP = "recorded"
PIXEL_MASK = "pixel_mask"
PREVIEW = "preview"
INTEGRITY = "integrity"
SLAB_CHECKSUMS = "checksums"
CONSTANTS_GROUP = "constants"
PARAMETERS_GROUP = "parameters"
CONSTANTS_PATH = "/entry/constants"
VALIDITY = "validity"
CHECKSUM = "integrity/checksum"
VIEW_OF = "view_of"
"""In a view: the calibration of the run that it refers to, by ``file``, ``path`` and ``checksum``."""
RUN_FRAME = "run_frame"
"""In a view: the number of each frame in the run."""
INPUTS, GIVEN = "inputs", "given"
SOURCE_SUFFIX = "_source"
IMAGE = "data"
ERRORS = "data_errors"
MASKED = "masked"
"""The flag of a formula that asks the pixel mask."""

UNIT_ATTRIBUTE = "units"
AXES_ATTRIBUTE = "axes"
SIGNAL_ATTRIBUTE = "signal"
DEFAULT_ATTRIBUTE = "default"

PHOTON_ENERGY = "photon_energy"
"""The input that the beam's wavelength states, too; in keV."""
KEV_ANGSTROM = 12.398419843320026
"""Planck's constant times the speed of light (2019 SI), in keV angstrom."""

BAD_BITS = 16
"""A pixel is bad if one of so many low bits of its mask is set."""
PIXEL_MASK_BITS = MappingProxyType(
    {
        0: "gap",
        1: "dead",
        2: "under_responding",
        3: "over_responding",
        4: "noisy",
        6: "cluster",
        8: "user",
        31: "virtual",
    }
)
"""The reasons that NXmx defines, by their bits."""
