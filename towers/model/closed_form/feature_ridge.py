"""Ridge regression from what is known of a user to the items she takes, at reduced rank.

Shapes: ``T`` users with training events, ``I`` items, ``V`` values of all features end to end, ``d`` factors.

    W = argmin ‖Y - ΦW‖² + λ ‖W‖²  =  Φᵀ (K + λI)⁻¹ Y        K = ΦΦᵀ  [T, T],  Y [T, I]: who took what

Of all W of rank d the best one is W Q Qᵀ, where Q [I, d] holds the leading right singular vectors of (K(K + λI)⁻¹)^½ Y:
the directions of the items in which the features explain most. A user is then the bag of her values in tables, with
the projections of her pretrained vectors, and an item its row of Q: a two-tower model with a dot product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from towers.errors import ConfigError
from towers.model.closed_form.bags import BagWeights, lists, tfidf, vectors
from towers.model.closed_form.factors import Factors, Progress
from towers.model.closed_form.interactions import Interactions
from towers.model.encoders import Bag


def feature_ridge(
    interactions: Interactions,
    dim: int,
    *,
    features: Mapping[str, float],
    regularisation: float = 0.15,
    idf_power: float = 1.0,
    length_power: float = 0.5,
    user_power: float = 0.0,
    progress: Progress,
) -> Factors:
    """Kernel ridge regression on texts, lists and pretrained vectors of the users, as tables of a two-tower model.

    When to use it: users known by their text alone (an occupation, a résumé, a query), none of whom comes back, and at
    most some 10,000 of them in training: dense ``[T, T]`` systems are solved. An item that nobody took gets nothing;
    put ``lsa`` beside it, in ``model=blocks``. Several readings of one text (words, characters, a sentence's meaning)
    explain more together than each does.

    Sources: Saunders, Gammerman and Vovk, "Ridge Regression Learning Algorithm in Dual Variables", 1998; the reduced
    rank: Mukherjee and Zhu, "Reduced Rank Ridge Regression and Its Kernel Extensions", 2011.

    Args:
        interactions: the training events, with the features of users.
        dim: ``d``.
        features: weights of the users' texts, lists, vectors and sentences in the kernel, by name.
        regularisation: λ, beside a kernel whose diagonal is 1 on average.
        idf_power: of texts and lists: the larger, the more rare values count.
        length_power: γ, of texts and lists; ½: those of any length count alike.
        user_power: a user of ``n`` items counts ``n^-power`` for each of them.
        progress: told what is being done.

    Raises:
        ConfigError: no features, one that is not there, weights or a λ not above 0, or ``dim`` above ``T`` or ``I``.
    """
    if not features or not all(w > 0 for w in features.values()):
        raise ConfigError(
            f"init.features is {dict(features)}; name texts, lists or vectors of the users, at weights above 0"
        )
    if regularisation <= 0:
        raise ConfigError(f"init.regularisation is {regularisation}; set a positive number")
    clicks = interactions.matrix()
    counts = np.diff(clicks.indptr)
    trained = np.flatnonzero(counts)
    if dim > min(len(trained), clicks.shape[1]):
        raise ConfigError(f"model.dim is {dim}, and {len(trained)} users of {clicks.shape[1]} items have no so many "
                          "directions; lower model.dim")  # fmt: skip
    progress("comparing users", 0.0)
    parts: dict[str, tuple[Any, float]] = {}  # [T, V_k] of each feature, and its share of K
    bags: dict[str, Bag] = {}
    kernel = np.zeros((len(trained), len(trained)))
    for name, weight in features.items():
        dense = _dense(interactions.user_features.get(name))
        if dense is None:
            ids = lists(interactions.user_features, name, "init.features")[torch.from_numpy(trained)]
            bags[name] = tfidf(ids, idf_power, length_power)
            part = vectors(bags[name], ids)
        else:
            part = dense[trained]
        product = part @ part.T
        share = weight / sum(features.values()) / max(product.trace() / len(trained), 1e-12)
        kernel += share * (product if dense is not None else product.toarray())
        parts[name] = part, share
    y = (sparse.diags_array(counts[trained].astype(np.float64) ** -user_power) @ clicks[trained]).tocsr()
    progress("solving", 0.1)
    k, u = linalg.eigh(kernel, overwrite_a=True, driver="evd")
    k = k.clip(min=0.0)
    root = u * np.sqrt(k / (k + regularisation))  # L of K (K + λI)⁻¹ = L Lᵀ
    progress("solving", 0.5)
    explained = root.T @ ((y @ y.T) @ root)
    size, p = linalg.eigh(explained, overwrite_a=True, driver="evd")
    size, p = size[::-1][:dim].clip(min=0.0), p[:, ::-1][:, :dim]
    there = size > 1e-9 * max(size[0], 1e-300)  # singular values, squared; what is no direction stays at zero
    q = (y.T @ (root @ p)) * np.where(there, np.where(there, size, 1.0) ** -0.5, 0.0)  # [I, d]
    dual = u @ ((u.T @ (y @ q)) / (k + regularisation)[:, None])  # [T, d]
    scale = np.where(there, size, 1.0) ** 0.25
    tables = {n: torch.from_numpy(share * (part.T @ (dual / scale))).float() for n, (part, share) in parts.items()}
    progress("solving", 1.0)
    return Factors(
        torch.from_numpy(q * scale).float(),
        user_bags={n: BagWeights(tables[n], b.log_weight.weight[:, 0].clone(), length_power) for n, b in bags.items()},
        user_vectors={n: t for n, t in tables.items() if n not in bags},
    )


def _dense(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """``[U, w]`` vectors without the flag of those that are missing, which are zero; None: no vectors."""
    if values is None or values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
        return None
    return values[:, :-1].astype(np.float64)
