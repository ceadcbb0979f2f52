"""How many cells to scan, measured; and filters that point away from a query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from towers.index.bitmaps import to_rows
from towers.index.probing import cells_of, in_cells, pointing_away, probe_growth, with_probe_growth
from towers.index.recall import recall_at
from towers.index.recipes import IndexRecipe, build_index
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity

N, DIM = 20_000, 16


def points(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, DIM)) / np.sqrt(np.arange(1, DIM + 1))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def ivf() -> tuple[Any, IndexRecipe, np.ndarray]:
    items = points(N, 0)
    recipe = IndexRecipe("ivf_flat", nlist=200, nprobe=30).resolve(N, DIM)
    return build_index(items, recipe, Similarity("cosine")), recipe, items


def test_each_item_is_in_the_cell_whose_centre_it_is_nearest(ivf: tuple[Any, IndexRecipe, np.ndarray]) -> None:
    index, _, items = ivf
    cells = cells_of(index)
    centres = index.quantizer.reconstruct_n(0, index.nlist)
    scores = items @ centres.T
    np.testing.assert_allclose(scores[np.arange(N), cells], scores.max(1), atol=1e-5)


def test_a_filter_points_away_if_less_than_half_of_its_share_is_near() -> None:
    cells = np.repeat(np.arange(4, dtype=np.int32), 100)  # four cells of 100 items
    sizes = np.full(4, 100)
    even = to_rows(np.arange(0, 400, 4))
    elsewhere = to_rows(np.concatenate([np.arange(0, 10), np.arange(300, 400)]))  # 10 in cell 0, 100 in cell 3
    scanned = np.array([[0, 1], [2, 3]])
    assert pointing_away(scanned, even, cells, sizes).tolist() == [False, False]
    assert pointing_away(scanned, elsewhere, cells, sizes).tolist() == [True, False]
    (held, away), (rest, there) = in_cells(scanned, elsewhere, cells, sizes)
    assert (held.tolist(), rest.tolist()) == (list(range(10)), list(range(300, 400)))
    assert (away, there) == (True, False)
    assert [(len(mine), away) for mine, away in in_cells(scanned, even, cells, sizes)] == [(50, False), (50, False)]


def test_the_measured_growth_keeps_recall_at_depth_for_other_queries(ivf: tuple[Any, IndexRecipe, np.ndarray]) -> None:
    index, recipe, items = ivf
    growth = probe_growth(index, recipe, items, points(200, 1))
    assert 0 < growth < 0.7  # far from in proportion
    search = VectorSearch(index, items, replace(recipe, probe_growth=growth))
    other = points(100, 2)
    for depth in (200, 500, 1000, 2000):
        assert recall_at(search.approximate(other, depth)[1], search.exact(other, depth)[1]) >= recipe.min_recall
    less = VectorSearch(index, items, replace(recipe, probe_growth=0.0))
    assert recall_at(less.approximate(other, 2000)[1], search.exact(other, 2000)[1]) < recipe.min_recall


def test_all_cells_need_no_growth_and_other_indexes_have_none(ivf: tuple[Any, IndexRecipe, np.ndarray]) -> None:
    index, recipe, items = ivf
    assert probe_growth(index, replace(recipe, nprobe=200), items, points(20, 1)) == 0.0
    flat = IndexRecipe("flat")
    assert with_probe_growth(flat, build_index(items, flat, Similarity("cosine")), items, points(20, 1)) is flat
    assert with_probe_growth(recipe, index, items, points(0, 1)) is recipe
    assert with_probe_growth(recipe, index, items, points(100, 1)).probe_growth < 1
