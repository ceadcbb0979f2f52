"""Two processes train one run: one folder, one set of checkpoints, one word about each epoch, one evaluation."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "experiment=market", "data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000",
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "threads=1", "logger=csv",
    "batch_size=64", "checkpoint_every=2", "evaluate=[valid]", "model.user.encoders.sparse_above=100",
]  # fmt: skip


def train(folder: Path, *overrides: str) -> str:
    """What a training says."""
    command = [sys.executable, "train.py", f"var={folder}/var", f"runs={folder}/runs", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.slow
def test_two_processes_train_one_run_and_go_on_from_it(tmp_path: Path) -> None:
    said = train(tmp_path, *SETTINGS)
    assert said.count("training on ") == 1
    assert re.findall(r"^epoch (\d)/2", said, re.M) == ["1", "2"]
    assert len(re.findall(r"^valid: ", said, re.M)) == 1, "ranked and told once"
    assert "Warning" not in said
    assert "deprecated" not in said

    runs = tmp_path / "runs/market"
    folder = (runs / "latest").resolve()
    assert {p.name for p in runs.iterdir()} == {"latest", folder.name}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert len((folder / "log/metrics.csv").read_text().splitlines()) == 4, (
        "a header, one row for each epoch, one at the end"
    )

    # each process took half of the examples, 64 at a time
    positives = json.loads((tmp_path / "var/data/market/dataset.json").read_text())["counts"]["positives"]["train"]
    steps = 2 * -(-(positives // 2) // 64)
    outcome = json.loads((folder / "metrics.json").read_text())
    assert (outcome["epochs"], outcome["steps"]) == (2, steps)
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=False)["global_step"] == steps
    assert pq.read_metadata(folder / "eval/valid/predictions.parquet").num_rows

    before = torch.load(folder / "checkpoints/best.ckpt", weights_only=False)
    said = train(
        tmp_path, f"init_from={folder}", "trainer.max_epochs=1", "batch_size=2", "+trainer.limit_train_batches=1"
    )
    assert said.count("going on from ") == 1
    assert said.count(f"before training: valid/ndcg@20 {outcome['best']:.4f}") == 1
    after = torch.load(runs / "latest/checkpoints/last.ckpt", weights_only=False)
    assert after["optimised"] == before["optimised"]
    for i, (name, _) in enumerate(after["optimised"]):
        old, new = (c["optimizer_states"][0]["state"].get(i, {}) for c in (before, after))
        if "step" in old:
            assert new["step"] == old["step"] + 1, "Adam counts on"
        if "sum" in old:  # four positives and their draw have been learnt from
            touched = new["sum"] > old["sum"]
            assert torch.equal(new["sum"][~touched], old["sum"][~touched]), "accumulators only grow"
            rows, were = (c["state_dict"][f"model.{name}"] for c in (after, before))
            # a gradient too small to be seen in the accumulator moves its row by this at most
            torch.testing.assert_close(rows[~touched], were[~touched], atol=2e-5, rtol=0)
