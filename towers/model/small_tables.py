"""Tables that a batch reads many times: of actions, ages, positions, weights of words.

A step reads such a table once for each event of each history, some hundred thousand times. Torch sums its dense
gradient on a CPU with a call for each of them, 60 to 100 ns, which was a sixth of a step of a mean over histories and
most of one of HSTU's; ``index_add_`` takes 2 to 5 ns where rows are narrow, and as long where they are wide.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallTable(nn.Embedding):
    """``nn.Embedding`` with the same values, weights and gradients, the latter summed faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """``[...]`` rows → ``[..., d]``."""
        w = self.weight
        if self.sparse or w.is_cuda or not (self.training and w.requires_grad and torch.is_grad_enabled()):
            out: Tensor = super().forward(input)
            return out
        read: Tensor = _Read.apply(input, w, self.padding_idx)  # type: ignore[no-untyped-call]
        return read


class _Read(torch.autograd.Function):
    """Rows of a table; its gradient is dense."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.padding = table.shape, padding
        return F.embedding(rows, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (rows,) = ctx.saved_tensors
        out = grad.new_zeros(ctx.shape).index_add_(0, rows.flatten(), grad.reshape(-1, ctx.shape[1]))
        if ctx.padding is not None:
            out[ctx.padding] = 0.0
        return None, out, None
