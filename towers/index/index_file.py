"""``items/index.faiss``, read and held against what it says it indexes.

FAISS checks lengths and counts as it reads. What it cannot know is which items there are: a file that is well formed
may hold rows that no item has, the same row twice, or other vectors, and be found out by a query, days later.

``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from towers.index import layout
from towers.index.faiss_setup import faiss
from towers.index.recipes import FAISS_TYPES, IndexRecipe

_MOST = 1 << 20  # candidates of one query: more is no setting, and FAISS makes room for them

_LIMIT = threading.Lock()
_BLOCK = 1 << 16  # vectors compared at a time


def read_index(root: Path, embeddings: Any, recipe: IndexRecipe, *, deep: bool = True) -> faiss.Index:
    """The index of a bundle.

    Args:
        root: the bundle.
        embeddings: ``[N, D]`` float32, or what reads like it: what it must have been built from.
        recipe: what it must have been built with.
        deep: compare its rows too, and its vectors where it keeps them whole: reads all of it.

    Raises:
        BundleError: it is something else.
    """
    n, dim = embeddings.shape
    with layout.reading(layout.INDEX):
        with _bounded((root / layout.INDEX).stat().st_size):
            index: Any = faiss.read_index(str(root / layout.INDEX))
        if (index.ntotal, index.d, index.metric_type) != (n, dim, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(
                f"{index.ntotal} vectors of {index.d} dimensions, metric {index.metric_type}; expected {n} of {dim}, "
                f"metric {faiss.METRIC_INNER_PRODUCT}"
            )
        if type(index).__name__ not in FAISS_TYPES[recipe.kind]:
            raise ValueError(f"an {type(index).__name__}; the manifest says {recipe.kind}")
        for name in ("nlist", "nprobe", "m", "rescore", "ef_construction", "ef_search", "recall_at"):
            if getattr(recipe, name) > max(n, _MOST):
                raise ValueError(f"{name} is {getattr(recipe, name)} in the manifest, more than there can be")
        if recipe.is_ivf:
            _check_cells(index, recipe, n, dim)
        if deep:
            whole = recipe.storage == "float32"  # of the embeddings
            if recipe.is_ivf:
                _check_lists(index, embeddings, whole=whole and recipe.kind == "ivf_flat")
            elif recipe.kind.startswith("hnsw"):
                _check_graph(index.hnsw, n)
            if whole and recipe.kind in ("flat", "hnsw"):
                _check_vectors(faiss.downcast_index(getattr(index, "storage", index)), embeddings)
        out: faiss.Index = index
        return out


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """FAISS makes room for as many bytes as a file claims to hold; here for no more than can be in it.

    The limit is one of the process, hence the lock, and older versions have none.
    """
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    with _LIMIT:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(2 * size + (1 << 20))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before)


def _check_cells(index: Any, recipe: IndexRecipe, n: int, dim: int) -> None:
    """The lists and the centres by which they are found."""
    cells = faiss.downcast_index(index.quantizer)
    if index.nlist != recipe.nlist or index.invlists.nlist != recipe.nlist:
        raise ValueError(f"{index.nlist} cells; the manifest says {recipe.nlist}")
    if (cells.ntotal, cells.d, cells.metric_type) != (index.nlist, dim, faiss.METRIC_INNER_PRODUCT):
        raise ValueError(f"{cells.ntotal} centres of {cells.d} dimensions for {index.nlist} cells of {dim}")
    if sum(index.invlists.list_size(cell) for cell in range(index.nlist)) != n:
        raise ValueError(f"its cells do not hold the {n} items")


def _check_lists(index: Any, embeddings: Any, *, whole: bool) -> None:
    """Each item is in one cell, once; ``whole``: with its embedding."""
    lists, (n, dim) = index.invlists, embeddings.shape
    seen = np.zeros(n, np.bool_)
    for cell in range(index.nlist):
        if not (size := lists.list_size(cell)):
            continue
        rows = faiss.rev_swig_ptr(lists.get_ids(cell), size)
        if rows.min() < 0 or rows.max() >= n:
            raise ValueError(f"cell {cell} holds rows outside 0…{n - 1}")
        seen[rows] = True
        if whole:
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), size * dim * 4).view(np.float32).reshape(size, dim)
            if not np.array_equal(codes, embeddings[rows]):
                raise ValueError(f"the vectors of cell {cell} are not those of {layout.EMBEDDINGS}")
    if not seen.all():  # so many entries as items, hence some item is there twice
        raise ValueError(f"item {int(np.argmin(seen))} is in none of its cells")


def _check_graph(graph: Any, n: int) -> None:
    """Every edge leads to an item, or nowhere."""
    edges = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    if not 0 <= graph.entry_point < n or (len(edges) and (edges.min() < -1 or edges.max() >= n)):
        raise ValueError(f"its graph has edges to rows outside 0…{n - 1}")


def _check_vectors(flat: Any, embeddings: Any) -> None:
    """It holds the embeddings, in their order."""
    n, dim = embeddings.shape
    if (flat.ntotal, flat.d) != (n, dim):
        raise ValueError(f"its graph is over {flat.ntotal} vectors of {flat.d} dimensions; expected {n} of {dim}")
    vectors = faiss.rev_swig_ptr(flat.get_xb(), n * dim).reshape(n, dim)
    for start in range(0, n, _BLOCK):
        if not np.array_equal(vectors[start : start + _BLOCK], embeddings[start : start + _BLOCK]):
            raise ValueError(f"its vectors are not those of {layout.EMBEDDINGS}")
