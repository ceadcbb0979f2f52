"""The order of training examples, as arithmetic: which parts are open together, and what is shuffled among them.

An epoch takes the parts of a dataset in a random order, opens as many of them at once as memory allows, a *window*, and
shuffles the positions of a window. Windows follow each other, and ranks take positions in turn, hence

* each position comes exactly once, whatever the number of ranks, and ranks differ by one position at most;
* batch ``i`` of ``W`` ranks together holds what batch ``i`` of one rank does that takes ``W`` times as many;
* the order is a function of (seed, epoch) alone, and any place in it is found without what comes before.

Where everything fits into memory there is one window, and the order is one permutation of everything.

Shapes: ``P`` parts, ``K`` windows of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Piece(NamedTuple):
    """Positions ``start`` to ``stop`` of a rank's share of a window."""

    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class Windows:
    """The windows of one epoch.

    Attributes:
        parts: ``[K]`` ascending numbers of the parts in each window.
        cuts: ``[K + 1]`` positions before each window, and all of them.
        seed, epoch: of the order.
    """

    parts: tuple[Ints, ...]
    cuts: Ints
    seed: int
    epoch: int

    def positions(self, window: int, rank: int, world: int) -> Ints:
        """``[n]`` a rank's share of a window, in order: positions among those of its parts, end to end.

        Args:
            window: its number.
            rank: this process.
            world: how many processes there are.
        """
        n = int(self.cuts[window + 1] - self.cuts[window])
        # trailing zeros do not change a seed: the first window has that of (seed, epoch)
        order = np.random.default_rng([self.seed, self.epoch, window]).permutation(n)
        return order[(rank - int(self.cuts[window])) % world :: world]

    def pieces(self, start: int, stop: int, rank: int, world: int) -> Iterator[Piece]:
        """Where positions ``start`` to ``stop`` of a rank's share of the epoch are found.

        Args:
            start: the first position.
            stop: the one after the last.
            rank: this process.
            world: how many processes there are.
        """
        before = -((rank - self.cuts) // world)  # of this rank's, those before each window
        for window in range(int(np.searchsorted(before, start, side="right")) - 1, len(self.parts)):
            low, high = max(start, int(before[window])), min(stop, int(before[window + 1]))
            if low < high:
                yield Piece(window, low - int(before[window]), high - int(before[window]))
            elif int(before[window]) >= stop:
                return


def windows(sizes: Ints, weights: Ints, capacity: int | None, seed: int, epoch: int) -> Windows:
    """Divide an epoch into windows.

    Args:
        sizes: ``[P]`` positions in each part.
        weights: ``[P]`` bytes that it takes while it is open.
        capacity: bytes of a window; a part that takes more is alone in its window. None: there is one window.
        seed: of the order, together with
        epoch: the epoch.
    """
    if capacity is None:
        return Windows((np.arange(len(sizes)),), np.array([0, sizes.sum()], np.int64), seed, epoch)
    groups: list[list[int]] = []
    room = 0
    for part in np.random.default_rng([seed, epoch, 0, 1]).permutation(len(sizes)).tolist():
        if not groups or weights[part] > room:
            groups.append([])
            room = capacity
        groups[-1].append(part)
        room -= int(weights[part])
    parts = tuple(np.sort(np.array(g, np.int64)) for g in groups)
    return Windows(parts, np.cumsum([0, *(int(sizes[p].sum()) for p in parts)], dtype=np.int64), seed, epoch)
