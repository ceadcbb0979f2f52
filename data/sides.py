"""Users, items and contexts: their features fitted on what training saw, encoded, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.entities import Entities
from data.growth import Base
from towers.features import Encoders, Featurizer, Schema, share_vocabularies
from towers.features import columns as c


def write_sides(
    out: Path,
    schema: Schema,
    sides: Mapping[str, tuple[Entities, NDArray[np.int64]]],
    encoders: Encoders,
    base: Base | None,
) -> None:
    """Write ``users.parquet``, ``items.parquet``, ``contexts.parquet`` and ``vocab/``.

    Each side is fitted on what training saw; features that share a vocabulary are fitted together.

    Args:
        out: folder of the dataset.
        schema: declares the features.
        sides: of ``item`` (first), ``user`` and perhaps ``context``: the table and ``[rows]`` training events.
        encoders: what opens the encoder of a sentence by its name.
        base: the dataset that is added to, as which known values are encoded; None: there is none.

    Raises:
        DataError: a column is missing, of the wrong type, or holds what cannot be encoded.
    """
    keys = {"user": (schema.users, c.USER), "item": (schema.items, c.ITEM), "context": (schema.context, c.CONTEXT_ROW)}
    fitted = {}
    for side, (ents, events) in sides.items():
        features, key = keys[side]
        fitted[side] = Featurizer.fit(features, ents.table, events, key, encoders)
    share_vocabularies(fitted["item"], [f for side, f in fitted.items() if side != "item"])
    if base is not None:
        for side in fitted:  # items come first
            older, items = base.data.featurizer(side), fitted["item"] if side != "item" else None
            fitted[side] = fitted[side].continuing(older, items)
    for side, (ents, events) in sides.items():
        _write_side(out, side, keys[side][1], fitted[side], ents, events)


def _write_side(
    out: Path, side: str, key: str, featurizer: Featurizer, ents: Entities, events: NDArray[np.int64]
) -> None:
    featurizer.save(out / "vocab", side)
    columns: dict[str, Any] = {key: ents.ids, c.EVENTS: events}
    when = pa.timestamp("us", "UTC")
    for name, value in ((c.POSTED, ents.posted), (c.EXPIRES, ents.expires)):
        if value is not None:
            columns[name] = value.cast(pa.timestamp("us")).cast(when)
    if ents.group is not None:
        columns[c.GROUP] = ents.group
    for name, encoded in featurizer.encode(ents.table, f"{side}s").items():
        flat = pa.array(encoded.reshape(-1))
        column = flat if encoded.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, encoded.shape[1])
        columns[c.FEATURE_PREFIX + name] = column
    # every raw column travels: attributes for filters and display, features for serving parity checks
    for name in ents.table.column_names:
        columns[c.ATTRIBUTE_PREFIX + name] = ents.table[name]
    pq.write_table(pa.table(columns), out / f"{side}s.parquet", compression="zstd")
