"""``init_from=RUN``: a run that begins with the weights and the optimiser state of an earlier one, on newer data.

::

    RUN/vocab, schema.json ──┐                            ┌─ tables: rows by value, new values at the row of OOV
    var/data/NAME/vocab ─────┴─▶ where each value stood ──┤
    RUN/checkpoints/best.ckpt ────────────────────────────┴─ everything else as it was; optimiser state likewise
"""

from __future__ import annotations

from functools import partial
from typing import Any

import hydra.utils
import numpy as np
import torch
from omegaconf import DictConfig

from data.prepared import PreparedDataset
from pipeline import build
from pipeline.console import say
from pipeline.runs import Run
from towers.errors import ConfigError
from towers.features import FIRST, alignment
from towers.model import checkpoints, warm_start
from towers.model.module import Retrieval
from towers.model.two_tower import RetrievalModel

_SIDES = ("user", "item", "context")


def check(config: DictConfig) -> None:
    """Refuse what cannot go on: closed forms take seconds, and want to see all events at once.

    Raises:
        ConfigError: saying what to do instead.
    """
    run = Run.open(config.init_from)
    fitted, what = run.config, None
    if build.baseline(config) is not None or build.baseline(fitted) is not None:
        what = "or this one is a baseline"
    elif fitted.model.get("apart") or fitted.model.get("stacking"):
        what = "has blocks that stay as a closed form made them (model.apart, model.stacking)"
    elif run.metrics["best_epoch"] == 0 and not fitted.get("init_from"):
        what = "was not trained: its best weights are those of its init"
    if what:
        raise ConfigError(
            f"init_from={config.init_from}: that run {what}; fit it anew on the newer data, without init_from"
        )


def continue_run(config: DictConfig, module: Retrieval, dataset: PreparedDataset) -> None:
    """Give an untrained module the weights of ``config.init_from``, and its optimiser the state.

    Raises:
        ConfigError: the data or the model are not those of that run, only newer.
    """
    run = Run.open(config.init_from)
    places = _places(run, module.model, dataset)
    checkpoint = checkpoints.read(run.weights)
    rows = warm_start.rows_of(module.model, places)
    prefix = "model."
    old = {n.removeprefix(prefix): t for n, t in checkpoint["state_dict"].items() if n.startswith(prefix)}
    module.model.load_state_dict(warm_start.carried(module.model.state_dict(), old, rows))
    states = checkpoint.get("optimizer_states") or [{"state": {}}]  # none: weights from before its first step
    module.start = partial(warm_start.carried_state, states[0]["state"], checkpoint.get("optimised", []), rows=rows)
    say(f"going on from {run.folder}")
    for side, of_side in places.items():
        for name, where in of_side.items():
            new = int(np.count_nonzero(where == alignment.UNKNOWN))
            say(f"  {side} {name}: {len(where) - FIRST - new:,} values known, {new:,} new")


def _places(run: Run, model: RetrievalModel, dataset: PreparedDataset) -> dict[str, Any]:
    """Where the values that the model reads stood in the data of the run."""
    before, now = ({s: d.featurizer(s) for s in _SIDES} for d in (run, dataset))
    with torch.device("meta"):  # what the model of the run read: its settings and features say so
        make = hydra.utils.instantiate(run.config.model)
        old: RetrievalModel = make(*(before[s].infos for s in _SIDES), len(run.schema.actions))
    read = {s: (getattr(old, f"{s}_features"), getattr(model, f"{s}_features")) for s in _SIDES}
    alignment.check(run.schema, dataset.schema, read)
    for side, (_, names) in read.items():
        alignment.check_fits(side, before[side], now[side], names)
    return {s: alignment.places(before[s], now[s], names) for s, (_, names) in read.items()}
