"""A small world: every kind of feature on both sides, with made-up encoded arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from towers.features import Batch, FeatureInfo, Kind, Ragged
from towers.model.history import HistorySettings
from towers.model.similarity import Similarity
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

N_ACTIONS = 3


def infos(cardinality: int = 12) -> list[FeatureInfo]:
    counts = np.r_[0, 0, 0, np.arange(cardinality - 3, 0, -1)].astype(np.int64)
    return [
        FeatureInfo("id", Kind.ID, 0, cardinality, counts),
        FeatureInfo("type", Kind.CATEGORICAL, 0, cardinality, counts),  # a name that ModuleDict would refuse
        FeatureInfo("skills", Kind.CATEGORICAL_LIST, 4, cardinality, counts),
        FeatureInfo("title.en", Kind.TEXT, 5, cardinality, counts),
        FeatureInfo("bucket", Kind.NUMERIC, 0, 7),
        FeatureInfo("salary", Kind.NUMERIC, 2, 0),
        FeatureInfo("vec", Kind.VECTOR, 9, 0),
    ]


def encoded(some: list[FeatureInfo], n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    for i in some:
        if not i.cardinality:
            out[i.name] = rng.standard_normal((n, i.width)).astype(np.float32)
        elif not i.width:
            out[i.name] = rng.integers(1, i.cardinality, n).astype(np.int32)
        else:
            ids = rng.integers(3, i.cardinality, (n, i.width))
            out[i.name] = np.where(np.arange(i.width) < rng.integers(1, i.width + 1, (n, 1)), ids, 0).astype(np.int32)
    return out


def table(some: list[FeatureInfo], n: int, seed: int = 0) -> FeatureTable:
    return FeatureTable(encoded(some, n, seed))


def ids_only(n: int) -> tuple[list[FeatureInfo], FeatureTable]:
    """An id feature in which row i has id 3 + i."""
    info = FeatureInfo("id", Kind.ID, 0, n + 3, np.r_[0, 0, 0, np.ones(n)].astype(np.int64))
    return [info], FeatureTable({"id": (np.arange(n) + 3).astype(np.int32)})


CONTEXTS = 7


def contexts() -> FeatureTable:
    return table(infos()[1:3], CONTEXTS, seed=2)


def full_model(**changes: Any) -> TwoTower:
    settings: dict[str, Any] = {
        "dim": 8,
        "similarity": Similarity("cosine", 0.1),
        "user": TowerSettings(width=16),
        "item": TowerSettings(width=12, id_dropout=0.2),
        "history": HistorySettings(pooling="attention", length=6),
    }
    return TwoTower(infos(), infos(), infos()[1:3], N_ACTIONS, **{**settings, **changes})


def batch(b: int, items: int, users: int = 5, length: int = 4, seed: int = 0, **changes: Any) -> Batch:
    rng = np.random.default_rng(seed)
    history = np.where(np.arange(length) < rng.integers(0, length + 1, (b, 1)), rng.integers(0, items, (b, length)), -1)
    item = rng.integers(0, items, b)
    values: dict[str, Any] = {
        "user": rng.integers(0, users, b),
        "item": item,
        "weight": np.ones(b, np.float32),
        "history": history,
        "history_action": np.where(history >= 0, rng.integers(0, N_ACTIONS, history.shape), 0),
        "history_age": np.where(history >= 0, 1.0, 0.0).astype(np.float32),
        "known": Ragged(np.arange(b + 1), item),
        "context": rng.integers(0, CONTEXTS, b),
    }
    return Batch(**{**values, **changes}).map(torch.as_tensor)
