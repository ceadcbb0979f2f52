"""Tables whose rows lie on several processes do what whole ones do (TorchRec, gloo)."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model.helpers import full_model
from towers.errors import ConfigError
from towers.model.encoders import Bag, Lookup
from towers.model.optimisers import OptimiserSettings
from towers.model.sharded_tables import ShardedTable, check, shardable

ROOT = Path(__file__).parents[2]
needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None, reason="TorchRec is not installed: pip install 'towers[torchrec]'"
)


@needs_torchrec
def test_three_processes_look_up_and_learn_as_one() -> None:
    """Forward, backward, steps of row-wise Adagrad, saving and loading; see ``sharding.py`` for what is compared."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-m", "tests.model.sharding"]
    started = [
        subprocess.Popen(
            [*command, rank, "3", port], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in "012"
    ]
    told = [p.communicate(timeout=300) for p in started]
    for process, (out, err) in zip(started, told, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert out.strip().endswith("equal")


def test_one_process_has_nothing_to_share() -> None:
    with pytest.raises(ConfigError, match="there is one: set trainer=ddp, or shard_above=null"):
        ShardedTable(torch.zeros(3, 2))


def sparse_model() -> nn.Module:
    """One whose tables have sparse gradients."""
    model = full_model()
    for m in model.modules():
        if isinstance(m, nn.Embedding):
            m.sparse = True
    return model


def test_large_tables_of_ids_with_sparse_gradients_are_sharded() -> None:
    model = sparse_model()
    lookups = {n: m for n, m in model.named_modules() if isinstance(m, Lookup)}
    rows = max(m.table.num_embeddings for m in lookups.values())
    assert any(isinstance(m, Bag) for m in model.modules()), "bags stay whole"
    assert dict(shardable(model, 0)) == lookups
    assert dict(shardable(model, rows - 1)) == {n: m for n, m in lookups.items() if m.table.num_embeddings == rows}
    assert shardable(model, rows) == shardable(model, None) == shardable(full_model(), 0) == []


def test_what_cannot_be_sharded_is_refused() -> None:
    model = sparse_model()
    check(model, 0, OptimiserSettings())
    with pytest.raises(ConfigError, match="no table of ids or categories has more than 1,000 rows and sparse"):
        check(model, 1000, OptimiserSettings())
    with pytest.raises(ConfigError, match=r"rowwise_adagrad, not sparse_adam\n.*set grad_cache=null"):
        check(model, 0, OptimiserSettings(table_optimiser="sparse_adam"), grad_cache=8)
    for name, p in model.named_parameters():
        p.requires_grad = name.removesuffix(".table.weight") in dict(shardable(model, 0))
    with pytest.raises(ConfigError, match=r"nothing else is trained.*learn_temperature=true"):
        check(model, 0, OptimiserSettings())
