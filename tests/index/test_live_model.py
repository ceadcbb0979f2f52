"""The live catalogue against a dictionary: any sequence of writes, queries, compactions, restarts and new bundles."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.index.small_market import DIM, END, HOUR, Market
from towers.index.bundle import write_bundle
from towers.index.live_store import LiveStore
from towers.index.recipes import IndexRecipe
from towers.index.retriever import Retriever

PLACES = ["Berlin", "Paris", "Rome", None, "Oslo"]
IDS = st.sampled_from([-21, -14, -7, 0, 7, 14, 500, 501, 502, 503, 504])  # of the bundles, and new ones
MOMENTS = st.one_of(st.none(), st.integers(-5, 5).map(lambda h: END + h * HOUR))


@dataclass
class Known:
    """What one item is expected to be."""

    vector: np.ndarray
    place: str | None
    posted: int | None
    expires: int | None

    def eligible(self, at: int, place: str | None) -> bool:
        there = (self.posted is None or self.posted <= at) and (self.expires is None or at < self.expires)
        return there and (place is None or self.place == place)


class Model(RuleBasedStateMachine):
    """Two bundles of two models; the second knows the items better, and its data end two hours later."""

    markets: ClassVar[list[Market]] = [Market(seed=0), Market(n=40, seed=5)]
    ends: ClassVar[list[int]] = [END, END + 2 * HOUR]
    folders: ClassVar[list[Path]] = []  # of the two, see `test_model`

    def __init__(self) -> None:
        super().__init__()
        self.small = [
            mock.patch("towers.index.live_rows.TAIL", 3),
            mock.patch("towers.index.live_compaction.TAIL", 3),
            mock.patch("towers.index.live_compaction.DENSE", 9),
        ]
        for patch in self.small:
            patch.start()
        memory = Path("/dev/shm")  # what reaches the disk is not the question here, and waiting for it is slow
        self.scratch = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.clock = END + HOUR  # between the ends of the two
        self.writes: list[tuple[int, str, int, Any]] = []  # number, kind, item, what
        self.which = 0

    @initialize()
    def begin(self) -> None:
        self.open()

    def open(self) -> None:
        self.store = LiveStore(Path(self.scratch.name) / "live.sqlite", clock=lambda: self.clock)
        self.live = Retriever.open(self.folders[self.which], live=self.store)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.live.live.compact()
            self.store.close()
        for patch in self.small:
            patch.stop()
        self.scratch.cleanup()

    @rule(items=st.lists(IDS, min_size=1, max_size=6), place=st.sampled_from(PLACES), posted=MOMENTS, expires=MOMENTS,
          seed=st.one_of(st.none(), st.integers(0, 99)))  # fmt: skip
    def upsert(self, items: list[int], place: str | None, posted: int | None, expires: int | None, seed: Any) -> None:
        if seed is None and place is None:
            return  # neither a feature nor a vector
        fields = [{"item": i, "place": place, "posted": posted, "expires": expires} for i in items]
        given = None if seed is None else np.random.default_rng(seed).standard_normal((len(items), DIM)).astype("f4")
        number = self.live.upsert(fields, given)
        for i, item in enumerate(items):
            what = (place, posted, expires, None if given is None else given[i], self.which)
            self.writes.append((number, "upsert", item, what))

    @rule(items=st.lists(IDS, min_size=1, max_size=4))
    def delete(self, items: list[int]) -> None:
        number = self.live.delete(items)
        self.writes += [(number, "delete", i, None) for i in items]

    @rule(items=st.lists(IDS, min_size=1, max_size=4), at=MOMENTS.filter(lambda m: m is not None))
    def expire(self, items: list[int], at: int) -> None:
        number = self.live.expire(items, at)
        self.writes += [(number, "expire", i, at) for i in items]

    @rule()
    def compact(self) -> None:
        self.live.live.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(hours=st.integers(1, 3))
    def time_passes(self, hours: int) -> None:
        self.clock += hours * HOUR

    @precondition(lambda self: self.which == 0)
    @rule()
    def new_bundle(self) -> None:
        self.which = 1
        self.live = Retriever.open(self.folders[1], live=self.store)

    def expected(self) -> dict[int, Known]:
        """Item by item, from all writes that are newer than the bundle."""
        market, end = self.markets[self.which], self.ends[self.which]
        exported = {
            item: Known(market.embeddings[i], market.place[i], market.posted[i], market.expires[i])
            for i, item in enumerate(market.ids)
        }
        out = dict(exported)
        for number, kind, item, what in self.writes:
            if number <= end:
                continue
            if kind == "delete":
                out.pop(item, None)
            elif kind == "expire" and item in out:
                out[item] = Known(**{**vars(out[item]), "expires": what})
            elif kind == "upsert":
                place, posted, expires, vector, model = what
                if vector is None:
                    vector = market.item_vector(place)
                elif model != self.which:  # a vector of the other model
                    vector = None if place is None else market.item_vector(place)
                    if vector is None and item in exported:
                        vector = exported[item].vector
                if vector is None:
                    out.pop(item, None)
                else:
                    out[item] = Known(vector, place, posted, expires)
        return out

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "live"):
            return
        want = self.expected()
        assert len(self.live) == len(want)
        assert all((i in self.live) == (i in want) for i in (-21, 0, 7, 500, 503))
        rng = np.random.default_rng(len(self.writes))
        queries = rng.standard_normal((2, DIM)).astype(np.float32)
        for at, place in ((END, None), (END + 3 * HOUR, "Rome"), (END - 2 * HOUR, "Oslo")):
            eligible = {i: x.vector for i, x in want.items() if x.eligible(at, place)}
            text = None if place is None else f"place == {place!r}"
            for exact in (True, False):
                found = self.live.search(queries, 70, at=at, filter=text, exact=exact)
                for q, query in enumerate(queries):
                    ids = found.ids[q][np.isfinite(found.scores[q])].tolist()
                    assert sorted(ids) == sorted(eligible)
                    np.testing.assert_allclose(
                        found.scores[q][: len(ids)], [eligible[i] @ query for i in ids], rtol=1e-4, atol=1e-4
                    )
                    assert (np.diff(found.scores[q][: len(ids)]) <= 0).all()


SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=8, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)


def test_model(tmp_path: Path) -> None:
    for i, (market, end) in enumerate(zip(Model.markets, Model.ends, strict=True)):
        recipe = IndexRecipe(["flat", "ivf_flat"][i], nlist=[0, 4][i], nprobe=4)
        Model.folders.append(write_bundle(market.contents(recipe, data_end=end), tmp_path / str(i)))
    run_state_machine_as_test(Model, settings=SETTINGS)
