"""Small .geom texts for tests."""

from __future__ import annotations

PANEL = """
{name}/min_fs = {left}
{name}/max_fs = {right}
{name}/min_ss = {top}
{name}/max_ss = {bottom}
{name}/corner_x = {x}
{name}/corner_y = {y}
{name}/fs = {fs}
{name}/ss = {ss}
"""
HEAD = "clen = 0.1\nres = 10000\n"


def panel(
    name: str = "p0", box: tuple[int, int, int, int] = (0, 9, 0, 4), x: float = -5.0, y: float = 2.0, **ways: str
) -> str:
    left, right, top, bottom = box
    way = {"fs": "x", "ss": "y"} | ways
    return PANEL.format(name=name, left=left, right=right, top=top, bottom=bottom, x=x, y=y, **way)
