"""Settings that nothing takes, and those that do not go together, found before anything is prepared or trained."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from towers.errors import ConfigError
from towers.model import losses
from towers.model.module import Retrieval
from towers.model.negatives import Full, Uniform
from towers.model.vector_losses import AlignmentUniformity, GeneralisedBinary

_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}

UNREAD_BY_BASELINES: dict[str, Any] = {
    "init._target_": None,
    "aggregate.weight": 0.0,
    "group_weight": 0.0,
    "matryoshka": [],
    "impressions": 0,
    "grad_cache": None,
    "shard_above": None,
    "correct_positive": False,
}


def check_settings(config: DictConfig, blocks: tuple[str, ...]) -> None:
    """Refuse settings that the classes they are for do not have.

    Groups merge: an experiment that sets ``negatives.n`` still does so when the command line says
    ``negatives=in_batch``, which has no such setting.

    Args:
        config: the composed config.
        blocks: names of the blocks that are instantiated.

    Raises:
        ConfigError: there are such settings; all are named.
    """
    missing = [key for key in sorted(OmegaConf.missing_keys(config)) if key.partition(".")[0] in blocks]
    if missing and not _off(config, missing[0]):
        where = f"configs/{missing[0].partition('.')[0]}"
        raise ConfigError(
            f"{', '.join(missing)}: not set, and there is no default; the comments in {where} say to what"
        )
    nodes = ((block, OmegaConf.to_container(config, resolve=True).get(block)) for block in blocks)  # type: ignore[union-attr]
    if found := [line for block, node in nodes for line in _unknown(node, block)]:
        raise ConfigError("settings that nothing takes:\n" + "\n".join(f"  - {line}" for line in found))


def check_unread(config: DictConfig, settings: Mapping[str, Any], reader: str) -> None:
    """Refuse settings that are not as ``settings`` says while what would read them is not there.

    Args:
        config: the composed config.
        settings: names of settings, and what they are where nobody wants them.
        reader: what there is instead, in words.

    Raises:
        ConfigError: there are such settings; all are named.
    """
    said = [f"{name}={value}" for name, off in settings.items() if (value := OmegaConf.select(config, name)) != off]
    if said:
        raise ConfigError(f"{', '.join(said)}: {reader}; leave it out")


def check_query(config: DictConfig) -> None:
    """Refuse settings of ``query.py`` that what is asked for would not read.

    Raises:
        ConfigError: there are such settings; all are named.
    """
    of_items = config.item is not None
    if of_items:
        for_users = {"context": None, "fusion.method": None, "explain": False}
        check_unread(config, for_users, "only a user's request (user=…) has words, a plan or a context")
    if of_items and config.retrieve == "users":
        check_unread(config, {"at": None}, "users are compared as they were at the end of the bundle's data")


def check_precision(config: DictConfig) -> None:
    """Refuse weights in half precision: sums and small updates want float32, and only products gain by less.

    Raises:
        ConfigError: ``trainer.precision`` is ``bf16-true`` or ``16-true``; says what to set.
    """
    precision = str(OmegaConf.select(config, "trainer.precision"))
    if precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision is {precision}, which keeps the weights in half precision, and losses, sums and "
            "optimisers are in float32: set trainer.precision=bf16-mixed, which multiplies in bfloat16, or 32-true"
        )


def check_loss(module: Retrieval) -> None:
    """Refuse a loss whose paper's similarity, corrections or negatives are not those of the run.

    A loss's config sets the similarity that it wants, but an experiment that sets its own has the last word.

    Raises:
        ConfigError: says what to add.
    """
    loss, similarity = getattr(module.loss, "func", module.loss), module.model.similarity
    name = getattr(loss, "__name__", type(loss).__name__)
    corrected = (module.correct_negatives, module.correct_positive)
    wanted: list[tuple[bool, str]] = []
    if loss is losses.cosine_contrastive or isinstance(loss, AlignmentUniformity):
        wanted.append((similarity.kind == "cosine", "model.similarity.kind=cosine"))
    if loss is losses.cosine_contrastive:
        plain = similarity.temperature == 1 and similarity.log_temperature is None
        wanted.append((plain, "model.similarity.temperature=1"))
    if loss in (losses.cosine_contrastive, losses.bpr) or isinstance(loss, GeneralisedBinary):
        wanted.append((not any(corrected), "correct_negatives=false correct_positive=false"))
    if loss is losses.binary:
        wanted.append((corrected[0] == corrected[1], f"correct_positive={str(corrected[0]).lower()}"))
    if isinstance(loss, GeneralisedBinary):
        wanted.append((isinstance(module.sampler, (Uniform, Full)), "negatives=uniform"))
    if cures := [cure for holds, cure in wanted if not holds]:
        raise ConfigError(f"{name} is not itself with these settings: set {' '.join(cures)}")


def _off(config: DictConfig, key: str) -> bool:
    """Whether a setting stands in a block that is switched off."""
    within = key.rpartition(".")[0]
    return bool(within) and OmegaConf.select(config, within).get("_target_", "") is None


def _unknown(node: Any, path: str) -> Iterator[str]:
    """A line for each setting within ``node`` that the class it is for does not have.

    A null ``_target_`` switches a block off (``init=none``): what an experiment set for it then does no harm.
    """
    if not isinstance(node, Mapping) or node.get("_target_", "") is None:
        return
    if "_target_" in node:
        try:
            found = hydra.utils.get_object(node["_target_"])
        except (ImportError, ValueError) as e:
            told = f"{path}._target_: found {node['_target_']!r}, expected a class's dotted name"
            raise ConfigError(f"{told}: {e}") from e
        taken = inspect.signature(found).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            has = ", ".join(name for name in taken if name in node) or "none"
            for name in sorted(set(map(str, node)) - set(taken) - _HYDRA):
                yield (
                    f"{path}.{name}: settings of {node['_target_'].rpartition('.')[2]} are {has}; leave it out, or say "
                    f"'~{path}.{name}' where an experiment sets it"
                )
    for name, inner in node.items():
        yield from _unknown(inner, f"{path}.{name}")
