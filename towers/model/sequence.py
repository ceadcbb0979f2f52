"""Sequence encoders: a user's events, with their order, actions and time gaps → one vector.

Shapes: ``B`` users, ``L`` events (the newest first), ``H`` width of what an item contributes, ``W`` inner width.

    x_l = norm(P v_l) + position_l + action_l + age_l          [B, L, W]
    x   = block(… block(x))                                    each event sees itself and older ones
    s   = O norm(x_1)                                          [B, H], from the newest event

An example is one event with its own history, so that only the newest position is asked for: the last block computes
no other, which costs ``O(L)`` there instead of ``O(L²)``. Positions count from the newest event: "the one before"
means the same in a short history and in a long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.model.sequence_blocks import AGES, Block, Seen, age_bucket, block
from towers.model.small_tables import SmallTable


@dataclass(frozen=True)
class SequenceSettings:
    """A sequence encoder.

    Attributes:
        block: ``none``: no encoder.
            ``sasrec``: softmax attention and a feed-forward layer, pre-norm (Kang and McAuley, "Self-Attentive
            Sequential Recommendation", 2018). The plain choice.
            ``ligr``: the same with a learned gate on each of the two (Borisyuk et al., "From Features to Transformers:
            Redefining Ranking for Scalable Impact", 2025). Trains more steadily when there are many layers.
            ``hstu``: pointwise SiLU attention with biases by distance in position and in time (Zhai et al., "Actions
            Speak Louder than Words", 2024). For long histories with a clock, where how often counts.
        layers: blocks.
        heads: of each block's attention.
        width: ``W``; None: ``H``. The cost grows with its square: on a CPU 64 to 128, whatever ``H`` is.
        length: the newest events that are seen.
        dropout: in the blocks.
        weight: of the encoder's vector beside the pooled one, when training starts; it is learned.
    """

    block: Literal["none", "sasrec", "ligr", "hstu"] = "none"
    layers: int = 2
    heads: int = 2
    width: int | None = None
    length: int = 50
    dropout: float = 0.1
    weight: float = 0.3


class SequenceEncoder(nn.Module):
    """See above. Its vectors have an expected length of 1 before training, as embeddings have.

    Args:
        settings: see ``SequenceSettings``.
        dim: ``H``.
        n_actions: number of action codes.
    """

    def __init__(self, settings: SequenceSettings, dim: int, n_actions: int) -> None:
        super().__init__()
        width = settings.width or dim
        self.length = settings.length
        self.project = nn.Linear(dim, width, bias=False)
        self.norm_in = nn.LayerNorm(width)
        self.position = nn.Parameter(0.1 * torch.randn(settings.length, width))
        self.action = SmallTable(n_actions, width)
        self.age = SmallTable(AGES, width)
        nn.init.zeros_(self.action.weight)
        nn.init.zeros_(self.age.weight)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(block(settings.block, width, settings) for _ in range(settings.layers))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)
        nn.init.normal_(self.out.weight, std=(width * dim) ** -0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, mask: Tensor, action: Tensor, age: Tensor, rows: Tensor | None = None) -> Tensor:
        """Histories → ``[B, H]``; arbitrary, and finite, for one without events.

        Args:
            vectors: ``[B, L, H]``, or a table ``[n, H]``, which is projected before anything is gathered.
            mask: ``[B, L]`` bool, true where there is an event.
            action: ``[B, L]`` int64 action codes.
            age: ``[B, L]`` log1p of hours; 0 without a clock.
            rows: ``[B, L]`` int64 rows of the table.
        """
        n = self.length
        mask, action, age = mask[:, :n], action[:, :n], age[:, :n]
        nothing = ~mask.unsqueeze(-1)
        if rows is None:
            x = self.project(vectors[:, :n].masked_fill(nothing, 0.0))
        else:
            x = F.embedding(rows[:, :n], self.project(vectors)).masked_fill(nothing, 0.0)
        x = self.norm_in(x) + self.position[: mask.shape[1]]
        x = self.dropout(x + self.action(action) + self.age(age_bucket(age)))
        seen = Seen.of(mask, age)
        last = len(self.blocks) - 1
        for i, layer in enumerate(self.blocks):
            assert isinstance(layer, Block)
            x = layer(x, seen, newest=i == last)
        out: Tensor = self.out(self.norm_out(x.sum(1)))  # of one position, or of none
        return out
