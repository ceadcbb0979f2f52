"""Tables whose rows lie on several processes, by TorchRec: for a vocabulary that no single card holds.

Shapes: ``V`` values, ``d`` embedding width, ``P`` processes; each holds ``⌈V / P⌉`` rows. A look-up sends ids to the
processes that hold them and brings vectors back; the way back carries gradients, and the rows are updated where they
lie, during the backward pass, by row-wise Adagrad.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.model.encoders import Lookup


class ShardedTable(nn.Module):
    """An embedding table that is called like any other, row-wise sharded over the processes.

    Its rows are no parameters of the model: neither the optimiser, nor DDP, nor a checkpoint sees them. ``gathered``
    is what a checkpoint or an export would keep.

    When to use it: a full table does not fit on one card, and hashing (``table=hashed``) loses too much. Where it
    does fit, DDP with sparse gradients moves less.

    Args:
        weight: ``[V, d]`` rows to begin with, the same on all processes.
        learning_rate: of row-wise Adagrad; ``set_learning_rate`` changes it.
        eps: ε of ``optimisers.RowwiseAdagrad``.

    Raises:
        ConfigError: TorchRec is not installed, or there are no processes to share among.
    """

    def __init__(self, weight: Tensor, learning_rate: float = 0.05, eps: float = 1e-8) -> None:
        super().__init__()
        if not dist.is_initialized():
            raise ConfigError("a sharded table needs processes to share its rows; initialise torch.distributed first")
        self.values, self.dim = weight.shape
        # in a tuple, so that no rows are registered: TorchRec shows each process its own as if they were the table
        self._sharded = (_sharded(weight.detach(), learning_rate, eps),)

    def forward(self, ids: Tensor) -> Tensor:
        """``[…]`` ids → ``[…, d]``. All processes call it together, each with ids of its own."""
        from torchrec import KeyedJaggedTensor

        flat = ids.reshape(-1).long()
        asked = KeyedJaggedTensor(keys=["ids"], values=flat, lengths=torch.ones_like(flat))
        out: Tensor = self._sharded[0](asked).wait()["ids"].values()
        return out.reshape(*ids.shape, self.dim)

    @torch.no_grad()
    def gathered(self) -> Tensor:
        """``[V, d]``: all rows. All processes call it together."""
        device = next(self._sharded[0].parameters()).device
        out: Tensor = self(torch.arange(self.values, device=device))
        return out

    def set_learning_rate(self, rate: float) -> None:
        """What a schedule would do to the optimiser's groups."""
        for group in self._sharded[0].fused_optimizer.param_groups:
            group["lr"] = rate
        self._sharded[
            0
        ].fused_optimizer.step()  # rows were updated in the backward pass; this tells the kernel the rate


def shard_tables(model: nn.Module, above: int, learning_rate: float = 0.05) -> list[str]:
    """Replace the tables of ids and categories that have more rows than ``above`` by sharded ones.

    Args:
        model: the same on all processes.
        above: rows.
        learning_rate: of their row-wise Adagrad.

    Returns:
        The names of the tables.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Lookup)]
    large = [(name, m) for name, m in found if m.table.num_embeddings > above]
    for _, lookup in large:
        lookup.register_module("table", ShardedTable(lookup.table.weight, learning_rate))
    return [f"{name}.table" for name, _ in large]


def _sharded(weight: Tensor, learning_rate: float, eps: float) -> Any:
    try:
        from torchrec import EmbeddingCollection, EmbeddingConfig
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
        from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
    except ImportError as e:
        raise ConfigError(f"a sharded table needs TorchRec: pip install 'towers[torchrec]' ({e})") from e
    config = EmbeddingConfig(
        num_embeddings=len(weight), embedding_dim=weight.shape[1], name="table", feature_names=["ids"]
    )
    whole = EmbeddingCollection(tables=[config], device=weight.device)
    with torch.no_grad():
        whole.embeddings["table"].weight.copy_(weight)
    apply_optimizer_in_backward(RowWiseAdagrad, whole.parameters(), {"lr": learning_rate, "eps": eps})
    world, device = dist.get_world_size(), weight.device
    sharder = EmbeddingCollectionSharder()
    here = torch.cuda.device_count() if device.type == "cuda" else world
    plan = construct_module_sharding_plan(
        whole, {"table": row_wise()}, sharder=sharder, local_size=min(here, world), world_size=world,
        device_type=device.type,
    )  # fmt: skip
    return sharder.shard(whole, plan, ShardingEnv.from_process_group(dist.group.WORLD), device)
