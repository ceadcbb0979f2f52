"""The answers of a bundle: which items for which user.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features import IdMap, Ragged
from towers.features import columns as c
from towers.index import layout
from towers.index.bm25 import Bm25
from towers.index.faiss_setup import faiss
from towers.index.filters import Filter, parse
from towers.index.fusion import Fusion, search_fused
from towers.index.golden import User, replay, replay_matches
from towers.index.matching import match, matchable, takers
from towers.index.opening import OpenBundle, open_bundle
from towers.index.requests import (
    check_fields,
    encode_raw,
    history_inputs,
    moment,
    pad_histories,
    raw_events,
)

Users: TypeAlias = User | Sequence[User] | NDArray[Any] | pa.Array
When: TypeAlias = dt.datetime | str | int
Contexts: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Results:
    """Items and scores, best first; unpacks as ``ids, scores``.

    Attributes:
        ids: external ids, int64 or objects of type str. One request: ``[≤ k]``, only what there is.
            Many: ``[Q, k]``; where fewer items are eligible, the places left are ``-1`` or None.
        scores: float32 of the same shape, dot product or cosine. ``-inf`` marks the places left: it tells
            them from an item whose id is ``-1``.
        unknown: ``[Q]`` (one request: a number) items of a raw history that the catalogue does not have;
            they were skipped.
    """

    ids: NDArray[Any]
    scores: NDArray[np.float32]
    unknown: Any = 0

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """The ids, then the scores."""
        return iter((self.ids, self.scores))


class Retriever:
    """Answers from one bundle. It never changes: safe to ask from many threads.

    Make one with ``Retriever.open``.
    """

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        self._bm25: dict[str, Bm25] = {}  # by item attribute
        self._posted = _micros(bundle.attributes, c.POSTED, np.iinfo(np.int64).min)
        self._expires = _micros(bundle.attributes, c.EXPIRES, np.iinfo(np.int64).max)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, threads: int | None = None) -> Retriever:
        """Check a bundle, open it and replay its golden queries.

        Args:
            path: the folder.
            verify: hash every file before it is parsed. Turn it off only for a bundle that this machine
                has verified before.
            threads: of one query, for FAISS (where it is a setting of the whole process) and the user tower.

        Raises:
            BundleError: the bundle is damaged, incomplete or hostile, or does not answer as it did when it
                was exported.
        """
        if threads is not None:
            faiss.omp_set_num_threads(threads)
        retriever = cls(open_bundle(Path(path), verify=verify, threads=threads))
        bundle = retriever._bundle
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

        Raises:
            DataError: an unknown user id, or a field that cannot be encoded; names it.
            ConfigError: a filter or a fusion that does not fit the attributes.
        """
        many, one = _many(users)
        now = self._moment(at)
        asked = self._contexts(many, context, one)
        vectors, unknown = self._vectors(many, now, asked)
        mine, allowed = self._exclusions(many, exclude, one), self._allowed(filter, now)
        if fuse is None:
            rows, scores = self._bundle.search.search(vectors, k, allowed=allowed, exclude=mine)
        else:
            words, bm25 = [_words(a, fuse.query) for a in asked], self._lexical(fuse.text)
            rows, scores = search_fused(
                vectors, words, self._bundle.search.embeddings, bm25, fuse, k, allowed=allowed, exclude=mine
            )
        return self._results(rows, scores, one, unknown)

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int = 10,
        *,
        exclude: Sequence[Any] | None = None,
        filter: Filter | str | None = None,
        at: When | None = None,
        exact: bool = False,
    ) -> Results:
        """The ``k`` best eligible items for query vectors.

        Args:
            vectors: ``[Q, D]``, or ``[D]`` for one.
            k: results wanted.
            exclude: as in ``recommend``.
            filter: as in ``recommend``.
            at: as in ``recommend``.
            exact: score every eligible item instead of asking the index.

        Raises:
            ConfigError: vectors that are not of the model's space: another dimension, not finite, or, where the
                similarity is cosine, not of norm 1.
        """
        queries = np.asarray(vectors, np.float32)
        one = queries.ndim == 1
        queries = queries[None] if one else queries
        if queries.ndim == 2:
            self._bundle.similarity.check(queries, "query vectors")
        allowed = self._allowed(filter, self._moment(at))
        mine = None if exclude is None else self._lists(exclude, len(queries), one)
        found = self._bundle.search.search(queries, k, allowed=allowed, exclude=mine, exact=exact)
        return self._results(*found, one, np.zeros(len(queries), np.int64))

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
        many, one = _many(items)
        rows = self._item_rows(many)
        known, users = matchable(self._bundle)
        allowed = None
        if filter is not None:
            if known.attributes is None:
                raise ConfigError(
                    "the users of this bundle have no attributes; set users.attributes in the data config"
                )
            allowed = (parse(filter) if isinstance(filter, str) else filter).mask(known.attributes)
        others = users.rows(exclude or [])
        mine = [np.union1d(takers(known, int(r)), others[others >= 0]) for r in rows]
        vectors = np.asarray(self._bundle.search.embeddings[rows], np.float32)
        assert known.embeddings is not None  # `matchable` has refused the bundle otherwise
        found, scores = match(vectors, known.embeddings, k, allowed=allowed, exclude=mine)
        return _answers(users, found, scores, one, np.zeros(len(rows), np.int64))

    def vector(self, users: Users, *, at: When | None = None, context: Contexts | None = None) -> NDArray[np.float32]:
        """``[D]`` of one user, ``[Q, D]`` of many, as the user tower gives them."""
        many, one = _many(users)
        vectors, _ = self._vectors(many, self._moment(at), self._contexts(many, context, one))
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
        rows, known = self._user_rows(list(users)), self._bundle.known
        table = None if known is None else known.attributes
        return pa.table({}) if table is None else table.take(pa.array(rows))

    def _item_rows(self, items: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
        rows = self._bundle.items.rows(items)
        if (rows < 0).any():
            absent = list(items)[int(np.flatnonzero(rows < 0)[0])]
            raise DataError(f"no item {absent!r}", where="request", cure="ask `item in retriever` first")
        return rows

    def _contexts(self, users: Sequence[User], context: Contexts | None, one: bool) -> list[Mapping[str, Any]]:
        """``[Q]`` mappings that hold the context fields of each request."""
        if users and isinstance(users[0], Mapping):
            if context is not None:
                raise DataError("a context beside raw users", where="request", cure="put it into their own fields")
            return [u if isinstance(u, Mapping) else {} for u in users]
        if context is None:
            return [{}] * len(users)
        given = [context] if isinstance(context, Mapping) else list(context)
        if len(given) != len(users) or one != isinstance(context, Mapping):
            raise DataError(
                f"{len(given)} contexts for {len(users)} users", where="request, context", cure="give one each"
            )
        check_fields(given, self._bundle.context.columns, histories=False)
        return given

    def _lexical(self, text: str) -> Bm25:
        """BM25 over an attribute of the items; worked out when it is first asked for."""
        if text not in self._bm25:
            table = self._bundle.attributes
            if text not in table.column_names or not pa.types.is_string(table.schema.field(text).type):
                names = [f.name for f in table.schema if pa.types.is_string(f.type)]
                raise ConfigError(f"fusion: no text {text!r} among the item attributes; there are {names or 'none'}")
            self._bm25[text] = Bm25(table[text].to_pylist())
        return self._bm25[text]

    def _vectors(
        self, users: Sequence[User], at: int, context: Sequence[Mapping[str, Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``[Q, D]`` vectors, and ``[Q]`` history items that were not known."""
        b = self._bundle
        unknown = np.zeros(len(users), np.int64)
        if not users:
            return np.zeros((0, b.manifest["dim"]), np.float32), unknown
        if isinstance(users[0], Mapping):
            raws: list[Any] = list(users)
            if not all(isinstance(u, Mapping) for u in raws):
                raise DataError("ids and raw users in one request", where="request", cure="send them separately")
            check_fields(raws, (*b.users.columns, *b.context.columns))
            inputs = encode_raw(b.users, raws, "user") | encode_raw(b.context, raws, "context")
            pairs = [raw_events(u, b.items, b.schema) for u in raws]
            events, unknown = [e for e, _ in pairs], np.asarray([n for _, n in pairs], np.int64)
        else:
            rows = self._user_rows(users)
            assert b.known is not None  # `_user_rows` has refused ids otherwise
            inputs = {f"user.{name}": np.asarray(a[rows]) for name, a in b.known.features.items()}
            inputs |= encode_raw(b.context, context, "context")
            events = [b.known.events(int(r)) for r in rows]
        if b.history_inputs is not None:
            inputs |= history_inputs(pad_histories(events, b.schema, at), b.history_inputs)
        vectors = np.asarray(b.user_tower.run(inputs)["embedding"], np.float32)
        if vectors.shape != (len(users), b.manifest["dim"]) or not np.isfinite(vectors).all():
            raise DataError(
                f"the user tower gave {list(vectors.shape)}, finite: {bool(np.isfinite(vectors).all())}",
                where="request",
                cure="check the numbers in the request",
            )
        return vectors, unknown

    def _user_rows(self, users: Sequence[Any]) -> NDArray[np.int64]:
        b = self._bundle
        if b.user_ids is None:
            raise DataError("this bundle has no known users", where="request", cure="send raw features instead of ids")
        rows = b.user_ids.rows(users)
        if (rows < 0).any():
            absent = [users[i] for i in np.flatnonzero(rows < 0)[:5]]
            raise DataError(
                f"{int((rows < 0).sum())} unknown users, {absent} among them",
                where="request",
                cure="send raw features for users that were not exported",
            )
        return rows

    def _exclusions(self, users: Sequence[User], exclude: Sequence[Any] | None, one: bool) -> Ragged | None:
        given = None if exclude is None else self._lists(exclude, len(users), one)
        known = self._bundle.known
        if known is None or not users or isinstance(users[0], Mapping):
            return given
        o, v = known.exclusions
        own = [np.asarray(v[o[r] : o[r + 1]]) for r in self._user_rows(users)]
        if given is not None:
            own = [np.union1d(a, given.values[given.offsets[i] : given.offsets[i + 1]]) for i, a in enumerate(own)]
        return _ragged(own)

    def _lists(self, exclude: Sequence[Any], queries: int, one: bool) -> Ragged:
        """Excluded rows of each query; ids that the catalogue does not have cannot come anyway."""
        if isinstance(exclude, str | bytes):
            raise DataError(f"exclude is {exclude!r}; expected a list of item ids", where="request")
        given = list(exclude)
        nested = bool(given) and all(isinstance(e, list | tuple | set | np.ndarray) for e in given)
        if nested and (one or len(given) != queries):
            raise DataError(f"{len(given)} lists to exclude for {queries} requests", where="request, exclude")
        lists = [self._bundle.items.rows(e) for e in (given if nested else [given])]
        lists = [np.unique(rows[rows >= 0]) for rows in lists]
        return _ragged(lists if nested else lists * queries)

    def _allowed(self, condition: Filter | str | None, at: int) -> NDArray[np.bool_] | None:
        """``[N]`` items that pass the filter and are live; None: all."""
        b, allowed = self._bundle, None
        if condition is not None:
            allowed = (parse(condition) if isinstance(condition, str) else condition).mask(b.attributes)
        for bound, live in ((self._posted, np.less_equal), (self._expires, np.greater)):
            if bound is not None:
                passing = live(bound, at)
                if not passing.all():
                    allowed = passing if allowed is None else allowed & passing
        return allowed

    def _moment(self, at: When | None) -> int:
        if at == "export":
            end = self._bundle.manifest["data"].get("end")
            if end is None and (self._posted is not None or self._expires is not None):
                raise ConfigError("at='export', but the bundle does not know when its data end; pass a time")
            return int(end or 0)
        return moment(dt.datetime.now(dt.UTC) if at is None else at, "at")

    def _results(self, rows: NDArray[np.int64], scores: NDArray[np.float32], one: bool, unknown: Any) -> Results:
        return _answers(self._bundle.items, rows, scores, one, unknown)


def _answers(ids: IdMap, rows: NDArray[np.int64], scores: NDArray[np.float32], one: bool, unknown: Any) -> Results:
    """Rows as external ids; for one request without the places that are left."""
    if not one:
        return Results(ids.external(rows), scores, unknown)
    there = rows[0] >= 0
    return Results(ids.external(rows[0][there]), scores[0][there], int(unknown[0]))


def _words(request: Mapping[str, Any], field: str) -> str:
    """The query's text."""
    value = request.get(field)
    if not isinstance(value, str):
        raise DataError(
            f"{field!r} is {value!r}; a fusion with BM25 needs the query's words",
            where="request",
            cure="send them, name another field (Fusion(query=…)), or leave fuse out",
        )
    return value


def _many(users: Users) -> tuple[Sequence[User], bool]:
    """The users as a list, and whether just one was asked for."""
    if isinstance(users, str | int | np.integer | Mapping):
        return [users if not isinstance(users, np.integer) else int(users)], True
    if isinstance(users, pa.Array | pa.ChunkedArray):
        return users.to_pylist(), False
    if isinstance(users, np.ndarray):
        return users.tolist(), False
    return list(users), False


def _ragged(lists: Sequence[NDArray[np.int64]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    return Ragged(offsets, np.concatenate(lists) if lists else np.zeros(0, np.int64))


def _micros(table: pa.Table, name: str, null: int) -> NDArray[np.int64] | None:
    """``[N]`` microseconds of a time column with nulls filled; None if there is no such column."""
    if name not in table.column_names:
        return None
    return np.asarray(table[name].combine_chunks().cast(pa.int64()).fill_null(null).to_numpy(), np.int64)
