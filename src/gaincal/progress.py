"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_INTERVAL = 10.0


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that shows progress on standard error.

    Parameters
    ----------
    label : str
        What is being done.
    unit : str
        What is counted.
    """
    if not sys.stderr:  # closed by who started the program
        yield lambda _done, _total: None
        return
    if not sys.stderr.isatty():
        yield _lines(label, unit)
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit=f" {unit}", leave=False, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.refresh()  # short work is over before the next time it would be drawn

        yield advance


def _lines(label: str, unit: str) -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_INTERVAL:
            last = now
            rate = done / (now - started)
            print(f"{label}: {done} of {total} {unit} ({rate:.0f} per second)", file=sys.stderr, flush=True)

    return advance
