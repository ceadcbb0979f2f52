"""A few answers to look at: who asked, what they had seen, what they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from towers.evaluation.results import Evaluation


@dataclass(frozen=True)
class Answer:
    """One place of a list: a title, its score, and whether it was a target."""

    title: str
    score: float
    hit: bool


@dataclass(frozen=True)
class Example:
    """One query, in words.

    Attributes:
        query: who (or what) asks.
        history: titles, the newest first; where users are retrieved, some who had taken the item before.
        answers: the first places of the list.
        targets: titles to be found, each with its place from 1, or 0 where it is beyond the list.
    """

    query: str
    history: tuple[str, ...]
    answers: tuple[Answer, ...]
    targets: tuple[tuple[str, int], ...]


def draw_examples(
    evaluation: Evaluation,
    query: Callable[[int], str],
    title: Callable[[int], str],
    history: Callable[[int], Iterable[int]],
    *,
    count: int = 6,
    length: int = 5,
    seed: int = 0,
) -> list[Example]:
    """Queries drawn at random, good answers and bad.

    Args:
        evaluation: to draw from.
        query: display name of a query number.
        title: display name of a row of what is retrieved.
        history: such rows that the query has already, the newest first.
        count: how many queries.
        length: how many places, and at most how many titles of history and targets.
        seed: of the draw.
    """
    task, ranking = evaluation.task, evaluation.ranking
    drawn = np.random.default_rng(seed).choice(len(task), min(count, len(task)), replace=False)
    examples = []
    for q in drawn.tolist():
        targets = task.targets.values[task.targets.offsets[q] : task.targets.offsets[q + 1]].tolist()
        place = {item: i + 1 for i, item in enumerate(ranking.items[q].tolist())}
        best = zip(ranking.items[q, :length].tolist(), ranking.scores[q, :length].tolist(), strict=True)
        examples.append(
            Example(
                query=query(q),
                history=tuple(title(item) for item in islice(history(q), length)),
                answers=tuple(Answer(title(item), score, item in targets) for item, score in best if item >= 0),
                targets=tuple((title(item), place.get(item, 0)) for item in targets[:length]),
            )
        )
    return examples
