"""Blocks on one scale, so that a weight means the same whatever the blocks and the data are.

Shapes: ``B`` queries, ``I`` candidates, ``D`` width.

    spread² = mean_b var_i ⟨q_b, c_i⟩ = mean_b q_bᵀ Cov(c) q_b
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from towers.model.blocks import Blocks
from towers.model.two_tower import TwoTower


@torch.no_grad()
def spread(queries: Tensor, candidates: Tensor) -> float:
    """How far apart a query's scores lie: their standard deviation over all candidates, root-mean-squared over queries.

    It is a quadratic form in the candidates' covariance, so that no score is computed.

    Args:
        queries: ``[B, D]``.
        candidates: ``[I, D]``.
    """
    centred = candidates - candidates.mean(0)
    covariance = centred.T @ centred / len(centred)
    return float(((queries @ covariance) * queries).sum(1).mean().sqrt())


@torch.no_grad()
def balance(model: Blocks, embed: Callable[[TwoTower], tuple[Tensor, Tensor]]) -> None:
    """Divide the blocks' weights by the spread of their scores.

    When to use it: with ``model.balanced``, where blocks come from closed forms whose scores have scales of their own
    (a fold-in gives a click about 1, a truncated SVD what the popularity powers make of it). What ranks is only how
    far a score stands out from a query's others, hence the spread, not the size. One number for all queries rather
    than one for each: a fold-in's scores are flat for those of whom it knows little, which is worth keeping.

    Args:
        model: whose weights were set for scores of spread 1.
        embed: a block → queries ``[B, D_k]`` of known users and candidates ``[I, D_k]``.
    """
    for k, name in enumerate(model.names):
        value = spread(*embed(model.block(name)))
        if value > 0:  # a block that says nothing yet has no scale
            model.log_weight[k] -= math.log(value)
