"""Which route is taken when, and what it is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.index.planner import plan
from towers.index.recipes import KINDS, IndexRecipe

N, DIM = 1_000_000, 64
IVF = IndexRecipe("ivf_flat", nprobe=64, probe_growth=0.25).resolve(N, DIM)


def test_few_eligible_items_are_all_scored() -> None:
    for kind in KINDS:
        made = plan(IndexRecipe(kind).resolve(N, DIM), N, DIM, 1000, 100)
        assert (made.route, made.fetch, made.nprobe) == ("exact", 100, 0)


def test_near_cells_are_looked_into_where_some_pass_and_more_of_them_the_fewer_pass() -> None:
    tenth, twentieth = (plan(IVF, N, DIM, N // part, 100) for part in (10, 20))
    assert tenth.route == twentieth.route == "cells"
    assert tenth.nprobe == 114  # 64 · 10 ^ ¼
    assert twentieth.nprobe == 136  # 64 · 20 ^ ¼
    assert tenth.fetch == 100


def test_cells_are_scanned_where_that_is_sooner_than_looking_at_all_that_passes() -> None:
    many = IndexRecipe("ivf_flat", nprobe=64, probe_growth=0.25).resolve(100 * N, DIM)
    made = plan(many, 100 * N, DIM, 10 * N, 100)
    assert (made.route, made.fetch, made.nprobe) == ("probe", 100, 114)


def test_the_index_is_asked_for_more_where_most_pass() -> None:
    made = plan(IVF, N, DIM, int(0.9 * N), 100)
    assert made.route == "index"
    assert made.fetch == 145  # 130 / .9: by chance 130 of them are eligible, three deviations above 100
    assert made.nprobe == 66  # 64 · (1 / .9) ^ ¼: the best eligible hundred lie among the best 111


def test_without_a_filter_the_index_is_asked_for_what_is_wanted() -> None:
    for kind in KINDS:
        made = plan(IndexRecipe(kind).resolve(N, DIM), N, DIM, N, 100, excluded=20)
        assert (made.route, made.fetch, made.eligible, made.excluded) == ("index", 120, N, 20)


def test_many_queries_that_share_a_filter_score_its_items_sooner() -> None:
    assert plan(IVF, N, DIM, 50_000, 100).route == "cells"
    assert plan(IVF, N, DIM, 50_000, 100, queries=256).route == "exact"


def test_only_cells_can_be_scanned_for_eligible_items() -> None:
    for kind in ("flat", "hnsw"):
        recipe = IndexRecipe(kind).resolve(N, DIM)
        assert all(plan(recipe, N, DIM, N * i // 100, 100).route in ("exact", "index") for i in range(1, 100))


def test_exact_is_exact() -> None:
    assert plan(IVF, N, DIM, N // 2, 100, exact=True).route == "exact"
    assert plan(IVF, N, DIM, N, 100, exact=True).route == "exact"


def test_a_plan_for_people() -> None:
    made = replace(plan(IVF, N, DIM, N // 10, 100, excluded=3), live=900_000, passing=110_000)
    assert str(made) == (
        "cells: 100,000 of 1,000,000 items are eligible, 900,000 live, 110,000 pass the filter; "
        "103 fetched from 115 cells, 3 excluded, 0 queries completed"
    )


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from(KINDS), st.integers(300, 10**7), st.floats(0, 1), st.integers(1, 5000), st.integers(0, 5000),
    st.integers(1, 300), st.floats(0, 1),
)  # fmt: skip
def test_no_plan_asks_for_too_little_or_too_much(
    kind: str, items: int, share: float, k: int, excluded: int, queries: int, growth: float
) -> None:
    recipe = IndexRecipe(kind, probe_growth=growth).resolve(items, DIM)
    eligible = round(share * items)
    made = plan(recipe, items, DIM, eligible, k, excluded=excluded, queries=queries)
    assert min(k + excluded, eligible) <= made.fetch <= items
    assert (made.items, made.eligible, made.completed) == (items, eligible, 0)
    if made.route == "exact":
        assert made.nprobe == 0
    elif kind.startswith("ivf"):
        assert min(recipe.nprobe, recipe.nlist) <= made.nprobe <= recipe.nlist


@pytest.mark.parametrize("growth", [-0.1, float("nan"), float("inf"), True])
def test_a_growth_that_is_none(growth: float) -> None:
    from towers.errors import ConfigError

    with pytest.raises(ConfigError, match="probe_growth"):
        IndexRecipe("ivf_flat", probe_growth=growth)
