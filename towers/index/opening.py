"""A verified bundle, opened: each file read by its parser and held against the manifest and the schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.errors import BundleError
from towers.features import Encoders, Featurizer, IdMap, Ragged, Schema, open_encoder
from towers.features import columns as c
from towers.index import layout
from towers.index.faiss_setup import faiss
from towers.index.manifest import MANIFEST, bundle_id, is_count, parse_json, read_manifest
from towers.index.recipes import FAISS_TYPES, IndexRecipe
from towers.index.requests import KnownUsers
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.towers_runtime import Tower


@dataclass(frozen=True)
class OpenBundle:
    """The parts of a bundle.

    Attributes:
        manifest: see ``manifest``.
        schema: what was declared.
        similarity: of the model.
        users: user features.
        context: context features.
        items: ids of the items.
        attributes: ``[N]`` filter and display columns.
        search: index and embeddings.
        history_inputs: ``[N, H]``, memory-mapped, or None.
        user_ids: ids of the known users, or None.
        known: the known users, memory-mapped, or None.
        user_tower: the exported user tower.
        golden: content of ``golden.json``.
        id: names the bundle in results, see ``manifest.bundle_id``.
    """

    manifest: dict[str, Any]
    schema: Schema
    similarity: Similarity
    users: Featurizer
    context: Featurizer
    items: IdMap
    attributes: pa.Table
    search: VectorSearch
    history_inputs: NDArray[np.float32] | None
    user_ids: IdMap | None
    known: KnownUsers | None
    user_tower: Tower
    golden: dict[str, Any]
    id: str = ""


def open_bundle(
    root: Path, *, verify: bool = True, threads: int | None = None, encoders: Encoders = open_encoder
) -> OpenBundle:
    """Check, then read.

    Args:
        root: the bundle's folder.
        verify: hash every file first.
        threads: for onnxruntime; None: as it likes.
        encoders: what opens a sentence encoder by its name.

    Raises:
        BundleError: names the file and what is wrong with it.
    """
    root = root.resolve()  # a link that moves meanwhile must not mix two bundles
    manifest = read_manifest(root, verify=verify)
    files = manifest["files"]
    for name in (layout.SCHEMA, layout.GOLDEN, layout.ITEM_IDS, layout.ATTRIBUTES, layout.EMBEDDINGS, layout.INDEX,
                 layout.USER_TOWER, layout.ITEM_TOWER):  # fmt: skip
        if name not in files:
            raise BundleError(f"{name}: not in the manifest; every bundle has one")
    schema = _schema(root, manifest)
    with layout.reading(MANIFEST):
        similarity, recipe = Similarity(**manifest["similarity"]), IndexRecipe(**manifest["index"])
    n, dim = manifest["counts"]["items"], manifest["dim"]
    items = IdMap(_ids(root, layout.ITEM_IDS, c.ITEM, schema.item_id, n), "item")
    with layout.reading(layout.ATTRIBUTES):
        attributes = pq.read_table(root / layout.ATTRIBUTES)
        if attributes.num_rows != n:
            raise ValueError(f"{attributes.num_rows} rows for {n} items")
        for column in {c.POSTED, c.EXPIRES} & set(attributes.column_names):
            if attributes.schema.field(column).type != layout.MOMENT:
                raise ValueError(f"{column} is {attributes.schema.field(column).type}; expected {layout.MOMENT}")
    embeddings = layout.load_array(root, layout.EMBEDDINGS, np.float32, (n, dim))
    width = manifest["counts"]["history_dim"]
    inputs = layout.load_array(root, layout.HISTORY_INPUTS, np.float32, (n, width)) if width else None
    known = _known(root, manifest, schema) if manifest["counts"]["users"] else None
    with layout.reading(layout.USER_TOWER):
        tower = Tower(root / layout.USER_TOWER, threads)
    return OpenBundle(
        manifest=manifest,
        schema=schema,
        similarity=similarity,
        users=_featurizer(root, "users", schema.users, encoders),
        context=_featurizer(root, "context", schema.context, encoders),
        items=items,
        attributes=attributes,
        search=VectorSearch(_index(root, n, dim, recipe), embeddings, recipe),
        history_inputs=inputs,
        user_ids=None if known is None else IdMap(known.ids, "user"),
        known=known,
        user_tower=tower,
        golden=parse_json((root / layout.GOLDEN).read_bytes(), layout.GOLDEN),
        id=bundle_id(root),
    )


def _schema(root: Path, manifest: dict[str, Any]) -> Schema:
    spec = parse_json((root / layout.SCHEMA).read_bytes(), layout.SCHEMA)
    with layout.reading(layout.SCHEMA):
        schema = Schema.from_json(spec)
        for f in (*schema.users, *schema.items, *schema.context):
            if not isinstance(f.name, str) or not f.name or "/" in f.name or "\\" in f.name or "\0" in f.name:
                raise ValueError(f"{f.name!r} is no name for a feature")
        if not is_count(schema.history_length) or schema.clock not in ("time", "order", "none"):
            raise ValueError(f"history_length {schema.history_length!r}, clock {schema.clock!r}")
        if schema.hash != manifest["schema_hash"]:
            raise ValueError("its hash is not the one in the manifest")
    return schema


def _featurizer(root: Path, side: str, features: Any, encoders: Encoders = open_encoder) -> Featurizer:
    with layout.reading(f"{layout.VOCAB}/{side}.json"):
        return Featurizer.load(root / layout.VOCAB, side, features, encoders)


def _ids(root: Path, name: str, column: str, kind: str, n: int) -> pa.Array:
    with layout.reading(name):
        table = pq.read_table(root / name)
        if table.column_names != [column] or str(table[column].type) != kind or table.num_rows != n:
            raise ValueError(f"{table.num_rows} rows of {table.schema}; expected {n} of {column}: {kind}")
        return table[column].combine_chunks()


def _index(root: Path, n: int, dim: int, recipe: IndexRecipe) -> faiss.Index:
    with layout.reading(layout.INDEX):
        index = faiss.read_index(str(root / layout.INDEX))
        if (index.ntotal, index.d, index.metric_type) != (n, dim, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(f"{index.ntotal} vectors of {index.d} dimensions, metric {index.metric_type}")
        if type(index).__name__ not in FAISS_TYPES[recipe.kind]:
            raise ValueError(f"an {type(index).__name__}; the manifest says {recipe.kind}")
        return index


def _known(root: Path, manifest: dict[str, Any], schema: Schema) -> KnownUsers:
    users, n = manifest["counts"]["users"], manifest["counts"]["items"]

    def lists(names: tuple[str, str]) -> Ragged:
        offsets = layout.load_array(root, names[0], np.int64, (users + 1,))
        values = layout.load_array(root, names[1], np.int64, (None,))
        with layout.reading(names[0]):
            if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
                raise ValueError(f"offsets that do not fit {len(values)} entries")
        with layout.reading(names[1]):
            if len(values) and not 0 <= values.min() <= values.max() < n:
                raise ValueError(f"rows outside 0…{n - 1}")
        return Ragged(offsets, values)

    histories = lists(layout.USER_LISTS)
    total = len(histories.values)
    features = {}
    for info in _featurizer(root, "users", schema.users).infos:
        kind = np.int32 if info.cardinality else np.float32
        shape = (users, info.width) if info.width else (users,)
        features[info.name] = layout.load_array(root, layout.user_feature(info.name), kind, shape)
    files, dim = manifest["files"], manifest["dim"]
    timed = layout.USER_TIMES in files
    attributes = None
    if layout.USER_ATTRIBUTES in files:
        with layout.reading(layout.USER_ATTRIBUTES):
            attributes = pq.read_table(root / layout.USER_ATTRIBUTES)
            if attributes.num_rows != users:
                raise ValueError(f"{attributes.num_rows} rows for {users} users")
    return KnownUsers(
        ids=_ids(root, layout.USER_IDS, c.USER, schema.user_id, users),
        features=features,
        histories=histories,
        actions=layout.load_array(root, layout.USER_ACTIONS, np.int64, (total,)),
        times=layout.load_array(root, layout.USER_TIMES, np.int64, (total,)) if timed else None,
        exclusions=lists(layout.USER_EXCLUSIONS),
        embeddings=layout.load_array(root, layout.USER_EMBEDDINGS, np.float32, (users, dim))
        if layout.USER_EMBEDDINGS in files
        else None,
        attributes=attributes,
    )
