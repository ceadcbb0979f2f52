"""What a training step receives: row numbers, never features.

``B`` examples, ``L`` history length (the longest of this batch). The arrays are numpy arrays when a
loader makes them and torch tensors once on the device; nothing here depends on which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from towers.features.ragged import Ragged

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass
class Batch:
    """A batch of (user, item) examples and the history each user had at that moment.

    Attributes:
        user: ``[B]`` int64, rows of the user table.
        item: ``[B]`` int64, rows of the item table: the positives.
        weight: ``[B]`` float32, label weight (action weight times log weight).
        history: ``[B, L]`` int64, item rows, the newest first, ``-1`` where there is none.
        history_action: ``[B, L]`` int64, action codes of those events (0 where there is none).
        history_age: ``[B, L]`` float32, ``log1p`` of the hours between that event and the example;
            0 where the log has no clock.
        known: ``[B]`` rows of lists: all items that the user is known to have taken in training. The
            loss never uses them as negatives.
        time: ``[B]`` int64 microseconds UTC, or None where the log has no clock.
        context: ``[B]`` int64, rows of the context table (what belongs to neither side: a query's text), or None
            where the data have none.
        impressions: ``[B, M]`` int64, item rows that the user was shown at that time or before and did not take, the
            newest first, ``-1`` where there is none; None unless they are asked for.
        action: ``[B]`` int64, action codes of the examples; None for queries.
    """

    user: Array
    item: Array
    weight: Array
    history: Array
    history_action: Array
    history_age: Array
    known: Ragged
    time: Array | None = None
    context: Array | None = None
    impressions: Array | None = None
    action: Array | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.user)

    def map(self, f: Callable[[Array], Array]) -> Batch:
        """The same batch with ``f`` applied to every array (a move to the device, say)."""

        def go(x: Any) -> Any:
            if x is None:
                return None
            if isinstance(x, Ragged):
                return Ragged(f(x.offsets), f(x.values))
            return f(x)

        return Batch(**{a.name: go(getattr(self, a.name)) for a in fields(self)})
