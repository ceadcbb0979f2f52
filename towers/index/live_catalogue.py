"""One moment of a catalogue: the bundle's items and what was written since, as one range of rows.

``N`` items of the bundle, ``M`` versions of items written since, ``Q`` requests, ``D`` dimensions.

Rows ``0 … N - 1`` are the bundle's. A written item gets a new row behind them; the row that it had before is dead. Rows
that follow one another are searched together, as a ``Part``: the bundle is one, and what was written since lies in a
few more. Nothing here changes: a request takes one ``Catalogue`` and keeps it to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.features import IdMap
from towers.index.bitmaps import Rows
from towers.index.eligibility import Eligibility
from towers.index.fusion import Lexical
from towers.index.opening import OpenBundle
from towers.index.search import VectorSearch

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Items whose rows follow one another, searched as one.

    Attributes:
        start: row of the first.
        search: over their embeddings.
        attributes: theirs.
        eligibility: by those attributes.
        lexical: over their texts.
        dead: rows, counted from ``start``, that a later write replaced or deleted.
    """

    start: int
    search: VectorSearch
    attributes: pa.Table
    eligibility: Eligibility
    lexical: Lexical
    dead: Rows = field(default_factory=Rows)

    @classmethod
    def of(cls, bundle: OpenBundle) -> Part:
        """The bundle's items."""
        attributes = bundle.attributes
        return cls(0, bundle.search, attributes, Eligibility(attributes), Lexical(attributes))

    def __len__(self) -> int:
        """Rows, dead ones too."""
        return len(self.search.embeddings)

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.start + len(self)

    @cached_property
    def present(self) -> Rows | None:
        """Rows, counted from ``start``, that are not dead; None: all."""
        return self.eligibility.everything - self.dead if self.dead else None


class Stacked:
    """An array whose rows lie in two: gathering from it reads like gathering from one.

    Args:
        first: ``[N, W]``, possibly memory-mapped.
        more: ``[M, W]``.
    """

    def __init__(self, first: Floats, more: Floats) -> None:
        self._first, self._more = first, more
        self.shape = (len(first) + len(more), first.shape[1])

    def __getitem__(self, rows: Ints) -> Floats:
        """``[R, W]`` of ``[R]`` rows."""
        n = len(self._first)
        late = rows >= n
        if not late.any():
            return np.asarray(self._first[rows], np.float32)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        out[~late], out[late] = self._first[rows[~late]], self._more[rows[late] - n]
        return out


@dataclass(frozen=True)
class Catalogue:
    """What is searched at a moment.

    Attributes:
        bundle: what it began with.
        parts: of the items; the bundle's is the first.
        ids: ``[M]`` external ids of what was written since, which may grow meanwhile.
        latest: id → its newest row, likewise.
        former: ``[M]`` the row that each row replaced, or ``-1``, likewise.
        vectors: ``[M, D]`` of what was written since; None: nothing can be.
        inputs: ``[M, H]`` history inputs; NaN where an item has none.
    """

    bundle: OpenBundle
    parts: tuple[Part, ...]
    ids: Sequence[Any] = ()
    latest: Mapping[Any, int] = field(default_factory=dict)
    former: Sequence[int] = ()
    vectors: Floats | None = None
    inputs: Floats | None = None

    def __len__(self) -> int:
        """Number of items."""
        return sum(len(p) - len(p.dead) for p in self.parts)

    def __contains__(self, item: object) -> bool:
        """Whether there is an item with this id."""
        unchanged = not self.latest and not self.parts[0].dead
        return item in self.bundle.items if unchanged else self.alive(self._newest_of(item))

    @property
    def rows_in_all(self) -> int:
        """The row behind the last; rows that are dead count."""
        return self.parts[-1].end

    @property
    def written(self) -> int:
        """Items searched outside of the bundle's index."""
        return sum(len(p) - len(p.dead) for p in self.parts[1:])

    @property
    def embeddings(self) -> Floats | Stacked:
        """``[N + M, D]``."""
        base = self.bundle.search.embeddings
        return base if self.vectors is None else Stacked(base, self.vectors)

    @property
    def history_inputs(self) -> Floats | Stacked | None:
        """``[N + M, H]``, or None."""
        base = self.bundle.history_inputs
        return base if base is None or self.inputs is None else Stacked(base, self.inputs)

    def rows(self, external: Iterable[Any]) -> Ints:
        """Rows of external ids, ``-1`` for items that there are not.

        Raises:
            DataError: ids of another type.
        """
        newest = self.newest(external)
        if not any(p.dead for p in self.parts):
            return newest
        return np.asarray([r if self.alive(r) else -1 for r in newest.tolist()], np.int64)

    def newest(self, external: Iterable[Any]) -> Ints:
        """The newest row of each id, dead or not; ``-1`` for ids that have none."""
        if not self.latest:
            return self.bundle.items.rows(external)
        wanted = external.to_pylist() if isinstance(external, pa.Array | pa.ChunkedArray) else list(external)
        rows = self.bundle.items.rows(wanted)
        return np.asarray([self._at_this_moment(v, r) for v, r in zip(wanted, rows.tolist(), strict=True)], np.int64)

    def external(self, rows: Ints) -> NDArray[Any]:
        """External ids of rows, in the same shape; ``-1`` or None for row ``-1``."""
        if len(self.parts) == 1:
            return self.bundle.items.external(rows)
        n = len(self.bundle.items)
        late = rows >= n
        out = self.bundle.items.external(np.where(late, -1, rows))
        if late.any():
            out[late] = [self.ids[r - n] for r in rows[late].tolist()]
        return out

    def current(self, rows: Ints) -> Ints:
        """The rows that took the place of the bundle's ``rows``, or they themselves."""
        dead = self.parts[0].dead
        moved = [i for i, r in enumerate(rows.tolist()) if r in dead] if dead else []
        if not moved:
            return rows
        out = rows.copy()
        out[moved] = self.newest(self.bundle.items.external(rows[moved]).tolist())
        return out

    def take(self, rows: Ints, names: Sequence[str] | None = None) -> pa.Table:
        """Attributes of rows, in their order; None: those of the bundle."""
        names = self.bundle.attributes.column_names if names is None else names
        starts = [p.start for p in self.parts]
        which = np.searchsorted(starts, rows, side="right") - 1
        pieces = [p.attributes.select(list(names)).take(pa.array(rows[which == i] - p.start))
                  for i, p in enumerate(self.parts) if (which == i).any()]  # fmt: skip
        if not pieces:
            return self.bundle.attributes.slice(0, 0)
        order = np.argsort(np.argsort(which, kind="stable"), kind="stable")
        return pa.concat_tables(pieces).take(pa.array(order)) if len(pieces) > 1 else pieces[0]

    def _newest_of(self, item: object) -> int:
        base = self.bundle.items
        return self._at_this_moment(item, int(base.rows([item])[0])) if self._fits(item) else -1

    def _fits(self, item: object) -> bool:
        text = self.bundle.schema.item_id == "string"
        whole = isinstance(item, int | np.integer) and not isinstance(item, bool) and -(1 << 63) <= item < 1 << 63
        return isinstance(item, str) if text else bool(whole)

    def _at_this_moment(self, item: Any, base: int) -> int:
        """The newest row of an id among those that were there when this catalogue was made."""
        row = self.latest.get(item, base)
        n, end = len(self.bundle.items), self.rows_in_all
        while row >= end:
            row = self.former[row - n]
        return row

    def alive(self, row: int) -> bool:
        """Whether a row is there and not dead."""
        if row < 0:
            return False
        part = next(p for p in reversed(self.parts) if p.start <= row)
        return row - part.start not in part.dead


class HistoryItems:
    """The items that a history may name: all that there ever were, as far as they contribute something.

    Args:
        catalogue: of the moment.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def rows(self, external: Iterable[Any]) -> Ints:
        """The newest row of each id that has a history input, deleted items too; ``-1`` for ids without any."""
        c, external = self._catalogue, list(external)
        rows = c.newest(external)
        n, inputs = len(c.bundle.items), c.inputs
        if inputs is None or not (rows >= n).any():
            return rows
        silent = np.zeros(len(rows), np.bool_)
        silent[rows >= n] = np.isnan(inputs[rows[rows >= n] - n]).any(1)  # given as a vector
        return np.where(silent, c.bundle.items.rows(external), rows)  # what the bundle knows of it speaks for it


def ids_of(bundle: OpenBundle, catalogue: Catalogue) -> IdMap | HistoryItems:
    """What ids in histories are looked up in."""
    return HistoryItems(catalogue) if catalogue.latest else bundle.items
