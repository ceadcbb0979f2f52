"""Raw items → what a live catalogue keeps of them: vector, history input, attributes.

``M`` items, ``D`` dimensions, ``H`` width of a history input.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import BundleError, DataError
from towers.features import Encoders, Featurizer, Kind, open_encoder
from towers.features import columns as c
from towers.index import layout
from towers.index.opening import OpenBundle
from towers.index.requests import encode_raw, moment
from towers.index.towers_runtime import Tower

Floats = NDArray[np.float32]
Fields = Mapping[str, Any]


def space_of(manifest: Mapping[str, Any]) -> str:
    """Names the vector space of a bundle: the hash of all that makes an item's vector out of its fields."""
    files = manifest["files"]
    made_by = [n for n in sorted(files) if n == layout.ITEM_TOWER or n.startswith(f"{layout.VOCAB}/items.")]
    told = [manifest["schema_hash"], *(files[n]["sha256"] for n in made_by)]
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ItemReader:
    """Reads raw items as the bundle's model does.

    Attributes:
        featurizer: item features.
        tower: the exported item tower.
        attributes: columns kept of an item, with ``posted`` and ``expires``.
        dim: ``D``.
        width: ``H``; 0 if the model reads no histories.
    """

    featurizer: Featurizer
    tower: Tower
    attributes: pa.Schema
    dim: int
    width: int

    @classmethod
    def open(
        cls, root: Path, bundle: OpenBundle, *, threads: int | None = None, encoders: Encoders = open_encoder
    ) -> ItemReader:
        """That of a bundle.

        Raises:
            BundleError: its item tower or item vocabularies cannot be read.
        """
        with layout.reading(f"{layout.VOCAB}/items.json"):
            featurizer = Featurizer.load(root / layout.VOCAB, "items", bundle.schema.items, encoders)
        with layout.reading(layout.ITEM_TOWER):
            tower = Tower(root / layout.ITEM_TOWER, threads)
        schema = bundle.attributes.schema.remove_metadata()
        for name in (c.POSTED, c.EXPIRES):
            if name not in schema.names:
                schema = schema.append(pa.field(name, layout.MOMENT))
        return cls(featurizer, tower, schema, bundle.manifest["dim"], bundle.manifest["counts"]["history_dim"])

    @cached_property
    def _id_columns(self) -> frozenset[str]:
        return frozenset(name for f in self.featurizer.features if f.kind is Kind.ID for name in f.columns)

    @cached_property
    def _told(self) -> frozenset[str]:
        """Columns from which the item tower reads something."""
        return frozenset(self.featurizer.columns) - self._id_columns

    @cached_property
    def _times(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.attributes if pa.types.is_timestamp(f.type))

    def readable(self, fields: Fields) -> bool:
        """Whether the item tower can say anything of an item: one of its features is there."""
        return any(fields.get(name) is not None for name in self._told)

    def check(self, items: Sequence[Fields]) -> None:
        """Refuse fields that nothing reads: a misspelt field would silently count as missing.

        Raises:
            DataError: names the item and the field.
        """
        known = {c.ITEM, *self.featurizer.columns, *self.attributes.names}
        for i, item in enumerate(items):
            if c.ITEM not in item:
                raise DataError(f"no {c.ITEM!r}", where=f"upsert, item {i}", cure=f"give its id as {c.ITEM!r}")
            if isinstance(item[c.ITEM], bool) or not isinstance(item[c.ITEM], int | str | np.integer):
                raise DataError(f"{item[c.ITEM]!r} is no id", where=f"upsert, item {i}", cure="give a number or a text")
            if unknown := sorted(map(str, set(item) - known)):
                raise DataError(
                    f"unknown fields {unknown}; known are {sorted(known)}",
                    where=f"upsert, item {item[c.ITEM]!r}",
                    cure="correct the names",
                )

    def text(self, item: Fields) -> str:
        """The fields as JSON, without the id; times as microseconds UTC.

        Raises:
            DataError: a value that is no time where one should be, or that JSON cannot hold.
        """
        where = f"upsert, item {item[c.ITEM]!r}"
        left_out = self._id_columns
        kept = {n: v for n, v in item.items() if v is not None and n != c.ITEM and n not in left_out}
        for name in self._times:
            if name in kept:
                kept[name] = moment(kept[name], f"{where}, field {name!r}")
        try:
            return _JSON.encode(kept)
        except (TypeError, ValueError) as e:
            raise DataError(f"cannot be kept: {e}", where=where, cure="use numbers, texts, times, lists") from e

    def embed(self, ids: Sequence[Any], items: Sequence[Fields]) -> tuple[Floats, Floats]:
        """Run the item tower.

        Args:
            ids: ``[M]`` external ids.
            items: ``[M]`` their fields; absent ones count as missing.

        Returns:
            vectors ``[M, D]`` and history inputs ``[M, H]``.

        Raises:
            DataError: a field that cannot be encoded; names it.
            BundleError: the tower gives something else than the manifest says.
        """
        named = [{**item, **dict.fromkeys(self._id_columns, i)} for i, item in zip(ids, items, strict=True)]
        outputs = self.tower.run(encode_raw(self.featurizer, named, "item"))
        vectors = np.asarray(outputs["embedding"], np.float32)
        inputs = np.asarray(outputs.get("history_input", np.full((len(ids), self.width), np.nan)), np.float32)
        if vectors.shape != (len(ids), self.dim) or inputs.shape != (len(ids), self.width):
            raise BundleError(
                f"{layout.ITEM_TOWER}: gives {list(vectors.shape)} and {list(inputs.shape)} for {len(ids)} items; "
                f"expected {self.dim} and {self.width} columns. Export again"
            )
        return vectors, inputs

    def table(self, items: Sequence[Fields]) -> pa.Table:
        """``[M]`` attributes of items as ``text`` keeps them.

        Raises:
            DataError: a value of another type than the bundle's attribute; names it.
        """
        columns = []
        for field in self.attributes:
            values = [item.get(field.name) for item in items]
            try:
                columns.append(_column(values, field.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError, TypeError) as e:
                raise DataError(
                    f"{e}", where=f"upsert, attribute {field.name!r}", cure=f"give values of type {field.type}"
                ) from e
        return pa.table(columns, schema=self.attributes)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind) and kind != layout.MOMENT:  # kept in microseconds, whatever the column's own unit
        return pa.array(values, layout.MOMENT).cast(pa.timestamp(kind.unit, "UTC"), safe=False).cast(kind)
    if pa.types.is_date(kind):
        return pa.array([dt.date.fromisoformat(v) if isinstance(v, str) else v for v in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def _plain(value: Any) -> Any:
    """What JSON does not know, and a column can hold."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} ({value!r})")


_JSON = json.JSONEncoder(default=_plain)
