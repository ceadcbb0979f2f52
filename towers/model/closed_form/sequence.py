"""Truncated SVD of the sequence-kNN matrix: where a next-item model starts.

Shapes: ``E`` events, ``I`` items, ``d`` factors.

    C_ij = Σ_users Σ_{i before j} λ^{lag - 1}  (+ β when j stands before i)        lag: positions between the two
    S    = D^{-a} C D^{-b} ≈ P Σ Qᵀ                                                D: events of each item

An item stands in a history as ``P Σ^γ`` and as a candidate as ``Q Σ^γ``, with γ = ½ for S itself: two tables, since
what follows a purchase is not what resembles it. With histories pooled by falling weights this is sequence-kNN with a
smoothed matrix.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from towers.errors import ConfigError, DataError
from towers.model.closed_form.factors import Factors, Progress
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.truncated import truncated_svd, unit


def sequence_svd(
    interactions: Interactions,
    dim: int,
    *,
    decay: float = 0.85,
    backward: float = 0.3,
    history_power: float = 0.25,
    candidate_power: float = 0.4,
    singular_power: float = 0.5,
    progress: Progress,
) -> Factors:
    """Truncated SVD of the sequence-kNN matrix, for the tables of a next-item model.

    When to use it: ordered logs, with ``model.history.pooling=lags`` and ``table=separate``; seconds for some ten
    thousand items. On logs of a few hundred thousand events a next-item model started at random stays behind it,
    whatever the encoder.

    Source: the matrix is that of sequence-aware neighbourhood models (Ludewig and Jannach, "Evaluation of
    Session-based Recommendation Algorithms", 2018); factorising it is how word vectors came to be understood (Levy and
    Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", 2014).

    Args:
        interactions: the training events, in order.
        dim: ``d``.
        decay: λ, weight of a pair for each further position between the two.
        backward: β, weight of a pair in the wrong order; 1: order does not count.
        history_power: ``a``; the larger, the less popular items count in a history.
        candidate_power: ``b``; the larger, the less popular items are recommended.
        singular_power: share of the singular values on either side, γ; below 1/2 rare pairs count more.
        progress: told what is being done.

    Returns:
        Factors whose rows have a mean square length of 1 on either side, as embeddings before training have. Items that
        never stood beside another one get zeros.

    Raises:
        DataError: the log has no order.
        ConfigError: ``dim`` is not below the number of items.
    """
    if interactions.time is None:
        raise DataError("init=sequence_svd needs the order of a user's events, and this log has none",
                        cure="name events.time or events.order in the data config, or use init=svd")  # fmt: skip
    if dim >= interactions.n_items:
        raise ConfigError(f"model.dim is {dim}, and the matrix of {interactions.n_items} items has fewer singular "
                          "vectors than that; lower model.dim")  # fmt: skip
    progress("pairs", 0.0)
    counts = followers(interactions, decay, backward)
    events = np.maximum(np.bincount(interactions.item, minlength=interactions.n_items), 1).astype(np.float64)
    matrix = sparse.diags_array(events**-history_power) @ counts @ sparse.diags_array(events**-candidate_power)
    progress("singular vectors", 0.1)
    left, values, right = truncated_svd(matrix.astype(np.float32).tocsr(), dim)
    progress("singular vectors", 1.0)
    scale = values**singular_power
    return Factors(item=unit(right * scale), history=unit(left * scale))


def followers(
    interactions: Interactions, decay: float, backward: float, user_power: float = 0.0, reach: int | None = None
) -> sparse.csr_array:
    """``[I, I]``: how often, and how closely, one item (row) was followed by another (column).

    Events at the same time do not follow one another. One pass over the log for each lag, until weights are negligible.

    Args:
        interactions: the training events, in order.
        decay: weight of a pair for each further position between the two.
        backward: weight of a pair in the wrong order.
        user_power: pairs of a user with ``n`` events count ``n^-power``: the larger, the less busy users count.
        reach: most positions between the two; None: any number.
    """
    user, item, time = interactions.user, interactions.item, interactions.time
    assert time is not None
    share = np.maximum(np.bincount(user, minlength=interactions.n_users), 1.0) ** -user_power
    total = sparse.csr_array((interactions.n_items, interactions.n_items), dtype=np.float64)
    for lag in range(1, len(user) if reach is None else min(reach + 1, len(user))):
        weight = decay ** (lag - 1)
        same = user[lag:] == user[:-lag]
        if weight < 1e-3 or not same.any():
            break
        after = same & (time[lag:] > time[:-lag]) & (item[lag:] != item[:-lag])
        rows, columns = item[:-lag][after], item[lag:][after]
        weights = weight * share[user[lag:][after]]
        total = total + sparse.csr_array((weights, (rows, columns)), shape=total.shape)
    return (total + backward * total.T).tocsr()
