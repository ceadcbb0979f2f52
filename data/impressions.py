"""What users were shown and did not take, as negatives of what they took then.

An action with ``weight: 0`` and ``history: false`` is an impression: it is no positive and enters no history, hence
this is its only use. As with histories nothing is copied for an example: what was shown before it is a slice of the
impression log.

Shapes: ``B`` examples, ``M`` impressions of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.examples import Examples
from data.prepared import PreparedDataset
from towers.errors import ConfigError
from towers.features import Action, Ragged

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Impressions:
    """Impressions of training that no training event of the same user and item followed, sorted by (user, time).

    Attributes:
        offsets: ``[users + 1]``; user ``u``'s are ``offsets[u] : offsets[u + 1]``.
        item: ``[n]`` item rows.
        time: ``[n]`` times, or None where the log has neither clock nor order.
        length: ``M``: the newest that an example is given.
    """

    offsets: Ints
    item: NDArray[np.int32]
    time: Ints | None
    length: int

    @classmethod
    def of(cls, dataset: PreparedDataset, events: Examples, length: int) -> Self:
        """Those among the training events of a dataset.

        Jobs without a positive training event are left out, as samplers leave them out: their vectors would only ever
        be pushed away.

        Args:
            dataset: tells actions, known positives and the events of items.
            events: all training events.
            length: ``M``.

        Raises:
            ConfigError: no action is an impression.
        """
        codes = impression_codes(dataset.schema.actions)
        if not codes:
            raise ConfigError(
                f"impressions={length}, but dataset {dataset.name!r} has no impressions; declare the action that marks "
                "them with {weight: 0, history: false}, or set impressions=0"
            )
        assert events.action is not None
        shown = events.take(np.isin(events.action, codes) & (dataset.events("item")[events.item] > 0))
        shown = shown.take(~_contains(dataset.known, shown.user, shown.item, len(dataset.items)))
        time = np.zeros(len(shown), np.int64) if shown.time is None else shown.time
        shown = shown.take(np.lexsort((time, shown.user)))
        offsets = np.searchsorted(shown.user, np.arange(len(dataset.users) + 1))
        return cls(offsets.astype(np.int64), shown.item, shown.time, length)

    def attach(self, e: Examples) -> Examples:
        """The same examples, each knowing where what its user had been shown by then ends (itself included)."""
        if self.time is None or e.time is None:
            return replace(e, shown_end=self.offsets[e.user.astype(np.int64) + 1])
        times = np.unique(self.time)  # ranks instead of times: user and time fit into one integer
        owner = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        keys = owner * (len(times) + 1) + np.searchsorted(times, self.time, side="right")
        wanted = e.user.astype(np.int64) * (len(times) + 1) + np.searchsorted(times, e.time, side="right")
        return replace(e, shown_end=np.searchsorted(keys, wanted, side="right"))

    def rows(self, e: Examples) -> Ints:
        """``[B, M]`` item rows, the newest first, -1 where there is none.

        Args:
            e: examples that ``attach`` has returned, or some of them.
        """
        assert e.shown_end is not None
        lengths = np.minimum(e.shown_end - self.offsets[e.user], self.length)
        there = np.arange(self.length) < lengths[:, None]
        at = np.where(there, e.shown_end[:, None] - 1 - np.arange(self.length), 0)
        item = self.item if len(self.item) else np.zeros(1, np.int32)
        return np.where(there, item[at].astype(np.int64), -1)


def impression_codes(actions: Sequence[Action]) -> list[int]:
    """Codes of the actions that are impressions."""
    return [code for code, a in enumerate(actions) if a.weight == 0 and not a.history]


def _contains(lists: Ragged, user: NDArray[np.int32], item: NDArray[np.int32], n_items: int) -> NDArray[np.bool_]:
    """``[n]``: whether the sorted list of each user holds the item."""
    owner = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    taken = owner * n_items + lists.values
    return np.isin(user.astype(np.int64) * n_items + item, taken)
