"""iALS: matrix factorisation of implicit feedback, each side solved exactly in turn.

Shapes: ``n`` rows that are solved for, ``m`` rows that are held fixed, ``L`` most events of a row in a block, ``d``
factors.

    Σ_{(u,i) ∈ S} w_ui (⟨u, v_i⟩ - 1)²  +  α₀ Σ_{u,i} ⟨u, v_i⟩²  +  reg Σ_u (n_u + α₀ m)^ν ‖u‖²  +  (the same for items)

    u = (α₀ G + λ_u I + Σ w v vᵀ)⁻¹ Σ w v         G = Σ_i v_i v_iᵀ,  λ_u = reg (n_u + α₀ m)^ν

In the eigenbasis of G the first two terms are a diagonal matrix A. A user has few events against d, so that Woodbury's
identity turns her d × d system into one as small as her history X (``[L, d]``, rows √w v):

    u = A⁻¹ Xᵀ (I + X A⁻¹ Xᵀ)⁻¹ √w

which is what makes hundreds of factors cheap: a job with three clicks costs a 3 × 3 system. Both sides are rotated into
that basis, which changes no score.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from towers.errors import ConfigError
from towers.features import FIRST
from towers.model.closed_form.factors import Factors, Progress
from towers.model.closed_form.interactions import Interactions
from towers.model.ridge import Ridge

_BLOCK = 1 << 22  # entries of a block's [rows, L, d]: larger ones leave the cache


def ials(
    interactions: Interactions,
    dim: int,
    *,
    alpha0: float = 0.01,
    reg: float = 0.001,
    nu: float = 1.0,
    iterations: int = 8,
    content: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress,
) -> Factors:
    """iALS, or its collective form if there is content.

    When to use it: few clicks for each item, where it generalises better than ``svd``; and with ``content`` wherever
    items say something of themselves. Users are folded in (``model.history.pooling=ridge``), or, a little worse,
    pooled linearly (``mean`` with ``table=separate``).

    Sources: Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", 2008; Rendle, Krichene,
    Zhang and Koren, "Revisiting the performance of iALS on item recommendation benchmarks", 2022 (α₀, reg and ν as
    there); the collective form: Singh and Gordon, "Relational learning via collective matrix factorization", 2008.

    Args:
        interactions: the training events.
        dim: ``d``.
        alpha0: weight of all pairs without a click, α₀: larger where the catalogue is small or clicks are many.
        reg: strength of the ridge.
        nu: how the ridge grows with the number of events, ν; 1: with every event, 0: not.
        iterations: rounds, each of which solves for users and for items.
        content: weights by item feature (ids or lists of ids): each value counts as one more user, who clicked the
            items that have it.
        seed: of the first item vectors.
        progress: told what is being done.

    Raises:
        ConfigError: ``content`` names what is no categorical feature of the items.
    """
    clicks = interactions.matrix()
    rows = sparse.vstack([clicks, *_content(interactions, content or {})], format="csr")
    columns = rows.T.tocsr()
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(interactions.n_items, dim, generator=generator) * (0.1 * dim**-0.5)
    for i in range(iterations):
        progress(f"iALS, round {i + 1} of {iterations}", i / iterations)
        v, g = eigenbasis(v)
        u = solve(rows, v, alpha0 * g, Ridge(reg, nu, alpha0 * rows.shape[1]))
        u, g = eigenbasis(u)
        v = solve(columns, u, alpha0 * g, Ridge(reg, nu, alpha0 * rows.shape[0]))
    v, g = eigenbasis(v)
    ridge = Ridge(reg, nu, alpha0 * rows.shape[1])
    mean_events = torch.tensor(clicks.sum() / max(1, interactions.n_users))
    linear = v / (alpha0 * g + ridge.of(mean_events))
    progress("iALS", 1.0)
    return Factors(v, linear, gram=alpha0 * g, ridge=ridge)


def eigenbasis(v: Tensor) -> tuple[Tensor, Tensor]:
    """``[m, d]`` vectors rotated so that ``VᵀV`` is diagonal, and its diagonal ``[d]``."""
    values, basis = torch.linalg.eigh(v.T @ v)
    return v @ basis, values.clamp(min=0.0)


def solve(events: sparse.csr_array, fixed: Tensor, gram: Tensor, ridge: Ridge) -> Tensor:
    """One side given the other.

    Args:
        events: ``[n, m]`` weights.
        fixed: ``[m, d]``, with ``VᵀV`` diagonal.
        gram: ``[d]`` that diagonal, times α₀.
        ridge: λ of each row.

    Returns:
        ``[n, d]``; zeros for rows without events.
    """
    d = fixed.shape[1]
    start, counts = events.indptr[:-1], np.diff(events.indptr)
    item, weight = torch.from_numpy(events.indices.astype(np.int64)), torch.from_numpy(events.data)
    total = torch.from_numpy(np.asarray(events.sum(axis=1), np.float32).ravel())
    out = torch.zeros(events.shape[0], d)
    order = np.argsort(counts, kind="stable")
    at = int(np.searchsorted(counts[order], 1))
    while at < len(order):
        length = int(counts[order[at]])
        # rows of about one length share a block: at most a fifth longer than its shortest
        most = int(np.searchsorted(counts[order], max(length + 1, int(length * 1.2)), side="right"))
        end = min(most, at + max(1, _BLOCK // (max(length, min(length, d)) * d)))
        rows, length = order[at:end], int(counts[order[end - 1]])
        there = np.arange(length) < counts[rows][:, None]
        place = torch.from_numpy(np.where(there, start[rows][:, None] + np.arange(length), 0))
        root = torch.where(torch.from_numpy(there), weight[place], 0.0).sqrt()  # [B, L]
        x = fixed[item[place]] * root.unsqueeze(-1)  # [B, L, d]
        here = torch.from_numpy(rows)
        a = gram + ridge.of(total[here]).unsqueeze(1)  # [B, d]
        out[here] = _dual(x, a, root) if length <= d else _primal(x, a, root)
        at = end
    return out


def _dual(x: Tensor, a: Tensor, root: Tensor) -> Tensor:
    """``A⁻¹ Xᵀ (I + X A⁻¹ Xᵀ)⁻¹ √w``: systems of the size of the history."""
    y = x / a.unsqueeze(1)
    system = y @ x.transpose(1, 2)
    system.diagonal(dim1=1, dim2=2).add_(1.0)
    share = torch.cholesky_solve(root.unsqueeze(-1), torch.linalg.cholesky(system))
    return (share.transpose(1, 2) @ y).squeeze(1)


def _primal(x: Tensor, a: Tensor, root: Tensor) -> Tensor:
    """``(A + XᵀX)⁻¹ Xᵀ √w``: systems of size d, for rows with more events than that."""
    system = x.transpose(1, 2) @ x + torch.diag_embed(a)
    right = x.transpose(1, 2) @ root.unsqueeze(-1)
    return torch.cholesky_solve(right, torch.linalg.cholesky(system)).squeeze(-1)


def _content(interactions: Interactions, weights: Mapping[str, float]) -> list[sparse.csr_array]:
    """``[V, I]`` for each feature: its weight where an item has a value."""
    out = []
    for name, weight in weights.items():
        ids = interactions.item_features.get(name)
        if ids is None or not np.issubdtype(ids.dtype, np.integer):
            known = [k for k, v in interactions.item_features.items() if np.issubdtype(v.dtype, np.integer)]
            raise ConfigError(f"init.content names {name!r}; there are the categorical item features {known}")
        wide = ids.reshape(len(ids), -1)
        row, column = np.nonzero(wide >= FIRST)
        pairs = np.unique(np.stack([wide[row, column].astype(np.int64) - FIRST, row]), axis=1)
        shape = (int(pairs[0].max(initial=-1)) + 1, interactions.n_items)
        out.append(sparse.csr_array((np.full(pairs.shape[1], weight, np.float32), (pairs[0], pairs[1])), shape=shape))
    return out
