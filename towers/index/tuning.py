"""Which index, and with what settings: measured on held-out queries of the model that it is to serve.

``N`` items, ``D`` dimensions, ``Q`` queries, ``k`` results.

Each kind is built once, its search settings are swept (``sweeping``), and the quickest setting that keeps the recall
is held against the quickest of the other kinds. Settings are found with half of the queries and judged by the other
half, so that the recall told is not that of the luckiest setting.

Times are never the same twice. Kinds of which the times lie within a tenth are held to be equally fast: of those the
one with the fewest bytes is chosen, of equal bytes the first in ``KINDS``. Bytes and recall are functions of the
vectors and the seed (a graph's with one thread only), so that the choice changes only where a kind comes or goes at
the border of that tenth; before, all that are near are timed again, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.index.auto import AutoIndex
from towers.index.exact import exact_search
from towers.index.faiss_setup import faiss
from towers.index.recall import recall_at
from towers.index.recipes import KINDS, IndexRecipe, build_index, train_cells
from towers.index.similarity import Similarity
from towers.index.sizes import index_bytes, least_bytes
from towers.index.sweeping import Held, Point, Speed, Sweep, speed

Tell = Callable[[str, float], None]
NEAR = 1.1  # times that differ by less are not told apart
_KEPT = 1.25  # times the quickest: what is timed once more at the end
_SPARE = 0.1  # of the way from the recall asked for to 1: what the other half of the queries may need
_FINALISTS = 3  # kinds that are built over the whole of a large catalogue
_STEPS = 8  # by which a setting may be raised when the other half of the queries finds less
_FEW = 40  # queries that are not cut in halves
_QUERIES = 256  # in a half
_ORDER = ("flat", "ivf_flat", "ivf_sq8", "ivf_pq4", "ivf_rabitq", "ivf_fp16", "ivf_pq", "hnsw_sq8", "hnsw")  # by work


@dataclass(frozen=True)
class Candidate:
    """A kind of index, what was measured of it, and what became of it.

    Attributes:
        kind: of the index.
        verdict: ``chosen``, or why not.
        items: over which it was built; 0: it was not.
        recipe: the quickest settings that keep the recall, or None.
        recall: with these, of queries that did not choose them.
        speed: likewise.
        bytes_per_item: of the index.
        build_s: seconds, with those of the cells, which the IVF kinds share.
        curve: recall against speed.
    """

    kind: str
    verdict: str
    items: int = 0
    recipe: IndexRecipe | None = None
    recall: float = 0.0
    speed: Speed | None = None
    bytes_per_item: float = 0.0
    build_s: float = 0.0
    curve: Sequence[Point] = field(default=(), repr=False)


@dataclass(frozen=True)
class Tuned:
    """The index chosen, filled with the whole catalogue.

    Attributes:
        index: with its search settings.
        recipe: resolved.
        candidates: all kinds that were asked for, the chosen one first, then by time.
    """

    index: faiss.Index
    recipe: IndexRecipe
    candidates: Sequence[Candidate]


class _OutOfTimeError(Exception):
    """Building takes longer than tuning may."""


def tune(
    embeddings: NDArray[np.float32],
    queries: NDArray[np.float32],
    auto: AutoIndex,
    similarity: Similarity,
    tell: Tell = lambda what, share: None,
) -> Tuned:
    """The quickest index that keeps the recall and the budget.

    Args:
        embeddings: ``[N, D]`` float32, possibly memory-mapped, or as they are stored.
        queries: ``[Q, D]`` user vectors that the model was not trained to hit.
        auto: what is asked.
        similarity: of the model.
        tell: called with what is being done and the share of it that is done.

    Raises:
        ConfigError: no kind keeps both; says what each would need.
    """
    if not len(queries):
        raise ConfigError("no query vectors to tune the index with; the held-out split has no users")
    similarity.check(embeddings, "item embeddings")
    n, deadline = len(embeddings), time.monotonic() + auto.seconds
    kinds = [k for k in _ORDER if k in auto.kinds]
    screened: list[Candidate] = []
    if n > auto.sample:
        rows = np.sort(np.random.default_rng(auto.seed).choice(n, auto.sample, replace=False))
        half = time.monotonic() + auto.seconds / 2
        screening = _Tuning(embeddings[rows], queries, auto, similarity, half, lambda w, s: tell(w, s / 2))
        screening.measure(kinds)
        kinds = finalists(screening.candidates, n / auto.sample, auto.optimise)
        screened = [
            replace(c, verdict=_beaten(c, auto)) for k, c in screening.candidates.items() if k not in kinds
        ]  # fmt: skip
        tuning = _Tuning(embeddings, queries, auto, similarity, deadline, lambda w, s: tell(w, 0.5 + s / 2))
    else:
        tuning = _Tuning(embeddings, queries, auto, similarity, deadline, tell)
    tuning.measure(kinds)
    return tuning.chosen(screened)


def finalists(candidates: Mapping[str, Candidate], larger: float, optimise: str) -> list[str]:
    """The kinds that promise most over a catalogue ``larger`` times the sample, in the order of ``_ORDER``.

    Exact search takes longer in proportion; cells, of which there are √N with √N items in each, as √N; a graph hardly.
    """

    def expected(c: Candidate) -> float:
        grows = larger if c.kind == "flat" else larger**0.5 if c.kind.startswith("ivf") else 1.0
        return _seconds(c, optimise) * grows

    fit = [c for c in candidates.values() if c.recipe is not None and c.verdict == _FITS]
    best = {c.kind for c in sorted(fit, key=expected)[:_FINALISTS]}
    return [k for k in _ORDER if k in best]


_FITS = "slower"  # keeps recall and budget


def _beaten(candidate: Candidate, auto: AutoIndex) -> str:
    if candidate.verdict != _FITS:
        return candidate.verdict
    return f"slower on a sample of {auto.sample:,} items"


def _seconds(candidate: Candidate, optimise: str) -> float:
    if candidate.speed is None:
        return float("inf")
    return candidate.speed.single_ms if optimise == "single" else 1 / candidate.speed.batch_qps


class _Tuning:
    """The kinds of index over some items, one after the other."""

    def __init__(
        self, embeddings: NDArray[np.float32], queries: NDArray[np.float32], auto: AutoIndex, similarity: Similarity,
        deadline: float, tell: Tell,
    ) -> None:  # fmt: skip
        self._embeddings, self._auto, self._similarity = embeddings, auto, similarity
        self._deadline, self._tell = deadline, tell
        k = min(auto.recall_at, len(embeddings))
        queries = np.ascontiguousarray(queries[: 2 * _QUERIES], np.float32)
        exact = exact_search(queries, embeddings, k)[1]
        step = 2 if len(queries) >= _FEW else 1
        self._held = Held(np.ascontiguousarray(queries[::step]), np.ascontiguousarray(exact[::step]))
        self._others = Held(np.ascontiguousarray(queries[step - 1 :: step]), exact[step - 1 :: step])
        self._cells: tuple[NDArray[np.float32], float] | None = None  # with the seconds they took
        self._indexes: dict[str, faiss.Index] = {}
        self.candidates: dict[str, Candidate] = {}

    def measure(self, kinds: Sequence[str]) -> None:
        """Build and sweep these kinds, as far as time allows."""
        for i, kind in enumerate(kinds):
            self._tell(f"{kind} of {len(self._embeddings):,} items", i / len(kinds))
            try:
                self.candidates[kind] = self._measured(kind)
            except _OutOfTimeError:
                self.candidates[kind] = Candidate(kind, f"not built within index.seconds={self._auto.seconds:g}")
            except ConfigError as e:  # too few items for this kind, say
                self.candidates[kind] = Candidate(kind, f"not built: {e}")
            self._drop()

    def chosen(self, more: Sequence[Candidate]) -> Tuned:
        """The quickest, near ones timed again; the fewest bytes where times are near."""
        fit = [c for c in self.candidates.values() if c.verdict == _FITS]
        if not fit:
            raise ConfigError(_none(self._auto, [*self.candidates.values(), *more]))
        kept = [c for c in fit if c.kind in self._indexes]
        for c in (c for _ in range(2) for c in kept if len(kept) > 1):
            again, best = self._speed(c), self.candidates[c.kind].speed or Speed(np.inf, 0)
            quicker = Speed(min(again.single_ms, best.single_ms), max(again.batch_qps, best.batch_qps))
            self.candidates[c.kind] = replace(c, speed=quicker)
        kept = [self.candidates[c.kind] for c in kept]
        quickest = min(_seconds(c, self._auto.optimise) for c in kept)
        near = [c for c in kept if _seconds(c, self._auto.optimise) <= NEAR * quickest]
        best_ = min(near, key=lambda c: (c.bytes_per_item, KINDS.index(c.kind)))
        others = [
            replace(c, verdict="as fast, but larger") if c in near else c
            for c in self.candidates.values()
            if c.kind != best_.kind
        ]
        rest = sorted([*others, *more], key=lambda c: (c.recipe is None, _seconds(c, self._auto.optimise)))
        if best_.recipe is None:
            raise AssertionError("a candidate that fits has a recipe")
        index = Sweep(self._indexes[best_.kind], self._embeddings, best_.recipe, self._held).search(best_.recipe).index
        return Tuned(index, best_.recipe, [replace(best_, verdict="chosen"), *rest])

    def _measured(self, kind: str) -> Candidate:
        n, dim = self._embeddings.shape
        recipe, limit = self._auto.recipe(kind).resolve(n, dim), self._auto.max_bytes_per_item
        least = least_bytes(recipe, n, dim)
        if limit is not None and least > limit:
            return Candidate(kind, f"not built: {least:,.0f} bytes an item, {limit:,.0f} allowed", bytes_per_item=least)
        index, seconds = self._built(recipe)
        size = index_bytes(index) / n
        facts: dict[str, Any] = {"items": n, "bytes_per_item": size, "build_s": seconds}
        sweep = Sweep(index, self._embeddings, recipe, self._held)
        target = recipe.min_recall + _SPARE * (1 - recipe.min_recall)
        options = [self._raised(sweep, r) for r in sweep.sufficient(target)]
        timed = [(replace(Candidate(kind, _FITS), speed=sweep.speed(r)), r) for r, _ in options]
        if not timed:
            return Candidate(kind, f"recall stays below {recipe.min_recall:g}", **facts)
        best = min(timed, key=lambda t: _seconds(t[0], self._auto.optimise))
        recall = dict(options)[best[1]]
        verdict = _FITS
        if recall < recipe.min_recall:
            verdict = f"recall stays below {recipe.min_recall:g}"
        elif limit is not None and size > limit:
            verdict = f"{size:,.0f} bytes an item, {limit:,.0f} allowed"
        else:
            self._indexes[kind] = index
        curve = sweep.curve(best[1])
        return Candidate(kind, verdict, recipe=best[1], recall=recall, speed=best[0].speed, curve=curve, **facts)

    def _raised(self, sweep: Sweep, recipe: IndexRecipe) -> tuple[IndexRecipe, float]:
        """The settings, raised until the other half of the queries finds enough; and its recall."""
        recall = self._recall(sweep, recipe)
        for _ in range(_STEPS):
            if recall >= recipe.min_recall or recipe.kind == "flat":
                break
            knob = recipe.nprobe if recipe.is_ivf else recipe.ef_search
            most = recipe.nlist if recipe.is_ivf else len(self._embeddings)
            recipe = sweep.set(min(most, max(knob + 1, round(knob * 1.1))), recipe.rescore)
            recall = self._recall(sweep, recipe)
        return recipe, recall

    def _recall(self, sweep: Sweep, recipe: IndexRecipe) -> float:
        queries, exact = self._others
        search = sweep.search(recipe)
        rows, scores = search.approximate(queries, exact.shape[1])
        return recall_at(scores if recipe.lossy else search.scores(queries, rows), exact)

    def _speed(self, candidate: Candidate) -> Speed:
        if candidate.recipe is None:
            return Speed(np.inf, 0.0)
        sweep = Sweep(self._indexes[candidate.kind], self._embeddings, candidate.recipe, self._held)
        return speed(sweep.search(candidate.recipe), self._held.queries, self._held.exact.shape[1])

    def _built(self, recipe: IndexRecipe) -> tuple[faiss.Index, float]:
        """An index and the seconds it took."""
        cells, before = None, 0.0
        if recipe.is_ivf:
            self._check_time(0.0)
            if self._cells is None:
                start = time.perf_counter()
                found = train_cells(self._embeddings, recipe)
                self._cells = found, time.perf_counter() - start
            cells, before = self._cells
        start = time.perf_counter()
        index = build_index(self._embeddings, recipe, self._similarity, cells=cells, tell=self._check_time)
        return index, before + time.perf_counter() - start

    def _check_time(self, share: float) -> None:
        """Stop building when time is over; what is first measured is always built."""
        if self.candidates and time.monotonic() > self._deadline:
            raise _OutOfTimeError

    def _drop(self) -> None:
        """Let go of the indexes that are too slow to be chosen."""
        times = {k: _seconds(self.candidates[k], self._auto.optimise) for k in self._indexes}
        for kind, seconds in times.items():
            if seconds > _KEPT * min(times.values()):
                del self._indexes[kind]


def _none(auto: AutoIndex, candidates: Sequence[Candidate]) -> str:
    told = "\n".join(f"  {c.kind}: {c.verdict}" for c in candidates)
    limit = "" if auto.max_bytes_per_item is None else f" in {auto.max_bytes_per_item:,.0f} bytes an item"
    return (
        f"no index keeps recall@{auto.recall_at} of {auto.min_recall:g}{limit}:\n{told}\n"
        "  cure: raise index.max_bytes_per_item, lower index.min_recall, or give index.seconds more time"
    )
