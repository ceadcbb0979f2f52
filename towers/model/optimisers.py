"""Two optimisers at once: AdamW for what is dense, row-wise Adagrad for big embedding tables.

A table of a million rows has a gradient in a few thousand of them at each step; a dense optimiser would visit
them all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR

from towers.errors import ConfigError


@dataclass(frozen=True)
class OptimiserSettings:
    """How the weights are updated.

    Attributes:
        learning_rate: of AdamW, for everything dense.
        weight_decay: of AdamW, on matrices; biases, norms and temperatures have none.
        table_learning_rate: for tables with sparse gradients.
        table_optimiser: ``rowwise_adagrad`` (one number of state for each row) or ``sparse_adam`` (two for each entry).
        schedule: after warm-up ``constant``, or ``linear`` or ``cosine`` down to ``final`` at the last step.
        warmup: optimiser steps of linear increase from 0, or a share of all steps if below 1.
        final: last learning rate, as a share of the highest.

    Raises:
        ConfigError: with every setting that is out of its range.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    table_learning_rate: float = 0.05
    table_optimiser: Literal["rowwise_adagrad", "sparse_adam"] = "rowwise_adagrad"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings together, each problem with its cure."""
        out = []
        rates = {"learning_rate": self.learning_rate, "table_learning_rate": self.table_learning_rate}
        out += [f"optimiser.{k} is {v}; set it above 0" for k, v in rates.items() if not v > 0]
        others = {"weight_decay": self.weight_decay, "warmup": self.warmup, "final": self.final}
        out += [f"optimiser.{k} is {v}; set it to at least 0" for k, v in others.items() if not v >= 0]
        if self.table_optimiser not in ("rowwise_adagrad", "sparse_adam"):
            out.append(
                f"optimiser.table_optimiser is {self.table_optimiser!r}; set it to rowwise_adagrad or sparse_adam"
            )
        if self.schedule not in ("constant", "linear", "cosine"):
            out.append(f"optimiser.schedule is {self.schedule!r}; set it to constant, linear or cosine")
        if out:
            raise ConfigError("the optimiser cannot be built:\n" + "\n".join(f"  - {p}" for p in out))


class RowwiseAdagrad(Optimizer):
    """Adagrad with one accumulator for each row: the mean of the row's squared gradients.

        G_i += mean_d(g_id²)        w_i -= lr · g_i / (√G_i + ε)

    A sparse gradient touches its rows only; a dense one is treated alike, rows without gradient stay as they are.
    For d = 1 it is Adagrad (Duchi, Hazan and Singer, 2011); the row-wise form is that of DLRM (Naumov et al., 2019) and
    FBGEMM.

    Args:
        params: ``[rows, d]`` tables.
        lr: learning rate.
        eps: ε.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if "sum" not in (state := self.state[p]):
                        state["sum"] = torch.zeros(len(p), dtype=p.dtype, device=p.device)
                    _rowwise_adagrad(p, p.grad, state["sum"], group["lr"], group["eps"])
        return loss


def _rowwise_adagrad(table: Tensor, grad: Tensor, total: Tensor, lr: float, eps: float) -> None:
    if not grad.is_sparse:
        total += grad.square().flatten(1).mean(1)
        table -= lr * grad / (total.sqrt() + eps).unsqueeze(1)
        return
    grad = grad.coalesce()  # a row that occurs twice in a batch has one gradient, the sum
    rows, g = grad.indices()[0], grad.values()
    new = total.index_select(0, rows) + g.square().mean(1)
    total.index_copy_(0, rows, new)
    table.index_add_(0, rows, g / (new.sqrt() + eps).unsqueeze(1), alpha=-lr)


class CompositeOptimizer(Optimizer):
    """Several optimisers that look like one to a trainer, a schedule and a checkpoint.

    Parameter groups and state are the parts' own, not copies: a schedule that sets ``group["lr"]`` drives the part.

    Args:
        parts: optimisers of disjoint parameters.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([g for part in parts for g in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Hand the parts our groups and our state, so that there is one of each."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            self.state.update(part.state) if part.state is not self.state else None
        for part in self.parts:
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by ``load_state_dict`` with new groups and new state."""
        for part in self.parts:
            part.state = defaultdict(dict)
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def sparse_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters whose gradients are sparse."""
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse)
    return [p for m in tables for p in m.parameters() if p.requires_grad]


def build(model: nn.Module, settings: OptimiserSettings) -> Optimizer:
    """AdamW for a model's dense parameters, the table optimiser beside it if there are sparse ones.

    Args:
        model: what is trained.
        settings: see ``OptimiserSettings``.
    """
    sparse = sparse_parameters(model)
    taken = {id(p) for p in sparse}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in dense if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in dense if p.dim() <= 1], "weight_decay": 0.0},
    ]
    parts: list[Optimizer] = []
    if dense:
        parts.append(AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True))
    if sparse:
        make = {"rowwise_adagrad": RowwiseAdagrad, "sparse_adam": SparseAdam}[settings.table_optimiser]
        parts.append(cast("Optimizer", make(sparse, lr=settings.table_learning_rate)))
    return parts[0] if len(parts) == 1 else CompositeOptimizer(parts)


def learning_rate_factor(step: int, settings: OptimiserSettings, total_steps: int) -> float:
    """Share of the highest learning rate at an optimiser step, counted from 0. Closed form: resuming is exact.

    >>> s = OptimiserSettings(schedule="linear", warmup=2)
    >>> [learning_rate_factor(t, s, 6) for t in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warmup = settings.warmup * total_steps if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    done = min(1.0, (step - warmup) / max(total_steps - warmup, 1))
    falling = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    fraction = falling[settings.schedule]
    return fraction if settings.schedule == "constant" else settings.final + (1.0 - settings.final) * fraction


def schedule(optimiser: Optimizer, settings: OptimiserSettings, total_steps: int) -> LambdaLR:
    """The learning-rate schedule, to be stepped after every optimiser step.

    Args:
        optimiser: what it drives, all groups alike.
        settings: see ``OptimiserSettings``.
        total_steps: optimiser steps of the whole run.

    Raises:
        ConfigError: there are no steps.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps is {total_steps}; a schedule needs the number of steps of the whole run")
    return LambdaLR(optimiser, lambda step: learning_rate_factor(step, settings, total_steps))
