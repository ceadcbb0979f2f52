"""What training is worth: two runs paired over the same users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.worth import compare
from towers.errors import DataError
from towers.evaluation.intervals import paired_difference


def per_query(users: list[int], ndcg: list[float], targets: int = 1) -> pa.Table:
    return pa.table({"user": users, "targets": np.full(len(users), targets), "ndcg@20": ndcg})


def test_values_and_share_of_the_start() -> None:
    worth = compare(
        per_query([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.2]), per_query([1, 2, 3, 4], [0.2, 0.2, 0.3, 0.3]), "ndcg@20"
    )
    assert (worth.start, worth.trained, worth.gain.value) == pytest.approx((0.2, 0.25, 0.05))
    assert worth.relative == pytest.approx(0.25)
    assert worth.gain.low <= 0.05 <= worth.gain.high


def test_a_gain_that_all_share_is_certain_however_far_users_lie_apart() -> None:
    start = np.linspace(0.0, 0.9, 50)
    worth = compare(per_query(list(range(50)), list(start)), per_query(list(range(50)), list(start + 0.01)), "ndcg@20")
    assert tuple(worth.gain) == pytest.approx((0.01, 0.01, 0.01))
    assert str(worth) == "start 0.4500, trained 0.4600: +0.0100 [+0.0100, +0.0100], +2.2%"


def test_a_run_that_gained_nothing_is_worth_nothing() -> None:
    table = per_query([1, 2], [0.0, 0.5])
    worth = compare(table, table, "ndcg@20")
    assert (*worth.gain, worth.relative) == (0.0, 0.0, 0.0, 0.0)


def test_users_are_drawn_with_all_their_queries() -> None:
    users = [user for user in range(10) for _ in range(20)]
    start, trained = np.zeros(200), np.repeat(np.linspace(-0.1, 0.2, 10), 20)
    found = compare(per_query(users, list(start)), per_query(users, list(trained)), "ndcg@20").gain
    assert found == paired_difference(trained, start, np.array(users))
    alone = paired_difference(trained, start)
    assert found.high - found.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize(
    "other", [per_query([1, 3], [0.1, 0.2]), per_query([1], [0.1]), per_query([1, 2], [0.1, 0.2], targets=2)]
)
def test_runs_over_different_queries_are_refused(other: pa.Table) -> None:
    with pytest.raises(DataError, match="different queries"):
        compare(per_query([1, 2], [0.1, 0.2]), other, "ndcg@20")


def test_an_unknown_metric_is_refused() -> None:
    table = per_query([1, 2], [0.1, 0.2])
    with pytest.raises(DataError, match=r"no metric 'mrr' by query; there are \['ndcg@20'\]"):
        compare(table, table, "mrr")
