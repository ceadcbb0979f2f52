"""The settings of an earlier run, taken up again.

``resume`` goes on with them, ``refit`` trains once more, ``init_from`` goes on with newer data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.runs import Run
from towers.errors import ConfigError

# What a command line may say beside resume=RUN or refit=RUN; everything else is as it was.
RESUME = ("threads", "workers", "memory", "evaluate", "shard_above")
REFIT = (*RESUME, "seed", "shared", "var", "logger")
_TAKEN_UP = ("resume", "refit", "init_from")


def effective(config: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """The settings that a training runs with.

    Args:
        config: the composed config of ``configs/train.yaml``.
        overrides: what the command line says, as it says it.

    Returns:
        ``config`` itself; with ``resume`` and ``refit`` the earlier run's settings; with ``init_from`` those, but for
        what the command line says.

    Raises:
        ConfigError: ``resume`` or ``refit``, and the command line asks for another value than the earlier run's.
    """
    asked = [name for name in _TAKEN_UP if config.get(name)]
    if len(asked) > 1:
        raise ConfigError(
            "set resume=RUN (go on with a stopped run), refit=RUN (train a finished one again) or init_from=RUN (go on "
            f"from a finished one with newer data), not {' and '.join(asked)}: not both"
        )
    if config.refit:
        return _refitted(config, overrides)
    if config.get("init_from"):
        return _continued(config, overrides)
    return _resumed(config, overrides) if config.resume else config


def _resumed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The settings of a run that is to be finished."""
    run = Run.open(config.resume)
    out = _taken_over(run, f"resume={config.resume}", config, overrides, RESUME)
    with open_dict(out):
        out.resume = config.resume
    return out


def _refitted(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The settings of a finished run, for the number of epochs that it chose, on train + validation."""
    run = Run.open(config.refit)
    metrics = run.metrics
    if not metrics:
        raise ConfigError(f"{run.folder} has not finished; refit=RUN needs a finished run")
    if metrics["refitted"]:
        raise ConfigError(f"{run.folder} is a refit itself; give the run that chose the settings")
    out = _taken_over(run, f"refit={config.refit}", config, overrides, REFIT)
    with open_dict(out):
        out.refit, out.resume = str(run.folder), None
        out.schedule_epochs = out.schedule_epochs or out.trainer.max_epochs
        out.trainer.max_epochs = metrics["best_epoch"]
        out.trainer.min_epochs = None
        if "evaluate" not in _names(overrides):  # what it ranked chose settings; a refit ranks what is left
            out.evaluate = None
    return out


def _continued(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The settings of a finished run and, over them, what the command line names."""
    run = Run.open(config.init_from)
    if not run.metrics:
        raise ConfigError(f"{run.folder} has not finished; init_from=RUN needs a finished run")
    named = _names(overrides)
    out = config.copy() if "experiment" in named else run.config
    with open_dict(out):
        if "experiment" not in named:
            if out.refit:  # it trained for as many epochs as its parent chose
                out.trainer.max_epochs, out.schedule_epochs, out.evaluate = out.schedule_epochs, None, None
            for name in named:
                OmegaConf.update(out, name, OmegaConf.select(config, name), merge=False, force_add=True)
        out.init_from, out.refit, out.resume = str(run.folder), None, None
    return out


def _taken_over(run: Run, why: str, config: DictConfig, overrides: Sequence[str], free: Sequence[str]) -> DictConfig:
    """A run's settings with the ``free`` ones that the command line names."""
    out = run.config
    here, there = (_leaves(OmegaConf.to_container(c, resolve=True)) for c in (config, out))
    changed: list[str] = []
    for name in _names(overrides):
        if name in _TAKEN_UP:
            continue
        if name in free:
            with open_dict(out):
                out[name] = config.get(name)
            continue
        below = [k for k in (here | there) if name == "experiment" or k == name or k.startswith(f"{name}.")]
        kept = [k for k in below if k.partition(".")[0] not in (*free, *_TAKEN_UP)]
        changed += [f"{k} is {there.get(k)} there and {here.get(k)} here" for k in kept if here.get(k) != there.get(k)]
    if changed:
        told = list(dict.fromkeys(changed))
        more = f", and {len(told) - 5} more" if len(told) > 5 else ""
        raise ConfigError(
            f"{why} takes the settings of that run: {'; '.join(told[:5])}{more}. Leave them out (only "
            f"{', '.join(free)} may differ), or start a new run"
        )
    return out


def _names(overrides: Sequence[str]) -> list[str]:
    """The settings and groups that a command line names."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [o.key_or_group.partition("@")[0].replace("/", ".") for o in parsed]


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for name, inner in node.items() for k, v in _leaves(inner, f"{prefix}.{name}".lstrip(".")).items()}
