"""What a user did before, pooled into one vector.

Shapes: ``B`` users, ``L`` history length, ``H`` width of what an item contributes, ``K`` heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class HistorySettings:
    """How histories enter the user tower.

    Attributes:
        pooling: ``none``; ``mean``; ``decay``: weights fall exponentially with position and age, at learned
            rates; ``lags``: one learned weight for each position; ``attention``.
        table: ``shared``: an item stands in a history as its own tower's encoders see it; ``separate``: it has
            encoders of its own there.
        length: positions with weights of their own (lags, attention); older events share the last one's.
        heads: of the attention.
        dropout: share of the pooled vector's entries that are dropped in training.
    """

    pooling: Literal["none", "mean", "decay", "lags", "attention"] = "mean"
    table: Literal["shared", "separate"] = "shared"
    length: int = 50
    heads: int = 2
    dropout: float = 0.0


class HistoryInputs(NamedTuple):
    """Histories as vectors, the newest event first."""

    vectors: Tensor  # [B, L, H] what each item contributes; arbitrary where masked
    mask: Tensor  # [B, L] bool, true where there is an event
    action: Tensor  # [B, L] int64 action codes
    age: Tensor  # [B, L] float32, log1p of hours; 0 without a clock


class HistoryPooling(nn.Module):
    """A masked softmax over the events of a history: every pooling here is a choice of its logits.

    Logits of all zeros are the mean. Whatever the pooling, an action has a learned weight of its own, since an
    application says more than a view. All weights start at the mean (``decay``: a gentle fall).

    A history without events becomes a learned vector, never NaN, and padding changes nothing.

    Args:
        settings: see ``HistorySettings``.
        dim: ``H``.
        n_actions: number of action codes.
    """

    def __init__(self, settings: HistorySettings, dim: int, n_actions: int) -> None:
        super().__init__()
        self.kind = settings.pooling
        self.heads = settings.heads if self.kind == "attention" else 1
        self.length = settings.length
        self.no_history = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.action_logit = nn.Embedding(n_actions, self.heads)
        nn.init.zeros_(self.action_logit.weight)
        if self.kind == "decay":
            self.rates = nn.Parameter(torch.tensor([-2.0, -2.0]))  # before softplus: per position, per unit of age
        if self.kind in ("lags", "attention"):
            self.lag_logit = nn.Parameter(torch.zeros(settings.length, self.heads))
        if self.kind == "attention":
            self.attention = AttentionLogits(dim, n_actions, self.heads)
            self.out = nn.Linear(self.heads * dim, dim)
            with torch.no_grad():  # the mean of the heads
                self.out.weight.copy_(torch.eye(dim).repeat(1, self.heads) / self.heads)
                self.out.bias.zero_()
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, history: HistoryInputs) -> Tensor:
        """Histories → ``[B, H]``."""
        vectors, mask, _, _ = history
        logits = self.logits(history).masked_fill(~mask.unsqueeze(-1), -1e30)  # not -inf: finite without any event
        weight = logits.softmax(dim=1)  # [B, L, K], exactly 0 on padding beside an event
        pooled = (weight.transpose(1, 2) @ vectors.masked_fill(~mask.unsqueeze(-1), 0.0)).flatten(1)  # [B, K·H]
        if self.kind == "attention":
            pooled = self.out(pooled)
        out: Tensor = self.dropout(torch.where(mask.any(dim=1, keepdim=True), pooled, self.no_history))
        return out

    def logits(self, history: HistoryInputs) -> Tensor:
        """``[B, L, K]`` log-weights of the events, up to a constant for each user and head."""
        logits: Tensor = self.action_logit(history.action)
        lag = torch.arange(history.mask.shape[1], device=logits.device)
        if self.kind == "decay":
            by_lag, by_age = F.softplus(self.rates)
            logits = logits - (by_lag * lag + by_age * history.age).unsqueeze(-1)
        if self.kind in ("lags", "attention"):
            logits = logits + self.lag_logit[lag.clamp(max=self.length - 1)]
        if self.kind == "attention":
            logits = logits + self.attention(history)
        return logits


class AttentionLogits(nn.Module):
    """Attention of ``K`` learned queries over the events, with an action embedding and a bias by age.

    A learned query ``q_k`` sees a key ``W x`` as ``q_k · W x = (Wᵀ q_k) · x``: one vector for each head
    is the whole generality, so that there is no key matrix. Values need no matrix either, because
    averaging commutes with one; ``HistoryPooling.out`` is applied once for each user, not for each event.
    """

    def __init__(self, dim: int, n_actions: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, heads, bias=False)
        self.action_key = nn.Embedding(n_actions, dim)
        self.age_rate = nn.Parameter(torch.zeros(heads))
        nn.init.zeros_(self.action_key.weight)

    def forward(self, history: HistoryInputs) -> Tensor:
        """``[B, L, K]``."""
        keys = torch.tanh(history.vectors + self.action_key(history.action))
        logits: Tensor = self.query(keys) - self.age_rate * history.age.unsqueeze(-1)
        return logits
