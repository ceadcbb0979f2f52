"""Examples → ``Batch``es: integer gathers from the prepared columns, in an order that is a pure function.

Nothing is copied per example: a history is a slice of the history log, and what a batch holds of it is
its newest part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data.examples import Examples
from data.histories import HistoryLog
from data.impressions import Impressions
from data.windows import Piece, Windows, windows
from towers.errors import ConfigError
from towers.features import Batch, Ragged

_HOUR_US = 3_600_000_000
_TOGETHER = 1 << 13  # examples of the batches that a thread makes before it hands them over, which takes .1 ms
T = TypeVar("T")
Opened = TypeVar("Opened", covariant=True)
Ints = NDArray[np.int64]


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
        place, own = e.user if e.place is None else e.place, self.known is not None and self.clock == "none"
        start = h.offsets[place]
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
            return Ragged.empty(len(e))
        return self.known.take(e.user if e.place is None else e.place)


class Parts(Protocol[Opened]):
    """Training examples that are opened some parts at a time."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``[P]`` positions in each part."""

    @property
    def weights(self) -> NDArray[np.int64]:
        """``[P]`` bytes that each takes while it is open."""

    @property
    def capacity(self) -> int | None:
        """Bytes of the parts that may be open together; None: all may."""

    def open(self, parts: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], Opened]:
        """Read some parts: what makes a batch of some of their positions, counted from the first part's."""


class Portion(NamedTuple):
    """Positions of a window that are a batch, or as much of one as the window has.

    Attributes:
        piece: the positions.
        ends: the batch ends with them.
    """

    piece: Piece
    ends: bool


class Job(NamedTuple):
    """What a thread makes at once: parts of neighbouring batches that come from one window."""

    window: int
    parts: list[Portion]


@dataclass(frozen=True)
class Made(Generic[T]):
    """What has come of a job.

    Attributes:
        whole: batches.
        begun: the parts of a batch that a later job ends; they hold nothing of their windows.
    """

    whole: list[T]
    begun: list[T]


class TrainBatches(Generic[T]):
    """Shuffled training batches; every example once per epoch.

    The order is a function of (seed, epoch) alone, see ``data.windows``, and the position in it is a single number, so
    that a run that was stopped in the middle of an epoch goes on with exactly the batches it had not seen.

    While a step runs, the next batches are made and the next window is read. What was handed out counts as done, not
    what was made: hence nothing depends on ``workers``. Two windows are in memory at most, however many of them a batch
    takes from: of each, its part of the batch is made before the window after the next is read.

    Args:
        parts: the training examples.
        join: one batch of several, where the end of a window lies within a batch.
        batch_size: examples in a batch, on this rank.
        seed: of the order.
        epoch: tells the current epoch.
        rank, world: this process and how many there are; each takes every ``world``-th example.
        workers: threads that make batches ahead, each one, or as many as are 8,192 examples.
        finish: what such a thread does to each batch at last, see ``pinned``; None: nothing.

    Raises:
        ConfigError: there are fewer examples than processes.
    """

    def __init__(
        self,
        parts: Parts[T],
        join: Callable[[Sequence[T]], T],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        finish: Callable[[T], T] | None = None,
    ) -> None:
        self._parts, self._join, self._size, self._finish = parts, join, batch_size, finish
        self._seed, self._epoch, self._rank, self._world = seed, epoch, rank, world
        self._workers, self._examples = workers, int(parts.sizes.sum())
        self._done, self._resumed = 0, False
        self._of: int | None = None  # the epoch whose batches are handed out
        if self._examples < world:
            raise ConfigError(f"{self._examples} training examples for {world} processes; use fewer processes")

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return batches_per_epoch(self._examples, self._size, self._world)

    def __iter__(self) -> Iterator[T]:
        """What a checkpoint left of the current epoch, else all of it."""
        first = self._begin(epoch := self._epoch())
        plan = windows(self._parts.sizes, self._parts.weights, self._parts.capacity, self._seed, epoch)
        opened: dict[int, tuple[Future[Callable[[Ints], T]], Future[Ints]]] = {}
        threads = ((1, "windows"), (1, "orders"), (self._workers, "batches"))
        with ExitStack() as stack:
            reader, shuffler, makers = (stack.enter_context(ThreadPoolExecutor(*each)) for each in threads)

            def read(k: int) -> None:
                if k not in opened:  # decoding a window and shuffling it take about as long
                    order = shuffler.submit(plan.positions, k, self._rank, self._world)
                    opened[k] = reader.submit(self._parts.open, plan.parts[k]), order

            def made_of(piece: Piece) -> T:
                batch, order = opened[piece.window]
                return batch.result()(order.result()[piece.start : piece.stop])

            def make(job: Job, before: Future[Made[T]] | None) -> Made[T]:
                begun = [] if before is None else [*before.result().begun]
                whole: list[T] = []
                for piece, ends in job.parts:
                    begun.append(made_of(piece))
                    if ends:
                        batch = begun[0] if len(begun) == 1 else self._join(begun)
                        whole.append(batch if self._finish is None else self._finish(batch))
                        begun = []
                return Made(whole, begun)

            jobs = self._jobs(plan, first)
            job = next(jobs, None)
            ahead: deque[tuple[int, Future[Made[T]]]] = deque()
            before: Future[Made[T]] | None = None  # what made the beginning of a batch that the next job ends

            def begin() -> None:
                """As many jobs as there are threads, while two windows do for them: no more are in memory."""
                nonlocal job, before
                k = ahead[0][0] if ahead else len(plan.parts) if job is None else job.window
                for past in [w for w in opened if w < k]:
                    del opened[past]
                for window in range(k, min(k + 2, len(plan.parts))):
                    read(window)
                while job is not None and len(ahead) < self._workers and job.window in opened:
                    # threads take jobs in order, hence none waits for one that nobody makes
                    making = makers.submit(make, job, before)
                    before = None if job.parts[-1].ends else making
                    ahead.append((job.window, making))
                    job = next(jobs, None)

            begin()
            while ahead:
                _, making = ahead.popleft()
                batches = deque(making.result().whole)
                begin()
                while batches:
                    self._done += 1
                    yield batches.popleft()

    def _begin(self, epoch: int) -> int:
        """The first batch of an epoch that was not handed out before the checkpoint that was loaded, if one was."""
        resumed = self._resumed and self._of in (None, epoch)
        # all of an epoch handed out, in a checkpoint that does not tell which: the next one begins
        self._done = self._done % len(self) if resumed else 0
        self._resumed, self._of = False, epoch
        return self._done

    def _jobs(self, plan: Windows, first: int) -> Iterator[Job]:
        """All that makes the batches from ``first`` on; a job takes from one window, and few examples."""
        some: list[Portion] = []
        for i in range(first, len(self)):
            # the last batch may be short, or hold the one example by which the ranks' shares differ
            end = self._examples if i == len(self) - 1 else (i + 1) * self._size
            *begun, last = plan.pieces(i * self._size, end, self._rank, self._world)
            for part in [*(Portion(piece, False) for piece in begun), Portion(last, True)]:
                if some and (part.piece.window != some[0].piece.window or len(some) * self._size >= _TOGETHER):
                    yield Job(some[0].piece.window, some)
                    some = []
                some.append(part)
        yield Job(some[0].piece.window, some)

    def state_dict(self) -> dict[str, Any]:
        """Batches that were handed out, of which epoch, and what their order depends on."""
        return {"done": self._done, "epoch": self._of, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped; an epoch after that of the checkpoint begins at its first batch.

        Raises:
            ConfigError: the run is not the same: another seed, world size, batch size, number of examples, or memory.
        """
        mine = self._settings()
        state = {"window_bytes": None, "epoch": None, **state}  # checkpoints from before there were windows, and epochs
        if changed := [f"{key} was {state[key]} and is {mine[key]}" for key in mine if state[key] != mine[key]]:
            raise ConfigError(
                f"cannot resume: {'; '.join(changed)}; resume with the checkpoint's settings and data, or start anew"
            )
        self._done, self._of, self._resumed = int(state["done"]), state["epoch"], True

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "world": self._world,
            "batch_size": self._size,
            "examples": self._examples,
            "window_bytes": self._parts.capacity,
        }


def batches_per_epoch(examples: int, batch_size: int, world: int) -> int:
    """Training batches of an epoch on each rank; the example by which shares may differ makes no batch of its own."""
    return max(1, -(-(examples // world) // batch_size))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from where it is copied to a CUDA device while the host goes on."""
    return narrowed(batch).map(torch.Tensor.pin_memory)


def narrowed(batch: Batch) -> Batch:
    """The batch with int32 in the place of int64, but for its times: half as much to copy, widened on the device."""
    return replace(batch.map(lambda x: x.int() if x.dtype == torch.int64 else x), time=batch.time)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches as one; histories are as long as the longest of them."""
    longest = max(b.history.shape[1] for b in batches)

    def padded(x: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=value)

    def cat(name: str) -> torch.Tensor | None:
        columns = [getattr(b, name) for b in batches]
        return None if columns[0] is None else torch.cat(columns)

    lengths = torch.cat([b.known.offsets.diff() for b in batches])
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return Batch(
        **{name: cat(name) for name in ("user", "item", "weight", "time", "context", "impressions", "action")},
        history=torch.cat([padded(b.history, -1) for b in batches]),
        history_action=torch.cat([padded(b.history_action, 0) for b in batches]),
        history_age=torch.cat([padded(b.history_age, 0) for b in batches]),
        known=Ragged(offsets, torch.cat([b.known.values for b in batches])),
    )


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
