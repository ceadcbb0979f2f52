"""A hundred swaps, twenty of them of bad bundles, under eight querying threads.

python -m benchmarks.swaps                  # 20,000 items, each thread asks 10 ms after its last answer (3 minutes)
python -m benchmarks.swaps --pause 0        # each thread asks without a pause: the processor is never idle

Two bundles have the same vectors and items of other ids, so that an answer tells which of them gave it. Every answer is
compared with what a retriever of the bundle that it names gives. In rounds, each with as many seconds without a swap as
with swaps one after the other: the worst case, and the ratio of neighbouring p99 is what is reported.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.damage import ACCIDENTS
from benchmarks.hostility import DESIGNS
from benchmarks.line import report
from tests.index.small_market import END, FIELDS, Market
from towers.index.bundle import write_bundle
from towers.index.handle import RetrieverHandle
from towers.index.manifest import bundle_id
from towers.index.recipes import IndexRecipe
from towers.index.results import Results
from towers.index.retriever import Retriever
from towers.index.swap_report import SwapReport

THREADS, ROUNDS, EVERY = 8, 5, 5  # one swap in five is of a bad bundle
QUERIES: list[tuple[Any, dict[str, Any]]] = [
    *((user, {}) for user in (11, -5, 30)),
    *(({"field": field}, {}) for field in FIELDS),
    (11, {"filter": "place == 'Rome'"}), ({"field": "law"}, {"filter": "salary > 3000 and 'sql' in skills"}),
    ([11, 30, -5, 11], {}), ([{"field": f} for f in FIELDS], {"filter": "salary > 100000"}),
]  # fmt: skip


class Seen(NamedTuple):
    """What the threads met in one phase."""

    seconds: list[float]
    bundles: Counter[str]
    wrong: int
    failed: int


def prepare(folder: Path, items: int, bad: int) -> tuple[list[Path], list[Path]]:
    """Two sound bundles, and copies spoilt in different ways."""
    market = Market(items)
    recipe = IndexRecipe("ivf_flat") if items >= 10_000 else IndexRecipe("flat")
    contents = market.contents(recipe)
    ids = pa.array(np.asarray(market.ids) + 10**9, pa.int64())
    good = [
        write_bundle(contents, folder / "a"),
        write_bundle(
            market.contents(recipe, item_ids=ids, golden=contents.golden[1:], index=contents.index), folder / "b"
        ),
    ]
    ways, spoilt = (*ACCIDENTS, *DESIGNS), []
    for i in range(bad):
        (folder / f"bad-{i}").mkdir()
        root = Path(shutil.copytree(good[i % 2], folder / f"bad-{i}/bundle"))
        ways[i % len(ways)](root, Random(i))
        spoilt.append(root)
    return good, spoilt


def ask(handle: RetrieverHandle | Retriever, number: int) -> Results:
    """One of the queries."""
    users, options = QUERIES[number % len(QUERIES)]
    return handle.recommend(users, 50, at=END, **options)


def query(
    handle: RetrieverHandle, expected: dict[str, list[Results]], stop: threading.Event, n: int, pause: float
) -> Seen:
    """Ask until told to stop, and compare every answer with that of the bundle that it names."""
    seen = Seen([], Counter(), 0, 0)
    number = n
    while not stop.wait(pause):
        begun = time.perf_counter()
        try:
            found = ask(handle, number)
        except Exception as e:
            print(f"query {number} failed: {e}", file=sys.stderr)
            seen = seen._replace(failed=seen.failed + 1)
            continue
        seen.seconds.append(time.perf_counter() - begun)
        seen.bundles[found.bundle] += 1
        right = expected[found.bundle][number % len(QUERIES)]
        if not (np.array_equal(found.ids, right.ids) and np.array_equal(found.scores, right.scores)):
            seen = seen._replace(wrong=seen.wrong + 1)
        number += 1
    return seen


def phase(
    handle: RetrieverHandle, expected: dict[str, list[Results]], swaps: Sequence[Path], seconds: float, pause: float
) -> tuple[Seen, list[SwapReport], float]:
    """Queries for so long, or as long as the swaps take."""
    stop, begun = threading.Event(), time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        asking = [pool.submit(query, handle, expected, stop, n, pause) for n in range(THREADS)]
        try:
            reports = [handle.swap(path) for path in swaps]
            if not swaps:
                time.sleep(seconds)
        finally:
            took = time.perf_counter() - begun
            stop.set()
        all_seen = [a.result() for a in asking]
    return Seen(
        [s for seen in all_seen for s in seen.seconds], sum((seen.bundles for seen in all_seen), Counter()),
        sum(seen.wrong for seen in all_seen), sum(seen.failed for seen in all_seen),
    ), reports, took  # fmt: skip


def plan(good: Sequence[Path], bad: Sequence[Path], swaps: int) -> list[tuple[Path, bool]]:
    """The two sound bundles in turn, and every fifth a bad one."""
    out: list[tuple[Path, bool]] = []
    spoilt, turn = iter(bad), 1
    for i in range(swaps):
        if i % EVERY == EVERY - 1:
            out.append((next(spoilt), False))
        else:
            out.append((good[turn % 2], True))
            turn += 1
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--pause", type=float, default=10.0, help="milliseconds between an answer and the next query")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        good, bad = prepare(Path(temporary), args.items, args.swaps // EVERY)
        # what IVF finds may depend on how many queries share a search; the expected answers are asked alike
        alone = {bundle_id(path): Retriever.open(path, threads=1) for path in good}
        expected = {name: [ask(r, i) for i in range(len(QUERIES))] for name, r in alone.items()}
        handle = RetrieverHandle.open(good[0], opener=partial(Retriever.open, threads=1))
        steps = plan(good, bad, args.swaps)
        per_round = -(-len(steps) // ROUNDS)
        ratios, failed, wrong, unexpected, answers, swap_s = [], 0, 0, 0, 0, []
        phase(handle, expected, [], 1.0, args.pause / 1e3)
        seconds = 5.0
        for start in range(0, len(steps), per_round):
            part = steps[start : start + per_round]
            with_swaps, reports, seconds = phase(handle, expected, [p for p, _ in part], seconds, args.pause / 1e3)
            without, _, _ = phase(handle, expected, [], min(seconds, 30.0), args.pause / 1e3)
            p99 = [float(np.quantile(s.seconds, 0.99)) for s in (with_swaps, without)]
            ratios.append(p99[0] / p99[1])
            for (path, sound), told in zip(part, reports, strict=True):
                if told.accepted != sound:
                    unexpected += 1
                    print(f"{path.parent.name}: {told}")
                if told.accepted:
                    swap_s.append(sum(told.seconds.values()))
            for seen in (with_swaps, without):
                failed, wrong = failed + seen.failed, wrong + seen.wrong
                answers += len(seen.seconds)
            print(f"{len(part)} swaps in {seconds:.1f} s: p50 {np.median(with_swaps.seconds) * 1e3:.2f} ms, p99 "
                  f"{p99[0] * 1e3:.2f} ms, {len(with_swaps.seconds):,} answers {sorted(with_swaps.bundles.values())}; "
                  f"without: p50 {np.median(without.seconds) * 1e3:.2f} ms, p99 {p99[1] * 1e3:.2f} ms, "
                  f"{len(without.seconds):,} answers", flush=True)  # fmt: skip
    every = ", ".join(f"{r:.2f}" for r in ratios)
    took = statistics.median(swap_s)
    print(f"{len(steps)} swaps, {len(bad)} of bad bundles, {answers:,} answers; a swap takes {took:.2f} s (median)")
    print(f"p99 with swaps / without, by round: {every}")
    report("swaps/failed_queries", failed, 0, at_most=True)
    report("swaps/answers_of_no_one_version", wrong, 0, at_most=True)
    report("swaps/bad_accepted_or_good_refused", unexpected, 0, at_most=True)
    report("swaps/p99_ratio", statistics.median(ratios), 2.0, at_most=True)


if __name__ == "__main__":
    main()
