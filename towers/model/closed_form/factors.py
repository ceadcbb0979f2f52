"""What a closed form gives, and how it gets into the tables of a ``TwoTower``.

Shapes: ``I`` items, ``V`` values of a feature, ``d`` factors, which is the model's ``dim``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FIRST, Kind
from towers.model.closed_form.interactions import Interactions
from towers.model.encoders import Bag, Lookup
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
        features: ``[V, d]`` tables of content features by name; features that are not named get zeros, so that
            known items have exactly the vectors above, and new ones what the tables say.
        gram: ``[d]`` diagonal of Γ, for users who are folded in (see ``FoldIn``); None: the method has no fold-in.
        ridge: its λ.
    """

    item: Tensor
    history: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    gram: Tensor | None = None
    ridge: Ridge | None = None


class ClosedForm(Protocol):
    """A method, as a config of the group ``init`` makes it."""

    def __call__(self, interactions: Interactions, dim: int, *, progress: Progress) -> Factors:
        """Compute ``[I, dim]`` factors."""
        ...


@torch.no_grad()
def assign(model: TwoTower, factors: Factors, items: FeatureTable) -> None:
    """Write factors into a model's tables, so that its vectors are theirs.

    An item's vector is the sum of what its features give; the id gets what the others leave. User features start at
    zero: a user is her pooled history, until training says otherwise.

    Args:
        model: the towers. Items are a sum of encoders (``fusion: sum``, ``body: none``) with an id among them.
        factors: of all ``I`` items.
        items: encoded features of all items.

    Raises:
        ConfigError: with every setting that does not fit, and its cure.
    """
    separate = model.history_item_inputs
    if problems := _problems(model, factors, items):
        raise ConfigError("init cannot write its factors into this model:\n" + "\n".join(f"  - {p}" for p in problems))
    name = _id_feature(model, items)
    assert name is not None
    _fill(model.item_inputs, name, factors.item, factors.features, items)
    fold_in = model.pooling.fold_in if model.pooling is not None else None
    if fold_in is not None and factors.gram is not None and factors.ridge is not None:
        fold_in.set(factors.gram, factors.ridge)
    if separate is not None:
        _fill(
            separate,
            name,
            factors.item if fold_in is not None or factors.history is None else factors.history,
            factors.features,
            items,
        )
    if model.pooling is not None:
        # What candidates have in common. Not zero: a cosine's slope there is without bound, and training would take it.
        model.pooling.no_history.copy_(factors.item.mean(0))
    for encoder in model.user_inputs.encoders.values():
        for p in encoder.parameters():
            if p.dim() > 1:
                p.zero_()


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
    if _id_feature(model, items) is None:
        out.append("the item tower reads no id, which holds the factors; do not exclude it in model.item")
    if model.pooling is None:
        out.append("users have no history; set model.history.pooling=mean")
    elif model.pooling.fold_in is not None:
        if factors.gram is None:
            out.append("this closed form has no fold-in; set model.history.pooling=mean, or init=ials")
    elif factors.history is not None and model.history_item_inputs is None:
        out.append("items differ as candidates and in histories; set model.history.table=separate")
    if model.dim != d:
        out.append(f"there are {d} factors and model.dim is {model.dim}; set model.dim={d}")
    wrong = sorted(set(factors.features) - set(model.item_features))
    if wrong:
        out.append(f"the item tower does not read {wrong}; do not exclude them in model.item")
    return out


def _id_feature(model: TwoTower, items: FeatureTable) -> str | None:
    """The item's own id: the feature of kind ``id`` that no two known items share (an employer's id is none)."""
    for info in model.item_infos:
        if info.kind is Kind.ID:
            ids = items.column(info.name)
            known = ids[ids >= FIRST]
            if len(torch.unique(known)) == len(known):
                return info.name
    return None


def _fill(inputs: Inputs, id_name: str, vectors: Tensor, tables: Mapping[str, Tensor], items: FeatureTable) -> None:
    """Tables first, then each id's row: what is left to its item's vector."""
    for name in inputs.names:
        encoder = inputs.encoder(name)
        if isinstance(encoder, Lookup | Bag) and name in tables:
            encoder.table.weight.copy_(tables[name])
        else:
            for p in encoder.parameters():
                if p.dim() > 1 and not (isinstance(encoder, Bag) and p is encoder.log_weight.weight):
                    p.zero_()
    was = inputs.training
    inputs.eval()
    table = inputs.encoder(id_name)
    assert isinstance(table, Lookup)
    ids = items.column(id_name).long()
    for rows in torch.split(torch.arange(len(items)), 8192):
        rest = inputs(items(rows))
        here = ids[rows]
        known = here >= FIRST  # an item that training never saw shares the id "unknown": it keeps its content only
        table.table.weight[here[known]] = (vectors[rows] - rest)[known].to(table.table.weight.dtype)
    inputs.train(was)
