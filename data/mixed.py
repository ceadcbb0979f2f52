"""A validation of known and new items together, where a protocol's own validation has new items only.

New items are held out with all of their events, so that a model that lifts every new item looks good there and hides
the known ones. To see both, some users give up one more pair, of an item that stays known::

    train.parquet       the protocol's, without the pairs that are given up
    valid.parquet       the protocol's: pairs of new items
    valid_warm.parquet  the pairs given up, one for each of those users
    items.parquet       all items, with the tables that are taken over beside it
    candidates.parquet  items of train and of the new ones: what is ranked. Items of the test are not there yet
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.folders import atomic_folder
from data.writer import write_json
from towers.errors import ConfigError, DataError

RECORD = "mixed.json"
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MixedConfig:
    """What to write.

    Attributes:
        protocol: folder with ``train``, ``valid``, ``all_items`` and ``cold_valid_items`` as Parquet.
        tables: further files of it that are taken over as they are.
        share: of the users with enough pairs who give up one.
        min_pairs: how many are enough.
        min_users: training users whom an item keeps at least when its pair is given up.
        seed: of the users and their pairs.

    Raises:
        ConfigError: a number leaves nothing, or a user without a history.
    """

    protocol: str
    tables: Sequence[str] = ()
    share: float = 0.5
    min_pairs: int = 5
    min_users: int = 2
    seed: int = 2026

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing, or a user without a history."""
        object.__setattr__(self, "tables", list(self.tables))  # as the record in JSON has it
        if not 0 < self.share <= 1 or self.min_pairs < 2 or self.min_users < 1:
            raise ConfigError(
                f"generate: share={self.share}, min_pairs={self.min_pairs}, min_users={self.min_users}; "
                "set share above 0 and at most 1, min_pairs to at least 2, min_users to at least 1"
            )


def generate(config: MixedConfig, folder: Path, progress: Callable[[str, float], None]) -> None:
    """Write the files; the folder appears when it is complete.

    Raises:
        DataError: a file is not there, or no pair can be given up.
    """
    progress("reading the protocol", 0.0)
    source = Path(config.protocol)
    train, valid, items, new = (
        _read(source / f"{n}.parquet") for n in ("train", "valid", "all_items", "cold_valid_items")
    )
    user, item = (train[n].to_numpy().astype(np.int64) for n in ("user", "item"))
    progress("choosing pairs", 0.3)
    given = given_up(user, item, config)
    if not given.any():
        raise DataError(
            "no user can give up a pair",
            where=str(source / "train.parquet"),
            cure="lower generate.min_pairs or min_users",
        )
    candidates = np.union1d(item, new["item"].to_numpy().astype(np.int64))
    with atomic_folder(folder) as out:
        progress("writing", 0.6)
        for name, table in (
            ("train", train.filter(pa.array(~given))),
            ("valid", valid),
            ("valid_warm", train.filter(pa.array(given))),
            ("items", items),
            ("candidates", pa.table({"item": pa.array(candidates).cast(items["item"].type)})),
        ):
            pq.write_table(table, out / f"{name}.parquet")
        for name in config.tables:
            shutil.copyfile(_there(source / name), out / name)
        write_json(out / RECORD, {"config": asdict(config)})


def given_up(user: Ints, item: Ints, config: MixedConfig) -> NDArray[np.bool_]:
    """Which pairs are given up: at random one of each of ``share`` of the users with at least ``min_pairs``.

    Args:
        user: ``[E]`` users of the training pairs, from 0 on; every pair is there once.
        item: ``[E]`` items.
        config: the settings.

    Returns:
        ``[E]``.
    """
    rng = np.random.default_rng(config.seed)
    left = np.bincount(item)  # users whom each item still has
    pairs = np.bincount(user)
    order = rng.permutation(len(user))
    order = order[np.argsort(user[order], kind="stable")]  # users in turn, each one's pairs at random
    starts = np.concatenate([[0], np.cumsum(pairs)])
    out = np.zeros(len(user), bool)
    for u in rng.permutation(np.flatnonzero(pairs >= config.min_pairs)):
        if rng.random() >= config.share:
            continue
        mine = order[starts[u] : starts[u + 1]]
        can = mine[left[item[mine]] > config.min_users]
        if len(can):
            out[can[0]] = True
            left[item[can[0]]] -= 1
    return out


def _read(path: Path) -> pa.Table:
    return pq.read_table(_there(path))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError("no such file", where=str(path), cure="set shared=PATH to the folder of the real data")
    return path
