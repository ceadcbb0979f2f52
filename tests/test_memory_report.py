"""The memory report of a run counts what streaming holds of the log: by hand, and against what is held."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hydra import compose, initialize_config_dir

from data.prepared import PreparedDataset
from data.reading import TrainingParts, bytes_in_memory
from data.windows import windows
from pipeline import memory
from tests.data.worlds import prepared, write

ROOT = Path(__file__).parent.parent
USERS, ITEMS = 2000, 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """100,000 events, of which the last tenth are validation, and the tenth before that is test's."""
    folder, rng, n = tmp_path_factory.mktemp("log"), np.random.default_rng(0), 100_000
    columns = {"user": rng.integers(0, USERS, n), "item": rng.integers(0, ITEMS, n), "time": np.arange(n) * 1_000_000}
    write(folder / "log.parquet", pa.table(columns))
    return prepared(
        folder,
        items={"features": {"item_id": {"kind": "id"}}},
        tasks={"valid": {}},
        split={"rule": "global_time", "valid": 0.1, "test": 0.1},
        faults={"duplicate": {"limit": 1}},
    )


def held(make: Callable[[], object]) -> int:
    """Bytes of what was made, of numpy and of Arrow."""
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before if made else 0
    finally:
        tracemalloc.stop()


def test_examples_and_histories_by_hand(log: PreparedDataset) -> None:
    counts = log.info["counts"]
    assert (counts["users"], counts["items"], counts["history"]) == (USERS, ITEMS, 100_000)
    assert counts["positives"]["train"] == 80_000
    # a record of 32 bytes and its place in the order; 21 for each event of a history; where those of a user lie
    whole = 80_000 * (32 + 8) + 100_000 * 21 + (USERS + 1) * 32 + USERS * 40 + ITEMS * 64
    assert bytes_in_memory(log) == whole
    assert bytes_in_memory(log, whole + 1) == whole
    assert bytes_in_memory(log, 1_000_000) == 1_000_000, "the rest stays on the disk"
    assert TrainingParts(log).bytes == pytest.approx(whole, rel=0.01), "that is what streaming is decided by"


def test_what_is_told_of_the_data_is_what_they_take(log: PreparedDataset) -> None:
    fresh = PreparedDataset(log.folder)

    def opened() -> object:
        parts = TrainingParts(fresh)
        plan = windows(parts.sizes, parts.weights, parts.capacity, 0, 0)
        return parts.open(plan.parts[0]), plan.positions(0, 0, 1)

    assert 0.75 < bytes_in_memory(log) / held(opened) < 1.25


def test_a_run_on_a_processor_counts_its_data_and_a_card_does_not_hold_them(
    log: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["experiment=market", "data=gowalla", "model=hybrid", "model.dim=8", "model.item.id_dropout=0"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config, tight = (compose("train", [*settings, f"data.memory_budget={b}"]) for b in ("4GB", "1MB"))
    monkeypatch.setattr(memory.memory, "free_bytes", lambda device: None)
    processor, card = torch.device("cpu"), torch.device("cuda")
    whole = memory.report(config, log, processor)
    assert whole.data == bytes_in_memory(log)
    assert f"data {memory.memory.size(whole.data)}" in str(whole)
    assert memory.report(tight, log, processor).data == 1_000_000
    assert memory.report(config, log, card).data == 0
    assert "data" not in str(memory.report(config, log, card))
    several = memory.report(config, log, processor, world=2)
    assert several.data == whole.data, "each process holds all of it"
