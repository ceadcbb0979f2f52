"""One table on two processes, beside one that is whole: ``python -m tests.model.sharding RANK PORT``."""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.model.helpers import full_model, table
from towers.model.optimisers import OptimiserSettings, RowwiseAdagrad, build
from towers.model.sharded_tables import ShardedTable, shard_tables

WORLD, VALUES, DIM, RATE = 2, 11, 4, 0.1  # an odd number of rows: the shares differ


def asked(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """[n] ids, repeated ones among them, and [n, d] gradients of their vectors: another number on each process."""
    g = torch.Generator().manual_seed(10 * step + rank)
    n = 5 + 3 * rank
    return torch.randint(0, VALUES, (n,), generator=g), torch.randn(n, DIM, generator=g)


def a_table(rank: int) -> None:
    torch.manual_seed(0)
    whole = nn.Embedding(VALUES, DIM)
    sharded = ShardedTable(whole.weight, RATE)
    optimiser = RowwiseAdagrad(whole.parameters(), RATE)
    assert not list(sharded.parameters())
    assert not sharded.state_dict()
    for step in range(4):
        if step == 3:
            sharded.set_learning_rate(RATE / 10)
            optimiser.param_groups[0]["lr"] = RATE / 10
        before = whole.weight.detach().clone()
        ids, up = asked(step, rank)
        out = sharded(ids)
        assert torch.allclose(out, before[ids], atol=1e-6), "forward"
        (out * up).sum().backward()
        # the mean over the processes, as DDP takes it
        optimiser.zero_grad()
        (sum((whole(i) * u).sum() for i, u in (asked(step, r) for r in range(WORLD))) / WORLD).backward()  # type: ignore[union-attr]
        optimiser.step()
        assert not torch.allclose(whole.weight, before, atol=1e-3), "a step was made"
        assert torch.allclose(sharded.gathered(), whole.weight, atol=1e-5), f"step {step}"


def a_model(rank: int) -> None:
    """A two-tower model in which two tables are sharded embeds, and learns elsewhere, as if they were not."""
    torch.manual_seed(0)
    model, other = full_model().eval(), full_model().eval()
    other.load_state_dict(model.state_dict())
    names = shard_tables(other, above=10)
    wanted = ["item_inputs.encoders.feature_id", "item_inputs.encoders.feature_type", "user_inputs.encoders.feature_id",
              "user_inputs.encoders.feature_type", "user_inputs.encoders.feature_context_type"]  # fmt: skip
    assert names == [f"{n}.table" for n in wanted], names
    features = table(model.item_infos, 6, seed=rank)(torch.arange(6))  # type: ignore[arg-type]
    one, two = model.embed_items(features), other.embed_items(features)
    assert torch.allclose(one, two, atol=1e-6)
    up = torch.randn(one.shape, generator=torch.Generator().manual_seed(rank))
    (one * up).sum().backward()
    (two * up).sum().backward()
    dense = dict(other.named_parameters())
    assert not [n for n in dense if any(n.startswith(t) for t in names)]
    for name, p in model.named_parameters():
        if p.grad is not None and name in dense:
            assert dense[name].grad is not None, name
            assert torch.allclose(p.grad, dense[name].grad, atol=1e-5), name  # type: ignore[arg-type]
    build(other, OptimiserSettings()).step()
    kept = [m for m in other.modules() if isinstance(m, ShardedTable)]
    assert len(kept) == len(wanted)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # TorchRec's own
    rank, port = sys.argv[1:]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE=str(WORLD), LOCAL_RANK=rank,
                      LOCAL_WORLD_SIZE=str(WORLD))  # fmt: skip
    dist.init_process_group("gloo", rank=int(rank), world_size=WORLD)
    a_table(int(rank))
    a_model(int(rank))
    dist.barrier()
    dist.destroy_process_group()
    print("equal")
