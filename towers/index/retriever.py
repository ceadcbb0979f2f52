"""The answers of a bundle: which items for which user.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features import Encoders, Ragged, open_encoder
from towers.index import layout
from towers.index.eligibility import Eligibility, Eligible, exclude_lists, exclusions
from towers.index.encoding import Contexts, Users, When, contexts, many, moment_of, query_vectors, user_rows
from towers.index.faiss_setup import faiss
from towers.index.filters import Filter
from towers.index.fusion import Fusion, Lexical, search_fused
from towers.index.golden import replay, replay_matches
from towers.index.matching import Matchable, match
from towers.index.opening import OpenBundle, open_bundle
from towers.index.planner import Plan
from towers.index.results import Results, answers


class Retriever:
    """Answers from one bundle. It never changes: safe to ask from many threads.

    Make one with ``Retriever.open``.
    """

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        self._lexical = Lexical(bundle.attributes)
        self._eligibility = Eligibility(bundle.attributes)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        threads: int | None = None,
        encoders: Encoders = open_encoder,
    ) -> Retriever:
        """Check a bundle, open it and replay its golden queries.

        Args:
            path: the folder.
            verify: hash every file before it is parsed. Turn it off only for a bundle that this machine
                has verified before.
            threads: of one query, for FAISS (where it is a setting of the whole process) and the user tower.
            encoders: what opens a sentence encoder by its name, for bundles that read raw text by one. Whatever it
                opens must be the model that the bundle was exported with.

        Raises:
            BundleError: the bundle is damaged, incomplete or hostile, or does not answer as it did when it
                was exported.
            ConfigError: the sentence encoder of its queries is not installed, or is another model.
        """
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        retriever = cls(open_bundle(Path(path), verify=verify, threads=threads, encoders=encoders))
        bundle = retriever._bundle
        bundle.context.check_encoders()  # known users do without, queries do not
        with layout.reading(layout.GOLDEN):
            replay(
                bundle.golden,
                lambda user, at, context: retriever.vector(user, at=at, context=context),
                bundle.items,
                bundle.search,
            )
            replay_matches(bundle.golden, bundle.items, bundle.search.embeddings, bundle.known, bundle.user_ids)
        return retriever

    def __len__(self) -> int:
        """Number of items."""
        return len(self._bundle.items)

    def __contains__(self, item: object) -> bool:
        """Whether there is an item with this id."""
        return item in self._bundle.items

    @property
    def bundle(self) -> OpenBundle:
        """What was opened: manifest, schema, similarity and the rest."""
        return self._bundle

    def recommend(
        self,
        users: Users,
        k: int = 10,
        *,
        exclude: Sequence[Any] | None = None,
        filter: Filter | str | None = None,
        at: When | None = None,
        context: Contexts | None = None,
        fuse: Fusion | None = None,
        explain: bool = False,
    ) -> Results:
        """The ``k`` best eligible items for one user or many.

        Args:
            users: ids of known users, whose features, history and exclusions travel in the bundle, or raw
                users: mappings of feature columns, with ``history`` (item ids, the oldest first) and, if
                known, ``history_actions`` and ``history_times``. A list or array asks for many.
            k: results wanted.
            exclude: item ids that must not come: a list, or for many users a list of lists. A raw user's
                history is not excluded by itself.
            filter: a condition on the item attributes, see ``filters``.
            at: the moment of the request (default: now; ``"export"``: the end of the bundle's data). Items not
                posted yet or expired are not eligible, later events do not enter histories.
            context: context features of the request (the query's text) for ids of known users: a mapping, or for
                many users a list of them. A raw user has them among its own fields.
            fuse: rank by BM25 over the items' text too, see ``fusion``. Every item is then scored by both.
            explain: say in ``Results.plan`` how the items were found and how many were eligible.

        Raises:
            DataError: an unknown user id, or a field that cannot be encoded; names it.
            ConfigError: a filter or a fusion that does not fit the attributes.
        """
        asking, one = many(users)
        now = moment_of(self._bundle, at)
        asked = contexts(self._bundle, asking, context, one=one)
        vectors, unknown = query_vectors(self._bundle, asking, now, asked)
        mine = exclusions(self._bundle, asking, self._excluded(exclude, len(asking), one))
        eligible = self._eligibility.at(now, filter)
        if fuse is None:
            (rows, scores), plan = self._bundle.search.explained(vectors, k, allowed=eligible.rows, exclude=mine)
        else:
            texts, bm25 = [fuse.words(a) for a in asked], self._lexical.over(fuse.text)
            rows, scores = search_fused(
                vectors, texts, self._bundle.search.embeddings, bm25, fuse, k, allowed=eligible.rows, exclude=mine
            )
            plan = Plan("exact", len(self), len(self) if eligible.rows is None else len(eligible.rows), 0, k)
        told = _told(plan, eligible) if explain else None
        return answers(self._bundle.items, rows, scores, one=one, unknown=unknown, plan=told, bundle=self._bundle.id)

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int = 10,
        *,
        exclude: Sequence[Any] | None = None,
        filter: Filter | str | None = None,
        at: When | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> Results:
        """The ``k`` best eligible items for query vectors.

        Args:
            vectors: ``[Q, D]``, or ``[D]`` for one.
            k: results wanted.
            exclude: as in ``recommend``.
            filter: as in ``recommend``.
            at: as in ``recommend``.
            exact: score every eligible item instead of asking the index.
            explain: as in ``recommend``.

        Raises:
            ConfigError: vectors that are not of the model's space: another dimension, not finite, or, where the
                similarity is cosine, not of norm 1.
        """
        queries = np.asarray(vectors, np.float32)
        one = queries.ndim == 1
        queries = queries[None] if one else queries
        if queries.ndim == 2:
            self._bundle.similarity.check(queries, "query vectors")
        eligible = self._eligibility.at(moment_of(self._bundle, at), filter)
        mine = self._excluded(exclude, len(queries), one)
        (rows, scores), plan = self._bundle.search.explained(
            queries, k, allowed=eligible.rows, exclude=mine, exact=exact
        )
        told = _told(plan, eligible) if explain else None
        return answers(self._bundle.items, rows, scores, one=one, plan=told, bundle=self._bundle.id)

    def similar(self, item: Any, k: int = 10, *, filter: Filter | str | None = None, at: When | None = None) -> Results:
        """The ``k`` items whose embeddings score highest with this item's, without itself.

        Raises:
            DataError: there is no such item.
        """
        vector = np.array(self._bundle.search.embeddings[self._item_rows([item])[0]])
        return self.search(vector, k, exclude=[item], filter=filter, at=at)

    def match(
        self,
        items: Any,
        k: int = 10,
        *,
        exclude: Sequence[Any] | None = None,
        filter: Filter | str | None = None,
    ) -> Results:
        """The other way round: the ``k`` best known users for one item or many, by exact search.

        A user who has taken the item is not matched with it. Users are compared as they were at the end of the
        bundle's data.

        Args:
            items: an item id, or a list or array of them.
            k: users wanted.
            exclude: ids of users who must not come, for all items.
            filter: a condition on the user attributes (``users.attributes`` of the data config), see ``filters``.

        Returns:
            user ids and scores, otherwise as ``recommend``.

        Raises:
            DataError: there is no such item, or the bundle's users have no embeddings.
            ConfigError: a filter that does not fit the attributes.
        """
        asking, one = many(items)
        rows = self._item_rows(asking)
        users = self._users
        vectors = np.asarray(self._bundle.search.embeddings[rows], np.float32)
        allowed, mine = users.passing(filter), users.not_again(rows, exclude or [])
        found, scores = match(vectors, users.embeddings, k, allowed=allowed, exclude=mine)
        return answers(users.ids, found, scores, one=one, bundle=self._bundle.id)

    def vector(self, users: Users, *, at: When | None = None, context: Contexts | None = None) -> NDArray[np.float32]:
        """``[D]`` of one user, ``[Q, D]`` of many, as the user tower gives them."""
        asking, one = many(users)
        asked = contexts(self._bundle, asking, context, one=one)
        vectors, _ = query_vectors(self._bundle, asking, moment_of(self._bundle, at), asked)
        return vectors[0] if one else vectors

    def attributes(self, items: Sequence[Any] | NDArray[Any]) -> pa.Table:
        """The attributes of these items, in their order, for display.

        Raises:
            DataError: an unknown id.
        """
        return self._bundle.attributes.take(pa.array(self._item_rows(items)))

    def user_attributes(self, users: Sequence[Any] | NDArray[Any]) -> pa.Table:
        """The attributes of these known users, in their order, for display; no columns where there are none.

        Raises:
            DataError: an unknown id.
        """
        rows, known = user_rows(self._bundle, list(users)), self._bundle.known
        table = None if known is None else known.attributes
        return pa.table({}) if table is None else table.take(pa.array(rows))

    @cached_property
    def _users(self) -> Matchable:
        return Matchable.of(self._bundle)

    def _item_rows(self, items: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
        rows = self._bundle.items.rows(items)
        if (rows < 0).any():
            absent = list(items)[int(np.flatnonzero(rows < 0)[0])]
            raise DataError(f"no item {absent!r}", where="request", cure="ask `item in retriever` first")
        return rows

    def _excluded(self, exclude: Sequence[Any] | None, queries: int, one: bool) -> Ragged | None:
        return exclude_lists(self._bundle.items, exclude, queries, one=one)


def _told(plan: Plan, eligible: Eligible) -> Plan:
    """The plan with the counts of the filter and the moment."""
    return replace(plan, live=eligible.live, passing=eligible.passing)
