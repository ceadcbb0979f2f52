"""Vectors cut to a prefix when serving: what ``matryoshka`` trains for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.helpers import batch, full_model
from tests.model.test_module import ITEMS, USERS, retrieval
from towers.errors import ConfigError
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.history import HistorySettings
from towers.model.similarity import Similarity


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_a_truncated_model_gives_the_normalised_prefix_on_both_sides(kind: Any) -> None:
    module, one = retrieval(), batch(6, ITEMS, USERS)
    module.model.similarity = Similarity(kind)
    (whole_users,), whole_items = module.embedder().embed_queries([one]), module.embedder().embed_items()
    module.model.truncate(3)
    (users,), items = module.embedder().embed_queries([one]), module.embedder().embed_items()
    for whole, cut in ((whole_users, users), (whole_items, items)):
        prefix = whole[:, :3]
        assert torch.allclose(cut, F.normalize(prefix, dim=1) if kind == "cosine" else prefix, atol=1e-6)
    assert module.model.dim == 3


def test_a_truncated_model_is_exported_as_such() -> None:
    model = full_model(history=HistorySettings(pooling="mean"))
    model.truncate(5)
    export_user_tower(model)  # both check parity with torch
    export_item_tower(model)


@pytest.mark.parametrize("dim", [0, 9])
def test_there_must_be_so_many_dimensions(dim: int) -> None:
    with pytest.raises(ConfigError, match="8 dimensions"):
        full_model().truncate(dim)
