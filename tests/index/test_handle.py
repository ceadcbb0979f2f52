"""A bundle takes another's place under the feet of running queries, or is refused and changes nothing."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.index.small_market import END, FIELDS, HOUR, Market
from towers.errors import BundleError, DataError
from towers.features import Featurizer
from towers.index import Results, Retriever, RetrieverHandle, Watch
from towers.index.bundle import write_bundle
from towers.index.manifest import MANIFEST, SEAL, bundle_id
from towers.index.opening import open_bundle
from towers.index.similarity import Similarity
from towers.index.swap_report import changes, warnings
from towers.index.warming import touch, warm

OTHER = 1_000_000  # added to the item ids of the second bundle


@pytest.fixture(scope="module")
def other(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same market with items of other ids: one look at an id tells which bundle gave it."""
    ids = pa.array([i + OTHER for i in market.ids], pa.int64())
    golden = [replace(market.contents().golden[1])]
    contents = market.contents(item_ids=ids, golden=golden, data_end=END + HOUR)
    return write_bundle(contents, tmp_path_factory.mktemp("other") / "other")


@pytest.fixture
def handle(bundle: Path) -> RetrieverHandle:
    return RetrieverHandle.open(bundle)


def of_other(found: Results) -> set[bool]:
    return {bool(i >= OTHER // 2) for i in found.ids.ravel().tolist()}


def test_it_answers_as_its_retriever_does(handle: RetrieverHandle, retriever: Retriever, market: Market) -> None:
    ids, scores = handle.recommend(11, 5, at=END)
    expected = retriever.recommend(11, 5, at=END)
    np.testing.assert_array_equal(ids, expected.ids)
    np.testing.assert_array_equal(scores, expected.scores)
    assert len(handle) == 60
    assert market.ids[3] in handle
    assert OTHER not in handle
    np.testing.assert_array_equal(handle.vector(11, at=END), retriever.vector(11, at=END))
    assert handle.attributes([market.ids[0]]).equals(retriever.attributes([market.ids[0]]))
    for name in ("recommend", "search", "similar", "match", "vector", "attributes", "user_attributes"):
        assert getattr(RetrieverHandle, name).__doc__ == getattr(Retriever, name).__doc__


def test_every_answer_names_its_bundle(handle: RetrieverHandle, bundle: Path, other: Path, market: Market) -> None:
    def answers() -> list[str]:
        vector = market.embeddings[0]
        item = next(i for i in (market.ids[0], market.ids[0] + OTHER) if i in handle)
        asked = [
            handle.recommend(11, 3, at=END),
            handle.recommend([11, 30], 3, at=END),
            handle.search(vector, 3, at=END),
            handle.similar(item, 3, at=END),
        ]
        return [found.bundle for found in asked]

    first = (bundle / SEAL).read_text()[:12]
    assert answers() == [first] * 4 == [handle.bundle_id] * 4
    assert handle.swap(other).accepted
    second = (other / SEAL).read_text()[:12]
    assert answers() == [second] * 4 == [bundle_id(other)] * 4
    assert first != second


def test_a_swap_says_what_is_different(handle: RetrieverHandle, bundle: Path, other: Path) -> None:
    report = handle.swap(other)
    assert (report.accepted, report.reason, report.warnings) == (True, "", ())
    assert (report.previous, report.bundle) == (bundle_id(bundle), bundle_id(other))
    assert report.path == other
    assert report.changes["data_end"] == (END, END + HOUR)
    assert set(report.changes) <= {"data_end", "created"}
    assert set(report.seconds) == {"open", "warm"}
    assert handle.reports[-1] is report
    assert len(handle.reports) == 2
    assert of_other(handle.recommend(11, 5, at=END)) == {True}
    for words in ("swapped to", report.bundle, "data_end", "warm"):
        assert words in str(report)


@pytest.mark.parametrize("damage", ["missing", "flipped", "another_tower", "not_there", "a_file"])
def test_a_bad_bundle_is_refused_and_the_old_one_stays(
    handle: RetrieverHandle, other: Path, tmp_path: Path, damage: str
) -> None:
    bad = Path(shutil.copytree(other, tmp_path / "bad"))
    name = "items/embeddings.npy"
    if damage == "missing":
        (bad / name).unlink()
    elif damage == "flipped":
        content = bytearray((bad / name).read_bytes())
        content[-1] ^= 1
        (bad / name).write_bytes(content)
    elif damage == "another_tower":  # honest hashes over a wrong part: the replay finds it
        name = "golden.json"
        golden = json.loads((bad / name).read_text())
        golden["queries"][0]["vector"][0] += 1
        (bad / name).write_text(json.dumps(golden))
        reseal(bad)
    elif damage == "not_there":
        bad, name = tmp_path / "nowhere", "nowhere"
    else:
        bad, name = other / MANIFEST, "no such folder"
    before, answer = handle.current, handle.recommend(11, 5, at=END)
    report = handle.swap(bad)
    assert not report.accepted
    assert name in report.reason
    assert "BundleError" in report.reason
    assert handle.current is before
    np.testing.assert_array_equal(handle.recommend(11, 5, at=END).ids, answer.ids)
    assert handle.reports[-1].reason == report.reason
    assert "REFUSED" in str(report)
    assert handle.swap(other).accepted, "a refusal must not stand in the way of the next"


def reseal(root: Path) -> None:
    from tests.index.test_bundle import reseal as write_hashes

    write_hashes(root)


def test_a_bundle_that_cannot_be_warmed_is_refused(bundle: Path, other: Path) -> None:
    class Broken(Retriever):
        def recommend(self, *_: Any, **__: Any) -> Results:
            raise DataError("no")

    opened: list[Path] = []

    def opener(path: Path) -> Retriever:
        opened.append(path)
        return Retriever.open(path) if path == bundle else Broken(open_bundle(path))

    handle = RetrieverHandle.open(bundle, opener=opener)
    report = handle.swap(other)
    assert not report.accepted
    assert report.reason == "DataError: no"
    assert handle.bundle_id == bundle_id(bundle)
    assert opened == [bundle, other]


def test_without_a_first_bundle_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        RetrieverHandle.open(tmp_path / "nowhere")
    handle = RetrieverHandle()
    assert handle.bundle_id == ""
    assert handle.reports == ()
    with pytest.raises(BundleError, match="no bundle has been accepted"):
        handle.recommend(11)
    assert not handle.swap(tmp_path).accepted


def test_options_travel_to_every_opening(bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = Retriever.open

    def spy(path: Path, **options: Any) -> Retriever:
        seen.append(options)
        return real(path, **options)

    monkeypatch.setattr(Retriever, "open", spy)
    handle = RetrieverHandle.open(bundle, opener=partial(spy, threads=1))
    handle.swap(other)
    assert seen == [{"threads": 1}, {"threads": 1}]


# Queries in flight.


def test_a_query_in_flight_is_finished_by_the_bundle_that_began_it(bundle: Path, other: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Retriever):
        def recommend(self, *args: Any, **kwargs: Any) -> Results:
            if threading.current_thread().name == "asks":
                began.set()
                assert go_on.wait(60)
            return super().recommend(*args, **kwargs)

    handle = RetrieverHandle.open(bundle, opener=lambda path: Slow(open_bundle(path)))
    answers: list[Results] = []
    asks = threading.Thread(target=lambda: answers.append(handle.recommend(11, 5, at=END)), name="asks")
    asks.start()
    assert began.wait(60)
    parts = [weakref.ref(handle.current), weakref.ref(handle.current.bundle.search)]
    assert handle.swap(other).accepted  # it does not wait for the query
    assert handle.bundle_id == bundle_id(other)
    assert of_other(handle.recommend(11, 5, at=END)) == {True}
    gc.collect()
    assert parts[0]() is not None, "the query in flight holds its bundle"
    go_on.set()
    asks.join()
    assert answers[0].bundle == bundle_id(bundle)
    assert of_other(answers[0]) == {False}
    gc.collect()  # the stub's `super()` and the thread's locals
    assert [p() for p in parts] == [None, None]


def test_the_old_bundle_is_released_without_the_garbage_collector(handle: RetrieverHandle, other: Path) -> None:
    handle.recommend(11, 5, filter="salary > 3000 and place == 'Rome' and 'sql' in skills", at=END)
    bundle = handle.current.bundle
    columns = handle.current._catalogue.parts[0].eligibility.indexed._columns
    assert {"salary", "place", "skills", "posted"} <= set(columns)
    parts = [weakref.ref(p) for p in (handle.current, bundle, bundle.search, bundle.items, bundle.user_tower,
             bundle.search.embeddings, bundle.search.index, *columns.values())]  # fmt: skip
    del bundle, columns
    gc.disable()
    try:
        assert handle.swap(other).accepted
        alive = [p() for p in parts if p() is not None]
    finally:
        gc.enable()
    assert alive == []


def test_swaps_under_querying_threads(bundle: Path, other: Path, tmp_path: Path) -> None:
    """Each answer is of one bundle and says which; no query fails, whatever is swapped in."""
    bad = Path(shutil.copytree(other, tmp_path / "bad"))
    (bad / "items/index.faiss").write_bytes(b"IxFI")
    handle = RetrieverHandle.open(bundle, opener=partial(Retriever.open, threads=1))
    names = {bundle_id(bundle): False, bundle_id(other): True}
    stop = threading.Event()

    def ask(n: int) -> set[str]:
        seen = set()
        while not stop.is_set():
            found = handle.recommend([11, 30, -5] if n % 2 else 11, 5, filter="salary >= 0" if n % 3 else None, at=END)
            assert of_other(found) == {names[found.bundle]}
            assert found.ids.shape == ((3, 5) if n % 2 else (5,))
            seen.add(found.bundle)
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, n) for n in range(4)]
        try:
            reports = [handle.swap(p) for p in [other, bad, bundle, bad, other, bundle] * 2]
        finally:
            stop.set()
        seen = set().union(*(a.result() for a in asking))
    assert [r.accepted for r in reports] == [True, False, True, False, True, True] * 2
    assert seen == set(names), "queries met both bundles"


def test_swaps_wait_for_one_another(handle: RetrieverHandle, bundle: Path, other: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(handle.swap, [bundle, other] * 4))
    assert all(r.accepted for r in reports)
    for before, after in zip(handle.reports[:-1], handle.reports[1:], strict=True):
        assert after.previous == before.bundle
    assert handle.bundle_id == handle.reports[-1].bundle


# What changes between bundles, and what is warned of.


def test_a_step_back_in_time_is_warned_of(handle: RetrieverHandle, bundle: Path, other: Path) -> None:
    handle.swap(other)
    report = handle.swap(bundle)
    assert report.accepted
    assert len(report.warnings) == 1
    assert "step back" in report.warnings[0]
    assert str(END) in report.warnings[0]


def test_another_model_is_visible(handle: RetrieverHandle, market: Market, fresh: Callable[..., Path]) -> None:
    """Another similarity, other features, no known users: allowed, and told."""
    schema = replace(market.schema, history_length=7)
    attributes = market.attributes.drop_columns(["salary"])
    new = fresh(
        similarity=Similarity("dot", 0.2), schema=schema, known_users=None, golden=market.contents().golden[:1],
        attributes=attributes,
    )  # fmt: skip
    report = handle.swap(new)
    assert report.accepted
    told = {k: report.changes[k] for k in ("temperature", "users", "history_length")}
    assert told == {"temperature": (0.1, 0.2), "users": (3, 0), "history_length": (4, 7)}
    assert any("known users" in w for w in report.warnings)
    assert any("attributes ['salary'] are gone" in w for w in report.warnings)


def test_ids_of_another_type_are_warned_of(bundle: Path, tmp_path: Path) -> None:
    texts = write_bundle(Market(strings=True).contents(), tmp_path / "strings")
    old, new = open_bundle(bundle), open_bundle(texts)
    assert changes(old, new)["item_id"] == ("int64", "string")
    assert [w.split()[0] for w in warnings(old, new)] == ["item_id", "user_id"]
    assert changes(old, old) == {}
    assert warnings(old, old) == ()


def test_a_changed_feature_is_named(handle: RetrieverHandle, market: Market, fresh: Callable[..., Path]) -> None:
    feature = replace(market.schema.users[0], max_size=100)
    fields = pa.table({"field": FIELDS})
    users = Featurizer.fit((feature,), fields, np.array([3, 2, 1]))
    np.testing.assert_array_equal(users.encode(fields)["field"], market.known.features["field"])  # the tower is right
    report = handle.swap(fresh(users=users, schema=replace(market.schema, users=(feature,))))
    assert report.accepted
    assert report.changes["users.field"] == (market.schema.users[0], feature)


# Warming.


def test_warming_asks_golden_queries_and_known_users(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = Retriever.recommend
    monkeypatch.setattr(Retriever, "recommend", lambda s, u, *a, **k: asked.append(u) or real(s, u, *a, **k))  # type: ignore[func-returns-value]
    assert warm(retriever, 2) == 4
    assert asked == [{"field": "law", "history": [14]}, 11, 11, 30]


@pytest.mark.parametrize("array", [np.zeros((0, 4), np.float32), np.ones((3, 2000), np.float32), np.ones((4, 4)).T])
def test_touching_reads_and_changes_nothing(array: np.ndarray) -> None:
    before = array.copy()
    touch(array)
    np.testing.assert_array_equal(array, before)


# A link that moves.


def point(link: Path, target: Path) -> None:
    """As a publisher does it: a new link under another name, renamed over the old one."""
    link.with_name("next").symlink_to(target)
    link.with_name("next").replace(link)


def test_a_watch_follows_a_link(bundle: Path, other: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    point(link, bundle)
    handle = RetrieverHandle.open(link)
    watch = Watch(handle, link)
    assert watch.look() is None
    point(link, other)
    report = watch.look()
    assert report is not None
    assert report.accepted
    assert report.path == other
    assert watch.look() is None
    link.unlink()
    assert watch.look() is None
    assert handle.bundle_id == bundle_id(other)


def test_a_refused_bundle_is_not_tried_again_until_something_changes(bundle: Path, other: Path, tmp_path: Path) -> None:
    link, bad = tmp_path / "latest", Path(shutil.copytree(other, tmp_path / "bad"))
    good = (bad / "schema.json").read_bytes()
    (bad / "schema.json").write_bytes(good[:-1])
    point(link, bad)
    handle = RetrieverHandle.open(bundle)
    watch = Watch(handle, link)
    report = watch.look()
    assert report is not None
    assert not report.accepted
    assert "schema.json" in report.reason
    assert watch.look() is None
    point(link, other)
    report = watch.look()
    assert report is not None
    assert report.accepted


def test_a_watch_runs_beside_the_queries(bundle: Path, other: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    point(link, bundle)
    swapped = threading.Event()

    class Told(RetrieverHandle):
        def swap(self, path: str | Path) -> Any:
            report = super().swap(path)
            if report.previous:
                swapped.set()
            return report

    handle = Told.open(link)
    with Watch(handle, link, every=0.01):
        point(link, other)
        assert swapped.wait(60)
    assert handle.bundle_id == bundle_id(other)
    assert not any(t.name.startswith("watch") for t in threading.enumerate())
