"""Item vectors moved towards those of their co-clicked neighbours, after training and at no cost to it.

Shapes: ``I`` items, ``D`` dim.

    v_i ← (1 - w) v_i + w Σ_j S_ij v_j        S_ij ∝ n_j^-p Σ_u n_u^-½ x_ui x_uj,   Σ_j S_ij = 1,   S_ii = 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from towers.errors import ConfigError
from towers.model.baselines.coclick import shares
from towers.model.baselines.item_knn import ItemKNN
from towers.model.closed_form.interactions import Interactions
from towers.model.graph import Graph


@dataclass(frozen=True)
class AggregationSettings:
    """One step of neighbourhood aggregation.

    When to use it: clicks are few for each item and were not shared in training (no graph, no closed form); choose the
    weight on validation with ``eval.py run=… task=valid aggregate.weight=…``. Users are not moved: what a history
    contributes, and a user's own vector, stay as trained.

    Source: one layer of the propagation of He et al., "LightGCN", 2020, with the item-item graph of Deshpande and
    Karypis, "Item-based Top-N Recommendation Algorithms", 2004.

    Attributes:
        weight: ``w``, of the neighbours beside the item itself; 0: no aggregation.
        neighbours: the nearest ones that are kept of each item.
        power: ``p``; the larger, the less popular neighbours count.

    Raises:
        ConfigError: a number is out of its range.
    """

    weight: float = 0.0
    neighbours: int = 50
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"aggregate.weight is {self.weight}; set it between 0 (none) and 1 (neighbours alone)")
        if self.neighbours < 1:
            raise ConfigError(f"aggregate.neighbours is {self.neighbours}; set it to at least 1")


class Aggregation:
    """A step of aggregation over the item-item graph of some training events.

    Args:
        log: the training events.
        settings: see there.
    """

    def __init__(self, log: Interactions, settings: AggregationSettings) -> None:
        knn = ItemKNN(history_power=settings.power, item_power=0.0, neighbours=settings.neighbours)
        near = sparse.csr_array(knn.fit(log, lambda what, share: None)["similarity"].T)
        self.settings, self.graph = settings, Graph(shares(near))
        # An item without neighbours, such as any that comes later, stays as it is.
        self.weight = torch.from_numpy(settings.weight * (np.diff(near.indptr) > 0)).float().unsqueeze(1)

    def __call__(self, vectors: Tensor) -> Tensor:
        """``[I, D]`` → ``[I, D]``, not normalised."""
        near = self.graph.to(vectors.device).sums(vectors)
        return vectors + self.weight.to(vectors.device) * (near - vectors)
