"""Which candidates stand for the whole catalogue in a step, and how probable each of them was.

Shapes: ``B`` examples, ``N`` sampled candidates (differs from step to step where duplicates are merged),
``I`` items, ``S`` the support: items with training events.

The contract. A draw is a set of *distinct* rows, and ``log_q`` is the logarithm of each row's probability of
being in such a draw (its inclusion probability π). Then, whatever the sampler (Horvitz and Thompson, 1952),

    Σ_{j ∈ draw} f(j) / π_j     is an unbiased estimate of     Σ_{j ∈ support} f(j),

and with ``f(j) = exp(s_j)`` it is the softmax's denominator: ``logits.correct_log_q`` subtracts ``log π``.
Leaving terms out by a rule that does not look at the draw (the user's other positives, dead jobs) estimates
the sum without them, still unbiased, because no π changes. Hence samplers know nothing of users and times.

The support holds what training may push down: never an item without training events, such as a held-out
cold job, whose vector would only ever be pushed away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from towers.errors import ConfigError, DataError

MakeSampler = Callable[[Tensor], "Sampler"]  # training events of each item [I] -> its sampler


class Negatives(NamedTuple):
    """A draw: candidates for all examples, and perhaps some that stand against one example only.

    An example's own candidates are drawn from its ``covered`` rows, and what the batch shares stands for all others:
    two strata, each with its own probabilities, so that their sum is unbiased too.
    """

    rows: Tensor  # [N] int64, distinct item rows
    log_q: Tensor  # [N] float32, log of their inclusion probabilities
    own: Tensor | None = None  # [B, M] int64 item rows, -1 where there is none
    own_log_q: Tensor | None = None  # [B, M] float32
    covered: Tensor | None = None  # [B, K] int64 item rows, -1 where there is none


class Sampler(nn.Module):
    """Draws candidates for a batch. A module only so that its arrays follow the model to the device.

    Attributes:
        holds_positives: whether every draw holds all positives of the batch.
    """

    holds_positives = False

    def refresh(self, step: int, embed: Callable[[Tensor], Tensor]) -> None:
        """Called before every draw, for samplers that look at the model or change with time.

        Args:
            step: batches before this one.
            embed: gives the ``[n, D]`` candidate vectors of ``[n]`` item rows with the present weights.
        """

    def forward(self, positives: Tensor, generator: Generator | None = None) -> Negatives:
        """A draw with its log-probabilities.

        Args:
            positives: ``[B]`` int64, the batch's positive item rows.
            generator: by default torch's global one.
        """
        rows = self.draw(positives, generator)
        return Negatives(rows, self.log_q(rows, len(positives)))

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[N]`` distinct item rows."""
        raise NotImplementedError

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]`` float64: the probability of each given row to be in a draw for a batch of this size."""
        raise NotImplementedError

    def log_q(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]`` float32: logarithm of ``inclusion``."""
        return self.inclusion(rows, batch_size).log().float()


class InBatch(Sampler):
    """The other examples' positives: free of charge, since they are embedded anyway, and drawn by popularity.

    An item that has a share ``p`` of the training events is among the ``B - 1`` other examples with probability
    ``1 - (1 - p)^(B-1)``. (Its own example does not count: there, the item is the positive and masked as a
    negative.) Batches of an epoch are drawn without replacement; the difference is of order ``B / events``.

    Use it with large batches; below about a thousand examples mix in ``Uniform``, or rare items are hardly
    ever pushed down.
    """

    holds_positives = True

    def __init__(self, item_events: Tensor) -> None:
        super().__init__()
        self.register_buffer("p", _shares(item_events.double()), persistent=False)
        self.p: Tensor

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[N]``: the batch's items, each once."""
        return _distinct(positives)

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``, see above."""
        return _ever(self.p[rows], max(batch_size - 1, 1))


class CrossBatch(Sampler):
    """The positives of this batch and of the batches before it: in-batch negatives of a batch that is larger.

    A first-in, first-out memory of item rows ("Cross-Batch Negative Sampling", Wang et al., 2021). Rows are remembered
    and not vectors: they are embedded again with the present weights, so that nothing is stale. Like ``InBatch`` with
    ``remembered + B`` examples: ``π = 1 - (1 - p)^(remembered + B - 1)``.

    Use it where memory or the number of examples limits the batch and in-batch negatives are wanted; where embedding an
    item is dear (long texts), the batch is the better place. The memory is part of the checkpoint.

    Args:
        item_events: ``[I]`` training events.
        n: events that are remembered.

    Raises:
        ConfigError: ``n`` is below 1.
    """

    holds_positives = True

    def __init__(self, item_events: Tensor, n: int = 8192) -> None:
        super().__init__()
        _positive("n", n)
        self.register_buffer("p", _shares(item_events.double()), persistent=False)
        self.register_buffer("memory", torch.full((n,), -1, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # positives ever remembered
        self.p: Tensor
        self.memory: Tensor
        self.seen: Tensor
        self.remembered = 0  # positives of earlier batches that the last draw held

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[N]``: the items of this batch and of the memory, each once; then this batch is remembered."""
        n, seen = len(self.memory), int(self.seen)
        self.remembered = min(seen, n)
        rows = _distinct(torch.cat([positives, self.memory[: self.remembered]]))
        last = positives[-n:]
        self.memory[(seen + torch.arange(len(last), device=last.device)) % n] = last
        self.seen += len(last)
        return rows

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``, see above, for the memory that the last draw held."""
        return _ever(self.p[rows], max(self.remembered + batch_size - 1, 1))


class Uniform(Sampler):
    """Items with equal probabilities, without replacement.

    The support is cut into ``n`` strata of equal size (to within one) and each gives one item: exactly ``n``
    distinct rows in O(n), whatever the size of the catalogue, and ``π = 1 / size of the stratum``.

    Args:
        item_events: ``[I]`` training events.
        n: rows in a draw; all of them if there are fewer.

    Raises:
        ConfigError: ``n`` is below 1.
        DataError: no item has a training event.
    """

    def __init__(self, item_events: Tensor, n: int = 1024) -> None:
        super().__init__()
        _positive("n", n)
        support = _support(item_events)
        size = len(support)
        n = min(n, size)
        edges = torch.arange(n + 1, device=support.device) * size // n
        widths = edges.diff()
        pi = torch.zeros(len(item_events), dtype=torch.float64, device=support.device)
        pi[support] = (1.0 / widths.double()).repeat_interleave(widths)
        for name, value in {"support": support, "start": edges[:-1], "width": widths, "pi": pi}.items():
            self.register_buffer(name, value, persistent=False)
        self.support: Tensor
        self.start: Tensor
        self.width: Tensor
        self.pi: Tensor

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[n]``: one row of each stratum."""
        u = torch.rand(len(self.start), dtype=torch.float64, device=self.start.device, generator=generator)
        return self.support[self.start + (u * self.width).long()]

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``, see above."""
        return self.pi[rows]


class Popularity(Sampler):
    """``n`` independent draws with probability ∝ events^power, duplicates merged: ``π = 1 - (1 - p)^n``.

    Power 1 resembles in-batch negatives without being tied to the batch, 0.75 is word2vec's (Mikolov et al.,
    2013), 0 is uniform. Popular items are the hard negatives; their log q keeps them from being pushed below
    their due.

    Args:
        item_events: ``[I]`` training events.
        n: draws; a few fewer rows.
        power: see above.

    Raises:
        ConfigError: ``n`` is below 1.
        DataError: no item has a training event.
    """

    def __init__(self, item_events: Tensor, n: int = 1024, power: float = 0.75) -> None:
        super().__init__()
        _positive("n", n)
        self.n = n
        support = _support(item_events)
        events = item_events.double()
        p = _shares(torch.where(events > 0, events.clamp_min(1e-300) ** power, 0.0))
        for name, value in {"support": support, "p": p, "cumulative": p[support].cumsum(0)}.items():
            self.register_buffer(name, value, persistent=False)
        self.support: Tensor
        self.p: Tensor
        self.cumulative: Tensor

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[N]``, ``N ≤ n``."""
        u = torch.rand(self.n, dtype=torch.float64, device=self.cumulative.device, generator=generator)
        place = torch.searchsorted(self.cumulative, u * self.cumulative[-1], right=True)
        return _distinct(self.support[place.clamp(max=len(self.support) - 1)])

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``, see above."""
        return _ever(self.p[rows], self.n)


class Mixed(Sampler):
    """The union of several samplers' draws: ``π = 1 - Π_k (1 - π_k)``, since they draw independently.

    In-batch with uniform negatives is mixed negative sampling (Yang et al., "Mixed Negative Sampling for
    Learning Two-tower Neural Networks in Recommendations", 2020).

    Args:
        item_events: ``[I]`` training events.
        samplers: what makes the parts.

    Raises:
        ConfigError: there are no parts.
    """

    def __init__(self, item_events: Tensor, samplers: Sequence[MakeSampler]) -> None:
        super().__init__()
        if not samplers:
            raise ConfigError("mixed negatives of nothing; list at least one sampler under `samplers`")
        self.parts = nn.ModuleList(make(item_events) for make in samplers)
        self.holds_positives = any(part.holds_positives for part in self._parts())

    def _parts(self) -> list[Sampler]:
        return [part for part in self.parts if isinstance(part, Sampler)]

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[N]``: the rows of all parts, each once."""
        return _distinct(torch.cat([part.draw(positives, generator) for part in self._parts()]))

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]``, see above."""
        absent = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        for part in self._parts():
            absent = absent * (1.0 - part.inclusion(rows, batch_size))
        return 1.0 - absent


class Full(Sampler):
    """The whole support, every time: the exact softmax, for catalogues that fit in a step (some ten thousand items).

    Raises:
        DataError: no item has a training event.
    """

    holds_positives = True

    def __init__(self, item_events: Tensor) -> None:
        super().__init__()
        self.register_buffer("support", _support(item_events), persistent=False)
        self.support: Tensor

    def draw(self, positives: Tensor, generator: Generator | None = None) -> Tensor:
        """``[S]``."""
        return self.support

    def inclusion(self, rows: Tensor, batch_size: int) -> Tensor:
        """``[n]`` ones."""
        return torch.ones(len(rows), dtype=torch.float64, device=rows.device)


def _ever(p: Tensor, draws: int) -> Tensor:
    """``1 - (1 - p)^draws``, without the cancellation that small ``p`` would suffer."""
    return -torch.expm1(draws * torch.log1p(-p))


def _distinct(rows: Tensor) -> Tensor:
    out: Tensor = torch.unique(rows)
    return out


def _shares(x: Tensor) -> Tensor:
    return x / x.sum()


def _support(item_events: Tensor) -> Tensor:
    support = item_events.nonzero().squeeze(1)
    if not len(support):
        raise DataError("no item has a training event", where="items", cure="check the split rule: training is empty")
    return support


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"negatives.{name} is {value}; set it to at least 1")
