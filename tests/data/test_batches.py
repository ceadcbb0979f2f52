"""Training batches: every example once, in an order that is a pure function, from any place in it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import QueryBatches, TrainBatches
from data.prepared import Examples
from towers.errors import ConfigError


def examples(n: int) -> Examples:
    """Example ``i`` has item ``i``."""
    zeros = np.zeros(n, np.int32)
    return Examples(
        zeros, np.arange(n, dtype=np.int32), None, np.ones(n, np.float32), zeros.astype(np.int8), zeros.astype(np.int64)
    )


def items(e: Examples) -> Any:
    return e.item.tolist()


def loader(n: int, size: int, *, seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1) -> TrainBatches:
    return TrainBatches(examples(n), items, size, seed, lambda: epoch, rank, world)


@given(n=st.integers(1, 60), size=st.integers(1, 20), world=st.integers(1, 5), epoch=st.integers(0, 3))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_every_example_exactly_once_in_as_many_batches_on_every_rank(n: int, size: int, world: int, epoch: int) -> None:
    if n < world:
        with pytest.raises(ConfigError, match=f"{n} training examples for {world} processes"):
            loader(n, size, world=world)
        return
    ranks = [list(loader(n, size, epoch=epoch, rank=r, world=world)) for r in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(n))
    assert {len(batches) for batches in ranks} == {len(loader(n, size, world=world))}
    for batches in ranks:
        assert all(len(batch) == size for batch in batches[:-1])
        assert 1 <= len(batches[-1]) <= size + 1  # or with the one example by which the ranks' shares differ


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(**kw: int) -> list[int]:
        return [i for batch in loader(50, 7, **kw) for i in batch]  # type: ignore[misc]

    assert order() == order()
    assert len({tuple(order(seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9
    assert [i for batch in loader(50, 9) for i in batch] == order()  # type: ignore[misc]
    assert order() != list(range(50))


@given(n=st.integers(4, 40), size=st.integers(1, 9), world=st.integers(1, 3), stop=st.integers(0, 50))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_a_resumed_loader_hands_out_exactly_the_rest(n: int, size: int, world: int, stop: int) -> None:
    whole = list(loader(n, size, epoch=1, world=world))
    first = loader(n, size, epoch=1, world=world)
    stop = min(stop, len(whole))
    taken = [batch for _, batch in zip(range(stop), first, strict=False)]
    second = loader(n, size, epoch=1, world=world)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    if stop == len(whole):  # a finished epoch is followed by a whole one
        assert rest == whole
    else:
        assert taken + rest == whole
    assert list(second) == whole  # and so is the resumed one


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"world": 2}, "world was 1 and is 2"),
        ({"size": 5}, "batch_size was 4 and is 5"),
        ({"n": 21}, "examples was 20 and is 21"),
    ],
)
def test_another_run_is_refused_with_both_values(changed: Any, said: str) -> None:
    state = loader(20, 4).state_dict()
    with pytest.raises(ConfigError, match=f"cannot resume: {said}"):
        loader(**{"n": 20, "size": 4, **changed}).load_state_dict(state)


def test_queries_come_in_order() -> None:
    batches = QueryBatches(examples(7), items, 3)  # type: ignore[arg-type]
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(batches) == 3
    assert len(QueryBatches(examples(0), items, 3)) == 0  # type: ignore[arg-type]
