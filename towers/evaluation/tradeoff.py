"""What new items cost known ones as their scores are shifted: the curve behind a calibration.

Shapes: ``Q`` queries, ``N`` candidates, ``D`` dimensions, ``k`` places of a list.

    score = a ⟨query, candidate⟩ + b  for a new item,      ⟨query, candidate⟩  for a known one

Neither ``a > 0`` nor ``b`` changes an order among new items, or among known ones: the k best of each kind and the
scores of the targets say all there is to know about every calibration, and the N candidates are scored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import DataError
from towers.evaluation.eligibility import Columns, Exclusions
from towers.evaluation.task import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One calibration and what it does, as means over the queries that have such targets.

    Attributes:
        scale: ``a``.
        offset: ``b``.
        joint: recall@k of all targets.
        new: recall@k of targets on new items.
        known: recall@k of targets on known items.
        share: of the k places that new items take.
    """

    scale: float
    offset: float
    joint: float
    new: float
    known: float
    share: float


class Tradeoff:
    """A task's scores, kept so far as a calibration can make use of them.

    Args:
        task: with targets on new and on known items, all of them among the candidates; without a clock.
        queries: ``[Q, D]``, or some rows of it (``rows``).
        candidates: ``[N, D]``, not calibrated.
        new: ``[N]`` bool, which candidates training never saw.
        k: places of a list.
        rows: ``[Q']`` the task's queries to look at, ascending; None: all. Some thousand are enough for a curve.
        block: queries scored at once.

    Raises:
        DataError: targets of one kind are missing.
    """

    def __init__(
        self,
        task: Task,
        queries: Tensor,
        candidates: Tensor,
        new: NDArray[np.bool_],
        *,
        k: int = 20,
        rows: NDArray[np.int64] | None = None,
        block: int = 64,
    ) -> None:
        rows = np.arange(len(task)) if rows is None else rows
        exclusions, targets = Exclusions(task), Columns(task.candidates).pairs(task.targets)
        kinds = [torch.from_numpy(np.flatnonzero(~new)), torch.from_numpy(np.flatnonzero(new))]
        best: list[list[NDArray[np.float32]]] = [[], []]
        found, owner, column = [], [], []
        for start in range(0, len(rows), block):
            here = rows[start : start + block]
            scores = queries[torch.from_numpy(here)] @ candidates.T
            exclusions.apply(scores, here)
            place, pairs = targets.of(here)
            owner.append(start + place)
            column.append(targets.columns[pairs])
            found.append(scores[torch.from_numpy(place), torch.from_numpy(column[-1])].numpy())
            for lists, columns in zip(best, kinds, strict=True):
                of_kind = scores.index_select(1, columns)
                lists.append(of_kind.topk(min(k, of_kind.shape[1]), dim=1).values.numpy())
        self.k, self.queries = k, len(rows)
        self._known, self._new = (np.concatenate(x).astype(np.float64) for x in best)
        self._target, self._owner = np.concatenate(found).astype(np.float64), np.concatenate(owner)
        self._is_new = new[np.concatenate(column)]
        if not 0 < self._is_new.sum() < len(self._is_new):
            raise DataError(
                f"{int(self._is_new.sum())} of {len(self._is_new)} targets are on new items; a curve needs both",
                where=f"task {task.name!r}",
                cure="give the data config a task with targets of both, e.g. data=xing16_coldjob_mixed",
            )

    def at(self, scale: float = 1.0, offset: float = 0.0) -> Point:
        """One calibration. A score that equals the last of the k counts as found."""
        new = scale * self._new + offset
        both = np.concatenate([self._known, new], axis=1)
        k = min(self.k, both.shape[1])
        last = -np.partition(-both, k - 1, axis=1)[:, k - 1]  # [Q]
        target = np.where(self._is_new, scale * self._target + offset, self._target)
        hit = (target >= last[self._owner]) & (target > -np.inf)
        joint, on_new, on_known = (
            self._recall(hit, of) for of in (np.ones(len(hit), bool), self._is_new, ~self._is_new)
        )
        share = float((new >= last[:, None]).sum(axis=1).mean() / k)
        return Point(scale, offset, joint, on_new, on_known, share)

    def curve(self, scale: float = 1.0, points: int = 121) -> list[Point]:
        """From offsets at which hardly a new item is seen to such at which hardly a known one is."""
        ends = self._known[:, -1] - scale * self._new[:, 0], self._known[:, 0] - scale * self._new[:, -1]  # [Q] each
        low, high = (np.quantile(x[np.isfinite(x)], q) for x, q in zip(ends, (0.01, 0.95), strict=True))
        return [self.at(scale, float(b)) for b in np.linspace(low, high, points)]

    def _recall(self, hit: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
        """Mean over the queries that have such targets."""
        count = np.bincount(self._owner[of], minlength=self.queries)
        hits = np.bincount(self._owner[of & hit], minlength=self.queries)
        return float((hits[count > 0] / count[count > 0]).mean())


def choose(curves: Sequence[Sequence[Point]], keep: float) -> Point:
    """The point of the largest joint recall among those that keep enough of the known items' recall.

    Joint recall alone would not do: wherever the new items of a validation are few and wanted, it is largest where
    known ones have lost much of theirs.

    Args:
        curves: for one or several scales.
        keep: share of the largest recall of known items on any of the curves, 0 to 1.
    """
    points = [p for curve in curves for p in curve]
    least = keep * max(p.known for p in points)
    return max((p for p in points if p.known >= least), key=lambda p: p.joint)
