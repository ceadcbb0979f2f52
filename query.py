"""A bundle → answers: ``python query.py bundle=PATH user=ID k=10 filter='…'`` prints a table."""

from typing import Any

import hydra
import pyarrow as pa
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.table import Table

from data.instants import iso
from pipeline.checking import check_query
from pipeline.console import cell, out, say, user_errors
from towers.errors import ConfigError
from towers.index import Fusion, Results, Retriever


@hydra.main(version_base="1.3", config_path="configs", config_name="query")
@user_errors
def main(config: DictConfig) -> None:
    """Open the bundle, ask once, print."""
    if not config.bundle or (config.user is None) == (config.item is None):
        raise ConfigError("set bundle=PATH and user=ID (or user='{feature: value, …}'), or item=ID")
    if config.retrieve not in ("items", "users") or (config.item is None and config.retrieve == "users"):
        raise ConfigError(f"retrieve={config.retrieve}; items for a user or an item, users for an item")
    check_query(config)
    retriever = Retriever.open(config.bundle)
    found, shown, what = _jobs(retriever, config) if config.item is None else _near(retriever, config)
    names = [config.columns] if isinstance(config.columns, str) else config.columns or shown.column_names[:6]
    if unknown := sorted(set(names) - set(shown.column_names)):
        raise ConfigError(f"columns: no attribute {unknown[0]!r}; there are {', '.join(shown.column_names) or 'none'}")
    table = Table("rank", what, "score", *names)
    rows = shown.select(list(names)).to_pylist() if names else [{}] * len(found.ids)
    for rank, (id_, score, row) in enumerate(zip(found.ids, found.scores, rows, strict=True), start=1):
        table.add_row(str(rank), str(id_), f"{score:.4f}", *(cell(row[n]) for n in names))
    out.print(table)
    if found.plan is not None:
        say(str(found.plan))
    if not len(found.ids):
        end = retriever.bundle.manifest["data"]["end"]
        say(f"nothing passes; the bundle's data end at {iso(end)}: at=export asks as of then" if end and not config.at
            else "nothing passes the filter and the exclusions")  # fmt: skip


def _jobs(retriever: Retriever, config: DictConfig) -> tuple[Results, pa.Table, str]:
    """Items for a user."""
    user, context = (OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for x in (config.user, config.context))
    if not isinstance(user, dict) and retriever.bundle.schema.user_id == "string":
        user = str(user)
    fuse = Fusion(**config.fusion) if config.fusion.method else None
    exclude = _ids(config.exclude, retriever.bundle.schema.item_id)
    found = retriever.recommend(
        user, config.k, exclude=exclude, filter=config.filter, at=config.at, context=context, fuse=fuse,
        explain=config.explain,
    )  # fmt: skip
    return found, retriever.attributes(found.ids), "item"


def _near(retriever: Retriever, config: DictConfig) -> tuple[Results, pa.Table, str]:
    """Users, or other items, for an item."""
    item = str(config.item) if retriever.bundle.schema.item_id == "string" else config.item
    if config.retrieve == "users":
        exclude = _ids(config.exclude, retriever.bundle.schema.user_id)
        found = retriever.match(item, config.k, exclude=exclude, filter=config.filter)
        return found, retriever.user_attributes(found.ids), "user"
    exclude = _ids(config.exclude, retriever.bundle.schema.item_id)
    found = retriever.similar(item, config.k, exclude=exclude, filter=config.filter, at=config.at)
    return found, retriever.attributes(found.ids), "item"


def _ids(given: ListConfig, kind: str) -> list[Any] | None:
    """Ids to exclude; the command line reads 007 as text, but 7 as a number."""
    return [str(i) if kind == "string" else i for i in given] or None


if __name__ == "__main__":
    main()
