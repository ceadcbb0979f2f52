"""A bundle → answers: ``python query.py bundle=PATH user=ID k=10 filter='…'`` prints a table."""

import hydra
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from pipeline.console import out, user_errors
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
    retriever = Retriever.open(config.bundle)
    found, shown, what = _jobs(retriever, config) if config.item is None else _near(retriever, config)
    names = config.columns or shown.column_names[:6]
    table = Table("rank", what, "score", *names)
    rows = shown.select(list(names)).to_pylist() if names else [{}] * len(found.ids)
    for rank, (id_, score, row) in enumerate(zip(found.ids, found.scores, rows, strict=True), start=1):
        table.add_row(str(rank), str(id_), f"{score:.4f}", *(_cell(row[n]) for n in names))
    out.print(table)


def _jobs(retriever: Retriever, config: DictConfig) -> tuple[Results, pa.Table, str]:
    """Items for a user."""
    user, context = (OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for x in (config.user, config.context))
    if not isinstance(user, dict) and retriever.bundle.schema.user_id == "string":
        user = str(user)
    fuse = Fusion(**config.fusion) if config.fusion.method else None
    exclude = list(config.exclude) or None
    found = retriever.recommend(
        user, config.k, exclude=exclude, filter=config.filter, at=config.at, context=context, fuse=fuse
    )
    return found, retriever.attributes(found.ids), "item"


def _near(retriever: Retriever, config: DictConfig) -> tuple[Results, pa.Table, str]:
    """Users, or other items, for an item."""
    item = str(config.item) if retriever.bundle.schema.item_id == "string" else config.item
    if config.retrieve == "users":
        found = retriever.match(item, config.k, exclude=list(config.exclude) or None, filter=config.filter)
        return found, retriever.user_attributes(found.ids), "user"
    found = retriever.similar(item, config.k, filter=config.filter, at=config.at)
    return found, retriever.attributes(found.ids), "item"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    main()
