"""Run by `make serving-check` with the base install and FAISS only: a bundle answers, without torch."""

import sys

from towers.index import Retriever

retriever = Retriever.open(sys.argv[1])
ids, scores = retriever.recommend({}, k=10, at="export")
heavy = sorted(m for m in ("torch", "pytorch_lightning", "hydra", "duckdb", "wandb") if m in sys.modules)
if heavy or len(ids) != 10 or len(scores) != 10:
    sys.exit(f"serving is not light, or answers short: imported {heavy}, {len(ids)} ids")
print(f"{len(retriever):,} items, {len(ids)} results, no training library imported")
