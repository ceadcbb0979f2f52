"""What training will hold in memory, worked out before anything is allocated.

Shapes: ``B`` examples, ``N`` expected candidates of a step, ``L`` history length, ``d`` width of a table.

===========  ==========================================================================================
weights      all parameters
gradients    as large, and once more on several processes (DDP copies them into buckets); of sparse tables the rows that
             a step looks up, three times (as they come, sorted, summed), five times if the table is sharded (sent and
             received besides)
state        AdamW and SparseAdam: two numbers for each weight; row-wise Adagrad: one for each row
features     the encoded users and items, what the sampler keeps
data         examples and histories, or what of them is in memory at a time (``data.reading``); no card holds any
activations  what the towers keep for the backward pass, measured without storage, and the logits: an estimate
===========  ==========================================================================================
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FeatureInfo
from towers.model.history import HistoryInputs
from towers.model.optimisers import OptimiserSettings, sparse_parameters
from towers.model.sharded_tables import shardable
from towers.model.two_tower import RetrievalModel

GIB = 2**30
_LOGITS = 12  # bytes for each pair of an example and a candidate: scores, their exponentials, masks and slack
_PROBE = 64  # rows on which activations are measured


@dataclass(frozen=True)
class Step:
    """How much a training step looks at.

    Attributes:
        examples: ``B``.
        candidates: ``N``, and the positives if they are embedded beside them.
        histories: distinct items of the batch's histories, at most.
        length: ``L``.
        pairs: logits that are held at once, at most ``B · N``.
        chunk: rows that are embedded at once (GradCache); None: all.
    """

    examples: int
    candidates: int
    histories: int = 0
    length: int = 1
    pairs: int = 0
    chunk: int | None = None


@dataclass(frozen=True)
class Part:
    """Bytes of a table, or of everything else that is trained."""

    name: str
    shape: tuple[int, ...]
    weights: int
    gradients: int
    state: int

    @property
    def total(self) -> int:
        """Bytes of the three."""
        return self.weights + self.gradients + self.state


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of a training run, at its peak.

    Attributes:
        parts: one for each table, the largest first, then one for what is no table.
        features: encoded users and items and what the sampler keeps.
        activations: of a step; None: not known.
        data: examples and histories, where they lie in the device's memory.
        free: bytes of the device that are free now; None: not known.
    """

    parts: tuple[Part, ...]
    features: int = 0
    activations: int | None = 0
    data: int = 0
    free: int | None = field(default=None, compare=False)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(p.total for p in self.parts) + self.features + self.data + (self.activations or 0)

    def __str__(self) -> str:
        """One line."""
        w, g, s = (sum(getattr(p, k) for p in self.parts) for k in ("weights", "gradients", "state"))
        told = [f"weights {size(w)}", f"gradients {size(g)}", f"optimiser {size(s)}", f"features {size(self.features)}"]
        told += [f"data {size(self.data)}"] if self.data else []
        told.append("activations unknown" if self.activations is None else f"activations ~{size(self.activations)}")
        tables = [
            f"{p.name} {' x '.join(f'{n:,}' for n in p.shape)} {size(p.total)}" for p in self.parts[:3] if p.shape
        ]
        free = "" if self.free is None else f" of {size(self.free)} free"
        return f"memory {size(self.total)}{free}: {', '.join(told)}" + ("; " + ", ".join(tables) if tables else "")

    def check(self) -> None:
        """Refuse what cannot fit. Activations are an estimate and count half, lest a run be refused that would fit.

        Raises:
            ConfigError: it needs more than is free; with the largest part, and what makes it smaller.
        """
        if self.free is None or self.total - (self.activations or 0) / 2 <= self.free:
            return
        largest = max(self.parts, key=lambda p: p.total)
        if (self.activations or 0) > max(largest.total, self.data):
            cure = "lower batch_size or the number of negatives, or set grad_cache=1024"
        elif self.data > largest.total:
            cure = f"set data.memory_budget to less than {self.data:,} bytes: the rest is read as it is used"
        elif not largest.shape:
            cure = "lower model.dim, width or layers"
        elif largest.gradients >= largest.weights:
            cure = f"set sparse_above below {largest.shape[0]} in that tower's encoders: row-wise Adagrad holds no more"
        else:
            cure = (
                "set table=hashed or quotient_remainder and a smaller table_rows in that tower's encoders, or lower dim"
            )
        raise ConfigError(f"training does not fit into memory\n  {self}\n  cure: {cure}")


def report(
    model: RetrievalModel,
    optimiser: OptimiserSettings,
    step: Step,
    *,
    features: int = 0,
    activations: int | None = 0,
    data: int = 0,
    free: int | None = None,
    shard_above: int | None = None,
    world: int = 1,
) -> MemoryReport:
    """Add up what training holds.

    Args:
        model: may be built under ``torch.device("meta")``, where nothing has storage yet.
        optimiser: whose state counts.
        step: what is looked up at once.
        features: bytes of the encoded tables.
        activations: bytes, from ``activation_bytes``.
        data: bytes of examples and histories.
        free: bytes of the device that are free.
        shard_above: rows from which a table is shared out; None: none is.
        world: processes that share it.
    """
    shared = {id(m.table.weight) for _, m in shardable(model, shard_above)}
    own = {id(p) for p in sparse_parameters(model)}
    widths = {i.name: max(i.width, 1) for i in (*model.user_infos, *model.context_infos, *model.item_infos)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kept = sum(b.numel() * b.element_size() for b in model.buffers())  # keys of hashed values, above all
    copies = 1 if world == 1 else 2  # views of the buckets save nothing: a gradient is made before it is copied there
    parts, rest = [], Part("other weights", (), kept, 0, 0)
    for name, p in model.named_parameters():
        shape = (-(-len(p) // world), *p.shape[1:]) if id(p) in shared else tuple(p.shape)
        weights = math.prod(shape) * p.element_size()
        gradients, state = (copies * weights, 2 * weights) if p.requires_grad else (0, 0)
        if id(p) in own:
            times = 5 if id(p) in shared else 3
            gradients = times * _lookups(name, widths, step) * (p.element_size() * p.shape[1] + 8)
            state = shape[0] * p.element_size() if optimiser.table_optimiser == "rowwise_adagrad" else 2 * weights
        if id(p) in tables:
            parts.append(Part(_short(name), shape, weights, gradients, state))
        else:
            rest = Part(rest.name, (), rest.weights + weights, rest.gradients + gradients, rest.state + state)
    parts.sort(key=lambda part: -part.total)
    return MemoryReport((*parts, rest), features, activations, data, free)


def activation_bytes(build: Callable[[], RetrievalModel], step: Step) -> int:
    """What a step keeps for its backward pass, an estimate.

    A few rows go through the towers without storage; what autograd saves of them is proportional to their number.

    Args:
        build: makes the model; called under ``torch.device("meta")``.
        step: what is embedded and compared.
    """
    held = [step.examples, step.candidates, step.histories]
    if step.chunk is not None:
        held = [min(n, step.chunk) for n in held]
    with torch.device("meta"):
        model = build().train()

        def items(n: int) -> int:
            return saved_bytes(model, lambda: model.embed_items(_inputs(model.item_infos, n)))

        def past(n: int) -> int:
            return saved_bytes(model, lambda: model.history_inputs(_inputs(model.item_infos, n)))

        def users(n: int) -> int:
            history = _history(model, n, step.length) if model.history_dim else None
            inputs = _inputs(model.user_infos, n), history, _inputs(model.context_infos, n)
            return saved_bytes(model, lambda: model.embed_users(*inputs))

        sides = [users, items, past] if model.history_dim else [users, items]
        towers = sum(_extended(f, n) for f, n in zip(sides, held, strict=False))
    return int(towers + _LOGITS * step.pairs + 4 * model.dim * (step.examples + step.candidates))


def _extended(f: Callable[[int], int], n: int) -> float:
    """``f(n)`` of a line through two small numbers."""
    one, two = f(_PROBE), f(2 * _PROBE)
    return one + (n - _PROBE) * (two - one) / _PROBE


def _history(model: RetrievalModel, n: int, length: int) -> HistoryInputs:
    rows, mask = torch.zeros((n, length), dtype=torch.int64), torch.ones((n, length), dtype=torch.bool)
    vectors = model.history_inputs(_inputs(model.item_infos, _PROBE)).detach().requires_grad_()
    return HistoryInputs(vectors, mask, rows, torch.zeros(n, length), rows)


def saved_bytes(model: nn.Module, embed: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass, without the weights, each storage once."""
    weights = {_storage(p) for p in model.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if _storage(x) not in weights:
            seen[_storage(x)] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = embed()
    seen.setdefault(_storage(out), out)
    return sum(x.untyped_storage().nbytes() for x in seen.values())


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = Path("/proc/meminfo")
    if not known.is_file():
        return None
    fields = dict(line.split(":", 1) for line in known.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def used_bytes(device: torch.device) -> int | None:
    """Bytes that this process holds on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    known = Path("/proc/self/statm")
    return int(known.read_text().split()[1]) * resource.getpagesize() if known.is_file() else None


def size(n: float) -> str:
    """Bytes for people: ``1.5 GiB``, ``20 MiB``, ``0.3 MiB``."""
    return f"{n / GIB:.1f} GiB" if n >= GIB / 10 else f"{n / 2**20:.{0 if n >= 10 * 2**20 else 1}f} MiB"


def _lookups(name: str, widths: Mapping[str, int], step: Step) -> int:
    """Rows of a table that a step looks up, each as often as it occurs."""
    key = name.partition(".encoders.feature_")[2].split(".")[0]
    width = next((w for n, w in widths.items() if n.replace(".", "_") in (key, key.removeprefix("context_"))), 1)
    rows = step.examples if "user_inputs" in name else step.candidates + step.histories
    return rows * width


def _short(name: str) -> str:
    """``item_inputs.encoders.feature_id.table.weight`` → ``item id``; weights of values in a bag are told apart."""
    side = "user" if "user_inputs" in name else "history" if "history_item" in name else "item"
    feature, _, what = name.partition(".encoders.feature_")[2].partition(".")
    if not feature:
        return name.removesuffix(".weight")
    return f"{side} {feature}" + (" weights" if what.startswith("log_weight") else "")


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _inputs(infos: Sequence[FeatureInfo], n: int) -> dict[str, Tensor]:
    """``n`` rows of encoded features that have no content."""
    kinds = {i.name: torch.int32 if i.cardinality else torch.float32 for i in infos}
    return {i.name: torch.zeros((n, i.width) if i.width else (n,), dtype=kinds[i.name]) for i in infos}
