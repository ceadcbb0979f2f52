"""Which index: `auto` against every FAISS index, hnswlib, usearch and ScaNN, on vectors of a trained model, in one run.

python train.py experiment=melo                       # a text tower, trained on job titles
python -m benchmarks.index --run runs/melo/latest     # 500,000 titles, skills and tasks in 20 languages
python -m benchmarks.index --run runs/melo/latest --items 50000
python -m benchmarks.index --vectors items.npy queries.npy

The items are the distinct texts of MELO, O*NET, ESCO and job views, as the item tower of the run sees them; queries
are other ones. Half of the queries tune, the other half judges. Every library gets the vectors in one process, with one
thread; each of its settings is a point (recall@100, queries per second one at a time, queries per second in batches of
256), and points are timed in turns. hnswlib, usearch and scann are found on ``--site``, or not measured:

pip install --target var/site --no-deps hnswlib usearch numkong scann    # numkong: what usearch computes with
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.line import interleaved, report
from benchmarks.retriever import retriever_over
from towers.index.auto import AutoIndex
from towers.index.exact import exact_search
from towers.index.faiss_setup import faiss
from towers.index.recall import recall_at
from towers.index.recipes import KINDS, IndexRecipe, with_search_settings
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.tuning import Candidate, tune

K, BATCH = 100, 256
COSINE = Similarity("cosine")
Search = Callable[[np.ndarray], np.ndarray]  # [Q, D] → [Q, k] rows


@dataclass
class Point:
    """A library with settings."""

    library: str
    settings: str
    search: Search
    recall: float = 0.0
    single: float = 0.0  # queries per second
    batch: float = 0.0


def texts(shared: Path) -> list[str]:
    """The distinct texts of the job data at hand, in order."""
    import duckdb  # which training needs, and serving not

    sources = {
        "melo/corpus": "text", "melo/queries": "text", "onet/alternate_titles": '"Alternate Title"',
        "onet/sample_of_reported_titles": '"Reported Job Title"', "onet/task_statements": "Task",
        "onet/technology_skills": "Example", "esco/skills": "preferredLabel", "jobviews/job_views": "title",
        "esco/occupations": "description",
    }  # fmt: skip
    parts = [f"select {column} t from '{shared}/{name}.parquet'" for name, column in sources.items()]
    for name in ("esco/skills", "esco/occupations"):
        parts.append(f"select unnest(string_split(altLabels, chr(10))) from '{shared}/{name}.parquet'")
    for column in ("description", "definition"):
        parts.append(f"select {column} from '{shared}/esco/skills.parquet'")
    found = duckdb.sql(
        f"select distinct t from ({' union all '.join(parts)}) where length(t) > 1 order by t"
    ).fetchall()
    return [row[0] for row in found]


def vectors_of(path: str, shared: Path, items: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and queries by the item tower of a run of ``experiment=melo``, texts that it cannot tell apart but once."""
    import torch

    from pipeline.datasets import dataset_of
    from pipeline.evaluating import load
    from pipeline.runs import Run

    run = Run.open(path)
    dataset = dataset_of(run)
    module, featurizer = load(run, dataset, device="cpu"), dataset.featurizer("item")
    every = texts(shared)
    every = [every[i] for i in np.random.default_rng(0).permutation(len(every))]
    seen: set[bytes] = set()
    out: list[np.ndarray] = []
    for start in range(0, len(every), 8192):
        encoded = featurizer.encode(pa.table({"title": every[start : start + 8192]}))["title"]
        new = [i for i, row in enumerate(encoded) if row.tobytes() not in seen]
        seen.update(row.tobytes() for row in encoded)
        with torch.no_grad():
            made = module.model.embed_items({"title": torch.from_numpy(encoded[new])}).float().numpy()
        out.append(made[np.linalg.norm(made, axis=1) > 0.5])  # none of its words may be known: a vector of zeros
        n = sum(map(len, out))
        print(f"\rembedding: {n:,}", end="", file=sys.stderr)
        if n >= items + queries:
            break
    print(file=sys.stderr)
    x = np.concatenate(out)
    if len(x) < items + queries:
        print(f"{len(x):,} texts that the tower can tell apart; {len(x) - queries:,} items instead of {items:,}")
    return x[queries:][:items], x[:queries]


def ours(candidate: Candidate, index: Any, items: np.ndarray, recipe: IndexRecipe) -> Point:
    """A FAISS index as the retriever asks it; compressed kinds with re-scoring."""
    asked = VectorSearch(index, items, recipe)

    def search(queries: np.ndarray) -> np.ndarray:
        with_search_settings(index, recipe)  # other points ask the same index
        return asked.search(queries, K)[0]

    told = {"nprobe": recipe.nprobe} if recipe.is_ivf else {} if recipe.kind == "flat" else {"ef": recipe.ef_search}
    told |= {"rescore": recipe.rescore} if recipe.lossy else {}
    return Point(f"faiss {candidate.kind}", " ".join(f"{k} {v}" for k, v in told.items()), search)


def faiss_points(items: np.ndarray, held_out: np.ndarray, auto: AutoIndex) -> Iterator[Point]:
    """Every kind by itself, along its curve around the recall that is asked for."""
    for kind in KINDS:
        try:
            tuned = tune(items, held_out, replace(auto, kinds=[kind], seconds=1e9, sample=len(items)), COSINE)
        except ValueError as e:
            print(f"faiss {kind}: {e}")
            continue
        c = tuned.candidates[0]
        print(f"faiss {kind}: built in {c.build_s:.1f} s, {c.bytes_per_item:,.0f} bytes an item, recall {c.recall:.4f}")
        near = [p.recipe for p in c.curve if 0.9 <= p.recall <= 0.995]
        for recipe in dict.fromkeys([tuned.recipe, *near]):
            yield ours(c, tuned.index, items, recipe)


def hnswlib_points(items: np.ndarray, m: int, ef: int) -> Iterator[Point]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(max_elements=len(items), M=m, ef_construction=ef, random_seed=1)
    index.set_num_threads(1)
    index.add_items(items)
    for depth in (100, 141, 200, 283, 400):

        def search(queries: np.ndarray, depth: int = depth) -> np.ndarray:
            index.set_ef(depth)
            return index.knn_query(queries, k=K)[0].astype(np.int64)

        yield Point("hnswlib", f"ef {depth}", search)


def usearch_points(items: np.ndarray, m: int, ef: int) -> Iterator[Point]:
    from usearch.index import Index

    index = Index(ndim=items.shape[1], metric="ip", dtype="f32", connectivity=m, expansion_add=ef)
    index.add(np.arange(len(items)), items, threads=1)
    for depth in (100, 141, 200, 283, 400):

        def search(queries: np.ndarray, depth: int = depth) -> np.ndarray:
            index.expansion_search = depth
            return index.search(queries, K, threads=1).keys.reshape(len(queries), -1).astype(np.int64)

        yield Point("usearch", f"ef {depth}", search)


def scann_points(items: np.ndarray, m: int, ef: int) -> Iterator[Point]:
    import scann

    leaves = round(2 * len(items) ** 0.5)
    made = scann.scann_ops_pybind.builder(items, K, "dot_product").set_n_training_threads(1)
    made = made.tree(leaves, leaves // 20, training_sample_size=min(len(items), 250_000))
    searcher = made.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(4 * K).build()
    for share in (0.1, 0.2, 0.3, 0.45, 0.65, 1):
        for reorder in (2 * K, 5 * K):
            probed = max(1, round(share * leaves))

            def search(queries: np.ndarray, probed: int = probed, reorder: int = reorder) -> np.ndarray:
                told = {"leaves_to_search": probed, "pre_reorder_num_neighbors": reorder}
                if len(queries) == 1:
                    return searcher.search(queries[0], **told)[0][None].astype(np.int64)
                return searcher.search_batched(queries, **told)[0].astype(np.int64)

            yield Point("scann", f"leaves {probed} reorder {reorder}", search)


OTHERS: Mapping[str, Callable[[np.ndarray, int, int], Iterator[Point]]] = {
    "hnswlib": hnswlib_points, "usearch": usearch_points, "scann": scann_points,
}  # fmt: skip


def recall(point: Point, items: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> float:
    """By score, as everywhere in this repository."""
    rows = np.concatenate([point.search(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)])
    scores = np.einsum("qd,qkd->qk", queries, items[np.maximum(rows, 0)])
    return recall_at(np.where(rows < 0, -np.inf, scores).astype(np.float32), exact)


def time_in_turns(points: list[Point], queries: np.ndarray, rounds: int) -> None:
    """Medians over rounds in which each point has its turn."""
    single: dict[int, list[float]] = {i: [] for i in range(len(points))}
    batch: dict[int, list[float]] = {i: [] for i in range(len(points))}
    many = np.ascontiguousarray(np.tile(queries, (-(-BATCH // len(queries)), 1))[:BATCH])
    for _ in range(rounds):
        for i, p in enumerate(points):
            times = []
            for q in queries[:50, None]:
                start = time.perf_counter()
                p.search(q)
                times.append(time.perf_counter() - start)
            single[i].append(1 / statistics.median(times))
            start = time.perf_counter()
            p.search(many)
            batch[i].append(BATCH / (time.perf_counter() - start))
    for i, p in enumerate(points):
        p.single, p.batch = statistics.median(single[i]), statistics.median(batch[i])


def beaten_by(point: Point, others: list[Point], speed: Callable[[Point], float]) -> Point | None:
    """The point that finds no less and is faster by most, beyond the tenth within which `auto` calls times equal.

    A point is not beaten by its own kind and settings: that is the machine's mood.
    """
    same = (point.library, point.settings)
    better = [o for o in others if o.recall >= point.recall and speed(o) > 1.1 * speed(point)
              and (o.library, o.settings) != same]  # fmt: skip
    return max(better, key=speed, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a trained run of experiment=melo")
    parser.add_argument("--vectors", nargs=2, metavar=("ITEMS", "QUERIES"), help="float32 .npy files of norm 1 instead")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--ef-construction", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1800, help="that auto may take")
    parser.add_argument("--site", type=Path, help="folder with hnswlib, usearch and scann")
    parser.add_argument("--keep", type=Path, help="write items.npy and queries.npy to this folder, for --vectors")
    args = parser.parse_args()
    if bool(args.run) == bool(args.vectors):
        parser.error("give --run or --vectors")
    if args.vectors:
        items, queries = (np.load(path)[: n or None] for path, n in zip(args.vectors, (args.items, 0), strict=True))
    else:
        items, queries = vectors_of(args.run, args.shared, args.items, args.queries)
    if args.keep:
        np.save(args.keep / "items.npy", items)
        np.save(args.keep / "queries.npy", queries)
    if args.site:
        sys.path.append(str(args.site))
    faiss.omp_set_num_threads(1)
    held_out, judged = queries[::2].copy(), queries[1::2].copy()
    exact = exact_search(judged, items, K)[1]
    print(f"{len(items):,} items of {items.shape[1]} dimensions, {len(judged)} queries, recall@{K}, one thread, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    auto = AutoIndex(min_recall=args.recall, ef_construction=args.ef_construction, seconds=args.seconds)
    points = list(faiss_points(items, held_out, auto))
    for name, make in OTHERS.items():
        start = time.perf_counter()
        try:
            points += make(items, 32, args.ef_construction)
        except ImportError as e:
            print(f"{name}: not measured, {e}")
        else:
            print(f"{name}: built in {time.perf_counter() - start:.1f} s")
    chosen = {how: tune(items, held_out, replace(auto, optimise=how), COSINE) for how in ("single", "batch")}
    mine = {how: ours(t.candidates[0], t.index, items, t.recipe) for how, t in chosen.items()}
    every = [*points, *mine.values()]
    for p in every:
        p.recall = recall(p, items, judged, exact)
    time_in_turns(every, judged, args.rounds)
    for p in every:
        label = next((f"auto ({how}) = " for how, m in mine.items() if m is p), "")
        print(f"{label + p.library:28} {p.settings:28} recall {p.recall:.4f}  single {p.single:9,.0f}/s  "
              f"batch {p.batch:9,.0f}/s")  # fmt: skip
    ours_, theirs = [p for p in points if p.library.startswith("faiss")], [p for p in points if p.library in OTHERS]
    for how, point in mine.items():
        speed: Callable[[Point], float] = lambda p, how=how: getattr(p, how)  # noqa: E731
        beaten = beaten_by(point, ours_, speed)
        if beaten is not None:
            print(f"auto ({how}) is behind {beaten.library} {beaten.settings}: {speed(beaten) / speed(point):.2f} x")
        report(f"index/auto_{how}/recall@{K}", point.recall, args.recall, at_most=False)
        worst = 1.0 if beaten is None else speed(beaten) / speed(point)
        report(f"index/auto_{how}/times_behind_the_front_of_faiss", worst, 1.1, at_most=True)
        for name in OTHERS:
            rivals = [p for p in theirs if p.library == name and p.recall >= args.recall]
            if rivals:
                best = max(rivals, key=speed)
                print(
                    f"{name} {best.settings}: {speed(best) / speed(point):.2f} x auto ({how}), recall {best.recall:.4f}"
                )
    overhead(chosen["single"].index, chosen["single"].recipe, items, judged)


def overhead(index: Any, recipe: IndexRecipe, items: np.ndarray, queries: np.ndarray) -> None:
    """The retriever against the bare index, for kinds that are not scored again."""
    if recipe.lossy:
        print("the chosen index is scored again after FAISS: ivf_flat stands in for the overhead of the retriever")
        recipe = IndexRecipe("ivf_flat", nprobe=recipe.nprobe if recipe.is_ivf else 64).resolve(*items.shape)
    retriever = retriever_over(items, recipe)
    bare: Any = retriever.bundle.search.index
    many, few = queries[:BATCH].copy(), queries[:50, None].copy()
    t = interleaved(lambda: retriever.search(many, K), lambda: bare.search(many, K))
    report("index/retriever_over_faiss/batch", t.ratio, 1.05, at_most=True)
    t = interleaved(lambda: [retriever.search(q, K) for q in few], lambda: [bare.search(q, K) for q in few])
    report("index/retriever_over_faiss/single", t.ratio, 1.05, at_most=True)


if __name__ == "__main__":
    main()
