from __future__ import annotations

import numpy as np
import torch

from towers.model.tables import FeatureTable


def test_rows_of_any_shape_gather_their_features() -> None:
    table = FeatureTable({"a": np.array([10, 20, 30], np.int32), "b": np.arange(6, dtype=np.float32).reshape(3, 2)})
    flat = table(torch.tensor([2, 0]))
    assert flat["a"].tolist() == [30, 10]
    assert flat["b"].tolist() == [[4, 5], [0, 1]]
    nested = table(torch.tensor([[2, 0], [1, 1]]))
    assert nested["a"].tolist() == [[30, 10], [20, 20]]
    assert nested["b"].shape == (2, 2, 2)
    assert len(table) == 3


def test_features_are_data_and_never_in_a_checkpoint() -> None:
    assert FeatureTable({"a": np.zeros(3, np.float32)}).state_dict() == {}


def test_a_selection_shares_memory_and_forgets_the_rest() -> None:
    table = FeatureTable({"a": np.zeros(3, np.float32), "b": np.ones(3, np.float32)})
    chosen = table.select(["b"])
    assert set(chosen(torch.tensor([0]))) == {"b"}
    assert chosen.column("b").data_ptr() == table.column("b").data_ptr()
    assert len(table.select([])) == 3


def test_a_table_that_stays_is_gathered_where_it_lies() -> None:
    """The ``meta`` device stands for a card: what the module holds goes there, the table's columns do not."""
    table = FeatureTable({"a": np.array([1.0, 2.0, 3.0], np.float32)}, stays=True).to("meta")
    assert table.column("a").tolist() == [1.0, 2.0, 3.0]
    assert table(torch.tensor([2, 0]))["a"].tolist() == [3.0, 1.0]
    assert table.select(["a"]).stays
    assert FeatureTable({"a": np.zeros(3, np.float32)}).to("meta").column("a").is_meta


def test_read_only_arrays_are_copied() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    FeatureTable({"a": array}).column("a").add_(1)
    assert array.sum() == 0
