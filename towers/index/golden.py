"""Queries whose answers are known, replayed whenever a bundle is opened.

Hashes prove that the files are those of the export; the replay proves that here, with the libraries of this
machine, they still mean the same: features encode alike, the user tower gives the vectors that the
trained model gave, ids and embeddings lie in one order, and the index finds what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from towers.errors import BundleError
from towers.features import IdMap
from towers.index.layout import GOLDEN
from towers.index.matching import match
from towers.index.recall import recall_at
from towers.index.requests import KnownUsers
from towers.index.search import VectorSearch

_K = 10
_FAR = 1e-3  # of a vector's length: far more than float32 towers differ by, far less than a wrong one does
_WORSE = 0.1  # recall that another machine's rounding may cost the index on these few queries

User: TypeAlias = str | int | Mapping[str, Any]
Embed: TypeAlias = Callable[[User, int | None, Mapping[str, Any] | None], NDArray[np.float32]]


@dataclass(frozen=True)
class Golden:
    """A query and the vector that the trained model gives it.

    Attributes:
        user: id of a known user, or a raw user whose values JSON can hold.
        vector: ``[D]`` float32.
        at: moment of the query, microseconds UTC; needed where the log has a clock.
        context: what a known user asks: context columns whose values JSON can hold; None: nothing.
    """

    user: User
    vector: NDArray[np.float32]
    at: int | None = None
    context: Mapping[str, Any] | None = None


def record(queries: Sequence[Golden], items: IdMap, search: VectorSearch) -> dict[str, Any]:
    """The content of ``golden.json``: queries, vectors and exact answers."""
    vectors = np.stack([q.vector for q in queries]).astype(np.float32)
    k = min(_K, len(items))
    rows, scores = search.exact(vectors, k)
    ids = items.external(rows)
    return {
        "index_recall": recall_at(search.scores(vectors, search.search(vectors, k)[0]), scores),
        "queries": [
            {
                "user": q.user if isinstance(q.user, str | int) else dict(q.user),
                "at": q.at,
                "context": None if q.context is None else dict(q.context),
                "vector": vectors[i].tolist(),
                "items": ids[i].tolist(),
                "scores": scores[i].tolist(),
            }
            for i, q in enumerate(queries)
        ],
    }


def record_matches(
    items: Sequence[Any], vectors: NDArray[np.float32], users: IdMap, embeddings: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """The users that items find, for ``golden.json``.

    Args:
        items: ``[M]`` external ids.
        vectors: ``[M, D]`` their embeddings.
        users: ids of the known users.
        embeddings: ``[U, D]`` theirs.
    """
    rows, scores = match(vectors, embeddings, min(_K, len(users)))
    ids = users.external(rows)
    return [{"item": item, "users": ids[i].tolist(), "scores": scores[i].tolist()} for i, item in enumerate(items)]


def replay_matches(
    recorded: Mapping[str, Any],
    items: IdMap,
    vectors: NDArray[np.float32],
    known: KnownUsers | None,
    users: IdMap | None,
) -> None:
    """Match again and compare.

    Args:
        recorded: the content of ``golden.json``.
        items: item ids of the opened bundle.
        vectors: ``[N, D]`` its item embeddings.
        known: its known users.
        users: their ids.

    Raises:
        BundleError: users score differently than at the export.
    """
    matches = recorded.get("matches", [])
    if known is None or known.embeddings is None or users is None:
        return
    if not matches:
        raise BundleError(f"{GOLDEN}: users have embeddings, but no match is written down")
    rows = items.rows([m["item"] for m in matches])
    found = np.stack([users.rows(m["users"]) for m in matches])
    now = np.einsum("md,mkd->mk", vectors[rows], known.embeddings[found])
    was = np.asarray([m["scores"] for m in matches], np.float32)
    if (rows < 0).any() or (found < 0).any() or not np.allclose(now, was, rtol=1e-3, atol=1e-4):
        raise BundleError(
            f"{GOLDEN}: users score differently than at the export; their ids and embeddings do not belong together. "
            "Export again"
        )


def replay(
    recorded: Mapping[str, Any], embed: Embed, items: IdMap,
    search: VectorSearch,
) -> None:  # fmt: skip
    """Ask again and compare.

    Args:
        recorded: the content of ``golden.json``.
        embed: (user, at, context) → ``[D]``, as the opened bundle does it.
        items: item ids of the opened bundle.
        search: its index and embeddings.

    Raises:
        BundleError: an answer differs; says whether the tower, the items or the index is not what was exported.
    """
    queries = recorded["queries"]
    if not queries:
        raise BundleError(f"{GOLDEN}: no queries")
    for i, query in enumerate(queries):
        vector = embed(query["user"], query["at"], query.get("context"))
        was = np.asarray(query["vector"], np.float32)
        away = float(np.linalg.norm(vector - was)) if vector.shape == was.shape else np.inf
        if not away <= _FAR * max(1e-6, float(np.linalg.norm(was))):
            raise BundleError(
                f"{GOLDEN}: query {i} gives another vector than the trained model did (distance {away:.3g}); "
                "the user tower, a vocabulary or a known user is not what was exported. Export again"
            )
    vectors = np.asarray([q["vector"] for q in queries], np.float32)
    was_scores = np.asarray([q["scores"] for q in queries], np.float32)
    rows = np.stack([items.rows(q["items"]) for q in queries])
    now = np.einsum("qd,qkd->qk", vectors, search.embeddings[rows])
    if (rows < 0).any() or not np.allclose(now, was_scores, rtol=1e-3, atol=1e-4):
        raise BundleError(
            f"{GOLDEN}: items score differently than at the export; ids and embeddings do not belong together. "
            "Export again"
        )
    found = recall_at(search.scores(vectors, search.search(vectors, rows.shape[1])[0]), was_scores)
    if found < recorded["index_recall"] - _WORSE:
        raise BundleError(
            f"{GOLDEN}: the index finds {found:.3f} of the best items, {recorded['index_recall']:.3f} at the export; "
            "it is not the index of these embeddings. Export again"
        )
