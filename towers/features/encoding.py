"""One feature: what is learnt of it from training data, and its raw columns → an encoded array.

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

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features import raw
from towers.features.schema import Feature, Kind
from towers.features.sentences import Encoders, TextEncoder, open_encoder
from towers.features.text import hashed
from towers.features.vocabulary import FIRST, MISSING, PAD, Vocabulary

_CLIP = 10.0  # standard deviations; a number far outside the training range must not swamp a tower


@dataclass(frozen=True)
class FeatureInfo:
    """What a model needs to know of an encoded feature.

    Attributes:
        name: key in encoded mappings.
        kind: see ``Kind``.
        width: columns of the encoded array; 0 for a plain ``[n]`` array.
        cardinality: embedding rows; 0 for dense features.
        counts: ``[cardinality]`` training counts by id, or what reads them when a model asks; None (dense, bucketised).
        vocabulary: the feature whose vocabulary it shares, ``items.NAME``, or None.
        keys: makes ``[cardinality, 2]`` keys by id (``Vocabulary.keys``), for tables that hash values; None: ids are
            what is hashed.
    """

    name: str
    kind: Kind
    width: int
    cardinality: int
    counts: NDArray[np.int64] | Callable[[], NDArray[np.int64]] | None = None
    vocabulary: str | None = None
    keys: Callable[[], NDArray[np.int32]] | None = field(default=None, repr=False, compare=False)

    def training_counts(self) -> NDArray[np.int64] | None:
        """``counts``, read now if they have not been yet."""
        return self.counts() if callable(self.counts) else self.counts


@dataclass
class FittedFeature:
    """A feature with what was learnt from training data.

    Attributes:
        feature: its declaration.
        vocabulary: None for numbers, vectors and sentences.
        numbers: of a number ``mean`` and ``scale``, or bucket ``edges``; of a sentence the hash of its encoder.
        encoders: what opens the encoder of a sentence by its name.
    """

    feature: Feature
    vocabulary: Vocabulary | None = None
    numbers: dict[str, Any] | None = None
    encoders: Encoders = open_encoder

    @property
    def info(self) -> FeatureInfo:
        """What a model needs to know."""
        f = self.feature
        if f.kind in (Kind.VECTOR, Kind.SENTENCE):
            return FeatureInfo(f.name, f.kind, f.dim + 1, 0, vocabulary=f.vocabulary)
        if f.kind is Kind.NUMERIC:
            if self.numbers is not None and "edges" in self.numbers:
                return FeatureInfo(f.name, f.kind, 0, FIRST + len(self.numbers["edges"]) + 1)
            return FeatureInfo(f.name, f.kind, 2, 0)
        known, width = self._known, f.max_length if f.kind in (Kind.CATEGORICAL_LIST, Kind.TEXT) else 0
        return FeatureInfo(f.name, f.kind, width, len(known), known.all_counts, f.vocabulary, lambda: known.keys)

    @property
    def _known(self) -> Vocabulary:
        assert self.vocabulary is not None  # every kind that asks has one, by construction
        return self.vocabulary

    def encode(self, columns: raw.Columns, where: str) -> NDArray[Any]:
        """The feature of ``n`` rows, in the form that the table above gives.

        Args:
            columns: raw columns, those of the feature among them.
            where: said in errors.

        Raises:
            DataError: a column is missing, of the wrong type, or holds what cannot be encoded.
            ConfigError: a sentence encoder is not installed, or is another model than the one fitted with.
        """
        f = self.feature
        here = ", ".join(p for p in (where, f"feature {f.name!r}") if p)
        if f.kind is Kind.TEXT:
            lists = _hashed_texts(f, columns, here)
            lengths = np.fromiter(map(len, lists), np.int64, len(lists))
            return _padded(self._known.encode(_flat(lists), here), lengths, f.max_length, f.repeats)
        if f.kind is Kind.SENTENCE:
            return self._sentences(columns, here)
        if f.kind in (Kind.ID, Kind.CATEGORICAL):
            return self._known.encode(raw.column(columns, f.columns[0], here), here)
        if f.kind is Kind.CATEGORICAL_LIST:
            values = raw.lists(f, columns, here)
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            return _padded(self._known.encode(values.flatten(), here), lengths, f.max_length)
        if f.kind is Kind.NUMERIC:
            return self._normalised(raw.numbers(f, columns, here))
        return raw.vectors(f, columns, here)

    def _normalised(self, x: NDArray[np.float64]) -> NDArray[Any]:
        """Numbers, NaN where missing → buckets, or ``[n, 2]``."""
        assert self.numbers is not None  # every numeric feature has them, by construction
        missing = np.isnan(x)
        if self.feature.buckets:
            ids = FIRST + np.searchsorted(np.asarray(self.numbers["edges"]), x, side="right")
            return np.where(missing, MISSING, ids).astype(np.int32)
        mean, scale = self.numbers["mean"], self.numbers["scale"]
        z = np.clip((np.where(missing, mean, x) - mean) / scale, -_CLIP, _CLIP)
        return np.stack([z, missing], axis=1).astype(np.float32)

    def _sentences(self, columns: raw.Columns, where: str) -> NDArray[np.float32]:
        """``[n, dim + 1]``; a text of nothing but blanks is missing."""
        f = self.feature
        texts = raw.texts(f, columns, where, ". ")
        out = np.zeros((len(texts), f.dim + 1), np.float32)
        there = np.array([bool(t.strip()) for t in texts], bool)
        out[~there, f.dim] = 1
        if there.any():
            out[there, : f.dim] = self.encoder(where).encode([t for t in texts if t.strip()])
        return out

    def encoder(self, where: str) -> TextEncoder:
        """A sentence's encoder: the one that was there when the feature was fitted.

        Raises:
            ConfigError: it is not installed, or is another model.
        """
        name, wanted = str(self.feature.encoder), (self.numbers or {}).get("encoder_sha256")
        encoder = self.encoders(name)
        if encoder.hash != wanted:
            raise ConfigError(
                f"{where}: {name} is another model here ({encoder.hash[:12]}) than the one whose vectors this was "
                f"trained on ({str(wanted)[:12]}); install that one, or prepare, train and export again"
            )
        return encoder


def fit_feature(
    f: Feature, rows: pa.Table, events: NDArray[np.int64], id_column: str, encoders: Encoders
) -> FittedFeature:
    """Learn of a feature what there is to learn.

    Args:
        f: its declaration.
        rows: raw columns of ``n`` rows.
        events: ``[n]`` training events of each row, by which ids are counted.
        id_column: the column that an ``id`` feature reads.
        encoders: what opens the encoder of a sentence by its name.

    Raises:
        DataError: a column is missing, or of the wrong type.
        ConfigError: a sentence encoder cannot be opened, or has another dimension than declared.
    """
    limits: dict[str, Any] = {"min_count": f.min_count, "max_size": f.max_size}
    if f.kind is Kind.ID:
        f = replace(f, columns=(id_column,))
        return FittedFeature(f, Vocabulary.fit(raw.column(rows, id_column, f.name), events, **limits))
    if f.kind is Kind.SENTENCE:
        encoder = encoders(str(f.encoder))
        if encoder.dim != f.dim:
            raise ConfigError(f"feature {f.name!r}: {f.encoder} gives vectors of length {encoder.dim}; set dim to it")
        return FittedFeature(f, numbers={"encoder_sha256": encoder.hash}, encoders=encoders)
    if f.kind is Kind.TEXT:
        lists = _hashed_texts(replace(f, repeats=False), rows, f.name)  # counts are of texts, not of repetitions
        return FittedFeature(f, Vocabulary.fit(_flat(lists), **limits))
    if f.kind is Kind.CATEGORICAL:
        return FittedFeature(f, Vocabulary.fit(raw.column(rows, f.columns[0], f.name), **limits))
    if f.kind is Kind.CATEGORICAL_LIST:
        return FittedFeature(f, Vocabulary.fit(raw.lists(f, rows, f.name).flatten(), **limits))
    if f.kind is Kind.NUMERIC:
        return FittedFeature(f, numbers=_distribution(raw.numbers(f, rows, f.name), f.buckets))
    raw.column(rows, f.columns[0], f.name)  # of a vector there is nothing to learn but that it is there
    return FittedFeature(f)


def _distribution(x: NDArray[np.float64], buckets: int) -> dict[str, Any]:
    """Quantiles between buckets, or the mean and the standard deviation, of the numbers that are there."""
    x = x[~np.isnan(x)]
    if buckets:
        inner = np.linspace(0, 1, buckets + 1)[1:-1]
        edges = np.unique(np.quantile(x, inner)) if len(x) else np.empty(0)
        return {"edges": edges.tolist()}
    scale = float(x.std()) if len(x) else 0.0
    return {"mean": float(x.mean()) if len(x) else 0.0, "scale": scale or 1.0}


def _hashed_texts(f: Feature, columns: raw.Columns, where: str) -> list[list[int]]:
    texts = raw.texts(f, columns, where, " ")
    return [hashed(t, f.buckets, f.words, f.chars, f.max_length, f.repeats) for t in texts]


def _flat(lists: list[list[int]]) -> pa.Array:
    """Lists end to end."""
    return pa.array(np.fromiter((value for row in lists for value in row), np.int64))


def _padded(
    flat: NDArray[np.int32], lengths: NDArray[np.int64], width: int, repeats: bool = False
) -> NDArray[np.int32]:
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
