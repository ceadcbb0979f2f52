from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from towers.model import logits
from towers.model.losses import sampled_softmax, weighted_mean

INF = float("inf")


def test_sampled_softmax_by_hand() -> None:
    """Scores 1, and 0 and 2 with one masked; then a user with weight 3 and no negative left."""
    positive = torch.tensor([1.0, 5.0])
    negative = torch.tensor([[0.0, 2.0, -INF], [-INF, -INF, -INF]])
    first = -math.log(math.e / (math.e + 1 + math.e**2))
    assert sampled_softmax(positive, negative, torch.tensor([1.0, 3.0])).item() == pytest.approx(first / 4)


def test_an_example_without_negatives_has_no_gradient_and_no_nan() -> None:
    positive = torch.tensor([1.0], requires_grad=True)
    negative = torch.full((1, 2), -INF, requires_grad=True)
    loss = sampled_softmax(positive, negative, torch.ones(1))
    loss.backward()
    assert loss.item() == 0
    assert positive.grad is not None
    assert negative.grad is not None
    assert positive.grad.tolist() == [0.0]
    assert negative.grad.tolist() == [[0.0, 0.0]]


def test_over_all_items_it_is_the_cross_entropy() -> None:
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, 3, 6])
    own = F.one_hot(target, 7).bool()
    ours = sampled_softmax(scores[own], logits.mask(scores.clone(), own), torch.ones(4))
    assert torch.allclose(ours, F.cross_entropy(scores, target))


def test_the_mean_is_weighted_and_nothing_weighs_nothing() -> None:
    assert weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])).item() == 3
    assert weighted_mean(torch.tensor([1.0]), torch.zeros(1)).item() == 0


def test_extreme_scores_stay_finite() -> None:
    loss = sampled_softmax(torch.tensor([-1e4]), torch.tensor([[1e4]]), torch.ones(1))
    assert loss.item() == pytest.approx(2e4)
