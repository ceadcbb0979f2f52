"""Hard negatives, mined from the model that is being trained.

Shapes: ``B`` examples, ``M`` mined candidates for each, ``K`` neighbours of an item, ``I`` items, ``S`` the support,
``P`` the pool that is searched, ``D`` dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from towers.errors import ConfigError
from towers.model.negatives import MakeSampler, Negatives, Sampler

BLOCK = 1024  # items whose neighbours are searched at once


class Mined(Sampler):
    """Another sampler's draw for all, and for each example some jobs that the present model finds near its positive.

    Negatives from the current model are those of ANCE (Xiong et al., "Approximate Nearest Neighbor Negative
    Contrastive Learning for Dense Text Retrieval", 2021), found from the positive's side, so that one table serves all
    users: ``M`` of the positive's ``K`` nearest jobs. They are mixed in and never alone (Huang et al., "Embedding-based
    Retrieval in Facebook Search", 2020, section 6.1): the neighbours are one stratum, drawn with probability ``M / K``,
    and the base sampler's draw stands for all other jobs. Both with their log q, hence the softmax is estimated
    without bias, and with less variance where it matters. A loss that is not corrected (BPR, binary) sees them as more,
    harder negatives instead.

    The curriculum: none before ``start``, then their number grows to ``n`` over ``ramp`` batches; neighbours are
    searched again every ``every`` batches. The search is exact over a random pool of ``P`` jobs: ``S × P × D``
    multiplications, seconds for 50,000 jobs. The table is part of the checkpoint, so that a resumed run continues with
    the very same one.

    Use it after a model has learned the coarse picture (``start`` at about an epoch), where jobs of one kind must be
    told apart; if reposts of a job are items of their own, let ``skip`` leave the nearest out. With clicks, whose
    negatives are noisy, expect little.

    Args:
        item_events: ``[I]`` training events.
        base: makes the sampler that is mixed in.
        n: ``M`` at the end of the ramp.
        nearest: ``K``.
        skip: so many of the very nearest are left out, as likely to be right as the positive.
        start: first batch with mined negatives.
        ramp: batches over which their number grows from 1 to ``n``.
        every: batches between two searches.
        pool: ``P``; the whole support if it is no larger.

    Raises:
        ConfigError: a number is too small.
    """

    def __init__(
        self,
        item_events: Tensor,
        base: MakeSampler,
        n: int = 8,
        nearest: int = 32,
        skip: int = 0,
        start: int = 500,
        ramp: int = 2000,
        every: int = 500,
        pool: int = 50_000,
    ) -> None:
        super().__init__()
        least = {"n": (n, 1), "nearest": (nearest, n), "skip": (skip, 0), "start": (start, 0), "ramp": (ramp, 1)}
        least |= {"every": (every, 1), "pool": (pool, 2)}
        if wrong := [f"negatives.{k} is {v}; set it to at least {low}" for k, (v, low) in least.items() if v < low]:
            raise ConfigError("\n".join(wrong))
        self.base = base(item_events)
        self.holds_positives = self.base.holds_positives
        self.start, self.ramp, self.every, self.pool, self.skip = start, ramp, every, pool, skip
        support = item_events.nonzero().squeeze(1)
        k = max(0, min(nearest, min(pool, len(support)) - 1 - skip))
        self.n, self.now = min(n, k), 0
        self.register_buffer("support", support, persistent=False)
        self.register_buffer("neighbours", torch.full((len(item_events), k), -1, dtype=torch.int32))
        self.support: Tensor
        self.neighbours: Tensor

    def refresh(self, step: int, embed: Callable[[Tensor], Tensor]) -> None:
        """Set the number of mined candidates; search again if it is due."""
        since = step - self.start
        self.now = min(self.n, 1 + since * self.n // self.ramp) if since >= 0 else 0
        if self.now and since % self.every == 0:
            pool = self.support
            if len(pool) > self.pool:
                pool = pool[torch.randperm(len(pool), device=pool.device)[: self.pool]]
            found = neighbours(
                embed(self.support), self.support, embed(pool), pool, self.neighbours.shape[1], self.skip
            )
            self.neighbours[self.support] = found.int()

    def forward(self, positives: Tensor, generator: Generator | None = None) -> Negatives:
        """The base sampler's draw, and ``[B, M]`` candidates of each example's own."""
        draw: Negatives = self.base(positives, generator)
        if not self.now:
            return draw
        near = self.neighbours[positives].long()  # [B, K]
        keys = torch.rand(near.shape, device=near.device, generator=generator)
        own = near.gather(1, keys.argsort(1)[:, : self.now])
        log_q = torch.full(own.shape, math.log(self.now / near.shape[1]), device=own.device)
        return draw._replace(own=own, own_log_q=log_q, covered=near)

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """Not for a mixture: the examples' own candidates would be lost.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("mined negatives cannot be a part of mixed ones; give the mixture to them as negatives.base")

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``: the base sampler's."""
        return self.base.inclusion(rows, batch_size)


def neighbours(vectors: Tensor, rows: Tensor, pool: Tensor, pool_rows: Tensor, k: int, skip: int = 0) -> Tensor:
    """The ``k`` nearest of a pool for each item, by inner product and without itself, after leaving out ``skip``.

    Args:
        vectors: ``[S, D]``.
        rows: ``[S]`` item rows.
        pool: ``[P, D]``.
        pool_rows: ``[P]`` item rows, ``P > k + skip``.
        k: ``K``.
        skip: so many of the nearest are left out.

    Returns:
        ``[S, K]`` int64 item rows, the nearest first.
    """
    out = []
    for part, own in zip(torch.split(vectors, BLOCK), torch.split(rows, BLOCK), strict=True):
        scores = part @ pool.T
        scores.masked_fill_(own.unsqueeze(1) == pool_rows, float("-inf"))
        out.append(pool_rows[scores.topk(k + skip, dim=1).indices[:, skip:]])
    return torch.cat(out)
