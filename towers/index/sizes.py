"""Bytes of indexes, before they are built and after."""

from __future__ import annotations

from typing import Any

from towers.index.faiss_setup import faiss
from towers.index.recipes import IndexRecipe


def least_bytes(recipe: IndexRecipe, n: int, dim: int) -> float:
    """Bytes for an item that an index of this kind has at least; the recipe is resolved."""
    vector = {"ivf_fp16": 2.0 * dim, "ivf_sq8": dim, "hnsw_sq8": dim, "ivf_pq": recipe.m, "ivf_pq4": recipe.m / 2,
              "ivf_rabitq": dim / 8 + 8}.get(recipe.kind, 4.0 * dim)  # fmt: skip
    if recipe.is_ivf:
        return vector + 8 + 4.0 * dim * recipe.nlist / n
    return vector + (8.0 * recipe.m if recipe.kind.startswith("hnsw") else 0)


def index_bytes(index: Any) -> int:
    """Bytes of an index as it is written; no copy of it is made."""
    total = 0

    def count(block: bytes) -> None:
        nonlocal total
        total += len(block)

    untyped: Any = faiss  # its type stubs lack this class
    faiss.write_index(index, untyped.PyCallbackIOWriter(count, 1 << 20))
    return total
