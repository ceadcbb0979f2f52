"""The softmax by blocks of examples, against the same thing said with dense arrays and with torch's own losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.helpers import batch
from tests.model.test_vector_losses import ITEMS, B, D, contrast
from towers.model import fused_softmax, logits
from towers.model.contrast import Contrast
from towers.model.fused_softmax import SampledSoftmax, block_rows
from towers.model.losses import sampled_softmax
from towers.model.negatives import Negatives
from towers.model.similarity import Similarity

INF = float("inf")


def dense(c: Contrast, margin: float = 0.0) -> Tensor:
    return sampled_softmax(c.positive_logits(), c.negative_logits(), c.weight, margin)


def fused(c: Contrast, rows: int, margin: float = 0.0) -> Tensor:
    with patch.object(fused_softmax, "block_rows", lambda n, device: rows):
        return SampledSoftmax(margin)(c)


def gradients(loss: Tensor, c: Contrast) -> tuple[Tensor, ...]:
    leaves = [c.query, c.positive, c.candidates, *([c.own.vectors] if c.own else [])]
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n=st.integers(0, 12), own=st.integers(0, 3), rows=st.integers(1, 6), seed=st.integers(0, 99),
    corrected=st.booleans(), margin=st.sampled_from([0.0, 0.7]), covered=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_value_and_gradients_are_those_of_the_dense_softmax(
    n: int, own: int, rows: int, seed: int, corrected: bool, margin: float, covered: bool, bias: bool
) -> None:
    """Whatever is drawn, masked, weighed, corrected, and wherever the blocks end."""
    g = torch.Generator().manual_seed(seed)
    c = contrast(n, own, seed, corrected=corrected, positive_log_q=torch.rand(B, generator=g) if corrected else None)
    if covered:
        c = replace(c, draw=c.draw._replace(covered=torch.randint(-1, ITEMS, (B, 2), generator=g)))
    if bias:
        c = replace(c, bias=torch.randn(B, generator=g))
    ours, theirs = fused(c, rows, margin), dense(c, margin)
    assert torch.allclose(ours, theirs, atol=1e-6)
    for a, b in zip(gradients(3 * ours, c), gradients(3 * theirs, c), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_learned_temperature_gets_its_gradient() -> None:
    found = []
    for loss in (dense, lambda c: fused(c, 2)):
        similarity = Similarity("cosine", 0.3, learn_temperature=True)
        found.append(torch.autograd.grad(loss(contrast().cool(similarity)), similarity.log_temperature)[0])
    assert torch.allclose(*found, atol=1e-6)
    assert found[0].abs() > 1e-3


def test_a_bias_of_all_logits_gets_a_gradient_of_nothing() -> None:
    bias = torch.randn(B, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (grad,) = torch.autograd.grad(fused(replace(contrast(9, 2), bias=bias), 2), bias)
    assert grad.tolist() == [0.0] * B


@pytest.mark.parametrize("with_own", [False, True])
def test_gradients_are_those_of_the_values(with_own: bool) -> None:
    """In double precision, by differences; masks in the first and in the last block."""
    g = torch.Generator().manual_seed(0)
    *_, own = inputs = tuple(
        torch.randn(*shape, dtype=torch.float64, generator=g, requires_grad=True)
        for shape in ((5, 3), (4, 3), (5,), (5,))
    )
    log_q, weight = torch.rand(4, generator=g).double().log(), torch.rand(5, generator=g).double()

    def finish(first: int) -> Any:
        def masked(scores: Tensor) -> Tensor:
            out = scores.sub_(log_q)
            out[:, first] = -INF
            return out

        return masked

    def loss(q: Tensor, c: Tensor, p: Tensor, o: Tensor) -> Tensor:
        blocks = [finish(0), finish(1), finish(3)]
        return fused_softmax.fused_softmax(q, c, p, o if with_own else None, weight, 2, blocks)

    if not with_own:
        assert torch.autograd.grad(loss(*inputs), own, allow_unused=True) == (None,)
        own.requires_grad_(False)
    assert torch.autograd.gradcheck(loss, inputs)


def test_over_everything_it_is_the_cross_entropy() -> None:
    """All items drawn with certainty, nothing else known: torch's own loss over the whole catalogue."""
    rows = torch.arange(ITEMS)
    items = torch.randn(ITEMS, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    examples = batch(B, ITEMS)
    query = torch.randn(B, D, generator=torch.Generator().manual_seed(2))
    draw = Negatives(rows, torch.zeros(ITEMS))
    c = Contrast(examples, draw, logits.item_columns(rows, ITEMS), query, items[examples.item], items)
    theirs = F.cross_entropy(query @ items.T, examples.item)
    ours = fused(c, 2)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(x, items)[0] for x in (ours, theirs)), atol=1e-6)


def test_extreme_scores_and_nothing_left_stay_finite() -> None:
    """Scores of ±10⁴; an example whose negatives are all masked costs nothing and moves nothing."""
    query = torch.tensor([[100.0], [100.0], [-100.0]], requires_grad=True)
    candidates = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    positive = torch.tensor([-1e4, 0.0, 3.0], requires_grad=True)

    def finish(scores: Tensor) -> Tensor:
        scores[1] = -INF
        return scores

    loss = fused_softmax.fused_softmax(query, candidates, positive, None, torch.tensor([1.0, 1.0, 0.0]), 8, [finish])
    assert loss.item() == pytest.approx(2e4)
    for_query, for_candidates, for_positive = torch.autograd.grad(loss, [query, candidates, positive])
    assert for_query.flatten().tolist() == [100.0, 0.0, 0.0]
    assert for_candidates.flatten().tolist() == [100.0, 0.0]
    assert for_positive.tolist() == [-1.0, 0.0, 0.0]


def test_a_masked_score_far_above_the_others_hides_none_of_them() -> None:
    """The maximum that is subtracted before ``exp`` is taken over what is left."""
    c = contrast(12)
    known = int(c.batch.known.values[0])
    candidates = c.candidates.detach().clone()
    candidates[c.columns[known]] *= 1e4
    c = replace(c, candidates=candidates.requires_grad_())
    row = int((c.batch.known.offsets > 0).nonzero()[0]) - 1
    only = torch.zeros(B)
    only[row] = 1.0
    c = replace(c, batch=replace(c.batch, weight=only))
    assert torch.allclose(fused(c, 2), dense(c), atol=1e-6)
    assert 0 < fused(c, 2) < 100


def test_weights_of_nothing_make_a_loss_of_nothing() -> None:
    c = contrast()
    c = replace(c, batch=replace(c.batch, weight=torch.zeros(B)))
    assert fused(c, 2).item() == 0


def test_in_mixed_precision_products_are_of_bfloat16_and_sums_of_float32() -> None:
    c = contrast()
    whole = gradients(fused(c, 2), c)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(c, 2)
        theirs = dense(c)
    low = gradients(loss, c)
    assert torch.allclose(loss, theirs, rtol=1e-5)
    for a, b in zip(low, whole, strict=True):
        assert a.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("candidates", "rows"), [(4096, 256), (0, 1 << 20), (150_000, 128)])
def test_a_block_stays_in_the_cache_and_is_never_thin(candidates: int, rows: int) -> None:
    assert block_rows(candidates, torch.device("cpu")) == rows
