"""A tower: encoders → fusion → body → projection.

Shapes: ``n`` rows, ``F`` width after fusion, ``D`` output width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from towers.features import OOV, FeatureInfo, Kind
from towers.model.encoders import Encoder, EncoderSettings, encoder


@dataclass(frozen=True)
class TowerSettings:
    """The shape of a tower.

    Attributes:
        include: names or kinds of the features it reads; None: all.
        exclude: names or kinds that it does not read.
        encoders: how features become vectors.
        fusion: ``sum`` of the encoders' vectors, or ``concat`` and a linear layer.
        width: ``F`` after ``concat``; a sum keeps the width of its encoders.
        body: ``mlp``: residual blocks; ``dense``: the hidden layers of a plain perceptron, of which the linear layer
            of ``concat`` begins the first; ``cross``: DCN-v2 layers; ``none``: nothing, and no projection if the
            widths agree. ``fusion: sum`` with ``body: none`` over ids alone is matrix factorisation.
        layers: of the body.
        rank: of the matrices of ``cross``; None: full. A quarter of the width costs half and loses little.
        dropout: in the body, and after fusion.
        id_dropout: share of training rows whose id is replaced by "unknown", so that one model learns to
            score the known by their ids and the new by their content (Volkovs, Yu and Poutanen,
            "DropoutNet", 2017).
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    encoders: EncoderSettings = field(default_factory=EncoderSettings)
    fusion: Literal["sum", "concat"] = "concat"
    width: int = 128
    body: Literal["none", "mlp", "dense", "cross"] = "mlp"
    layers: int = 1
    rank: int | None = None
    dropout: float = 0.0
    id_dropout: float = 0.0

    def reads(self, info: FeatureInfo) -> bool:
        """Whether the tower reads a feature."""
        names = {info.name, info.kind.value}
        return (self.include is None or bool(names & set(self.include))) and not names & set(self.exclude)


class Inputs(nn.Module):
    """Encoders and fusion: features, and vectors made elsewhere (a pooled history), → ``[n, F]``.

    Args:
        infos: the features read.
        settings: see ``TowerSettings``.
        dim: embedding width.
        extra: widths of the vectors made elsewhere.
        shared: encoders of the other tower that these features take, by name.
    """

    def __init__(
        self,
        infos: Sequence[FeatureInfo],
        settings: TowerSettings,
        dim: int,
        extra: Sequence[int] = (),
        shared: Mapping[str, Encoder] | None = None,
    ):
        super().__init__()
        given = shared or {}
        self.names = tuple(i.name for i in infos)
        self.ids = frozenset(i.name for i in infos if i.kind is Kind.ID)
        self.id_dropout = settings.id_dropout
        # A prefix, because `ModuleDict` refuses names such as "type"; no dots, because they mean nesting.
        self.encoders = nn.ModuleDict(
            {_key(i.name): given.get(i.name) or encoder(i, dim, settings.encoders) for i in infos}
        )
        widths = [e.dim for e in self.encoders.values() if isinstance(e, Encoder)] + list(extra)
        self.linear = nn.Linear(sum(widths), settings.width) if settings.fusion == "concat" else None
        self.dim = settings.width if self.linear is not None else widths[0]

    def forward(self, features: Mapping[str, Tensor], extra: Sequence[Tensor] = ()) -> Tensor:
        """Features by name, and ``[n, ·]`` vectors → ``[n, F]``."""
        vectors = [self.encoders[_key(name)](self._drop(name, features[name])) for name in self.names]
        vectors.extend(extra)
        if self.linear is None:
            return torch.stack(vectors).sum(0) if len(vectors) > 1 else vectors[0]
        out: Tensor = self.linear(torch.cat(vectors, dim=-1))
        return out

    @staticmethod
    def key(name: str) -> str:
        """Where the encoder of a feature stands in a state dict, below these inputs."""
        return f"encoders.{_key(name)}"

    def encoder(self, name: str) -> Encoder:
        """The encoder of a feature."""
        out = self.encoders[_key(name)]
        assert isinstance(out, Encoder)
        return out

    def _drop(self, name: str, x: Tensor) -> Tensor:
        if not self.training or not self.id_dropout or name not in self.ids:
            return x
        return x.masked_fill(torch.rand(x.shape, device=x.device) < self.id_dropout, OOV)


def _key(name: str) -> str:
    return "feature_" + name.replace(".", "_")


class Tower(nn.Module):
    """Fused inputs → embeddings (not normalised yet: see ``Similarity``).

    Args:
        inputs: ``F``, the width after fusion.
        dim: ``D``.
        settings: see ``TowerSettings``.
    """

    def __init__(self, inputs: int, dim: int, settings: TowerSettings) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.dropout)
        layers = settings.layers if settings.body != "none" else 0
        self.body = nn.ModuleList(_layer(inputs, settings, first=i == 0) for i in range(layers))
        self.project = nn.Linear(inputs, dim) if self.body or inputs != dim else nn.Identity()

    def forward(self, fused: Tensor) -> Tensor:
        """``[n, F]`` → ``[n, D]``."""
        x0 = x = self.dropout(fused)
        for layer in self.body:
            x = layer(x, x0)
        out: Tensor = self.project(x)
        return out


def _layer(dim: int, settings: TowerSettings, *, first: bool) -> nn.Module:
    """One layer of a body."""
    if settings.body == "mlp":
        return ResidualBlock(dim, settings.dropout)
    if settings.body == "dense":
        return DenseLayer(dim, settings.dropout, linear=not first)
    return CrossLayer(dim, settings.dropout, settings.rank)


class DenseLayer(nn.Module):
    """``gelu(W x)``; without a ``W`` of its own where fusion's stands before it.

    When to use it: where speed counts most, or to hold against the literature's "128-64": ``width: 128``, ``dim: 64``.

    Source: the towers of Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", 2016.
    """

    def __init__(self, dim: int, dropout: float, *, linear: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(*([nn.Linear(dim, dim)] if linear else []), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """``[n, F]`` → ``[n, F]``; the tower's input ``x0`` is not used."""
        out: Tensor = self.inner(x)
        return out


class ResidualBlock(nn.Module):
    """``x + W₂ gelu(W₁ norm(x))``; ``W₂`` starts at zero, hence the tower starts linear."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), last := nn.Linear(dim, dim)
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """``[n, F]`` → ``[n, F]``; the tower's input ``x0`` is not used."""
        out: Tensor = x + self.inner(x)
        return out


class CrossLayer(nn.Module):
    """``x₀ ⊙ (W x + b) + x``: one more degree of feature crosses; ``W = U Vᵀ`` if a rank is given.

    When to use it: many categorical features whose combinations matter, and examples enough to learn them.

    Source: Wang et al., "DCN V2: Improved Deep & Cross Network", 2021, equations 1 and 2.

    Args:
        dim: ``F``.
        dropout: of the factor that ``x₀`` is multiplied by.
        rank: columns of ``U`` and ``V``; None: W is a full matrix.
    """

    def __init__(self, dim: int, dropout: float, rank: int | None = None) -> None:
        super().__init__()
        self.linear: nn.Module
        if rank is None:
            self.linear = nn.Linear(dim, dim)
        else:
            self.linear = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """``[n, F]`` → ``[n, F]``."""
        out: Tensor = x0 * self.dropout(self.linear(x)) + x
        return out
