"""Exact ranking of a task's candidates for its queries, in blocks on the device of the scores.

Shapes: ``Q`` queries, ``N`` candidates, ``D`` dimensions, ``K`` places, ``B`` queries of a block,
``W`` columns of the score buffer (``N`` and a little padding), ``T`` targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import DataError
from towers.evaluation.eligibility import Clock, Columns, Exclusions
from towers.evaluation.task import Task
from towers.evaluation.topk import padded, top_k
from towers.features import Ragged

# On a processor large enough for the matmul, small enough for one page-faulted buffer. A card reads all candidates for
# each block and starts some thirty kernels: it wants blocks of many queries.
_BUFFER_BYTES, _CARD_BYTES = 128 << 20, 2 << 30
_COMPARED_BYTES = 32 << 20  # rows copied at once to find the ranks of targets


@dataclass(frozen=True)
class Ranking:
    """The best candidates of every query, and where its targets stand.

    Attributes:
        items: ``[Q, K]`` int64 item rows, the best first; ``-1`` where fewer than ``K`` are eligible.
        scores: ``[Q, K]`` float32; ``-inf`` where there is no item.
        target_ranks: aligned with ``Task.targets``: the rank, from 1, of every target among the
            eligible candidates of its query, 0 if it is not eligible. None unless asked for.
        eligible: ``[Q]`` int64, eligible candidates of each query. None unless ranks were asked for.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    target_ranks: Ragged | None = None
    eligible: NDArray[np.int64] | None = None


class Scorer(Protocol):
    """Scores of a task's queries against all of its candidates, made a block at a time."""

    @property
    def device(self) -> torch.device:
        """Where the scores are written and ranked."""
        ...

    def __len__(self) -> int:
        """Number of queries."""
        ...

    def write(self, queries: NDArray[np.int64], out: Tensor) -> None:
        """Fill a block.

        Args:
            queries: ``[B]`` numbers of queries, in any order.
            out: ``[B, N]`` float32, to be overwritten; rows need not be adjacent in memory.
        """
        ...


class InnerProducts:
    """The scorer of a two-tower model: query vectors × candidate vectors.

    Args:
        queries: ``[Q, D]`` float32 vectors.
        candidates: ``[N, D]`` float32 vectors on the same device.
    """

    def __init__(self, queries: Tensor, candidates: Tensor) -> None:
        self.queries, self.candidates = queries, candidates

    @property
    def device(self) -> torch.device:
        """That of the vectors."""
        return self.candidates.device

    def __len__(self) -> int:
        """``Q``."""
        return len(self.queries)

    def write(self, queries: NDArray[np.int64], out: Tensor) -> None:
        """One matrix product, of ``[q]`` rows of the queries into ``[q, N]``."""
        with _full_precision():
            torch.mm(self.queries[torch.from_numpy(queries).to(self.device)], self.candidates.T, out=out)


@torch.no_grad()
def rank(
    queries: Tensor | Iterable[Tensor],
    candidates: Tensor,
    task: Task,
    k: int,
    *,
    block: int | None = None,
    target_ranks: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Ranking:
    """Rank every eligible candidate of a task for each of its queries by inner product.

    Equal scores are ordered by candidate column, the lower first (as far as the scores are equal to
    the last bit: another block size or device may round a product differently).

    Args:
        queries: ``[Q, D]`` query vectors, or blocks of them in query order.
        candidates: ``[N, D]`` candidate vectors in the order of ``task.candidates``; the ranking runs on
            their device. A model with cosine similarity has normalised both.
        task: the candidates, exclusions and times.
        k: how many places to fill.
        block: queries scored at once; by default what keeps the scores near 128 MB, on a card near 2 GB.
        target_ranks: also find the rank of every target (for AUC, and MRR without a cut-off).
        progress: called with the number of queries finished after each block.

    Raises:
        DataError: a vector is not finite, or so long that scores may overflow.
        ValueError: shapes disagree with the task, there are no candidates, or ``k < 1``.
    """
    n = len(task.candidates)
    blocks = [queries] if isinstance(queries, Tensor) else list(queries)
    vectors = torch.cat([q.to(candidates.device, torch.float32) for q in blocks]) if blocks else candidates.new_empty(0)
    candidates = candidates.float()
    if (
        len(vectors) != len(task)
        or candidates.shape != (n, *vectors.shape[1:])
        or candidates.ndim != 2
        or min(n, k) < 1
    ):
        raise ValueError(
            f"queries {list(vectors.shape)}, candidates {list(candidates.shape)}, k={k}; task {task.name!r} "
            f"has {len(task)} queries and {n} candidates"
        )
    _check(vectors, candidates, task)
    scorer = InnerProducts(vectors, candidates)
    return rank_scores(scorer, task, k, block=block, target_ranks=target_ranks, progress=progress)


@torch.no_grad()
def rank_scores(
    scorer: Scorer,
    task: Task,
    k: int,
    *,
    block: int | None = None,
    target_ranks: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Ranking:
    """Rank every eligible candidate of a task for each of its queries by any scorer; otherwise as ``rank``.

    Args:
        scorer: scores the task's queries against its candidates.
        task: the candidates, exclusions and times.
        k: how many places to fill.
        block: queries scored at once; by default what keeps the scores near 128 MB, on a card near 2 GB.
        target_ranks: also find the rank of every target.
        progress: called with the number of queries finished after each block.

    Raises:
        DataError: a score is NaN or infinite.
        ValueError: the scorer has other queries than the task, there are no candidates, or ``k < 1``.
    """
    n = len(task.candidates)
    if len(scorer) != len(task) or min(n, k) < 1:
        raise ValueError(
            f"scores of {len(scorer)} queries, k={k}; task {task.name!r} has {len(task)} queries and {n} candidates"
        )
    exclusions = Exclusions(task)
    targets = Columns(task.candidates).pairs(task.targets)
    clock = None
    order = np.arange(len(task))
    if task.time is not None and (task.posted is not None or task.expires is not None):
        clock = Clock(task, scorer.device)
        order = np.argsort(task.time, kind="stable")
    width = padded(max(n, k))
    held = _BUFFER_BYTES if scorer.device.type == "cpu" else _CARD_BYTES
    block = block or max(16, held // (4 * width))
    buffer = torch.full((min(block, len(task)), width), -math.inf, device=scorer.device)
    items = np.full((len(task), k), -1, np.int64)
    scores = np.full((len(task), k), -np.inf, np.float32)
    ranks = np.zeros(len(task.targets.values), np.int64)
    eligible = np.zeros(len(task), np.int64)

    for start in range(0, len(task), block):
        rows = order[start : start + block]
        block_scores = buffer[: len(rows)]
        scorer.write(rows, block_scores[:, :n])
        exclusions.apply(block_scores, rows)
        if clock is not None:
            clock.apply(block_scores, rows)
        best, columns = (x.cpu().numpy() for x in top_k(block_scores, k))
        if not (best < np.inf).all():  # NaN sorts first, so whatever is no number is among the best
            raise DataError(
                "scores that are NaN or infinite",
                where=f"task {task.name!r}, query {rows[(~(best < np.inf)).any(axis=1)][0]}",
                cure="look for NaN in the data or the settings of the scorer",
            )
        found = best > -np.inf
        items[rows] = np.where(found, task.candidates[np.where(found, columns, 0)], -1)
        scores[rows] = best
        if target_ranks:
            place, pairs = targets.of(rows)
            ranks[targets.source[pairs]] = _ranks(block_scores, place, targets.columns[pairs])
            eligible[rows] = _count(torch.gt, block_scores, -math.inf).cpu().numpy()
        if progress is not None:
            progress(len(rows))
    if not target_ranks:
        return Ranking(items, scores)
    return Ranking(items, scores, Ragged(task.targets.offsets, ranks), eligible)


def _ranks(scores: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[P]`` ranks from 1 of entries ``(rows, columns)`` within their rows of ``[B, W]``; 0 for ``-inf``.

    An entry's rank is one more than the number of entries before it: the greater ones, and equal ones
    in lower columns.
    """
    out = np.zeros(len(rows), np.int64)
    step = max(1, _COMPARED_BYTES // (4 * scores.shape[1]))
    position = torch.arange(scores.shape[1], device=scores.device)
    for start in range(0, len(rows), step):
        row = torch.from_numpy(rows[start : start + step]).to(scores.device)
        column = torch.from_numpy(columns[start : start + step]).to(scores.device)[:, None]
        whole = scores.index_select(0, row)
        own = whole.gather(1, column)
        before = _count(torch.gt, whole, own)
        tied = (_count(torch.eq, whole, own) > 1) & (own[:, 0] > -math.inf)
        if tied.any():
            earlier = (whole[tied] == own[tied]) & (position < column[tied])
            before[tied] += earlier.sum(dim=1)
        out[start : start + step] = torch.where(own[:, 0] > -math.inf, before + 1, 0).cpu().numpy()
    return out


def _count(compare: Callable[..., Tensor], x: Tensor, y: Tensor | float) -> Tensor:
    """``[B]`` int64: how many of ``[B, W]`` entries compare true.

    On a CPU, torch adds up floats several times faster than booleans; the count is exact below 2^24.
    """
    exact = torch.float32 if x.shape[1] < 1 << 24 else torch.float64
    return compare(x, y, out=torch.empty_like(x, dtype=exact)).sum(dim=1).long()


def _check(queries: Tensor, candidates: Tensor, task: Task) -> None:
    """Refuse vectors that could give a score that is no number.

    No score is greater than the longest query times the longest candidate (Cauchy-Schwarz), and looking
    at the ``Q + N`` lengths is much cheaper than looking at the ``Q × N`` scores.
    """
    bound = 1.0
    for side, vectors in (("query", queries), ("candidate", candidates)):
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
        if not (finite := norms.isfinite()).all():
            bad = int((~finite).nonzero()[0])
            raise DataError(
                f"{int((~finite).sum())} of {len(vectors)} {side} vectors are not finite",
                where=f"task {task.name!r}, {side} {bad}",
                cure="training has diverged: lower the learning rate, or clip gradients",
            )
        bound *= float(norms.max()) if len(norms) else 0.0
    if bound > torch.finfo(torch.float32).max:
        raise DataError(
            "vectors so long that scores overflow to infinity",
            where=f"task {task.name!r}",
            cure="normalise the towers' output, or lower the learning rate",
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """Score in float32 even where training allows TF32 or bfloat16 products: ranks hang on small differences."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
