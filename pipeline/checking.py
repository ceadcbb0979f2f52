"""Settings that nothing takes, found before anything is prepared or built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from towers.errors import ConfigError

_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


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
    nodes = ((block, OmegaConf.to_container(config, resolve=True).get(block)) for block in blocks)  # type: ignore[union-attr]
    if found := [line for block, node in nodes for line in _unknown(node, block)]:
        raise ConfigError("settings that nothing takes:\n" + "\n".join(f"  - {line}" for line in found))


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
