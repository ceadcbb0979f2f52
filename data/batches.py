"""Examples → ``Batch``es: integer gathers from the prepared columns, in an order that is a pure function.

Nothing is copied per example: a history is a slice of the history log, and what a batch holds of it is
its newest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.impressions import Impressions
from data.prepared import Examples, HistoryLog, ragged_slices
from towers.errors import ConfigError
from towers.features import Batch, Ragged

_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Collator:
    """Turns example columns into a batch of torch tensors.

    Attributes:
        history: the history log.
        clock: ``time``, ``order`` or ``none``.
        length: the newest events of a history that a batch holds.
        known: ``[users]`` lists of the items that a user took in training, for training batches; they also
            have the example's own item taken out of an untimed history. None for queries.
        impressions: what users were shown, if batches are to hold it.
    """

    history: HistoryLog
    clock: str
    length: int
    known: Ragged | None = None
    impressions: Impressions | None = None

    def __call__(self, e: Examples) -> Batch:
        """The batch of all rows of ``e``."""
        at, there = self._positions(e)
        h = self.history
        if not len(h.item):  # nothing can be gathered from an empty log
            h = replace(h, item=np.zeros(1, np.int32), action=np.zeros(1, np.int8), time=None)
        age = np.zeros(at.shape, np.float32)
        if self.clock == "time" and h.time is not None and e.time is not None:
            hours = (e.time[:, None] - h.time[at]) / _HOUR_US
            age = np.where(there, np.log1p(np.maximum(hours, 0)), 0).astype(np.float32)
        known = self._known(e)
        # columns may be views of read-only memory, which torch does not take: hence the copies
        return Batch(
            user=torch.from_numpy(e.user.astype(np.int64)),
            item=torch.from_numpy(e.item.astype(np.int64)),
            weight=torch.from_numpy(np.array(e.weight)),
            history=torch.from_numpy(np.where(there, h.item[at].astype(np.int64), -1)),
            history_action=torch.from_numpy(np.where(there, h.action[at].astype(np.int64), 0)),
            history_age=torch.from_numpy(age),
            known=Ragged(torch.from_numpy(known.offsets), torch.from_numpy(known.values)),
            time=torch.from_numpy(np.array(e.time)) if self.clock == "time" and e.time is not None else None,
            context=None if e.context is None else torch.from_numpy(e.context.astype(np.int64)),
            impressions=None if self.impressions is None else torch.from_numpy(self.impressions.rows(e)),
            action=None if e.action is None else torch.from_numpy(e.action.astype(np.int64)),
        )

    def _positions(self, e: Examples) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """``[B, L]`` places in the history log, the newest first, and whether there is one."""
        h = self.history
        start, own = h.offsets[e.user], self.known is not None and self.clock == "none"
        lengths = np.minimum(e.history_end - start, self.length + own)
        longest = max(1, int(lengths.max(initial=0)))
        there = np.arange(longest) < lengths[:, None]
        at = np.where(there, e.history_end[:, None] - 1 - np.arange(longest), 0)
        if own and len(h.item):
            there &= h.item[at] != e.item[:, None]
            # close the gap that the own item left
            order = np.argsort(~there, axis=1, kind="stable")[:, : max(1, min(longest, self.length))]
            at, there = np.take_along_axis(at, order, 1), np.take_along_axis(there, order, 1)
        return at, there

    def _known(self, e: Examples) -> Ragged:
        if self.known is None:
            return Ragged(np.zeros(len(e) + 1, np.int64), np.zeros(0, np.int64))
        offsets, values = self.known
        return ragged_slices(values, offsets[e.user], offsets[e.user + 1])


class TrainBatches:
    """Shuffled training batches; every example once per epoch.

    The order is a function of (seed, epoch) alone, and the position in it is a single number, so that a
    run that was stopped in the middle of an epoch goes on with exactly the batches it had not seen.

    Args:
        examples: the training examples.
        collate: makes the batch.
        batch_size: examples in a batch, on this rank.
        seed: of the order.
        epoch: tells the current epoch.
        rank, world: this process and how many there are; each takes every ``world``-th example.
    """

    def __init__(
        self,
        examples: Examples,
        collate: Callable[[Examples], Batch],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._examples, self._collate, self._size = examples, collate, batch_size
        self._seed, self._epoch, self._rank, self._world = seed, epoch, rank, world
        self._done = 0
        if len(examples) < world:
            raise ConfigError(f"{len(examples)} training examples for {world} processes; use fewer processes")

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return max(1, -(-(len(self._examples) // self._world) // self._size))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """This rank's examples of an epoch, in order."""
        shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._examples))
        return shuffled[self._rank :: self._world]

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        order = self.order(self._epoch())
        first = self._done % len(self)  # all of an epoch handed out: the next one begins
        self._done = first

        def make(i: int) -> Batch:
            # the last batch may be short, or hold the one example by which the ranks' shares differ
            end = len(order) if i == len(self) - 1 else (i + 1) * self._size
            return self._collate(self._examples.take(order[i * self._size : end]))

        # The next batch is made while a step runs. What was handed out counts as done, not what was made.
        with ThreadPoolExecutor(1, "batches") as thread:
            ahead = thread.submit(make, first)
            for i in range(first, len(self)):
                batch = ahead.result()
                if i + 1 < len(self):
                    ahead = thread.submit(make, i + 1)
                self._done = i + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Batches of the current epoch that were handed out, and what their order depends on."""
        return {
            "done": self._done,
            "seed": self._seed,
            "world": self._world,
            "batch_size": self._size,
            "examples": len(self._examples),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped.

        Raises:
            ConfigError: the run is not the same: another seed, world size, batch size or number of examples.
        """
        mine = self.state_dict()
        if changed := [
            f"{key} was {state[key]} and is {mine[key]}" for key in mine if state[key] != mine[key] and key != "done"
        ]:
            raise ConfigError(
                f"cannot resume: {'; '.join(changed)}; resume with the checkpoint's settings and data, or start anew"
            )
        self._done = int(state["done"])


class QueryBatches:
    """Evaluation queries as batches, in query order (see ``towers.evaluation.task``)."""

    def __init__(self, queries: Examples, collate: Callable[[Examples], Batch], batch_size: int = 1024) -> None:
        self._queries, self._collate, self._size = queries, collate, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._queries) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first query to the last."""
        for i in range(0, len(self._queries), self._size):
            rows = np.arange(i, min(i + self._size, len(self._queries)))
            yield self._collate(self._queries.take(rows))
