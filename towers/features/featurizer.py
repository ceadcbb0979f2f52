"""The features of one side together, by the same code in training and in serving (``encoding`` knows each kind)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features.encoding import FeatureInfo, FittedFeature, fit_feature
from towers.features.raw import Columns, of_rows
from towers.features.schema import Feature, Kind
from towers.features.sentences import Encoders, open_encoder
from towers.features.vocabulary import Vocabulary

Encoded: TypeAlias = dict[str, NDArray[Any]]  # by feature


class Featurizer:
    """The features of one side (users, items or context), fitted.

    Make one with ``fit`` (prepare) or ``load`` (everywhere else).
    """

    def __init__(self, fitted: Sequence[FittedFeature]) -> None:
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

        Raises:
            DataError: a column is missing, or of the wrong type.
            ConfigError: a sentence encoder cannot be opened, or has another dimension than declared.
        """
        seen = events > 0
        rows = table.filter(pa.array(seen)) if not seen.all() else table
        return cls(
            [fit_feature(f, table if f.fit == "all" else rows, events[seen], id_column, encoders) for f in features]
        )

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
        return tuple(f.info for f in self._fitted.values())

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

    def encode(self, table: Columns, where: str = "") -> Encoded:
        """Encoded arrays by feature name.

        Args:
            table: raw columns; a column that is absent is an error.
            where: said in errors (a file name, "request").

        Raises:
            DataError: a column is missing, of the wrong type, or holds what cannot be encoded.
        """
        return {name: f.encode(table, where) for name, f in self._fitted.items()}

    def check_encoders(self) -> None:
        """Open the sentence encoders now, instead of when the first text needs them.

        Raises:
            ConfigError: one is not installed, or is another model than the one that the features were fitted with.
        """
        for name, f in self._fitted.items():
            if f.feature.kind is Kind.SENTENCE:
                f.encoder(f"feature {name!r}")

    def encode_rows(self, rows: Sequence[Mapping[str, Any]], where: str = "request") -> Encoded:
        """Encode entities given as mappings; absent values count as missing.

        Raises:
            DataError: naming the field that cannot be encoded.
        """
        columns = of_rows(rows, self.columns, where)
        try:
            return self.encode(columns, where)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as e:
            raise DataError(f"a value that cannot be encoded: {e}", where=f"{where}, one of {sorted(columns)}") from e

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
        cls,
        folder: Path,
        side: str,
        features: Sequence[Feature],
        encoders: Encoders = open_encoder,
        *,
        read: Callable[[Path], Vocabulary] = Vocabulary.load,
    ) -> Featurizer:
        """Read what ``save`` wrote for these declarations. Encoders are opened when the first text needs them.

        Args:
            folder: what ``save`` was given.
            side: likewise.
            features: the declarations.
            encoders: what opens the encoder of a sentence by its name.
            read: makes a vocabulary of its file; ``StoredVocabulary`` leaves it there.
        """
        if not features:
            return cls([])
        state = json.loads((folder / f"{side}.json").read_text())
        fitted = []
        for f in features:
            vocabulary = read(folder / f"{side}.{f.name}.parquet") if state[f.name]["vocabulary"] else None
            f = replace(f, columns=tuple(state[f.name].get("columns", f.columns)))
            fitted.append(FittedFeature(f, vocabulary, state[f.name]["numbers"], encoders))
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
