from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.model.helpers import encoded, infos
from towers.features import PAD, FeatureInfo, Kind
from towers.model.encoders import Bag, EncoderSettings, encoder, log_idf


@pytest.mark.parametrize("info", infos(), ids=lambda i: f"{i.kind}-{i.width}")
@pytest.mark.parametrize("settings", [EncoderSettings(), EncoderSettings(None, 5, "periodic", 3, "identity")])
def test_every_kind_becomes_finite_vectors_of_its_width(info: FeatureInfo, settings: EncoderSettings) -> None:
    e = encoder(info, 8, settings)
    out = e(torch.from_numpy(encoded([info], 6)[info.name]))
    assert out.shape == (6, e.dim) == (6, 8)
    assert out.isfinite().all()


def test_tables_above_the_limit_have_sparse_gradients() -> None:
    info = infos()[0]
    for limit, sparse in ((None, False), (12, False), (11, True)):
        e = encoder(info, 4, EncoderSettings(sparse_above=limit))
        e(torch.tensor([3, 4])).sum().backward()
        assert e.table.weight.grad.is_sparse is sparse


def bag(cardinality: int = 6, dim: int = 2, counts: list[int] | None = None) -> Bag:
    array = None if counts is None else np.array(counts, np.int64)
    return Bag(FeatureInfo("skills", Kind.CATEGORICAL_LIST, 3, cardinality, array), dim, sparse=False)


def test_a_bag_is_the_weighted_mean_of_its_entries() -> None:
    b = bag()
    with torch.no_grad():
        b.table.weight[3:5] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        b.log_weight.weight[3:5, 0] = torch.tensor([3.0, 1.0]).log()
    out = b(torch.tensor([[3, 4, PAD], [4, PAD, PAD], [PAD, PAD, PAD]]))
    assert torch.allclose(out, torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]]))


def test_the_learned_power_of_length_leads_from_the_mean_to_the_sum() -> None:
    b = bag()
    with torch.no_grad():
        b.table.weight[3:5] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        b.log_weight.weight[3:5, 0] = torch.tensor([3.0, 1.0]).log()
    ids = torch.tensor([[3, 4], [PAD, PAD]])
    for power, expected in ((1.0, [0.75, 0.25]), (0.5, [1.5, 0.5]), (0.0, [3.0, 1.0])):
        with torch.no_grad():
            b.length_power.fill_(power)
        out = b(ids)
        assert torch.allclose(out, torch.tensor([expected, [0.0, 0.0]]))
        out.sum().backward()
        assert b.length_power.grad.isfinite()


def test_weights_start_at_the_inverse_document_frequency() -> None:
    idf = log_idf(FeatureInfo("s", Kind.TEXT, 3, 6, np.array([0, 0, 0, 7, 3, 0]))).exp()
    assert torch.allclose(idf, torch.tensor([1, 1, 1, 1, 1 + np.log(8 / 4), 1 + np.log(8)]).float())


def test_padding_adds_nothing_and_learns_nothing() -> None:
    b = bag()
    short, padded = torch.tensor([[3, 4]]), torch.tensor([[3, 4, PAD, PAD]])
    assert torch.equal(b(short), b(padded))
    b(padded).sum().backward()
    for p in (b.table.weight, b.log_weight.weight):
        assert p.grad is not None
        assert (p.grad[PAD] == 0).all()
        assert (b.table.weight[PAD] == 0).all()
    assert (b.table.weight.grad[3] != 0).any()


def test_unseen_values_start_at_zero() -> None:
    e = encoder(infos()[0], 4, EncoderSettings())
    assert (e(torch.tensor([0, 1, 2])) == 0).all()
