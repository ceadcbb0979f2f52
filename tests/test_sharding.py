"""A run whose tables are sharded over two processes is the run whose tables are not: `train.py shard_above=…`."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.runs import Run

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "experiment=market", "data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000",
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "trainer.max_epochs=2",
    "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1", "threads=1", "logger=csv", "batch_size=64",
    "checkpoint_every=3", "evaluate=[]", "model.user.encoders.sparse_above=100", "optimiser.schedule=cosine",
    "optimiser.warmup=2",
]  # fmt: skip
SHARDED = "shard_above=100"
TABLE = "model.item_inputs.encoders.feature_job_id.table.weight"


def train(folder: Path, *overrides: str) -> None:
    command = [sys.executable, "train.py", f"var={folder}/var", f"runs={folder}/runs", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def trained(folder: Path, *overrides: str) -> Run:
    train(folder, *overrides)
    return Run.open(str(folder / "runs/market/latest"))


def checkpoint(run: Run, name: str) -> dict[str, Any]:
    return dict(torch.load(run.checkpoints / f"{name}.ckpt", weights_only=False))


def losses(run: Run) -> list[float]:
    header, *rows = ((run.folder / "log/metrics.csv").read_text()).splitlines()
    at = header.split(",").index("train/loss")
    return [float(x) for row in rows if (x := row.split(",")[at])]


def assert_same(a: Run, b: Run, name: str = "last") -> None:
    """Weights, what the optimiser holds, and what is known of the two."""
    one, other = checkpoint(a, name), checkpoint(b, name)
    assert one["global_step"] == other["global_step"]
    assert one["optimised"] == other["optimised"]
    torch.testing.assert_close(one["state_dict"], other["state_dict"], atol=1e-5, rtol=1e-4)
    for left, right in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        torch.testing.assert_close(left["state"], right["state"], atol=1e-5, rtol=1e-4)
        assert left["param_groups"] == right["param_groups"]
    assert a.metrics["best"] == pytest.approx(b.metrics["best"], abs=1e-6)
    assert a.metrics["best_epoch"] == b.metrics["best_epoch"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed: pip install 'towers[torchrec]'"
)
def test_a_sharded_run_is_that_of_whole_tables_and_each_goes_on_as_the_other(tmp_path: Path) -> None:
    whole = trained(tmp_path, *SETTINGS)
    sharded = trained(tmp_path, *SETTINGS, SHARDED)
    assert len(checkpoint(whole, "best")["state_dict"][TABLE]) > 100, "or nothing was sharded"
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-4)
    assert len(losses(whole)) == checkpoint(whole, "last")["global_step"]
    assert_same(whole, sharded)
    assert_same(whole, sharded, "best")

    for name, run, setting in (("whole", whole, SHARDED), ("sharded", sharded, "shard_above=null")):
        stopped = Run(tmp_path / f"stopped_{name}")
        shutil.copytree(run.folder, stopped.folder)
        (stopped.checkpoints / "last.ckpt").unlink()
        assert 0 < checkpoint(stopped, "previous")["global_step"] < checkpoint(run, "last")["global_step"]
        train(tmp_path, f"resume={stopped.folder}", setting)
        assert_same(run, stopped)

    # with init_from, what there is before training is validated first
    went_on = trained(tmp_path, f"init_from={whole.folder}", SHARDED, "trainer.max_epochs=0")
    assert went_on.metrics["best"] == pytest.approx(whole.metrics["best"], abs=1e-6)
    best, start = (checkpoint(r, "best")["state_dict"] for r in (whole, went_on))
    torch.testing.assert_close(start, best, atol=0, rtol=0)
