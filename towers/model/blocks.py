"""Several two-tower models side by side in one vector: a hybrid is still one dot product.

Shapes: ``B`` users, ``N`` items, ``D = Σ D_k`` width, ``H = Σ H_k`` width of a history input, ``K`` blocks.

    query = [w_1 q_1 … w_K q_K]      candidate = [c_1 … c_K]      ⟨query, candidate⟩ = Σ w_k ⟨q_k, c_k⟩

With a calibration, or stacked, both have a dimension more for each, outside training (see
``calibration``, ``popularity``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FeatureInfo
from towers.model.calibration import Calibration, CalibrationSettings
from towers.model.history import HistoryInputs
from towers.model.popularity import Popularity
from towers.model.similarity import Similarity
from towers.model.stacking import StackingSettings
from towers.model.two_tower import RetrievalModel, TwoTower


class Blocks(RetrievalModel):
    """Two-tower models that are trained, evaluated, exported and served as one.

    When to use it: where methods see different things (an id its clicks, content its words, a closed form both) and a
    sum of their scores beats each of them. Unlike rank fusion it costs one search; its price is the width of the
    vectors.

    Args:
        user_infos: fitted user features.
        item_infos: fitted item features.
        context_infos: fitted context features.
        n_actions: number of action codes in histories.
        blocks: what makes each block, by name; the arguments are those above.
        weights: the weight of each block at the start, by default 1; learned from there.
        balanced: weights are those of scores with a spread of 1, to which scores are brought once ``init`` has
            made them (see ``closed_form.balance``): the same weights then suit other data and widths.
        apart: blocks that stay as their ``init`` made them and join outside training only. The others are trained as if
            they were alone: what a closed form knows of the training events already would leave them nothing to learn.
        calibration: of new items against known ones, outside training; None: as the blocks score them.
        stacking: ``init`` learns the weights, and what popularity says, on events that it holds out (see
            ``stacking``); None: they stay as set.
        similarity: of the whole, a dot product, and its temperature that of training. A block may be a cosine of its
            own; its temperature is not used.

    Raises:
        ConfigError: no blocks, weights that are not positive or name no block, or a cosine of the whole; ``apart`` that
            names no block, or all; a calibration without an id to know new items by; a block that learns a temperature
            of its own, or has a mixture or calibrated heads.
    """

    has_prefixes = False  # the first dimensions are the first block's alone

    def __init__(
        self,
        user_infos: Sequence[FeatureInfo],
        item_infos: Sequence[FeatureInfo],
        context_infos: Sequence[FeatureInfo] = (),
        n_actions: int = 1,
        *,
        blocks: Mapping[str, Callable[..., TwoTower]],
        weights: Mapping[str, float] | None = None,
        balanced: bool = False,
        apart: Sequence[str] = (),
        calibration: CalibrationSettings | None = None,
        stacking: StackingSettings | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        super().__init__()
        weights, self.similarity = weights or {}, similarity or Similarity()
        if not blocks:
            raise ConfigError(
                "model.blocks is empty; name some in an experiment's defaults: /model/hybrid@model.blocks.NAME"
            )
        if wrong := [k for k, w in weights.items() if k not in blocks or not w > 0]:
            raise ConfigError(f"model.weights {wrong}: set weights above 0 for the blocks {list(blocks)}")
        if not set(apart) < set(blocks):
            raise ConfigError(f"model.apart {list(apart)}: name some of the blocks {list(blocks)}, and not all")
        if self.similarity.kind != "dot":
            raise ConfigError("blocks are compared by a dot product; set model.similarity.kind=dot")
        self.names = tuple(blocks)
        self.blocks = nn.ModuleList(make(user_infos, item_infos, context_infos, n_actions) for make in blocks.values())
        if idle := [n for n in blocks if self.block(n).similarity.log_temperature is not None]:
            raise ConfigError(
                f"model.blocks {idle} learn a temperature, which blocks share; leave their "
                "similarity.learn_temperature false, and set model.similarity.learn_temperature=true"
            )
        if idle := [n for n in blocks if self.block(n).mixture or ((h := self.block(n).heads) and h.calibration)]:
            raise ConfigError(
                f"model.blocks {idle} have a mixture or calibrated heads, which score one vector; leave them out"
            )
        self.log_weight = nn.Parameter(torch.tensor([float(weights.get(n, 1.0)) for n in blocks]).log())
        self.balanced, self.apart = balanced, frozenset(apart)
        for name in self.apart:
            self.block(name).requires_grad_(False)
        parts = self.parts
        self.n_actions = n_actions
        self.dim = sum(p.dim for p in parts) + (calibration is not None) + (stacking is not None)
        self.history_dim = sum(p.history_dim for p in parts)
        self.user_infos = _union(p.user_infos for p in parts)
        self.item_infos = _union(p.item_infos for p in parts)
        self.context_infos = _union(p.context_infos for p in parts)
        self.calibration = None if calibration is None else Calibration(calibration, self.item_infos)
        self.stacking = stacking
        self.popularity = None if stacking is None else Popularity(self.item_infos, len(parts))

    @property
    def parts(self) -> list[TwoTower]:
        """All blocks, in order."""
        return [self.block(name) for name in self.names]

    def block(self, name: str) -> TwoTower:
        """A block by name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.names:
            raise ConfigError(f"init names the block {name!r}; there are {list(self.names)}")
        out = self.blocks[self.names.index(name)]
        assert isinstance(out, TwoTower)
        return out

    def embed_users(
        self,
        features: Mapping[str, Tensor],
        history: HistoryInputs | None = None,
        context: Mapping[str, Tensor] | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """``[B, D]``: the blocks' queries, weighted."""
        parts = self._parts()
        widths = [p.history_dim for _, p in parts]
        seen = [None] * len(parts) if history is None else [
            history._replace(vectors=v) if v.shape[-1] else None for v in torch.split(history.vectors, widths, dim=-1)
        ]  # fmt: skip
        out = [
            self.log_weight[k].exp()
            * p.embed_users(_some(features, p.user_features), h, _some(context, p.context_features), action)
            for (k, p), h in zip(parts, seen, strict=True)
        ]
        query = torch.cat(out, dim=-1)
        if self.calibration is not None and not self.training:
            query = self.calibration.users(query)
        if self.popularity is not None and not self.training:
            query = self.popularity.users(query)
        return query

    def embed_items(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, D]``: the blocks' candidates."""
        out = [p.embed_items(_some(features, p.item_features)) for _, p in self._parts()]
        if self.popularity is not None and not self.training:
            out = self.popularity.scaled(out, features)
        vectors = torch.cat(out, dim=-1)
        if self.calibration is not None and not self.training:
            vectors = self.calibration.items(vectors, features)
        if self.popularity is not None and not self.training:
            vectors = self.popularity.items(vectors, features)
        return vectors

    def history_inputs(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, H]``: what the blocks' items contribute."""
        parts = [p for _, p in self._parts() if p.history_dim]
        if not parts:  # those that read histories are apart
            return self.log_weight.new_zeros(len(next(iter(features.values()))), 0)
        return torch.cat([p.history_inputs(_some(features, p.item_features)) for p in parts], dim=-1)

    def normalise(self, vectors: Tensor) -> Tensor:
        """Each block's part by its own similarity. What calibration or stacking has scaled has no length of its own."""
        if self.calibration is not None or self.popularity is not None:
            return vectors
        parts = [self.block(n) for n in self.names]
        split = torch.split(vectors, [p.dim for p in parts], dim=-1)
        return torch.cat([p.similarity.normalise(v) for p, v in zip(parts, split, strict=True)], dim=-1)

    def _parts(self) -> list[tuple[int, TwoTower]]:
        """The blocks of the present mode, each with its place."""
        here = [n for n in self.names if not (self.training and n in self.apart)]
        return [(self.names.index(n), self.block(n)) for n in here]


def _some(features: Mapping[str, Tensor] | None, names: Sequence[str]) -> dict[str, Tensor]:
    return {n: (features or {})[n] for n in names}


def _union(parts: Iterable[tuple[FeatureInfo, ...]]) -> tuple[FeatureInfo, ...]:
    """The features that any block reads, each once."""
    return tuple({i.name: i for infos in parts for i in infos}.values())
