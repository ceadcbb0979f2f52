"""A validation of known and new items: who gives up which pair, and that nothing else changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixed import MixedConfig, generate, given_up
from towers.errors import ConfigError, DataError

TRAIN = {
    "user": [0] * 6 + [1] * 4 + [2] * 5,
    "item": [10, 11, 12, 13, 14, 15, 10, 11, 12, 13, 10, 11, 12, 13, 14],
}


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    for name, columns in {
        "train": {**TRAIN, "n_events": list(range(15))},
        "valid": {"user": [0, 1], "item": [20, 21], "n_events": [1, 1]},
        "all_items": {"item": [*range(10, 16), 20, 21, 30]},
        "cold_valid_items": {"item": [20, 21]},
        "item_concepts": {"item": [10, 20], "concept": [1, 1]},
    }.items():
        (tmp_path / "protocol").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "protocol" / f"{name}.parquet")
    return tmp_path / "protocol"


def written(protocol: Path, **settings: Any) -> dict[str, pa.Table]:
    out = protocol.parent / "out"
    config = MixedConfig(str(protocol), ["item_concepts.parquet"], **settings)
    generate(config, out, lambda what, share: None)
    return {p.stem: pq.read_table(p) for p in out.glob("*.parquet")}


def test_one_pair_of_each_user_with_enough_moves_to_a_split_of_its_own(protocol: Path) -> None:
    made = written(protocol, share=1.0)
    hidden, kept = made["valid_warm"], made["train"]
    assert sorted(hidden["user"].to_pylist()) == [0, 2]  # user 1 has four pairs
    both = pa.concat_tables([kept, hidden]).sort_by("n_events")
    assert both["item"].to_pylist() == TRAIN["item"]
    assert set(hidden["item"].to_pylist()) <= {10, 11, 12, 13}  # 14 and 15 have fewer than three users


def test_new_items_are_ranked_beside_the_known_and_items_of_the_test_are_not(protocol: Path) -> None:
    made = written(protocol)
    assert made["candidates"]["item"].to_pylist() == [10, 11, 12, 13, 14, 15, 20, 21]
    assert made["items"]["item"].to_pylist() == [*range(10, 16), 20, 21, 30]
    assert made["valid"]["item"].to_pylist() == [20, 21]
    assert made["item_concepts"].num_rows == 2


def test_an_item_keeps_its_last_users() -> None:
    """Items 0 and 1 with three users each can lose one pair each, whoever comes first."""
    user, item = np.repeat(np.arange(3), 2), np.tile([0, 1], 3)
    given = given_up(user, item, MixedConfig("", share=1.0, min_pairs=2, min_users=2))
    assert np.bincount(item[~given]).tolist() == [2, 2]
    assert given.sum() == 2


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    pairs=st.sets(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1),
    share=st.floats(0.1, 1.0),
    min_pairs=st.integers(2, 5),
    min_users=st.integers(1, 3),
)
def test_whatever_the_log(pairs: set[tuple[int, int]], share: float, min_pairs: int, min_users: int) -> None:
    user, item = np.array(sorted(pairs)).T
    given = given_up(user, item, MixedConfig("", share=share, min_pairs=min_pairs, min_users=min_users))
    assert np.bincount(user[given], minlength=1).max() <= 1
    assert (np.bincount(user)[user[given]] >= min_pairs).all()
    assert (np.bincount(item[~given], minlength=8)[item[given]] >= min_users).all()


def test_half_of_the_users_at_random() -> None:
    user, item = np.repeat(np.arange(1000), 5), np.tile(np.arange(5), 1000)
    first, again, other = (given_up(user, item, MixedConfig("", seed=s)) for s in (1, 1, 2))
    assert 450 < first.sum() < 550
    assert (first == again).all()
    assert (first != other).any()
    assert set(item[first]) == set(range(5))


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"min_pairs": 1}, {"min_users": 0}])
def test_settings_that_leave_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MixedConfig("", **wrong)


def test_what_is_missing_is_told(protocol: Path) -> None:
    with pytest.raises(DataError, match="no user can give up"):
        written(protocol, min_pairs=7)
    (protocol / "all_items.parquet").unlink()
    with pytest.raises(DataError, match="all_items"):
        written(protocol)
