"""Contrastive batches whose activations do not fit: embed in parts, and keep the vectors only.

Shapes: ``B`` examples, ``n`` rows, ``C`` rows of a part, ``D`` dim.

In-batch negatives want large batches, whose memory is mostly what the towers keep for the backward pass. GradCache (Gao
et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021) embeds part by part without
keeping anything, computes the loss of all vectors and its gradient with respect to them, then embeds each part once
more, with the random numbers of the first time, and sends its vectors' gradients back. That is activation checkpointing
of each part: torch does it, and this module cuts the parts. Value and gradient are those of the same parts embedded as
usual; a step costs one forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from towers.features import Batch, Ragged


def embed_rows(embed: Callable[[Tensor], Tensor], rows: Tensor, size: int | None) -> Tensor:
    """``[n, D]`` vectors of rows, in parts if there are more than ``size``.

    Args:
        embed: ``[C]`` rows → ``[C, D]``; each vector depends on its own row alone.
        rows: ``[n]``.
        size: ``C``; None: all at once.
    """
    if size is None or len(rows) <= size:
        return embed(rows)
    return torch.cat([_cached(embed, part) for part in torch.split(rows, size)])


def embed_examples(embed: Callable[[Batch], Tensor], batch: Batch, size: int | None) -> Tensor:
    """``[B, D]`` vectors of a batch's users, in parts if there are more than ``size``.

    Args:
        embed: a batch → ``[C, D]``.
        batch: ``B`` examples.
        size: ``C``; None: all at once.
    """
    if size is None or len(batch) <= size:
        return embed(batch)
    return torch.cat([_cached(embed, part) for part in parts(batch, size)])


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch cut into batches of ``size`` examples; the last may be smaller."""
    for start in range(0, len(batch), size):
        end = min(start + size, len(batch))
        yield Batch(**{f.name: _cut(getattr(batch, f.name), start, end) for f in fields(batch)})


def _cut(x: Any, start: int, end: int) -> Any:
    if isinstance(x, Ragged):
        first, last = int(x.offsets[start]), int(x.offsets[end])
        return Ragged(x.offsets[start : end + 1] - first, x.values[first:last])
    return None if x is None else x[start:end]


def _cached(embed: Callable[..., Tensor], part: Any) -> Tensor:
    out: Tensor = checkpoint(embed, part, use_reentrant=False)
    return out
