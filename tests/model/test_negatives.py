"""Every sampler's log q against simulated frequencies, and the estimate that it is for."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from towers.errors import ConfigError, DataError
from towers.model.negatives import CrossBatch, Full, InBatch, MakeSampler, Mixed, Popularity, Sampler, Uniform

EVENTS = torch.tensor([40, 0, 3, 1, 25, 0, 9, 14, 5, 2, 1, 30])  # items 1 and 5 are cold
B = 6
MAKERS: dict[str, MakeSampler] = {
    "in-batch": InBatch,
    "uniform": partial(Uniform, n=4),
    "uniform-all": partial(Uniform, n=99),
    "popularity": partial(Popularity, n=5, power=0.75),
    "popularity-1": partial(Popularity, n=5, power=1.0),
    "popularity-0": partial(Popularity, n=5, power=0.0),
    "mixed": partial(Mixed, samplers=[InBatch, partial(Uniform, n=3)]),
    "full": Full,
}


def draws(sampler: Sampler, times: int) -> tuple[Tensor, Tensor]:
    """[times, I] bool: which items each draw held, and the own positives [times] left out of in-batch ones.

    An item counts as drawn by in-batch negatives if one of the *other* examples brings it: the first
    example's positive is an item of its own, which no other can have.
    """
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(times, len(EVENTS), dtype=torch.bool)
    others = torch.multinomial(EVENTS.double(), times * (B - 1), replacement=True, generator=generator)
    own = 1  # a cold item stands for "the positive of the example that looks at the draw"
    for t, batch in enumerate(others.view(times, B - 1)):
        rows = sampler(torch.cat([torch.tensor([own]), batch]), generator).rows
        held[t, rows] = True
    held[:, own] = False
    return held, others


@pytest.mark.parametrize("name", MAKERS)
def test_log_q_is_the_log_of_the_frequency_in_draws(name: str) -> None:
    sampler, times = MAKERS[name](EVENTS), 6000
    held, _ = draws(sampler, times)
    warm = EVENTS.nonzero().squeeze(1)
    pi = sampler.log_q(warm, B).exp()
    error = 4.5 * (pi * (1 - pi) / times).sqrt() + 1e-6
    assert ((held[:, warm].float().mean(0) - pi).abs() <= error).all()


@pytest.mark.parametrize("name", MAKERS)
def test_items_without_training_events_are_never_drawn(name: str) -> None:
    held, _ = draws(MAKERS[name](EVENTS), 300)
    assert not held[:, EVENTS == 0].any()


@pytest.mark.parametrize("name", MAKERS)
def test_the_partition_function_is_estimated_without_bias(name: str) -> None:
    """Also with a mask that does not look at the draw: it is then the sum over the unmasked."""
    sampler, times = MAKERS[name](EVENTS), 6000
    held, _ = draws(sampler, times)
    scores = torch.linspace(-2, 1, len(EVENTS)).double()[
        torch.randperm(len(EVENTS), generator=torch.Generator().manual_seed(1))
    ]
    log_q = sampler.log_q(torch.arange(len(EVENTS)), B).double()
    for masked in ([], [0, 7]):
        allowed = EVENTS > 0
        allowed[masked] = False
        estimates = torch.where(held & allowed, (scores - log_q).exp(), 0.0).sum(1)
        truth = scores.exp()[allowed].sum()
        standard_error = estimates.std() / times**0.5
        assert abs(estimates.mean() - truth) <= 4.5 * standard_error + 1e-6


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_distinct_and_repeat_with_the_seed(name: str) -> None:
    sampler = MAKERS[name](EVENTS)
    positives = torch.tensor([0, 0, 4, 7, 11, 2])
    one, two = (sampler(positives, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.log_q, two.log_q)
    assert len(one.rows.unique()) == len(one.rows)
    assert one.rows.dtype == torch.int64
    assert one.log_q.dtype == torch.float32
    assert one.log_q.shape == one.rows.shape
    if sampler.holds_positives:
        assert set(positives.tolist()) <= set(one.rows.tolist())


def test_hand_worked_probabilities() -> None:
    events = torch.tensor([3, 1, 0])
    rows = torch.tensor([0, 1])
    for sampler, expected in (
        (InBatch(events), [1 - 0.25**2, 1 - 0.75**2]),  # two other examples
        (Uniform(events, 1), [1 / 2, 1 / 2]),
        (Uniform(events, 5), [1.0, 1.0]),
        (Popularity(events, 2, 1.0), [1 - 0.25**2, 1 - 0.75**2]),
        (Mixed(events, [InBatch, partial(Uniform, n=1)]), [1 - 0.25**2 / 2, 1 - 0.75**2 / 2]),
        (Full(events), [1.0, 1.0]),
    ):
        assert sampler.inclusion(rows, 3).tolist() == pytest.approx(expected)


def test_a_million_items_are_sampled_in_time_that_does_not_grow_with_them() -> None:
    """Correct at that size, too: small probabilities must not be lost to rounding."""
    events = torch.from_numpy(np.random.default_rng(0).integers(1, 30, 1_000_000))
    torch.manual_seed(0)
    for make in (partial(Uniform, n=4096), partial(Popularity, n=4096)):
        draw = make(events)(torch.tensor([1]))
        assert draw.log_q.isfinite().all()
        estimate = (-draw.log_q.double()).exp().sum()  # of the number of items
        assert estimate == pytest.approx(1e6, rel=0.1)


def test_settings_that_cannot_work() -> None:
    for bad in (partial(Uniform, n=0), partial(Popularity, n=0), partial(CrossBatch, n=0), partial(Mixed, samplers=[])):
        with pytest.raises(ConfigError):
            bad(EVENTS)
    with pytest.raises(DataError, match="training is empty"):
        Uniform(torch.zeros(3), 1)


def test_arrays_are_not_in_checkpoints() -> None:
    assert all(not make(EVENTS).state_dict() for make in MAKERS.values())


def test_the_memory_is_first_in_first_out_and_holds_the_batch_itself() -> None:
    sampler = CrossBatch(EVENTS, 4)
    drawn = [sampler(torch.tensor(b)).rows.tolist() for b in ([0, 2], [3, 4], [6, 6, 7], [8])]
    assert drawn == [[0, 2], [0, 2, 3, 4], [0, 2, 3, 4, 6, 7], [4, 6, 7, 8]]


def test_a_batch_larger_than_the_memory_leaves_its_end_there() -> None:
    sampler = CrossBatch(EVENTS, 2)
    sampler(torch.tensor([0, 2, 3, 4]))
    assert sampler(torch.tensor([6])).rows.tolist() == [3, 4, 6]


def test_log_q_of_the_memory_is_the_log_of_the_frequency_in_draws() -> None:
    """Streams of batches drawn by popularity; the item 1 stands for the positive of the example that looks."""
    generator = torch.Generator().manual_seed(0)
    times, n, b = 1200, 7, 3
    held = torch.zeros(times, len(EVENTS), dtype=torch.bool)
    log_q = torch.empty(times, len(EVENTS))
    others = torch.multinomial(EVENTS.double(), times * 4 * b, replacement=True, generator=generator).view(times, 4, b)
    for t in range(times):
        sampler = CrossBatch(EVENTS, n)
        for past in others[t, :3]:
            sampler(past)
        held[t, sampler.draw(torch.cat([torch.tensor([1]), others[t, 3, 1:]]))] = True
        log_q[t] = sampler.log_q(torch.arange(len(EVENTS)), b)
    warm = EVENTS.nonzero().squeeze(1)
    pi = log_q[0, warm].exp()
    assert torch.equal(log_q[0], log_q[-1])
    assert torch.allclose(pi, 1 - (1 - EVENTS[warm] / EVENTS.sum()) ** (n + b - 1))
    error = 4.5 * (pi * (1 - pi) / times).sqrt() + 1e-6
    assert ((held[:, warm].float().mean(0) - pi).abs() <= error).all()


def test_while_the_memory_fills_log_q_counts_what_it_holds() -> None:
    sampler, item = CrossBatch(torch.tensor([1, 1]), 4), torch.tensor([0])
    seen = []
    for _ in range(4):
        sampler(torch.tensor([0, 1]))
        seen.append(sampler.inclusion(item, 2).item())
    assert seen == pytest.approx([1 - 0.5**k for k in (1, 3, 5, 5)])


def test_the_memory_goes_on_from_its_state() -> None:
    one, two = CrossBatch(EVENTS, 4), CrossBatch(EVENTS, 4)
    one(torch.tensor([0, 2, 3]))
    two.load_state_dict(one.state_dict())
    for batch in ([4, 6], [7]):
        a, b = one(torch.tensor(batch)), two(torch.tensor(batch))
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.log_q, b.log_q)
