"""Embedding tables with fewer rows than values: what many values share instead of a row for each.

Shapes: ``V`` values, ``R`` rows, ``d`` embedding width. The special ids (padding, missing, unknown) keep rows of
their own, which start at zero like those of a full table.

=====================  =====================================  ================  =============================
table                  the vector of value v                  rows              two values are the same
=====================  =====================================  ================  =============================
``hashed``             ``E[h₁(v)] + E[h₂(v)]``                R                 hardly ever: in about R⁻² / 2
``quotient_remainder`` ``E[v mod R] ⊙ F[v div R]``            R + ⌈V / R⌉       never
=====================  =====================================  ================  =============================
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from towers.features import FIRST

PRIME = 2**31 - 1  # products of two numbers below it fit into 63 bits, here and in ONNX
_MULTIPLIERS, _OFFSETS = (1_540_483_477, 1_103_515_245), (668_265_263, 374_761_393)


class HashedTable(nn.Module):
    """Each value is the sum of two rows, chosen by two independent hash functions.

    ``h(v) = ((a v + b) mod p) mod R`` (Carter and Wegman, 1979), of two keys that the value itself decides: its id is
    its rank in a vocabulary and another one tomorrow. With one function two of a thousand values in a
    thousand rows would often be the same; with two they share one row, and the other tells them apart ("Hash Embeddings
    for Efficient Word Representations", Svenstrup, Hansen and Winther, 2017, with the importance of both fixed at 1;
    "Getting Deep Recommenders Fit: Bloom Embeddings", Serrà and Karatzoglou, 2017).

    When to use it: a vocabulary that grows from day to day, since the table has the same rows whatever ``V``; rare
    values, of which few matter. Frequent ids that are learned by heart want a full table.

    Args:
        rows: ``R``.
        dim: ``d``.
        sparse: whether its gradient is.
        padding_idx: an id whose row stays at zero.
        keys: ``[V, 2]`` int32 below ``PRIME``, what is hashed in place of each id; None: the id.
    """

    def __init__(
        self, rows: int, dim: int, sparse: bool, padding_idx: int | None = None, keys: Tensor | None = None
    ) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("keys", keys, persistent=False)  # of the data, like encoded features
        self.keys: Tensor | None
        self.table = nn.Embedding(FIRST + rows, dim, padding_idx=padding_idx, sparse=sparse)
        with torch.no_grad():
            self.table.weight.normal_(std=(2 * dim) ** -0.5)  # the sum of two has an expected length of 1
            self.table.weight[:FIRST] = 0.0

    def forward(self, ids: Tensor) -> Tensor:
        """``[…]`` ids → ``[…, d]``."""
        v = ids.long()
        keys = (v, v) if self.keys is None else self.keys[v].long().unbind(-1)
        hashes = zip(keys, _MULTIPLIERS, _OFFSETS, strict=True)
        places = [FIRST + (k * a + b) % PRIME % self.rows for k, a, b in hashes]
        special = v < FIRST
        first, second = (self.table(torch.where(special, v, at)) for at in places)
        out: Tensor = torch.where(special.unsqueeze(-1), first, first + second)
        return out


class QuotientRemainderTable(nn.Module):
    """Each value is the elementwise product of a row by its remainder and a row by its quotient.

    "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems" (Shi et al.,
    2020): the pair (remainder, quotient) is the value's alone, hence no two values are the same. Quotients start as
    random signs, so that values with one remainder start as far apart as any two.

    When to use it: a large vocabulary that does not grow, all of whose values matter, on a card that cannot hold it.
    A new value may need a new quotient, and with it a larger table; then use a hashed one.

    Args:
        values: ``V``, the special ones included.
        rows: ``R``.
        dim: ``d``.
        sparse: whether the gradients are.
        padding_idx: an id whose row stays at zero.
    """

    def __init__(self, values: int, rows: int, dim: int, sparse: bool, padding_idx: int | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.remainder = nn.Embedding(FIRST + rows, dim, padding_idx=padding_idx, sparse=sparse)
        self.quotient = nn.Embedding(1 + -(-(values - FIRST) // rows), dim, sparse=sparse)
        with torch.no_grad():
            self.remainder.weight.normal_(std=dim**-0.5)
            self.remainder.weight[:FIRST] = 0.0
            self.quotient.weight.bernoulli_().mul_(2).sub_(1)
            self.quotient.weight[0] = 1.0  # of the special ids

    def forward(self, ids: Tensor) -> Tensor:
        """``[…]`` ids → ``[…, d]``."""
        v = ids.long()
        special, ordinary = v < FIRST, (v - FIRST).clamp(min=0)
        remainder = self.remainder(torch.where(special, v, FIRST + ordinary % self.rows))
        out: Tensor = remainder * self.quotient(torch.where(special, 0, 1 + ordinary // self.rows))
        return out
