"""A dataset read part by part gives what it gives as a whole, within its memory, and training goes on where it was."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kills import differences
from data import writer
from data.batches import TrainBatches, batches_per_epoch, joined
from data.histories import HistoryLog
from data.module import RetrievalData
from data.prepared import PreparedDataset
from data.queries import histories_window
from data.reading import Stretches, TrainingParts, _record
from data.settings import byte_size
from data.tasks import build_task
from pipeline import build
from tests.data.worlds import log_of, prepared, write
from towers.errors import ConfigError
from towers.features import Batch, Ragged
from towers.model.saving import KeepLast

GROUP = 16  # rows of a row group, hence of a part
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_ROW_GROUP", GROUP)


def world(
    folder: Path, clock: str = "time", users: int = 30, rows: int = 400, tasks: Mapping[str, Any] | None = None
) -> PreparedDataset:
    """A random log: some users with much, some with nothing in training; applications enter no history."""
    rng = np.random.default_rng(0)
    user = (users * rng.random(rows) ** 2).astype(int)
    log: dict[str, Any] = {
        "user": user, "item": rng.integers(0, 40, rows), "time": rng.integers(0, 10**9, rows),
        "action": rng.choice(["open", "apply", "shown"], rows),
    }  # fmt: skip
    late = log["time"] > 7 * 10**8
    kw: dict[str, Any] = {"time": {"events": log_of(action="action")}}.get(clock, {})
    if clock != "time":
        log["split"] = np.where(late, "valid", "train")
        events: dict[str, Any] = {"files": "log.parquet", "action": "action", "split": "split"}
        kw = {"events": events | ({"order": "time"} if clock == "order" else {}), "split": {"rule": "given"}}
    else:
        kw["split"] = {"rule": "global_time", "valid": 0.2, "test": 0.1}
    write(
        folder / "log.parquet",
        [dict(zip(log, map(str_or_int, row), strict=True)) for row in zip(*log.values(), strict=True)],
    )
    actions = {"open": {}, "apply": {"weight": 2, "history": False}, "shown": {"weight": 0, "history": False}}
    return prepared(folder, actions=actions, tasks=tasks or {"valid": {}}, history_length=6,
                    items={"features": {"item_id": {"kind": "id"}}}, **kw)  # fmt: skip


def str_or_int(value: Any) -> str | int:
    return str(value) if isinstance(value, str) else int(value)


def budgets(data: PreparedDataset) -> tuple[int, int]:
    """The smallest budget, and what everything takes."""
    parts = TrainingParts(data)
    fixed = parts.bytes - int(parts.weights.sum())
    return fixed + 4 * int(parts.weights.max()), parts.bytes


def same(a: Batch, b: Batch) -> None:
    """Equal field by field, dtypes too, padding aside."""
    a, b = joined([a, b]), joined([b, a])  # as wide as the wider one
    n = len(a) // 2
    for field in fields(Batch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Ragged):
            assert torch.equal(x.offsets, y.offsets)
            assert torch.equal(x.values, y.values)
        else:
            assert (x is None) == (y is None), field.name
            assert x is None or (x.dtype == y.dtype and torch.equal(x[:n], y[:n])), field.name


@pytest.mark.parametrize("clock", ["time", "order", "none"])
def test_a_part_gives_what_the_whole_gives(tmp_path: Path, clock: str) -> None:
    """Histories, ages, known items, whichever parts are open: neighbours, or with gaps, or one."""
    data = world(tmp_path, clock)
    parts = TrainingParts(data, budgets(data)[0])
    n = len(parts.sizes)
    assert n > 8, "the log has several parts"
    assert (np.diff(parts._first) < np.diff(parts._stop) + GROUP).all()
    everything = TrainingParts(data).open(np.arange(n))
    starts = np.cumsum(parts.sizes) - parts.sizes
    rng = np.random.default_rng(1)
    for chosen in ([0], [n - 1], [2, 3], [0, 2, 3, 6, n - 1], list(range(1, n))):
        window = parts.open(np.array(chosen))
        rows = np.concatenate([np.arange(starts[p], starts[p] + parts.sizes[p]) for p in chosen])
        order = rng.permutation(len(rows))
        same(window(order), everything(rows[order]))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=8))
def test_stretches_are_the_users_of_all_spans(spans: list[tuple[int, int]]) -> None:
    """Against sets: users in order, each once, with the events of those before."""
    events = np.arange(40) % 7  # of each user
    offsets = np.concatenate([[0], np.cumsum(events)])
    first, lengths = np.array(spans).T
    found = Stretches.of(first, first + lengths, offsets)
    users = sorted({u for start, n in spans for u in range(start, start + n)})
    assert [u for a, b in zip(found.first, found.stop, strict=True) for u in range(a, b)] == users
    assert (found.first[1:] > found.stop[:-1]).all(), "neighbours are read together"
    assert found.place(np.array(users, np.int32)).tolist() == list(range(len(users)))
    for user, before in zip(users, np.cumsum(events[users]) - events[users], strict=True):
        which = found.which(user)
        assert found.events[which] + offsets[user] - offsets[found.first[which]] == before


@pytest.mark.parametrize(
    "columns",
    [("user_row", "item_row", "history_end", "action"), ("time", "context_row", "user_row", "weight", "history_end")],
)
def test_an_example_is_half_a_line_of_the_cache(columns: tuple[str, ...]) -> None:
    record = _record(columns, 2**31 - 1, shown=False)
    assert (record.itemsize, record["history_end"]) == (32, np.int32)
    longer = _record(columns, 2**31, shown=True)
    assert longer["history_end"] == longer["shown_end"] == np.int64
    assert all(offset % longer[name].itemsize == 0 for name, (_, offset) in (longer.fields or {}).items())


def test_the_whole_is_the_training_examples(tmp_path: Path) -> None:
    data = world(tmp_path)
    e = data.examples("train")
    e = e.take(e.weight > 0)
    whole = TrainingParts(data).open(np.arange(len(TrainingParts(data).sizes))).take(np.arange(len(e)))
    for name in ("user", "item", "time", "weight", "history_end", "action", "split"):
        assert np.array_equal(getattr(whole, name), getattr(e, name)), name


def test_users_whose_events_lie_in_two_parts_are_known_whole(tmp_path: Path) -> None:
    """One user with five parts' worth of applications, which no history holds: each part knows all of them."""
    rows = [
        {"user": u, "item": i, "time": i, "action": "apply"} for u, n in ((1, 5), (2, 80), (3, 5)) for i in range(n)
    ]
    rows += [{"user": u, "item": i, "time": 10**6, "action": "open"} for u in (1, 2, 3) for i in (90, 91)]
    write(tmp_path / "log.parquet", rows)
    data = prepared(
        tmp_path, events=log_of(action="action"), actions={"apply": {"history": False}, "open": {}},
        tasks={"valid": {}}, split={"rule": "global_time", "valid": 0.01, "test": 0.01},
    )  # fmt: skip
    parts = TrainingParts(data, budgets(data)[0])
    assert len(parts.sizes) == 6
    known = parts.open(np.array([3]))(np.arange(2)).known
    assert known.values[: known.offsets[1]].tolist() == list(range(79)), "and item 79 is held out"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedDataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_ROW_GROUP", GROUP)
        yield world(tmp_path_factory.mktemp("log"))


def example_keys(batch: Batch) -> list[tuple[int, ...]]:
    assert batch.time is not None
    assert batch.action is not None
    return list(zip(*(x.tolist() for x in (batch.user, batch.item, batch.time, batch.action)), strict=True))


@given(share=st.floats(0, 1.2), size=st.integers(1, 40), ranks=st.integers(1, 3), workers=st.integers(1, 3))
@settings(derandomize=True, deadline=None, max_examples=6)
def test_an_epoch_is_every_training_event_once(
    log: PreparedDataset, share: float, size: int, ranks: int, workers: int
) -> None:
    least, most = budgets(log)
    parts = TrainingParts(log, round(least + share * (most - least)))
    found = [
        key
        for rank in range(ranks)
        for batch in TrainBatches(parts, joined, size, 7, lambda: 2, rank, ranks, workers)
        for key in example_keys(batch)
    ]
    e = log.examples("train")
    e = e.take(e.weight > 0)
    assert e.time is not None
    assert e.action is not None
    assert sorted(found) == sorted(zip(*(x.tolist() for x in (e.user, e.item, e.time, e.action)), strict=True))


def test_what_fits_is_one_window_in_the_order_of_memory(log: PreparedDataset) -> None:
    least, most = budgets(log)
    assert TrainingParts(log, most).capacity is None
    streamed = TrainingParts(log, most - 1)
    assert streamed.capacity is not None
    assert streamed.capacity < most // 4
    roomy, free = (TrainBatches(TrainingParts(log, b), joined, 32, 0, lambda: 0) for b in (most, None))
    for a, b in zip(roomy, free, strict=True):
        same(a, b)
    with pytest.raises(ConfigError, match=f"set it to at least {least:,}"):
        TrainingParts(log, least - 1)


def test_impressions_want_the_whole_log(log: PreparedDataset) -> None:
    most = TrainingParts(log, impressions=3).bytes
    assert TrainingParts(log, most, impressions=3).impressions is not None
    with pytest.raises(ConfigError, match=f"whole log in memory: {most:,} bytes.*or set impressions=0"):
        TrainingParts(log, most - 1, impressions=3)


def test_joined_batches_are_as_wide_as_the_widest(log: PreparedDataset) -> None:
    whole = TrainingParts(log).open(np.arange(len(TrainingParts(log).sizes)))
    order = np.argsort(whole.take(np.arange(len(whole.records))).history_end, kind="stable")[::-1]
    cuts = np.split(order, [1, 40, 41])
    same(joined([whole(rows) for rows in cuts]), whole(order))


@pytest.mark.parametrize(
    ("written", "size"),
    [(1000, 1000), ("1000", 1000), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("200mb", 2 * 10**8), ("7 b", 7)],
)
def test_sizes(written: int | str, size: int) -> None:
    assert byte_size(written, "memory") == size


@pytest.mark.parametrize("written", ["", "GB", "-1GB", 0, "0.1", "2 parsecs", "1,5GB", True])
def test_no_sizes(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory is .*write bytes, or a size such as"):
        byte_size(written, "memory")


BESIDE = 48 * 10**6  # what threads and allocators keep and batches made ahead take, however long the log
MEASURE = """
import json, re, sys
from pathlib import Path
from data.batches import TrainBatches, joined
from data.prepared import PreparedDataset
from data.reading import TrainingParts
data = PreparedDataset(Path(sys.argv[1]))
len(data.users), len(data.items)  # tables of entities are no part of the budget
# the peak of this process alone: getrusage knows that of the process it was forked from too
rss = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
for batch in TrainBatches(TrainingParts(PreparedDataset(Path(sys.argv[3]))), joined, 1024, 0, lambda: 0):
    pass  # threads and allocators are at work
before, n = rss(), 0
parts = TrainingParts(data, int(sys.argv[2]) or None)
for batch in TrainBatches(parts, joined, 1024, 0, lambda: 0):
    n += len(batch)
print(json.dumps([n, rss() - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_a_log_of_four_times_the_budget_takes_no_more_than_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by the system, in a process of its own; as a whole the same log takes far more."""
    monkeypatch.setattr(writer, "_ROW_GROUP", 1 << 15)
    rng = np.random.default_rng(0)
    n = 2_400_000
    columns = {
        "user": rng.integers(0, 40_000, n),
        "item": rng.integers(0, 5_000, n),
        "time": rng.integers(0, 10**12, n),
    }
    write(tmp_path / "log.parquet", pa.table(columns))
    data = prepared(
        tmp_path, events=log_of(), history_length=5, tasks={"valid": {}},
        split={"rule": "global_time", "valid": 0.01, "test": 0.01},
    )  # fmt: skip
    small = world(tmp_path / "small")
    whole = TrainingParts(data).bytes
    budget = whole // 4

    def measured(limit: int) -> tuple[int, int]:
        command = [sys.executable, "-c", MEASURE, str(data.folder), str(limit), str(small.folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        n, grown = json.loads(done.stdout)
        return n, grown

    positions, grown = measured(budget)
    assert positions == len(TrainingParts(data))
    allowed = budget + BESIDE
    assert grown < allowed, f"{grown:,} bytes, over {allowed:,}"
    assert measured(0)[1] > whole > 1.5 * allowed, "what is allowed says nothing"


def test_batches_of_an_epoch() -> None:
    assert [batches_per_epoch(n, 10, 2) for n in (2, 19, 20, 21, 40, 41, 42)] == [1, 1, 1, 1, 2, 2, 3]


def test_the_datamodule_streams(log: PreparedDataset) -> None:
    module = RetrievalData(log, batch_size=9, seed=0, validate=("valid",), memory_budget=budgets(log)[0], workers=2)
    batches = list(module.train_dataloader())
    assert len(batches) == module.batches_per_epoch()
    assert sum(map(len, batches)) == len(module.parts)


def test_without_a_thread_there_are_no_batches(log: PreparedDataset) -> None:
    with pytest.raises(ConfigError, match="workers is 0; set it to at least 1"):
        RetrievalData(log, batch_size=9, seed=0, validate=(), workers=0)


@pytest.mark.slow
def test_two_processes_stream_one_epoch(log: PreparedDataset, tmp_path: Path) -> None:
    """No process waits for a batch that the other does not have, and together they see each example once."""
    budget = budgets(log)[0]
    command = [sys.executable, "-m", "tests.data.streamed_ranks", str(log.folder), str(budget), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    module = RetrievalData(log, batch_size=9, seed=0, validate=(), memory_budget=budget)
    n = module.batches_per_epoch(2)
    assert n > 6
    assert len(one) == len(other) == 2 * n
    e = log.examples("train")
    expected = sorted(e.item[e.weight > 0].tolist())
    for epoch in (slice(n), slice(n, None)):
        assert sorted(i for batches in (one, other) for batch in batches[epoch] for i in batch) == expected
    assert one[:n] != one[n:]


@pytest.mark.parametrize(("clock", "unit"), [("time", "user"), ("time", "event"), ("order", "event"), ("none", "user")])
def test_a_task_is_the_same_with_some_histories_in_memory(tmp_path: Path, clock: str, unit: str) -> None:
    data = world(tmp_path, clock, tasks={"valid": {"unit": unit}})
    kw: dict[str, Any] = {"history_length": 6, "batch_size": 4}
    whole = build_task(data, "valid", **kw)
    for window in (1, 13 * 60, 1 << 20):  # a batch of queries at a time, some, all
        fresh = PreparedDataset(data.folder)
        task = build_task(fresh, "valid", window=window, **kw)
        assert len(task.batches) == len(whole.batches) > 4
        for _ in range(2):  # each validation passes over them
            for a, b in zip(task.batches, whole.batches, strict=True):
                same(a, b)
        assert not {"history", "known"} & fresh.__dict__.keys(), "the whole log was read"
        assert np.array_equal(task.exclude.values, whole.exclude.values)


def test_histories_of_queries_take_what_they_may(log: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    read = PreparedDataset.history_of

    def counted(self: PreparedDataset, first: int, stop: int) -> HistoryLog:
        out = read(self, first, stop)
        held.append(len(out.item))
        return out

    monkeypatch.setattr(PreparedDataset, "history_of", counted)
    most = int(np.diff(log.history_bounds[0]).max())
    task = build_task(log, "valid", history_length=6, batch_size=1, window=13 * (most + 10))
    assert sum(map(len, task.batches)) == len(task)
    assert max(held) <= most + 10
    assert len(held) < len(task), "several queries share a read"


def test_a_window_of_histories_is_a_quarter_of_a_budget_that_does_not_hold_them(log: PreparedDataset) -> None:
    events = 13 * int(log.history_bounds[0][-1])
    assert [histories_window(log, b) for b in (None, events, events - 1)] == [None, None, (events - 1) // 4]


class StoppedError(Exception):
    """A kill."""


class Watch(pl.Callback):
    """Notes the items of each batch, and stops a training before the batch after the last that it may see."""

    def __init__(self, seen: list[Any], stop: int | None) -> None:
        self.seen, self.left = seen, stop

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int) -> None:
        """Note it, or stop."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StoppedError
        self.seen.append(batch.item.tolist())


def fitted(data: PreparedDataset, folder: Path, *, stop: int | None, workers: int, seen: list[Any]) -> dict[str, Any]:
    """Train for two epochs from `last.ckpt` if there is one; what a checkpoint at the end would hold."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [
            "experiment=market", "data=gowalla", "logger=none", "threads=1", "batch_size=16", f"workers={workers}",
            f"data.memory_budget={budgets(data)[0]}", "model=hybrid", "model.item.id_dropout=0", "model.dim=8",
            "optimiser.schedule=cosine", "optimiser.warmup=5",
        ])  # fmt: skip
    pl.seed_everything(0, verbose=False)
    module_data = build.datamodule(config, data)
    assert module_data.parts.capacity is not None, "it is streamed"
    steps = 2 * -(-module_data.batches_per_epoch() // 2)
    module = build.retrieval(config, data, steps)
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_model_summary=False, limit_val_batches=0,
        accumulate_grad_batches=2, enable_progress_bar=False, default_root_dir=folder,
        callbacks=[KeepLast(str(folder), 2), Watch(seen, stop)],
    )  # fmt: skip
    try:
        trainer.fit(module, module_data, ckpt_path=str(last) if last.is_file() else None, weights_only=False)
    except StoppedError:
        return {}
    trainer.save_checkpoint(folder / "end.ckpt")
    out: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=False)
    return out


@pytest.mark.filterwarnings("ignore")  # Lightning's, of itself: the pipeline leaves them out, see pipeline.training
def test_a_training_stopped_within_an_epoch_goes_on_bit_by_bit(log: PreparedDataset, tmp_path: Path) -> None:
    """Streamed, with accumulated gradients, warm-up and a schedule; stopped again and again, with other threads."""
    straight: list[Any] = []
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = fitted(log, tmp_path / "a", stop=None, workers=1, seen=straight)
    n = len(straight) // 2
    assert n > 9
    assert sorted(i for b in straight[:n] for i in b) == sorted(i for b in straight[n:] for i in b)
    assert straight[:n] != straight[n:]
    stopped: list[Any] = []
    for stop, workers in ((7, 1), (n - 2, 3), (5, 2)):
        assert fitted(log, tmp_path / "b", stop=stop, workers=workers, seen=stopped) == {}
    found = fitted(log, tmp_path / "b", stop=None, workers=2, seen=stopped)
    assert stopped[-3:] == straight[-3:]
    for key in ("epoch", "global_step", "batches_seen", "state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(found[key], expected[key], key) == []
