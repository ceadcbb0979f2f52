"""LightGCN: users and items as the mean of what they are, their neighbours are, and their neighbours' neighbours.

Shapes: ``U`` users, ``I`` items, ``B`` queries, ``N`` items of a batch, ``D`` dim, ``L`` layers.

    E⁰ = [users; items]        Eᵏ = Â Eᵏ⁻¹        E = (E⁰ + … + Eᴸ) / (L + 1)        Â = D^-½ A D^-½

A user whom the graph does not know is folded in: one whose own vector is zero, and who changes none of her neighbours.
Her layers are then sums over her history, and hence so is she:

    u = d_u^-½ Σ_{i ∈ history} h_i,        h_i = d_i^-½ (E⁰_i + … + Eᴸ⁻¹_i) / (L + 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from towers.errors import ConfigError
from towers.features import FIRST, FeatureInfo, Kind
from towers.model.closed_form.factors import own_id
from towers.model.closed_form.interactions import Interactions
from towers.model.graph import Graph, inverse_root, normalised
from towers.model.history import HistoryInputs
from towers.model.similarity import Similarity
from towers.model.tables import FeatureTable
from towers.model.tower import Inputs, TowerSettings
from towers.model.two_tower import RetrievalModel


class Propagated(NamedTuple):
    """All vectors, by row number."""

    users: Tensor  # [U, D]
    items: Tensor  # [I, D]
    history: Tensor  # [I, D] what items contribute to a user whom the graph does not know


class LightGCN(RetrievalModel):
    """Tables of ids (and content, if wanted), propagated over the graph of the training events.

    When to use it: clicks without content, known users and items, and time to train: each step propagates the whole
    graph, whatever the batch, so that large batches are cheap; some tens of epochs are needed from random tables.
    With few clicks per item it shares them among neighbours, where matrix factorisation has nothing to go by.

    New items have no neighbours: theirs is the share of ``E⁰`` that their content gives, and zero if only ids are read.
    New users are folded in by their history. The graph is that of the training events; a refit makes it anew.

    Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", 2020.

    Args:
        user_infos: fitted user features.
        item_infos: fitted item features.
        context_infos: fitted context features; none is read.
        n_actions: number of action codes in histories.
        dim: ``D``.
        layers: ``L``; 0 is matrix factorisation.
        weighted: edges weigh as the label weights of their actions do, instead of all alike.
        user_include: names or kinds of the user features that make ``E⁰``, the id among them.
        item_include: likewise of the items.
        similarity: how the two sides are compared.

    Raises:
        ConfigError: fewer than 0 layers, ``dim`` below 1, or a side without an id.
    """

    row_by_row = False

    def __init__(
        self,
        user_infos: Sequence[FeatureInfo],
        item_infos: Sequence[FeatureInfo],
        context_infos: Sequence[FeatureInfo] = (),
        n_actions: int = 1,
        *,
        dim: int = 64,
        layers: int = 3,
        weighted: bool = False,
        user_include: Sequence[str] = ("id",),
        item_include: Sequence[str] = ("id",),
        similarity: Similarity | None = None,
    ) -> None:
        super().__init__()
        user = TowerSettings(include=user_include, fusion="sum", body="none")
        item = TowerSettings(include=item_include, fusion="sum", body="none")
        self.user_infos = tuple(i for i in user_infos if user.reads(i))
        self.item_infos = tuple(i for i in item_infos if item.reads(i))
        self.context_infos = ()
        problems = [f"model.{k} is {v}; set it to at least {least}" for k, v, least in
                    (("layers", layers, 0), ("dim", dim, 1)) if v < least]  # fmt: skip
        for side, infos in (("user", self.user_infos), ("item", self.item_infos)):
            if not any(i.kind is Kind.ID for i in infos):
                problems.append(f"model.{side}_include names no id, which is where the graph holds on to; add `id`")
            if wrong := [i.name for i in infos if i.kind is Kind.VECTOR]:
                problems.append(f"model.{side}_include names the vectors {wrong}; leave them out")
        if problems:
            raise ConfigError("the model cannot be built:\n" + "\n".join(f"  - {p}" for p in problems))
        self.dim = self.history_dim = dim
        self.n_actions, self.layers, self.weighted = n_actions, layers, weighted
        self.similarity = similarity or Similarity()
        self.user_inputs, self.item_inputs = Inputs(self.user_infos, user, dim), Inputs(self.item_infos, item, dim)
        self.graph: Graph | None = None
        self.ids: dict[str, str] = {}  # names of the ids, by side
        self._step: tuple[list[int], Propagated] | None = None  # with gradients, until they have flowed back
        self._weights: list[int] | None = None  # versions of the weights from which the buffers were made; None: old
        for name in Propagated._fields:
            self.register_buffer(f"propagated_{name}", None, persistent=False)

    def connect(self, log: Interactions, users: FeatureTable, items: FeatureTable) -> None:
        """Take up the graph. It is data: to be given again wherever a model is built, before weights are loaded.

        Args:
            log: the training events.
            users: encoded features of all ``U`` users.
            items: encoded features of all ``I`` items.

        Raises:
            ConfigError: a side has no id that tells its rows apart.
        """
        self.users, self.items = users.select(self.user_features), items.select(self.item_features)
        known = []
        for side, infos, table in (("user", self.user_infos, users), ("item", self.item_infos, items)):
            name = own_id(infos, table)
            if name is None:
                raise ConfigError(
                    f"LightGCN needs an id that no two {side}s share, and reads {[i.name for i in infos]}"
                )
            self.ids[side] = name
            ids = table.column(name).long().cpu()
            size = next(i.cardinality for i in infos if i.name == name)
            row = torch.full((size,), -1)
            row[ids[ids >= FIRST]] = torch.nonzero(ids >= FIRST).squeeze(1)
            self.register_buffer(f"{side}_row", row, persistent=False)
            known.append(sparse.diags_array((ids >= FIRST).numpy().astype(np.float32)))
        clicks = log.matrix()
        if not self.weighted:
            clicks.data[:] = 1.0
        clicks = sparse.csr_array(known[0] @ clicks @ known[1])
        clicks.eliminate_zeros()
        self.graph = Graph(normalised(clicks), symmetric=True)
        root = inverse_root(np.asarray(clicks.sum(axis=0)).ravel())
        scale = torch.from_numpy(np.where(root > 0, root, 1.0).astype(np.float32)).unsqueeze(1)
        self.register_buffer("item_scale", scale, persistent=False)  # d_i^-½; 1 for an item without edges

    def embed_users(
        self,
        features: Mapping[str, Tensor],
        history: HistoryInputs | None = None,
        context: Mapping[str, Tensor] | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """``[B, D]``: the propagated vectors of known users; others are folded in."""
        every, row = self._propagated().users, self._row("user", features)
        other = self.user_inputs(features) / (self.layers + 1)
        if history is not None:
            events = history.mask.to(other.dtype)
            if history.rows is None:
                sums = (events.unsqueeze(1) @ history.gathered()).squeeze(1)
            else:
                sums = F.embedding_bag(history.rows, history.vectors, mode="sum", per_sample_weights=events)
            other = other + sums * events.sum(1, keepdim=True).clamp(min=1.0) ** -0.5
        return self._chosen(row, every, other)

    def embed_items(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, D]``: the propagated vectors of known items; others have their content."""
        every, row = self._propagated().items, self._row("item", features)
        return self._chosen(row, every, self.item_inputs(features) / (self.layers + 1))

    def history_inputs(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, D]``: what items contribute to a user whom the graph does not know."""
        every, row = self._propagated().history, self._row("item", features).unsqueeze(1)
        share = self.item_inputs(features) * (min(self.layers, 1) / (self.layers + 1))
        return torch.where(row >= 0, F.embedding(row.squeeze(1).clamp(min=0), every), share)

    def truncate(self, dim: int) -> None:
        """Cut embeddings to their first ``dim`` dimensions."""
        self._cut(dim)

    def train(self, mode: bool = True) -> LightGCN:
        """Switch the mode. Evaluation starts with everything propagated: an exporter traces look-ups, not the graph."""
        super().train(mode)
        if not mode and self.graph is not None:
            with torch.no_grad():
                self._propagated()
        return self

    def _row(self, side: str, features: Mapping[str, Tensor]) -> Tensor:
        """``[n]`` rows of the graph, -1 for an id that it does not know."""
        return self.get_buffer(f"{side}_row")[features[self.ids[side]].long()]

    def _chosen(self, row: Tensor, every: Tensor, other: Tensor) -> Tensor:
        """Each row's vector, or where it is -1 the ``other``."""
        known = F.embedding(row.clamp(min=0), every)
        return self.similarity.normalise(torch.where(row.unsqueeze(1) >= 0, known, other)[:, : self.dim])

    def _propagated(self) -> Propagated:
        """All vectors under the present weights, computed once for a step, or until the weights change."""
        if self.graph is None:
            raise ConfigError("LightGCN has no graph yet; connect it to the training events")
        weights = [p._version for p in self.parameters()]
        if not torch.is_grad_enabled():
            if weights != self._weights:
                for name, vectors in self._propagate(self.graph)._asdict().items():
                    setattr(self, f"propagated_{name}", vectors)
                self._weights = weights
            return Propagated(*(self.get_buffer(f"propagated_{name}") for name in Propagated._fields))
        if self._step is None or self._step[0] != weights:
            self._step = weights, self._propagate(self.graph)
        return self._step[1]

    def _propagate(self, graph: Graph) -> Propagated:
        u = {name: self.users.column(name) for name in self.users.names}
        i = {name: self.items.column(name) for name in self.items.names}
        layer = torch.cat([self.user_inputs(u), self.item_inputs(i)])
        if layer.requires_grad:
            layer.register_hook(self._forget)  # type: ignore[no-untyped-call]
        below = torch.zeros_like(layer)
        for _ in range(self.layers):
            below, layer = below + layer, graph(layer)
        n, share = len(self.users), 1.0 / (self.layers + 1)
        every = (below + layer) * share
        return Propagated(every[:n], every[n:], below[n:] * (self.get_buffer("item_scale") * share))

    def _forget(self, _: Any) -> None:
        """Gradients have come back to the tables: a step is over, and a fused optimiser changes no version."""
        self._step = self._weights = None
