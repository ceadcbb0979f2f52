"""A training that is killed again and again ends with the very weights of one that was left alone."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
KILLS = 20
# Small, but with everything that carries state: histories, sparse tables with their own optimiser, accumulation,
# clipping, a schedule with warm-up, validation and a best checkpoint; saved every fifth step, mostly mid-epoch.
SETTINGS = [
    "experiment=market", "logger=none", "threads=1", "batch_size=64", "checkpoint_every=5", "patience=null",
    "evaluate=[]",
    "trainer.max_epochs=16", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0",
    "optimiser.schedule=cosine", "optimiser.warmup=20", "model.user.encoders.sparse_above=100",
    "model.item.dropout=0.1",
    "data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=30000",
]  # fmt: skip


def trained(folder: Path, kills: int, shared: Path) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "tests.killing", str(folder), str(kills), "1", *SETTINGS]
    places = [f"var={shared}/var", f"runs={shared}/runs"]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=False), done.stdout


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, however nested."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, f"{where}: {a} and {b}"


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    straight, _ = trained(tmp_path / "straight", 0, tmp_path)
    killed, told = trained(tmp_path / "killed", KILLS, tmp_path)
    found = re.search(r"kills=(\d+) checkpoints_seen=(\d+)", told)
    assert found, told
    assert int(found[1]) == KILLS
    assert int(found[2]) >= 8, "the kills hit the preparation and not the training; the test shows nothing"
    for key in ("epoch", "global_step", "batches_seen", "state_dict", "optimizer_states", "lr_schedulers"):
        same(straight[key], killed[key], key)
