"""Filtered search against FAISS, and random filters against brute force.

python -m benchmarks.filtered                        # speed: 200,000 items of 64 dimensions, the best 100
python -m benchmarks.filtered --items 1000000
python -m benchmarks.filtered --random 1000000       # a million results of random filters, each checked

Speed, at 0.1 %, 1 %, 10 % and 50 % pass, one query at a time and in batches that share a filter, against

* the IVF index with a FAISS selector, the cheapest nprobe that keeps recall@100 ≥ .95 on these very queries;
* the IVF index asked for more, and the results filtered, likewise.

Ours chooses its route, and has its nprobe from other queries. Either side gets the eligible items in the form that it
reads: a bitmap each. Seconds are those of the processor, one thread. The vectors have a spectrum that falls slowly, as
trained embeddings have, and no clusters that would make cells easy.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.line import interleaved, report
from towers.features import Ragged
from towers.index.attributes import AttributeIndex
from towers.index.bitmaps import rows_where
from towers.index.faiss_setup import faiss
from towers.index.filter_text import passing
from towers.index.probing import with_probe_growth
from towers.index.recall import recall_at
from towers.index.recipes import KINDS, IndexRecipe, build_index
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity

_faiss: Any = faiss
COSINE = Similarity("cosine")
RECALL = 0.95
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # [Q, D] → scores, rows, as FAISS gives them


def vectors(n: int, dim: int, seed: int) -> np.ndarray:
    """``[N, D]`` of norm 1, whose variance falls as 1, 1/2, 1/3, … over the dimensions."""
    x = np.random.default_rng(seed).standard_normal((n, dim)) / np.sqrt(np.arange(1, dim + 1))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def probes(least: float, index: Any, recall: Callable[[int], float]) -> int:
    """The least nprobe, in steps of 5 %, that gives this recall, which grows with it."""
    steps = sorted({min(index.nlist, math.ceil(1.05**i)) for i in range(200)})
    return steps[min(bisect_left(steps, least, key=recall), len(steps) - 1)]


def tuned(items: np.ndarray, held_out: np.ndarray, k: int) -> VectorSearch:
    """An IVF index with the settings that other queries want."""
    recipe = IndexRecipe("ivf_flat", recall_at=k, min_recall=RECALL).resolve(*items.shape)
    index: Any = build_index(items, recipe, COSINE)
    exact = faiss.knn(held_out, items, k, metric=faiss.METRIC_INNER_PRODUCT)[0]

    def recall(probed: int) -> float:
        index.nprobe = probed
        return recall_at(index.search(held_out, k)[0], exact)

    recipe = replace(recipe, nprobe=probes(RECALL, index, recall))
    index.nprobe = recipe.nprobe
    return VectorSearch(index, items, with_probe_growth(recipe, index, items, held_out))


def with_selector(index: Any, mask: np.ndarray, k: int, probed: int) -> Search:
    """FAISS asked for eligible items."""
    selector = _faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    params = _faiss.SearchParametersIVF(nprobe=probed, sel=selector)
    return lambda queries: index.search(queries, k, params=params)


def with_filter_after(index: Any, mask: np.ndarray, k: int, probed: int) -> Search:
    """FAISS asked for so many items that enough of them are eligible, of which the rest is dropped."""
    fetch = min(len(mask), math.ceil((k + 3 * math.sqrt(k)) / mask.mean()))
    params = _faiss.SearchParametersIVF(nprobe=probed)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = index.search(queries, fetch, params=params)
        if len(queries) == 1:
            best = np.flatnonzero(mask[rows[0]] & (rows[0] >= 0))[:k]
            short = k - len(best)
            return (
                np.pad(scores[:, best], ((0, 0), (0, short)), constant_values=-np.inf),
                np.pad(rows[:, best], ((0, 0), (0, short)), constant_values=-1),
            )
        keep = mask[rows] & (rows >= 0)
        order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
        scores = np.where(keep, scores, -np.inf)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    return search


def speed(items: int, dim: int, k: int, n_queries: int, batch: int, shares: Sequence[float]) -> None:
    """Prints a table and the lines."""
    catalogue, asked = vectors(items, dim, 0), vectors(2 * n_queries, dim, 1)
    held_out, queries = asked[:n_queries], asked[n_queries:]
    ours = tuned(catalogue, held_out, k)
    index, r = ours.index, ours.recipe
    print(f"{items:,} items of {dim}, k {k}, {n_queries} queries, {r.nlist} cells, nprobe {r.nprobe}, "
          f"growth {r.probe_growth:.2f}")  # fmt: skip
    for share in shares:
        mask = np.random.default_rng(2).random(items) < share
        allowed, rows = rows_where(mask), np.flatnonzero(mask)
        wanted = min(k, len(rows))
        exact = ours.exact(queries, wanted, rows)[1]
        for size in (1, batch):
            parts = [queries[i : i + size] for i in range(0, len(queries), size)]

            def all_of(search: Search, parts: list[np.ndarray] = parts) -> np.ndarray:
                return np.concatenate([search(part)[0] for part in parts])

            def mine(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return ours.search(part, wanted, allowed=allowed)[::-1]  # noqa: B023

            others = {}
            for name, make in (("selector", with_selector), ("filter after", with_filter_after)):
                probed = probes(
                    RECALL,
                    index,
                    lambda p, make=make: recall_at(make(index, mask, wanted, p)(queries)[0], exact),  # noqa: B023
                )
                others[name] = (probed, make(index, mask, wanted, probed))
            found = recall_at(all_of(mine), exact)
            route = ours.explained(parts[0], wanted, allowed=allowed)[1]
            worst = math.inf
            for name, (probed, search) in others.items():
                t = interleaved(lambda s=search: all_of(s), lambda: all_of(mine), 5, time.process_time)
                print(f"{share:6.1%} batch {size:3}  ours {route.route:5} nprobe {route.nprobe:4} recall {found:.4f} "
                      f"{len(queries) / t.b:8.0f}/s   FAISS, {name:12} nprobe {probed:4} {len(queries) / t.a:8.0f}/s   "
                      f"{t.ratio:.2f} x")  # fmt: skip
                worst = min(worst, t.ratio)
            name = f"filtered/{share:.1%}/{'single' if size == 1 else f'batch{size}'}"
            report(f"{name}/recall@{k}", found, RECALL, at_most=False)
            report(f"{name}/times_the_better_faiss", worst, 5 if share <= 0.01 else 1, at_most=False)


# Random filters.


def market(n: int, dim: int, seed: int = 3) -> tuple[np.ndarray, pa.Table, np.ndarray]:
    """Items around fields of work, with attributes of every kind; and which field each is of."""
    rng = np.random.default_rng(seed)
    field = rng.integers(0, 30, n)
    x = vectors(n, dim, seed) + vectors(30, dim, seed + 1)[field]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    gone = rng.random((4, n)) < 0.1
    table = pa.table(
        {
            "field": pa.array([f"f{i}" for i in field]),
            "place": pa.array(rng.zipf(1.3, n) % 5000, pa.int64(), mask=gone[0]),
            "salary": pa.array(rng.lognormal(11, 0.5, n), mask=gone[1]),
            "remote": pa.array(rng.random(n) < 0.2, mask=gone[2]),
            "posted": pa.array(rng.integers(0, 10**9, n) * 10**6, pa.timestamp("us", "UTC"), mask=gone[3]),
            "skill": pa.array([list(s) for s in rng.zipf(1.2, (n, 3)) % 300], pa.list_(pa.int64())),
        }
    )
    return x.astype(np.float32), table, field


def conditions(table: pa.Table, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Random filters as text, with where each is true and where false, by numpy."""
    valid = {c: table[c].is_valid().to_numpy() for c in table.column_names}
    flat = {c: table[c].fill_null(0).to_numpy() for c in ("place", "salary")}
    flat["field"] = table["field"].to_numpy()
    flat["remote"] = table["remote"].fill_null(False).to_numpy()
    flat["posted"] = table["posted"].cast(pa.int64()).fill_null(0).to_numpy()
    skills = np.stack(table["skill"].to_numpy())

    def leaf() -> tuple[str, np.ndarray, str]:
        name = str(rng.choice(["field", "place", "salary", "remote", "posted", "skill"]))
        i = int(rng.integers(0, len(table)))
        if name in ("field", "place"):
            value = flat[name][i]
            return f"{name} == {value!r}" if name == "field" else f"{name} == {value}", flat[name] == value, name
        if name == "salary":
            low, high = sorted(rng.choice(flat["salary"], 2).tolist())
            return f"{low!r} <= salary < {high!r}", (flat["salary"] >= low) & (flat["salary"] < high), name
        if name == "remote":
            return "remote", flat["remote"], name
        if name == "posted":
            second = int(flat["posted"][i] // 10**6)
            when = np.datetime64(second, "s")
            return f"posted > '{when}'", flat["posted"] > second * 10**6, name
        some = rng.choice(skills.ravel(), 2)
        return f"skill & {some.tolist()}", np.isin(skills, some).any(1), name

    def node(depth: int) -> tuple[str, np.ndarray, np.ndarray]:
        kind = rng.choice(["leaf", "not", "and", "or"], p=[0.4, 0.15, 0.3, 0.15] if depth < 3 else [1, 0, 0, 0])
        if kind == "leaf":
            text, hit, name = leaf()
            return text, hit & valid[name], ~hit & valid[name]
        a, yes, no = node(depth + 1)
        if kind == "not":
            return f"(not {a})", no, yes
        b, yes2, no2 = node(depth + 1)
        both = kind == "and"
        return f"({a} {kind} {b})", yes & yes2 if both else yes | yes2, no | no2 if both else no & no2

    while True:
        yield node(0)


def random_results(wanted: int, items: int, dim: int, k: int) -> None:
    """Checks as many results of random filters, on every kind of index."""
    x, table, _ = market(items, dim)
    rng = np.random.default_rng(5)
    attributes = AttributeIndex(table)
    held_out = x[rng.integers(0, items, 200)] + 0.3 * vectors(200, dim, 8)
    held_out = (held_out / np.linalg.norm(held_out, axis=1, keepdims=True)).astype(np.float32)
    searches = []
    for kind in KINDS:
        recipe = IndexRecipe(kind, nprobe=32, ef_construction=60, ef_search=200, recall_at=k).resolve(items, dim)
        index = build_index(x, recipe, COSINE)
        searches.append(VectorSearch(index, x, with_probe_growth(recipe, index, x, held_out)))
        r = searches[-1].recipe
        print(f"{kind:9} nprobe {r.probes(k):4} growth {r.probe_growth:.2f}", flush=True)
    drawn = conditions(table, rng)
    seen = ineligible = short = wrong = filters = 0
    recall: dict[str, list[float]] = {}
    routes: Counter[str] = Counter()
    while seen < wanted:
        text, mask, _ = next(islice(drawn, 1))
        filters += 1
        allowed = passing(text, attributes)
        wrong += allowed != rows_where(mask)
        search = searches[filters % len(searches)]
        queries = held_out[rng.integers(0, len(held_out), rng.choice([1, 20]))]
        lists = [np.unique(rng.integers(0, items, rng.integers(0, 40))) for _ in queries]
        exclude = Ragged(np.cumsum([0, *map(len, lists)]), np.concatenate(lists).astype(np.int64))
        (rows, _), plan = search.explained(queries, k, allowed=allowed, exclude=exclude)
        routes[f"{search.recipe.kind} {plan.route}"] += 1
        everything = queries @ x.T
        for i, mine in enumerate(lists):
            may = mask.copy()
            may[mine] = False
            there = rows[i][rows[i] >= 0]
            eligible = int(may.sum())
            seen += max(1, len(there))
            ineligible += int((~may[there]).sum()) + len(there) - len(np.unique(there))
            short += len(there) != min(k, eligible)
            if len(there):
                best = np.partition(everything[i][may], eligible - len(there))[eligible - len(there)]
                found = float((everything[i][there] >= best - 1e-5).mean())
                share = f"1e{math.floor(math.log10(mask.mean()))}" if mask.mean() < 0.1 else "1e-1 … 1"
                recall.setdefault(f"{search.recipe.kind} {share}", []).append(found)
    print(f"{seen:,} results of {filters:,} filters;", ", ".join(f"{r} {n}" for r, n in sorted(routes.items())))
    for name, found in sorted(recall.items()):
        print(f"  recall {name:22} mean {np.mean(found):.4f} least {min(found):.2f} of {len(found):,} queries")
    report("filtered/random/wrong_filters", wrong, 0, at_most=True)
    report("filtered/random/ineligible_or_twice", ineligible, 0, at_most=True)
    report("filtered/random/short_answers", short, 0, at_most=True)
    means = [float(np.mean(found)) for found in recall.values()]
    report(f"filtered/random/least_recall@{k}_of_a_kind_and_share", min(means), RECALL, at_most=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--dim", type=int, default=None)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.001, 0.01, 0.1, 0.5])
    parser.add_argument("--random", type=int, default=0, help="check so many results of random filters instead")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if args.random:
        random_results(args.random, args.items or 100_000, args.dim or 32, args.k)
    else:
        speed(args.items or 200_000, args.dim or 64, args.k, args.queries, args.batch, args.shares)


if __name__ == "__main__":
    main()
