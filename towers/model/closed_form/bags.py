"""Texts and lists as tf-idf vectors, weighted exactly as a ``Bag`` weighs them.

Shapes: ``n`` rows, ``W`` list length, ``V`` vocabulary size, ``d`` factors.

    φ = Σ w_v / (Σ w)^γ over the values of a row,   w = idf^p

A closed form that works on φ gives tables ``E`` with φE as vectors, which is what the bag then computes. With γ = ½
rows have about the same length, as in a cosine: the sum of the weights stands for the sum of their squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from towers.errors import ConfigError
from towers.features import FIRST, PAD, FeatureInfo, Kind
from towers.model.closed_form.content import pooling_matrix
from towers.model.encoders import Bag


@dataclass(frozen=True)
class BagWeights:
    """What a closed form writes into a ``Bag``.

    Attributes:
        table: ``[V, d]`` embeddings. ``V`` may be less than the bag's: other values get zeros.
        log_weight: ``[V]`` logarithms of the values' weights.
        length_power: γ.
    """

    table: Tensor
    log_weight: Tensor
    length_power: float

    @torch.no_grad()
    def write(self, bag: Bag) -> None:
        """Put them into a bag, which keeps its own weights of values beyond ``V``."""
        bag.table.weight.zero_()
        bag.table.weight[: len(self.table)] = self.table.to(bag.table.weight.dtype)
        bag.log_weight.weight[: len(self.log_weight), 0] = self.log_weight
        bag.length_power.fill_(self.length_power)


def tfidf(documents: Tensor, idf_power: float, length_power: float) -> Bag:
    """A bag whose weights are the inverse frequencies of values in some documents; its table means nothing.

    Args:
        documents: ``[n, W]`` encoded values.
        idf_power: ``p``; the larger, the more rare values count.
        length_power: γ.
    """
    values = documents.long()
    size = int(values.max()) + 1
    pairs = torch.unique(values + size * torch.arange(len(values)).unsqueeze(1))
    counts = torch.bincount(pairs % size, minlength=size).numpy()
    counts[:FIRST] = 0
    counts[PAD] = len(values)  # what every document has, against which the bag measures how rare a value is
    bag = Bag(FeatureInfo("", Kind.TEXT, values.shape[1], size, counts), 1, sparse=False).requires_grad_(False)
    bag.log_weight.weight.mul_(idf_power)
    bag.length_power.fill_(length_power)
    return bag


def vectors(bag: Bag, ids: Tensor) -> sparse.csr_array:
    """``[n, V]``: φ of each row; values that no document had count for nothing."""
    return pooling_matrix(bag, torch.where(ids < bag.table.num_embeddings, ids, PAD))


def lists(features: Mapping[str, NDArray[Any]], name: str, setting: str) -> Tensor:
    """``[n, W]`` values of a text or a list.

    Raises:
        ConfigError: there is no such feature.
    """
    ids = features.get(name)
    if ids is None or ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        known = [k for k, v in features.items() if v.ndim == 2 and np.issubdtype(v.dtype, np.integer)]
        raise ConfigError(f"{setting} names {name!r}; there are the texts and lists {known}")
    return torch.from_numpy(ids.astype(np.int64))
