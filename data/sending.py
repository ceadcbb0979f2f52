"""Batches that are on their way to the card before the step that takes them is due.

::

    thread that makes batches ──▶ page-locked memory ──side stream──▶ the card, an event
    handing a batch out       ──▶ the stream of the steps waits for the event

On the stream of the steps a copy would begin when the step before it has ended, and hold up the next one. A stream of
its own leaves it to the card's copy engine while the card computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from data.batches import TrainBatches, pinned
from towers.features import Batch


@dataclass
class Sent(Batch):
    """A batch whose arrays are there once ``arrived``, an event, has happened."""

    arrived: Any = None


class Sender:
    """Copies batches to a device on a stream of their own.

    Args:
        device: a CUDA device.
        cuda: what makes its streams; tests put something in its place.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._side = cuda.Stream(device)

    def send(self, batch: Batch) -> Sent:
        """Begin the copy, from any thread. The allocator of pinned memory keeps the source until it is done."""
        with self._cuda.stream(self._side):
            there = batch.map(lambda x: x.to(self._device, non_blocking=True))
            return Sent(**_columns(there), arrived=self._side.record_event())

    def receive(self, sent: Sent) -> Batch:
        """The batch, for what the calling thread computes from now on; the host does not wait."""
        stream = self._cuda.current_stream(self._device)
        stream.wait_event(sent.arrived)

        def kept(x: Tensor) -> Tensor:
            x.record_stream(stream)  # it was allocated for the side stream, which is not to use it again too early
            return x

        return Batch(**_columns(sent)).map(kept)


class SentBatches(TrainBatches[Batch]):
    """``TrainBatches`` of a card: each is sent by the thread that made it, and received when it is handed out.

    What was sent and not handed out does not count as done, as what was made does not. The card holds as many batches
    as are made ahead, see ``workers``.
    """

    def __init__(self, sender: Sender, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "finish": lambda batch: sender.send(pinned(batch))})
        self._sender = sender

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, on the device."""
        yield from map(self._sender.receive, cast("Iterator[Sent]", super().__iter__()))


def _columns(batch: Batch) -> dict[str, Any]:
    return {f.name: getattr(batch, f.name) for f in fields(Batch)}
