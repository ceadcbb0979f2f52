"""Latent semantic analysis: the tf-idf match of texts, in fewer dimensions.

Shapes: ``n`` documents, ``V`` words, ``d`` factors, ``k`` of them leading directions.

    ⟨φE, ψE⟩ = φ E Eᵀ ψᵀ ≈ ⟨φ, ψ⟩          φ, ψ: rows of X [n, V], tf-idf vectors of two texts
    E = [T, (I - TTᵀ) R]  [V, d]            X ≈ P Σ Tᵀ at rank k, R [V, d - k]: normals of variance 1/(d - k)

The leading directions T hold what many texts share, exactly. They alone would merge rare words, whose match says most;
these keep directions of their own, nearly at right angles. Nothing is learned from what users did.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from towers.errors import ConfigError
from towers.model.closed_form.bags import BagWeights, lists, tfidf, vectors
from towers.model.closed_form.factors import Factors, Progress
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.truncated import truncated_svd


def lsa(
    interactions: Interactions,
    dim: int,
    *,
    item: str,
    user: str | None = None,
    leading: float = 0.125,
    idf_power: float = 1.5,
    length_power: float = 0.5,
    seed: int = 0,
    progress: Progress,
) -> Factors:
    """Leading singular vectors of the tf-idf matrix of texts, and random directions for what they leave.

    When to use it: what a user says, or the jobs of her history say, should be found in the text of a job, and clicks
    are few to learn it from. Beside ``feature_ridge`` in ``model=blocks`` it finds what training never showed.

    Sources: Deerwester et al., "Indexing by Latent Semantic Analysis", 1990; for the rest: Johnson and Lindenstrauss,
    "Extensions of Lipschitz mappings into a Hilbert space", 1984.

    Args:
        interactions: the training events, with the features of users and items.
        dim: ``d``.
        item: a text or list of the items.
        user: one of the users that has its vocabulary (``vocabulary: items.NAME``) and so shares its encoder; the texts
            of those with training events count as documents too. None: users are their histories.
        leading: ``k / d``; 1: latent semantic analysis alone, 0: random projection alone.
        idf_power: the larger, the more rare words count.
        length_power: γ; ½: texts of any length count alike, less: long ones more.
        seed: of the random directions.
        progress: told what is being done.

    Returns:
        Factors by which a text scores about 1 with itself, on average over users and items.

    Raises:
        ConfigError: no such feature, ``leading`` not from 0 to 1, or ``k`` not below the numbers of words and texts.
    """
    texts = lists(interactions.item_features, item, "init.item")
    others = texts[:0]
    if user is not None:
        others = lists(interactions.user_features, user, "init.user")[torch.from_numpy(np.unique(interactions.user))]
    width = max(texts.shape[1], others.shape[1])
    documents = torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (texts, others)])
    progress("words", 0.0)
    bag = tfidf(documents, idf_power, length_power)
    x = vectors(bag, documents)
    k = round(leading * dim)
    if not 0 <= k <= dim or k >= min(x.shape):
        raise ConfigError(f"init.leading is {leading}; set it from 0 to 1, so that of model.dim={dim} fewer lead "
                          f"than there are texts ({x.shape[0]}) and words ({x.shape[1]})")  # fmt: skip
    progress("singular vectors", 0.1)
    table = _directions(sparse.csr_array(x, dtype=np.float32), dim, k, seed)
    squares = np.asarray(x.power(2).sum(axis=1)).ravel()
    sides = [squares[: len(texts)], squares[len(texts) :]] if len(others) else [squares, squares]
    table /= float(np.prod([max(side.mean(), 1e-12) for side in sides])) ** 0.25
    progress("singular vectors", 1.0)
    weights = BagWeights(table, bag.log_weight.weight[:, 0].clone(), length_power)
    return Factors(torch.from_numpy(x[: len(texts)] @ table.numpy()).float(), item_bags={item: weights})


def _directions(x: sparse.csr_array, dim: int, k: int, seed: int) -> Tensor:
    """``E [V, d]``."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randn(x.shape[1], dim - k, generator=generator) / math.sqrt(max(1, dim - k))
    if not k:
        return rest
    _, _, words = truncated_svd(x, k)
    return torch.cat([words, rest - words @ (words.T @ rest)], dim=1)
