"""The weights of blocks, learned on events that the blocks have not seen.

Shapes: ``Q`` users, ``L`` candidates of each, ``K`` blocks, ``P`` knots of popularity, ``I`` items.

    p(i | candidates of the user) ∝ exp( Σ_k w_k exp(a_k(n_i)) ⟨q_k, c_k⟩_i + b(n_i) )       n: training events

A closed form knows the events it was fitted to: on those its block looks far surer than it is, and a loss would give it
all the weight. Hence it is fitted twice: without the held-out events, where weights are learned, and with them, where
they are used. A few numbers carry over from one fit to the other; vectors, whose axes differ, do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import ConfigError
from towers.features import Ragged
from towers.model.popularity import basis

RIDGE = 1e-3  # of a and b at their knots
_ROUNDS = 50


@dataclass(frozen=True)
class StackingSettings:
    """How weights are learned.

    When to use it: two closed forms or more side by side. Source: Wolpert, "Stacked generalization", 1992; the loss is
    a conditional logit (McFadden, 1974) over the candidates that the blocks themselves put first, since an order among
    items that nobody would be shown is of no use.

    Attributes:
        share: of each user's training events, held out.
        users: asked about, at most.
        candidates: ``L``, the first ones by the weights at the start.
    """

    share: float = 0.3
    users: int = 6000
    candidates: int = 300

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.share < 1 or self.users < 1 or self.candidates < 2:
            raise ConfigError(
                f"model.stacking: share={self.share}, users={self.users}, candidates={self.candidates}; set share "
                "between 0 and 1, users to 1 or more, candidates to 2 or more"
            )


@dataclass(frozen=True)
class Lists:
    """Candidates of users with the scores of each block.

    Attributes:
        scores: ``[Q, L, K]``.
        events: ``[Q, L]`` training events of the candidates.
        wanted: ``[Q, L]`` bool, at least one for each user.
    """

    scores: Tensor
    events: Tensor
    wanted: Tensor


def lists(
    blocks: Sequence[tuple[Iterable[Tensor], Tensor]],
    weights: Tensor,
    events: Tensor,
    targets: Ragged,
    seen: Ragged,
    candidates: int,
) -> Lists:
    """The first candidates of each user, by the weighted sum; users without a target among them are left out.

    Args:
        blocks: of each its queries, ``[B, D_k]`` a batch, all in the same batches, and its candidates ``[I, D_k]``.
        weights: ``[K]`` at the start.
        events: ``[I]`` training events.
        targets: ``[Q]`` lists of items that were held out.
        seen: ``[Q]`` lists of the items of their histories, which are no candidates.
        candidates: ``L``; all if there are fewer items.
    """
    items = [c for _, c in blocks]
    depth, at = min(candidates, len(events)), 0
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for queries in zip(*(q for q, _ in blocks), strict=True):
        scores = torch.stack([q @ c.T for q, c in zip(queries, items, strict=True)], dim=-1)  # [B, I, K]
        total = scores @ weights
        n = len(total)
        total[_places(seen, at, n)] = -torch.inf
        wanted = torch.zeros(total.shape, dtype=torch.bool)
        wanted[_places(targets, at, n)] = True
        top = total.topk(depth, dim=1).indices
        mine = (wanted & total.isfinite()).gather(1, top)
        some = mine.any(1)
        parts.append((_gather(scores, top)[some], events[top][some], mine[some]))
        at += n
    return Lists(*(torch.cat(p) for p in zip(*parts, strict=True)))


class Stacked(NamedTuple):
    """What was learned."""

    weight: Tensor  # [K], above 0
    log_scale: Tensor  # [K, P]: a
    offset: Tensor  # [P]: b


def stack(found: Lists, weights: Tensor) -> Stacked:
    """The weights, scales and offsets under which the held-out items are likeliest; every user counts alike.

    Args:
        found: lists.
        weights: ``[K]`` to start from, above 0.

    Raises:
        ConfigError: no held-out item is among the candidates.
    """
    if not len(found.wanted):
        raise ConfigError(
            "model.stacking: no held-out item is among the candidates; raise model.stacking.candidates, or set "
            "model.stacking=null"
        )
    near = basis(found.events)  # [Q, L, P]
    log_weight = weights.log().clone().requires_grad_()
    log_scale = torch.zeros(len(weights), near.shape[-1], requires_grad=True)
    offset = torch.zeros(near.shape[-1], requires_grad=True)
    share = found.wanted / found.wanted.sum(1, keepdim=True)
    optimiser = torch.optim.LBFGS([log_weight, log_scale, offset], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        scale = (log_weight + near @ log_scale.T).exp()  # [Q, L, K]
        logits = (found.scores * scale).sum(-1) + near @ offset
        loss = -(logits.log_softmax(1) * share).sum(1).mean()
        loss = loss + RIDGE * (offset.square().sum() + log_scale.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Stacked(log_weight.detach().exp(), log_scale.detach(), offset.detach())


def _places(lists: Ragged, start: int, n: int) -> tuple[Tensor, Tensor]:
    """Rows and items of the lists ``start : start + n``, the first in row 0."""
    offsets = np.asarray(lists.offsets)[start : start + n + 1]
    rows: NDArray[np.int64] = np.repeat(np.arange(n), np.diff(offsets))
    return torch.from_numpy(rows), torch.from_numpy(np.asarray(lists.values)[offsets[0] : offsets[-1]])


def _gather(scores: Tensor, top: Tensor) -> Tensor:
    """``[B, I, K]`` at ``[B, L]`` → ``[B, L, K]``."""
    return scores.gather(1, top.unsqueeze(-1).expand(-1, -1, scores.shape[-1]))
