"""Measure everything at full size and print ratios: ``python benchmarks/run.py [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import switched
from measure import speed_ratio, take_turns
from test_kernel import FRAMES, family_tasks, numpy_select, tasks

from gaincal.formulas import catalog

ROUNDS = 9
NUMPY_FRAMES = 8
FAMILY_FRAMES = 64


def main() -> None:
    """Print the kernel's speed relative to the copy bandwidth, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    chosen = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print(f"speed relative to copying u2 to f4, {FRAMES} frames, medians of {ROUNDS} paired rounds, one thread")
    for case in switched.SWITCHED:
        times = take_turns(tasks(case, FRAMES), ROUNDS)
        found[case] = {name: speed_ratio(times, name, "copy") for name in times if name != "copy"}
        small = take_turns(tasks(case, NUMPY_FRAMES) | {"numpy": numpy_select(case, NUMPY_FRAMES)}, ROUNDS)
        found[case]["kernel over numpy"] = speed_ratio(small, "kernel", "numpy")
        print(f"{case:16}", "  ".join(f"{name} {ratio:.2f}" for name, ratio in found[case].items()))
    print(f"every formula of the catalogue, unswitched, {FAMILY_FRAMES} frames")
    for name in catalog.names():
        times = take_turns(family_tasks(name, FAMILY_FRAMES), ROUNDS)
        found[name] = {"kernel": speed_ratio(times, "kernel", "copy")}
        print(f"{name:28} {found[name]['kernel']:.2f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
