"""One query for each kind of action in training, one vector when serving.

Shapes: ``B`` queries, ``A`` actions, ``r`` rank, ``D`` dim.

    q_a = q + U_a V_a q          s_a = ⟨q_a, candidate⟩ / temperature          logit_a = scale_a s_a + bias_a
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.errors import ConfigError


@dataclass(frozen=True)
class HeadSettings:
    """Multi-task heads on the query.

    Attributes:
        rank: ``r`` of each action's adaptor; 0: one query for all actions, which only their calibrations tell apart.
        calibrated: give each action a scale and a bias of its logits.
        serve: weight of each action's query in the served vector, in the order of the data config's ``actions``; None:
            all alike. An action that is never a positive keeps the common query.
    """

    rank: int = 8
    calibrated: bool = False
    serve: Sequence[float] | None = None


class PlattScaling(nn.Module):
    """Scores as log-odds of an action, ``scale_a s + bias_a``, learned with the towers.

    A scale says how much a point of score means for an action, a bias how rare the action is; neither changes the order
    of items. Use it with ``loss=binary`` or ``generalised_binary``, where the logit is to be a log-odds; a softmax sees
    the scale (a temperature for each action) and no bias.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999).

    Args:
        n_actions: ``A``.
    """

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(n_actions))
        self.bias = nn.Parameter(torch.zeros(n_actions))

    def forward(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """``[B]`` action codes → ``[B]`` scales, which are positive, and ``[B]`` biases."""
        return self.log_scale[action].exp(), self.bias[action]


class Heads(nn.Module):
    """``q_a = q + U_a V_a q``: one tower for what view, save and apply have in common, few numbers for the rest.

    An adaptor of low rank (Hu et al., "LoRA", 2021) for each action; it starts at zero, hence all heads start alike.
    An example trains the head of its own action, weighted by the action's label weight. Served is ``Σ_a w_a q_a`` (of
    unit vectors, for a cosine): its inner product with an item is the weighted sum of what the heads say, so that one
    retrieval vector and one index serve all tasks. Calibrations are not served: a scale and a bias of an action leave
    the order of its items as it is.

    Use it where several actions are positives (``data.actions.apply.weight=2``) and rare ones, such as applications,
    differ in taste from views. With one positive action there is nothing to tell apart.

    Args:
        settings: see ``HeadSettings``.
        dim: ``D``.
        n_actions: ``A``.

    Raises:
        ConfigError: a rank or weights that make no heads.
    """

    def __init__(self, settings: HeadSettings, dim: int, n_actions: int) -> None:
        super().__init__()
        weights = list(settings.serve) if settings.serve is not None else [1.0] * n_actions
        if settings.rank < (0 if settings.calibrated else 1):
            raise ConfigError(
                f"model.heads.rank is {settings.rank}; set it to at least 1, or to 0 with model.heads.calibrated=true"
            )
        if len(weights) != n_actions or min(weights) < 0 or not sum(weights) > 0:
            raise ConfigError(
                f"model.heads.serve is {weights}; give a weight of at least 0 for each of the {n_actions} actions of "
                "the data config, in their order, and one above 0"
            )
        self.rank = settings.rank
        self.calibration = PlattScaling(n_actions) if settings.calibrated else None
        self.down = nn.Parameter(torch.randn(n_actions, dim, settings.rank) / math.sqrt(dim))
        self.up = nn.Parameter(torch.zeros(n_actions, settings.rank, dim))
        self.register_buffer("serve", torch.tensor(weights) / sum(weights), persistent=False)
        self.serve: Tensor

    def of_action(self, query: Tensor, action: Tensor) -> Tensor:
        """Each query by the head of its action.

        Args:
            query: ``[B, D]``.
            action: ``[B]`` int64 action codes.

        Returns:
            ``[B, D]``.
        """
        if not self.rank:
            return query
        return query + (self.every(query) * F.one_hot(action, len(self.serve)).unsqueeze(-1)).sum(1)

    def served(self, query: Tensor, cosine: bool) -> Tensor:
        """The weighted sum of all heads' queries.

        Args:
            query: ``[B, D]``.
            cosine: sum unit vectors, so that cosines are what is weighed.

        Returns:
            ``[B, D]``.
        """
        if not self.rank:
            return query
        heads = query.unsqueeze(1) + self.every(query)
        heads = F.normalize(heads, dim=-1) if cosine else heads
        return (heads * self.serve.unsqueeze(-1)).sum(1)

    def every(self, query: Tensor) -> Tensor:
        """``[B, A, D]``: what each head adds to a query."""
        return (query.unsqueeze(0) @ self.down @ self.up).transpose(0, 1)
