"""The first queries of a bundle, asked before anybody waits for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.index.retriever import Retriever

_PAGE = 4096  # bytes; the smallest there are, larger pages are touched more than once


def warm(retriever: Retriever, queries: int = 32) -> int:
    """Map the pages of the arrays, ask the golden queries, then known users, by the way of any request.

    The replay at the opening asks for vectors and searches; a request passes the eligibility at its moment, the
    exclusions and the planner too, and those build what they need when they are first asked.

    Args:
        retriever: newly opened.
        queries: known users to be asked, evenly spread.

    Returns:
        How many queries were asked.

    Raises:
        TowersError: a query that the bundle ought to answer fails.
    """
    bundle = retriever.bundle
    touch(getattr(bundle.search.embeddings, "codes", bundle.search.embeddings))
    if bundle.history_inputs is not None:
        touch(bundle.history_inputs)
    k = min(100, len(retriever))
    golden = bundle.golden["queries"]
    for query in golden:
        retriever.recommend(query["user"], k, at=query["at"], context=query.get("context"))
    if bundle.known is None:
        return len(golden)
    rows = np.unique(np.linspace(0, len(bundle.known.ids) - 1, queries).astype(np.int64))
    for user in bundle.known.ids.take(rows).to_pylist():
        retriever.recommend(user, k)
    return len(golden) + len(rows)


def touch(array: NDArray[Any]) -> None:
    """Read one byte of each page, so that memory-mapped data are in memory, and in the page table of this process."""
    if array.size and array.flags.c_contiguous:
        np.bitwise_or.reduce(array.reshape(-1).view(np.uint8)[::_PAGE])
