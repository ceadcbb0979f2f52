"""What an item's number of events says, beside what a user wants: a scale for each block, and an offset.

Shapes: ``B`` users, ``N`` items, ``K`` blocks, ``D_k`` their widths, ``P`` knots, ``V`` ids.

    score = Σ_k exp(a_k(n)) ⟨q_k, c_k⟩ + b(n)       a, b: piecewise linear in log2(1 + n),  n: training events
    query' = [q_1 … q_K, 1]                         candidate' = [exp(a_1(n)) c_1 … exp(a_K(n)) c_K, b(n)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FIRST, FeatureInfo, Kind

KNOTS = 11  # 0, 1, 3, 7 … 1,023 events; as 1,023 beyond


class Popularity(nn.Module):
    """Scales and offsets by the number of training events; they change nothing until something sets them.

    When to use it: with closed forms. A ridge shrinks the vector of an item with three clicks more than that of one
    with fifty, so that a strong match with a rare item scores like a weak one with a popular one. Functions of the
    number and not free numbers for each item, because what is learned on some events then holds for all.

    Args:
        item_infos: the item features that the model reads; the item's own id has the counts.
        n_blocks: ``K``.

    Raises:
        ConfigError: there is no id with counts.
    """

    def __init__(self, item_infos: Sequence[FeatureInfo], n_blocks: int) -> None:
        super().__init__()
        ids = [i for i in item_infos if i.kind is Kind.ID and i.counts is not None]
        if not ids:
            raise ConfigError("offsets by popularity need an item id; do not exclude it in model.item of every block")
        info = max(ids, key=lambda i: i.cardinality)  # an employer's id has fewer values
        counts = info.training_counts()
        assert counts is not None
        self.id = info.name
        self.log_scale = nn.Parameter(torch.zeros(n_blocks, KNOTS), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(KNOTS), requires_grad=False)
        events = torch.tensor(counts, dtype=torch.float32)
        events[:FIRST] = 0  # a new item has no events
        self.register_buffer("events", events, persistent=False)
        self.events: Tensor

    def users(self, queries: Tensor) -> Tensor:
        """``[B, D]`` → ``[B, D + 1]``."""
        return torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)

    def scaled(self, candidates: Sequence[Tensor], features: Mapping[str, Tensor]) -> list[Tensor]:
        """``[N, D_k]`` of each block, with the ``[N]`` encoded ids among the features → the same, scaled."""
        log_scale = self._of(self.log_scale, features)  # [N, K]
        return [c * log_scale[:, k : k + 1].exp() for k, c in enumerate(candidates)]

    def items(self, candidates: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, D]`` → ``[N, D + 1]``: with the offset."""
        return torch.cat([candidates, self._of(self.offset.unsqueeze(0), features)], dim=1)

    def _of(self, knots: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """``[·, P]`` values at the knots → ``[N, ·]`` of the items."""
        table: Tensor = basis(self.events) @ knots.T  # [V, ·]
        return table[features[self.id]]


def basis(events: Tensor) -> Tensor:
    """How near numbers of events are to each knot, on the scale ``log2(1 + n)``.

    >>> basis(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))[:, :3].round(decimals=3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.415, 0.585]]

    Args:
        events: ``[n]``, 0 or more.

    Returns:
        ``[n, K]``; rows sum to 1.
    """
    place = torch.log2(1.0 + events).clamp(max=KNOTS - 1.0).unsqueeze(-1)
    return (1.0 - (place - torch.arange(KNOTS, device=events.device)).abs()).clamp(min=0.0)
