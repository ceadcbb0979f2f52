"""A task's queries in parts and in words: slices of its metrics, examples for its report.

Shapes: ``Q`` queries, ``T`` targets of all queries end to end.
"""

from __future__ import annotations

import numpy as np

from data.prepared import PreparedDataset
from towers.evaluation.examples import Example, draw_examples
from towers.evaluation.results import Evaluation
from towers.evaluation.slices import Slice, history_length, target_warmth
from towers.evaluation.task import Task
from towers.features import Ragged


def slices(task: Task, dataset: PreparedDataset) -> dict[str, Slice]:
    """By the length of the users' histories, and by whether training saw the targets (and the items that ask)."""
    lengths = np.concatenate([(b.history >= 0).sum(1).numpy() for b in task.batches])
    target = _warmth(task, dataset)
    if task.retrieve == "items":
        return {"history length": history_length(lengths), "target": target}
    by_user = np.zeros(len(dataset.users), np.int64)  # who is no candidate counts as without a history
    by_user[task.candidates] = lengths
    asking = Ragged(np.arange(len(task) + 1), task.query)
    return {
        "history length of the target": history_length(by_user[task.targets.values]),
        "target": target,
        "item": target_warmth(asking, dataset.events("item")),
    }


def cold_share(task: Task, dataset: PreparedDataset) -> float:
    """Share of the targets that training never saw."""
    return float((_warmth(task, dataset).codes == 0).mean())


def examples(result: Evaluation, dataset: PreparedDataset) -> list[Example]:
    """Some queries in words. What stands beside an item that asks for users are those who had taken it before."""
    task = result.task
    raw, ids, users = dataset.raw("item"), dataset.ids("item"), dataset.ids("user")
    names = [n for n in dataset.info["attributes"]["items"] if n in raw.column_names][:2]

    def item(row: int) -> str:
        shown = [str(raw[n][row].as_py()) for n in names if raw[n][row].as_py() is not None]
        return ", ".join(shown) or str(ids[row].as_py())

    def user(row: int) -> str:
        return str(users[row].as_py())

    if task.retrieve == "users":
        takers, bounds = task.exclude.values, task.exclude.offsets
        return draw_examples(
            result,
            query=lambda q: item(int(task.query[q])),
            title=user,
            history=lambda q: takers[bounds[q] : bounds[q + 1]].tolist(),
        )
    histories = [h[h >= 0].tolist() for b in task.batches for h in b.history.numpy()]
    return draw_examples(result, query=lambda q: user(int(task.query[q])), title=item, history=lambda q: histories[q])


def _warmth(task: Task, dataset: PreparedDataset) -> Slice:
    return target_warmth(task.targets, dataset.events(task.retrieve.removesuffix("s")))
