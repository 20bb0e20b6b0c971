"""How long a fresh process takes until there is something to see."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

FIRST_FRAME = "import gaincal; gaincal.open_calibrated({master!r})[0].values"
PLAIN = "import sys; sys.modules |= dict.fromkeys(('dask', 'pint', 'scipy', 'sparse', 'flox'));"
"""As if only what gaincal needs were installed: xarray imports whatever else it finds."""
HELP = "from gaincal.cli import main; main(['--help'], standalone_mode=False)"


def seconds(code: str, rounds: int = 7) -> float:
    """The median time of a fresh interpreter for some code, imports included."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def all_starts(master: Path) -> dict[str, float]:
    """Seconds until the help is there, and until the first calibrated frame of a run, also with dask and pint."""
    frame = FIRST_FRAME.format(master=str(master))
    return {"help": seconds(HELP), "first calibrated frame": seconds(PLAIN + frame), "with dask": seconds(frame)}
