"""Batch search through the retriever against bare FAISS on the same index.

python -m benchmarks.retriever            # 100,000 items of 64 dimensions, batches of 256, the best 100
python -m benchmarks.retriever --items 500000 --dim 128
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa

from benchmarks.line import interleaved, report
from towers.features import Featurizer, IdMap, Schema
from towers.index.faiss_setup import faiss
from towers.index.opening import OpenBundle
from towers.index.recipes import KINDS, IndexRecipe, build_index
from towers.index.retriever import Retriever
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity


def retriever_over(vectors: np.ndarray, recipe: IndexRecipe) -> Retriever:
    """A retriever over bare vectors: nothing but ``search`` works."""
    n, dim = vectors.shape
    nothing = Featurizer(())
    tower = None  # `search` asks no tower
    return Retriever(
        OpenBundle(
            manifest={"dim": dim, "data": {}},
            schema=Schema((), ()),
            similarity=Similarity("dot"),
            users=nothing,
            context=nothing,
            items=IdMap(pa.array(np.random.default_rng(1).permutation(n) + 10**9), "item"),
            attributes=pa.table({"row": np.arange(n)}),
            search=VectorSearch(build_index(vectors, recipe, Similarity("dot")), vectors, recipe.resolve(n, dim)),
            history_inputs=None,
            user_ids=None,
            known=None,
            user_tower=tower,  # type: ignore[arg-type]
            golden={},
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--k", type=int, default=100)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, args.dim))
    vectors = (centres[rng.integers(0, 1000, args.items)] + rng.standard_normal((args.items, args.dim))).astype("f4")
    queries = (centres[rng.integers(0, 1000, args.batch)] + rng.standard_normal((args.batch, args.dim))).astype("f4")
    print(f"{args.items:,} items of {args.dim}, batch {args.batch}, k {args.k}, {faiss.omp_get_max_threads()} threads")
    worst = 0.0
    for kind in KINDS:
        recipe = IndexRecipe(kind, ef_construction=40)
        if recipe.lossy:
            continue  # re-scores what FAISS finds: more work than the bare index, and other answers
        retriever = retriever_over(vectors, recipe)
        index = retriever.bundle.search.index
        time = interleaved(lambda: retriever.search(queries, args.k), lambda: index.search(queries, args.k))  # noqa: B023
        same = (
            retriever.bundle.items.external(index.search(queries, args.k)[1]) == retriever.search(queries, args.k).ids
        )
        print(f"{kind:9} retriever {time.a * 1e3:8.2f} ms, bare FAISS {time.b * 1e3:8.2f} ms, ratio {time.ratio:.3f}, "
              f"same answers {same.mean():.1%}")  # fmt: skip
        worst = max(worst, time.ratio)
    report("retriever/batch_search_ratio", worst, 1.1, at_most=True)


if __name__ == "__main__":
    main()
