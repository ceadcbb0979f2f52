"""The blocks of sequence encoders.

Shapes: ``B`` users, ``L`` events (the newest first), ``Q`` positions that are computed (``L``, or only the newest),
``W`` width, ``K`` heads, ``w = W / K``.

    sasrec   x += A(norm x)                  x += F(norm x)
    ligr     x += A(norm x) ⊙ σ(G₁ norm x)   x += F(norm x) ⊙ σ(G₂ norm x)
    hstu     x += O(norm(A(norm x)) ⊙ u)

Operations are plain ones, so that ONNX Runtime computes what torch does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.model.small_tables import SmallTable

if TYPE_CHECKING:
    from towers.model.sequence import SequenceSettings

AGES = 32  # half units of log1p(hours): the last bucket begins after some 600 years


class Seen(NamedTuple):
    """What an event may see: itself and older ones. Kept apart from the blocks because it is the same for all."""

    allowed: Tensor  # [B, L, L] bool: query position, key position
    distance: Tensor  # [L, L] int64, by how many positions the key is older; 0 where it is not
    gap: Tensor  # [B, L, L] int64, bucket of the hours between the two

    @classmethod
    def of(cls, mask: Tensor, age: Tensor) -> Seen:
        """From ``[B, L]`` masks and ages. A position always sees itself, hence no softmax is empty."""
        at = torch.arange(mask.shape[1], device=mask.device)
        distance = at.unsqueeze(0) - at.unsqueeze(1)
        allowed = (distance == 0) | ((distance > 0) & mask.unsqueeze(1))
        hours = torch.exp(age)  # plus one, which the difference forgets
        gap = age_bucket(torch.log(1.0 + (hours.unsqueeze(1) - hours.unsqueeze(2)).abs()))
        return cls(allowed, distance.clamp(min=0), gap)

    def newest(self) -> Seen:
        """What the newest event sees."""
        return Seen(self.allowed[:, :1], self.distance[:1], self.gap[:, :1])


def age_bucket(age: Tensor) -> Tensor:
    """``[...]`` log1p of hours → ``[...]`` buckets in ``0 … AGES - 1``."""
    return (2.0 * age).long().clamp(min=0, max=AGES - 1)


class Block(nn.Module):
    """One layer of a sequence encoder."""

    def forward(self, x: Tensor, seen: Seen, newest: bool = False) -> Tensor:
        """``[B, L, W]`` → ``[B, Q, W]``.

        Args:
            x: events.
            seen: what each may see.
            newest: compute the newest position only.
        """
        raise NotImplementedError


def block(kind: str, width: int, settings: SequenceSettings) -> Block:
    """A block by its name.

    Args:
        kind: ``sasrec``, ``ligr`` or ``hstu``.
        width: ``W``.
        settings: heads, length and dropout.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    if width % settings.heads:
        raise ConfigError(
            f"model.history.sequence.width is {width} and heads {settings.heads}; choose heads that divide the width"
        )
    if kind == "hstu":
        return HstuBlock(width, settings.heads, settings.length, settings.dropout)
    return AttentionBlock(width, settings.heads, settings.dropout, gated=kind == "ligr")


class AttentionBlock(Block):
    """Softmax attention and a feed-forward layer, each after a norm; with gates it is LiGR's.

    Args:
        width: ``W``.
        heads: ``K``.
        dropout: of both branches.
        gated: multiply each branch by ``σ(G norm x)``.
    """

    def __init__(self, width: int, heads: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(2 if gated else 0))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Seen, newest: bool = False) -> Tensor:
        """``[B, L, W]`` → ``[B, Q, W]``."""
        keys = self.norm_attention(x)
        x, queries, seen = (x[:, :1], keys[:, :1], seen.newest()) if newest else (x, keys, seen)
        x = x + self._gate(0, self.dropout(self.attend(queries, keys, seen)), queries)
        inner = self.norm_feed_forward(x)
        return x + self._gate(1, self.dropout(self.feed_forward(inner)), inner)

    def attend(self, queries: Tensor, keys: Tensor, seen: Seen) -> Tensor:
        """``[B, Q, W]`` and ``[B, L, W]`` → ``[B, Q, W]``."""
        q, k, v = self.query(queries), self.key(keys), self.value(keys)
        q, k, v = (_split(y, self.heads) for y in (q, k, v))  # [B, K, ·, w]
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        weight = scores.masked_fill(~seen.allowed.unsqueeze(1), -1e30).softmax(-1)
        out: Tensor = self.mix(_join(weight @ v))
        return out

    def _gate(self, i: int, branch: Tensor, inputs: Tensor) -> Tensor:
        return branch * torch.sigmoid(self.gates[i](inputs)) if len(self.gates) else branch


class HstuBlock(Block):
    """Pointwise attention: SiLU of scores and biases instead of a softmax, so that many weak signals add up.

        u, v, q, k = silu(P norm x)
        a_ij       = silu(q_i · k_j + p(position gap) + t(time gap)) / number of events that i sees
        x_i       += O(norm(Σ_j a_ij v_j) ⊙ u_i)

    Args:
        width: ``W``.
        heads: ``K``.
        length: distances in position with a bias of their own.
        dropout: before ``O``.
    """

    def __init__(self, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.value, self.query, self.key = (nn.Linear(width, width) for _ in range(4))
        self.by_position = SmallTable(length, heads)
        self.by_time = SmallTable(AGES, heads)
        nn.init.zeros_(self.by_position.weight)
        nn.init.zeros_(self.by_time.weight)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Seen, newest: bool = False) -> Tensor:
        """``[B, L, W]`` → ``[B, Q, W]``."""
        keys = self.norm_in(x)
        x, queries, seen = (x[:, :1], keys[:, :1], seen.newest()) if newest else (x, keys, seen)
        u, q = F.silu(self.gate(queries)), _split(F.silu(self.query(queries)), self.heads)
        k, v = (_split(F.silu(f(keys)), self.heads) for f in (self.key, self.value))
        bias = self.by_position(seen.distance.clamp(max=self.length - 1)) + self.by_time(seen.gap)  # [B, Q, L, K]
        allowed = seen.allowed.unsqueeze(1).to(x.dtype)
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + bias.permute(0, 3, 1, 2)
        weight = F.silu(scores) * allowed / allowed.sum(-1, keepdim=True)
        out: Tensor = x + self.mix(self.dropout(self.norm_out(_join(weight @ v)) * u))
        return out


def _split(x: Tensor, heads: int) -> Tensor:
    """``[B, L, W]`` → ``[B, K, L, w]``. No reshaping: ONNX Runtime cannot reshape an array of length 0."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def _join(x: Tensor) -> Tensor:
    """``[B, K, L, w]`` → ``[B, L, W]``."""
    return torch.cat(x.unbind(1), dim=-1)
