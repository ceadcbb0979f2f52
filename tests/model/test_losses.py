from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from towers.model import logits
from towers.model.losses import binary, bpr, cosine_contrastive, log_sum_exp, sampled_softmax, weighted_mean

INF = float("inf")
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "softmax": sampled_softmax,
    "margin": partial(sampled_softmax, margin=0.5),
    "bpr": bpr,
    "binary": binary,
    "binary-beta": partial(binary, beta=0.3),
    "cosine": partial(cosine_contrastive, margin=0.1, negative_weight=3.0),
}


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


def test_log_sum_exp_like_torch_and_flat_where_nothing_is_left() -> None:
    x = torch.tensor([[0.0, 1.0, -INF], [-INF, -INF, -INF], [1e4, -1e4, 1e4]], requires_grad=True)
    out = log_sum_exp(x)
    assert torch.equal(out, torch.logsumexp(x, 1))
    torch.sigmoid(out).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[1].tolist() == [0, 0, 0]
    assert log_sum_exp(torch.empty(2, 0)).tolist() == [-INF, -INF]


def test_a_margin_is_a_handicap_of_the_positive() -> None:
    positive, negative, w = torch.tensor([1.0]), torch.tensor([[0.0, 2.0]]), torch.ones(1)
    assert sampled_softmax(positive, negative, w, margin=0.7).item() == pytest.approx(
        sampled_softmax(positive - 0.7, negative, w).item()
    )


def test_bpr_by_hand() -> None:
    """Two negatives at the same distance on either side, a third masked; the weight of the second example is 0."""
    loss = bpr(torch.tensor([1.0, 9.0]), torch.tensor([[0.0, 2.0, -INF], [0.0, 0.0, 0.0]]), torch.tensor([2.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2)


def test_binary_by_hand_and_like_torch() -> None:
    two = math.log(2)  # as many negatives as are left
    positive, negative = torch.tensor([0.3 + two]), torch.tensor([[-1.0 + two, 0.5 + two, -INF]])
    theirs = F.binary_cross_entropy_with_logits(torch.tensor([0.3, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0]))
    assert binary(positive, negative, torch.ones(1)).item() == pytest.approx(theirs.item())
    power = -(0.2 * math.log(1 / (1 + math.exp(-0.3)))) / 3
    rest = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 3
    assert binary(positive, negative, torch.ones(1), beta=0.2).item() == pytest.approx(power + rest)


def test_cosine_contrastive_by_hand() -> None:
    """One negative is beyond the margin by .3, one is within, one is masked: 1 - .9 + 10 (.3 + 0) / 2."""
    loss = cosine_contrastive(torch.tensor([0.9]), torch.tensor([[0.7, 0.1, -INF]]), torch.ones(1), 0.4, 10.0)
    assert loss.item() == pytest.approx(1.6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    positive = torch.randn(3, dtype=torch.float64, generator=g, requires_grad=True)
    negative = torch.randn(3, 4, dtype=torch.float64, generator=g, requires_grad=True)
    masked = torch.zeros(3, 4, dtype=torch.bool)
    masked[0, 1] = True
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, n: LOSSES[name](p, logits.mask(n * 1, masked), weight), (positive, negative)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_an_example_whose_negatives_are_all_masked_or_absent_stays_finite(name: str) -> None:
    for negative in (torch.full((2, 3), -INF), torch.empty(2, 0)):
        positive = torch.tensor([0.5, -0.5], requires_grad=True)
        loss = LOSSES[name](positive, negative, torch.ones(2))
        loss.backward()
        assert positive.grad is not None
        assert loss.isfinite()
        assert positive.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_negative_is_as_one_that_was_not_drawn(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    positive, negative, weight = torch.randn(4, generator=g), torch.randn(4, 3, generator=g), torch.rand(4, generator=g)
    more = torch.cat([negative, torch.full((4, 2), -INF)], 1)
    assert torch.allclose(LOSSES[name](positive, negative, weight), LOSSES[name](positive, more, weight))


def test_the_unbiased_positive_is_the_corrected_log_q_correction() -> None:
    """Khrylchenko et al. (2025): weight (1 - p) on a softmax whose denominator holds sampled negatives only."""
    g = torch.Generator().manual_seed(2)
    scores, log_q = torch.randn(3, 6, generator=g, dtype=torch.float64), torch.randn(6, generator=g).double()
    grads = []
    for corrected in (False, True):
        s = scores.clone().requires_grad_()
        positive, negative = s[:, 0], s[:, 1:] - log_q[1:]
        if corrected:
            others = torch.logsumexp(negative, 1)
            p = torch.exp(positive - torch.logaddexp(positive, others)).detach()
            ((1 - p) * (others - positive)).mean().backward()
        else:
            sampled_softmax(positive, negative, torch.ones(3).double()).backward()
        assert s.grad is not None
        grads.append(s.grad)
    assert torch.allclose(*grads, atol=1e-12)


def test_binary_with_log_q_on_both_sides_finds_log_probabilities() -> None:
    """Noise-contrastive estimation: at s = log p + log N the expected gradient is zero, whatever the negatives' q."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.1, 0.9, 0.4], dtype=torch.float64)  # how often each is among the negatives
    drawn = torch.tensor([[bool(k >> j & 1) for j in range(3)] for k in range(8)])
    chance = torch.where(drawn, q, 1 - q).prod(1)
    n = 3  # columns of every draw here: what was not drawn stands there with a score that costs nothing
    s = (p.log() + math.log(n)).requires_grad_()
    corrected = s - q.log()
    expected = torch.zeros((), dtype=torch.float64)
    for item in range(3):
        for held, share in zip(drawn, chance, strict=True):
            negative = torch.where(held, corrected, -1e9).unsqueeze(0)
            expected = expected + p[item] * share * binary(corrected[item : item + 1], negative, torch.ones(1))
    (grad,) = torch.autograd.grad(expected, s)
    assert grad.abs().max() < 1e-8
