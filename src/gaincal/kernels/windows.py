"""Which windows of frames were computed last: their maps as the kernel takes them, and plans for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from gaincal.kernels.blocks import Plan
from gaincal.kernels.prepared import Prepared

MAX_WINDOWS = 16
"""Windows whose maps are remembered."""
MAX_PLANS = 4
"""Numbers of frames for which a window has plans."""
MAX_COPIED = 128 << 20
"""Bytes of their maps that are copies: planes of a window seldom follow each other."""


@dataclass
class Window:
    """The maps of a window, how many bytes of them are copies, and plans by number of frames."""

    prepared: Prepared
    copied: int
    plans: dict[int, Plan] = field(default_factory=dict)


class Windows:
    """What is remembered of windows; threads may ask at once."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Window] = {}

    def plan(self, key: Hashable, frames: int, make: Callable[[], Window]) -> Plan:
        """What computes so many frames of a window, whichever; remembered while its maps take little room.

        Parameters
        ----------
        key : hashable
            Tells the window and its program from others.
        frames : int
        make : callable () -> Window
            Makes what is remembered.
        """
        window = self._found.get(key) or self._remembered(key, make())
        plan = window.plans.get(frames)
        if plan is None:
            if len(window.plans) >= MAX_PLANS:
                window.plans.clear()
            plan = window.plans[frames] = Plan.of(window.prepared, frames)
        return plan

    def _remembered(self, key: Hashable, window: Window) -> Window:
        held = [own.copied for own in list(self._found.values())]
        if len(held) >= MAX_WINDOWS or window.copied + sum(held) > MAX_COPIED:
            self._found.clear()
        if window.copied <= MAX_COPIED:
            self._found[key] = window
        return window
