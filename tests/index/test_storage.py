"""Vectors in fewer bytes read like arrays, and lose no more than their steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from towers.features import Ragged
from towers.index.bitmaps import rows_where
from towers.index.recipes import IndexRecipe, build_index
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.storage import StoredVectors, stored


def points(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_int8_by_hand() -> None:
    """The largest entry is 127 steps; the scale gives the length back: 5 / √(127² + 95²)."""
    kept = stored(np.array([[4.0, -3.0], [0.0, 0.0]], np.float32), "int8")
    assert kept.codes.tolist() == [[127, -95], [0, 0]]
    assert kept.scales[0] == pytest.approx(5 / np.hypot(127, 95))
    assert kept[1].tolist() == [0.0, 0.0]
    assert stored(points(3), "float32").dtype == np.float32


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_codes_may_lie_on_the_disk(storage: str, tmp_path: Path) -> None:
    mapped = stored(points(9), storage, tmp_path / "codes.npy")
    assert isinstance(mapped.codes, np.memmap)
    assert np.array_equal(np.asarray(mapped), np.asarray(stored(points(9), storage)))


@given(hnp.arrays(np.float32, (7, 5), elements=st.floats(-8, 8, width=32).filter(lambda v: v == 0 or abs(v) > 1e-2)))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_lengths_stay_and_entries_move_by_a_step(x: np.ndarray) -> None:
    kept = np.asarray(stored(x, "int8"))
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    assert (np.abs(kept - x) <= np.abs(x).max(1, keepdims=True) * 0.02 + 1e-6).all()
    assert np.allclose(np.asarray(stored(x, "float16")), x, rtol=1e-3)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_it_reads_like_the_array_that_it_stands_for(storage: str) -> None:
    kept = stored(points(50), storage)
    whole = np.asarray(kept)
    assert isinstance(kept, StoredVectors)
    assert (kept.shape, len(kept), kept.dtype, kept.ndim) == (whole.shape, 50, whole.dtype, 2)
    rows = np.array([[3, 4], [49, 0]])
    for some in (7, slice(3, 9), rows[0], rows):
        np.testing.assert_array_equal(kept[some], whole[some])
    np.testing.assert_array_equal(kept.take(rows[0], axis=0), whole[rows[0]])


@pytest.mark.parametrize("storage", ["float16", "int8"])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("kind", ["flat", "ivf_pq"])
def test_search_is_exact_over_what_is_stored(storage: str, queries: int, kind: str) -> None:
    x, q = points(9000), points(queries, seed=1)
    recipe = IndexRecipe(kind, nlist=8, nprobe=8, storage=storage).resolve(*x.shape)
    search = VectorSearch(build_index(x, recipe, Similarity("cosine")), stored(x, storage), recipe)
    truth = np.asarray(search.embeddings) @ q.T
    mask = np.random.default_rng(2).random(len(x)) < 0.3
    for allowed in (None, mask):
        best = np.sort(truth if allowed is None else truth[allowed], axis=0)[::-1][:10].T
        bits = None if allowed is None else rows_where(allowed)
        rows, scores = search.search(q, 10, allowed=bits, exact=True)
        np.testing.assert_allclose(scores, best, atol=1e-5)
        np.testing.assert_allclose(truth[rows, np.arange(queries)[:, None]], best, atol=1e-5)
        excluded = Ragged(np.arange(queries + 1), rows[:, 0].copy())
        assert not (search.search(q, 10, allowed=bits, exclude=excluded)[0] == rows[:, :1]).any()
