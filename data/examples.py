"""Examples and queries, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Examples of some splits, as columns.

    ``user``, ``item`` ``[n]`` int32 rows; ``time`` ``[n]`` int64 (microseconds, or the plain order) or
    None; ``weight`` ``[n]`` float32; ``split`` ``[n]`` int8; ``history_end`` ``[n]`` int64; ``context`` ``[n]`` int32
    rows, or None where the data have no context; ``action`` ``[n]`` int8 codes; ``shown_end`` ``[n]`` int64, see
    ``data.impressions``; ``place`` ``[n]`` int32 rows of the users in the history log at hand, or None where that is
    of all users.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64] | None
    weight: NDArray[np.float32]
    split: NDArray[np.int8]
    history_end: NDArray[np.int64]
    context: NDArray[np.int32] | None = None
    action: NDArray[np.int8] | None = None
    shown_end: NDArray[np.int64] | None = None
    place: NDArray[np.int32] | None = None

    @classmethod
    def queries(
        cls,
        user: NDArray[Any],
        history_end: NDArray[np.int64],
        at: int | None = None,
        context: NDArray[np.int32] | None = None,
    ) -> Self:
        """Users at one moment, of whom no item is known to be the right one.

        Args:
            user: ``[n]`` user rows.
            history_end: ``[n]`` where their histories end.
            at: the moment; None: the log has no clock.
            context: ``[n]`` context rows; None: the data have no context.
        """
        n = len(user)
        return cls(
            user=user.astype(np.int32),
            item=np.full(n, -1, np.int32),
            time=None if at is None else np.full(n, at, np.int64),
            weight=np.zeros(n, np.float32),
            split=np.zeros(n, np.int8),
            history_end=history_end,
            context=context,
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.user)

    def take(self, rows: NDArray[Any]) -> Examples:
        """Examples selected by a mask or by indices."""
        some = {name: column[rows] for name, column in self.__dict__.items() if column is not None}
        return Examples(**{"time": None, **some})
