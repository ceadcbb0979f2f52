"""Seconds of the stages of a program, on whatever device it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

OTHER = "other"


class Stopwatch:
    """Time by stage. Stages may nest: the inner one's time is not the outer one's.

    On a CUDA device the marks are events in the stream, and nothing waits before ``seconds`` is asked for; on a
    processor they are readings of the clock.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._open = [OTHER]
        self._marks: list[tuple[torch.cuda.Event | float, str]] = []  # from then on, this stage
        self._mark()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens inside counts for a stage."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """A stage begins."""
        self._open.append(name)
        self._mark()

    def leave(self) -> None:
        """It ends, and the one around it goes on."""
        self._open.pop()
        self._mark()

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage until its last mark; the first call on a CUDA device waits for it."""
        if self.cuda:
            torch.cuda.synchronize()
        out: dict[str, float] = defaultdict(float)
        for (since, name), (until, _) in zip(self._marks, self._marks[1:], strict=False):
            out[name] += _between(since, until)
        return dict(out)

    def _mark(self) -> None:
        """The one place that knows of two kinds of clock."""
        now: torch.cuda.Event | float
        if self.cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((now, self._open[-1]))


def _between(since: torch.cuda.Event | float, until: torch.cuda.Event | float) -> float:
    if isinstance(since, float) or isinstance(until, float):
        return float(until) - float(since)  # type: ignore[arg-type]
    return since.elapsed_time(until) / 1e3
