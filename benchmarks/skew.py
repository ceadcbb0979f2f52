"""Skew between training and serving: the same raw members as tower inputs, and the same top k, on both ways.

python train.py experiment=market && python export.py run=runs/market/latest
python -m benchmarks.skew                                   # 10,000 members of that run (1 minute)

* Inputs: the rows of the members' file as requests, with their histories, encoded by the retriever, against what the
  data pipeline prepared from that file and collates: byte for byte.
* Top k: members by id and by raw features through the retriever, against the trained model's own vectors and an
  exact ranking of the live items that they have not taken, up to ties within 1e-5.

``B`` users, ``L`` history length, ``N`` items, ``D`` dimensions, ``k`` results.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.line import report
from data.batches import Collator
from data.examples import Examples
from data.prepared import PreparedDataset
from pipeline.datasets import dataset_of
from pipeline.evaluating import load
from pipeline.exporting import user_vectors
from pipeline.runs import Run
from towers.features import columns as c
from towers.index import embed
from towers.index.requests import encode_raw, pad_histories, raw_events
from towers.index.retriever import Retriever

BLOCK, TIES = 500, 1e-5
Arrays = dict[str, np.ndarray]


def trained_inputs(dataset: PreparedDataset, rows: np.ndarray, at: int | None) -> Arrays:
    """What the user tower is given for some users at a moment, by the way of the training data."""
    h = dataset.history
    examples = Examples.queries(rows.astype(np.int32), h.offsets[rows + 1], at)
    batch = Collator(h, dataset.schema.clock, dataset.schema.history_length)(examples)
    features = {f"user.{name}": values[rows] for name, values in dataset.encoded("user").items()}
    history = {"rows": batch.history, "action": batch.history_action, "age": batch.history_age}
    return features | {f"history.{name}": values.numpy() for name, values in history.items()}


def served_inputs(retriever: Retriever, raw: Sequence[Mapping[str, Any]], at: int) -> Arrays:
    """What it is given for requests, by the functions of the retriever."""
    b = retriever.bundle
    history = pad_histories([raw_events(user, b.items, b.schema)[0] for user in raw], b.schema, at)
    return encode_raw(b.users, raw, "user") | {f"history.{name}": a for name, a in history._asdict().items()}


def different(a: Arrays, b: Arrays) -> np.ndarray:
    """``[B]`` users of whom some input differs in a byte; of all, if a type or a shape does."""
    rows = len(next(iter(a.values())))
    if set(a) != set(b) or any(a[n].dtype != b[n].dtype or a[n].shape != b[n].shape for n in a):
        return np.ones(rows, np.bool_)
    out = np.zeros(rows, np.bool_)
    for name in a:
        x, y = (np.ascontiguousarray(v[name]).reshape(rows, -1).view(np.uint8) for v in (a, b))
        out |= (x != y).any(1)
    return out


def requests(dataset: PreparedDataset, retriever: Retriever, source: Path, key: str, rows: np.ndarray) -> list[Any]:
    """Members as somebody outside would send them: the file's own values, ids of items, names of actions, times."""
    table = pq.read_table(source)
    place = {user: i for i, user in enumerate(table[key].to_pylist())}
    ids = dataset.ids("user").take(rows).to_pylist()
    mine = table.take([place[user] for user in ids]).to_pylist()
    items, names, h = dataset.ids("item"), [a.name for a in dataset.schema.actions], dataset.history
    out = []
    for row, values in zip(rows, mine, strict=True):
        values[c.USER] = values[key]
        part = slice(h.offsets[row], h.offsets[row + 1])
        user = {name: values[name] for name in retriever.bundle.users.columns}
        user |= {"history": items.take(h.item[part]).to_pylist(), "history_actions": [names[a] for a in h.action[part]]}
        out.append(user | ({} if h.time is None else {"history_times": h.time[part].tolist()}))
    return out


def other_top(found: Any, scores: np.ndarray, rows_of: Any, k: int) -> np.ndarray:
    """``[B]`` users whose answer is not a best ``k`` of the offline scores, ties aside.

    Args:
        found: of the retriever.
        scores: ``[B, N]`` offline, ``-inf`` where an item is not eligible.
        rows_of: external ids → rows.
        k: results.
    """
    best = -np.sort(-scores, axis=1)[:, :k]
    rows = rows_of(found.ids.ravel()).reshape(found.ids.shape)
    theirs = np.where(rows >= 0, np.take_along_axis(scores, np.maximum(rows, 0), 1), -np.inf)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where both have nothing
        near = (np.abs(theirs - best) <= TIES) & (np.abs(found.scores - best) <= TIES)
    twice = np.array([len(set(r[r >= 0].tolist())) < (r >= 0).sum() for r in rows])
    return ~(near | (np.isneginf(theirs) & np.isneginf(best))).all(1) | twice


def compare(run: Run, retriever: Retriever, users: int, k: int = 20) -> dict[str, int]:
    """Users of whom something differs, by what: ``inputs``, ``by_id``, ``by_features``; and ``users`` compared."""
    dataset, config = dataset_of(run), run.config
    embedder = load(run, dataset).embedder()
    _, at = dataset.info["time_us"]
    rows = np.unique(np.linspace(0, len(dataset.users) - 1, users).astype(np.int64))
    items = embed.item_embeddings(embedder)
    posted, expires = dataset.item_times()
    live = np.ones(len(items), np.bool_)
    live &= True if posted is None else posted <= at
    live &= True if expires is None else expires > at
    source = Path(config.data.source) / config.data.users.files
    told = dict.fromkeys(("users", "inputs", "by_id", "by_features"), 0)
    for start in range(0, len(rows), BLOCK):
        mine = rows[start : start + BLOCK]
        raw = requests(dataset, retriever, source, config.data.users.key, mine)
        told["users"] += len(mine)
        told["inputs"] += int(different(trained_inputs(dataset, mine, at), served_inputs(retriever, raw, at)).sum())
        scores = user_vectors(dataset, embedder, at, mine.astype(np.int32)) @ items.T
        scores[:, ~live] = -np.inf
        o, v = dataset.taken
        gone = [v[o[row] : o[row + 1]] for row in mine]
        for i, taken in enumerate(gone):
            scores[i, taken] = -np.inf
        by_id = retriever.recommend(dataset.ids("user").take(mine), k, at=at)
        exclude = [dataset.ids("item").take(taken).to_pylist() for taken in gone]
        by_features = retriever.recommend(raw, k, at=at, exclude=exclude)
        for name, found in (("by_id", by_id), ("by_features", by_features)):
            told[name] += int(other_top(found, scores, retriever.bundle.items.rows, k).sum())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/market/latest")
    parser.add_argument("--bundle", help="with an exact index; by default RUN/bundle")
    parser.add_argument("--users", type=int, default=10_000)
    args = parser.parse_args()
    run = Run.open(args.run)
    told = compare(run, Retriever.open(args.bundle or run.folder / "bundle", threads=1), args.users)
    report("skew/users", told["users"], args.users, at_most=False)
    report("skew/users_with_other_inputs", told["inputs"], 0, at_most=True)
    report("skew/users_with_other_top20_by_id", told["by_id"], 0, at_most=True)
    report("skew/users_with_other_top20_by_features", told["by_features"], 0, at_most=True)


if __name__ == "__main__":
    main()
