"""Training batches: every example once, in an order that is a pure function, from any place in it."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import QueryBatches, TrainBatches, narrowed
from data.examples import Examples
from towers.errors import ConfigError
from towers.features import Batch, Ragged
from towers.model.module import Retrieval

Numbers = list[int]


def examples(n: int) -> Examples:
    """Example ``i`` has item ``i``."""
    zeros = np.zeros(n, np.int32)
    return Examples(
        zeros, np.arange(n, dtype=np.int32), None, np.ones(n, np.float32), zeros.astype(np.int8), zeros.astype(np.int64)
    )


def items(e: Examples) -> Any:
    return e.item.tolist()


class Numbered:
    """Parts whose positions are numbers from 0 to n, a byte each; remembers which were open at once."""

    def __init__(self, sizes: Sequence[int], capacity: int | None = None) -> None:
        self.sizes = self.weights = np.array(sizes, np.int64)
        self.capacity = capacity
        self.opened: list[Numbers] = []

    def open(self, parts: Any) -> Callable[[Any], Numbers]:
        starts = np.cumsum(self.sizes) - self.sizes
        numbers = np.concatenate([np.arange(starts[p], starts[p] + self.sizes[p]) for p in parts])
        self.opened.append(parts.tolist())
        return lambda rows: numbers[rows].tolist()  # type: ignore[no-any-return]


def end_to_end(batches: Sequence[Numbers]) -> Numbers:
    return [i for batch in batches for i in batch]


def streamed(
    parts: Numbered, size: int, *, seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1, workers: int = 1
) -> TrainBatches[Numbers]:
    return TrainBatches(parts, end_to_end, size, seed, lambda: epoch, rank, world, workers)


def loader(n: int, size: int, **kw: int) -> TrainBatches[Numbers]:
    return streamed(Numbered([n]), size, **kw)


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
        return [i for batch in loader(50, 7, **kw) for i in batch]

    assert order() == order()
    assert len({tuple(order(seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9
    assert [i for batch in loader(50, 9) for i in batch] == order()
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


def test_an_epoch_that_was_left_early_is_followed_by_a_whole_one() -> None:
    """As by ``trainer.limit_train_batches``, which takes the first batches of each epoch."""
    batches = loader(20, 4)
    first = [batch for _, batch in zip(range(3), batches, strict=False)]
    assert list(batches)[:3] == first
    assert len(list(batches)) == 5


def test_a_checkpoint_says_nothing_of_other_epochs() -> None:
    """Of an epoch that was left early, and of a loader that is made anew for a later one."""
    epoch = 1
    first = loader(20, 4, epoch=epoch)
    for _, _ in zip(range(3), first, strict=False):
        pass
    second = TrainBatches(Numbered([20]), end_to_end, 4, 0, lambda: epoch)
    second.load_state_dict(first.state_dict())
    epoch = 2
    assert list(second) == list(loader(20, 4, epoch=2))


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


sizes = st.lists(st.integers(1, 15), min_size=1, max_size=8)


@given(sizes=sizes, capacity=st.integers(1, 60), size=st.integers(1, 20), world=st.integers(1, 4),
       workers=st.integers(1, 3), epoch=st.integers(0, 2))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=150)
def test_streamed_every_example_exactly_once(
    sizes: Numbers, capacity: int, size: int, world: int, workers: int, epoch: int
) -> None:
    """Whatever the parts, the memory, the ranks and the threads; and all ranks make as many batches."""
    n = sum(sizes)
    if n < world:
        return
    ranks = [
        list(streamed(Numbered(sizes, capacity), size, epoch=epoch, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(n))
    for batches in ranks:
        assert len(batches) == len(loader(n, size, world=world))
        assert all(len(batch) == size for batch in batches[:-1])
        assert 1 <= len(batches[-1]) <= size + 1


@given(sizes=sizes, capacity=st.integers(1, 60), half=st.integers(1, 8))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_two_ranks_together_make_the_batches_of_one(sizes: Numbers, capacity: int, half: int) -> None:
    if sum(sizes) < 2:
        return
    one = list(streamed(Numbered(sizes, capacity), 2 * half))
    two = [list(streamed(Numbered(sizes, capacity), half, rank=r, world=2)) for r in range(2)]
    together = [sorted(a + b) for a, b in zip(*two, strict=True)]
    assert together[:-1] == [sorted(batch) for batch in one[: len(together) - 1]]  # last batches differ in size


@given(sizes=sizes, capacity=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 3),
       workers=st.tuples(st.integers(1, 3), st.integers(1, 3)), stop=st.integers(0, 60))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=100)
def test_streamed_and_stopped_anywhere_it_hands_out_the_rest(
    sizes: Numbers, capacity: int, size: int, world: int, workers: tuple[int, int], stop: int
) -> None:
    """With another number of threads too, and without reading the windows that are done."""
    if sum(sizes) < world:
        return
    kw = {"epoch": 1, "world": world, "rank": world - 1}
    parts = Numbered(sizes, capacity)
    whole = list(streamed(parts, size, **kw))
    first = streamed(Numbered(sizes, capacity), size, workers=workers[0], **kw)
    stop = min(stop, len(whole) - 1)
    taken = [batch for _, batch in zip(range(stop), first, strict=False)]
    rest = Numbered(sizes, capacity)
    second = streamed(rest, size, workers=workers[1], **kw)
    second.load_state_dict(first.state_dict())
    assert taken + list(second) == whole
    done = world * sum(map(len, taken))
    unread = np.cumsum([parts.sizes[p].sum() for p in parts.opened]) > done + world  # none that is all handed out
    assert len(rest.opened) <= int(unread.sum()) + 1
    assert rest.opened == parts.opened[len(parts.opened) - len(rest.opened) :]


def test_a_window_holds_what_memory_allows_and_is_shuffled_as_a_whole() -> None:
    """Ten parts of four positions, room for three of them: four windows, the last of a single part."""
    parts = Numbered([4] * 10, capacity=13)
    order = end_to_end(list(streamed(parts, 5)))
    assert [len(w) for w in parts.opened] == [3, 3, 3, 1]
    assert sorted(p for w in parts.opened for p in w) == list(range(10))
    at = 0
    for window in parts.opened:
        here = order[at : at + 4 * len(window)]
        at += len(here)
        assert sorted(here) == [4 * p + i for p in window for i in range(4)]
        if len(window) > 1:
            assert {i // 4 for i in here[:4]} != {here[0] // 4}, "positions of several parts are mixed"
    again, other = Numbered([4] * 10, capacity=13), Numbered([4] * 10, capacity=13)
    assert end_to_end(list(streamed(again, 7))) == order
    list(streamed(other, 5, epoch=1))
    assert other.opened != parts.opened, "parts are shuffled for each epoch"


@pytest.mark.parametrize("sizes", [[50], [20, 1, 29]])
def test_in_memory_the_order_is_one_permutation(sizes: Numbers) -> None:
    for seed, epoch in ((0, 0), (42, 3)):
        expected = np.random.default_rng([seed, epoch]).permutation(50)
        for world in (1, 3):
            found = [
                end_to_end(list(streamed(Numbered(sizes), 8, seed=seed, epoch=epoch, rank=r, world=world)))
                for r in range(world)
            ]
            assert found == [expected[r::world].tolist() for r in range(world)]


@pytest.mark.parametrize(("size", "world"), [(4, 1), (40, 1), (4, 10), (1000, 1)])
@pytest.mark.parametrize("workers", [1, 4])
def test_two_windows_are_in_memory_and_no_more(size: int, world: int, workers: int) -> None:
    """The one in use and the next, though a batch take from several, and whatever the threads that make batches."""
    alive: list[int] = []
    most = 0
    lock = threading.Lock()

    class Open:
        def __init__(self, n: int) -> None:
            nonlocal most
            self.numbers = np.arange(n)
            with lock:
                alive.append(1)
                most = max(most, len(alive))

        def __call__(self, rows: Any) -> Numbers:
            return self.numbers[rows].tolist()  # type: ignore[no-any-return]

        def __del__(self) -> None:
            with lock:
                alive.pop()

    class Counted(Numbered):
        def open(self, parts: Any) -> Callable[[Any], Numbers]:
            return Open(int(self.sizes[parts].sum()))

    assert sum(map(len, streamed(Counted([8] * 12, capacity=16), size, world=world, workers=workers))) in (96, 10)
    assert most == 2
    assert not alive


def test_a_batch_is_finished_by_the_thread_that_made_it() -> None:
    """As pinning must be, which copies: the training thread has better things to do."""

    def finish(batch: Numbers) -> Numbers:
        assert threading.current_thread().name.startswith("batches")
        return [-i for i in batch]

    batches = TrainBatches(Numbered([6, 6], capacity=6), end_to_end, 4, 0, lambda: 0, finish=finish)
    assert sorted(end_to_end(list(batches))) == list(range(-11, 1))


def test_what_a_thread_cannot_read_stops_the_epoch() -> None:
    class Torn(Numbered):
        def open(self, parts: Any) -> Callable[[Any], Numbers]:
            if 1 in parts:
                raise OSError("torn file")
            return super().open(parts)

    with pytest.raises(OSError, match="torn file"):
        list(streamed(Torn([5] * 4, capacity=5), 2))


def test_another_memory_is_refused_where_it_changes_the_order() -> None:
    state = streamed(Numbered([9, 9], capacity=9), 4).state_dict()
    with pytest.raises(ConfigError, match="window_bytes was 9 and is 18"):
        streamed(Numbered([9, 9], capacity=18), 4).load_state_dict(state)


def test_a_checkpoint_from_before_there_were_windows_goes_on() -> None:
    state = {"done": 2, "seed": 0, "world": 1, "batch_size": 4, "examples": 20}
    resumed = loader(20, 4)
    resumed.load_state_dict(state)
    assert list(resumed) == list(loader(20, 4))[2:]


def test_queries_come_in_order() -> None:
    batches = QueryBatches(examples(7), items, 3)  # type: ignore[arg-type]
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(batches) == 3
    assert len(QueryBatches(examples(0), items, 3)) == 0  # type: ignore[arg-type]


def test_a_batch_is_narrowed_for_the_copy_and_widened_on_the_device() -> None:
    """Rows and codes fit into int32; times do not."""
    late = 1_893_456_000_000_000  # 2030 in microseconds
    two = np.array([2**31 - 1, 0])
    ids, nothing = torch.from_numpy(two), torch.zeros(2, 3)
    whole = Batch(
        ids, ids, torch.ones(2), ids.view(2, 1), ids.view(2, 1), nothing, Ragged(torch.arange(3), ids),
        time=torch.tensor([late, late + 1]), action=ids,
    )  # fmt: skip
    small = narrowed(whole)
    assert {small.user.dtype, small.history.dtype, small.known.values.dtype, small.action.dtype} == {torch.int32}
    assert small.time.dtype == torch.int64
    again = Retrieval.transfer_batch_to_device(None, small, torch.device("cpu"), 0)  # type: ignore[arg-type]
    for name in ("user", "item", "weight", "history", "history_action", "history_age", "time", "action"):
        a, b = getattr(whole, name), getattr(again, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name
    assert torch.equal(whole.known.values, again.known.values)
    assert again.known.offsets.dtype == torch.int64
