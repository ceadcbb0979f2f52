"""The Lightning side of the data: which batches train, which tasks validate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl

from data.batches import TrainBatches, batches_per_epoch, joined
from data.prepared import PreparedDataset
from data.reading import TrainingParts
from data.sending import Sender, SentBatches
from data.tasks import build_task
from towers.errors import ConfigError
from towers.evaluation.task import Task
from towers.features import Batch


class Tasks:
    """Tasks as an iterable of batches for Lightning: each is one batch of a validation epoch."""

    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        """The tasks, in order."""
        return iter(self._tasks)


class RetrievalData(pl.LightningDataModule):
    """Training batches and validation tasks of a prepared dataset.

    It keeps the position in an epoch. Lightning asks its loaders too, but tells them of a checkpoint only if they are
    made after it has restored its counts, hence not if a module wants to know ``trainer.estimated_stepping_batches``.

    Args:
        dataset: the prepared dataset.
        batch_size: examples in a batch, on each rank.
        seed: of the order of examples.
        validate: names of the tasks that are ranked after each epoch; a refit has none.
        impressions: jobs in each example that its user was shown and did not take; see ``data.impressions``.
        memory_budget: bytes of what is streamed; None: everything is in memory. See ``data.reading``.
        workers: threads that make batches, each one ahead; the order does not depend on them.

    Raises:
        ConfigError: there are no workers, or the budget is too small, see ``data.reading``.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        *,
        batch_size: int,
        seed: int,
        validate: tuple[str, ...],
        impressions: int = 0,
        memory_budget: int | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__()
        if workers < 1:
            raise ConfigError(f"workers is {workers}; set it to at least 1, the threads that make batches")
        self.dataset, self.batch_size, self.seed, self.workers = dataset, batch_size, seed, workers
        self.parts = TrainingParts(dataset, memory_budget, impressions)
        length, window = dataset.schema.history_length, self.parts.capacity
        self.tasks = [build_task(dataset, name, history_length=length, window=window) for name in validate]
        self._batches: TrainBatches[Batch] | None = None
        self._position: dict[str, Any] = {}  # that of the checkpoint which was loaded

    def batches_per_epoch(self, world: int = 1) -> int:
        """Training batches of one epoch, on each rank."""
        return batches_per_epoch(len(self.parts), self.batch_size, world)

    def train_dataloader(self) -> TrainBatches[Batch]:
        """Shuffled training batches, from where a checkpoint stopped if one was loaded; a card's are sent ahead.

        Raises:
            ConfigError: the checkpoint is of another run, see ``TrainBatches.load_state_dict``.
        """
        trainer = self.trainer
        device = None if trainer is None else trainer.strategy.root_device
        card = device if device is not None and device.type == "cuda" else None
        make = TrainBatches[Batch] if card is None else partial(SentBatches, Sender(card))
        self._batches = make(
            self.parts,
            joined,
            self.batch_size,
            self.seed,
            epoch=lambda: 0 if trainer is None else trainer.current_epoch,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
            workers=self.workers,
        )
        if self._position:
            self._batches.load_state_dict(self._position)
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of examples, see ``TrainBatches.state_dict``."""
        return self._position if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where training goes on: in each loader that is made from now on."""
        self._position = state_dict

    def val_dataloader(self) -> Tasks:
        """The tasks, each of which is one batch."""
        return Tasks(self.tasks)
