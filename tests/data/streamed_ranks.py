"""Two processes stream one dataset through Lightning: ``python -m tests.data.streamed_ranks DATASET BUDGET FOLDER``.

Each writes the items of its batches to ``RANK.json``; see ``test_streaming``.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from data.module import RetrievalData
from data.prepared import PreparedDataset
from towers.features import Batch


class Notes(pl.LightningModule):
    """Waits for the other process at each step, as any training does, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[list[int]] = []

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """It is there."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One loss for all."""
        self.seen.append(batch.item.tolist())
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.SGD(self.parameters(), 0.1)


def main(dataset: Path, budget: int, folder: Path) -> None:
    """Two epochs."""
    warnings.simplefilter("ignore")
    data = RetrievalData(PreparedDataset(dataset), batch_size=9, seed=0, validate=(), memory_budget=budget, workers=2)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=2, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip
    notes = Notes()
    trainer.fit(notes, data)
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(notes.seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
