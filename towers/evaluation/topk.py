"""Exact top-k over wide rows, in two passes, with ties broken the same way everywhere.

Shapes: ``B`` rows, ``W`` columns, ``G`` columns of a group, ``k`` places.

``torch.topk`` alone takes most of the time of a ranking on a CPU. Here the row is cut into groups of
neighbouring columns; only the ``k`` groups with the greatest maxima can hold the ``k`` greatest
entries (each group left out has ``k`` maxima before it), so one streaming pass for the maxima and two
selections over a few thousand entries give the same answer several times sooner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROUP = 64  # measured from 20k to 1M columns: 16 makes the reduction slow, 256 the second selection long
_WORTH = 8  # groups for each place below which one pass is the faster one (50k columns for k = 100)


def padded(width: int) -> int:
    """The least multiple of ``GROUP`` that holds ``width`` columns."""
    return -(-width // GROUP) * GROUP


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` greatest entries of each row, the greatest first; of equal ones the lower column first.

    Which of several equal entries takes the last place follows the same rule, so the answer depends
    on neither the device nor the library's version.

    Args:
        scores: ``[B, W]``, contiguous, without NaN; ``W`` a multiple of ``GROUP`` (``padded``) and at
            least ``k``. Entries of ``-inf`` may come out in any order, after all others.
        k: how many.

    Returns:
        ``[B, k]`` entries and ``[B, k]`` int64 columns.
    """
    rows, width = scores.shape
    groups = width // GROUP
    if groups < _WORTH * k:
        return _select(scores, k)
    grouped = scores.view(rows, groups, GROUP)
    _, leaders = _select(grouped.amax(dim=2), k)
    leaders = leaders.sort(dim=1).values  # ascending, so that position still means column order
    flat = leaders + torch.arange(rows, device=scores.device)[:, None] * groups
    members = scores.view(rows * groups, GROUP).index_select(0, flat.view(-1)).view(rows, k * GROUP)
    values, places = _select(members, k)
    return values, leaders.gather(1, places // GROUP) * GROUP + places % GROUP


def _select(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``top_k`` in one pass."""
    if k >= x.shape[1]:
        return _sorted(x, k)
    values, columns = torch.topk(x, k + 1, dim=1)
    equal = (values[:, :-1] == values[:, 1:]) & (values[:, 1:] > -math.inf)
    contested = equal[:, -1]  # for the last place; torch.topk picks any of the equals
    unordered = equal.any(dim=1) & ~contested
    values, columns = values[:, :k], columns[:, :k]
    if unordered.any():
        by_column, order = columns[unordered].sort(dim=1)
        values[unordered], order = values[unordered].gather(1, order).sort(dim=1, descending=True, stable=True)
        columns[unordered] = by_column.gather(1, order)
    if contested.any():
        values[contested], columns[contested] = _sorted(x[contested], k)
    return values, columns


def _sorted(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``top_k`` by a stable sort of whole rows."""
    values, columns = x.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns[:, :k]
