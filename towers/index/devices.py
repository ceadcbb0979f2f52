"""Indexes and exact search on a GPU. The one module of this room, beside the exports, that may load torch.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results.

FAISS searches flat and IVF indexes on a GPU, and ignores selectors there. What has to be eligible is therefore scored
exactly, by matrix products: the eligible embeddings are gathered where they lie, in blocks, and the best of each block
kept. On a CPU the same code gives the same answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.index.exact import Found, nothing
from towers.index.faiss_setup import faiss
from towers.index.recipes import ON_GPU, IndexRecipe
from towers.index.search import VectorSearch

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 256 << 20  # of the embeddings gathered and scored at a time
_WIDE = 1 << 13  # columns of which the best are kept before those of all


def check_device(device: str, *, what: str = "device") -> None:
    """Refuse a device that is not here.

    Raises:
        ConfigError: says what is missing.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{what} is {device!r}; expected cpu or cuda")
    if kind == "cuda" and not _torch().cuda.is_available():
        raise ConfigError(
            f"{what} is {device}, but torch sees no GPU\n  cure: install torch for CUDA and a driver, or set {what}=cpu"
        )


def searching(index: Any, embeddings: Any, recipe: IndexRecipe, device: str) -> VectorSearch:
    """The search of a bundle, on a device."""
    if device == "cpu":
        return VectorSearch(index, embeddings, recipe)
    return VectorSearch(on_gpu(index, recipe.kind), embeddings, recipe, DeviceVectors(embeddings, device))


def on_gpu(index: Any, kind: str) -> Any:
    """The index on the first GPU where FAISS can hold this kind there; itself otherwise.

    Raises:
        ConfigError: FAISS sees no GPU.
    """
    if not getattr(faiss, "get_num_gpus", int)():
        raise ConfigError(
            "device is cuda, but FAISS sees no GPU\n  cure: pip install 'towers[gpu]' in place of towers[cpu]"
        )
    if kind not in ON_GPU:
        return index
    untyped: Any = faiss
    return untyped.index_cpu_to_gpu(untyped.StandardGpuResources(), 0, index)


class DeviceVectors:
    """Embeddings that lie on a device, searched exactly.

    Args:
        embeddings: ``[N, D]``.
        device: ``cuda`` or ``cpu``.
        half: keep and multiply them in half precision, and score what is found again in single precision of the
            half-precision entries.

    Raises:
        ConfigError: the device is not here.
    """

    def __init__(self, embeddings: Any, device: str = "cuda", *, half: bool = False) -> None:
        check_device(device)
        torch = _torch()
        self.device, kind = device, torch.float16 if half else torch.float32
        n, dim = embeddings.shape
        self.vectors: Tensor = torch.empty((n, dim), dtype=kind, device=device)
        step = max(1, _BLOCK_BYTES // (4 * dim))
        for start in range(0, n, step):
            block = np.ascontiguousarray(embeddings[start : start + step], np.float32)
            self.vectors[start : start + step] = torch.from_numpy(block.copy()).to(device, kind)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None) -> Found:
        """The ``k`` best of all items, or of the given rows: as ``exact_search``.

        Args:
            queries: ``[Q, D]`` float32.
            k: results wanted.
            rows: eligible items; None: all.

        Returns:
            rows and scores ``[Q, min(k, len)]``, best first.
        """
        torch = _torch()
        eligible = None if rows is None else torch.from_numpy(np.array(rows, np.int64)).to(self.device)
        found, scores = self.search_here(torch.from_numpy(np.array(queries, np.float32)).to(self.device), k, eligible)
        if not found.shape[1]:
            return nothing(len(queries), 0)
        return found.cpu().numpy(), scores.cpu().numpy()

    def search_here(self, queries: Tensor, k: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same with tensors on the device: queries ``[Q, D]`` float32, rows ``[E]`` int64."""
        torch = _torch()
        n = len(self.vectors) if rows is None else len(rows)
        k, (asked, dim) = min(k, n), queries.shape
        spare = k if self.vectors.dtype == torch.float32 else min(n, k + k // 8 + 16)  # order is lost by rounding
        step = max(spare, _BLOCK_BYTES // (self.vectors.element_size() * dim + 4 * asked))
        mine = queries.to(self.vectors.dtype)
        best: Tensor | None = None
        at: Tensor | None = None
        for start in range(0, n, step):
            here = rows[start : start + step] if rows is not None else None
            block = self.vectors[start : start + step] if here is None else self.vectors.index_select(0, here)
            scores, column = top(mine @ block.T, min(spare, len(block)))
            place = column + start if here is None else here[column]
            if best is None or at is None:
                best, at = scores, place
                continue
            best, order = torch.cat([best, scores], 1).topk(min(spare, best.shape[1] + scores.shape[1]), 1)
            at = torch.cat([at, place], 1).gather(1, order)
        if best is None or at is None:
            return queries.new_zeros((asked, 0), dtype=torch.int64), queries.new_zeros((asked, 0))
        if self.vectors.dtype == torch.float32:
            return at, best
        again = torch.stack([self.vectors[r].float() @ q for q, r in zip(queries, at, strict=True)])
        best, order = again.topk(k, 1)
        return at.gather(1, order), best


def top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best columns of each row of ``[Q, n]``: scores and columns ``[Q, k]``, best first.

    Wide rows are folded into parts: the best of all are among the best of the parts, and many short rows keep a GPU
    busier than one long one.
    """
    torch = _torch()
    asked, n = scores.shape
    wide = max(_WIDE, 4 * k)
    if n <= 2 * wide:
        best, column = scores.topk(k, 1)
        return best, column
    whole = n // wide * wide
    best, column = scores[:, :whole].reshape(asked, -1, wide).topk(k, 2)
    column = column + torch.arange(0, whole, wide, device=scores.device)[None, :, None]
    best, column = best.flatten(1), column.flatten(1)
    if whole < n:
        rest, more = scores[:, whole:].topk(min(k, n - whole), 1)
        best, column = torch.cat([best, rest], 1), torch.cat([column, more + whole], 1)
    best, order = best.topk(k, 1)
    return best, column.gather(1, order)


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise ConfigError("search on a device needs torch\n  cure: pip install torch, or leave device=cpu") from e
    return torch
