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

from towers.errors import ConfigError, DataError
from towers.features import Encoders, open_encoder
from towers.index import layout
from towers.index.bm25 import Bm25Parts
from towers.index.eligibility import Eligible, exclude_lists, exclusions
from towers.index.encoding import Contexts, Users, When, contexts, many, moment_of, query_vectors, user_rows
from towers.index.faiss_setup import faiss
from towers.index.filters import Filter
from towers.index.fusion import Fusion, search_fused
from towers.index.golden import replay, replay_matches
from towers.index.live import Items, LiveItems
from towers.index.live_catalogue import Catalogue, Part, ids_of
from towers.index.live_items import ItemReader
from towers.index.live_search import eligible_at, joined, search
from towers.index.live_store import LiveStore
from towers.index.matching import Matchable, match
from towers.index.opening import OpenBundle, open_bundle
from towers.index.planner import Plan
from towers.index.results import Results, answers


class Retriever:
    """Answers from one bundle, and from what was written since, if it was opened with a store. Safe in threads.

    Make one with ``Retriever.open``.
    """

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        self._as_exported = Catalogue(bundle, (Part.of(bundle),))
        self._live: LiveItems | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        threads: int | None = None,
        encoders: Encoders = open_encoder,
        live: LiveStore | str | Path | None = None,
        since: When | None = None,
        device: str = "cpu",
    ) -> Retriever:
        """Check a bundle, open it and replay its golden queries.

        Args:
            path: the folder.
            verify: hash every file before it is parsed. Turn it off only for a bundle that this machine
                has verified before.
            threads: of one query, for FAISS (where it is a setting of the whole process) and the user tower.
            encoders: what opens a sentence encoder by its name, for bundles that read raw text by one. Whatever it
                opens must be the model that the bundle was exported with.
            live: where ``upsert``, ``delete`` and ``expire`` are kept: a store, or its file. What it holds that is
                newer than the bundle is replayed. See ``docs/live.md``.
            since: what was written up to this moment the bundle knows itself (default: the end of its data, or the
                moment of its export where the data have no clock).
            device: ``cuda`` loads index and embeddings onto the GPU too and searches there; needs torch and
                ``towers[gpu]``.

        Raises:
            BundleError: the bundle is damaged, incomplete or hostile, or does not answer as it did when it
                was exported; or the store is damaged or belongs to another catalogue.
            ConfigError: the sentence encoder of its queries is not installed, or is another model; or the device is
                not here.
        """
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        retriever = cls(open_bundle(Path(path), verify=verify, threads=threads, encoders=encoders, device=device))
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
        if live is not None:  # after the golden queries: what was written since must not change their answers
            reader = ItemReader.open(Path(path).resolve(), bundle, threads=threads, encoders=encoders)
            newest = None if since is None else moment_of(bundle, since)
            retriever._live = LiveItems(live, retriever._as_exported, reader, newest)
        return retriever

    @property
    def live(self) -> LiveItems:
        """What was written since the bundle.

        Raises:
            ConfigError: the bundle was opened without a store.
        """
        if self._live is None:
            raise ConfigError("this retriever has no store to write to; open it with live='catalogue.sqlite'")
        return self._live

    def upsert(self, items: Items, vectors: NDArray[np.float32] | None = None) -> int:
        """Write items, see ``LiveItems.upsert``."""
        return self.live.upsert(items, vectors)

    def delete(self, items: Sequence[Any] | NDArray[Any]) -> int:
        """Take items away, see ``LiveItems.delete``."""
        return self.live.delete(items)

    def expire(self, items: Sequence[Any] | NDArray[Any], at: When) -> int:
        """Say until when items may be recommended, see ``LiveItems.expire``."""
        return self.live.expire(items, moment_of(self._bundle, at))

    def __len__(self) -> int:
        """Number of items."""
        return len(self._catalogue)

    def __contains__(self, item: object) -> bool:
        """Whether there is an item with this id."""
        return item in self._catalogue

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
        c = self._catalogue
        vectors, unknown = self._vectors(c, asking, now, asked)
        given = exclude_lists(c, exclude, len(asking), one=one)
        mine = exclusions(self._bundle, asking, given, c.current)
        eligible = eligible_at(c, now, filter)
        if fuse is None:
            (rows, scores), plan = search(c, vectors, k, eligible=eligible, exclude=mine)
        else:
            texts, bm25 = [fuse.words(a) for a in asked], Bm25Parts([p.lexical.over(fuse.text) for p in c.parts])
            embeddings, allowed = [p.search.embeddings for p in c.parts], joined(eligible, c.parts)
            rows, scores = search_fused(vectors, texts, embeddings, bm25, fuse, k, allowed=allowed, exclude=mine)
            plan = Plan("exact", len(c), len(c) if allowed is None else len(allowed), 0, k, written=c.written)
        told = _told(plan, eligible) if explain else None
        return answers(c, rows, scores, one=one, unknown=unknown, plan=told, bundle=self._bundle.id)

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
        return self._search(self._catalogue, vectors, k, exclude, filter, at, exact=exact, explain=explain)

    def similar(
        self,
        item: Any,
        k: int = 10,
        *,
        exclude: Sequence[Any] | None = None,
        filter: Filter | str | None = None,
        at: When | None = None,
    ) -> Results:
        """The ``k`` items whose embeddings score highest with this item's, without itself.

        Args:
            item: an item id.
            k: results wanted.
            exclude: ids of other items that must not come.
            filter: as in ``recommend``.
            at: as in ``recommend``.

        Raises:
            DataError: there is no such item.
        """
        c = self._catalogue
        return self._search(c, c.embeddings[_rows(c, [item])][0], k, [item, *(exclude or [])], filter, at)

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
        c, users = self._catalogue, self._users
        vectors = np.asarray(c.embeddings[_rows(c, asking)], np.float32)
        taken = self._bundle.items.rows(asking)  # known users took what was in the bundle
        allowed, mine = users.passing(filter), users.not_again(taken, exclude or [])
        found, scores = match(vectors, users.embeddings, k, allowed=allowed, exclude=mine)
        return answers(users.ids, found, scores, one=one, bundle=self._bundle.id)

    def vector(self, users: Users, *, at: When | None = None, context: Contexts | None = None) -> NDArray[np.float32]:
        """``[D]`` of one user, ``[Q, D]`` of many, as the user tower gives them."""
        asking, one = many(users)
        asked = contexts(self._bundle, asking, context, one=one)
        vectors, _ = self._vectors(self._catalogue, asking, moment_of(self._bundle, at), asked)
        return vectors[0] if one else vectors

    def attributes(self, items: Sequence[Any] | NDArray[Any]) -> pa.Table:
        """The attributes of these items, in their order, for display. An item deleted meanwhile still has its own.

        Raises:
            DataError: an unknown id.
        """
        c = self._catalogue
        return c.take(_known(c.newest(items), items))

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

    @property
    def _catalogue(self) -> Catalogue:
        """Of this moment. A request takes it once."""
        return self._as_exported if self._live is None else self._live.now

    def _vectors(
        self, c: Catalogue, users: Sequence[Any], at: int, context: Sequence[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        items, inputs_of = ids_of(self._bundle, c), c.history_inputs
        return query_vectors(self._bundle, users, at, context, items=items, inputs_of=inputs_of)

    def _search(
        self, c: Catalogue, vectors: NDArray[np.float32], k: int, exclude: Sequence[Any] | None,
        filter: Filter | str | None, at: When | None, *, exact: bool = False, explain: bool = False,
    ) -> Results:  # fmt: skip
        queries = np.asarray(vectors, np.float32)
        one = queries.ndim == 1
        queries = queries[None] if one else queries
        if queries.ndim == 2:
            self._bundle.similarity.check(queries, "query vectors")
        eligible = eligible_at(c, moment_of(self._bundle, at), filter)
        mine = exclude_lists(c, exclude, len(queries), one=one)
        (rows, scores), plan = search(c, queries, k, eligible=eligible, exclude=mine, exact=exact)
        told = _told(plan, eligible) if explain else None
        return answers(c, rows, scores, one=one, plan=told, bundle=self._bundle.id)


def _rows(catalogue: Catalogue, items: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    return _known(catalogue.rows(items), items)


def _known(rows: NDArray[np.int64], items: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    if (rows < 0).any():
        absent = list(items)[int(np.flatnonzero(rows < 0)[0])]
        raise DataError(f"no item {absent!r}", where="request", cure="ask `item in retriever` first")
    return rows


def _told(plan: Plan, eligible: Sequence[Eligible]) -> Plan:
    """The plan with the counts of the filter and the moment."""
    return replace(plan, live=sum(e.live for e in eligible), passing=sum(e.passing for e in eligible))
