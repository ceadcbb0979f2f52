"""The rows behind those of a bundle: appended, declared dead, and shown as a ``Catalogue`` that never changes.

``M`` rows, ``D`` dimensions, ``H`` width of a history input.

Everything is appended: a catalogue sees the first so many entries of arrays and lists that go on growing, and nothing
that it sees is ever written again. What is appended joins the youngest part until that has ``TAIL`` rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.index.bitmaps import Rows
from towers.index.eligibility import Eligibility
from towers.index.fusion import Lexical
from towers.index.live_catalogue import Catalogue, Part
from towers.index.opening import OpenBundle
from towers.index.recipes import IndexRecipe
from towers.index.search import VectorSearch

TAIL = 1024  # rows of a part that still grows; its attributes are indexed anew after every write
Floats = NDArray[np.float32]


class Growing:
    """An array that grows at its end. ``all`` are views: what was handed out stays as it is.

    Args:
        width: of a row.
    """

    def __init__(self, width: int) -> None:
        self._room = np.empty((TAIL, width), np.float32)
        self._n = 0

    def append(self, more: Floats) -> None:
        """Add ``[m, width]`` rows."""
        end = self._n + len(more)
        if end > len(self._room):
            room = np.empty((max(end, 2 * len(self._room)), self._room.shape[1]), np.float32)
            room[: self._n] = self._room[: self._n]
            self._room = room  # older views keep the older room
        self._room[self._n : end] = more
        self._n = end

    @property
    def all(self) -> Floats:
        """``[M, width]``."""
        return self._room[: self._n]


class LiveRows:
    """What was written since a bundle, for one writer at a time.

    Args:
        bundle: whose rows come first.
        base: they, with those that are dead.
    """

    def __init__(self, bundle: OpenBundle, base: Part) -> None:
        self._bundle = bundle
        self.parts = [base]
        self.ids: list[Any] = []
        self.latest: dict[Any, int] = {}
        self.former: list[int] = []
        self.replaced = 0  # rows behind the bundle's that a newer row of the same item replaced
        self._vectors = Growing(bundle.search.embeddings.shape[1])
        self._inputs = None if bundle.history_inputs is None else Growing(bundle.history_inputs.shape[1])

    def catalogue(self) -> Catalogue:
        """The state of now."""
        inputs = None if self._inputs is None else self._inputs.all
        return Catalogue(self._bundle, tuple(self.parts), self.ids, self.latest, self.former, self._vectors.all, inputs)

    def append(self, ids: Sequence[Any], vectors: Floats, inputs: Floats, attributes: pa.Table) -> None:
        """Give items new rows; the rows that they had are dead.

        Args:
            ids: ``[m]`` external ids, none twice.
            vectors: ``[m, D]``.
            inputs: ``[m, H]``, NaN where there is none.
            attributes: ``[m]``.
        """
        if not len(ids):
            return
        n, start = len(self._bundle.items), self.parts[-1].end
        known = self._bundle.items.rows(ids).tolist()
        former = [self.latest.get(item, row) for item, row in zip(ids, known, strict=True)]
        self._vectors.append(vectors)
        if self._inputs is not None:
            self._inputs.append(inputs)
        # A reader who meets a row that is too new for it goes back by `former`: that must be there first.
        self.ids += ids
        self.former += former
        self.latest.update(zip(ids, range(start, start + len(ids)), strict=True))
        self.replaced += sum(row >= n for row in former)
        self._dead(row for row in former if row >= 0)
        self._grow(attributes)

    def kill(self, ids: Iterable[Any]) -> None:
        """Declare items dead; unknown ones are none already."""
        ids = list(ids)
        known = self._bundle.items.rows(ids).tolist() if ids else []
        rows = (self.latest.get(item, row) for item, row in zip(ids, known, strict=True))
        self._dead(row for row in rows if row >= 0)

    def merge(self, merged: Part) -> None:
        """Put one part in the place of those whose rows it has. What died meanwhile is dead in it."""
        first = next(i for i, p in enumerate(self.parts) if p.start == merged.start)
        end = next(i for i, p in enumerate(self.parts) if p.end == merged.end) + 1
        dead = Rows.union(*(p.dead.shift(p.start - merged.start) for p in self.parts[first:end]))
        self.parts[first:end] = [replace(merged, dead=dead)]

    def bury(self, dead: Rows) -> None:
        """Declare rows of the bundle dead."""
        self.parts[0] = replace(self.parts[0], dead=self.parts[0].dead | dead)

    def _grow(self, attributes: pa.Table) -> None:
        n, last = len(self._bundle.items), self.parts[-1]
        dead = Rows()
        start = last.end
        if last.start >= n and len(last) < TAIL:
            start, dead = last.start, last.dead
            attributes = pa.concat_tables([last.attributes, attributes])
            self.parts.pop()
        vectors = self._vectors.all[start - n :]
        self.parts.append(part(start, flat(vectors), attributes.combine_chunks(), self.parts[0], dead))

    def _dead(self, rows: Iterable[int]) -> None:
        starts = [p.start for p in self.parts]
        by_part: dict[int, list[int]] = {}
        for row, i in zip(rows := list(rows), np.searchsorted(starts, rows, side="right") - 1, strict=True):
            by_part.setdefault(int(i), []).append(row - starts[i])
        for i, gone in by_part.items():
            self.parts[i] = replace(self.parts[i], dead=self.parts[i].dead | Rows(gone))


def flat(vectors: Floats) -> VectorSearch:
    """Search by scoring all."""
    return VectorSearch(None, vectors, IndexRecipe("flat"))


def part(start: int, search: VectorSearch, attributes: pa.Table, base: Part, dead: Rows) -> Part:
    """Rows behind the bundle's; words weigh what they weigh in the bundle."""
    return Part(start, search, attributes, Eligibility(attributes), Lexical(attributes, like=base.lexical), dead)
