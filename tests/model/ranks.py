"""One process with whole batches, or two with half of each: ``python -m tests.model.ranks PROCESSES FOLDER``.

Trains each of ``WORLDS`` through Lightning and writes its weights and last loss; see ``test_gathering``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from tests.model.helpers import batch, contexts, full_model, infos, table
from towers.features import Batch, Ragged
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.mining import Mined
from towers.model.module import Retrieval, TrainingData
from towers.model.negatives import CrossBatch, InBatch, Mixed, Popularity, Uniform
from towers.model.optimisers import OptimiserSettings
from towers.model.tower import TowerSettings
from towers.model.vector_losses import AlignmentUniformity, MultiPositive

USERS, ITEMS, STEPS, SIZE = 5, 20, 4, 11  # an odd number: the processes' shares differ

MIXED = partial(Mixed, samplers=[InBatch, partial(Uniform, n=6)])
MINED = partial(Mined, base=MIXED, n=1, nearest=1, start=0)  # all that are near: the choice is not random
WORLDS: dict[str, dict[str, Any]] = {
    "in_batch": {"sampler": InBatch},
    "mixed, sparse tables": {"sampler": MIXED, "sparse": True},
    "popularity, corrected positives": {"sampler": partial(Popularity, n=8), "correct_positive": True},
    "cross-batch, accumulated": {"sampler": partial(CrossBatch, n=64), "accumulate": 2, "sparse": True},
    "mined": {"sampler": MINED},
    "alignment and uniformity": {"sampler": InBatch, "loss": AlignmentUniformity()},
    "several positives, prefixes": {"sampler": MIXED, "loss": MultiPositive(), "matryoshka": [4]},
}


class Shares:
    """Every process's part of each batch: all of it, or every other example."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Batch]:
        for seed in range(STEPS):
            weight = np.random.default_rng(seed).uniform(0.5, 2, SIZE).astype(np.float32)
            yield part(batch(SIZE, ITEMS, USERS, seed=seed, weight=weight), self.rank, self.world)


def part(whole: Batch, rank: int, world: int) -> Batch:
    """Every ``world``-th example."""
    known = Ragged(torch.arange(len(whole.item[rank::world]) + 1), whole.known.values[rank::world])  # one item each
    out = {k: v[rank::world] for k, v in vars(whole).items() if isinstance(v, torch.Tensor)}
    return Batch(**{**vars(whole), **out, "known": known})


def module(sampler: Any, sparse: bool = False, **changes: Any) -> Retrieval:
    """Nothing in it is random but the draw."""
    torch.manual_seed(7)
    encoders = EncoderSettings(sparse_above=5 if sparse else None)
    tower = TowerSettings(width=16, encoders=encoders)
    model = full_model(user=tower, item=tower, history=HistorySettings(pooling="mean", length=6))
    data = TrainingData(
        table(infos(), USERS), table(infos(), ITEMS, 1), np.ones(ITEMS, np.int64), 12, context_table=contexts()
    )
    settings = OptimiserSettings(learning_rate=0.01, table_learning_rate=0.05)
    return Retrieval(model, data, sampler=sampler, optimiser=settings, **changes)


def main(processes: int, folder: Path) -> None:
    """Train all worlds."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", ".*torch.distributed.*")  # what is deprecated there
    for name, world in WORLDS.items():
        settings = dict(world)
        several = DDPStrategy(process_group_backend="gloo", forward_sync_buffers=False)
        trainer = pl.Trainer(
            accelerator="cpu", devices=processes, strategy=several if processes > 1 else "auto", max_epochs=1,
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            log_every_n_steps=1, accumulate_grad_batches=settings.pop("accumulate", 1), default_root_dir=folder,
            gradient_clip_val=0.5,
        )  # fmt: skip
        trained = module(**settings)
        trainer.fit(trained, Shares(trainer.global_rank, processes))
        if trainer.is_global_zero:
            weights = {k: v.detach().clone() for k, v in trained.model.state_dict().items()}
            torch.save((weights, trainer.callback_metrics["train/loss"]), folder / f"{name}.{processes}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
