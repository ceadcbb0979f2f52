"""Batches go to a card on a stream of their own; with streams that only write down what they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data import sending
from data.batches import TrainBatches, joined, narrowed
from data.module import RetrievalData
from data.prepared import PreparedDataset
from data.reading import TrainingParts
from data.sending import Sender, SentBatches
from tests.data.test_streaming import same, world
from towers.features import Batch

CPU = torch.device("cpu")


class Streams:
    """What ``torch.cuda`` has of streams: which one a thread is on, and who waited for what."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.told: list[tuple[str, Any]] = []
        self.made = 0

    def Stream(self, device: torch.device) -> Any:  # noqa: N802 - torch's name
        """One that gives its events numbers."""

        def record() -> int:
            assert self.on == "side", "after the copy, on its stream"
            self.made += 1
            self.told.append(("recorded", self.made))
            return self.made

        return SimpleNamespace(record_event=record)

    @contextmanager
    def stream(self, side: Any) -> Iterator[None]:
        """On the side stream, in this thread."""
        self.here.name = "side"
        yield
        self.here.name = "main"

    @property
    def on(self) -> str:
        return getattr(self.here, "name", "main")

    def current_stream(self, device: torch.device) -> Any:
        """The one that waits."""
        assert self.on == "main"
        return SimpleNamespace(wait_event=lambda event: self.told.append(("waited", event)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """In the place of a card's; tensors stay where they are."""
    fake, to = Streams(), torch.Tensor.to

    def copied(x: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        fake.told.append(("copied", (fake.on, non_blocking)))
        return to(x, device)

    monkeypatch.setattr(torch.Tensor, "to", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: fake.told.append(("kept", x.data_ptr())))
    monkeypatch.setattr(sending, "pinned", narrowed)  # there is no page-locked memory without a card
    return fake


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return world(tmp_path_factory.mktemp("log"))


def plain(log: PreparedDataset, workers: int = 1) -> TrainBatches[Batch]:
    return TrainBatches(TrainingParts(log), joined, 32, 0, lambda: 0, workers=workers, finish=narrowed)


def sent(log: PreparedDataset, streams: Streams, workers: int = 1) -> SentBatches:
    return SentBatches(Sender(CPU, streams), TrainingParts(log), joined, 32, 0, lambda: 0, workers=workers)


def test_the_stream_of_the_steps_waits_for_the_copy_and_keeps_what_it_takes(streams: Streams, log: Any) -> None:
    """The copy, then its event; then, before anything is computed, the wait, and a word to the allocator."""
    sender, batch = Sender(CPU, streams), next(iter(plain(log)))
    streams.told.clear()
    on_its_way = sender.send(batch)
    arrays = [x for x, _ in streams.told]
    assert set(streams.told[:-1]) == {("copied", ("side", True))}
    assert streams.told[-1] == ("recorded", 1) == ("recorded", on_its_way.arrived)
    streams.told.clear()
    there = sender.receive(on_its_way)
    assert type(there) is Batch
    assert streams.told[0] == ("waited", 1)
    pointers = []
    there.map(lambda x: pointers.append(x.data_ptr()) or x)
    assert streams.told[1:] == [("kept", pointer) for pointer in pointers]
    assert len(pointers) == len(arrays) - 1 > 7, "every array of the batch"


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_those_of_the_loader_each_waited_for_once(streams: Streams, log: Any, workers: int) -> None:
    found = list(sent(log, streams, workers))
    expected = list(plain(log))
    assert len(found) == len(expected) > 3
    for a, b in zip(found, expected, strict=True):
        same(a, b)
    waited = [event for what, event in streams.told if what == "waited"]
    assert sorted(waited) == list(range(1, len(found) + 1))


def test_the_position_is_that_of_what_was_handed_out(streams: Streams, log: Any) -> None:
    """However much was sent ahead: a run that is resumed goes on with the next one."""
    batches = sent(log, streams, workers=3)
    source = iter(batches)
    first = [next(source), next(source)]
    assert batches.state_dict() == {**plain(log).state_dict(), "done": 2, "epoch": 0}
    again = sent(log, streams)
    again.load_state_dict(batches.state_dict())
    for a, b in zip([*first, *again], plain(log), strict=True):
        same(a, b)


@pytest.mark.parametrize(("device", "kind"), [("cpu", TrainBatches), ("cuda", SentBatches)])
def test_the_datamodule_sends_to_a_card_and_to_nothing_else(
    log: PreparedDataset, device: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.module.Sender", lambda device: Sender(device, Streams()))
    module = RetrievalData(log, batch_size=9, seed=0, validate=())
    strategy = SimpleNamespace(root_device=torch.device(device))
    module.trainer = SimpleNamespace(strategy=strategy, current_epoch=0, global_rank=0, world_size=1)  # type: ignore[assignment]
    assert type(module.train_dataloader()) is kind
