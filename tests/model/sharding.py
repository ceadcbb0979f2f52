"""Sharded tables on several processes, beside whole ones: ``python -m tests.model.sharding RANK WORLD PORT``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.model.helpers import full_model, table
from towers.model import sharded_tables
from towers.model.optimisers import OptimiserSettings, build
from towers.model.sharded_tables import ShardedTable, drive, shard_tables

VALUES, DIM, RATE = 11, 4, 0.1  # 11 rows: the shares of two and of three processes differ


class OneTable(nn.Module):
    """What an optimiser is built for: a table beside something dense."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.dense = table, nn.Linear(DIM, 1)


def asked(step: int, rank: int, look_up: int) -> tuple[Tensor, Tensor]:
    """[n] ids, repeated ones among them, and [n, d] gradients of their vectors: another number on each process."""
    g = torch.Generator().manual_seed(100 * step + 10 * look_up + rank)
    n = 0 if (step, look_up, rank) == (1, 0, 1) else 5 + 3 * rank  # once one of them asks for nothing
    return torch.randint(0, VALUES, (n,), generator=g), torch.randn(n, DIM, generator=g)


def of_the_first(of: Callable[[], Tensor]) -> Tensor:
    """What the first process has gathered, on all of them."""
    found = of()
    assert len(found) == (VALUES if dist.get_rank() == 0 else 0)
    every = found if dist.get_rank() == 0 else torch.empty(VALUES, *found.shape[1:])
    dist.broadcast(every, 0)
    return every


def rows(one: OneTable) -> Tensor:
    return of_the_first(lambda: one.state_dict()["table.weight"])


def sums(optimiser: Optimizer) -> Tensor:
    (found,) = (s["sum"] for s in optimiser.state_dict()["state"].values() if "sum" in s)
    return found  # type: ignore[no-any-return]


def pair(weight: Tensor) -> tuple[OneTable, Optimizer, OneTable, Optimizer]:
    """A whole table with its optimiser, and a sharded one with its own."""
    settings = OptimiserSettings(table_learning_rate=RATE)
    whole = OneTable(nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=True))
    # only the first process's rows count
    sharded = OneTable(ShardedTable(weight if dist.get_rank() == 0 else torch.zeros_like(weight)))
    one, other = build(whole, settings), build(sharded, settings)
    drive(other, sharded)
    return whole, one, sharded, other


def a_table(rank: int, world: int) -> None:
    """Look-ups and steps are those of a whole table, and so is what is saved; another one goes on from it."""
    torch.manual_seed(0)
    whole, optimiser, sharded, other = pair(torch.randn(VALUES, DIM))
    assert torch.equal(rows(sharded), whole.table.weight), "the first process's rows"
    for step in range(6):
        if step == 3:  # a schedule
            for o in (optimiser, other):
                o.param_groups[-1]["lr"] = RATE / 10
        if step == 4:  # a checkpoint, and a new beginning from it
            kept, state = whole.state_dict(), optimiser.state_dict()
            whole, optimiser, sharded, other = pair(torch.zeros(VALUES, DIM))
            for model, o in ((whole, optimiser), (sharded, other)):
                model.load_state_dict(kept)
                o.load_state_dict(state)
        before = whole.table.weight.detach().clone()
        optimiser.zero_grad()
        for look_up in range(2):  # items are candidates, and stand in histories
            ids, up = asked(step, rank, look_up)
            out = sharded.table(ids.view(-1, 1)).squeeze(1)
            assert torch.allclose(out, before[ids], atol=1e-6), "forward"
            (out * up).sum().backward()
            # the mean over the processes, as DDP takes it
            for i, u in (asked(step, r, look_up) for r in range(world)):
                ((whole.table(i) * u).sum() / world).backward()
        sharded.table(ids)  # a look-up that no loss depends on
        with torch.no_grad():
            sharded.table(ids)
        optimiser.step()
        other.step()
        assert not torch.allclose(whole.table.weight, before, atol=1e-3), "a step was made"
        assert torch.allclose(rows(sharded), whole.table.weight, atol=1e-5), f"step {step}"
        assert torch.allclose(of_the_first(partial(sums, other)), sums(optimiser), atol=1e-5), f"sums, step {step}"
    assert other.state_dict()["param_groups"] == optimiser.state_dict()["param_groups"]
    assert not other.state_dict()["state"].keys() ^ optimiser.state_dict()["state"].keys()


def a_model(rank: int) -> None:
    """A two-tower model in which tables are sharded embeds, and learns elsewhere, as if they were not."""
    torch.manual_seed(0)
    model, other = full_model().eval(), full_model().eval()
    other.load_state_dict(model.state_dict())
    for m in (model, other):
        for lookup in (x for x in m.modules() if isinstance(x, nn.Embedding)):
            lookup.sparse = True
    wanted = ["item_inputs.encoders.feature_id", "item_inputs.encoders.feature_type", "user_inputs.encoders.feature_id",
              "user_inputs.encoders.feature_type", "user_inputs.encoders.feature_context_type"]  # fmt: skip
    names = [f"{n}.table" for n in wanted]
    assert shard_tables(other, above=10) == names
    assert shard_tables(other, above=10) == [], "they stay as they are"
    assert [n for n, p in other.named_parameters() if not p.numel()] == [f"{n}.weight" for n in names]
    features = table(model.item_infos, 6, seed=rank)(torch.arange(6))  # type: ignore[arg-type]
    one, two = model.embed_items(features), other.embed_items(features)
    assert torch.allclose(one, two, atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(one, other.embed_items(features), atol=1e-6)
    up = torch.randn(one.shape, generator=torch.Generator().manual_seed(rank))
    (one * up).sum().backward()
    (two * up).sum().backward()
    dense = dict(other.named_parameters())
    for name, p in model.named_parameters():
        if p.grad is not None and name.removesuffix(".weight") not in names:
            assert dense[name].grad is not None, name
            assert torch.allclose(p.grad.to_dense(), dense[name].grad.to_dense(), atol=1e-5), name  # type: ignore[union-attr]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # TorchRec's own
    rank, world, port = sys.argv[1:]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE=world, LOCAL_RANK=rank,
                      LOCAL_WORLD_SIZE=world)  # fmt: skip
    dist.init_process_group("gloo", rank=int(rank), world_size=int(world))
    a_table(int(rank), int(world))
    sharded_tables._BLOCK = 2  # rows change hands in several parts
    a_table(int(rank), int(world))
    a_model(int(rank))
    dist.barrier()
    dist.destroy_process_group()
    print("equal")
