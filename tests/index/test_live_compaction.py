"""Merging and forgetting: fewer parts, the same answers, and nothing that was written meanwhile is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.index.small_market import DIM, END, Market
from towers.index import Retriever
from towers.index.live_compaction import due, merged, taken_over, without_replaced
from towers.index.live_rows import Growing
from towers.index.live_store import LiveStore

RNG = np.random.default_rng(3)


@pytest.fixture
def live(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Retriever]:
    for module in ("live_rows", "live_compaction"):
        monkeypatch.setattr(f"towers.index.{module}.TAIL", 4)
    monkeypatch.setattr("towers.index.live_compaction.DENSE", 30)
    monkeypatch.setattr("threading.Thread.start", lambda self: None)  # the tests say when
    store = LiveStore(tmp_path / "catalogue.sqlite")
    yield Retriever.open(bundle, live=store)
    store.close()


def write(live: Retriever, ids: range | list[int]) -> None:
    live.upsert([{"item": i, "place": "Rome"} for i in ids], RNG.standard_normal((len(ids), DIM)))


def everything(live: Retriever) -> dict[int, float]:
    ids, scores = live.search(np.ones(DIM), 500, at=END, exact=True)
    return dict(zip(ids.tolist(), scores.tolist(), strict=True))


def test_parts_that_have_grown_become_one(live: Retriever) -> None:
    for start in range(1000, 1040, 4):
        write(live, range(start, start + 4))
    live.delete([1003])
    was = everything(live)
    assert len(live.live.now.parts) == 1 + 10
    live.live.compact()
    assert [len(p) for p in live.live.now.parts[1:]] == [40]
    assert live.live.now.parts[1].search.recipe.kind == "ivf_flat"  # 40 rows are many here
    assert everything(live) == pytest.approx(was, rel=1e-5, abs=1e-6)
    assert not due(live.live._rows)


def test_replaced_versions_are_forgotten(live: Retriever, market: Market) -> None:
    for _ in range(12):
        write(live, [1000, 1001, market.ids[0]])
    live.delete([1001])
    was, n = everything(live), len(live)
    live.live.compact()
    assert len(live.live.now.ids) == 3  # the deleted one too: a history may name it
    assert (everything(live), len(live)) == (pytest.approx(was, rel=1e-5, abs=1e-6), n)
    assert live.recommend({"field": "law", "history": [1001]}, at=END).unknown == 0


def test_what_happens_beside_a_compaction_is_taken_over(live: Retriever, market: Market) -> None:
    for _ in range(12):
        write(live, range(1000, 1006))
    before = live.live._rows.catalogue()
    fewer = without_replaced(before)
    write(live, [1000, 1001, 2000, 2001])
    write(live, [2000, market.ids[1]])
    live.delete([1001, 1002, 2001, market.ids[2]])
    was, n = everything(live), len(live)
    after = taken_over(fewer, before, live.live._rows.catalogue())
    assert len(after.ids) < len(live.live._rows.ids)
    live.live._rows, live.live.now = after, after.catalogue()
    assert (everything(live), len(live)) == (pytest.approx(was, rel=1e-5, abs=1e-6), n)
    assert [i in live for i in (1000, 1001, 1002, 2000, 2001, market.ids[2])] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_what_dies_beside_a_merge_is_dead_in_it(live: Retriever) -> None:
    write(live, range(1000, 1004))
    write(live, range(1004, 1008))
    rows = live.live._rows
    one = merged(rows.parts[1:], rows.catalogue())
    live.delete([1000, 1007])
    write(live, [1001])
    was = everything(live)
    rows.merge(one)
    live.live.now = rows.catalogue()
    assert everything(live) == pytest.approx(was, rel=1e-5, abs=1e-6)


def test_a_catalogue_in_hand_never_changes(live: Retriever) -> None:
    write(live, range(1000, 1003))
    held = live.live.now
    rows = held.rows([1000, 1001, 1002, 1003])
    vectors = held.embeddings[rows[:3]].copy()
    for _ in range(60):
        write(live, range(1000, 1010))
    live.delete([1001])
    assert held.rows([1000, 1001, 1002, 1003]).tolist() == rows.tolist() == [*rows[:3], -1]
    assert (1001 in held, 1003 in held, len(held)) == (True, False, 63)
    np.testing.assert_array_equal(held.embeddings[rows[:3]], vectors)
    assert 1001 not in live


def test_growing_keeps_what_was_handed_out() -> None:
    growing = Growing(2)
    growing.append(np.ones((3, 2), np.float32))
    first = growing.all
    growing.append(np.zeros((5000, 2), np.float32))
    assert first.sum() == 6
    assert growing.all.shape == (5003, 2)
