"""When a run saves checkpoints, and how Lightning is made to write them (``checkpoints`` knows the files)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins import TorchCheckpointIO

from towers.model import checkpoints


class WholeCheckpoints(TorchCheckpointIO):
    """Every checkpoint that Lightning saves, by whichever callback, is written as ``checkpoints.write`` does it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file; the ``last.ckpt`` that was there becomes ``previous.ckpt``."""
        path = Path(path)
        keep = path.with_name(checkpoints.PREVIOUS) if path.name == checkpoints.LAST else None
        checkpoints.write(checkpoint, path, keep)


class KeepLast(pl.callbacks.Checkpoint):
    """Saves ``last.ckpt`` every so many optimiser steps, at moments from which Lightning resumes exactly.

    These are right after a step, when no gradient is half accumulated, and not after the last batch of an epoch: a run
    resumed there miscounts its epochs, and a second resume would repeat part of one. (``ModelCheckpoint`` saves at
    both.) An epoch of a single batch therefore has no such moment; the end of training is saved in any case.

    Args:
        folder: where; the file is replaced whole, and the one before it kept (see ``checkpoints``).
        every: optimiser steps between two saves, at least.
    """

    def __init__(self, folder: str, every: int) -> None:
        self.path, self.every = f"{folder}/{checkpoints.LAST}", every
        self.saved = self.seen = 0  # optimiser steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run resumes from has been saved."""
        self.saved = self.seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is due and a step has just been made."""
        stepped = trainer.global_step != self.seen
        self.seen = trainer.global_step
        if stepped and not trainer.is_last_batch and self.seen >= self.saved + self.every:
            self.saved = self.seen
            trainer.save_checkpoint(self.path)
