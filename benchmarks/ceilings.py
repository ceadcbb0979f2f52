"""What a step must move and compute, counted from its shapes, and how fast a device can do either at best.

Shapes: ``B`` examples, ``N`` candidates, ``L`` history length, ``U`` distinct items of a batch's histories, ``D`` dim.

What is counted is what any program must do that keeps weights in float32 and holds the ``[B, N]`` scores in memory:
each array is written once by what makes it and read once by what needs it. Caches, padding, and arrays that one kernel
could keep to itself cost nothing. A program that fuses the softmax into the matrix product could thus beat the ceiling.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.stopwatch import Stopwatch

F32 = 4  # bytes


@dataclass(frozen=True)
class Ceilings:
    """What a device was seen to do.

    Attributes:
        bandwidth: bytes a second that a large copy reads and writes, together.
        arithmetic: multiplications and additions a second of a large matrix product.
    """

    bandwidth: float
    arithmetic: float


@dataclass(frozen=True)
class Work:
    """Bytes to be read or written, and floating-point operations."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        """One after the other."""
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> Work:
        """So many times."""
        return Work(self.bytes * times, self.flops * times)

    def seconds(self, ceilings: Ceilings) -> float:
        """The least time, set by the larger of the two."""
        return max(self.bytes / ceilings.bandwidth, self.flops / ceilings.arithmetic)


@dataclass(frozen=True)
class Shapes:
    """Of a training step.

    Attributes:
        examples: ``B``.
        candidates: ``N``, and the positives if they are embedded beside them.
        negatives: ``N``.
        length: ``L``.
        histories: ``U``.
        users: distinct users of a batch, whose rows the optimiser visits.
        items: distinct items that were looked up.
        dim: ``D``, also of the tables.
        linears: for each linear layer: rows that pass it, inputs, outputs.
        size: bytes of what the towers compute with: 4, or 2 for bfloat16.
    """

    examples: int
    candidates: int
    negatives: int
    length: int
    histories: int
    users: int
    items: int
    dim: int
    linears: Sequence[tuple[int, int, int]] = ()
    size: int = F32


def lookup(rows: int, dim: int) -> Work:
    """Rows of a table, read and written side by side."""
    return Work(2 * F32 * rows * dim)


def linear(rows: int, inputs: int, outputs: int, size: int) -> Work:
    """``[rows, inputs] @ [inputs, outputs]``."""
    return Work(size * (rows * (inputs + outputs) + inputs * outputs), 2 * rows * inputs * outputs)


def pooled(users: int, events: int, dim: int) -> Work:
    """Weighted sums of the ``[dim]`` vectors of events, one sum for each user."""
    return Work(F32 * (events + users) * dim, 2 * events * dim)


def scores(examples: int, negatives: int, dim: int, size: int) -> Work:
    """``[B, D] @ [D, N]`` into float32, once written and once read by the loss."""
    made = Work(size * (examples + negatives) * dim + F32 * examples * negatives, 2 * examples * negatives * dim)
    return made + Work(F32 * examples * negatives)


def scores_backward(examples: int, negatives: int, dim: int, size: int) -> Work:
    """Their gradient, made of the scores, and the two products that send it back."""
    made = Work(F32 * 2 * examples * negatives)
    product = Work(F32 * examples * negatives + size * 2 * (examples + negatives) * dim, 2 * examples * negatives * dim)
    return made + product * 2


def row_updates(lookups: int, distinct: int, dim: int) -> Work:
    """Row-wise Adagrad: gradients of one row summed, then the row and its number read and written."""
    return Work(F32 * (lookups * dim + 2 * distinct * dim + 2 * distinct * dim + 2 * distinct))


def adam_updates(weights: int) -> Work:
    """AdamW: weight and two moments read and written, the gradient read."""
    return Work(7 * F32 * weights)


def step(s: Shapes) -> dict[str, Work]:
    """The work of each stage of a training step."""
    looked_up = s.examples + s.candidates + s.histories
    towers = sum((linear(*layer, s.size) for layer in s.linears), Work())
    history = pooled(s.examples, s.examples * s.length, s.dim)
    gather = lookup(looked_up, s.dim)
    to_rows = Work(F32 * looked_up * s.dim)  # the gradient of each row that was looked up
    return {
        "gather": gather,
        "towers": towers + history,
        # the loss makes its gradients at once: see towers/model/fused_softmax.py
        "logits": scores(s.examples, s.negatives, s.dim, s.size)
        + scores_backward(s.examples, s.negatives, s.dim, s.size),
        "backward": towers * 2 + history + to_rows,
        "optimiser": row_updates(looked_up, s.users + s.items, s.dim)
        + adam_updates(sum(inputs * outputs for _, inputs, outputs in s.linears)),
    }


def measured(device: torch.device, precision: torch.dtype, copied: int, side: int, repeats: int = 10) -> Ceilings:
    """The ceilings of a device.

    Args:
        device: which.
        precision: of the matrix product; float32 as torch computes it by default.
        copied: bytes of the copied array.
        side: rows and columns of the matrices.
        repeats: of each, of which the fastest counts: this is a bound.
    """
    source = torch.empty(copied // F32, device=device)
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), device, repeats)
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    product = fastest(lambda: a @ b, device, repeats)
    return Ceilings(2 * copied / copy, 2 * side**3 / product)


def fastest(f: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some runs, after two that warm up."""
    return min(timed(f, device, repeats))


def usual(f: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median instead."""
    return statistics.median(timed(f, device, repeats))


def timed(f: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each run."""
    out = []
    for i in range(repeats + 2):
        watch = Stopwatch(device)
        with watch.stage("run"):
            f()
        if i >= 2:
            out.append(watch.seconds()["run"])
    return out
