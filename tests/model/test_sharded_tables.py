"""Tables whose rows lie on two processes do what whole ones do (TorchRec, gloo)."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from towers.errors import ConfigError
from towers.model.sharded_tables import ShardedTable

ROOT = Path(__file__).parents[2]
needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed: pip install 'towers[torchrec]'"
)


@needs_torchrec
def test_two_processes_look_up_and_learn_as_one() -> None:
    """Forward, backward and four steps of row-wise Adagrad; see ``sharding.py`` for what is compared."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-m", "tests.model.sharding"]
    both = [
        subprocess.Popen([*command, rank, port], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    told = [p.communicate(timeout=300) for p in both]
    for process, (out, err) in zip(both, told, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert out.strip().endswith("equal")


def test_one_process_has_nothing_to_share() -> None:
    with pytest.raises(ConfigError, match=r"initialise torch\.distributed first"):
        ShardedTable(torch.zeros(3, 2))
