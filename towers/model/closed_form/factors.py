"""What a closed form gives, and how it gets into the tables of a ``TwoTower``.

Shapes: ``I`` items, ``V`` values of a feature, ``d`` factors, which is the model's ``dim``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FIRST, Kind
from towers.model.closed_form.content import fit_tables
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
        gram: ``[d]`` diagonal of Γ, for users who are folded in (see ``FoldIn``); None: the method has no fold-in.
        ridge: its λ.
    """

    item: Tensor
    history: Tensor | None = None
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

    An item's vector is the sum of what its features give. Categorical content gets tables that say of the factors
    what content can say (see ``content``), so that new items have vectors; the id gets what is left, so that known
    items have theirs. All other item features, and those of users, start at zero: a user is her pooled history, until
    training says otherwise.

    Args:
        model: the towers. Items are a sum of encoders (``fusion: sum``, ``body: none``) with an id among them.
        factors: of all ``I`` items.
        items: encoded features of all items.

    Raises:
        ConfigError: with every setting that does not fit, and its cure.
    """
    if problems := _problems(model, factors, items):
        raise ConfigError("init cannot write its factors into this model:\n" + "\n".join(f"  - {p}" for p in problems))
    name, pooling = _id_feature(model, items), model.pooling
    assert name is not None
    assert pooling is not None
    folds_in = pooling.fold_in is not None
    if pooling.fold_in is not None and factors.gram is not None and factors.ridge is not None:
        pooling.fold_in.set(factors.gram, factors.ridge)
    _fill(model.item_inputs, name, factors.item, items)
    if model.history_item_inputs is not None:
        history = factors.item if folds_in or factors.history is None else factors.history
        _fill(model.history_item_inputs, name, history, items)
    # What candidates have in common. Not zero: a cosine's slope there is without bound, and training would take it.
    pooling.no_history.copy_(factors.item.mean(0))
    for encoder in model.user_inputs.encoders.values():
        _silence(encoder)


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


def _silence(encoder: nn.Module) -> None:
    """Make an encoder give zeros, from which it can still learn."""
    silent = [encoder.table.weight] if isinstance(encoder, Bag | Lookup) else list(encoder.parameters())
    for p in silent:
        p.zero_()


def _fill(inputs: Inputs, id_name: str, vectors: Tensor, items: FeatureTable) -> None:
    """Content first, then each id's row: what is left to its item's vector."""
    encoders = {name: inputs.encoder(name) for name in inputs.names}
    table = encoders.pop(id_name)
    assert isinstance(table, Lookup)
    _silence(table)
    ids = items.column(id_name).long()
    content = {n: e for n, e in encoders.items() if isinstance(e, Bag | Lookup)}
    tables = fit_tables(content, {n: items.column(n) for n in content}, vectors, ids >= FIRST)
    for name, encoder in encoders.items():
        if name in content:
            content[name].table.weight.copy_(tables[name])
        else:
            _silence(encoder)
    was = inputs.training
    inputs.eval()
    for rows in torch.split(torch.arange(len(items)), 8192):
        rest = inputs(items(rows))
        here = ids[rows]
        known = here >= FIRST  # an item that training never saw shares the id "unknown": it keeps its content only
        table.table.weight[here[known]] = (vectors[rows] - rest)[known].to(table.table.weight.dtype)
    inputs.train(was)
