"""The Lightning module: wiring between batches, towers, negatives, logits and loss. The mathematics is elsewhere.

Shapes: ``B`` examples, ``N`` sampled candidates, ``M`` candidates of each example's own, ``I`` items, ``L`` history
length, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from towers.model import logits, optimisers, sharded_tables, warm_start
from towers.model.aggregation import Aggregation
from towers.model.contrast import Contrast, Own, VectorLoss
from towers.model.embedder import Embedder, history_of
from towers.model.fused_softmax import SampledSoftmax
from towers.model.gathering import ALONE, Ranks, average_sparse, broadcast, several
from towers.model.grad_cache import embed_examples, embed_rows
from towers.model.losses import Loss, sampled_softmax
from towers.model.negatives import MakeSampler, Negatives
from towers.model.optimisers import OptimiserSettings
from towers.model.tables import FeatureTable
from towers.model.two_tower import RetrievalModel

# From (name, optimiser) of the parameters to the state with which their optimiser begins: see ``warm_start``.
Start = Callable[[Sequence[tuple[str, str]]], dict[int, dict[str, Any]]]


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
        groups: ``[I]`` int64: items of one group are reposts of each other; None: the data do not say.
        aggregation: moves item vectors towards their neighbours', outside training: see ``Embedder``; None: nothing.
    """

    user_table: FeatureTable
    item_table: FeatureTable
    item_events: NDArray[np.int64]
    total_steps: int | None = None
    posted: NDArray[np.int64] | None = None
    expires: NDArray[np.int64] | None = None
    context_table: FeatureTable | None = None
    groups: NDArray[np.int64] | None = None
    aggregation: Aggregation | None = None


class Retrieval(pl.LightningModule):
    """Trains a two-tower model with sampled negatives.

    Validation batches are ``Task``s: the datamodule's ``val_dataloader`` is an iterable of them (not a plain list,
    which Lightning takes for several loaders). Each is ranked in full and logged under its name: ``valid/recall@20``.

    ``start``, if something sets it before training, gives the optimiser the state with which it begins.

    Randomness. Everything random in a step is a function of (seed, number of batches before it, rank): torch is
    reseeded at the start of each, hence a resumed run repeats an uninterrupted one bit for bit.

    Args:
        model: the towers.
        data: feature tables and item statistics.
        sampler: makes the sampler from ``[I]`` training events.
        loss: over positive and negative logits, or over a whole ``Contrast``; None: ``SampledSoftmax``.
        optimiser: see ``OptimiserSettings``.
        correct_negatives: subtract log q from the negatives' logits; what is no softmax wants plain scores.
        correct_positive: subtract log q from the positive's logit too: see ``logits.correct_log_q``.
        matryoshka: prefixes of the vectors that must be good vectors by themselves ("Matryoshka Representation
            Learning", Kusupati et al., 2022): the loss is the mean of theirs and that of the whole vector.
        impression_weight: of a second term, where batches hold impressions: which of the jobs shown was chosen.
        group_weight: of the mean of an item's group in the item's vector, outside training: see ``Embedder``.
        grad_cache: rows embedded at once in training, and again on the way back (see ``grad_cache``); None: all.
        shard_above: rows from which tables lie on all processes, a share on each (see ``sharded_tables``); None: never.
        ks: cut-offs of the validation metrics.
        seed: of all randomness in training steps.

    Raises:
        ConfigError: prefixes, groups or a gradient cache that the model or the data do not have.
    """

    def __init__(
        self,
        model: RetrievalModel,
        data: TrainingData,
        *,
        sampler: MakeSampler,
        loss: Loss | VectorLoss | None = None,
        optimiser: OptimiserSettings | None = None,
        correct_negatives: bool = True,
        correct_positive: bool = False,
        matryoshka: Sequence[int] = (),
        impression_weight: float = 1.0,
        group_weight: float = 0.0,
        grad_cache: int | None = None,
        shard_above: int | None = None,
        ks: Sequence[int] = (10, 20, 100),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.users = data.user_table.select(model.user_features)
        self.items = data.item_table.select(model.item_features)
        self.contexts = (data.context_table or FeatureTable({})).select(model.context_features)
        self.sampler = sampler(torch.tensor(data.item_events))
        self.loss, self.total_steps = loss or SampledSoftmax(), data.total_steps
        self.optimiser = optimiser or OptimiserSettings()
        self.correct_negatives, self.correct_positive = correct_negatives, correct_positive
        self.impression_weight, self.ks, self.seed = impression_weight, tuple(ks), seed
        if wrong := [d for d in matryoshka if not 1 <= d <= model.dim]:
            raise ConfigError(f"matryoshka {wrong}: prefixes of {model.dim} dimensions lie between 1 and {model.dim}")
        self.prefixes = sorted(set(matryoshka) - {model.dim})
        if self.prefixes and not model.has_prefixes:
            raise ConfigError(
                f"matryoshka {self.prefixes}: vectors of {type(model).__name__} have no prefixes; drop it"
            )
        if grad_cache is not None and (grad_cache < 1 or not model.row_by_row):
            cure = "set it to at least 1" if grad_cache < 1 else f"a {type(model).__name__} cannot; set it to null"
            raise ConfigError(f"grad_cache is {grad_cache}, and rows are to be embedded in parts: {cure}")
        self.grad_cache = grad_cache
        if shard_above is not None:
            sharded_tables.check(model, shard_above, self.optimiser, grad_cache)
        self.shard_above = shard_above
        self.batches_seen = 0
        self.start: Start | None = None
        self.optimised: list[tuple[str, str]] = []
        self.tables = optimisers.sparse_parameters(model)
        own = {id(p) for p in self.tables}
        if any(p.requires_grad and id(p) not in own for p in model.parameters()):  # DDP wants something to do
            self._ddp_params_and_buffers_to_ignore = [n for n, p in self.named_parameters() if id(p) in own]
        else:
            self.tables = []
        if group_weight and data.groups is None:
            raise ConfigError(f"group_weight={group_weight}, but the data have no groups; set items.group, or drop it")
        self.groups, self.group_weight = None if data.groups is None else torch.tensor(data.groups), group_weight
        self.aggregation = data.aggregation
        for name in ("posted", "expires"):
            times = getattr(data, name)
            self.register_buffer(name, None if times is None else torch.tensor(times), persistent=False)
        self.posted: Tensor | None
        self.expires: Tensor | None

    def configure_model(self) -> None:
        """Share out the rows of large tables. Lightning asks for it before validation, and again before training."""
        if self.shard_above is not None:
            device = self.trainer.strategy.root_device
            sharded_tables.shard_tables(self.model, self.shard_above, device)
            self.tables = [p for p in optimisers.sparse_parameters(self.model) if p.numel()]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch → the loss."""
        self._seed_this_batch()
        contrast = self.contrast(batch)
        whole = self._loss(contrast)
        parts = [self._loss(contrast.prefix(d, self.model.similarity)) for d in self.prefixes]
        loss = torch.stack([whole, *parts]).mean() if parts else whole
        if self.model.mixture is not None:
            second = replace(contrast, mixture=self.model.mixture)
            loss = loss + sampled_softmax(second.positive_logits(), second.negative_logits(), second.weight)
        if contrast.ranks.world > 1:
            loss = loss * contrast.ranks.scale
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss, sync_dist=several())
        return loss

    def contrast(self, batch: Batch) -> Contrast:
        """A batch's vectors against those of a draw for the examples of all processes."""
        ranks = Ranks.of(batch.weight)
        self.sampler.refresh(self.batches_seen - 1, lambda rows: self.embedder().embed_items(rows.cpu().numpy()))
        draw = self.draw(batch, ranks)
        columns = logits.item_columns(draw.rows, len(self.items))
        query = embed_examples(self.embed_users, batch, self.grad_cache)  # [B, D]
        positive, candidates = self.embed_items(batch.item, draw.rows, columns, ranks)  # [B, D], [N, D]
        return Contrast(
            batch,
            draw,
            columns,
            query,
            positive,
            candidates,
            corrected=self.correct_negatives,
            positive_log_q=self.sampler.log_q(batch.item, sum(ranks.sizes)) if self.correct_positive else None,
            posted=None if self.posted is None else self.posted[draw.rows],
            expires=None if self.expires is None else self.expires[draw.rows],
            ranks=ranks,
            own=None if draw.own is None else self.own(batch, draw.own, draw.own_log_q),
            shown=None if batch.impressions is None else self.own(batch, batch.impressions),
        )

    def draw(self, batch: Batch, ranks: Ranks) -> Negatives:
        """The candidates that all processes share, and this one's examples' own."""
        draw: Negatives = self.sampler(ranks.examples(batch.item))
        if ranks.rank:  # the draw was the same everywhere; dropout is each process's own
            torch.manual_seed(self._seed_of(ranks.rank))
        own, log_q, covered = (None if x is None else ranks.own(x) for x in (draw.own, draw.own_log_q, draw.covered))
        return draw._replace(own=own, own_log_q=log_q, covered=covered)

    def _loss(self, contrast: Contrast) -> Tensor:
        c = contrast.cool(self.model.similarity, self.model.heads)
        if isinstance(self.loss, VectorLoss):
            loss = self.loss(c)
        else:
            loss = self.loss(c.positive_logits(), c.negative_logits(), c.weight)
        if c.shown is None:
            return loss
        return loss + self.impression_weight * sampled_softmax(c.positive_scores(), c.shown_scores(), c.weight)

    def embed_users(self, batch: Batch) -> Tensor:
        """``[B, D]`` with gradients. Items of histories are encoded once for each batch, however often they occur."""
        history = None
        if self.model.history_dim:
            rows, place = batch.history.unique(return_inverse=True)  # -1 comes first, and is masked
            vectors = self.model.history_inputs(self.items(rows.clamp(min=0)))
            history = history_of(batch, vectors, place)
        context = None if batch.context is None else self.contexts(batch.context)
        return self.model.embed_users(self.users(batch.user), history, context, batch.action)

    def embed_items(
        self, positives: Tensor, rows: Tensor, columns: Tensor, ranks: Ranks = ALONE
    ) -> tuple[Tensor, Tensor]:
        """``[B, D]`` and ``[N, D]`` with gradients; each item once if the draw holds the positives."""
        share = ranks.share(rows)
        if self.sampler.holds_positives:
            candidates = ranks.join(self.embed_item_rows(share), len(rows))
            return torch.nn.functional.embedding(columns[positives], candidates), candidates
        both = self.embed_item_rows(torch.cat([positives, share]))
        return both[: len(positives)], ranks.join(both[len(positives) :], len(rows))

    def embed_item_rows(self, rows: Tensor) -> Tensor:
        """``[n]`` → ``[n, D]`` with gradients."""
        return embed_rows(lambda part: self.model.embed_items(self.items(part)), rows, self.grad_cache)

    def own(self, batch: Batch, rows: Tensor, log_q: Tensor | None = None) -> Own:
        """Candidates of each example's own, with gradients; each item once.

        Args:
            batch: ``B`` examples.
            rows: ``[B, M]`` item rows, -1 where there is none.
            log_q: ``[B, M]``; None: each stands for itself.
        """
        absent, there = rows < 0, rows.clamp(min=0)
        masked = absent | logits.known_among(there, batch.item, batch.known, len(self.items))
        if batch.time is not None:
            posted, expires = (None if x is None else x[there] for x in (self.posted, self.expires))
            dead = logits.not_live(batch.time, posted, expires)
            masked = masked if dead is None else masked | dead
        distinct, place = torch.unique(there, return_inverse=True)
        vectors = torch.nn.functional.embedding(place, self.embed_item_rows(distinct))
        return Own(vectors, masked, log_q)

    def on_train_start(self) -> None:
        """Begin with the same tables everywhere: DDP leaves sparse ones alone."""
        if several():
            broadcast(self.tables)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the sparse gradients over the processes."""
        if several():
            average_sparse(self.tables)

    def _seed_this_batch(self) -> None:
        self.batches_seen += 1
        torch.manual_seed(self._seed_of(0))

    def _seed_of(self, rank: int) -> int:
        """The seed of this batch: process 0's is that of what all draw together."""
        seed = np.random.SeedSequence([self.seed, self.batches_seen - 1, rank]).generate_state(1, np.uint64)
        return int(seed[0] >> np.uint64(1))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of batches seen, and what the optimiser's state belongs to."""
        checkpoint["batches_seen"] = self.batches_seen
        checkpoint["optimised"] = self.optimised

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped."""
        self.batches_seen = checkpoint["batches_seen"]

    def embedder(self) -> Embedder:
        """Embeds users and items with the present weights."""
        return Embedder(
            self.model,
            self.users,
            self.items,
            contexts=self.contexts,
            groups=self.groups,
            group_weight=self.group_weight,
            aggregation=self.aggregation,
        )

    def validation_step(self, task: Task, index: int) -> None:
        """Rank a whole task and log its metrics."""
        queries, candidates = self.embedder().sides(task)
        result = evaluate(task, queries, candidates, ks=self.ks, metrics=("recall", "ndcg"))
        self.log_dict(result.flat(task.name), batch_size=1, on_step=False, on_epoch=True, sync_dist=True)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches become int64 on the device; a task streams its own batches.

        Those that the datamodule made for a card are there already, others are copied while the host goes on.
        """

        def there(x: Tensor) -> Tensor:
            moved = x.to(device, non_blocking=True)
            return moved.long() if moved.dtype == torch.int32 else moved

        return batch.map(there) if isinstance(batch, Batch) else batch

    def configure_optimizers(self) -> Any:
        """AdamW, and the table optimiser where there are sparse gradients; a schedule if one is set.

        Raises:
            ConfigError: a schedule is set, and the run has no end.
        """
        optimiser = optimisers.build(self.model, self.optimiser)
        sharded_tables.drive(optimiser, self.model)
        self.optimised = warm_start.kinds(self.model, optimiser)
        if self.start is not None:
            optimiser.load_state_dict({**optimiser.state_dict(), "state": self.start(self.optimised)})
            self.start = None  # nothing is to be held twice
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
        """Clip the norm of the dense gradients, or each of their numbers (``trainer.gradient_clip_algorithm=value``).

        Adagrad's tables need none, and torch cannot clip sparse ones.
        """
        if gradient_clip_val:
            dense = [
                p for g in optimizer.param_groups for p in g["params"] if p.grad is not None and not p.grad.is_sparse
            ]
            by_value = gradient_clip_algorithm == "value"
            clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
            clip(dense, gradient_clip_val)
