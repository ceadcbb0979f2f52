"""A bundle → answers: ``python query.py bundle=PATH user=ID k=10 filter='…'`` prints a table."""

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from pipeline.console import out, user_errors
from towers.errors import ConfigError
from towers.index.retriever import Retriever


@hydra.main(version_base="1.3", config_path="configs", config_name="query")
@user_errors
def main(config: DictConfig) -> None:
    """Open the bundle, ask once, print."""
    if not config.bundle or config.user is None:
        raise ConfigError("set bundle=PATH and user=ID (or user='{feature: value, …}')")
    retriever = Retriever.open(config.bundle)
    raw = OmegaConf.is_config(config.user)
    user = OmegaConf.to_container(config.user) if raw else config.user
    if not raw and retriever.bundle.schema.user_id == "string":
        user = str(user)
    found = retriever.recommend(
        user, config.k, exclude=list(config.exclude) or None, filter=config.filter, at=config.at
    )
    shown = retriever.attributes(found.ids)
    names = config.columns or shown.column_names[:6]
    table = Table("rank", "item", "score", *names)
    rows = shown.select(list(names)).to_pylist()
    for rank, (item, score, row) in enumerate(zip(found.ids, found.scores, rows, strict=True), start=1):
        table.add_row(str(rank), str(item), f"{score:.4f}", *(_cell(row[n]) for n in names))
    out.print(table)


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
