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

    These are

    * right after a step, when no gradient is half accumulated, unless something else is due before the next batch: a
      validation, which a run resumed there would leave out, or the end of an epoch, which it would miscount
      (``ModelCheckpoint`` saves at both);
    * the start of an epoch, when all of the one before is done. Hence epochs of a single step are saved too.

    The end of training is saved in any case. A checkpoint also tells whether training is to stop, so that one that came
    to its end early does not go on.

    Args:
        folder: where; the file is replaced whole, and the one before it kept (see ``checkpoints``).
        every: optimiser steps between two saves, at least.
    """

    def __init__(self, folder: str, every: int) -> None:
        self.path, self.every = f"{folder}/{checkpoints.LAST}", every
        self.saved = self.seen = 0  # optimiser steps
        self.between = False  # epochs: where the checkpoint is that is saved, or was loaded

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run resumes from has been saved."""
        self.saved = self.seen = trainer.global_step
        if self.between:  # else Lightning, if it counts steps (max_steps), takes up the epoch that is done
            trainer.fit_loop.epoch_loop.restarting = False
        self.between = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if it is due."""
        if self._due(trainer):
            self.between = True
            self._save(trainer)
            self.between = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is due, a step has just been made, and the next batch follows."""
        stepped = trainer.global_step != self.seen
        self.seen = trainer.global_step
        if stepped and self._due(trainer) and not (trainer.is_last_batch or _ends(trainer) or _validates(trainer)):
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not keep, and take out the epoch that it has counted as begun."""
        checkpoint["stopping"], checkpoint["between_epochs"] = trainer.should_stop, self.between
        if self.between:
            for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                counts["ready"] -= 1

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it up again; the position of checkpoints that know it from their loader alone goes to the datamodule."""
        trainer.should_stop = checkpoint.get("stopping", False)
        self.between = checkpoint.get("between_epochs", False)
        data: pl.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
        loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
        if data is not None and loaders and type(data).__qualname__ not in checkpoint:
            data.load_state_dict(loaders[0])

    def _due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step >= self.saved + self.every

    def _save(self, trainer: pl.Trainer) -> None:
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.path)


def _ends(trainer: pl.Trainer) -> bool:
    """Whether training may be over with the batch that has just been trained on; its end is saved anyway."""
    return trainer.should_stop or trainer.global_step == trainer.max_steps


def _validates(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates after the batch that has just been trained on, within an epoch."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not isinstance(every, int):  # infinite, or None: by the clock
        return False
    if epochs is None:
        return (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return (trainer.current_epoch + 1) % epochs == 0 and (trainer.fit_loop.batch_idx + 1) % every == 0
