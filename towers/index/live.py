"""Items written since a bundle: visible to the next query, durable once acknowledged.

    retriever = Retriever.open("bundles/monday", live="catalogue.sqlite")
    retriever.upsert([{"item": "j-1", "title": "Night nurse", "place": "Berlin", "expires": "2026-12-01T00:00:00Z"}])
    retriever.expire(["j-1"], at="2026-11-24T18:00:00+01:00")
    retriever.delete(["j-7"])

A write goes into the store first; when that has it on the disk, every retriever of this process that reads the store
takes it over, and the call returns. What retrievers hold in memory is thus what the store says, whoever wrote it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import BundleError, ConfigError, DataError
from towers.features import columns as c
from towers.index.attributes import whole
from towers.index.live_catalogue import Catalogue
from towers.index.live_compaction import due, merged, taken_over, without_replaced
from towers.index.live_items import ItemReader, space_of
from towers.index.live_rows import LiveRows
from towers.index.live_store import Change, Item, LiveStore
from towers.index.requests import moment

Items: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pa.Table
Floats = NDArray[np.float32]
_BLOCK = 4096  # items that the item tower reads at once


class _Read(NamedTuple):
    """Fields of items as the store keeps them, and as they are read."""

    texts: list[str]
    fields: list[dict[str, Any]]
    table: pa.Table


class LiveItems:
    """A bundle's items and those of a store, as they are now. Safe in threads; readers never wait.

    Args:
        store: what is written, or its file.
        exported: the bundle's catalogue.
        reader: of raw items, as the bundle's model reads them.
        since: writes up to this moment the bundle knows itself, microseconds UTC; None: the end of its data, or the
            moment of its export where the data have no clock.

    Attributes:
        now: the catalogue of this moment.
        store: what is written.
        since: see above.
        skipped: id → why an item that the store holds is not searched: it was given as a vector of another model, or
            its fields do not fit this one.
    """

    now: Catalogue

    def __init__(
        self, store: LiveStore | str | Path, exported: Catalogue, reader: ItemReader, since: int | None = None
    ) -> None:
        self.store = store if isinstance(store, LiveStore) else LiveStore(store)
        manifest = exported.bundle.manifest
        known = since if since is not None else manifest["data"]["end"]
        self.since = moment(manifest["created"], "created") if known is None else known
        self.skipped: dict[int | str, str] = {}
        self._reader, self._space = reader, space_of(manifest)
        self._rows = LiveRows(exported.bundle, exported.parts[0])
        self._written = self.since
        self._being_written: _Read | None = None
        self._lock = threading.Lock()
        self._one_compaction = threading.Lock()
        self._compaction: threading.Thread | None = None
        self.store.claim(exported.bundle.schema.item_id, self.since)
        self.now = self._rows.catalogue()
        self._take_over()
        self.now = self._rows.catalogue()
        self.compact()
        self.store.follow(self)
        self.refresh()  # what was written before the store knew of us

    def upsert(self, items: Items, vectors: Floats | None = None) -> int:
        """Write items. What there was of an item is replaced; many at once are one commit.

        Args:
            items: fields by name, of one item or many: ``item`` (its id), the raw columns of item features and
                attributes, ``posted`` and ``expires``. What is absent counts as missing.
            vectors: ``[M, D]`` (one item: ``[D]``) embeddings of this model, instead of what the item tower gives.

        Returns:
            The number of the write; later ones have higher numbers.

        Raises:
            DataError: an id or a field that cannot be read; names it. Nothing is written.
            ConfigError: vectors that are not of the model's space.
            BundleError: the store cannot be written.
        """
        rows = items.to_pylist() if isinstance(items, pa.Table) else [items] if isinstance(items, Mapping) else items
        self._reader.check(rows)
        if vectors is not None:
            vectors = np.atleast_2d(np.asarray(vectors, np.float32))
            shape = (len(rows), self._reader.dim)
            if vectors.shape != shape:
                raise ConfigError(f"vectors have shape {list(vectors.shape)}; expected {list(shape)}")
            self.now.bundle.similarity.check(vectors, "upserted vectors")
        last = {item[c.ITEM]: i for i, item in enumerate(rows)}  # of one item given twice, the last
        ids = self._checked(last)
        rows, given = [rows[i] for i in last.values()], None if vectors is None else vectors[list(last.values())]
        if not rows:
            return self._written
        texts = [self._reader.text(row) for row in rows]
        fields = [json.loads(t) for t in texts]
        read = _Read(texts, fields, self._reader.table(fields))  # refuses what no attribute can hold
        embedded, inputs = self._embedded(ids, rows, given)
        has = np.isfinite(inputs).all(1) & (inputs.shape[1] > 0)
        written = [
            Item(item, text, v.tobytes(), h.tobytes() if there else None, self._space)
            for item, text, v, h, there in zip(ids, texts, embedded, inputs, has, strict=True)
        ]
        self._being_written = read
        try:
            return self.store.upsert(written)
        finally:
            self._being_written = None

    def delete(self, items: Sequence[Any] | NDArray[Any]) -> int:
        """Take items away. An id that is not known is remembered too: the next bundle might bring it.

        Returns:
            The number of the write.
        """
        ids = self._checked(items)
        return self.store.delete(ids) if ids else self._written

    def expire(self, items: Sequence[Any] | NDArray[Any], at: int) -> int:
        """Say until when (exclusive) items may be recommended, whatever was said before.

        Args:
            items: ids; unknown ones are remembered, as in ``delete``.
            at: microseconds UTC.

        Returns:
            The number of the write.
        """
        ids = self._checked(items)
        return self.store.expire(ids, at) if ids else self._written

    def refresh(self) -> None:
        """Take over what has been written, by other processes too. After writes of this process nobody need call it."""
        with self._lock:
            if self._take_over():
                self.now = self._rows.catalogue()
            if due(self._rows) and (self._compaction is None or not self._compaction.is_alive()):
                self._compaction = threading.Thread(target=self.compact, name="towers-compaction", daemon=True)
                self._compaction.start()

    def compact(self) -> None:
        """Merge small parts, index large ones, forget versions that were replaced. Happens by itself."""
        with self._one_compaction:
            while True:
                with self._lock:
                    rows, seen, part = self._rows, self._rows.catalogue(), due(self._rows)
                if not part:
                    return
                if part == "replaced":
                    fewer = without_replaced(seen)
                    with self._lock:
                        self._rows = taken_over(fewer, seen, rows.catalogue())
                        self.now = self._rows.catalogue()
                else:
                    one = merged(part, seen)
                    with self._lock:
                        rows.merge(one)
                        self.now = rows.catalogue()

    def _take_over(self) -> bool:
        """Bring the rows to what the store says; whether anything was new."""
        changes, written = self.store.changes(self._written)
        if changes:
            self._apply(changes)
        self._written = max(self._written, written)
        return bool(changes)

    def _apply(self, changes: Sequence[Change]) -> None:
        """See ``docs/live.md`` for what counts against a bundle that knows some of the writes itself."""
        newer = [x for x in changes if x.set_at is not None and x.set_at > self.since]
        self._rows.kill(x.item for x in newer if x.deleted)
        upserts = [x for x in newer if not x.deleted]
        for kind in self._kinds(upserts):
            self._append(kind)
        known = [x for x in changes if x.set_at is None or x.set_at <= self.since]
        self._expire_exported([x for x in known if x.expire_at is not None and x.expire_at > self.since])

    def _append(self, changes: Sequence[Change]) -> None:
        """Rows for upserts of one kind, see ``_kinds``."""
        texts = [x.fields or "{}" for x in changes]
        read = self._being_written  # by this thread, or another one that is about to find that its write is shown
        if read is None or read.texts != texts:
            read = None
        fields = [json.loads(t) for t in texts] if read is None else read.fields
        try:
            vectors, inputs = self._stored(changes) if changes[0].space == self._space else self._again(changes, fields)
            if read is not None and all(x.expire_at is None for x in changes):
                table = read.table
            else:
                table = self._reader.table([f if x.expire_at is None else f | {c.EXPIRES: x.expires}
                                            for f, x in zip(fields, changes, strict=True)])  # fmt: skip
        except DataError as e:
            half = len(changes) // 2
            for some in (changes[:half], changes[half:]) if half else ():  # until the one is found that does not fit
                self._append(some)
            if not half:
                self.skipped[changes[0].item] = e.found
            return
        for x in changes:
            self.skipped.pop(x.item, None)
        self._rows.append([x.item for x in changes], vectors, inputs, table)

    def _kinds(self, changes: Sequence[Change]) -> list[list[Change]]:
        """Upserts whose vectors can be taken as they are; those that this model can read; and the others."""
        ready: list[Change] = []
        readable: list[Change] = []
        others: list[Change] = []
        for x in changes:
            if x.space == self._space:
                ready.append(x)
            else:
                (readable if self._reader.readable(json.loads(x.fields or "{}")) else others).append(x)
        return [kind for kind in (ready, readable, others) if kind]

    def _stored(self, changes: Sequence[Change]) -> tuple[Floats, Floats]:
        dim, width = self._reader.dim, self._reader.width
        nothing = np.full(width, np.nan, np.float32).tobytes()
        vectors, inputs = b"".join(x.vector or b"" for x in changes), b"".join(x.input or nothing for x in changes)
        if len(vectors) != 4 * dim * len(changes) or len(inputs) != 4 * width * len(changes):
            raise BundleError(f"{self.store.path}: damaged: vectors of another length than {dim}. Restore a copy")
        m = len(changes)
        return np.frombuffer(vectors, "<f4").reshape(m, dim), np.frombuffer(inputs, "<f4").reshape(m, width)

    def _again(self, changes: Sequence[Change], fields: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
        """Vectors in this space, of items written by another model: from their fields, or from the bundle."""
        ids = [x.item for x in changes]
        if self._reader.readable(fields[0]):
            blocks = range(0, len(ids), _BLOCK)
            pairs = [self._reader.embed(ids[i : i + _BLOCK], fields[i : i + _BLOCK]) for i in blocks]
            return np.concatenate([v for v, _ in pairs]), np.concatenate([h for _, h in pairs])
        bundle = self.now.bundle
        rows = bundle.items.rows(ids)
        if (rows < 0).any():
            raise DataError("given as a vector of another model, without features to make one of this model")
        return self._exported(rows)

    def _exported(self, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Vectors and history inputs of items of the bundle."""
        bundle = self.now.bundle
        inputs = np.zeros((len(rows), 0)) if bundle.history_inputs is None else bundle.history_inputs[rows]
        return np.asarray(bundle.search.embeddings[rows], np.float32), np.asarray(inputs, np.float32)

    def _embedded(self, ids: Sequence[Any], items: Sequence[Any], given: Floats | None) -> tuple[Floats, Floats]:
        """Vectors and history inputs of items that are written now."""
        readable = [self._reader.readable(item) for item in items]
        if given is None and not all(readable):
            lacking = ids[readable.index(False)]
            raise DataError(
                f"item {lacking!r} has neither a feature nor a vector",
                where="upsert",
                cure=f"give one of {list(self._reader.featurizer.columns)}, or pass vectors",
            )
        vectors = given if given is not None else np.empty((len(ids), self._reader.dim), np.float32)
        inputs = np.full((len(ids), self._reader.width), np.nan, np.float32)
        some = [i for i, there in enumerate(readable) if there]
        if some and (given is None or self._reader.width):
            made, inputs[some] = self._reader.embed([ids[i] for i in some], [items[i] for i in some])
            if given is None:
                self.now.bundle.similarity.check(made, "item tower")
                vectors = made
        return np.ascontiguousarray(vectors, "<f4"), np.ascontiguousarray(inputs, "<f4")

    def _expire_exported(self, changes: Sequence[Change]) -> None:
        """Items of the bundle get rows with another expiry: their own vector, their own attributes otherwise."""
        bundle = self.now.bundle
        rows = bundle.items.rows([x.item for x in changes]) if changes else np.zeros(0, np.int64)
        there = [(x, r) for x, r in zip(changes, rows.tolist(), strict=True) if r >= 0]
        if not there:
            return
        at = np.asarray([r for _, r in there], np.int64)
        table = bundle.attributes.take(pa.array(at))
        columns = [table[f.name] if f.name in table.column_names else pa.nulls(len(at), f.type)
                   for f in self._reader.attributes]  # fmt: skip
        columns[self._reader.attributes.get_field_index(c.EXPIRES)] = pa.array(
            [x.expires for x, _ in there], self._reader.attributes.field(c.EXPIRES).type
        )
        attributes = pa.table([whole(column) for column in columns], self._reader.attributes)
        self._rows.append([x.item for x, _ in there], *self._exported(at), attributes)

    def _checked(self, items: Any) -> list[int | str]:
        """Ids as the store keeps them.

        Raises:
            DataError: ids of another type than the bundle's.
        """
        if isinstance(items, str | bytes):
            raise DataError(f"{items!r}; expected a list of item ids", where="live catalogue")
        given = items.to_pylist() if isinstance(items, pa.Array | pa.ChunkedArray) else list(items)
        self.now.bundle.items.rows(given)  # refuses other types
        return [item if isinstance(item, str) else int(item) for item in given]
