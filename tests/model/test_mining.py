"""Mined negatives: the neighbours, the curriculum, and the estimate that they must not bias."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from towers.errors import ConfigError
from towers.model.mining import Mined, neighbours
from towers.model.negatives import Full, InBatch, Mixed, Uniform

EVENTS = torch.tensor([4, 0, 3, 1, 2, 5, 0, 9, 1, 6])  # items 1 and 6 are cold
WARM = EVENTS.nonzero().squeeze(1)
VECTORS = torch.randn(len(EVENTS), 3, generator=torch.Generator().manual_seed(0))


def embed(rows: Tensor) -> Tensor:
    return VECTORS[rows]


def mined(**changes: Any) -> Mined:
    return Mined(EVENTS, **{"base": partial(Uniform, n=3), "n": 2, "nearest": 4, "start": 0, "ramp": 1, **changes})


def test_neighbours_are_the_nearest_of_the_pool_without_itself() -> None:
    pool = WARM[1:]
    found = neighbours(embed(WARM), WARM, embed(pool), pool, k=2, skip=1)
    for i, row in zip(WARM.tolist(), found.tolist(), strict=True):
        others = [j for j in pool.tolist() if j != i]
        assert row == sorted(others, key=lambda j: -float(VECTORS[i] @ VECTORS[j]))[1:3]


def test_nothing_is_mined_before_the_start_and_the_number_grows_to_n() -> None:
    sampler = mined(n=3, start=5, ramp=6, every=100)
    counts = []
    for step in range(14):
        sampler.refresh(step, embed)
        own = sampler(torch.tensor([0, 2])).own
        counts.append(0 if own is None else own.shape[1])
    assert counts == [0] * 5 + [1, 1, 2, 2, 3, 3, 3, 3, 3]


def test_neighbours_follow_the_model_every_so_many_batches() -> None:
    sampler, seen = mined(start=1, every=2), []
    for step in range(6):
        sampler.refresh(step, lambda rows, step=step: VECTORS[rows].roll(step, 0))
        seen.append(sampler.neighbours.clone())
    same = [torch.equal(a, b) for a, b in pairwise(seen)]
    assert same == [False, True, False, True, False]
    assert (seen[0] == -1).all()


def test_own_candidates_are_distinct_neighbours_of_the_positive_and_never_cold() -> None:
    sampler = mined(n=3)
    sampler.refresh(0, embed)
    sampler.refresh(1, embed)
    positives = torch.tensor([0, 7, 7, 9])
    draw = sampler(positives, torch.Generator().manual_seed(0))
    assert draw.own is not None
    assert draw.covered is not None
    for own, near, positive in zip(draw.own.tolist(), draw.covered.tolist(), positives.tolist(), strict=True):
        assert len(set(own)) == 3
        assert set(own) <= set(near) == set(sampler.neighbours[positive].tolist())
        assert positive not in near
        assert not {1, 6} & set(near)


def test_the_partition_function_is_estimated_without_bias() -> None:
    """Own candidates for their stratum, the shared draw for all others: together the sum over the support."""
    sampler = mined()
    for step in range(2):  # until each example draws several of its own
        sampler.refresh(step, embed)
    scores = torch.linspace(-2, 1, len(EVENTS)).double()
    generator, times, estimates = torch.Generator().manual_seed(1), 3000, []
    for _ in range(times):
        draw = sampler(torch.tensor([7]), generator)
        assert draw.own is not None
        assert draw.own.shape[1] > 1
        assert draw.own_log_q is not None
        assert draw.covered is not None
        shared = ~torch.isin(draw.rows, draw.covered[0]) & (draw.rows != 7)
        rest = (scores[draw.rows] - draw.log_q).exp()[shared].sum()
        estimates.append(rest + (scores[draw.own[0]] - draw.own_log_q[0]).exp().sum())
    found = torch.stack(estimates)
    truth = scores.exp()[WARM[WARM != 7]].sum()
    assert abs(found.mean() - truth) <= 4.5 * found.std() / times**0.5


def test_a_pool_bounds_the_search() -> None:
    events = torch.ones(3000, dtype=torch.long)
    sampler, asked = Mined(events, partial(Uniform, n=4), nearest=8, start=0, pool=100), []

    def embed_some(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return torch.ones(len(rows), 2)

    sampler.refresh(0, embed_some)
    assert asked == [3000, 100]
    assert len(sampler.neighbours.unique()) <= 100


def test_a_catalogue_with_fewer_neighbours_than_asked_for_gives_those_it_has() -> None:
    sampler = Mined(torch.tensor([1, 1, 1]), Full, n=8, start=0, ramp=1)
    for step in range(2):
        sampler.refresh(step, lambda rows: torch.eye(3)[rows])
    draw = sampler(torch.tensor([1]))
    assert draw.own is not None
    assert sorted(draw.own[0].tolist()) == [0, 2]
    alone = Mined(torch.tensor([1, 0]), Full, start=0)
    alone.refresh(0, lambda rows: torch.eye(2)[rows])
    assert alone(torch.tensor([0])).own is None


def test_the_base_sampler_is_always_mixed_in() -> None:
    assert mined(base=InBatch).holds_positives
    sampler = mined(base=Full)
    sampler.refresh(0, embed)
    assert torch.equal(sampler(torch.tensor([0])).rows, WARM)
    with pytest.raises(ConfigError, match=r"negatives\.base"):
        Mixed(EVENTS, [mined_maker])(torch.tensor([0]))


def mined_maker(events: Tensor) -> Mined:
    return Mined(events, Full)


def test_the_table_is_in_the_checkpoint() -> None:
    one, two = mined(), mined()
    one.refresh(0, embed)
    two.load_state_dict(one.state_dict())
    for sampler in (one, two):
        sampler.refresh(1, embed)
    draws = [s(torch.tensor([0, 4]), torch.Generator().manual_seed(2)) for s in (one, two)]
    assert draws[0].own is not None
    assert draws[1].own is not None
    assert torch.equal(draws[0].own, draws[1].own)


@pytest.mark.parametrize("bad", [{"n": 0}, {"nearest": 1}, {"start": -1}, {"every": 0}, {"pool": 1}])
def test_settings_that_cannot_work(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"negatives.{next(iter(bad))}"):
        mined(**bad)
