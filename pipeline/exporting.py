"""From a run to a bundle: embed, index, measure, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table

from data.batches import Collator, QueryBatches
from data.examples import Examples
from data.histories import HistoryLog
from data.prepared import PreparedDataset
from data.tasks import build_task
from pipeline import build
from pipeline.checking import check_settings
from pipeline.console import err, progress, say
from pipeline.datasets import dataset_of
from pipeline.evaluating import aggregation_of, given, load
from pipeline.runs import Run
from towers.errors import ConfigError, DataError
from towers.features import Ragged
from towers.features import columns as c
from towers.index import embed, tuning_told
from towers.index.auto import AutoIndex
from towers.index.bundle import BundleContents, write_bundle
from towers.index.golden import Golden
from towers.index.probing import with_probe_growth
from towers.index.publish import staging
from towers.index.recall import check_recall, measure_index, recall_of_prefix, recall_of_storage
from towers.index.recipes import IndexRecipe, build_index
from towers.index.requests import ACTIONS, HISTORY, TIMES, KnownUsers, encode_raw
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.storage import stored
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.index.tuning import Candidate, tune
from towers.model.embedder import Embedder

GOLDEN = 8


def export(config: DictConfig) -> Path:
    """Write the bundle of ``config.run``; return its path.

    Raises:
        ConfigError: the index loses more than ``index.min_recall`` allows, or the run is a baseline.
    """
    run = Run.open(config.run)
    trained = run.config
    if (baseline := build.baseline(trained)) is not None:
        raise ConfigError(
            f"{run.folder} holds a {type(baseline).__name__}: its vectors are as wide as a catalogue or a vocabulary, "
            "and no index serves them\n"
            f"  cure: export short vectors; train them with python train.py data={trained.data.name} {baseline.instead}"
        )
    dataset = dataset_of(run)
    target = Path(config.bundle or run.folder / "bundle")
    if target.exists():
        raise ConfigError(f"{target} exists already; remove it, or set bundle=PATH to another place")
    check_settings(config, ("index",))
    wanted: IndexRecipe | AutoIndex = hydra.utils.instantiate(config.index, _convert_="all")
    with progress("export") as tell, staging(target) as scratch:
        tell("loading the model", 0.0)
        module = load(
            run, dataset, dim=config.dim, aggregate=given(config.aggregate), scratch=folder(scratch / "features")
        )
        embedder = module.embedder()
        history = embed.map_history(embedder, scratch / "history.npy")
        tell("embedding the catalogue", 0.1)
        blocks = embed.item_blocks(embedder)
        embeddings = embed.write_blocks(blocks, len(embedder.items), scratch / "embeddings.npy")
        similarity = Similarity(**module.model.similarity.to_manifest())
        held_out = held_out_queries(dataset, embedder, trained.data.get("select", "valid"))
        kept = stored(embeddings, wanted.storage, scratch / "codes.npy")
        index, resolved, candidates = indexed(kept, held_out, wanted, similarity, tell)
        tell("measuring it against exact search", 0.6)
        resolved = with_probe_growth(resolved, index, kept, held_out)
        search = VectorSearch(index, kept, resolved)
        measured = measure_index(search, held_out)
        check_recall(resolved, measured[f"index/recall@{resolved.recall_at}"])
        if config.dim is not None:
            features = folder(scratch / "whole")
            whole = load(run, dataset, aggregate=given(config.aggregate), scratch=features).embedder()
            embed.map_history(whole, features / "history.npy")
            asked = held_out_queries(dataset, whole, trained.data.get("select", "valid"))
            found = recall_of_prefix(search, held_out, embed.item_blocks(whole), asked)
            measured[f"index/dim_recall@{resolved.recall_at}"] = found
        if resolved.storage != "float32":
            measured[f"index/storage_recall@{resolved.recall_at}"] = recall_of_storage(search, embeddings, held_out)
        tell("exporting the towers", 0.7)
        start, end = dataset.info["time_us"] or (None, None)
        known = known_users(dataset)
        if config.match and (module.model.user_features or module.model.history_dim):  # else all users are alike
            tell("embedding the users", 0.75)
            known = replace(known, embeddings=user_vectors(dataset, embedder, end), attributes=user_attributes(dataset))
        contents = BundleContents(
            schema=dataset.schema,
            users=dataset.featurizer("user"),
            items=dataset.featurizer("item"),
            context=dataset.featurizer("context"),
            similarity=similarity,
            item_ids=dataset.ids("item"),
            attributes=attributes(dataset),
            embeddings=kept,
            index=index,
            recipe=resolved,
            user_tower=export_user_tower(module.model),
            item_tower=export_item_tower(module.model),
            golden=golden(dataset, embedder, end),
            history_inputs=history,
            known_users=known,
            data_start=start,
            data_end=end,
            provenance={
                "run": str(run.folder),
                "refitted": dataset.refit,
                "dataset": dataset.name,
                **aggregation_of(module),
                **run.provenance,
            },
            measured=measured,
            tuning=candidates,
        )
        tell("writing, hashing and replaying the bundle", 0.85)
        write_bundle(contents, target)
        tell("done", 1.0)
    if candidates:
        err.print(tuning_table(candidates, resolved))
    for name, value in measured.items():
        say(f"  {name} {value:,.4g}")
    return target


def folder(path: Path) -> Path:
    """A new folder."""
    path.mkdir()
    return path


def indexed(
    embeddings: NDArray[np.float32],
    held_out: NDArray[np.float32],
    wanted: IndexRecipe | AutoIndex,
    similarity: Similarity,
    tell: Callable[[str, float], None],
) -> tuple[Any, IndexRecipe, Sequence[Candidate]]:
    """The index that is asked for, its resolved recipe and, where it had to be chosen, what it was chosen from."""
    if isinstance(wanted, AutoIndex):
        tuned = tune(embeddings, held_out, wanted, similarity, lambda what, share: tell(what, 0.2 + 0.4 * share))
        return tuned.index, tuned.recipe, tuned.candidates
    tell(f"building the {wanted.kind} index of {len(embeddings):,} items", 0.3)
    return build_index(embeddings, wanted, similarity), wanted.resolve(*embeddings.shape), ()


def tuning_table(candidates: Sequence[Candidate], recipe: IndexRecipe) -> Table:
    """The kinds of index that were measured, for the terminal."""
    title = f"the fastest index with recall@{recipe.recall_at} of at least {recipe.min_recall:g}: {recipe.kind}"
    out = Table(title=title, title_justify="left")
    for i, column in enumerate(tuning_told.COLUMNS):
        out.add_column(column, justify="right" if i > 2 else "left", overflow="fold")
    for row in tuning_told.rows(candidates):
        out.add_row(*map(escape, row), style="bold" if row[1] == "chosen" else None)
    return out


def attributes(dataset: PreparedDataset) -> pa.Table:
    """Filter and display columns of the items, with posted and expires."""
    table = dataset.raw("item", dataset.info["attributes"]["items"])
    for name in (c.POSTED, c.EXPIRES):
        if name in dataset.items.column_names and name not in table.column_names:
            table = table.append_column(name, dataset.items[name])
    return table


def user_attributes(dataset: PreparedDataset) -> pa.Table | None:
    """Filter and display columns of the users."""
    table = dataset.raw("user", dataset.info["attributes"]["users"])
    return table if table.column_names else None


def known_users(dataset: PreparedDataset) -> KnownUsers:
    """All users: features, whole histories, and what they took, which is not recommended again."""
    h: HistoryLog = dataset.history
    values = h.item.astype(np.int64)
    lists = Ragged(h.offsets, values)
    times = h.time if dataset.schema.clock == "time" else None
    return KnownUsers(
        dataset.ids("user"), dataset.encoded("user"), lists, h.action.astype(np.int64), times, dataset.taken
    )


def held_out_queries(dataset: PreparedDataset, embedder: Embedder, select: str, most: int = 2_000) -> Any:
    """``[Q, D]`` user vectors that the model was not trained to hit: those of the selecting task, or of a test."""
    name = select if select in dataset.info["tasks"] else next(iter(dataset.info["tasks"]))
    task = build_task(dataset, name, history_length=dataset.schema.history_length)
    vectors = embed.query_embeddings(embedder, task.batches)
    rows = np.random.default_rng(0).permutation(len(vectors))[:most]
    return vectors[np.sort(rows)]


def golden(dataset: PreparedDataset, embedder: Embedder, at: int | None) -> list[Golden]:
    """Some known users with the vectors that the trained model gives them at the end of the data, whatever they ask.

    Each is asked for by id and, where JSON can hold its fields, as somebody outside would send it.
    """
    rows = np.unique(np.linspace(0, len(dataset.users) - 1, GOLDEN).astype(np.int32))
    ids = dataset.ids("user").take(rows).to_pylist()
    asked: NDArray[np.int32] | None = None
    told: list[dict[str, Any] | None] = [None] * len(rows)
    if len(dataset.contexts):
        asked = np.linspace(0, len(dataset.contexts) - 1, len(rows)).astype(np.int32)
        contexts = dataset.raw("context").take(asked).to_pylist()
        told = [{name: value for name, value in one.items() if value is not None} for one in contexts]
    vectors = user_vectors(dataset, embedder, at, rows, asked)
    out = [Golden(user, vector, at, context) for user, vector, context in zip(ids, vectors, told, strict=True)]
    if dataset.featurizer("user").text_encoders:
        return out  # a bundle opens where the encoder is not installed: known users do without
    users = raw_users(dataset, rows)
    some = [i for i, user in enumerate(users) if in_json(user)]
    check_encoding(dataset, rows[some], [users[i] for i in some])
    raws = [(users[i] | (told[i] or {}), vectors[i]) for i in some if in_json(told[i])]
    return out + [Golden(raw, vector, at) for raw, vector in raws]


def raw_users(dataset: PreparedDataset, rows: NDArray[np.int32]) -> list[dict[str, Any]]:
    """``[U]`` users as a request has them: raw features, and the events that the tower reads."""
    featurizer, h = dataset.featurizer("user"), dataset.history
    table = dataset.raw("user", featurizer.columns).take(rows)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns[c.USER] = dataset.ids("user").take(rows).to_pylist()
    raws = [{name: columns[name][i] for name in featurizer.columns} for i in range(len(rows))]
    actions, ids = [a.name for a in dataset.schema.actions], dataset.ids("item")
    for raw, row in zip(raws, rows.tolist(), strict=True):
        start, end = h.offsets[row : row + 2].tolist()
        part = slice(max(start, end - dataset.schema.history_length), end)
        raw[HISTORY] = ids.take(pa.array(h.item[part])).to_pylist()
        raw[ACTIONS] = [actions[a] for a in h.action[part]]
        if dataset.schema.clock == "time" and h.time is not None:
            raw[TIMES] = h.time[part].tolist()
    return raws


def check_encoding(dataset: PreparedDataset, rows: NDArray[np.int32], raws: Sequence[Mapping[str, Any]]) -> None:
    """Hold what serving makes of raw users against what training reads of them, byte for byte.

    Raises:
        DataError: something differs.
    """
    trained, featurizer = dataset.encoded("user"), dataset.featurizer("user")
    for name, values in encode_raw(featurizer, raws, "user").items() if raws else ():
        was = trained[name.removeprefix("user.")][rows]
        if (values.dtype, values.tobytes()) != (was.dtype, was.tobytes()):
            raise DataError(
                f"{name}: serving encodes raw users otherwise than they were prepared", where=str(dataset.folder),
                cure="prepare the data again with this version, train and export",
            )  # fmt: skip


def in_json(value: Any) -> bool:
    """Whether JSON can hold it as it is: no times, no bytes, no NaN."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def user_vectors(
    dataset: PreparedDataset,
    embedder: Embedder,
    at: int | None,
    rows: NDArray[np.int32] | None = None,
    contexts: NDArray[np.int32] | None = None,
) -> NDArray[np.float32]:
    """``[U, D]``: users (by default all) as they are at the end of the data; without contexts, they ask nothing."""
    rows = np.arange(len(dataset.users), dtype=np.int32) if rows is None else rows
    h = dataset.history
    nothing = np.zeros(len(rows), np.int32) if dataset.schema.context else None
    blank = Examples.queries(rows, h.offsets[rows + 1], at, nothing if contexts is None else contexts)
    collate = Collator(h, dataset.schema.clock, dataset.schema.history_length)
    return embed.query_embeddings(embedder, QueryBatches(blank, collate))
