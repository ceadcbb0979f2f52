"""Several processes train as one: what they tell each other within a step.

Shapes: ``W`` processes, ``B`` examples of this one, ``ΣB`` examples of all, ``N`` shared candidates, ``D`` dim.

Each process has examples of its own, and the candidates are common: drawn, with the same random numbers everywhere, for
the examples of all. Each embeds a share of them and gathers the rest. A gathered vector gets back the sum of what the
losses of all processes say of it, and DDP averages what reaches the weights; hence the step is that of

    L = (1/W) Σ_r scale_r · loss_r,     scale_r = W Σ_{b of r} w_b / Σ_b w_b

and as losses are means by weight, ``L`` is the loss of one process that has the whole batch. A term that every process
computes over gathered vectors is counted once too, since the scales have a mean of 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad


@dataclass(frozen=True)
class Ranks:
    """The processes of a step, as one of them sees it; by default there is no other.

    Attributes:
        rank: this one's number.
        sizes: examples of each process; they differ by one at the end of an epoch.
        scale: what this process's loss is multiplied by, see above.
    """

    rank: int = 0
    sizes: tuple[int, ...] = (0,)
    scale: Tensor | float = 1.0

    @classmethod
    def of(cls, weight: Tensor) -> Ranks:
        """Meet the other processes. Every process must call this in the same step.

        Args:
            weight: ``[B]`` label weights of this process's examples.
        """
        if not several():
            return cls(sizes=(len(weight),))
        mine = torch.stack([weight.sum(), weight.new_tensor(float(len(weight)))])
        every = _gather(mine.double())  # [W, 2]
        world, total = len(every), every[:, 0].sum().clamp_min(1e-12)
        sizes = tuple(int(n) for n in every[:, 1].tolist())
        return cls(dist.get_rank(), sizes, (world * every[dist.get_rank(), 0] / total).to(weight.dtype))

    @property
    def world(self) -> int:
        """``W``."""
        return len(self.sizes)

    def examples(self, x: Tensor) -> Tensor:
        """``[B, …]`` of each process → ``[ΣB, …]`` of all, in the order of the processes; gradients flow back."""
        if self.world == 1:
            return x
        longest = max(self.sizes)
        padded = pad(x, [0, 0] * (x.dim() - 1) + [0, longest - len(x)])
        return torch.cat([part[:n] for part, n in zip(_gather(padded), self.sizes, strict=True)])

    def own(self, x: Tensor) -> Tensor:
        """``[ΣB, …]`` of all → ``[B, …]`` of this process."""
        if self.world == 1:
            return x
        start = sum(self.sizes[: self.rank])
        return x[start : start + self.sizes[self.rank]]

    def share(self, rows: Tensor) -> Tensor:
        """``[N]`` → ``[⌈N / W⌉]``: those that this process embeds; repeated rows fill up the last share."""
        if self.world == 1:
            return rows
        m = -(-len(rows) // self.world)
        full = torch.cat([rows, rows[:1].expand(self.world * m - len(rows))])
        return full[self.rank * m : (self.rank + 1) * m]

    def join(self, share: Tensor, n: int) -> Tensor:
        """``[⌈N / W⌉, D]`` vectors of each process's share → ``[N, D]``; gradients flow back."""
        return share if self.world == 1 else _gather(share).flatten(0, 1)[:n]


ALONE = Ranks()


def several() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_sparse(parameters: Iterable[Parameter]) -> None:
    """Replace each sparse gradient by its mean over the processes, which all get the rows of all.

    What DDP does for dense gradients, and for sparse ones with gloo only, since NCCL adds none. Called once for an
    optimiser step, however many batches it accumulates.

    Args:
        parameters: tables, in the same order everywhere, that DDP has been told to leave alone.
    """
    for p in parameters:
        if p.grad is None:
            rows, values = torch.zeros(0, dtype=torch.int64, device=p.device), p.new_zeros(0, *p.shape[1:])
        else:
            grad = p.grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
        sizes = _gather(rows.new_tensor([len(rows)])).flatten().tolist()
        ranks = Ranks(dist.get_rank(), tuple(sizes))
        every = ranks.examples(values) / ranks.world
        p.grad = torch.sparse_coo_tensor(ranks.examples(rows).unsqueeze(0), every, p.shape, check_invariants=False)


def broadcast(parameters: Iterable[Parameter]) -> None:
    """Give every process the first one's values."""
    for p in parameters:
        dist.broadcast(p.detach(), 0)


def _gather(x: Tensor) -> Tensor:
    out: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return out


class _Gather(torch.autograd.Function):
    """``[n, …]`` of each process → ``[W, n, …]``. A sum comes back (torch's own gather with gradient is deprecated)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((dist.get_world_size(), *x.shape))
        dist.all_gather(list(out.unbind()), x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]
