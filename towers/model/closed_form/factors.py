"""What a closed form gives, and how it gets into the tables of a ``TwoTower``.

Shapes: ``I`` items, ``V`` values of a feature, ``d`` factors, which is the model's ``dim``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FIRST, FeatureInfo, Kind
from towers.model.closed_form.bags import BagWeights
from towers.model.closed_form.content import fit_tables
from towers.model.closed_form.interactions import Interactions
from towers.model.encoders import Bag, HashedBag, HashedLookup, Lookup, Projection
from towers.model.ridge import Ridge
from towers.model.tables import FeatureTable
from towers.model.tower import Inputs
from towers.model.two_tower import TwoTower

Progress = Callable[[str, float], None]  # what is being done, share done


@dataclass(frozen=True)
class Factors:
    """Vectors of the items, on both sides of the inner product.

    Attributes:
        item: ``[I, d]`` candidate vectors.
        history: ``[I, d]`` what items contribute to a history; None: the candidate vectors.
        gram: ``[d]`` diagonal of Γ, for users who are folded in (see ``FoldIn``); None: the method has no fold-in.
        ridge: its λ.
        user_bags: what texts and lists of the users say, by feature.
        item_bags: likewise of the items; empty: it is fitted to ``item`` (see ``content``).
        user_vectors: ``[w, d]`` projections of the users' pretrained vectors, by feature.
    """

    item: Tensor
    history: Tensor | None = None
    gram: Tensor | None = None
    ridge: Ridge | None = None
    user_bags: Mapping[str, BagWeights] = field(default_factory=dict)
    item_bags: Mapping[str, BagWeights] = field(default_factory=dict)
    user_vectors: Mapping[str, Tensor] = field(default_factory=dict)


class ClosedForm(Protocol):
    """A method, as a config of the group ``init`` makes it."""

    def __call__(self, interactions: Interactions, dim: int, *, progress: Progress) -> Factors:
        """Compute ``[I, dim]`` factors."""
        ...


@torch.no_grad()
def assign(model: TwoTower, factors: Factors, items: FeatureTable) -> None:
    """Write factors into a model's tables, so that its vectors are theirs.

    An item's vector is the sum of what its features give. Categorical content gets the tables that come with the
    factors or, without any, such that say of the factors what content can say (see ``content``), so that new items have
    vectors; the id gets what is left, so that known items have theirs. All other item features start at zero, and
    so do the users' but for those that have tables and those that share an encoder with the items: a user is her pooled
    history and what such features say, until training says otherwise.

    Args:
        model: the towers. Items are a sum of encoders (``fusion: sum``, ``body: none``) with an id among them, or such
            content as the factors have tables for.
        factors: of all ``I`` items.
        items: encoded features of all items.

    Raises:
        ConfigError: with every setting that does not fit, and its cure.
    """
    if problems := _problems(model, factors, items):
        raise ConfigError("init cannot write its factors into this model:\n" + "\n".join(f"  - {p}" for p in problems))
    name, pooling = own_id(model.item_infos, items), model.pooling
    _fill(model.item_inputs, name, factors.item, factors.item_bags, items)
    items_own = set(model.item_inputs.encoders.values())
    for feature in model.user_inputs.names:
        encoder = model.user_inputs.encoder(feature)
        if feature in factors.user_bags:
            _write(encoder, factors.user_bags[feature])
        elif feature in factors.user_vectors:
            _project(encoder, factors.user_vectors[feature])
        elif encoder not in items_own:
            _silence(encoder)
    if pooling is None:
        return
    folds_in = pooling.fold_in is not None
    if pooling.fold_in is not None and factors.gram is not None and factors.ridge is not None:
        pooling.fold_in.set(factors.gram, factors.ridge)
    if model.history_item_inputs is not None:
        history = factors.item if folds_in or factors.history is None else factors.history
        _fill(model.history_item_inputs, name, history, factors.item_bags, items)
    # What candidates have in common. Not zero: a cosine's slope there is without bound, and training would take it.
    if pooling.no_history.requires_grad:
        pooling.no_history.copy_(factors.item.mean(0))


def _problems(model: TwoTower, factors: Factors, items: FeatureTable) -> list[str]:
    out = []
    d = factors.item.shape[1]
    if model.item_inputs.linear is not None:
        out.append("items are fused by a linear layer; set model.item.fusion=sum")
    if model.user_inputs.linear is not None:
        out.append("users are fused by a linear layer; set model.user.fusion=sum")
    for side, tower in (("item", model.item_tower), ("user", model.user_tower)):
        if not isinstance(tower.project, nn.Identity):
            out.append(f"the {side} tower has a body or a projection; set model.{side}.body=none and leave "
                       f"model.{side}.encoders.dim at null")  # fmt: skip
    for side, inputs, bags in (
        ("item", model.item_inputs, factors.item_bags),
        ("user", model.user_inputs, factors.user_bags),
    ):
        if hashed := [n for n in inputs.names if isinstance(inputs.encoder(n), HashedBag | HashedLookup)]:
            out.append(f"values of {hashed} share rows, and factors want a row for each; set "
                       f"model.{side}.encoders.table=full")  # fmt: skip
        texts = [n for n in inputs.names if isinstance(inputs.encoder(n), Bag)]
        if unread := [n for n in bags if n not in texts]:
            out.append(f"init computes tables for {unread}, and of texts and lists the {side} tower reads {texts}; "
                       f"name them in model.{side}.include")  # fmt: skip
    read = [n for n in model.user_inputs.names if isinstance(model.user_inputs.encoder(n), Projection)]
    if unread := [n for n in factors.user_vectors if n not in read]:
        out.append(f"init computes projections of {unread}, and the user tower projects the vectors {read}; name them "
                   "in model.user.include, with model.user.encoders.vector=linear")  # fmt: skip
    if own_id(model.item_infos, items) is None and not factors.item_bags:
        out.append("the item tower reads no id, which holds the factors; do not exclude it in model.item")
    if model.pooling is None:
        if not factors.user_bags and not factors.user_vectors and not _sharing(model):
            out.append("users have no history; set model.history.pooling=mean")
    elif model.pooling.fold_in is not None:
        if factors.gram is None:
            out.append("this closed form has no fold-in; set model.history.pooling=mean, or init=ials")
    elif factors.history is not None and model.history_item_inputs is None:
        out.append("items differ as candidates and in histories; set model.history.table=separate")
    if model.dim != d:
        out.append(f"there are {d} factors and model.dim is {model.dim}; set model.dim={d}")
    return out


def _sharing(model: TwoTower) -> bool:
    """Whether users are described by a feature that takes an encoder of the items."""
    items = set(model.item_inputs.encoders.values())
    return any(e in items for e in model.user_inputs.encoders.values())


def own_id(infos: Sequence[FeatureInfo], table: FeatureTable) -> str | None:
    """The rows' own id: the feature of kind ``id`` that no two known rows share (an employer's id is none of a job)."""
    for info in infos:
        if info.kind is Kind.ID:
            ids = table.column(info.name)
            known = ids[ids >= FIRST]
            if len(torch.unique(known)) == len(known):
                return info.name
    return None


def _silence(encoder: nn.Module) -> None:
    """Make an encoder give zeros, from which it can still learn."""
    silent = [encoder.table.weight] if isinstance(encoder, Bag | Lookup) else list(encoder.parameters())
    for p in silent:
        p.zero_()


def _write(encoder: nn.Module, weights: BagWeights) -> None:
    assert isinstance(encoder, Bag)
    weights.write(encoder)


def _project(encoder: nn.Module, table: Tensor) -> None:
    assert isinstance(encoder, Projection)
    _silence(encoder)
    encoder.linear.weight[:, : len(table)] = table.T.to(encoder.linear.weight.dtype)


def _fill(
    inputs: Inputs, id_name: str | None, vectors: Tensor, bags: Mapping[str, BagWeights], items: FeatureTable
) -> None:
    """Content first, then each id's row: what is left to its item's vector."""
    encoders = {name: inputs.encoder(name) for name in inputs.names if name != id_name}
    content = {} if bags else {n: e for n, e in encoders.items() if isinstance(e, Bag | Lookup)}
    for name, encoder in encoders.items():
        if name in bags:
            _write(encoder, bags[name])
        elif name not in content:
            _silence(encoder)
    if id_name is None:
        return
    table = inputs.encoder(id_name)
    assert isinstance(table, Lookup)
    _silence(table)
    ids = items.column(id_name).long()
    tables = fit_tables(content, {n: items.column(n) for n in content}, vectors, ids >= FIRST)
    for name, encoder in content.items():
        encoder.table.weight.copy_(tables[name])
    was = inputs.training
    inputs.eval()
    for rows in torch.split(torch.arange(len(items)), 8192):
        rest = inputs(items(rows))
        here = ids[rows]
        known = here >= FIRST  # an item that training never saw shares the id "unknown": it keeps its content only
        table.table.weight[here[known]] = (vectors[rows] - rest)[known].to(table.table.weight.dtype)
    inputs.train(was)
