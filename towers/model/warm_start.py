"""A model that goes on from an older one: what was learnt of a value stays with the value.

Shapes: ``V`` values of the newer data, ``V'`` of the older, ``d`` embedding width.

A value that the older data did not have starts where they put everything that they did not know: at the row of
``OOV``. A new job is then scored as it was the day before, by its content, and its own row departs from there. Its
optimiser state starts at zero, as if the table had been made today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from towers.errors import ConfigError
from towers.features import OOV
from towers.features.alignment import UNKNOWN
from towers.model.encoders import Encoder
from towers.model.hashed_tables import QuotientRemainderTable
from towers.model.optimisers import CompositeOptimizer
from towers.model.tower import Inputs

Places = Mapping[str, Mapping[str, NDArray[np.int64]]]  # by side and feature, as ``alignment.places`` makes them
Rows = Mapping[str, Tensor]  # by parameter, [V] the older row of each new one, UNKNOWN for none
_SIDES = {"user_inputs": "user", "item_inputs": "item", "history_item_inputs": "item"}


def rows_of(model: nn.Module, places: Places) -> dict[str, Tensor]:
    """The parameters of a model that have a row for each value.

    Args:
        model: the newer model.
        places: where the values of its features stood.

    Returns:
        By name of the parameter, ``[V]`` where its rows stood.

    Raises:
        ConfigError: a quotient-remainder table whose values have moved: rows belong to ids there.
    """
    out: dict[str, Tensor] = {}
    for prefix, side, feature, encoder in _encoders(model):
        where = places[side].get(feature)
        if where is None:
            continue
        by_rank = any(isinstance(m, QuotientRemainderTable) for m in encoder.modules())
        if by_rank and not np.array_equal(where, np.arange(len(where))):
            raise ConfigError(
                f"{side} {feature} has table=quotient_remainder, whose rows belong to ranks of values, and these have "
                "changed; train anew without init_from, with table=hashed if the vocabulary grows"
            )
        out |= {f"{prefix}.{name}": torch.from_numpy(where) for name in encoder.by_value}
    return out


def _encoders(model: nn.Module) -> Iterator[tuple[str, str, str, Encoder]]:
    """(name in the state dict, side, feature, encoder) of all encoders, shared ones under each of their names."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Inputs):
            for name in module.names:
                side = _SIDES[path.rpartition(".")[2]]
                side, feature = ("context", name[8:]) if name.startswith("context.") else (side, name)
                yield f"{path}.{module.key(name)}", side, feature, module.encoder(name)


def carried(new: Mapping[str, Tensor], old: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Weights to go on with.

    Args:
        new: the newer model's state dict.
        old: the older one's.
        rows: from ``rows_of``.

    Returns:
        ``new`` with everything of ``old``: tables row by row, a new value's row being that of ``OOV``.

    Raises:
        ConfigError: the two are not the same model.
    """
    problems = [f"{n} is not there any more" for n in old if n not in new]
    problems += [f"{n} was not there" for n in new if n not in old]
    for name in new.keys() & old.keys():
        here, there = (tuple(s[name].shape[name in rows :]) for s in (new, old))
        if here != there:
            problems.append(f"{name} is {list(here)} and was {list(there)}")
    if problems:
        told = "\n".join(f"  - {p}" for p in sorted(problems)[:8])
        raise ConfigError(f"the weights of the run do not fit this model; leave its settings as they were:\n{told}")
    return {n: _table(old[n], rows[n], old[n][OOV]) if n in rows else old[n] for n in new}


def _table(old: Tensor, rows: Tensor, prior: Tensor) -> Tensor:
    """``[V', …]`` → ``[V, …]``."""
    out = old[rows.clamp(min=0)]
    out[rows == UNKNOWN] = prior
    return out


def kinds(model: nn.Module, optimiser: Optimizer) -> list[tuple[str, str]]:
    """(name, optimiser) of each parameter, in the order in which the optimiser's state numbers them."""
    names = {id(p): n for n, p in model.named_parameters()}
    parts = optimiser.parts if isinstance(optimiser, CompositeOptimizer) else [optimiser]
    return [(names[id(p)], type(o).__name__) for o in parts for g in o.param_groups for p in g["params"]]


def carried_state(
    state: Mapping[int, Mapping[str, object]],
    old: Sequence[tuple[str, str]],
    new: Sequence[tuple[str, str]],
    rows: Rows,
) -> dict[int, dict[str, object]]:
    """Optimiser state to go on with.

    Args:
        state: by number, of the older run.
        old: ``kinds`` of the older run.
        new: ``kinds`` of the newer one.
        rows: from ``rows_of``.

    Returns:
        By number of the newer one. A table's state goes with its rows, zero for a new value; a parameter that another
        optimiser takes over (a table that has grown beyond ``sparse_above``) starts without any.
    """
    was = {kind: i for i, kind in enumerate(old)}
    out = {}
    for i, (name, optimiser) in enumerate(new):
        if found := state.get(was.get((name, optimiser), -1)):
            out[i] = {k: _state(v, rows.get(name)) for k, v in found.items()}
    return out


def _state(value: object, rows: Tensor | None) -> object:
    if rows is None or not isinstance(value, Tensor) or not value.dim():
        return value
    return _table(value, rows, torch.zeros_like(value[0]))
