"""A training that is killed again and again ends with the very weights of one that was left alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kills import differences
from pipeline import training
from pipeline.runs import Run
from towers.model import checkpoints

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "20", "--per-run", "10", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    told = dict(re.findall(r"name=kills/(\S+) value=(\d+)", done.stdout))
    assert told["runs_that_differ"] == "0"
    assert told["delivered"] == "20"
    # else they hit nothing that could break, and the test shows nothing
    assert all(int(told[stage]) for stage in ("start", "warm-up", "step", "save", "epoch-end")), told


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(training, "say", said.append)
    run = Run(tmp_path)
    last, previous = run.checkpoints / "last.ckpt", run.checkpoints / "previous.ckpt"
    assert training._newest(run) is None
    for step in (1, 2):
        checkpoints.write({"global_step": step}, last, keep=previous)
    assert training._newest(run) == last
    assert not said
    last.write_bytes(last.read_bytes()[:-100])
    assert training._newest(run) == previous
    assert said == [f"{last} is damaged or missing; going on from previous.ckpt, the one before it"]
    assert run.weights == previous


def test_one_bit_is_a_difference() -> None:
    a = {"state_dict": {"w": torch.tensor([1.0, 2.0])}, "steps": 3, "groups": [{"lr": 0.1}, {"lr": 0.2}]}
    same = {"state_dict": {"w": torch.tensor([1.0, 2.0])}, "steps": 3, "groups": [{"lr": 0.1}, {"lr": 0.2}]}
    assert differences(a, same) == []
    bit = torch.tensor([1.0, 2.0]).view(torch.int32).bitwise_xor(torch.tensor([0, 1], dtype=torch.int32))
    assert differences(a, {**same, "state_dict": {"w": bit.view(torch.float32)}}) == [".state_dict.w"]
    assert differences(a, {**same, "state_dict": {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}}) != []
    assert differences(a, {**same, "steps": 4}) == [".steps: 3 and 4"]
    assert differences(a, {**same, "groups": [{"lr": 0.1}, {"lr": 0.3}]}) == [".groups[1].lr: 0.2 and 0.3"]
    assert differences(a, {**same, "groups": [{"lr": 0.1}]}) != []
    assert differences(a, {k: v for k, v in same.items() if k != "steps"}) != []
