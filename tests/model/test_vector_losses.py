"""Losses over a whole contrast, against the same thing said with dense arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.helpers import batch
from towers.errors import ConfigError
from towers.features import Ragged
from towers.model import logits
from towers.model.contrast import Contrast, Own
from towers.model.losses import sampled_softmax
from towers.model.negatives import Negatives
from towers.model.similarity import Similarity
from towers.model.vector_losses import AlignmentUniformity, GeneralisedBinary, MultiPositive

B, ITEMS, D = 5, 12, 4
INF = float("inf")


def contrast(n: int = 9, own: int = 0, seed: int = 0, **changes: Any) -> Contrast:
    """Random vectors; every second example knows two more items, and a third of the jobs were not live."""
    g = torch.Generator().manual_seed(seed)

    def vectors(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).requires_grad_()

    rows = torch.randperm(ITEMS, generator=g)[:n]
    lists = [torch.randperm(ITEMS, generator=g)[:2] if b % 2 else torch.empty(0, dtype=torch.long) for b in range(B)]
    known = Ragged(torch.tensor([0, *map(len, lists)]).cumsum(0), torch.cat(lists))
    examples = batch(B, ITEMS, seed=seed, known=known, time=torch.arange(B), weight=torch.rand(B, generator=g) + 0.1)
    query, positive, candidates, its_own = vectors(B, D), vectors(B, D), vectors(n, D), vectors(B, own, D)
    posted = torch.where(torch.arange(n) % 3 == 0, 3, 0)
    masked = torch.rand(B, own, generator=g) < 0.3
    mined = Own(its_own, masked, torch.full((B, own), -0.5)) if own else None
    draw = Negatives(rows, torch.rand(n, generator=g).log())
    values = {"posted": posted, "own": mined, **changes}
    return Contrast(examples, draw, logits.item_columns(rows, ITEMS), query, positive, candidates, **values)


def test_own_candidates_stand_beside_the_shared_ones_and_are_corrected_alike() -> None:
    c = contrast(9, 3)
    assert c.own is not None
    s = c.negative_logits()
    assert s.shape == (B, 12)
    by_hand = (c.query.unsqueeze(1) * c.own.vectors).sum(-1) + 0.5
    assert torch.allclose(s[:, 9:], by_hand.masked_fill(c.own.masked, -INF))
    plain = replace(c, corrected=False).negative_logits()
    assert torch.allclose(plain[:, 9:], (by_hand - 0.5).masked_fill(c.own.masked, -INF))


def test_what_own_candidates_stand_for_is_masked_in_the_shared_draw() -> None:
    c = contrast(9)
    covered = torch.full((B, 2), -1)
    covered[1, 0] = c.draw.rows[4]
    masked = replace(c, draw=c.draw._replace(covered=covered)).negative_logits()
    expected = c.negative_logits().detach().clone()
    expected[1, 4] = -INF
    assert torch.equal(masked, expected)


def test_multi_positive_by_definition() -> None:
    c = contrast(12)
    negative = torch.logsumexp(c.negative_logits(), 1)
    total = torch.zeros(())
    for b in range(B):
        own = int(c.batch.item[b])
        known = c.batch.known.values[c.batch.known.offsets[b] : c.batch.known.offsets[b + 1]].tolist()
        positives = [c.positive[b]] + [c.candidates[c.columns[j]] for j in set(known) - {own}]
        terms = [torch.logaddexp(p @ c.query[b], negative[b]) - p @ c.query[b] for p in positives]
        total = total + c.weight[b] * torch.stack(terms).mean()
    assert any(len(x) for x in c.other_positives())
    assert torch.allclose(MultiPositive()(c), total / c.weight.sum(), atol=1e-6)


def test_all_positives_are_biased_and_corrected_alike() -> None:
    """A softmax sees no bias of an example's scores, nor a constant log q on all of its candidates and positives."""
    c = contrast(12)
    assert len(c.other_positives()[0])
    plain = MultiPositive()(c)
    bias = torch.linspace(-5, 2, B).requires_grad_()
    biased = MultiPositive()(replace(c, bias=bias))
    assert torch.allclose(biased, plain, atol=1e-5)
    (slope,) = torch.autograd.grad(biased, bias)
    assert torch.allclose(slope, torch.zeros(B), atol=1e-6)
    uncorrected = MultiPositive()(replace(c, corrected=False))
    even = replace(c, draw=c.draw._replace(log_q=torch.full((12,), -1.5)), positive_log_q=torch.full((B,), -1.5))
    assert torch.allclose(MultiPositive()(even), uncorrected, atol=1e-5)


def test_multi_positive_without_other_positives_is_the_softmax() -> None:
    c = contrast(9)
    none = Ragged(torch.zeros(B + 1, dtype=torch.long), torch.empty(0, dtype=torch.long))
    c = replace(c, batch=replace(c.batch, known=none))
    dense = sampled_softmax(c.positive_logits(), c.negative_logits(), c.weight)
    assert torch.allclose(MultiPositive()(c), dense, atol=1e-6)


def test_generalised_binary_by_the_papers_formula() -> None:
    """t = .75 and a third of the catalogue drawn: β = α (t (1 - 1/α) + 1/α) = 1/3 (.75 (1 - 3) + 3) = .5."""
    c = contrast(9, corrected=False, positive_log_q=None)
    c = replace(c, draw=c.draw._replace(log_q=torch.full((9,), math.log(1 / 3))))
    left = c.negative_logits() > -INF
    odds = left.sum(1).log()
    positive, negative = c.positive_logits() - odds, c.negative_logits() - odds.unsqueeze(1)
    log_1_minus_p = torch.where(left, torch.log1p(-negative.sigmoid()), 0.0)
    each = -(positive.sigmoid() ** 0.5).log() - log_1_minus_p.sum(1)
    expected = ((each / (1 + left.sum(1))) * c.weight).sum() / c.weight.sum()
    assert torch.allclose(GeneralisedBinary(0.75)(c), expected, atol=1e-6)


def test_alignment_and_uniformity_by_definition() -> None:
    c = contrast(9)
    q, p = F.normalize(c.query, dim=1), F.normalize(c.positive, dim=1)
    align = (((q - p) ** 2).sum(1) * c.weight).sum() / c.weight.sum()

    def uniform(x: Tensor) -> Tensor:
        pairs = [torch.exp(-2 * (x[i] - x[j]).square().sum()) for i, j in combinations(range(B), 2)]
        return torch.stack(pairs).mean().log()

    expected = align + 0.7 * (uniform(q) + uniform(p)) / 2
    assert torch.allclose(AlignmentUniformity(0.7)(c), expected, atol=1e-5)
    hotter = c.cool(Similarity("cosine", 0.05))
    assert torch.allclose(AlignmentUniformity(0.7)(hotter), expected, atol=1e-5), "the temperature must not matter"


def test_alignment_and_uniformity_of_a_single_example_is_alignment() -> None:
    x, n = torch.ones(1, D), 1
    draw = Negatives(torch.tensor([0]), torch.zeros(n))
    c = Contrast(batch(1, ITEMS), draw, logits.item_columns(draw.rows, ITEMS), x, 2 * x, x)
    assert AlignmentUniformity()(c).item() == 0


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_a_prefix_is_a_shorter_vector_normalised_again(kind: Any) -> None:
    similarity = Similarity(kind, 0.1)
    c = contrast(9, 2)
    short = c.prefix(3, similarity)
    assert short.own is not None
    assert c.own is not None
    for ours, whole in ((short.query, c.query), (short.candidates, c.candidates), (short.own.vectors, c.own.vectors)):
        assert torch.equal(ours, similarity.normalise(whole[..., :3]))
    scores = c.prefix(D, similarity).cool(similarity).positive_scores()
    expected = F.cosine_similarity(c.query, c.positive) if kind == "cosine" else (c.query * c.positive).sum(1)
    assert torch.allclose(scores, 10 * expected, atol=1e-5)


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match=r"loss\.calibration"):
        GeneralisedBinary(2.0)
