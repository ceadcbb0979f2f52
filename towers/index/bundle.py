"""Everything a serving process needs, written as one atomic, self-describing, verified folder.

``N`` items, ``D`` dimensions, ``H`` width of a history input.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import towers
from towers.errors import ConfigError
from towers.features import Encoders, Featurizer, IdMap, Ragged, Schema, open_encoder
from towers.features import columns as c
from towers.index import layout, tuning_told
from towers.index.bundle_readme import readme
from towers.index.faiss_setup import faiss
from towers.index.golden import Golden, record, record_matches
from towers.index.manifest import write_manifest
from towers.index.publish import published
from towers.index.recipes import IndexRecipe
from towers.index.requests import KnownUsers, check_clock
from towers.index.retriever import Retriever
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.storage import coded
from towers.index.towers_runtime import Tower
from towers.index.tuning import Candidate

_GOLDEN_ITEMS = 8  # whose best users are written down


@dataclass(frozen=True)
class BundleContents:
    """All that goes into a bundle. Row ``i`` of ids, attributes, embeddings and index is one item.

    Attributes:
        schema: of the dataset that the model was trained on.
        users: fitted user features.
        items: fitted item features.
        context: fitted context features.
        similarity: of the model.
        item_ids: ``[N]`` external ids, int64 or string.
        attributes: ``[N]`` raw filter and display columns; ``posted`` and ``expires``, if there, are
            timestamps in microseconds UTC and say when an item may be recommended.
        embeddings: ``[N, D]`` float32, possibly memory-mapped, or ``StoredVectors`` in the recipe's ``storage``.
        index: what ``build_index`` made of them.
        recipe: what it was made with.
        user_tower: ONNX model, see ``towers_runtime`` for its inputs.
        item_tower: likewise.
        golden: at least one query with the vector that the trained model (not the export) gives it.
        history_inputs: ``[N, H]`` float32, what items contribute to a history, or None.
        known_users: users that can be asked for by id, or None.
        data_start: first moment of the data, microseconds UTC, or None.
        data_end: end of the data, or None; the ``at="export"`` of requests.
        provenance: run, git commit, dataset hash …: whatever JSON can hold.
        measured: numbers by name with their unit (``index/recall@100``, ``index/search_p99_ms``).
        tuning: the kinds of index that were measured to choose this one, if any were.
    """

    schema: Schema
    users: Featurizer
    items: Featurizer
    context: Featurizer
    similarity: Similarity
    item_ids: pa.Array
    attributes: pa.Table
    embeddings: NDArray[np.float32]
    index: faiss.Index
    recipe: IndexRecipe
    user_tower: bytes
    item_tower: bytes
    golden: Sequence[Golden]
    history_inputs: NDArray[np.float32] | None = None
    known_users: KnownUsers | None = None
    data_start: int | None = None
    data_end: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    tuning: Sequence[Candidate] = ()

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        n = len(self.item_ids)
        _require(n > 0, "there are no items to export; check the task's candidates")
        _require(
            str(self.item_ids.type) == self.schema.item_id,
            f"item ids are {self.item_ids.type}, the schema says {self.schema.item_id}; cast them",
        )
        shape = self.embeddings.shape
        _require(
            self.embeddings.dtype == np.float32 and len(shape) == 2 and shape[0] == n,
            f"embeddings are {self.embeddings.dtype}{list(shape)}; expected float32 [{n}, D]",
        )
        storage = str(coded(self.embeddings)[0].dtype)
        _require(
            storage == self.recipe.storage,
            f"embeddings are stored as {storage}, the recipe says {self.recipe.storage}; use stored(embeddings, …)",
        )
        _require(self.attributes.num_rows == n, f"{self.attributes.num_rows} rows of attributes for {n} items")
        for name in (c.POSTED, c.EXPIRES):
            if name in self.attributes.column_names:
                kind = self.attributes.schema.field(name).type
                _require(kind == layout.MOMENT, f"attribute {name!r} is {kind}; expected {layout.MOMENT}. Cast it")
        _require(
            (self.index.ntotal, self.index.d, self.index.metric_type) == (*shape, faiss.METRIC_INNER_PRODUCT),
            f"the index holds {self.index.ntotal} vectors of {self.index.d} dimensions, metric "
            f"{self.index.metric_type}; expected {n} of {shape[1]} by inner product: build it with build_index",
        )
        self.similarity.check(self.embeddings, "item embeddings")
        inputs = self.history_inputs
        _require(
            inputs is None or (inputs.dtype == np.float32 and inputs.ndim == 2 and len(inputs) == n),
            f"history inputs must be float32 [{n}, H]",
        )
        _require(bool(self.golden), "no golden queries; a bundle without them cannot be checked when it is opened")
        vectors = np.stack([g.vector for g in self.golden]).astype(np.float32)
        self.similarity.check(vectors, "golden query vectors", nothing=True)
        if self.known_users is not None:
            _check_users(self.known_users, self, n)


def write_bundle(contents: BundleContents, target: Path, encoders: Encoders = open_encoder) -> Path:
    """Write, open and replay a bundle beside its final name, then rename it.

    Args:
        contents: what goes in.
        target: final name of the folder; must not exist.
        encoders: what opens a sentence encoder by its name, to replay the golden queries.

    Returns:
        ``target``.

    Raises:
        ConfigError: ``target`` exists, or parts do not belong together.
        BundleError: the written bundle does not answer as the trained model did.
    """
    with published(Path(target)) as root:
        _write_files(contents, root)
        n, dim = contents.embeddings.shape
        known, inputs = contents.known_users, contents.history_inputs
        facts: dict[str, Any] = {
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "schema_hash": _served(contents).hash,
            "similarity": asdict(contents.similarity),
            "dim": dim,
            "counts": {
                "items": n,
                "users": 0 if known is None else len(known.ids),
                "history_dim": 0 if inputs is None else inputs.shape[1],
            },
            "index": asdict(contents.recipe.resolve(n, dim)),
            "data": {"start": contents.data_start, "end": contents.data_end},
            "provenance": dict(contents.provenance)
            | ({"text_encoders": said} if (said := _encoders(contents)) else {}),
            "versions": {
                "towers": towers.__version__,
                "python": platform.python_version(),
                **{m.__name__: m.__version__ for m in (np, pa, faiss, onnxruntime)},
            },
            "measured": {
                **{k: float(v) for k, v in contents.measured.items()},
                "index/bytes_per_item": (root / layout.INDEX).stat().st_size / n,
            },
        }
        sizes = {p.relative_to(root).as_posix(): p.stat().st_size for p in sorted(root.rglob("*")) if p.is_file()}
        (root / layout.README).write_text(readme(Path(target).name, facts, sizes, contents.tuning))
        write_manifest(root, facts)
        Retriever.open(root, encoders=encoders)
        Tower(root / layout.ITEM_TOWER)
    return Path(target)


def _encoders(contents: BundleContents) -> dict[str, Any]:
    """Which sentence encoders the features were made with; the hash that is checked lies beside the vocabularies."""
    sides = {"users": contents.users, "items": contents.items, "context": contents.context}
    return {f"{side}.{name}": told for side, of in sides.items() for name, told in of.text_encoders.items()}


def _served(contents: BundleContents) -> Schema:
    """The schema with the columns that the fitted features read."""
    return replace(
        contents.schema,
        users=contents.users.features,
        items=contents.items.features,
        context=contents.context.features,
    )


def _write_files(contents: BundleContents, root: Path) -> None:
    layout.save_json(root, layout.SCHEMA, _served(contents).to_json())
    for side, featurizer in {"users": contents.users, "items": contents.items, "context": contents.context}.items():
        featurizer.save(root / layout.VOCAB, side)
    codes, scales = coded(contents.embeddings)
    layout.save_array(root, layout.EMBEDDINGS, codes, codes.dtype.type)
    if scales is not None:
        layout.save_array(root, layout.SCALES, scales, np.float32)
    if contents.tuning:
        layout.save_json(root, layout.TUNING, tuning_told.facts(contents.tuning))
        at, least = contents.recipe.recall_at, contents.recipe.min_recall
        (root / layout.CURVE).write_text(tuning_told.picture(contents.tuning, least, at))
    pq.write_table(pa.table({c.ITEM: contents.item_ids}), root / layout.ITEM_IDS)
    pq.write_table(contents.attributes, root / layout.ATTRIBUTES)
    faiss.write_index(contents.index, str(root / layout.INDEX))
    if contents.history_inputs is not None:
        layout.save_array(root, layout.HISTORY_INPUTS, contents.history_inputs, np.float32)
    for name, model in {layout.USER_TOWER: contents.user_tower, layout.ITEM_TOWER: contents.item_tower}.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(model)
    if contents.known_users is not None:
        _write_users(contents.known_users, root)
    search = VectorSearch(contents.index, contents.embeddings, contents.recipe.resolve(*contents.embeddings.shape))
    golden = [replace(g, at=contents.data_end) if g.at is None else g for g in contents.golden]
    try:
        recorded = record(golden, IdMap(contents.item_ids, "item"), search)
        layout.save_json(root, layout.GOLDEN, {**recorded, "matches": _matches(contents)})
    except (TypeError, ValueError) as e:
        raise ConfigError(f"a golden query cannot be written as JSON: {e}; use numbers, strings and lists") from e


def _matches(contents: BundleContents) -> list[dict[str, Any]]:
    """What some items find among the known users, where those can be matched."""
    known = contents.known_users
    if known is None or known.embeddings is None:
        return []
    rows = np.unique(np.linspace(0, len(contents.item_ids) - 1, _GOLDEN_ITEMS).astype(np.int64))
    ids = contents.item_ids.take(pa.array(rows)).to_pylist()
    return record_matches(ids, contents.embeddings[rows], IdMap(known.ids, "user"), known.embeddings)


def _write_users(users: KnownUsers, root: Path) -> None:
    for name, values in users.features.items():
        layout.save_array(root, layout.user_feature(name), values, values.dtype.type)
    pairs = (layout.USER_LISTS, users.histories), (layout.USER_EXCLUSIONS, users.exclusions)
    for (offsets, values_), lists in pairs:
        layout.save_array(root, offsets, lists.offsets, np.int64)
        layout.save_array(root, values_, lists.values, np.int64)
    layout.save_array(root, layout.USER_ACTIONS, users.actions, np.int64)
    if users.times is not None:
        layout.save_array(root, layout.USER_TIMES, users.times, np.int64)
    pq.write_table(pa.table({c.USER: users.ids}), root / layout.USER_IDS)
    if users.embeddings is not None:
        layout.save_array(root, layout.USER_EMBEDDINGS, users.embeddings, np.float32)
    if users.attributes is not None:
        pq.write_table(users.attributes, root / layout.USER_ATTRIBUTES)


def _check_users(users: KnownUsers, contents: BundleContents, items: int) -> None:
    n = len(users.ids)
    _require(
        str(users.ids.type) == contents.schema.user_id,
        f"user ids are {users.ids.type}, the schema says {contents.schema.user_id}; cast them",
    )
    wanted = {i.name for i in contents.users.infos}
    _require(set(users.features) == wanted, f"known users have features {sorted(users.features)}, not {sorted(wanted)}")
    _require(all(len(a) == n for a in users.features.values()), f"user features must have {n} rows each")
    total, codes = len(users.histories.values), len(contents.schema.actions)
    _require(len(users.actions) == total, f"{len(users.actions)} history actions for {total} events")
    fits = not total or (users.actions.min() >= 0 and users.actions.max() < codes)
    _require(bool(fits), f"history actions of known users must be codes of the schema, 0…{codes - 1}")
    _require(users.times is None or len(users.times) == total, f"history times must be {total}, as the events are")
    for what, lists in {"histories": users.histories, "exclusions": users.exclusions}.items():
        check_lists(lists, n, items, what)
    check_clock(contents.schema, users)
    if users.embeddings is not None:
        shape = [n, contents.embeddings.shape[1]]
        fits = users.embeddings.dtype == np.float32 and list(users.embeddings.shape) == shape
        _require(fits, f"user embeddings are {users.embeddings.dtype}{list(users.embeddings.shape)}; expected {shape}")
        contents.similarity.check(users.embeddings, "user embeddings", nothing=True)
    rows = n if users.attributes is None else users.attributes.num_rows
    _require(rows == n, f"{rows} rows of attributes for {n} users")


def check_lists(lists: Ragged, rows: int, items: int, what: str) -> None:
    """Refuse lists that do not fit ``rows`` users or point outside ``items``."""
    o, v = np.asarray(lists.offsets), np.asarray(lists.values)
    fits = len(o) == rows + 1 and o[0] == 0 and o[-1] == len(v) and (np.diff(o) >= 0).all()
    _require(bool(fits), f"{what} of known users: offsets do not fit {rows} users and {len(v)} entries")
    _require(not len(v) or (v.min() >= 0 and v.max() < items), f"{what} of known users name rows outside 0…{items - 1}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(otherwise)
