"""Items written since the bundle: seen by the next query, in every way of asking, by the rules of any other item."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.index.small_market import DIM, END, HOUR, Market, item_tower, own_field_tower
from towers.errors import BundleError, ConfigError, DataError
from towers.index import Fusion, Retriever
from towers.index.bundle import write_bundle
from towers.index.golden import Golden
from towers.index.live_store import LiveStore

TOWARDS = np.full(DIM, 10.0, np.float32)  # scores far above every item of the market
NEW = 10_001


@pytest.fixture
def live(bundle: Path, tmp_path: Path) -> Iterator[Retriever]:
    store = LiveStore(tmp_path / "catalogue.sqlite")
    yield Retriever.open(bundle, live=store)
    store.close()


def first(retriever: Retriever, **options: Any) -> Any:
    ids = retriever.search(TOWARDS, 1, **({"at": END} | options)).ids
    return ids[0] if len(ids) else None


def reopened(retriever: Retriever, bundle: Path) -> Retriever:
    return Retriever.open(bundle, live=LiveStore(retriever.live.store.path))


def test_an_upsert_is_what_the_item_tower_makes_of_it(live: Retriever, market: Market) -> None:
    n = len(live)
    live.upsert([{"item": NEW, "place": "Paris", "salary": 7.0, "skills": ["sql"]}, {"item": NEW + 1, "place": "Oslo"}])
    assert (len(live), NEW in live) == (n + 2, True)
    query = market.item_vector("Paris")
    found = live.search(query, n + 2, at=END)
    score = dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
    assert score[NEW] == pytest.approx(float(query @ query), rel=1e-5)
    assert score[NEW + 1] == pytest.approx(float(query @ market.item_vector("Oslo")), rel=1e-5)  # out of vocabulary
    shown = live.attributes([NEW, market.ids[1], NEW + 1]).to_pylist()
    assert shown[0] == {"place": "Paris", "salary": 7.0, "skills": ["sql"], "posted": None, "expires": None}
    assert [row["place"] for row in shown] == ["Paris", "Paris", "Oslo"]


def test_an_upsert_replaces_an_item_and_a_delete_takes_it_away(live: Retriever, market: Market) -> None:
    old, n = market.ids[5], len(live)
    live.upsert({"item": old, "place": "Rome"}, TOWARDS)
    assert (first(live), len(live)) == (old, n)
    live.upsert({"item": old, "place": "Rome"}, -TOWARDS)
    assert first(live) != old
    assert live.search(TOWARDS, n, at=END).ids.tolist().count(old) == 1
    live.delete([old, 987_654])
    assert (old in live, len(live)) == (False, n - 1)
    assert old not in live.search(TOWARDS, n, at=END).ids
    with pytest.raises(DataError, match=f"no item {old}"):
        live.similar(old)
    live.upsert({"item": old}, TOWARDS)
    assert first(live) == old


def test_posted_and_expires_say_when_it_comes(live: Retriever, market: Market) -> None:
    when = dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)  # END
    live.upsert({"item": NEW, "posted": when, "expires": (when + dt.timedelta(hours=2)).isoformat()}, TOWARDS)
    hours = (-1, 0, 1, 2)
    assert [first(live, at=END + h * HOUR) == NEW for h in hours] == [False, True, True, False]
    live.expire([NEW], at=END + HOUR)
    assert [first(live, at=END + h * HOUR) == NEW for h in hours] == [False, True, False, False]
    everlasting = next(i for i, e in enumerate(market.expires) if e is None and market.posted[i] is None)
    item, vector = market.ids[everlasting], market.embeddings[everlasting]
    live.expire(np.array([item, 987_654]), at=END + HOUR)
    found = [item in live.search(vector, len(live), at=END + h * HOUR).ids for h in hours]
    assert found == [True, True, False, False]
    assert live.attributes([item]).to_pylist()[0]["place"] == market.place[everlasting]  # else it is what it was


def test_filters_hold_for_written_items(live: Retriever) -> None:
    live.upsert([{"item": NEW, "place": "Paris", "salary": 50, "skills": ["go"]}, {"item": NEW + 1, "place": "Rome"}],
                np.stack([TOWARDS, TOWARDS]))  # fmt: skip
    assert first(live, filter="place == 'Paris'") == NEW
    assert first(live, filter="salary is None") == NEW + 1
    assert first(live, filter="'go' in skills and salary < 60") == NEW
    assert first(live, filter="salary > 60") not in (NEW, NEW + 1)
    found = live.search(TOWARDS, 500, filter="place in ['Paris', 'Rome']", at=END, explain=True)
    places = live.attributes(found.ids)["place"].to_pylist()
    assert set(places) == {"Paris", "Rome"}
    assert found.plan is not None
    assert (found.plan.eligible, found.plan.written, found.plan.items) == (len(found.ids), 2, len(live))


def test_exclusions_follow_an_item_to_its_new_row(live: Retriever, market: Market) -> None:
    taken = market.ids[3]  # user 11 has taken 3 and 4
    live.upsert([{"item": taken}, {"item": NEW}], np.stack([TOWARDS, TOWARDS]))
    assert taken not in live.recommend(11, len(live), at=END).ids
    assert taken in live.recommend(-5, len(live), at=END).ids
    assert first(live, exclude=[taken]) == NEW
    assert set(live.search(np.stack([TOWARDS, TOWARDS]), 1, exclude=[[taken], [NEW]], at=END).ids[:, 0]) == {taken, NEW}


def test_a_written_item_stands_in_histories(live: Retriever, market: Market) -> None:
    live.upsert({"item": NEW, "place": "Berlin"})
    code = market.items.encode_rows([{"place": "Berlin"}])["place"][0]
    want = live.vector({"field": "law"}) + market.past[code] @ market.mix
    found = live.vector({"field": "law", "history": [NEW]}, at=END)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    live.delete([NEW])  # what was clicked on was clicked on
    np.testing.assert_allclose(live.vector({"field": "law", "history": [NEW]}, at=END), want, rtol=1e-5)
    live.upsert([{"item": NEW + 1}, {"item": market.ids[2]}], np.stack([TOWARDS, TOWARDS]))  # says nothing of histories
    assert live.recommend({"history": [NEW + 1]}, 1, at=END).unknown == 1
    known = live.vector({"field": "law", "history": [market.ids[2]]}, at=END)
    np.testing.assert_allclose(known, market.vector("law", [2], [0]), rtol=1e-5)


def test_similar_and_match(fresh: Any, market: Market, tmp_path: Path) -> None:
    embeddings = np.eye(3, DIM, dtype=np.float32)
    folder = fresh(known_users=replace(market.known, embeddings=embeddings))
    live = Retriever.open(folder, live=tmp_path / "s.sqlite")
    live.upsert(
        [{"item": NEW}, {"item": NEW + 1}, {"item": market.ids[7]}], np.stack([TOWARDS, TOWARDS, embeddings[2]])
    )
    assert live.similar(NEW, 1, at=END).ids.tolist() == [NEW + 1]
    assert live.match(NEW, 3).scores.tolist() == [10.0, 10.0, 10.0]
    assert sorted(live.match(market.ids[7], 3).ids.tolist()) == [-5, 11]  # 30 would come first, and has taken it
    live.live.store.close()


def test_words_are_searched_in_written_items(live: Retriever) -> None:
    live.upsert([{"item": NEW, "place": "Reykjavik"}, {"item": NEW + 1, "place": "Berlin"}], np.zeros((2, DIM)))
    for method in ("sum", "rrf"):
        fusion = Fusion(method, query="field", text="place", weight=100.0)  # type: ignore[arg-type]
        found = live.recommend({"field": "Reykjavik"}, 1, at=END, fuse=fusion, explain=True)
        assert found.ids.tolist() == [NEW]
        assert live.recommend({"field": "Reykjavik"}, 5, at=END, fuse=fusion, filter="place == 'Berlin'").ids[0] != NEW


def test_everything_is_there_after_reopening(live: Retriever, bundle: Path, market: Market) -> None:
    live.upsert({"item": NEW, "place": "Rome", "posted": END})
    live.upsert(pa.table({"item": [NEW + 1], "salary": [3.5]}), TOWARDS[None])
    live.delete([market.ids[0], NEW])
    live.expire([market.ids[1]], at="1999-01-01T00:00:00Z")
    again = reopened(live, bundle)
    assert (len(again), first(again)) == (len(live), NEW + 1)
    for query in (TOWARDS, -TOWARDS, market.embeddings[1]):
        ours, theirs = live.search(query, 100, at=END), again.search(query, 100, at=END)
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert market.ids[1] not in theirs.ids
    again.live.store.close()


def test_a_second_process_sees_it_when_it_looks(live: Retriever, bundle: Path) -> None:
    other = reopened(live, bundle)
    live.upsert({"item": NEW}, TOWARDS)
    other.upsert({"item": NEW + 1}, 2 * TOWARDS)  # SQLite lets them write in turns; who writes also reads
    assert (first(other), NEW in other) == (NEW + 1, True)
    assert NEW + 1 not in live
    live.live.refresh()
    assert first(live) == NEW + 1
    other.live.store.close()


def test_retrievers_of_one_store_see_all_writes(live: Retriever, bundle: Path) -> None:
    new = Retriever.open(bundle, live=live.live.store)
    live.upsert({"item": NEW}, TOWARDS)
    new.delete([NEW])
    assert (NEW in live, NEW in new) == (False, False)


def later(market: Market, folder: Path, **changes: Any) -> Path:
    """A bundle of another model over the same items, whose data end an hour later."""
    other = Market(seed=9)
    other_contents = other.contents(data_end=END + HOUR, attributes=market.attributes, **changes)
    return write_bundle(other_contents, folder / "later")


def test_a_new_bundle_replays_what_is_newer_and_reads_it_by_its_own_model(
    bundle: Path, market: Market, tmp_path: Path
) -> None:
    now = [END + 1]
    store = LiveStore(tmp_path / "s.sqlite", clock=lambda: now[0])
    old = Retriever.open(bundle, live=store)
    stays, goes, short = market.ids[0], market.ids[1], market.ids[2]
    old.upsert({"item": NEW, "place": "Rome"})  # the next bundle should know it, and does not: it is gone
    old.delete([stays])  # the next bundle still has it: it is back
    now[0] = END + 2 * HOUR
    old.upsert([{"item": NEW + 1, "place": "Rome"}, {"item": NEW + 2, "place": "Paris"}])
    old.upsert([{"item": NEW + 3}, {"item": market.ids[9], "salary": 1.0}], np.stack([TOWARDS, TOWARDS]))
    old.delete([goes])
    old.expire([short], at=END)
    new = Retriever.open(later(market, tmp_path), live=store)
    assert [i in new for i in (NEW, stays, NEW + 1, NEW + 2, goes)] == [False, True, True, True, False]
    assert short not in new.search(TOWARDS, 100, at=END + HOUR).ids
    other = Market(seed=9)
    score = dict(zip(*(a.tolist() for a in new.search(other.item_vector("Rome"), 100, at=END + 3 * HOUR)), strict=True))
    assert score[NEW + 1] == pytest.approx(float(other.item_vector("Rome") @ other.item_vector("Rome")), rel=1e-5)
    # Given as a vector of the other model: nothing can be said, unless the bundle has the item.
    assert set(new.live.skipped) == {NEW + 3}
    assert "vector of another model" in new.live.skipped[NEW + 3]
    assert score[market.ids[9]] == pytest.approx(float(other.item_vector("Rome") @ other.embeddings[9]), rel=1e-4)
    assert new.attributes([market.ids[9]])["salary"].to_pylist() == [1.0]
    all_of_it = Retriever.open(tmp_path / "later", live=store, since=END)
    assert [i in all_of_it for i in (NEW, stays)] == [True, False]
    assert old.upsert({"item": NEW + 3, "place": "Rome"}) > END + 2 * HOUR  # all of them follow the store
    assert (NEW + 3 in old, NEW + 3 in new, new.live.skipped) == (True, True, {})
    store.close()


def test_writes_are_newer_than_a_bundle_from_the_future(bundle: Path, tmp_path: Path) -> None:
    store = LiveStore(tmp_path / "s.sqlite", clock=lambda: 5)
    live = Retriever.open(bundle, live=store)
    numbers = [live.upsert({"item": NEW}, TOWARDS), live.delete([NEW]), live.upsert({"item": NEW}, TOWARDS)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > END
    assert first(live) == NEW
    store.close()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"place": "Rome"}, "no 'item'"),
        ({"item": NEW, "plaice": "Rome"}, r"unknown fields \['plaice'\]"),
        ({"item": "ten"}, "'ten'"),
        ({"item": [1]}, "is no id"),
        ({"item": NEW}, "neither a feature nor a vector"),
        ({"item": NEW, "place": 7}, "attribute 'place'"),
        ({"item": NEW, "place": "Rome", "salary": "much"}, "salary"),
        ({"item": NEW, "place": "Rome", "posted": "tomorrow"}, "not a time"),
        ({"item": NEW, "place": "Rome", "skills": [object()]}, "cannot be kept"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_written(live: Retriever, item: Any, says: str) -> None:
    n = len(live)
    with pytest.raises(DataError, match=says):
        live.upsert([{"item": NEW + 9, "place": "Rome"}, item])
    assert len(live) == n
    assert live.live.store.changes(0)[0] == []


def test_vectors_must_be_of_the_models_space(live: Retriever) -> None:
    with pytest.raises(ConfigError, match=r"\[1, 3\]; expected \[1, 8\]"):
        live.upsert({"item": NEW}, np.ones(3))
    with pytest.raises(ConfigError, match="not finite"):
        live.upsert({"item": NEW}, np.full(DIM, np.nan))
    assert (NEW in live, live.live.store.changes(0)[0]) == (False, [])
    assert live.upsert([]) == live.upsert([])


def test_without_a_store_there_is_nothing_to_write_to(retriever: Retriever) -> None:
    for write in (lambda: retriever.upsert({"item": 1}), lambda: retriever.delete([1])):
        with pytest.raises(ConfigError, match=r"live='catalogue\.sqlite'"):
            write()


def test_a_model_without_histories(fresh: Any, market: Market, tmp_path: Path) -> None:
    plain = Market(n=30)
    folder = fresh(
        history_inputs=None, known_users=None, user_tower=own_field_tower(plain), item_tower=item_tower(plain.fields),
        golden=[Golden({"field": "law"}, plain.vector("law", [], []), END)],
    )  # fmt: skip
    live = Retriever.open(folder, live=tmp_path / "s.sqlite")
    live.upsert([{"item": NEW, "place": "Rome"}, {"item": NEW + 1}], np.stack([-TOWARDS, TOWARDS]))
    live.upsert({"item": NEW + 2, "place": "Rome"})
    live.expire([market.ids[1]], at=END)
    assert first(live) == NEW + 1
    assert len(live) == market.n + 3
    assert first(reopened(live, folder)) == NEW + 1
    live.live.store.close()


def test_string_ids(tmp_path: Path) -> None:
    market = Market(strings=True)
    live = Retriever.open(write_bundle(market.contents(), tmp_path / "b"), live=tmp_path / "s.sqlite")
    live.upsert({"item": "new"}, TOWARDS)
    live.delete([market.ids[0]])
    assert (first(live), market.ids[0] in live, "new" in live, 3 in live) == ("new", False, True, False)
    found = live.search(np.stack([TOWARDS, -TOWARDS]), len(live) + 1, at=END)
    assert found.ids[0, 0] == "new"
    assert found.ids[0, -1] is None
    with pytest.raises(DataError, match="expected a list"):
        live.delete("new")
    live.live.store.close()
    other = write_bundle(Market().contents(), tmp_path / "numbers")
    with pytest.raises(BundleError, match=r"s\.sqlite: holds items with string ids"):
        Retriever.open(other, live=tmp_path / "s.sqlite")


def test_many_threads_write_and_read(live: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("live_rows", "live_compaction"):
        monkeypatch.setattr(f"towers.index.{module}.TAIL", 4)
    monkeypatch.setattr("towers.index.live_compaction.DENSE", 24)
    n = len(live)

    def write(thread: int) -> None:
        for i in range(25):
            item = 20_000 + 100 * thread + i
            live.upsert(
                [{"item": item, "place": "Rome"}, {"item": 30_000 + i}], np.stack([TOWARDS, -TOWARDS]) * (1 + i)
            )
            assert item in live
            if i % 5 == 4:
                live.delete([item])
                assert item not in live

    def read(_: int) -> None:
        for _ in range(60):
            found = live.search(TOWARDS, n + 500, at=END, filter="place == 'Rome'", explain=True)
            assert len(set(found.ids.tolist())) == len(found.ids) == found.plan.eligible  # type: ignore[union-attr]
            assert set(live.attributes(found.ids)["place"].to_pylist()) == {"Rome"}

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(write, t) for t in range(3)] + [pool.submit(read, t) for t in range(3)]
        for task in tasks:
            task.result()
    live.live.compact()
    assert len(live) == n + 3 * 20 + 25
    assert len(live.live.now.parts) < 6
