"""Raw columns → encoded arrays, by the same function in training and in serving.

Encoded forms, by kind (``n`` rows, ``W`` the feature's ``max_length``):

=================  ==================  ===============================================================
kind               array               content
=================  ==================  ===============================================================
id, categorical    ``[n]`` int32       vocabulary id (see ``vocabulary``)
numeric, buckets   ``[n]`` int32       ``FIRST`` + quantile bucket, or ``MISSING``
numeric            ``[n, 2]`` float32  normalised value, 1 if missing
categorical_list   ``[n, W]`` int32    vocabulary ids, then ``PAD``; an empty list is ``MISSING, PAD…``
text               ``[n, W]`` int32    ids of hashed n-grams, likewise
vector, sentence   ``[n, dim+1]`` f32  the vector, then 1 if missing
=================  ==================  ===============================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features.schema import Feature, Kind
from towers.features.sentences import Encoders, TextEncoder, open_encoder
from towers.features.text import hashed
from towers.features.vocabulary import FIRST, MISSING, PAD, Vocabulary

Encoded = dict[str, NDArray[Any]]
_CLIP = 10.0  # standard deviations; a number far outside the training range must not swamp a tower


@dataclass(frozen=True)
class FeatureInfo:
    """What a model needs to know of an encoded feature.

    Attributes:
        name: key in encoded mappings.
        kind: see ``Kind``.
        width: columns of the encoded array; 0 for a plain ``[n]`` array.
        cardinality: embedding rows; 0 for dense features.
        counts: ``[cardinality]`` training counts by id, or None (dense, bucketised).
        vocabulary: the feature whose vocabulary it shares, ``items.NAME``, or None.
        keys: makes ``[cardinality, 2]`` keys by id (``Vocabulary.keys``), for tables that hash values; None: ids are
            what is hashed.
    """

    name: str
    kind: Kind
    width: int
    cardinality: int
    counts: NDArray[np.int64] | None = None
    vocabulary: str | None = None
    keys: Callable[[], NDArray[np.int32]] | None = field(default=None, repr=False, compare=False)


@dataclass
class _Fitted:
    """A feature with what was learnt from training data."""

    feature: Feature
    vocabulary: Vocabulary | None = None
    numbers: dict[str, Any] | None = None  # mean and scale, or bucket edges, or the hash of an encoder
    encoders: Encoders = open_encoder

    def info(self) -> FeatureInfo:
        f = self.feature
        if f.kind in (Kind.VECTOR, Kind.SENTENCE):
            return FeatureInfo(f.name, f.kind, f.dim + 1, 0, vocabulary=f.vocabulary)
        if f.kind is Kind.NUMERIC:
            if self.numbers is not None and "edges" in self.numbers:
                return FeatureInfo(f.name, f.kind, 0, FIRST + len(self.numbers["edges"]) + 1)
            return FeatureInfo(f.name, f.kind, 2, 0)
        assert self.vocabulary is not None  # every other kind has one, by construction
        known, width = self.vocabulary, f.max_length if f.kind in (Kind.CATEGORICAL_LIST, Kind.TEXT) else 0
        return FeatureInfo(f.name, f.kind, width, len(known), known.all_counts(), f.vocabulary, lambda: known.keys)


class Featurizer:
    """The features of one side (users, items or context), fitted.

    Make one with ``fit`` (prepare) or ``load`` (everywhere else).
    """

    def __init__(self, fitted: Sequence[_Fitted]) -> None:
        self._fitted = {f.feature.name: f for f in fitted}

    @classmethod
    def fit(
        cls,
        features: Sequence[Feature],
        table: pa.Table,
        events: NDArray[np.int64],
        id_column: str = "",
        encoders: Encoders = open_encoder,
    ) -> Featurizer:
        """Learn vocabularies, bucket edges and normalisers from the rows that training saw.

        Args:
            features: the declarations.
            table: raw columns, one row for each user (item).
            events: ``[n]`` training events of each row. Rows without any are not looked at (but by features with
                ``fit: all``); ids are counted by events, everything else once for each row.
            id_column: the column that an ``id`` feature reads.
            encoders: what opens the encoder of a sentence by its name.
        """
        seen = events > 0
        rows = table.filter(pa.array(seen)) if not seen.all() else table
        return cls([_fit(f, table if f.fit == "all" else rows, events[seen], id_column, encoders) for f in features])

    def continuing(self, older: Featurizer, items: Featurizer | None = None) -> Featurizer:
        """The same features, encoded as an older featurizer encodes them wherever it can.

        Known values keep their ids and new ones come after them; bucket edges and normalisers are the older ones.
        What reads sentences stays the newer one, which encodes all of them anew.

        Args:
            older: fitted on earlier data with the same declarations.
            items: the items' features, continued already, where some of these share their vocabularies.
        """
        out = []
        for name, f in self._fitted.items():
            was = older._fitted[name]
            vocabulary = f.vocabulary
            if items is not None and f.feature.vocabulary:
                vocabulary = items.vocabulary(f.feature.vocabulary.removeprefix("items."))
            elif vocabulary is not None and was.vocabulary is not None:
                vocabulary = was.vocabulary.grown(vocabulary, f.feature.max_size)
            numbers = was.numbers if f.feature.kind is Kind.NUMERIC else f.numbers
            out.append(replace(f, vocabulary=vocabulary, numbers=numbers))
        return Featurizer(out)

    @property
    def infos(self) -> tuple[FeatureInfo, ...]:
        """What a model needs to know, in the order of declaration."""
        return tuple(f.info() for f in self._fitted.values())

    @property
    def text_encoders(self) -> dict[str, dict[str, str]]:
        """The sentence encoders by feature, each with its name and the SHA-256 of what it is."""
        of = {n: f for n, f in self._fitted.items() if f.feature.kind is Kind.SENTENCE}
        return {
            n: {"encoder": str(f.feature.encoder), "sha256": (f.numbers or {})["encoder_sha256"]} for n, f in of.items()
        }

    @property
    def features(self) -> tuple[Feature, ...]:
        """The declarations, in order."""
        return tuple(f.feature for f in self._fitted.values())

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw columns that ``encode`` reads."""
        return tuple(dict.fromkeys(c for f in self._fitted.values() for c in f.feature.columns))

    def vocabulary(self, name: str) -> Vocabulary | None:
        """A feature's vocabulary; None where its kind has none."""
        return self._fitted[name].vocabulary

    def numbers(self, name: str) -> Mapping[str, Any]:
        """What else was learnt of a feature: mean and scale, or bucket ``edges``, or the hash of an encoder."""
        return self._fitted[name].numbers or {}

    def encode(self, table: pa.Table | Mapping[str, Any], where: str = "") -> Encoded:
        """Encoded arrays by feature name.

        Args:
            table: raw columns; a column that is absent is an error.
            where: said in errors (a file name, "request").

        Raises:
            DataError: a column is missing, of the wrong type, or holds what cannot be encoded.
        """
        return {name: _encode(f, table, where) for name, f in self._fitted.items()}

    def check_encoders(self) -> None:
        """Open the sentence encoders now, instead of when the first text needs them.

        Raises:
            ConfigError: one is not installed, or is another model than the one that the features were fitted with.
        """
        for name, f in self._fitted.items():
            if f.feature.kind is Kind.SENTENCE:
                _encoder(f, f"feature {name!r}")

    def encode_one(self, raw: Mapping[str, Any], where: str = "request") -> Encoded:
        """Encode one entity given as a mapping; absent values count as missing."""
        return self.encode({c: _single(c, raw.get(c), where) for c in self.columns}, where)

    def save(self, folder: Path, side: str) -> None:
        """Write ``SIDE.json`` and ``SIDE.FEATURE.parquet`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        out = {}
        for name, f in self._fitted.items():
            columns = list(f.feature.columns)  # an id feature learnt its column when it was fitted
            out[name] = {"columns": columns, "numbers": f.numbers, "vocabulary": f.vocabulary is not None}
            if f.vocabulary is not None:
                f.vocabulary.save(folder / f"{side}.{name}.parquet")
        (folder / f"{side}.json").write_text(json.dumps(out, indent=1, sort_keys=True))

    @classmethod
    def load(
        cls, folder: Path, side: str, features: Sequence[Feature], encoders: Encoders = open_encoder
    ) -> Featurizer:
        """Read what ``save`` wrote for these declarations. Encoders are opened when the first text needs them."""
        state = json.loads((folder / f"{side}.json").read_text())
        fitted = []
        for f in features:
            vocabulary = Vocabulary.load(folder / f"{side}.{f.name}.parquet") if state[f.name]["vocabulary"] else None
            f = replace(f, columns=tuple(state[f.name].get("columns", f.columns)))
            fitted.append(_Fitted(f, vocabulary, state[f.name]["numbers"], encoders))
        return cls(fitted)


def share_vocabularies(items: Featurizer, others: Sequence[Featurizer]) -> None:
    """Give features that name an item feature's vocabulary, and that feature, one: of what both saw in training.

    Before, each was fitted by itself, with its own ``min_count``.
    """
    for name, mine in items._fitted.items():
        sharing = [f for o in others for f in o._fitted.values() if f.feature.vocabulary == f"items.{name}"]
        if sharing:
            both = [f.vocabulary for f in (mine, *sharing) if f.vocabulary is not None]
            if not both:  # sentences have none
                continue
            mine.vocabulary = Vocabulary.union(both)
            for f in sharing:
                f.vocabulary = mine.vocabulary


def _single(name: str, value: Any, where: str) -> pa.Array:
    try:
        return pa.array([value])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
        raise DataError(
            f"{name!r} cannot be read: {e}", where=where, cure="send a number, a string, or a list of either"
        ) from e


def _column(table: pa.Table | Mapping[str, Any], name: str, where: str) -> pa.Array:
    names = table.column_names if isinstance(table, pa.Table) else table.keys()
    if name not in names:
        raise DataError(
            f"no column {name!r}; there are {sorted(names)}",
            where=where,
            cure="correct the feature's column in the data config",
        )
    column = table[name]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _fit(f: Feature, rows: pa.Table, events: NDArray[np.int64], id_column: str, encoders: Encoders) -> _Fitted:
    limits: dict[str, Any] = {"min_count": f.min_count, "max_size": f.max_size}
    if f.kind is Kind.ID:
        f = Feature(**{**f.__dict__, "columns": (id_column,)})
        return _Fitted(f, Vocabulary.fit(_column(rows, id_column, f.name), events, **limits))
    if f.kind is Kind.SENTENCE:
        encoder = encoders(str(f.encoder))
        if encoder.dim != f.dim:
            raise ConfigError(f"feature {f.name!r}: {f.encoder} gives vectors of length {encoder.dim}; set dim to it")
        return _Fitted(f, numbers={"encoder_sha256": encoder.hash}, encoders=encoders)
    if f.kind is Kind.TEXT:
        lists = _hash_texts(replace(f, repeats=False), rows, f.name)  # counts are of texts, not of repetitions
        flat = np.fromiter((b for row in lists for b in row), np.int64)
        return _Fitted(f, Vocabulary.fit(pa.array(flat), **limits))
    column = _column(rows, f.columns[0], f.name)
    if f.kind is Kind.CATEGORICAL:
        return _Fitted(f, Vocabulary.fit(column, **limits))
    if f.kind is Kind.CATEGORICAL_LIST:
        return _Fitted(f, Vocabulary.fit(_lists(column, f, f.name).flatten(), **limits))
    if f.kind is Kind.NUMERIC:
        x = _numbers(column, f, f.name)
        x = x[~np.isnan(x)]
        if f.buckets:
            inner = np.linspace(0, 1, f.buckets + 1)[1:-1]
            edges = np.unique(np.quantile(x, inner)) if len(x) else np.empty(0)
            return _Fitted(f, numbers={"edges": edges.tolist()})
        scale = float(x.std()) if len(x) else 0.0
        return _Fitted(f, numbers={"mean": float(x.mean()) if len(x) else 0.0, "scale": scale or 1.0})
    return _Fitted(f)


def _encode(fitted: _Fitted, table: pa.Table | Mapping[str, Any], where: str) -> NDArray[Any]:
    f, vocabulary, numbers = fitted.feature, fitted.vocabulary, fitted.numbers
    here = ", ".join(p for p in (where, f"feature {f.name!r}") if p)
    if f.kind is Kind.TEXT:
        assert vocabulary is not None
        lists = _hash_texts(f, table, here)
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        flat = np.fromiter((b for row in lists for b in row), np.int64, int(lengths.sum()))
        return _pad(vocabulary.encode(pa.array(flat), here), lengths, f.max_length, f.repeats)
    if f.kind is Kind.SENTENCE:
        return _sentences(fitted, table, here)
    column = _column(table, f.columns[0], here)
    if f.kind in (Kind.ID, Kind.CATEGORICAL):
        assert vocabulary is not None
        return vocabulary.encode(column, here)
    if f.kind is Kind.CATEGORICAL_LIST:
        assert vocabulary is not None
        lists_ = _lists(column, f, here)
        lengths = pc.fill_null(pc.list_value_length(lists_), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return _pad(vocabulary.encode(lists_.flatten(), here), lengths, f.max_length)
    if f.kind is Kind.NUMERIC:
        assert numbers is not None
        x = _numbers(column, f, here)
        missing = np.isnan(x)
        if f.buckets:
            ids = FIRST + np.searchsorted(np.asarray(numbers["edges"]), x, side="right")
            return np.where(missing, MISSING, ids).astype(np.int32)
        z = np.clip((np.where(missing, numbers["mean"], x) - numbers["mean"]) / numbers["scale"], -_CLIP, _CLIP)
        return np.stack([z, missing], axis=1).astype(np.float32)
    return _vectors(column, f, here)


def _pad(flat: NDArray[np.int32], lengths: NDArray[np.int64], width: int, repeats: bool = False) -> NDArray[np.int32]:
    """Lists end to end → ``[n, width]``, cut or filled with PAD; an empty list says MISSING.

    Repeated ids of a list (several unknown values, say) count once, so that three unknown skills
    weigh no more than one; with ``repeats`` only unknown values are counted so.
    """
    n = len(lengths)
    row = np.repeat(np.arange(n), lengths)
    _, first = np.unique(row * (int(flat.max(initial=0)) + 1) + flat, return_index=True)
    keep = np.union1d(first, np.flatnonzero(flat >= FIRST)) if repeats else np.sort(first)
    row, flat = row[keep], flat[keep]
    lengths = np.bincount(row, minlength=n)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    out = np.full((n, width), PAD, np.int32)
    fits = place < width
    out[row[fits], place[fits]] = flat[fits]
    out[lengths == 0, 0] = MISSING
    return out


def _sentences(fitted: _Fitted, table: pa.Table | Mapping[str, Any], where: str) -> NDArray[np.float32]:
    """``[n, dim + 1]``; a text of nothing but blanks is missing."""
    f = fitted.feature
    texts = _texts(f, table, where, ". ")
    out = np.zeros((len(texts), f.dim + 1), np.float32)
    there = np.array([bool(t.strip()) for t in texts], bool)
    out[~there, f.dim] = 1
    if there.any():
        out[there, : f.dim] = _encoder(fitted, where).encode([t for t in texts if t.strip()])
    return out


def _encoder(fitted: _Fitted, where: str) -> TextEncoder:
    """The encoder that was there when the feature was fitted."""
    name, wanted = str(fitted.feature.encoder), (fitted.numbers or {}).get("encoder_sha256")
    encoder = fitted.encoders(name)
    if encoder.hash != wanted:
        raise ConfigError(
            f"{where}: {name} is another model here ({encoder.hash[:12]}) than the one whose vectors this was trained "
            f"on ({str(wanted)[:12]}); install that one, or prepare, train and export again"
        )
    return encoder


def _hash_texts(f: Feature, table: pa.Table | Mapping[str, Any], where: str) -> list[list[int]]:
    texts = _texts(f, table, where, " ")
    return [hashed(t, f.buckets, f.words, f.chars, f.max_length, f.repeats) for t in texts]


def _texts(f: Feature, table: pa.Table | Mapping[str, Any], where: str, separator: str) -> list[str]:
    """The columns of a feature as one text for each row, empty where all are missing."""
    columns = []
    for name in f.columns:
        column = _column(table, name, where)
        if not (
            pa.types.is_null(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ):
            raise DataError(f"column {name!r} is {column.type}; text wants strings", where=where, cure="cast it")
        columns.append(column.to_pylist())
    return [separator.join(p for p in parts if p) for parts in zip(*columns, strict=True)]


def _lists(column: pa.Array, f: Feature, where: str) -> pa.Array:
    if pa.types.is_null(column.type):
        return column.cast(pa.list_(pa.string()))
    if pa.types.is_fixed_size_list(column.type):
        return column.cast(pa.list_(column.type.value_type))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(
            f"column {f.columns[0]!r} is {column.type}; categorical_list wants lists",
            where=where,
            cure="use kind categorical for single values, or split the column into lists",
        )
    return column


def _numbers(column: pa.Array, f: Feature, where: str) -> NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
            or pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):  # fmt: skip
        raise DataError(f"column {f.columns[0]!r} is {column.type}; numeric wants numbers", where=where, cure="cast it")
    x = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False), np.float64)
    if np.isinf(x).any():
        raise DataError(
            f"column {f.columns[0]!r} is infinite",
            where=f"{where}, row {int(np.flatnonzero(np.isinf(x))[0])}",
            cure="write null for an unknown number",
        )
    return np.sign(x) * np.log1p(np.abs(x)) if f.log else x


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _vectors(column: pa.Array, f: Feature, where: str) -> NDArray[np.float32]:
    out = np.zeros((len(column), f.dim + 1), np.float32)
    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    out[~present, f.dim] = 1
    if pa.types.is_null(column.type) or not present.any():
        return out
    if not _is_list_of_numbers(column.type):
        raise DataError(
            f"column {f.columns[0]!r} is {column.type}; vector wants lists of numbers", where=where, cure="cast it"
        )
    kept = column.filter(pa.array(present))
    if not pa.types.is_fixed_size_list(kept.type):
        lengths = pc.list_value_length(kept).to_numpy(zero_copy_only=False)
        if (lengths != f.dim).any():
            bad = int(np.flatnonzero(present)[np.flatnonzero(lengths != f.dim)[0]])
            raise DataError(
                f"a vector of length {int(lengths[lengths != f.dim][0])}; expected dim={f.dim}",
                where=f"{where}, row {bad}",
                cure="correct the feature's dim, or the vector",
            )
    elif kept.type.list_size != f.dim:
        raise DataError(
            f"vectors of length {kept.type.list_size}; expected dim={f.dim}", where=where, cure="correct dim"
        )
    values = kept.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, f.dim)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(present)[np.flatnonzero(~np.isfinite(values).all(axis=1))[0]])
        raise DataError("a vector with NaN or infinite entries", where=f"{where}, row {bad}", cure="write null instead")
    out[present, : f.dim] = values
    return out
