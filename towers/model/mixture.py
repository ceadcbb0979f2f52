"""A second stage that is no dot product: a gated mixture of several.

Shapes: ``B`` queries, ``N`` candidates, ``D`` dim, ``P`` and ``R`` components of a query and of an item, ``K = P · R``
pairs of them, ``d`` width of a component.

    s(q, c) = Σ_k π_k(q, c) · ⟨q_p, c_r⟩ / τ        k = (p, r)        π = softmax(g(q) ⊙ h(c) + e(all ⟨q_p, c_r⟩))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from towers.errors import ConfigError


@dataclass(frozen=True)
class MixtureSettings:
    """Size of a mixture of logits.

    Attributes:
        query_parts: ``P``.
        item_parts: ``R``.
        width: ``d``.
        hidden: width of the gates' hidden layers.
        temperature: τ of the components' cosines.
    """

    query_parts: int = 4
    item_parts: int = 4
    width: int = 32
    hidden: int = 64
    temperature: float = 0.05


class MixtureOfLogits(nn.Module):
    """``K`` cosines between components of the two vectors, weighted by gates that look at both sides.

    "Revisiting Neural Retrieval on Accelerators" (Zhai et al., 2023): a dot product of width ``D`` is a logit matrix
    of rank ``D``, a mixture is not bounded so, and costs ``K`` products for each pair. Hence it only orders anew what
    the dot product retrieves; its components are made from the towers' vectors, so that nothing else has to be stored.

    Both are trained at once: the run's loss on the dot product, ``sampled_softmax`` over the same draw on the mixture,
    whose logits ``[B, N, K]`` are kept for the gradient: use a few hundred negatives. Use it where a few hundred
    candidates can be scored per request and the dot product has stopped to gain from more dimensions; it is neither
    exported nor searched by an index.

    Args:
        settings: see ``MixtureSettings``.
        dim: ``D``.

    Raises:
        ConfigError: a size below 1, or a temperature that is not positive.
    """

    def __init__(self, settings: MixtureSettings, dim: int) -> None:
        super().__init__()
        s = settings
        sizes = {"query_parts": s.query_parts, "item_parts": s.item_parts, "width": s.width, "hidden": s.hidden}
        if wrong := [f"model.mixture.{k} is {v}; set it to at least 1" for k, v in sizes.items() if v < 1]:
            raise ConfigError("\n".join(wrong))
        if not s.temperature > 0:
            raise ConfigError(f"model.mixture.temperature is {s.temperature}; set it above 0")
        self.settings = s
        pairs = s.query_parts * s.item_parts
        self.query, self.item = nn.Linear(dim, s.query_parts * s.width), nn.Linear(dim, s.item_parts * s.width)
        self.query_gate, self.item_gate = _gate(dim, s.hidden, pairs), _gate(dim, s.hidden, pairs)
        self.pair_gate = _gate(pairs, s.hidden, pairs)

    def shared(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Every query against every candidate.

        Args:
            query: ``[B, D]``.
            candidates: ``[N, D]``.

        Returns:
            ``[B, N]``, float32.
        """
        return self.own(query, candidates.unsqueeze(0))

    def own(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Every query against candidates of its own.

        Args:
            query: ``[B, D]``.
            candidates: ``[B, N, D]``, or ``[1, N, D]`` for all.

        Returns:
            ``[B, N]``, float32.
        """
        s = self.settings
        q = F.normalize(self.query(query).unflatten(-1, (s.query_parts, s.width)), dim=-1)  # [B, P, d]
        c = F.normalize(self.item(candidates).unflatten(-1, (s.item_parts, s.width)), dim=-1)  # [·, N, R, d]
        if len(c) == 1:
            cosines = torch.einsum("bpd,nrd->bnpr", q, c[0]).flatten(2)  # [B, N, K]
        else:
            cosines = torch.einsum("bpd,bnrd->bnpr", q, c).flatten(2)
        gate = self.query_gate(query).unsqueeze(1) * self.item_gate(candidates) + self.pair_gate(cosines)
        out: Tensor = (gate.softmax(-1) * cosines).sum(-1).float() / s.temperature
        return out


def _gate(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Reranked:
    """A scorer (``towers.evaluation.ranking``): what the dot product puts first, in the order of the mixture.

    Candidates that a query must not be shown take places among the ``n``, too: let ``n`` be larger than histories
    are long.

    Args:
        queries: ``[Q, D]`` query vectors.
        candidates: ``[N, D]`` candidate vectors on the same device.
        mixture: the second stage.
        n: candidates that the dot product retrieves for it.
    """

    def __init__(self, queries: Tensor, candidates: Tensor, mixture: MixtureOfLogits, n: int) -> None:
        self.queries, self.candidates, self.mixture, self.n = queries, candidates, mixture, min(n, len(candidates))

    @property
    def device(self) -> torch.device:
        """That of the vectors."""
        return self.candidates.device

    def __len__(self) -> int:
        """``Q``."""
        return len(self.queries)

    def write(self, queries: NDArray[np.int64], out: Tensor) -> None:
        """Scores of a block: the first ``n`` lie above all others, which keep their order."""
        query = self.queries[torch.from_numpy(queries).to(self.device)]
        out.copy_(query @ self.candidates.T)
        highest = out.amax(1, keepdim=True)
        top = out.topk(self.n, dim=1).indices  # [B, n]
        for part in torch.split(torch.arange(len(query), device=self.device), 64):  # [64, n, D] at once
            second = self.mixture.own(query[part], self.candidates[top[part]])
            above = second - second.amin(1, keepdim=True) + highest[part] + 1
            out[part] = out[part].scatter(1, top[part], above)
