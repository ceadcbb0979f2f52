"""What a closed form is computed from: the training events, and what is known of the items.

Shapes: ``E`` events, ``U`` users, ``I`` items, ``W`` width of a list feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True)
class Interactions:
    """Positive training events, sorted by (user, time).

    Attributes:
        user: ``[E]`` int64 user rows.
        item: ``[E]`` int64 item rows.
        weight: ``[E]`` float32 label weights, above 0.
        n_users: ``U``.
        n_items: ``I``; an item without events has none here.
        time: ``[E]`` int64 microseconds or plain order, ascending for each user; None where the log has no
            clock, and the events of a user are in no order.
        item_features: encoded item features by name, ``[I]`` or ``[I, W]``.
        user_features: encoded user features by name, ``[U]`` or ``[U, W]``.
        clock: what ``time`` is: ``time`` (microseconds), ``order``, or ``none``.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    weight: NDArray[np.float32]
    n_users: int
    n_items: int
    time: NDArray[np.int64] | None = None
    item_features: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    user_features: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    clock: str = "none"

    def without(self, pairs: NDArray[np.int64]) -> Interactions:
        """The events of all other pairs.

        Args:
            pairs: ``[n]`` ascending ``user · I + item``.
        """
        keep = ~np.isin(self.user * self.n_items + self.item, pairs)
        time = None if self.time is None else self.time[keep]
        return replace(self, user=self.user[keep], item=self.item[keep], weight=self.weight[keep], time=time)

    def matrix(self) -> sparse.csr_array:
        """``[U, I]`` float32: each pair once, with the largest of its weights."""
        order = np.lexsort((-self.weight, self.item, self.user))
        user, item = self.user[order], self.item[order]
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(user) != 0) | (np.diff(item) != 0)
        pairs = (self.weight[order][first].astype(np.float32), (user[first], item[first]))
        return sparse.csr_array(pairs, shape=(self.n_users, self.n_items))
