"""The two-tower model: users and items → vectors whose inner product is the similarity.

Shapes: ``B`` users, ``N`` items, ``L`` history length, ``H`` width of what an item contributes to a
history, ``D`` embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FeatureInfo, Kind
from towers.model.heads import Heads, HeadSettings
from towers.model.history import HistoryInputs, HistoryPooling, HistorySettings
from towers.model.mixture import MixtureOfLogits, MixtureSettings
from towers.model.similarity import Similarity
from towers.model.tower import Inputs, Tower, TowerSettings


class RetrievalModel(nn.Module):
    """What training, evaluation and export know of a model.

    Attributes:
        dim: ``D``.
        history_dim: ``H``; 0 if no history is read.
        n_actions: number of action codes in histories.
        similarity: what the inner product of the two sides means.
        user_infos: the user features that are read; ``item_infos`` and ``context_infos`` likewise.
        heads: queries and calibrations of actions, in training, or None.
        mixture: a second stage that orders anew what the inner product retrieves, or None.
        row_by_row: whether a vector depends on its own row alone, so that rows can be embedded in parts.
        has_prefixes: whether the first dimensions of a vector are a vector by themselves.
    """

    row_by_row = True
    has_prefixes = True
    dim: int
    history_dim: int
    n_actions: int
    similarity: Similarity
    user_infos: tuple[FeatureInfo, ...]
    item_infos: tuple[FeatureInfo, ...]
    context_infos: tuple[FeatureInfo, ...]

    def __init__(self) -> None:
        super().__init__()
        self.heads: Heads | None = None
        self.mixture: MixtureOfLogits | None = None

    @property
    def user_features(self) -> tuple[str, ...]:
        """Names of the user features read."""
        return tuple(i.name for i in self.user_infos)

    @property
    def item_features(self) -> tuple[str, ...]:
        """Names of the item features read."""
        return tuple(i.name for i in self.item_infos)

    @property
    def context_features(self) -> tuple[str, ...]:
        """Names of the context features read."""
        return tuple(i.name for i in self.context_infos)

    def embed_users(
        self,
        features: Mapping[str, Tensor],
        history: HistoryInputs | None = None,
        context: Mapping[str, Tensor] | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """Query embeddings.

        Args:
            features: ``[B]`` or ``[B, w]`` encoded user features by name.
            history: needed if the model reads histories.
            context: ``[B]`` or ``[B, w]`` encoded context features by name.
            action: ``[B]`` codes of the actions to be predicted, in training, for models that tell them apart; None:
                what is served.

        Returns:
            ``[B, D]``, of unit length if the similarity is a cosine.
        """
        raise NotImplementedError

    def embed_items(self, features: Mapping[str, Tensor]) -> Tensor:
        """Candidate embeddings.

        Args:
            features: ``[N]`` or ``[N, w]`` encoded item features by name.

        Returns:
            ``[N, D]``, of unit length if the similarity is a cosine.
        """
        raise NotImplementedError

    def history_inputs(self, features: Mapping[str, Tensor]) -> Tensor:
        """What items contribute when they stand in a history.

        Args:
            features: ``[N]`` or ``[N, w]`` encoded item features by name.

        Returns:
            ``[N, H]``.
        """
        raise NotImplementedError

    def normalise(self, vectors: Tensor) -> Tensor:
        """``[N, D]`` item embeddings that were smoothed outside the model, of the lengths that it gives them."""
        return self.similarity.normalise(vectors)

    def truncate(self, dim: int) -> None:
        """From now on, embeddings are their first ``dim`` dimensions, normalised again: see ``matryoshka`` in training.

        Raises:
            ConfigError: there are not so many, or the model's vectors have no prefixes.
        """
        raise ConfigError(f"dim={dim}: the vectors of this kind of model cannot be cut; leave dim out")

    def _cut(self, dim: int) -> None:
        """``truncate`` of models whose vectors have prefixes."""
        if not 1 <= dim <= self.dim:
            raise ConfigError(f"dim={dim}: the run's vectors have {self.dim} dimensions; give 1 to {self.dim}")
        self.dim = dim


class TwoTower(RetrievalModel):
    """Query tower over users (with their histories and the request's context), candidate tower over items.

    Args:
        user_infos: fitted user features.
        item_infos: fitted item features.
        context_infos: fitted context features; the user tower reads them.
        n_actions: number of action codes in histories.
        dim: ``D``.
        similarity: how the two sides are compared.
        user: shape of the user tower.
        item: shape of the item tower.
        history: how histories are pooled.
        heads: a query for each action in training; None: one for all.
        mixture: a second stage; None: the similarity alone.

    Raises:
        ConfigError: with all problems of the settings at once.
    """

    def __init__(
        self,
        user_infos: Sequence[FeatureInfo],
        item_infos: Sequence[FeatureInfo],
        context_infos: Sequence[FeatureInfo] = (),
        n_actions: int = 1,
        *,
        dim: int = 64,
        similarity: Similarity | None = None,
        user: TowerSettings | None = None,
        item: TowerSettings | None = None,
        history: HistorySettings | None = None,
        heads: HeadSettings | None = None,
        mixture: MixtureSettings | None = None,
    ) -> None:
        super().__init__()
        user, item = user or TowerSettings(), item or TowerSettings()
        history = history or HistorySettings()
        self.user_infos = tuple(i for i in user_infos if user.reads(i))
        self.item_infos = tuple(i for i in item_infos if item.reads(i))
        self.context_infos = tuple(i for i in context_infos if user.reads(i))
        known = [{i.name for i in (*user_infos, *context_infos)}, {i.name for i in item_infos}]
        if problems := [
            *_problems("user", user, (*self.user_infos, *self.context_infos), known[0], dim, history.pooling != "none"),
            *_problems("item", item, self.item_infos, known[1], dim, False),
            *_history_problems(user, item, history, dim, bool(self.user_infos or self.context_infos)),
            *_sharing_problems((*self.user_infos, *self.context_infos), user, item, self.item_infos, dim),
        ]:
            raise ConfigError("the model cannot be built:\n" + "\n".join(f"  - {p}" for p in problems))
        self.dim, self.n_actions = dim, n_actions
        self.similarity = similarity or Similarity()
        self.item_inputs = Inputs(self.item_infos, item, item.encoders.dim or dim)
        self.item_tower = Tower(self.item_inputs.dim, dim, item)
        self.pooling: HistoryPooling | None = None
        self.history_dim = 0
        self.history_item_inputs: Inputs | None = None  # None: the item tower's own
        if history.pooling != "none":
            if history.table == "separate":
                self.history_item_inputs = Inputs(self.item_infos, item, item.encoders.dim or dim)
            self.history_dim = self.item_inputs.dim
            self.pooling = HistoryPooling(history, self.history_dim, n_actions)
        infos = (*self.user_infos, *(_named("context.", i) for i in self.context_infos))
        extra = [self.history_dim] if self.pooling is not None else []
        shared = {i.name: self.item_inputs.encoder(name) for i, name in _shared(infos, user, self.item_infos)}
        self.user_inputs = Inputs(infos, user, user.encoders.dim or dim, extra, shared)
        self.user_tower = Tower(self.user_inputs.dim, dim, user)
        self.heads = None if heads is None else Heads(heads, dim, n_actions)
        self.mixture = None if mixture is None else MixtureOfLogits(mixture, dim)

    def embed_users(
        self,
        features: Mapping[str, Tensor],
        history: HistoryInputs | None = None,
        context: Mapping[str, Tensor] | None = None,
        action: Tensor | None = None,
    ) -> Tensor:
        """``[B, D]``: features and the pooled history, fused, through the user tower."""
        extra = [] if self.pooling is None or history is None else [self.pooling(history)]
        both = {**features, **{f"context.{k}": v for k, v in (context or {}).items()}}
        query: Tensor = self.user_tower(self.user_inputs(both, extra))
        if self.heads is not None:
            cosine = self.similarity.kind == "cosine"
            query = self.heads.served(query, cosine) if action is None else self.heads.of_action(query, action)
        return self._finish(query)

    def embed_items(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, D]``: features, fused, through the item tower."""
        return self._finish(self.item_tower(self.item_inputs(features)))

    def truncate(self, dim: int) -> None:
        """Cut embeddings to their first ``dim`` dimensions."""
        self._cut(dim)

    def _finish(self, vectors: Tensor) -> Tensor:
        """``[n, ·]`` → ``[n, D]``."""
        return self.similarity.normalise(vectors[..., : self.dim])

    def history_inputs(self, features: Mapping[str, Tensor]) -> Tensor:
        """``[N, H]``: features, fused, as the item tower does it or by inputs of their own."""
        inputs = self.item_inputs if self.history_item_inputs is None else self.history_item_inputs
        out: Tensor = inputs(features)
        return out


def _named(prefix: str, info: FeatureInfo) -> FeatureInfo:
    return replace(info, name=prefix + info.name)


def _shared(
    infos: Sequence[FeatureInfo], user: TowerSettings, item_infos: Sequence[FeatureInfo]
) -> list[tuple[FeatureInfo, str]]:
    """Features of the user tower with the item features whose encoders they take."""
    names = {f"items.{i.name}": i.name for i in item_infos}
    return [(i, names[i.vocabulary]) for i in infos if user.encoders.share and i.vocabulary in names]


def _problems(
    side: str, s: TowerSettings, infos: Sequence[FeatureInfo], known: set[str], dim: int, history: bool
) -> list[str]:
    """What is wrong with one tower's settings, each with its cure."""
    here, out = f"model.{side}", []
    width = s.encoders.dim or dim
    numbers = {
        "encoders.dim": width,
        "width": s.width,
        "layers": s.layers,
        "rank": 1 if s.rank is None else s.rank,
        "encoders.frequencies": s.encoders.frequencies,
        "encoders.table_rows": s.encoders.table_rows,
    }
    out += [f"{here}.{k} is {v}; set it to at least 1" for k, v in numbers.items() if v < 1]
    shares = {"dropout": s.dropout, "id_dropout": s.id_dropout}
    out += [f"{here}.{k} is {v}; set it to at least 0 and below 1" for k, v in shares.items() if not 0 <= v < 1]
    choices = {
        "fusion": (s.fusion, ("sum", "concat")),
        "body": (s.body, ("none", "mlp", "dense", "cross")),
        "encoders.numeric": (s.encoders.numeric, ("linear", "periodic")),
        "encoders.vector": (s.encoders.vector, ("linear", "identity")),
        "encoders.table": (s.encoders.table, ("full", "hashed", "quotient_remainder")),
    }
    out += [f"{here}.{k} is {v!r}; set it to one of {list(c)}" for k, (v, c) in choices.items() if v not in c]
    names = known | {k.value for k in Kind}
    if unknown := sorted({*(s.include or ()), *s.exclude} - names):
        out.append(f"{here}.include/exclude name {unknown}; there are the features {sorted(known)} and the kinds "
                   f"{[k.value for k in Kind]}")  # fmt: skip
    if not infos and not history:
        cure = "or set model.history.pooling=mean" if side == "user" else "or add an item feature to the data config"
        out.append(f"the {side} tower reads no feature; change {here}.include or {here}.exclude, {cure}")
    if s.id_dropout and infos and not history and all(i.kind is Kind.ID for i in infos):
        out.append(f"{here}.id_dropout leaves nothing where the id is dropped; set it to 0, or read other features too")
    wrong = [i.name for i in infos if i.kind in (Kind.VECTOR, Kind.SENTENCE) and i.width - 1 != width]
    if s.rank is not None and s.body in ("none", "mlp", "dense"):
        out.append(f"{here}.rank is of the body cross, not of {s.body}; set it to null")
    if s.body == "dense" and s.fusion == "sum":
        out.append(f"{here}.body=dense begins with the linear layer of a concat; set {here}.fusion=concat, or "
                   f"{here}.body=mlp")  # fmt: skip
    if s.fusion == "sum" and s.encoders.vector == "identity" and wrong:
        out.append(f"{here}.fusion=sum needs vectors of width {width}, and {wrong} differ; set {here}.fusion=concat "
                   f"or {here}.encoders.vector=linear")  # fmt: skip
    return out


def _sharing_problems(
    infos: Sequence[FeatureInfo], user: TowerSettings, item: TowerSettings, item_infos: Sequence[FeatureInfo], dim: int
) -> list[str]:
    """A shared encoder has one width."""
    widths = user.encoders.dim or dim, item.encoders.dim or dim
    names = [i.name for i, _ in _shared(infos, user, item_infos)]
    if not names or widths[0] == widths[1]:
        return []
    return [f"{names} share encoders of width {widths[1]}, and model.user.encoders.dim is {widths[0]}; set both alike, "
            "or model.user.encoders.share=false"]  # fmt: skip


def _history_problems(
    user: TowerSettings, item: TowerSettings, h: HistorySettings, dim: int, others: bool
) -> list[str]:
    """What is wrong with the history's settings, each with its cure."""
    out, s = [], h.sequence
    choices = {
        "pooling": (h.pooling, ("none", "mean", "decay", "lags", "attention", "ridge", "sequence")),
        "table": (h.table, ("shared", "separate")),
        "nothing": (h.nothing, ("learned", "zero")),
        "sequence.block": (s.block, ("none", "sasrec", "ligr", "hstu")),
    }
    out += [f"model.history.{k} is {v!r}; set it to one of {list(c)}" for k, (v, c) in choices.items() if v not in c]
    sizes = {"length": h.length, "heads": h.heads}
    sizes |= {f"sequence.{k}": getattr(s, k) for k in ("layers", "heads", "length")}
    out += [f"model.history.{k} is {v}; set it to at least 1" for k, v in sizes.items() if v < 1]
    shares = {k: getattr(h, k) for k in ("dropout", "event_dropout", "history_dropout")}
    shares["sequence.dropout"] = s.dropout
    out += [f"model.history.{k} is {v}; set it to at least 0 and below 1" for k, v in shares.items() if not 0 <= v < 1]
    if h.length_power is not None and h.pooling not in ("mean", "decay", "lags"):
        out.append(
            f"model.history.length_power is of the poolings mean, decay and lags, not of {h.pooling}; set it to null"
        )
    if not h.lag_decay > 0:
        out.append(f"model.history.lag_decay is {h.lag_decay}; set it above 0")
    if h.pooling == "sequence" and s.block == "none":
        out.append("model.history.pooling=sequence has no encoder; set model.history.sequence.block=sasrec")
    if dim < 1:
        out.append(f"model.dim is {dim}; set it to at least 1")
    width = item.width if item.fusion == "concat" else item.encoders.dim or dim
    if h.pooling != "none" and others and user.fusion == "sum" and width != (user.encoders.dim or dim):
        out.append(
            f"model.user.fusion=sum needs one width, but a history has {width} and the user's features "
            f"{user.encoders.dim or dim}; set model.user.fusion=concat or model.user.encoders.dim={width}"
        )
    return out
