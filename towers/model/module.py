"""The Lightning module: wiring between batches, towers, negatives, logits and loss. The mathematics is elsewhere.

Shapes: ``B`` examples, ``N`` sampled candidates, ``I`` items, ``L`` history length, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from towers.errors import ConfigError
from towers.evaluation.evaluate import evaluate
from towers.evaluation.task import Task
from towers.features import Batch
from towers.model import logits, optimisers
from towers.model.embedder import Embedder, history_of, to_device
from towers.model.losses import Loss, sampled_softmax
from towers.model.negatives import MakeSampler
from towers.model.optimisers import OptimiserSettings
from towers.model.tables import FeatureTable
from towers.model.two_tower import TwoTower


@dataclass(frozen=True)
class TrainingData:
    """What stays on the device during training.

    Attributes:
        user_table: features of all users.
        item_table: features of all ``I`` items.
        item_events: ``[I]`` int64 training events; samplers draw only items that have some.
        total_steps: optimiser steps of the whole run (epochs × batches / accumulated batches), for the schedule.
        posted: ``[I]`` int64 microseconds: from when an item may be recommended; None: always.
        expires: ``[I]`` int64 microseconds: until when (exclusive); None: for ever.
        context_table: features of all contexts, where the data have any.
    """

    user_table: FeatureTable
    item_table: FeatureTable
    item_events: NDArray[np.int64]
    total_steps: int | None = None
    posted: NDArray[np.int64] | None = None
    expires: NDArray[np.int64] | None = None
    context_table: FeatureTable | None = None


class Retrieval(pl.LightningModule):
    """Trains a two-tower model with sampled negatives.

    Validation batches are ``Task``s: the datamodule's ``val_dataloader`` is an iterable of them (not a plain list,
    which Lightning takes for several loaders). Each is ranked in full and logged under its name: ``valid/recall@20``.

    Randomness. Everything random in a step is a function of (seed, number of batches before it, rank): torch is
    reseeded at the start of each, hence a resumed run repeats an uninterrupted one bit for bit.

    Args:
        model: the towers.
        data: feature tables and item statistics.
        sampler: makes the sampler from ``[I]`` training events.
        loss: over positive and negative logits.
        optimiser: see ``OptimiserSettings``.
        correct_positive: subtract log q from the positive's logit too: see ``logits.correct_log_q``.
        ks: cut-offs of the validation metrics.
        seed: of all randomness in training steps.
    """

    def __init__(
        self,
        model: TwoTower,
        data: TrainingData,
        *,
        sampler: MakeSampler,
        loss: Loss = sampled_softmax,
        optimiser: OptimiserSettings | None = None,
        correct_positive: bool = False,
        ks: Sequence[int] = (10, 20, 100),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.users = data.user_table.select(model.user_features)
        self.items = data.item_table.select(model.item_features)
        self.contexts = (data.context_table or FeatureTable({})).select(model.context_features)
        self.sampler = sampler(torch.tensor(data.item_events))
        self.loss, self.optimiser, self.total_steps = loss, optimiser or OptimiserSettings(), data.total_steps
        self.correct_positive, self.ks, self.seed = correct_positive, tuple(ks), seed
        self.batches_seen = 0
        for name in ("posted", "expires"):
            times = getattr(data, name)
            self.register_buffer(name, None if times is None else torch.tensor(times), persistent=False)
        self.posted: Tensor | None
        self.expires: Tensor | None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch → the loss."""
        self._seed_this_batch()
        draw = self.sampler(batch.item)
        n = len(draw.rows)
        columns = logits.item_columns(draw.rows, len(self.items))

        query = self.model.similarity.cool(self.embed_users(batch))  # [B, D]
        positive, candidates = self.embed_items(batch.item, draw.rows, columns)  # [B, D], [N, D]

        s_pos = logits.positive_scores(query, positive)  # [B]
        s_neg = logits.correct_log_q(logits.candidate_scores(query, candidates), draw.log_q)  # [B, N]
        if self.correct_positive:
            s_pos = logits.correct_log_q(s_pos, self.sampler.log_q(batch.item, len(batch)))
        s_neg = logits.mask(
            s_neg, logits.known_positives(columns, n, batch.item, batch.known), self._not_live(batch, draw.rows)
        )
        loss = self.loss(s_pos, s_neg, batch.weight)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss)
        return loss

    def embed_users(self, batch: Batch) -> Tensor:
        """``[B, D]`` with gradients. Items of histories are encoded once for each batch, however often they occur."""
        history = None
        if self.model.pooling is not None:
            rows, place = batch.history.unique(return_inverse=True)  # -1 comes first, and is masked
            vectors = self.model.history_inputs(self.items(rows.clamp(min=0)))
            history = history_of(batch, vectors, place)
        context = None if batch.context is None else self.contexts(batch.context)
        return self.model.embed_users(self.users(batch.user), history, context)

    def embed_items(self, positives: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, D]`` and ``[N, D]`` with gradients; each item once if the draw holds the positives."""
        if self.sampler.holds_positives:
            candidates = self.model.embed_items(self.items(rows))
            return torch.nn.functional.embedding(columns[positives], candidates), candidates
        both = self.model.embed_items(self.items(torch.cat([positives, rows])))
        return both[: len(positives)], both[len(positives) :]

    def _not_live(self, batch: Batch, rows: Tensor) -> Tensor | None:
        if batch.time is None or (self.posted is None and self.expires is None):
            return None
        posted = None if self.posted is None else self.posted[rows]
        expires = None if self.expires is None else self.expires[rows]
        return logits.not_live(batch.time, posted, expires)

    def _seed_this_batch(self) -> None:
        seed = np.random.SeedSequence([self.seed, self.batches_seen, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0] >> np.uint64(1)))
        self.batches_seen += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of batches seen."""
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped."""
        self.batches_seen = checkpoint["batches_seen"]

    def embedder(self) -> Embedder:
        """Embeds users and items with the present weights."""
        return Embedder(self.model, self.users, self.items, contexts=self.contexts)

    def validation_step(self, task: Task, index: int) -> None:
        """Rank a whole task and log its metrics."""
        e = self.embedder()
        queries, items = e.embed_queries(task.batches), e.embed_items(task.candidates)
        result = evaluate(task, queries, items, ks=self.ks, metrics=("recall", "ndcg"))
        self.log_dict(result.flat(task.name), batch_size=1, on_step=False, on_epoch=True, sync_dist=True)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches become tensors on the device; a task streams its own batches."""
        return to_device(batch, device) if isinstance(batch, Batch) else batch

    def configure_optimizers(self) -> Any:
        """AdamW, and the table optimiser where there are sparse gradients; a schedule if one is set."""
        optimiser = optimisers.build(self.model, self.optimiser)
        if self.optimiser.schedule == "constant" and not self.optimiser.warmup:
            return optimiser
        if self.total_steps is None:
            raise ConfigError("a schedule needs an end; set trainer.max_epochs, or optimiser.schedule=constant")
        schedule = optimisers.schedule(optimiser, self.optimiser, self.total_steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the dense gradients; Adagrad's tables need none, and torch cannot clip sparse ones."""
        if gradient_clip_val:
            dense = [
                p for g in optimizer.param_groups for p in g["params"] if p.grad is not None and not p.grad.is_sparse
            ]
            torch.nn.utils.clip_grad_norm_(dense, gradient_clip_val)
