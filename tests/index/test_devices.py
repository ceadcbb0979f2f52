"""Exact search on a device gives what exact search on the CPU gives; here the device is the CPU, the code the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from towers.errors import ConfigError
from towers.features import Ragged
from towers.index import devices
from towers.index.bitmaps import rows_where
from towers.index.devices import DeviceVectors, check_device, on_gpu, searching, top
from towers.index.exact import exact_search
from towers.index.faiss_setup import faiss
from towers.index.recipes import IndexRecipe, build_index
from towers.index.retriever import Retriever
from towers.index.similarity import Similarity
from towers.index.storage import stored

N, DIM = 9_000, 16
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


ITEMS, QUERIES = points(N, 0), points(5, 1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and rows that are folded."""
    monkeypatch.setattr(devices, "_BLOCK_BYTES", 64 * 1000)
    monkeypatch.setattr(devices, "_WIDE", 64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("share", [None, 0.0, 0.001, 0.11, 1.0])
def test_it_finds_what_the_cpu_finds(k: int, share: float | None) -> None:
    rows = None if share is None else np.flatnonzero(np.random.default_rng(2).random(N) < share)
    found, scores = DeviceVectors(ITEMS, "cpu").search(QUERIES, k, rows)
    truth, best = exact_search(QUERIES, ITEMS, k, rows)
    assert found.shape == scores.shape == truth.shape
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-5)
    assert (found == truth).mean() > 0.999 if truth.size else True


@pytest.mark.usefixtures("small_blocks")
def test_half_precision_orders_by_single_precision() -> None:
    """Of the entries rounded to half precision, scored in single precision: the best of these, in their order."""
    rounded = ITEMS.astype(np.float16).astype(np.float32)
    rows, scores = DeviceVectors(ITEMS, "cpu", half=True).search(QUERIES, 50)
    truth, best = exact_search(QUERIES, rounded, 50)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(rows, truth, strict=True)]) > 0.995
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores[:, 0], best[:, 0], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 70, 64 * 9, 64 * 9 + 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.usefixtures("small_blocks")
def test_the_best_of_all_are_among_the_best_of_the_parts(n: int, k: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(n).permutation(3 * n).reshape(3, n).astype(np.float32))
    k = min(k, n)
    best, column = top(scores, k)
    wanted = torch.topk(scores, k, 1)
    assert torch.equal(best, wanted.values)
    assert torch.equal(column, wanted.indices)


def test_stored_vectors_lie_on_the_device_as_they_read() -> None:
    kept = stored(ITEMS, "int8")
    assert np.array_equal(DeviceVectors(kept, "cpu").vectors.numpy(), np.asarray(kept))


@pytest.mark.parametrize("share", [0.001, 0.6])
def test_filtered_search_goes_to_the_device(share: float) -> None:
    recipe = IndexRecipe("ivf_flat", nlist=32, nprobe=8).resolve(N, DIM)
    plain = searching(build_index(ITEMS, recipe, Similarity("dot")), ITEMS, recipe, "cpu")
    search = type(plain)(plain.index, ITEMS, recipe, DeviceVectors(ITEMS, "cpu"))
    mask = np.random.default_rng(3).random(N) < share
    exclude = Ragged(np.array([0, 2, 2, 2, 2, 2]), np.flatnonzero(mask)[:2])
    found, plan = search.explained(QUERIES, 20, allowed=rows_where(mask), exclude=exclude)
    assert plan.route == "exact"
    best = plain.search(QUERIES, 20, allowed=rows_where(mask), exclude=exclude, exact=True)
    np.testing.assert_allclose(found[1], best[1], rtol=1e-4, atol=1e-5)
    assert mask[found[0][found[0] >= 0]].all()
    assert plain.device is None


@without_gpu
def test_a_device_that_is_not_here_is_an_error_with_its_cure(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"device is cuda, but torch sees no GPU\n  cure: install torch for CUDA"):
        Retriever.open(bundle, device="cuda")
    with pytest.raises(ConfigError, match="expected cpu or cuda"):
        Retriever.open(bundle, device="tpu")
    with pytest.raises(ConfigError, match="no GPU"):
        DeviceVectors(ITEMS, "cuda")
    check_device("cpu")


@pytest.mark.skipif(bool(faiss.get_num_gpus()), reason="there is a GPU")
def test_faiss_without_a_gpu_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"FAISS sees no GPU\n  cure: pip install 'towers\[gpu\]'"):
        on_gpu(faiss.IndexFlatIP(4), "flat")
