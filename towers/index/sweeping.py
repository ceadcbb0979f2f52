"""Recall against time along the search settings of one index, which is built once.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results.

An index has one knob (``nprobe``, ``ef_search``), a compressed one a second, ``rescore``. One search at a setting of
the first tells the recall of every setting of the second: with fewer candidates re-scored, a shorter prefix of what
the index found would have been looked at.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from towers.index.recall import recall_at
from towers.index.recipes import IndexRecipe, with_search_settings
from towers.index.search import VectorSearch

_RESCORES = {  # what may be worth re-scoring, by how much a kind compresses
    "ivf_fp16": (1,), "ivf_sq8": (1, 2, 4), "hnsw_sq8": (1, 2, 4), "ivf_pq": (1, 2, 4, 8, 16),
    "ivf_pq4": (2, 4, 8, 16, 32), "ivf_rabitq": (2, 4, 8, 16, 32),
}  # fmt: skip
_FIRST = 8  # cells with which a sweep begins: fewer hold too few results
BATCH = 256  # queries of a batch that is timed
_ENOUGH = 0.995  # where a curve ends
_REFINED = 1.1  # the steps between which the least sufficient setting is looked for
_SINGLES = 50  # queries timed one at a time
_ROUNDS = 3  # of timing, of which the quickest counts: what else the machine does only adds
_SECONDS = 1.0  # after which no further round begins


class Held(NamedTuple):
    """Held-out queries ``[Q, D]`` and the scores of their exact results ``[Q, k]``, best first."""

    queries: NDArray[np.float32]
    exact: NDArray[np.float32]


class Speed(NamedTuple):
    """Milliseconds of a single query, and queries per second in batches of 256."""

    single_ms: float
    batch_qps: float


@dataclass(frozen=True)
class Point:
    """A place on the curve.

    Attributes:
        recipe: with its search settings.
        recall: of the held-out queries.
        speed: likewise.
    """

    recipe: IndexRecipe
    recall: float
    speed: Speed


class Sweep:
    """What settings of an index give.

    Args:
        index: by inner product over the rows of ``embeddings``.
        embeddings: ``[N, D]``.
        recipe: what the index was built with, resolved.
        held: queries to measure with.
    """

    def __init__(self, index: Any, embeddings: NDArray[np.float32], recipe: IndexRecipe, held: Held) -> None:
        self._index, self._embeddings, self._recipe, self._held = index, embeddings, recipe, held
        self._k = held.exact.shape[1]
        self._rescores = _RESCORES.get(recipe.kind, (1,))
        self._known: dict[int, dict[int, float]] = {}

    def sufficient(self, recall: float) -> list[IndexRecipe]:
        """The settings that just reach a recall: for each ``rescore`` the least knob, unless fewer re-scored want none.

        Empty where no setting reaches it.
        """
        ladder = list(self._ladder(recall))
        out: list[IndexRecipe] = []
        least: int | None = None
        for rescore in self._rescores:
            passing = [i for i, knob in enumerate(ladder) if self._recall(knob)[rescore] >= recall]
            if not passing:
                continue
            low, knob = ladder[passing[0] - 1] if passing[0] else 0, ladder[passing[0]]
            while self._recipe.is_ivf and knob > max(low + 1, low * _REFINED):
                middle = max(low + 1, round((low * knob) ** 0.5))
                low, knob = (low, middle) if self._recall(middle)[rescore] >= recall else (middle, knob)
            if least is None or knob < least:
                out.append(self.set(knob, rescore))
                least = knob
        return out

    def curve(self, recipe: IndexRecipe) -> list[Point]:
        """From little recall to nearly all of it, with this recipe's ``rescore``."""
        out = []
        for knob in sorted(self._known):
            point = self.set(knob, recipe.rescore)
            if knob in self._ladder(0) or point == recipe:
                out.append(Point(point, self._recall(knob)[recipe.rescore], self.speed(point)))
        return out

    def speed(self, recipe: IndexRecipe) -> Speed:
        """How fast the held-out queries are answered with these settings."""
        return speed(self.search(recipe), self._held.queries, self._k)

    def search(self, recipe: IndexRecipe) -> VectorSearch:
        """The index with these settings. It is one index: settings of an earlier answer no longer hold."""
        return VectorSearch(with_search_settings(self._index, recipe), self._embeddings, recipe)

    def set(self, knob: int, rescore: int) -> IndexRecipe:
        """The recipe with these search settings."""
        name = {"i": "nprobe", "h": "ef_search"}.get(self._recipe.kind[0])
        changed: dict[str, Any] = {name: knob} if name else {}
        return replace(self._recipe, rescore=rescore, **changed)

    def _ladder(self, recall: float) -> Iterator[int]:
        """Knobs in steps of 2 (a graph: √2), until more would bring nothing; those measured where ``recall`` is 0."""
        enough = max(_ENOUGH, recall)
        if self._recipe.is_ivf:
            steps = [s for s in (_FIRST << i for i in range(32)) if s < self._recipe.nlist] + [self._recipe.nlist]
        elif self._recipe.kind == "flat":
            steps = [1]
        else:
            steps = [round(self._k * 2 ** (i / 2)) for i in range(13)]
        for step in steps:
            if not recall and step not in self._known:
                return
            yield step
            if recall and max(self._recall(step).values()) >= enough:
                return

    def _recall(self, knob: int) -> dict[int, float]:
        """Recall by ``rescore``."""
        if knob not in self._known:
            self._known[knob] = self._measured(knob)
        return self._known[knob]

    def _measured(self, knob: int) -> dict[int, float]:
        queries, exact = self._held
        search, k, n = self.search(self.set(knob, 1)), self._k, len(self._embeddings)
        if not self._recipe.lossy:
            return {1: recall_at(search.approximate(queries, k)[1], exact)}
        out = dict.fromkeys(self._rescores, 0.0)
        for part in range(0, len(queries), BATCH):  # so that what is fetched stays small
            mine = queries[part : part + BATCH]
            index: Any = search.index
            rows = index.search(mine, min(n, k * self._rescores[-1]))[1]
            scores = search.scores(mine, rows)
            for rescore in self._rescores:
                prefix = scores[:, : k * rescore]
                best = -np.partition(-prefix, k - 1, axis=1)[:, :k] if prefix.shape[1] > k else prefix
                out[rescore] += recall_at(best, exact[part : part + BATCH]) * len(mine) / len(queries)
        return out


def speed(search: VectorSearch, queries: NDArray[np.float32], k: int) -> Speed:
    """The quicker of a few rounds, so that what else the machine does counts as little as can be."""
    single = _quickest(lambda: statistics.median(_seconds(search, q, k) for q in queries[:_SINGLES, None]))
    many = np.tile(queries, (-(-BATCH // len(queries)), 1))[:BATCH]
    return Speed(single * 1e3, len(many) / max(1e-9, _quickest(lambda: _seconds(search, many, k))))


def _quickest(round_: Callable[[], float]) -> float:
    start, out = time.perf_counter(), []
    for _ in range(_ROUNDS):
        out.append(round_())
        if time.perf_counter() - start > _SECONDS:
            break
    return min(out)


def _seconds(search: VectorSearch, queries: NDArray[np.float32], k: int) -> float:
    start = time.perf_counter()
    search.search(queries, k)
    return time.perf_counter() - start
