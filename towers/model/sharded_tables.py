"""Tables whose rows lie on several processes, by TorchRec: for a vocabulary that no single card holds.

Shapes: ``V`` values, ``d`` embedding width, ``P`` processes; each holds ``⌈V / P⌉`` rows, the last ones fewer.

::

    forward    ids ──all to all──▶ the processes that hold them ──all to all──▶ vectors, where gradients stop
    backward   no communication: each look-up keeps the gradient of its vectors
    step       ids and gradients of all look-ups ──▶ one update of row-wise Adagrad, by TorchRec's fused kernel

TorchRec by itself updates rows within the backward pass, once for each look-up, while a step looks items up more
than once: as candidates and in histories. Collected, a step is one step, like that of a whole table, and nothing
crosses the all-reduces of DDP on the way back. The price is one look-up more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from towers.errors import ConfigError
from towers.model.encoders import Lookup
from towers.model.optimisers import OptimiserSettings

_BLOCK = 1 << 16  # rows that processes hand each other at once


class ShardedTable(nn.Embedding):
    """An embedding table that is called like any other, row-wise sharded over the processes.

    To the model it is a table with sparse gradients whose parameter has no rows: DDP has nothing to average, and an
    optimiser that ``drive`` was told of updates, saves and loads what that parameter stands for. ``state_dict`` and
    ``load_state_dict`` speak of the whole table, hence a checkpoint is that of a table that is not sharded.

    Forward, ``step``, ``state_dict`` and ``load_state_dict`` are called by all processes together.

    When to use it: a full table does not fit on one card, and hashing (``table=hashed``) loses too much. Where it
    does fit, DDP with sparse gradients moves less.

    Args:
        weight: ``[V, d]`` rows to begin with; those of the first process count.
        device: where the rows lie; None: where ``weight`` does.
        eps: ε of ``optimisers.RowwiseAdagrad``.

    Raises:
        ConfigError: TorchRec is not installed, or there are no processes to share among.
    """

    def __init__(self, weight: Tensor, device: torch.device | None = None, eps: float = 1e-8) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "the rows of a sharded table lie on several processes, and there is one: set trainer=ddp, or "
                "shard_above=null"
            )
        values, dim = weight.shape
        device = device or weight.device
        super().__init__(0, dim, sparse=True, _weight=torch.empty(0, dim, device=device))
        self.num_embeddings = values
        # in a tuple, lest it become a module of the model: TorchRec shows each process its rows as if they were all
        self._kept = (_sharded(values, dim, device, eps),)
        self._looked_up: list[tuple[Tensor, Tensor]] = []
        self._scatter(weight.detach(), self._rows)

    def forward(self, ids: Tensor) -> Tensor:
        """``[…]`` ids → ``[…, d]``. Each process has ids of its own, or none."""
        flat = ids.reshape(-1).long()
        with torch.inference_mode(False), torch.no_grad():  # FBGEMM has no kernel for inference mode
            vectors = self._look_up(flat)
        if torch.is_grad_enabled():
            self._looked_up.append((flat, vectors.requires_grad_()))
        return vectors.view(*ids.shape, self.embedding_dim)

    def step(self, learning_rate: float) -> None:
        """Update the rows by the gradients of everything looked up since the last step, their mean over processes."""
        found, self._looked_up = self._looked_up, []
        if not found:
            return
        ids = torch.cat([i for i, _ in found])
        up = torch.cat([torch.zeros_like(v) if v.grad is None else v.grad for _, v in found])
        for group in self._fused.param_groups:
            group["lr"] = learning_rate
        self._fused.step()  # no update: it tells the kernel the rate
        with torch.enable_grad():
            torch.autograd.backward(self._look_up(ids), up)

    def accumulators(self) -> Tensor:
        """``[V]`` of row-wise Adagrad, in the first process; ``[0]`` in the others."""
        return self._gather(self._sums)

    def set_accumulators(self, sums: Tensor) -> None:
        """Take up ``[V]`` accumulators; those of the first process count."""
        self._scatter(sums, self._sums)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._gather(self._rows)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        self._scatter(state_dict[f"{prefix}weight"], self._rows)

    def _look_up(self, ids: Tensor) -> Tensor:
        from torchrec import KeyedJaggedTensor

        asked = KeyedJaggedTensor(keys=["ids"], values=ids, lengths=ids.new_tensor([len(ids)]))  # one list of ids
        out: Tensor = self._kept[0](asked).wait()["ids"].values()
        return out

    @property
    def _fused(self) -> Any:
        return self._kept[0].fused_optimizer

    @property
    def _rows(self) -> Tensor:
        """``[⌈V / P⌉, d]``: those of this process."""
        out: Tensor = next(self._kept[0].parameters())
        return out.detach()

    @property
    def _sums(self) -> Tensor:
        """``[⌈V / P⌉]``: the accumulators of these."""
        (state,) = self._fused.state_dict()["state"].values()
        out: Tensor = state["table.momentum1"].local_shards()[0].tensor
        return out

    def _gather(self, mine: Tensor) -> Tensor:
        """``[⌈V / P⌉, …]`` of each process → ``[V, …]`` in the memory of the first one's host, ``[0, …]`` elsewhere."""
        first = dist.get_rank() == 0
        out = torch.empty(self.num_embeddings if first else 0, *mine.shape[1:], dtype=mine.dtype)
        for start, n in self._blocks():
            block = _padded(mine[start : start + n], n, mine)
            every = [torch.empty_like(block) for _ in range(dist.get_world_size())] if first else None
            dist.gather(block, every)
            for rank, part in enumerate(every or ()):
                there = out[(at := rank * self._share + start) : at + n]
                there.copy_(part[: len(there)])
        return out

    def _scatter(self, whole: Tensor, mine: Tensor) -> None:
        """``[V, …]`` of the first process → ``[⌈V / P⌉, …]`` of each."""
        starts = [rank * self._share for rank in range(dist.get_world_size())]
        for start, n in self._blocks():
            every = None
            if dist.get_rank() == 0:
                every = [_padded(whole[at + start : at + start + n], n, mine) for at in starts]
            block = mine.new_empty(n, *mine.shape[1:])
            dist.scatter(block, every)
            here = mine[start : start + n]
            here.copy_(block[: len(here)])

    @property
    def _share(self) -> int:
        return -(-self.num_embeddings // dist.get_world_size())

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """(first row, rows) of the parts in which shares are handed on."""
        for start in range(0, self._share, _BLOCK):
            yield start, min(_BLOCK, self._share - start)


def shardable(model: nn.Module, above: int | None) -> list[tuple[str, Lookup]]:
    """What ``shard_above`` shards: encoders of ids and categories whose table is large and has sparse gradients.

    Args:
        model: the towers.
        above: rows; None: nothing is sharded.

    Returns:
        (name, encoder) of each, once.
    """
    lookups = [(name, m) for name, m in model.named_modules() if isinstance(m, Lookup)]
    return [(n, m) for n, m in lookups if above is not None and m.table.sparse and m.table.num_embeddings > above]


def check(model: nn.Module, above: int, optimiser: OptimiserSettings, grad_cache: int | None = None) -> None:
    """Refuse what cannot be trained with sharded tables.

    Raises:
        ConfigError: no table is that large, or other settings are in the way.
    """
    found = shardable(model, above)
    tables = {id(m.table.weight) for _, m in found}
    out = []
    if not found:
        out.append(f"no table of ids or categories has more than {above:,} rows and sparse gradients: lower it, and "
                   "set model.user.encoders.sparse_above no higher, or leave it out")  # fmt: skip
    elif not any(p.requires_grad and id(p) not in tables for p in model.parameters()):
        out.append("nothing else is trained, and DDP wants something to average: set "
                   "model.similarity.learn_temperature=true, or leave it out")  # fmt: skip
    if optimiser.table_optimiser != "rowwise_adagrad":
        out.append(f"their optimiser is row-wise Adagrad: set optimiser.table_optimiser=rowwise_adagrad, not "
                   f"{optimiser.table_optimiser}")  # fmt: skip
    if grad_cache is not None:
        out.append("all processes look up together, and grad_cache may make more parts on one than on another: set "
                   "grad_cache=null")  # fmt: skip
    if out:
        raise ConfigError(f"shard_above={above} cannot be:\n" + "\n".join(f"  - {p}" for p in out))


def shard_tables(model: nn.Module, above: int, device: torch.device | None = None) -> list[str]:
    """Replace large tables by sharded ones; those that are already stay.

    Args:
        model: the same on all processes, which call this together.
        above: rows; see ``shardable``.
        device: where the rows will lie; None: where they do.

    Returns:
        The names of the tables.
    """
    large = [(n, m) for n, m in shardable(model, above) if not isinstance(m.table, ShardedTable)]
    for _, lookup in large:
        lookup.table = ShardedTable(lookup.table.weight, device)
    return [f"{name}.table" for name, _ in large]


def drive(optimiser: Optimizer, model: nn.Module) -> None:
    """Let an optimiser that was built for a model update, save and load its sharded tables too.

    It keeps their state as it would keep that of whole tables, so that a run goes on with either.

    Args:
        optimiser: with row-wise Adagrad for the parameters of sharded tables.
        model: what it trains.
    """
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, ShardedTable)}

    def driven() -> Iterator[tuple[int, ShardedTable, float]]:
        numbered = enumerate((p, g["lr"]) for g in optimiser.param_groups for p in g["params"])
        return ((i, tables[id(p)], rate) for i, (p, rate) in numbered if id(p) in tables)

    def step(*_: Any) -> None:
        for _number, table, rate in driven():
            table.step(rate)

    def save(_: Optimizer, state: dict[str, Any]) -> None:
        state["state"] |= {i: {"sum": table.accumulators()} for i, table, _rate in driven()}

    def load(_: Optimizer) -> None:
        for _number, table, _rate in driven():
            if (found := optimiser.state.pop(table.weight, None)) is not None:
                table.set_accumulators(found["sum"])

    if tables:
        optimiser.register_step_post_hook(step)
        optimiser.register_state_dict_post_hook(save)
        optimiser.register_load_state_dict_post_hook(load)


def _padded(rows: Tensor, n: int, like: Tensor) -> Tensor:
    """``[m, …]`` → ``[n, …]`` with zeros at the end, of the type and on the device of ``like``."""
    out = like.new_zeros(n, *like.shape[1:])
    out[: len(rows)] = rows
    return out


def _sharded(values: int, dim: int, device: torch.device, eps: float) -> Any:
    """TorchRec's module: one table, a share of its rows here, nothing in them yet."""
    try:
        from torchrec import EmbeddingCollection, EmbeddingConfig
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
        from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
    except ImportError as e:
        raise ConfigError(f"a sharded table needs TorchRec: pip install 'towers[torchrec]' ({e})") from e
    config = EmbeddingConfig(num_embeddings=values, embedding_dim=dim, name="table", feature_names=["ids"])
    whole = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    apply_optimizer_in_backward(RowWiseAdagrad, whole.parameters(), {"lr": 0.0, "eps": eps})
    world = dist.get_world_size()
    sharder = EmbeddingCollectionSharder()
    here = torch.cuda.device_count() if device.type == "cuda" else world
    plan = construct_module_sharding_plan(
        whole, {"table": row_wise()}, sharder=sharder, local_size=min(here, world), world_size=world,
        device_type=device.type,
    )  # fmt: skip
    return sharder.shard(whole, plan, ShardingEnv.from_process_group(dist.group.WORLD), device)
