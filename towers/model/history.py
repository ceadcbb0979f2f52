"""What a user did before, as one vector: a pooling, a sequence encoder, or both.

Shapes: ``B`` users, ``L`` history length, ``H`` width of what an item contributes, ``K`` heads.

    h = Σ_l w_l v_l                      ``pooling``: w is a masked softmax over the events
    h = Σ_l u_l v_l / (Σ_l u_l)^γ        with ``length_power``: u before it is made to add up to 1
    h = Σ_l w_l v_l + c · s(v_1 … v_L)   with a sequence encoder ``s`` beside it, at a learned weight c
    h = s(v_1 … v_L)                     ``pooling: sequence``
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.model.ridge import FoldIn
from towers.model.sequence import SequenceEncoder, SequenceSettings
from towers.model.small_tables import SmallTable


@dataclass(frozen=True)
class HistorySettings:
    """How histories enter the user tower.

    Attributes:
        pooling: what a history becomes.
            ``none``: it is not read.
            ``mean``: the first choice where order says little (clicks within one search for a job).
            ``decay``: weights fall exponentially with position and age, at two learned rates; where the log has a
            clock and interests drift.
            ``lags``: one learned weight for each position; next-item logs. With ``init=sequence_svd`` it is hard to
            beat.
            ``attention``: weights depend on the item; with content and many events.
            ``ridge``: the fold-in of matrix factorisation, for ``init=ials`` (see ``ridge``).
            ``sequence``: no pooling, the sequence encoder alone; wants far more data than the others.
        table: ``shared``: an item stands in a history as its own tower's encoders see it; ``separate``: it has
            encoders of its own there. Separate where what follows an item is not what resembles it.
        length: positions with weights of their own (lags, attention); older events share the last one's.
        lag_decay: ``lags`` starts with weights that fall by this factor from each position to the next; 1: equal.
        length_power: γ of ``mean``, ``decay`` and ``lags`` when training starts, learned from there; None: 1, a mean.
            Below 1, a long history makes a long vector: the model is surer of a user of whom it knows more, and her
            history outweighs her features where both are summed. Use it with a dot product; a cosine of the history
            alone undoes it.
        heads: of the attention.
        dropout: share of the vector's entries that are dropped in training.
        event_dropout: share of the events that are left out in training, anew in each step.
        history_dropout: share of the histories that are left out as a whole in training, so that a user without any is
            something that the model has seen. Use it where new users or bare queries are to be served.
        nothing: what a history without events becomes: ``learned``, a vector; ``zero``: it says nothing, for users who
            are known by something else (a query) and whose history, if there is any, only adds to it.
        sequence: an encoder of the sequence, added to the pooled vector.
    """

    pooling: Literal["none", "mean", "decay", "lags", "attention", "ridge", "sequence"] = "mean"
    table: Literal["shared", "separate"] = "shared"
    length: int = 50
    lag_decay: float = 1.0
    length_power: float | None = None
    heads: int = 2
    dropout: float = 0.0
    event_dropout: float = 0.0
    history_dropout: float = 0.0
    nothing: Literal["learned", "zero"] = "learned"
    sequence: SequenceSettings = field(default_factory=SequenceSettings)


class HistoryInputs(NamedTuple):
    """Histories as vectors, the newest event first.

    The vectors are given for each event, or as a table and each event's row in it: then a pooling whose weights do
    not depend on them never makes the ``[B, L, H]`` array, which is most of what such a step would cost.
    """

    vectors: Tensor  # [B, L, H] what each item contributes, arbitrary where masked; or a table [n, H]
    mask: Tensor  # [B, L] bool, true where there is an event
    action: Tensor  # [B, L] int64 action codes
    age: Tensor  # [B, L] float32, log1p of hours; 0 without a clock
    rows: Tensor | None = None  # [B, L] int64 rows of the table; any row where masked

    def gathered(self) -> Tensor:
        """``[B, L, H]`` vectors, zero where masked."""
        vectors = self.vectors if self.rows is None else F.embedding(self.rows, self.vectors)
        return vectors.masked_fill(~self.mask.unsqueeze(-1), 0.0)


class HistoryPooling(nn.Module):
    """A history as one vector. Every pooling is a masked softmax over the events, by a choice of its logits.

    Logits of all zeros are the mean. Whatever the pooling, an action has a learned weight of its own, since an
    application says more than a view. All weights start at the mean (``decay``: a gentle fall; ``lags``: as
    ``lag_decay`` says).

    A history without events becomes a learned vector or zero, never NaN, and padding changes nothing.

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
        self.n_actions = n_actions
        self.drop = (settings.event_dropout, settings.history_dropout)
        self.no_history = nn.Parameter(torch.randn(dim) * dim**-0.5)
        if settings.nothing == "zero":
            nn.init.zeros_(self.no_history.requires_grad_(False))
        if self.kind != "sequence":
            self.action_logit = SmallTable(n_actions, self.heads)
            nn.init.zeros_(self.action_logit.weight)
        self.fold_in = FoldIn(dim) if self.kind == "ridge" else None
        self.length_power: nn.Parameter | None = None
        if settings.length_power is not None:
            self.length_power = nn.Parameter(torch.tensor(settings.length_power))
        if self.kind == "decay":
            self.rates = nn.Parameter(torch.tensor([-2.0, -2.0]))  # before softplus: per position, per unit of age
        if self.kind in ("lags", "attention"):
            lags = torch.arange(settings.length).unsqueeze(1).expand(-1, self.heads)
            self.lag_logit = nn.Parameter(lags * math.log(settings.lag_decay if self.kind == "lags" else 1.0))
        if self.kind == "attention":
            self.attention = AttentionLogits(dim, n_actions, self.heads)
            self.out = nn.Linear(self.heads * dim, dim)
            with torch.no_grad():  # the mean of the heads
                self.out.weight.copy_(torch.eye(dim).repeat(1, self.heads) / self.heads)
                self.out.bias.zero_()
        self.sequence: SequenceEncoder | None = None
        if settings.sequence.block != "none":
            self.sequence = SequenceEncoder(settings.sequence, dim, n_actions)
            self.sequence_weight = nn.Parameter(torch.tensor(settings.sequence.weight))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, history: HistoryInputs) -> Tensor:
        """Histories → ``[B, H]``."""
        history = history._replace(mask=self._kept(history.mask))
        if self.kind == "sequence":
            assert self.sequence is not None
            out: Tensor = self.sequence(*history)
        else:
            out = self.pool(history)
            if self.sequence is not None:
                out = out + self.sequence_weight * self.sequence(*history)
        out = self.dropout(torch.where(history.mask.any(dim=1, keepdim=True), out, self.no_history))
        return out

    def pool(self, history: HistoryInputs) -> Tensor:
        """``[B, H]``: the weighted mean of the events; arbitrary for a history without any."""
        logits = self.logits(history).masked_fill(~history.mask.unsqueeze(-1), -1e30)  # finite without any event
        if self.fold_in is not None:
            folded: Tensor = self.fold_in(history.gathered(), logits.squeeze(-1))
            return folded
        weight = logits.softmax(dim=1)  # [B, L, K], exactly 0 on padding beside an event
        if self.kind == "attention":
            out: Tensor = self.out((weight.transpose(1, 2) @ history.gathered()).flatten(1))  # [B, K·H]
            return out
        weight = weight.squeeze(-1)
        if self.length_power is not None:
            weight = weight * self._by_length(logits, history.mask)
        if history.rows is not None:
            weight = weight.to(history.vectors.dtype)  # bfloat16 where a layer made the vectors under autocast
            bags: Tensor = F.embedding_bag(history.rows, history.vectors, mode="sum", per_sample_weights=weight)
            return bags
        pooled: Tensor = (weight.unsqueeze(1) @ history.gathered()).squeeze(1)
        return pooled

    def _by_length(self, logits: Tensor, mask: Tensor) -> Tensor:
        """``[B, 1]``: (Σ u)^(1 - γ), which turns the mean Σ u v / Σ u into Σ u v / (Σ u)^γ."""
        assert self.length_power is not None
        total = logits.squeeze(-1).logsumexp(dim=1, keepdim=True)
        out: Tensor = ((1 - self.length_power) * total.where(mask.any(dim=1, keepdim=True), 0.0)).exp()
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
            logits = logits + self.attention(history.gathered(), history.action, history.age)
        return logits

    def _kept(self, mask: Tensor) -> Tensor:
        """``[B, L]``: the events that are not dropped in this step."""
        event, whole = self.drop
        if self.training and event:
            mask = mask & (torch.rand(mask.shape, device=mask.device) >= event)
        if self.training and whole:
            mask = mask & (torch.rand(len(mask), 1, device=mask.device) >= whole)
        return mask


class AttentionLogits(nn.Module):
    """Attention of ``K`` learned queries over the events, with an action embedding and a bias by age.

    A learned query ``q_k`` sees a key ``W x`` as ``q_k · W x = (Wᵀ q_k) · x``: one vector for each head
    is the whole generality, so that there is no key matrix. Values need no matrix either, because
    averaging commutes with one; ``HistoryPooling.out`` is applied once for each user, not for each event.
    """

    def __init__(self, dim: int, n_actions: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, heads, bias=False)
        self.action_key = SmallTable(n_actions, dim)
        self.age_rate = nn.Parameter(torch.zeros(heads))
        nn.init.zeros_(self.action_key.weight)

    def forward(self, vectors: Tensor, action: Tensor, age: Tensor) -> Tensor:
        """``[B, L, H]`` vectors, ``[B, L]`` actions and ages → ``[B, L, K]``."""
        keys = torch.tanh(vectors + self.action_key(action))
        logits: Tensor = self.query(keys) - self.age_rate * age.unsqueeze(-1)
        return logits
