"""Two rankings of one catalogue made one: a tower's, and BM25's over the items' text.

``Q`` queries, ``N`` items, ``k`` places.

* ``rrf``, reciprocal rank fusion (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
  individual Rank Learning Methods", 2009): ``1 / (60 + rank) + w / (60 + rank')``. Needs no common scale, and throws
  the scale away. Use it where scores cannot be compared, as with a dot product.
* ``sum``: ``score + w score'``. Use it where the tower's is a cosine: BM25 relative to a perfect match is like one.
  That one ranking is sure of its first place, and the other is not, then counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features import Ragged
from towers.index.bitmaps import Rows, mask_of
from towers.index.bm25 import Bm25, Bm25Parts

Floats = NDArray[np.float32]
_RANK = 60.0  # places that count almost alike; the paper's, and it hardly matters
_BLOCK_BYTES = 64 << 20  # of the scores held at once


@dataclass(frozen=True)
class Fusion:
    """How a tower's ranking and BM25's become one.

    Attributes:
        method: ``rrf`` or ``sum``.
        query: field of the request (feature column of the context or the user) that holds the words.
        text: item attribute that is searched for them.
        weight: of BM25, beside 1 for the tower.
        depth: places of either ranking that ``rrf`` looks at; what is not among them has no rank there.

    Raises:
        ConfigError: an unknown method, or a number out of its range.
    """

    method: Literal["rrf", "sum"] = "rrf"
    query: str = "query"
    text: str = "title"
    weight: float = 1.0
    depth: int = 1000

    def __post_init__(self) -> None:
        """Refuse what is no fusion."""
        if self.method not in ("rrf", "sum"):
            raise ConfigError(f"fusion is {self.method!r}; expected 'rrf' or 'sum'")
        if not 0 <= self.weight < float("inf") or self.depth < 1:
            raise ConfigError(f"fusion of weight {self.weight}, depth {self.depth}; expected at least 0 and at least 1")

    def words(self, request: Mapping[str, Any]) -> str:
        """The query's text.

        Raises:
            DataError: the request has none.
        """
        value = request.get(self.query)
        if not isinstance(value, str):
            raise DataError(
                f"{self.query!r} is {value!r}; a fusion with BM25 needs the query's words",
                where="request",
                cure="send them, name another field (Fusion(query=…)), or leave fuse out",
            )
        return value

    def scores(self, tower: Floats, bm25: Bm25 | Bm25Parts, texts: Sequence[str | None]) -> Floats:
        """The fused score of every item.

        Args:
            tower: ``[Q, N]`` scores; ``-inf`` for items that may not be shown, which stay there.
            bm25: over the text of the ``N`` items.
            texts: ``[Q]`` words of the queries.

        Returns:
            ``[Q, N]`` float32.
        """
        lexical = bm25.scores(texts, relative=self.method == "sum")
        if self.method == "sum":
            return np.asarray(tower + np.float32(self.weight) * lexical, np.float32)
        shown = tower > -np.inf
        lexical[~shown | (lexical <= 0)] = -np.inf  # what shares no term has no rank
        fused = reciprocal_ranks(tower, self.depth) + np.float32(self.weight) * reciprocal_ranks(lexical, self.depth)
        return np.where(shown, fused, np.float32(-np.inf))


class Lexical:
    """BM25 over the text attributes of a catalogue, each worked out when it is first asked for.

    Args:
        attributes: ``[N]`` item attributes.
        like: of a larger catalogue, whose word frequencies hold here too; None: those of this one.
    """

    def __init__(self, attributes: pa.Table, *, like: Lexical | None = None) -> None:
        self._attributes = attributes
        self._like = like
        self._made: dict[str, Bm25] = {}

    def over(self, text: str) -> Bm25:
        """BM25 over an attribute.

        Raises:
            ConfigError: there is no such text.
        """
        if text not in self._made:
            table = self._attributes
            if text not in table.column_names or not pa.types.is_string(table.schema.field(text).type):
                names = [f.name for f in table.schema if pa.types.is_string(f.type)]
                raise ConfigError(f"fusion: no text {text!r} among the item attributes; there are {names or 'none'}")
            like = None if self._like is None else self._like.over(text)
            self._made[text] = Bm25(table[text].to_pylist(), like=like)
        return self._made[text]


def reciprocal_ranks(scores: Floats, depth: int) -> Floats:
    """``1 / (60 + rank)`` of the first ``depth`` entries of each row, 0 of the others; equals share the better rank.

    Args:
        scores: ``[Q, N]``; ``-inf`` has no rank.
        depth: ranks that count.

    >>> (1 / reciprocal_ranks(np.array([[3.0, 9.0, 3.0, 1.0]], np.float32), 4)).round()
    array([[62., 61., 62., 64.]], dtype=float32)
    """
    out = np.zeros(scores.shape, np.float32)
    for row, mine in zip(out, scores, strict=True):
        better = np.searchsorted(np.sort(-mine), -mine, side="left")  # how many have a higher score
        row[:] = np.where((better < depth) & (mine > -np.inf), 1 / (_RANK + 1 + better), 0)
    return out


def search_fused(
    vectors: Floats,
    texts: Sequence[str | None],
    embeddings: Sequence[Floats],
    bm25: Bm25 | Bm25Parts,
    fusion: Fusion,
    k: int,
    *,
    allowed: Rows | None = None,
    exclude: Ragged | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """The ``k`` best items by both rankings, every item scored by both: no index, and no item is missed.

    Args:
        vectors: ``[Q, D]`` query vectors.
        texts: ``[Q]`` words of the queries.
        embeddings: ``[N, D]``, in parts that follow one another.
        bm25: over the text of the ``N`` items.
        fusion: how they become one.
        k: results wanted.
        allowed: rows of the items that any query may get; None: all.
        exclude: ``[Q]`` lists of rows that this query must not get.

    Returns:
        rows ``[Q, k]``, ``-1`` where there are no more, and scores ``[Q, k]``, ``-inf`` there. Ties by row.
    """
    n = sum(map(len, embeddings))
    barred = None if allowed is None else ~mask_of(allowed, n)
    rows, best = np.full((len(vectors), k), -1, np.int64), np.full((len(vectors), k), -np.inf, np.float32)
    step = max(1, _BLOCK_BYTES // (4 * max(1, n)))
    for start in range(0, len(vectors), step):
        part = slice(start, min(start + step, len(vectors)))
        scores = np.hstack([np.asarray(vectors[part] @ np.asarray(e).T, np.float32) for e in embeddings])
        if barred is not None:
            scores[:, barred] = -np.inf
        if exclude is not None:
            first, last = exclude.offsets[part.start], exclude.offsets[part.stop]
            query = np.repeat(np.arange(part.stop - part.start), np.diff(exclude.offsets[part.start : part.stop + 1]))
            scores[query, exclude.values[first:last]] = -np.inf
        scores = fusion.scores(scores, bm25, texts[part])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, order, axis=1)
        rows[part, : order.shape[1]] = np.where(found > -np.inf, order, -1)
        best[part, : order.shape[1]] = found
    return rows, best
