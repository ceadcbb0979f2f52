"""A task scored by vectors and words at once: what a retriever would rank by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.tasks import build_task
from pipeline.fusing import fused
from tests.data.worlds import events, prepared, write
from towers.errors import ConfigError
from towers.evaluation.evaluate import evaluate_scores
from towers.index.bm25 import Bm25
from towers.index.fusion import Fusion

TITLES = {10: "ward nurse", 11: "head cook", 12: "cook", 13: None}
ROWS = events(
    (1, 10, "nurse", "train"), (1, 11, "cook", "train"), (2, 12, "cook", "test"), (1, 12, "kitchen cook", "test"),
    (1, 10, "nurses", "test"),
    names="user item query part",
)  # fmt: skip


@pytest.mark.parametrize("method", ["rrf", "sum"])
def test_the_fused_scores_of_a_task(tmp_path: Path, method: str) -> None:
    write(tmp_path / "log.parquet", ROWS)
    write(tmp_path / "jobs.parquet", [{"item": i, "title": t} for i, t in TITLES.items()])
    data = prepared(
        tmp_path,
        events={"files": "log.parquet", "split": "part"},
        items={"files": "jobs.parquet", "attributes": ["title"]},
        context={"features": {"query": {"kind": "text"}}},
        tasks={"test": {"exclude": []}},
        select="test",
    )
    task = build_task(data, "test", history_length=3)
    rng = np.random.default_rng(0)
    queries, candidates = (torch.from_numpy(rng.standard_normal((n, 5)).astype(np.float32)) for n in (3, 4))
    fusion = Fusion(method, weight=0.5)  # type: ignore[arg-type]
    result = evaluate_scores(task, fused(task, data, iter(queries.split(2)), candidates, fusion), ks=(1,))
    asked = np.concatenate([b.context for b in task.batches])
    texts = data.raw("context")["query"].take(asked).to_pylist()
    assert sorted(texts) == ["cook", "kitchen cook", "nurses"]
    wanted = fusion.scores((queries @ candidates.T).numpy(), Bm25(TITLES.values()), texts)
    order = np.argsort(-wanted, axis=1, kind="stable")
    assert (result.ranking.items[:, :4] == order).all()
    np.testing.assert_allclose(result.ranking.scores[:, :4], np.take_along_axis(wanted, order, 1), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"fusion\.text=headline: no such item column"):
        fused(task, data, [queries], candidates, Fusion(text="headline"))
