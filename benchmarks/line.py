"""What every benchmark prints at its end, for people and for programs; and how time and memory are measured."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds (medians over the repeats) of two programs, and ``a / b``."""

    a: float
    b: float
    ratio: float


def interleaved(
    a: Callable[[], object], b: Callable[[], object], repeats: int = 7, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time ``a`` and ``b`` in turns, so that a change of the machine's mood meets both.

    Each is run once before the clock starts. The ratio is the median of the ratios of neighbouring
    runs, which drifts less than the ratio of the medians.

    Args:
        a: the program in question.
        b: the one it is held against.
        repeats: timed runs of each.
        clock: seconds; ``time.process_time`` for programs of one thread, on a machine that does other things too.
    """
    a(), b()
    pairs = [(_seconds(a, clock), _seconds(b, clock)) for _ in range(repeats)]
    return Timing(
        statistics.median(x for x, _ in pairs),
        statistics.median(y for _, y in pairs),
        statistics.median(x / y for x, y in pairs),
    )


def peak() -> int:
    """Bytes resident at most so far, in this process alone: ``getrusage`` counts what it was forked from too."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def report(name: str, value: float, goal: float, *, at_most: bool) -> bool:
    """Print ``name=… value=… goal=… holds=yes|no``, and return whether the goal holds.

    Args:
        name: of what was measured, without spaces.
        value: what was measured.
        goal: its bound.
        at_most: whether the value should lie at or below the goal, not at or above it.
    """
    holds = value <= goal if at_most else value >= goal
    print(f"name={name} value={value:.4g} goal={goal:g} holds={'yes' if holds else 'no'}", flush=True)
    return holds


def _seconds(f: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    f()
    return clock() - start
