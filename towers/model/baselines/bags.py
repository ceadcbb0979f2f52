"""Encoded features → weighted bags: tf-idf with powers to tune.

Shapes: ``n`` rows, ``W`` columns of an encoded list, ``V`` values of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from towers.errors import ConfigError
from towers.features import FIRST
from towers.model.baselines.baseline import Features


def bag(encoded: NDArray[Any], values: int) -> sparse.csr_array:
    """``[n, V]``: how often a row has a value; absent and unknown values leave no trace.

    Args:
        encoded: ``[n]`` or ``[n, W]`` vocabulary ids; only texts with ``repeats`` have one several times.
        values: ``V``, above all ids.
    """
    ids = encoded if encoded.ndim == 2 else encoded[:, None]
    row, place = np.nonzero(ids >= FIRST)
    ones = np.ones(len(row), np.float32)
    return sparse.csr_array((ones, (row, ids[row, place])), shape=(len(ids), values))


def inverse_document_frequency(bags: sparse.csr_array) -> NDArray[np.float32]:
    """``[V]``: log of rows over rows that have the value; 0 for a value that none has."""
    having = bags.astype(bool).sum(axis=0)
    return np.asarray(np.log(bags.shape[0] / np.maximum(having, 1)) * (having > 0), np.float32)


def weighted(bags: sparse.csr_array, weights: NDArray[np.float32], length_power: float) -> sparse.csr_array:
    """Bags with a weight for each value, each row divided by ``length^length_power``; 1 makes inner products cosines.

    Args:
        bags: ``[n, V]``.
        weights: ``[V]``.
        length_power: how far long rows are shortened.
    """
    heavy = sparse.csr_array(bags @ sparse.diags_array(weights))
    length = np.sqrt(heavy.power(2).sum(axis=1))
    shrink = np.where(length > 0, np.maximum(length, 1e-12) ** -length_power, 0.0)
    return sparse.csr_array(sparse.diags_array(shrink.astype(np.float32)) @ heavy, dtype=np.float32)


def crossed(bags: Sequence[sparse.csr_array]) -> sparse.csr_array:
    """Products of values, one from each bag: the inner product of two crossed rows is that of the parts, multiplied.

    Args:
        bags: ``[n, V_1]``, ``[n, V_2]`` …

    Returns:
        ``[n, V]`` where a column is a combination that occurs, ``V`` of them; which one it is depends only on where
        the bags have entries, so that the same bags with other weights have the same columns.
    """
    first, *others = bags
    for other in others:
        counts = np.diff(first.indptr)
        pairs = counts * np.diff(other.indptr)
        row = np.repeat(np.arange(first.shape[0]), pairs)
        within = np.arange(len(row)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        width = np.maximum(np.diff(other.indptr), 1)[row]
        left, right = first.indptr[row] + within // width, other.indptr[row] + within % width
        combination = first.indices[left].astype(np.int64) * other.shape[1] + other.indices[right]
        names, column = np.unique(combination, return_inverse=True)
        entries = (first.data[left] * other.data[right], (row, column))
        first = sparse.csr_array(entries, shape=(first.shape[0], len(names)))
    return first


def checked(weights: Mapping[str, float] | None, features: Features, side: str) -> Mapping[str, float]:
    """The weights, if bags can be made of what they name.

    Args:
        weights: by feature, or by features joined with ``*``.
        features: encoded features that there are.
        side: ``user`` or ``item``, for the message.

    Raises:
        ConfigError: no features, one that is not there or not made of values, or a weight that is not positive.
    """
    there = f"the {side} features are {sorted(features)}"
    if not weights or min(weights.values()) <= 0:
        raise ConfigError(f"model.features is {weights}; set positive weights, e.g. {{title: 1.0}}; {there}")
    for name in (part for names in weights for part in names.split("*")):
        if name not in features:
            raise ConfigError(f"model.features names {name!r}; {there}")
        if not np.issubdtype(features[name].dtype, np.integer):
            raise ConfigError(
                f"model.features names {name!r}, which is a number or a vector; name texts, categories and lists, or "
                "give it buckets in the data config"
            )
    return weights
