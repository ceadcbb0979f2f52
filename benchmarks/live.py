"""Queries while items are written; and a writer that is killed.

python -m benchmarks.live                       # 200,000 items of 64 dimensions, and 600 upserts a second
python -m benchmarks.live --written 200000      # the same beside 200,000 upserts that lie there already
python -m benchmarks.live --bundle PATH         # users of a real bundle, and raw items through its item tower
python -m benchmarks.live --kills 200           # see `live_kills`

One thread asks one query after the other (the best 100; a part of the items is not posted yet or expired), for a few
seconds alone, then for a few beside a thread that upserts in commits of ``--batch`` items, and so on in turns. Loss of
throughput is the median over neighbouring slices. The store lies on the disk, each commit waits for it.

Where others use the machine too, slices differ by more than what is looked for. ``query_throughput_loss_one_core`` is
made of processor time instead: what a query takes beside writes and alone, and what is left of a core to queries when
``--rate`` upserts a second (their commits, merges and all other threads) have had their part. That is the loss if all
threads took turns on one core; what waiting costs it cannot see.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.line import interleaved, report
from benchmarks.live_kills import killed
from towers.features import Featurizer, IdMap, Schema
from towers.index.layout import MOMENT
from towers.index.live import LiveItems
from towers.index.live_items import ItemReader
from towers.index.live_store import LiveStore
from towers.index.opening import OpenBundle
from towers.index.recipes import IndexRecipe, build_index
from towers.index.retriever import Retriever
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity

NOW = 1_800_000_000_000_000
Write = Callable[[int], None]  # writes so many items


def catalogue(n: int, dim: int, seed: int) -> tuple[np.ndarray, pa.Table]:
    """``[N, D]`` of norm 1, whose variance falls over the dimensions; and attributes, half of them not live."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)) / np.sqrt(np.arange(1, dim + 1))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    posted = NOW + rng.integers(-(10**12), 3 * 10**11, n)
    table = {"place": rng.integers(0, 50, n), "posted": posted, "expires": posted + rng.integers(0, 2 * 10**12, n)}
    kinds = [pa.int64(), MOMENT, MOMENT]
    return vectors, pa.table({k: pa.array(v, t) for (k, v), t in zip(table.items(), kinds, strict=True)})


def synthetic(n: int, dim: int, store: LiveStore | None) -> Retriever:
    """A retriever over bare vectors; nothing but ``search``, and upserts of vectors, works."""
    vectors, attributes = catalogue(n, dim, 0)
    recipe = IndexRecipe("ivf_flat", nlist=512, nprobe=48, probe_growth=0.3)
    manifest = {"dim": dim, "data": {"end": 0}, "counts": {"history_dim": 0}, "schema_hash": "", "files": {}}
    bundle = OpenBundle(
        manifest=manifest, schema=Schema((), ()), similarity=Similarity("cosine"), users=Featurizer(()),
        context=Featurizer(()), items=IdMap(pa.array(np.arange(n)), "item"), attributes=attributes,
        search=VectorSearch(build_index(vectors, recipe, Similarity("cosine")), vectors, recipe.resolve(n, dim)),
        history_inputs=None, user_ids=None, known=None, user_tower=None, golden={},  # type: ignore[arg-type]
    )  # fmt: skip
    retriever = Retriever(bundle)
    if store is not None:
        reader = ItemReader(Featurizer(()), None, attributes.schema, dim, 0)  # type: ignore[arg-type]
        retriever._live = LiveItems(store, retriever._as_exported, reader)
    return retriever


def vectors_writer(retriever: Retriever, n: int, dim: int) -> Write:
    """New items and new versions of the bundle's, half and half."""
    vectors, attributes = catalogue(50_000, dim, 1)
    rows, ids = attributes.to_pylist(), np.random.default_rng(2)
    at = 0

    def write(m: int) -> None:
        nonlocal at
        some = [(at + i) % len(rows) for i in range(m)]
        given = [
            rows[j] | {"item": n + at + i if i % 2 else int(ids.integers(0, n))} for i, j in enumerate(some)
        ]  # fmt: skip
        retriever.upsert(given, vectors[some])
        at += m

    return write


def raw_writer(retriever: Retriever) -> Write:
    """Items of the bundle under new ids, their raw attributes through the item tower."""
    text = retriever.bundle.schema.item_id == "string"
    names = retriever.bundle.attributes.column_names
    rows = retriever.bundle.attributes.to_pylist()
    at = 0

    def write(m: int) -> None:
        nonlocal at
        given = []
        for i in range(at, at + m):
            number = 10**12 + i
            given.append({n: rows[i % len(rows)][n] for n in names} | {"item": f"new-{i}" if text else number})
        retriever.upsert(given)
        at += m

    return write


class Beside:
    """A thread that writes at a steady rate.

    Args:
        write: how.
        rate: items a second.
        batch: items of a commit.
    """

    def __init__(self, write: Write, rate: float, batch: int) -> None:
        self._write, self._pause, self._batch = write, batch / rate, batch
        self._stop = threading.Event()
        self.commits: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stop.is_set():
            begun = time.perf_counter()
            self._write(self._batch)
            self.commits.append(time.perf_counter() - begun)
            due += self._pause
            self._stop.wait(max(0.0, due - time.perf_counter()))

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Slice(NamedTuple):
    """Queries for a while.

    Attributes:
        queries: asked.
        seconds: that took.
        asking: processor seconds of the thread that asked.
        others: those of all other threads of the process.
    """

    queries: int
    seconds: float
    asking: float
    others: float

    @property
    def rate(self) -> float:
        """Queries a second."""
        return self.queries / self.seconds


def one_after_the_other(ask: Callable[[int], object], seconds: float) -> Slice:
    """Ask for so long."""
    begun, asked = time.perf_counter(), 0
    mine, all_ = time.thread_time(), time.process_time()
    while (now := time.perf_counter()) < begun + seconds:
        ask(asked)
        asked += 1
    asking = time.thread_time() - mine
    return Slice(asked, now - begun, asking, time.process_time() - all_ - asking)


def one_core(alone: Slice, beside: Slice, upserts: int, rate: float) -> float:
    """The loss of throughput if all threads took turns on one core, from processor time."""
    left = 1 - rate * beside.others / max(1, upserts)
    return 1 - left * (alone.asking / alone.queries) / (beside.asking / beside.queries)


def throughput(ask: Callable[[int], object], write: Write, args: argparse.Namespace) -> None:
    """Prints the two lines."""
    ask(0)
    losses, on_one_core, rates, commits, taken = [], [], [], [], []
    for turn in range(args.turns):
        slices = {}
        for beside in (turn % 2 == 0, turn % 2 == 1):  # there and back, so that a drift meets both
            if not beside:
                slices[beside] = one_after_the_other(ask, args.seconds)
                continue
            begun = time.perf_counter()
            with Beside(write, args.rate, args.batch) as writer:
                slices[beside] = one_after_the_other(ask, args.seconds)
                upserts = len(writer.commits) * args.batch
            rates.append(len(writer.commits) * args.batch / (time.perf_counter() - begun))
            commits += writer.commits
        losses.append(1 - slices[True].rate / slices[False].rate)
        taken.append(slices[True].others / max(1, upserts))
        on_one_core.append(one_core(slices[False], slices[True], upserts, args.rate))
        print(
            f"turn {turn}: {slices[False].rate:.0f} queries/s alone, {slices[True].rate:.0f} beside {rates[-1]:.0f} "
            f"upserts/s; on one core a loss of {on_one_core[-1]:.1%}"
        )
    told = np.percentile(np.asarray(commits) * 1e3, [50, 99])
    print(f"commit of {args.batch}: median {told[0]:.1f} ms, p99 {told[1]:.1f} ms, "
          f"{1e3 * args.batch * statistics.median(taken):.1f} ms of a processor; "
          f"loss from {min(losses):.1%} to {max(losses):.1%}")  # fmt: skip
    report("live/upserts_per_s", statistics.median(rates), 0.98 * args.rate, at_most=False)
    report("live/query_throughput_loss", statistics.median(losses), 0.1, at_most=True)
    report("live/query_throughput_loss_one_core", statistics.median(on_one_core), 0.1, at_most=True)


def measured(args: argparse.Namespace) -> None:
    """Throughput beside writes, and what 200,000 written items cost."""
    with tempfile.TemporaryDirectory() as folder:
        store = LiveStore(Path(folder) / "catalogue.sqlite")
        ask: Callable[[int], object]
        ask_without: Callable[[int], object]
        if args.bundle:
            retriever, without = Retriever.open(args.bundle, live=store), Retriever.open(args.bundle)
            users: Any = without.bundle.known.ids.to_pylist()  # type: ignore[union-attr]
            write, n = raw_writer(retriever), len(without)
            ask = lambda i: retriever.recommend(users[i % len(users)], 100, at="export")  # noqa: E731
            ask_without = lambda i: without.recommend(users[i % len(users)], 100, at="export")  # noqa: E731
        else:
            n = args.items
            retriever, without = synthetic(n, args.dim, store), synthetic(n, args.dim, None)
            write, queries = vectors_writer(retriever, n, args.dim), catalogue(1000, args.dim, 3)[0]
            ask = lambda i: retriever.search(queries[i % 1000], 100, at=NOW)  # noqa: E731
            ask_without = lambda i: without.search(queries[i % 1000], 100, at=NOW)  # noqa: E731
        print(f"{n:,} items, {args.written:,} written before")
        for start in range(0, args.written, 5000):
            write(min(5000, args.written - start))
        if args.written:
            retriever.live.compact()
            parts = [f"{len(p):,} {p.search.recipe.kind}" for p in retriever.live.now.parts[1:]]
            some = iter(range(10**9))
            slower = interleaved(lambda: ask(next(some)), lambda: ask_without(next(some)), 300)
            print(
                f"parts: {'; '.join(parts)}. A query takes {slower.a * 1e3:.2f} ms, without them {slower.b * 1e3:.2f}"
            )
            report("live/query_time_ratio", slower.ratio, 2.0, at_most=True)
        throughput(ask, write, args)
        store.close()


def main() -> None:
    """One of the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--written", type=int, default=0)
    parser.add_argument("--rate", type=float, default=600)
    parser.add_argument("--batch", type=int, default=30)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--kills", type=int, default=0)
    args = parser.parse_args()
    if not args.kills:
        measured(args)
        return
    verdict = killed(args.kills)
    print(f"{verdict.kills} kills, {verdict.acknowledged:,} writes acknowledged before them, {verdict.torn} torn")
    report("live/acknowledged_writes_lost", verdict.lost + verdict.torn, 0, at_most=True)
    report("live/deleted_items_returned", verdict.returned, 0, at_most=True)


if __name__ == "__main__":
    main()
