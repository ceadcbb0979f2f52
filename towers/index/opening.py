"""A verified bundle, opened: each file read by its parser and held against the manifest and the schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import BundleError
from towers.features import Encoders, Featurizer, IdMap, Ragged, Schema, open_encoder
from towers.features import columns as c
from towers.features.vocabulary import FIRST
from towers.index import layout
from towers.index.devices import check_device, searching
from towers.index.index_file import read_index
from towers.index.manifest import MANIFEST, bundle_id, is_count, parse_json, read_manifest
from towers.index.recipes import IndexRecipe
from towers.index.requests import KnownUsers
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.storage import CODES, StoredVectors
from towers.index.towers_runtime import Tower

_BLOCK = 1 << 16  # vectors checked at a time
_WIDEST = 1 << 20  # columns of an encoded feature, events of a history: every request makes room for them


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
    root: Path,
    *,
    verify: bool = True,
    threads: int | None = None,
    encoders: Encoders = open_encoder,
    device: str = "cpu",
) -> OpenBundle:
    """Check, then read.

    Args:
        root: the bundle's folder.
        verify: hash every file first.
        threads: for onnxruntime; None: as it likes.
        encoders: what opens a sentence encoder by its name.
        device: ``cuda`` searches on the GPU.

    Raises:
        BundleError: names the file and what is wrong with it.
        ConfigError: the device is not here.
    """
    check_device(device)
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
    items = _ids(root, layout.ITEM_IDS, c.ITEM, schema.item_id, n, "item")
    attributes = layout.load_table(root, layout.ATTRIBUTES, n)
    with layout.reading(layout.ATTRIBUTES):
        for column in {c.POSTED, c.EXPIRES} & set(attributes.column_names):
            if attributes.schema.field(column).type != layout.MOMENT:
                raise ValueError(f"{column} is {attributes.schema.field(column).type}; expected {layout.MOMENT}")
    embeddings: Any = layout.load_array(root, layout.EMBEDDINGS, CODES[recipe.storage], (n, dim))
    if recipe.storage != "float32":
        scaled = recipe.storage == "int8"
        scales = layout.load_array(root, layout.SCALES, np.float32, (n,)) if scaled else None
        embeddings = StoredVectors(embeddings, scales)
    width = manifest["counts"]["history_dim"]
    inputs = layout.load_array(root, layout.HISTORY_INPUTS, np.float32, (n, width)) if width else None
    if verify:
        with layout.reading(layout.EMBEDDINGS):
            for start in range(0, n, _BLOCK):
                similarity.check(embeddings[start : start + _BLOCK], f"item embeddings from row {start}")
        if inputs is not None:
            layout.check_range(inputs, layout.HISTORY_INPUTS)
        _featurizer(root, "items", schema.items, encoders)  # nothing here needs it; a job that is added will
    user_ids, known = None, None
    if manifest["counts"]["users"]:
        user_ids = _ids(root, layout.USER_IDS, c.USER, schema.user_id, manifest["counts"]["users"], "user")
        known = _known(root, manifest, schema, user_ids.ids)
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
        search=searching(read_index(root, embeddings, recipe, deep=verify), embeddings, recipe, device),
        history_inputs=inputs,
        user_ids=user_ids,
        known=known,
        user_tower=tower,
        golden=_json(root, layout.GOLDEN),
        id=bundle_id(root),
    )


def _schema(root: Path, manifest: dict[str, Any]) -> Schema:
    spec = _json(root, layout.SCHEMA)
    with layout.reading(layout.SCHEMA):
        schema = Schema.from_json(spec)
        for f in (*schema.users, *schema.items, *schema.context):
            if not isinstance(f.name, str) or not f.name or "/" in f.name or "\\" in f.name or "\0" in f.name:
                raise ValueError(f"{f.name!r} is no name for a feature")
            if not all(is_count(s, 0) and s <= _WIDEST for s in (f.max_length, f.dim)):
                raise ValueError(f"{f.name}: max_length {f.max_length!r}, dim {f.dim!r}; expected at most {_WIDEST}")
        if (
            not is_count(schema.history_length)
            or schema.history_length > _WIDEST
            or schema.clock not in ("time", "order", "none")
        ):
            raise ValueError(f"history_length {schema.history_length!r}, clock {schema.clock!r}")
        if schema.hash != manifest["schema_hash"]:
            raise ValueError("its hash is not the one in the manifest")
    return schema


def _json(root: Path, name: str) -> dict[str, Any]:
    with layout.reading(name):
        return parse_json((root / name).read_bytes(), name)


def _featurizer(root: Path, side: str, features: Any, encoders: Encoders = open_encoder) -> Featurizer:
    name = f"{layout.VOCAB}/{side}.json"
    fitted = _json(root, name)
    for f in features:
        values = f"{layout.VOCAB}/{side}.{f.name}.parquet"
        if (root / values).exists():
            _check_vocabulary(layout.load_table(root, values), values)
    with layout.reading(name):
        if set(fitted) != {f.name for f in features}:
            raise ValueError(f"features {sorted(fitted)}; the schema has {[f.name for f in features]}")
        featurizer = Featurizer.load(root / layout.VOCAB, side, features, encoders)
        _ = featurizer.infos  # fails where a feature lacks what its kind learns
        return featurizer


def _check_vocabulary(table: pa.Table, name: str) -> None:
    with layout.reading(name):
        if table.column_names != [c.VALUE, c.ID, c.COUNT] or table[c.VALUE].null_count or table[c.COUNT].null_count:
            raise ValueError(f"columns {table.schema}; expected {c.VALUE}, {c.ID} and {c.COUNT}, none of them null")
        if not np.array_equal(table[c.ID].to_numpy(), np.arange(FIRST, FIRST + table.num_rows)):
            raise ValueError("its ids are not consecutive")
        if table[c.COUNT].type != pa.int64() or len(pc.unique(table[c.VALUE])) != table.num_rows:
            raise ValueError("counts that are no whole numbers, or a value that occurs twice")


def _ids(root: Path, name: str, column: str, kind: str, n: int, what: str) -> IdMap:
    table = layout.load_table(root, name, n)
    with layout.reading(name):
        if table.column_names != [column] or str(table[column].type) != kind:
            raise ValueError(f"columns {table.schema}; expected {column}: {kind}")
        return IdMap(table[column].combine_chunks(), what)


def _known(root: Path, manifest: dict[str, Any], schema: Schema, ids: pa.Array) -> KnownUsers:
    users, n = manifest["counts"]["users"], manifest["counts"]["items"]

    def lists(names: tuple[str, str]) -> Ragged:
        offsets = layout.load_array(root, names[0], np.int64, (users + 1,))
        values = layout.load_array(root, names[1], np.int64, (None,))
        with layout.reading(names[0]):
            if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
                raise ValueError(f"offsets that do not fit {len(values)} entries")
        layout.check_range(values, names[1], 0, n - 1)
        return Ragged(offsets, values)

    histories = lists(layout.USER_LISTS)
    total = len(histories.values)
    features = {}
    for info in _featurizer(root, "users", schema.users).infos:
        kind = np.int32 if info.cardinality else np.float32
        shape = (users, info.width) if info.width else (users,)
        name = layout.user_feature(info.name)
        features[info.name] = layout.load_array(root, name, kind, shape)
        layout.check_range(features[info.name], name, *((0, info.cardinality - 1) if info.cardinality else ()))
    files, dim = manifest["files"], manifest["dim"]
    timed = layout.USER_TIMES in files
    attributes = None
    if layout.USER_ATTRIBUTES in files:
        attributes = layout.load_table(root, layout.USER_ATTRIBUTES, users)
    actions = layout.load_array(root, layout.USER_ACTIONS, np.int64, (total,))
    layout.check_range(actions, layout.USER_ACTIONS, 0, len(schema.actions) - 1)
    embeddings = None
    if layout.USER_EMBEDDINGS in files:
        embeddings = layout.load_array(root, layout.USER_EMBEDDINGS, np.float32, (users, dim))
        layout.check_range(embeddings, layout.USER_EMBEDDINGS)
    return KnownUsers(
        ids=ids,
        features=features,
        histories=histories,
        actions=actions,
        times=layout.load_array(root, layout.USER_TIMES, np.int64, (total,)) if timed else None,
        exclusions=lists(layout.USER_EXCLUSIONS),
        embeddings=embeddings,
        attributes=attributes,
    )
