"""The catalogue's embeddings, streamed out of a trained model for the index and the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.model.embedder import Embedder


def item_blocks(embedder: Embedder, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
    """Item embeddings, block by block, so that no more than a block is in memory at once.

    Args:
        embedder: the trained model with its feature tables.
        rows: ``[N]`` item rows, by default the whole catalogue.

    Yields:
        ``[n, D]`` float32, in the order of ``rows``.
    """
    for block in embedder.item_blocks(rows):
        yield _array(block)


def write_blocks(blocks: Iterable[NDArray[np.float32]], n: int, path: Path) -> NDArray[np.float32]:
    """Write embeddings as they come and open them memory-mapped, so that a catalogue may be larger than memory.

    Args:
        blocks: ``[n, D]`` float32, of together ``n`` rows.
        n: items.
        path: a new ``.npy`` file.

    Returns:
        ``[N, D]`` float32, read-only.

    Raises:
        ConfigError: there is nothing to write, or not as much as was said.
    """
    written = 0
    with path.open("xb") as f:
        for block in blocks:
            if not written:
                header = {"descr": "<f4", "fortran_order": False, "shape": (n, block.shape[1])}
                np.lib.format.write_array_header_1_0(f, header)
            np.ascontiguousarray(block, "<f4").tofile(f)
            written += len(block)
    if not n or written != n:
        raise ConfigError(f"{written} embeddings for {n} items; the catalogue is empty, or changed in between")
    out: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return out


def item_embeddings(embedder: Embedder, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """``[N, D]`` float32: ``item_blocks`` in one array."""
    return np.concatenate(list(item_blocks(embedder, rows)))


def map_history(embedder: Embedder, path: Path) -> NDArray[np.float32] | None:
    """``[I, H]`` float32: what each item contributes to a history, memory-mapped; the embedder reads it there too.

    Args:
        embedder: the trained model with its feature tables.
        path: a new ``.npy`` file.

    Returns:
        None if the model reads no histories.
    """
    if not embedder.model.history_dim:
        return None
    out = write_blocks(map(_array, embedder.history_blocks()), len(embedder.items), path)
    embedder.keep_history(torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)))  # torch wants to own it
    return out


def query_embeddings(embedder: Embedder, batches: Any) -> NDArray[np.float32]:
    """``[Q, D]`` float32 embeddings of batches of queries, in their order."""
    return np.concatenate([_array(block) for block in embedder.embed_queries(batches)])


def _array(block: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(block.cpu().numpy(), dtype=np.float32)
