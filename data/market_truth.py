"""What is true of a synthetic job market, and the oracle that ranks by it.

See ``data.market`` for the story. Shapes: ``M`` members, ``J`` jobs, ``G`` groups of members and ``C``
cells of jobs (both are (field, place) pairs), ``D`` dimensions of the planted towers, ``n`` rows of
a call, ``Q`` queries, ``N`` candidates. Times are microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000  # microseconds
TRUTH = "truth/truth.npz"
_BLOCK = 256  # queries scored at a time: [256, 100k] float64 is 200 MB


@dataclass(frozen=True)
class Truth:
    """Everything that decides who is shown, and who opens, what.

    Attributes:
        member_id: ``[M]`` external ids (text).
        job_id: ``[J]`` external ids.
        group: ``[M]`` each member's (field, place) pair.
        cell: ``[J]`` each job's (field, place) pair.
        affinity: ``[G, C]`` how much the logging policy likes a cell for a group; positive.
        weight: ``[J]`` popularity weight of a job within the policy. Whole numbers, so that sums over
            live jobs are exact in whatever order they are taken.
        posted: ``[J]`` first microsecond at which a job is live.
        expires: ``[J]`` first microsecond at which it no longer is.
        member: ``[M, D]`` planted member tower.
        job: ``[J, D]`` planted job tower; preference is the dot product of the two.
        bias: ``[]`` log-odds of opening a job of preference 0.
    """

    member_id: NDArray[np.str_]
    job_id: Ints
    group: Ints
    cell: Ints
    affinity: Floats
    weight: Ints
    posted: Ints
    expires: Ints
    member: NDArray[np.float32]
    job: NDArray[np.float32]
    bias: Floats

    def save(self, folder: Path) -> None:
        """Write ``truth/truth.npz`` (plain arrays, no pickle) into a market's folder."""
        path = folder / TRUTH
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read what ``save`` wrote.

        Raises:
            DataError: there is no truth, or it is not one that this version wrote.
        """
        path = folder / TRUTH
        cure = "generate the market again"
        if not path.is_file():
            raise DataError("no synthetic market here: the truth is missing", where=str(path), cure=cure)
        with np.load(path, allow_pickle=False) as arrays:
            if missing := {f.name for f in fields(cls)} - set(arrays):
                raise DataError(f"the truth lacks {sorted(missing)}", where=str(path), cure=cure)
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def live(self, jobs: Ints, times: Ints) -> NDArray[np.bool_]:
        """``[n]`` whether each of ``[n]`` jobs is live at its time (the arguments broadcast)."""
        return (self.posted[jobs] <= times) & (times < self.expires[jobs])

    def view_probability(self, members: Ints, jobs: Ints) -> Floats:
        """``[n]`` P(view | shown) of ``[n]`` (member row, job row) pairs: ``sigmoid(bias + U_m · V_j)``."""
        return sigmoid(self.bias + np.einsum("nd,nd->n", self.member[members], self.job[jobs]).astype(np.float64))

    def live_weight(self, times: Ints) -> Floats:
        """``[n, C]`` popularity weight of all jobs of a cell that are live at each of ``[n]`` times.

        Weight posted by then minus weight expired by then; whole numbers, hence exactly 0 when empty.
        """
        cells = self.affinity.shape[1]
        total = np.zeros((len(times), cells))
        for stamps, sign in ((self.posted, 1), (self.expires, -1)):
            order = np.lexsort((stamps, self.cell))
            running = np.concatenate([[0], np.cumsum(self.weight[order])])
            first = np.searchsorted(self.cell[order], np.arange(cells + 1))
            for c in range(cells):
                lo, hi = first[c], first[c + 1]
                by_then = lo + np.searchsorted(stamps[order[lo:hi]], times, side="right")
                total[:, c] += sign * (running[by_then] - running[lo])
        return total

    def log_normaliser(self, groups: Ints, times: Ints) -> Floats:
        """``[n]`` log of the policy's normaliser ``Z = Σ_c affinity[g, c] · live weight of c at that time``.

        Live weights only change when a job is posted or expires, so that they are computed once for
        each such interval that occurs.
        """
        changes = np.sort(np.concatenate([self.posted, self.expires]))
        _, first, interval = np.unique(
            np.searchsorted(changes, times, side="right"), return_index=True, return_inverse=True
        )
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.live_weight(times[first]) @ self.affinity.T)[interval, groups])

    def propensity(self, groups: Ints, jobs: Ints, times: Ints) -> Floats:
        """``[n]`` P(shown job | member's group, time); 0 where the job is not live.

        Args:
            groups: ``[n]`` of the members.
            jobs: ``[n]`` rows.
            times: ``[n]`` microseconds UTC.
        """
        log = np.log(self.affinity[groups, self.cell[jobs]]) + np.log(self.weight[jobs])
        return np.where(self.live(jobs, times), np.exp(log - self.log_normaliser(groups, times)), 0.0)

    def draw(self, rng: np.random.Generator, groups: Ints, times: Ints) -> Ints:
        """``[n]`` jobs drawn by the logging policy for ``[n]`` impressions; times should lie close together.

        A cell, then a job of the cell, are drawn as if every job that is live at some time of the
        block were live throughout, and drawn again where the job was not: what is accepted follows the
        policy exactly.
        """
        if not len(times):
            return np.empty(0, np.int64)
        pool = np.flatnonzero((self.posted <= times.max()) & (times.min() < self.expires))
        pool = pool[np.argsort(self.cell[pool], kind="stable")]
        cells = np.arange(self.affinity.shape[1])
        first = np.searchsorted(self.cell[pool], np.append(cells, len(cells)))
        running = np.concatenate([[0], np.cumsum(self.weight[pool])])
        mass = np.diff(running[first])
        # The rows' distribution functions one after the other: row g lies in [g, g + 1].
        steps = np.cumsum(self.affinity * mass, axis=1)
        steps = steps / steps[:, -1:] + np.arange(len(steps))[:, None]
        jobs = np.full(len(times), -1, np.int64)
        todo = np.arange(len(times))
        while len(todo):
            u = np.minimum(rng.random(len(todo)), 1 - 2.0**-40)  # g + u must not round up to g + 1
            cell = np.searchsorted(steps.ravel(), groups[todo] + u, side="right") % len(cells)
            ticket = running[first[cell]] + np.floor(rng.random(len(todo)) * mass[cell]).astype(np.int64)
            jobs[todo] = pool[np.searchsorted(running, ticket, side="right") - 1]
            todo = todo[~self.live(jobs[todo], times[todo])]
        return jobs


class Oracle:
    """The best ranking that the logs allow, for "share of the best achievable".

    Make one with ``Oracle.open``. Evaluation divides the model's recall by that of this ranking, over
    the same queries and candidates.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._members, self._jobs = pa.array(truth.member_id), pa.array(truth.job_id)

    @classmethod
    def open(cls, folder: Path | str) -> Oracle:
        """The oracle of a generated market.

        Raises:
            DataError: the folder holds no market.
        """
        return cls(Truth.load(Path(folder)))

    def scores(
        self, member_ids: Sequence[str] | pa.Array, job_ids: Sequence[int] | Ints | pa.Array, times_us: Ints
    ) -> NDArray[np.float32]:
        """``[Q, N]`` log of the expected rate at which each job becomes a view of that member at that time.

        ``log P(shown | member, time) + log P(view | shown)``, minus infinity where the job is not live.
        The first term belongs to it because a logged view must pass through the logging policy: the next
        logged view of a member at a time is distributed exactly as ``exp`` of this score, normalised
        over the live jobs not viewed before. Ranking by it therefore maximises expected recall on
        logged views (not satisfaction: for that, rank by the second term alone).

        Args:
            member_ids: ``[Q]`` external ids.
            job_ids: ``[N]`` external ids.
            times_us: ``[Q]`` microseconds since the epoch, UTC.

        Raises:
            DataError: an id that this market does not have.
        """
        t = self._truth
        members, jobs = _rows(self._members, member_ids, "member"), _rows(self._jobs, job_ids, "job")
        times = np.asarray(times_us, np.int64)
        log_affinity, log_weight = np.log(t.affinity[:, t.cell[jobs]]), np.log(t.weight[jobs])  # [G, N], [N]
        log_z = t.log_normaliser(t.group[members], times)
        out = np.empty((len(members), len(jobs)), np.float32)
        for start in range(0, len(members), _BLOCK):
            rows = slice(start, start + _BLOCK)
            m = members[rows]
            preference = t.bias + t.member[m] @ t.job[jobs].T
            # log sigmoid(x) = -log(1 + exp(-x)), without overflow.
            score = log_affinity[t.group[m]] + log_weight - log_z[rows, None] - np.logaddexp(0.0, -preference)
            out[rows] = np.where(t.live(jobs, times[rows, None]), score, -np.inf)
        return out


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """``1 / (1 + exp(-x))``, elementwise."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _rows(known: pa.Array, ids: Any, what: str) -> Ints:
    """Row numbers of external ids."""
    wanted = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, known.type)
    rows = pc.index_in(wanted.cast(known.type), value_set=known)
    if rows.null_count:
        unknown = wanted.filter(pc.is_null(rows))
        raise DataError(
            f"{rows.null_count} {what} ids that this market does not have, {unknown[0]} for one",
            cure="ask about the market that the dataset was prepared from",
        )
    return np.asarray(rows.to_numpy(zero_copy_only=False), np.int64)
