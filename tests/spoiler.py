"""Spoil the arithmetic of a thread, as loading a library does that was linked with -ffast-math."""

from __future__ import annotations

import ctypes
import os

import numpy as np

FIELDS = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
"""Where C's fenv_t has the register of each machine, and the bits that flush small numbers to zero."""
SMALL = np.array([7, 1000, 1], np.uint32).view(np.float32)
"""Subnormal."""


def spoil() -> None:
    """What loading a library that was linked with -ffast-math does."""
    where, bits = FIELDS[os.uname().machine]
    environment = (ctypes.c_uint8 * 64)()
    c = ctypes.PyDLL(None)
    c.fegetenv(environment)
    register = ctypes.c_uint32.from_buffer(environment, where)
    register.value |= bits
    c.fesetenv(environment)


def flushes() -> bool:
    return not np.any((SMALL * np.float32(1)).view(np.uint32))
