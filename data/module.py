"""The Lightning side of the data: which batches train, which tasks validate."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl

from data.batches import Collator, TrainBatches
from data.impressions import Impressions
from data.prepared import PreparedDataset
from data.tasks import build_task
from towers.evaluation.task import Task


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

    Args:
        dataset: the prepared dataset.
        batch_size: examples in a batch, on each rank.
        seed: of the order of examples.
        validate: names of the tasks that are ranked after each epoch; a refit has none.
        impressions: jobs in each example that its user was shown and did not take; see ``data.impressions``.
    """

    def __init__(
        self, dataset: PreparedDataset, *, batch_size: int, seed: int, validate: tuple[str, ...], impressions: int = 0
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        examples = dataset.examples("train")
        self.examples = examples.take(examples.weight > 0)
        self.impressions = Impressions.of(dataset, examples, impressions) if impressions else None
        if self.impressions is not None:
            self.examples = self.impressions.attach(self.examples)
        self.tasks = [build_task(dataset, name, history_length=dataset.schema.history_length) for name in validate]

    def batches_per_epoch(self, world: int = 1) -> int:
        """Training batches of one epoch, on each rank."""
        return max(1, -(-(len(self.examples) // world) // self.batch_size))

    def train_dataloader(self) -> TrainBatches:
        """Shuffled training batches."""
        trainer = self.trainer
        schema = self.dataset.schema
        collate = Collator(
            self.dataset.history, schema.clock, schema.history_length, self.dataset.known, self.impressions
        )
        return TrainBatches(
            self.examples,
            collate,
            self.batch_size,
            self.seed,
            epoch=lambda: 0 if trainer is None else trainer.current_epoch,
            rank=0 if trainer is None else trainer.global_rank,
            world=1 if trainer is None else trainer.world_size,
        )

    def val_dataloader(self) -> Tasks:
        """The tasks, each of which is one batch."""
        return Tasks(self.tasks)
