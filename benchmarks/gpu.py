"""One command for a machine with a GPU: how near to the card's limits a training step comes.

    python -m benchmarks.gpu                          # 10 M users x 10 M jobs of 128 dimensions; about 10 minutes
    python -m benchmarks.gpu --trace gpu.json         # and a trace of some steps, for https://ui.perfetto.dev
    python -m benchmarks.gpu --device cpu --smoke     # the same code at small sizes, where there is no card

First the ceilings: the bandwidth of a large copy, the arithmetic of large matrix products. Then the memory that the
report predicts, against what was held; the time of a step by stage, with each stage's share of its ceiling, in bfloat16
and in float32; examples/s by batch size, with batches that lie on the device and with those of the loader; an exact
evaluation. Figures of a smoke run mean nothing; it shows that the command runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import ceilings
from benchmarks.ceilings import Ceilings
from benchmarks.gpu_workload import Log, Sizes, module, planned, shapes
from benchmarks.line import report
from benchmarks.stopwatch import OTHER, Stopwatch
from towers.evaluation.evaluate import evaluate
from towers.features import Batch
from towers.model import memory
from towers.model.encoders import Encoder
from towers.model.module import Retrieval
from towers.model.tables import FeatureTable

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
SMOKE = Sizes(users=3000, items=2000, dim=16, events=8, length=5, negatives=64, logged=1000)


@dataclass
class Trainer:
    """Steps of a module, whose stages a stopwatch tells apart.

    Attributes:
        module: what is trained.
        device: where.
        precision: a key of ``PRECISIONS``.
    """

    module: Retrieval
    device: torch.device
    precision: str

    def __post_init__(self) -> None:
        """The project's optimisers."""
        self.optimiser = self.module.configure_optimizers()
        self.watch = Stopwatch(self.device)
        self.steps = 0

    def step(self, batch: Batch) -> None:
        """One, as Lightning makes it: the batch is copied, embedded, compared, and the weights are moved."""
        watch = self.watch
        with watch.stage("copy"):
            here = self.module.transfer_batch_to_device(batch, self.device, 0)
        self.optimiser.zero_grad()
        with self.autocast():
            loss = self.module.training_step(here, self.steps)
        with watch.stage("backward"):
            loss.backward()
        with watch.stage("optimiser"):
            self.optimiser.step()
        self.steps += 1

    def autocast(self) -> AbstractContextManager[object]:
        """What ``trainer.precision=bf16-mixed`` does."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])

    @contextmanager
    def stages(self) -> Iterator[None]:
        """Tell the stages of the module's own functions apart while this lasts."""
        inner = [m for m in self.module.modules() if isinstance(m, Encoder | FeatureTable)]
        handles = [h for m in inner for h in _hooks(m, self, "gather")] + _hooks(self.module.sampler, self, "draw")
        whole, compared = self.module.contrast, self.module._loss

        def towers(batch: Batch) -> object:
            with self.watch.stage("towers"):
                return whole(batch)

        def logits(contrast: object) -> torch.Tensor:
            with self.watch.stage("logits"):
                return compared(contrast)

        self.module.contrast, self.module._loss = towers, logits  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.module.contrast, self.module._loss
            for h in handles:
                h.remove()

    def run(self, batches: Iterable[Batch], warm_up: int, steps: int) -> tuple[list[float], dict[str, float]]:
        """Seconds of each step, and the medians of its stages."""
        every = []
        source = iter(batches)
        for i in range(warm_up + steps):
            self.watch = Stopwatch(self.device)
            with self.watch.stage("wait"):
                batch = next(source)
            self.step(batch)
            if i >= warm_up:
                every.append(self.watch)
        told = [watch.seconds() for watch in every]
        names = dict.fromkeys(name for seconds in told for name in seconds)
        stages = {name: statistics.median(seconds.get(name, 0.0) for seconds in told) for name in names}
        return [sum(seconds.values()) for seconds in told], stages


def _hooks(inner: nn.Module, trainer: Trainer, stage: str) -> list[torch.utils.hooks.RemovableHandle]:
    """Count what a module does for a stage."""
    before = inner.register_forward_pre_hook(lambda *_: trainer.watch.enter(stage))
    after = inner.register_forward_hook(lambda *_: trainer.watch.leave(), always_call=True)
    return [before, after]


def resident(batches: Iterator[Batch], trainer: Trainer, n: int) -> list[Batch]:
    """Some batches on the device."""
    return [trainer.module.transfer_batch_to_device(next(batches), trainer.device, 0) for _ in range(n)]


def repeated(batches: list[Batch]) -> Iterator[Batch]:
    """Without end."""
    while True:
        yield from batches


def throughput(trainer: Trainer, batches: Iterator[Batch], warm_up: int, steps: int) -> float:
    """Seconds of a step when nothing but the clock at both ends looks on."""
    source, watch = iter(batches), Stopwatch(trainer.device)
    for i in range(warm_up + steps):
        if i == warm_up:
            watch = Stopwatch(trainer.device)
            watch.enter("steps")
        trainer.watch = Stopwatch(torch.device("cpu"))  # reads the host's clock: no events in the stream
        trainer.step(next(source))
    watch.leave()
    return watch.seconds()["steps"] / steps


def told(precision: str, found: Ceilings) -> str:
    return f"ceilings, {precision}: {found.bandwidth / 1e9:,.0f} GB/s, {found.arithmetic / 1e12:,.2f} TFLOP/s"


def by_stage(trainer: Trainer, batches: list[Batch], sizes: Sizes, limit: Ceilings, warm_up: int, steps: int) -> float:
    """Print the stages of a step with their shares of the ceiling; the share of the whole step."""
    size = torch.finfo(PRECISIONS[trainer.precision]).bits // 8
    work = ceilings.step(shapes(batches[0], trainer.module, sizes, size))
    with trainer.stages():
        seconds, stages = trainer.run(repeated(batches), warm_up, steps)
    step = statistics.median(seconds)
    print(f"{trainer.precision}, batch {len(batches[0]):,}: step {1e3 * step:.2f} ms (median of {steps}; "
          f"{1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f})")  # fmt: skip
    for name in (*work, *(n for n in stages if n not in work)):
        took, least = stages.get(name, 0.0), work[name].seconds(limit) if name in work else None
        share = "" if least is None else f", {least / max(took, 1e-12):.0%} of its ceiling"
        print(f"  {'rest' if name == OTHER else name:10} {1e3 * took:9.3f} ms{share}")
    total = sum(work.values(), ceilings.Work())
    print(f"  {total.bytes / 1e9:.2f} GB and {total.flops / 1e12:.3f} TFLOP of need", flush=True)
    return total.seconds(limit) / step


def evaluation(trainer: Trainer, log: Log, queries: int, limit: Ceilings) -> None:
    """Rank all items for some users exactly; seconds, and the share of the arithmetic ceiling."""
    task = log.task(queries)
    start = time.perf_counter()
    users, candidates = trainer.module.embedder().sides(task)
    found = evaluate(task, users, candidates, metrics=("recall",))
    took = time.perf_counter() - start  # ends with arrays on the host
    flops = 2.0 * len(task) * len(task.candidates) * log.sizes.dim
    share = flops / limit.arithmetic / found.seconds
    print(f"evaluation: {len(task):,} users over {len(task.candidates):,} jobs in {took:.1f} s", end=", ")
    print(f"of which ranking {found.seconds:.1f} s, {share:.0%} of the float32 ceiling", flush=True)


def waits(trainer: Trainer, batch: Batch) -> list[str]:
    """The lines at which the host waits for the device in a step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def traced(trainer: Trainer, batches: list[Batch], path: Path) -> None:
    """Some steps under torch's profiler."""
    cuda = [ProfilerActivity.CUDA] if trainer.device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True) as found:
        for batch in batches[:4]:
            trainer.step(batch)
    found.export_chrome_trace(str(path))
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=25))


def main(argv: list[str] | None = None) -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--users", type=int, default=Sizes.users)
    parser.add_argument("--items", type=int, default=Sizes.items)
    parser.add_argument("--dim", type=int, default=Sizes.dim)
    parser.add_argument("--negatives", type=int, default=Sizes.negatives)
    parser.add_argument("--batches", type=int, nargs="+", default=[8192, 16384, 32768, 65536, 131072, 262144])
    parser.add_argument("--batch", type=int, default=65536, help="whose stages are told apart")
    parser.add_argument("--queries", type=int, default=100_000, help="users of the evaluation")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=8, help="threads that make batches")
    parser.add_argument("--trace", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"no figure: --device {args.device} is a CUDA device, and torch {torch.__version__} sees none here; to "
              "run the code without one: python -m benchmarks.gpu --device cpu --smoke", file=sys.stderr)  # fmt: skip
        return 1
    sizes = Sizes(users=args.users, items=args.items, dim=args.dim, negatives=args.negatives)
    copied, side, warm_up, cuda = 1 << 30, 8192, 5, device.type == "cuda"
    if args.smoke:
        sizes, args.batches, args.batch, args.queries, args.steps, args.workers = SMOKE, [128, 256], 256, 100, 2, 2
        copied, side, warm_up = 1 << 20, 128, 1
    name = torch.cuda.get_device_name(device) if cuda else "a processor"
    print(f"{name}, torch {torch.__version__}{f', CUDA {torch.version.cuda}' if cuda else ''}")
    limits = {p: ceilings.measured(device, dtype, copied, side) for p, dtype in PRECISIONS.items()}
    for precision, found in limits.items():
        print(told(precision, found))

    plan = planned(sizes, args.batch, memory.free_bytes(device))
    print(plan, flush=True)
    plan.check()
    log = Log(sizes)
    trainer = Trainer(module(sizes, log.item_events, device), device, "bf16")
    batches = log.batches(args.batch, args.workers, device)
    here = resident(batches, trainer, 4)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    shares = {}
    for precision in PRECISIONS:
        trainer = replace(trainer, precision=precision)
        shares[precision] = by_stage(trainer, here, sizes, limits[precision], warm_up, args.steps)
        if cuda and precision == "bf16":
            held = torch.cuda.max_memory_allocated(device)
            print(f"held {memory.size(held)}, predicted {memory.size(plan.total)}")
    trainer = replace(trainer, precision="bf16")
    if cuda:
        print(f"the host waits at {', '.join(waits(trainer, here[0])) or 'no line'}")
    share_waited = {}
    for size in args.batches:
        batches = log.batches(size, args.workers, device)
        try:
            alone = throughput(trainer, repeated(resident(batches, trainer, 4)), warm_up, args.steps)
            fed = throughput(trainer, batches, max(warm_up, args.workers), args.steps)
        except torch.cuda.OutOfMemoryError:
            print(f"batch {size:,}: does not fit into memory", flush=True)
            trainer.optimiser.zero_grad()
            continue
        share_waited[size] = max(0.0, 1 - alone / fed)
        print(f"batch {size:,}: {size / alone:,.0f} examples/s with batches on the device, {size / fed:,.0f} with the "
              f"loader's", flush=True)  # fmt: skip
    if args.trace:
        traced(trainer, here, args.trace)
    evaluation(trainer, log, args.queries, limits["fp32"])
    if args.smoke or not cuda:
        print("a smoke run: no figure")
        return 0
    holds = [report(f"gpu/share_of_ceiling_{args.batch}", shares["bf16"], 0.6, at_most=False)]
    if args.batch in share_waited:
        holds.append(report(f"gpu/data_wait_{args.batch}", share_waited[args.batch], 0.02, at_most=True))
    return 0 if all(holds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
