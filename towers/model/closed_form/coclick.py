"""Concepts that are clicked together get vectors that lie together: the closed form of ``baselines/coclick``.

Shapes: ``V`` values of a text or list, ``d`` factors.

    E' = (I + β/2 S) E        ⟨φE', ψE'⟩ ≈ φ (I + βS + …) ψᵀ        E: ``lsa``'s directions, ⟨φE, ψE⟩ ≈ ⟨φ, ψ⟩

``S``, symmetric and with no eigenvalue above 1, says which values the same users click. Half of β on either side, since
both sides of the inner product are smoothed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

from towers.errors import ConfigError
from towers.model.baselines.coclick import together
from towers.model.closed_form.bags import lists, tfidf, vectors
from towers.model.closed_form.factors import Factors, Progress
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.lsa import lsa
from towers.model.graph import inverse_root


def coclick(
    interactions: Interactions,
    dim: int,
    *,
    item: str,
    smoothing: float = 2.0,
    user_power: float = 1.0,
    leading: float = 0.125,
    idf_power: float = 1.5,
    length_power: float = 0.5,
    seed: int = 0,
    progress: Progress,
) -> Factors:
    """The tf-idf match of texts or lists in fewer dimensions, smoothed by what is clicked together.

    When to use it: new jobs, known concepts, and clicks to learn from which concepts go together; where ``lsa`` has
    nothing but the words themselves. Users are their histories.

    Sources: see ``lsa`` and ``baselines.coclick``.

    Args:
        interactions: the training events, with the features of items.
        dim: ``d``.
        item: a text or list of the items.
        smoothing: β; 0 is ``lsa``.
        user_power: the larger, the less users with many values count.
        leading: see ``lsa``.
        idf_power: likewise.
        length_power: likewise.
        seed: of the random directions.
        progress: told what is being done.

    Raises:
        ConfigError: as ``lsa`` does, or a negative ``smoothing``.
    """
    if smoothing < 0:
        raise ConfigError(f"init.smoothing is {smoothing}; set it to at least 0")
    plain = lsa(interactions, dim, item=item, leading=leading, idf_power=idf_power, length_power=length_power,
                seed=seed, progress=progress)  # fmt: skip
    weights = plain.item_bags[item]
    texts = lists(interactions.item_features, item, "init.item")
    bags = vectors(tfidf(texts, idf_power, length_power), texts)
    near = similarity(together(interactions, bags), user_power)
    table = weights.table + smoothing / 2 * torch.from_numpy(near @ weights.table.numpy()).to(weights.table.dtype)
    return Factors(torch.from_numpy(bags @ table.numpy()).float(), item_bags={item: replace(weights, table=table)})


def similarity(values: Interactions, user_power: float) -> sparse.csr_array:
    """``[V, V]`` float32, symmetric: how often two values are clicked together, by the roots of their sums; diagonal 0.

    Args:
        values: users with the values they clicked, each pair once.
        user_power: the larger, the less users with many values count.
    """
    y = values.matrix()
    users = np.maximum(np.asarray(y.sum(axis=1)).ravel(), 1.0)
    pairs = sparse.csr_array(y.T @ sparse.diags_array(users**-user_power) @ y)
    pairs.setdiag(0)
    pairs.eliminate_zeros()
    root = inverse_root(np.asarray(pairs.sum(axis=1)).ravel())
    return sparse.csr_array(sparse.diags_array(root) @ pairs @ sparse.diags_array(root), dtype=np.float32)
