"""Exact filtered search on a GPU beside the time that reading the eligible vectors takes at least.

python -m benchmarks.gpu_search                                   # 15.5 M items of 128 dimensions, the best 2,000
python -m benchmarks.gpu_search --device cpu --items 20000 --k 50 --repeats 3   # that the code runs; no figure

The eligible rows lie on the device, as a filter's bitmap would be unpacked there. The floor is measured in the same
run: so many bytes as the eligible half-precision vectors have, at the rate at which a large maximum is read. Recall is
that of half precision, scored again, against single precision, both by exact search. LinkedIn reports 4.9 and 23.1 ms
(p95, batch 1 and 16) at 11 % and 2.1 and 14.8 ms at a low pass rate, for 15.5 M items on an A100 ("LiNR: Model Based
Neural Retrieval on GPUs at LinkedIn", 2024).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.line import report
from towers.index.devices import DeviceVectors, check_device, top

_MADE = 1 << 18  # vectors made at a time


def milliseconds(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Wall-clock time of each of some calls, to the end of their work on the device."""
    out = []
    for i in range(repeats + 3):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if i >= 3:  # the first choose kernels and make room
            out.append((time.perf_counter() - start) * 1e3)
    return out


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bytes_per_ms(device: str, size: int, repeats: int) -> float:
    """What the device reads: the largest of ``size`` bytes of numbers."""
    x = torch.ones(size // 4, dtype=torch.int32, device=device)
    return size / statistics.median(milliseconds(lambda: x.max(), device, repeats))


def vectors(items: int, dim: int, device: str) -> DeviceVectors:
    """Half-precision vectors of norm 1, made where they stay."""
    made = DeviceVectors(np.zeros((0, dim), np.float32), device, half=True)
    made.vectors = torch.empty((items, dim), dtype=torch.float16, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for start in range(0, items, _MADE):
        block = torch.randn((min(_MADE, items - start), dim), generator=generator, device=device)
        made.vectors[start : start + len(block)] = torch.nn.functional.normalize(block, dim=1)
    return made


def exactly(x: DeviceVectors, queries: torch.Tensor, rows: torch.Tensor, k: int) -> torch.Tensor:
    """``[Q, k]`` scores in single precision of the same entries, block by block."""
    best: torch.Tensor | None = None
    for part in torch.split(rows, _MADE):
        scores = top(queries @ x.vectors[part].float().T, min(k, len(part)))[0]
        both = scores if best is None else torch.cat([best, scores], 1)
        best = both.topk(min(k, both.shape[1]), 1).values
    if best is None:
        raise SystemExit("no item passes; raise --items or --passes")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=15_500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=2000)
    parser.add_argument("--passes", type=float, nargs="+", default=[0.11, 0.001])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    check_device(args.device, what="--device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the reference is single precision
    x = vectors(args.items, args.dim, args.device)
    size = x.vectors.nelement() * 2
    rate = bytes_per_ms(args.device, min(size, 1 << 30) // 4 * 4, args.repeats)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    print(
        f"{name}: {args.items:,} items of {args.dim} in half precision, the best {args.k}; reads {rate / 1e6:,.1f} GB/s"
    )
    generator = torch.Generator(args.device).manual_seed(1)
    for share in args.passes:
        rows = torch.nonzero(torch.rand(args.items, generator=generator, device=args.device) < share).squeeze(1)
        floor = len(rows) * args.dim * 2 / rate
        for batch in args.batches:
            queries = torch.randn((batch, args.dim), generator=generator, device=args.device)
            queries = torch.nn.functional.normalize(queries, dim=1)
            k = min(args.k, len(rows))
            found, _ = x.search_here(queries, k, rows)
            scores = torch.stack([x.vectors[r].float() @ q for q, r in zip(queries, found, strict=True)])
            exact = exactly(x, queries, rows, k)
            recall = float((scores >= exact[:, -1:] - 1e-6).float().mean())
            times = milliseconds(lambda: x.search_here(queries, k, rows), args.device, args.repeats)  # noqa: B023
            p50, p95 = statistics.median(times), float(np.percentile(times, 95))
            print(f"{share:.1%} ({len(rows):,}), batch {batch}: p50 {p50:.3f}, p95 {p95:.3f}, floor {floor:.3f} ms")
            label = f"gpu_search/{share:.1%}/batch{batch}"
            report(f"{label}/recall@{args.k}", recall, 1.0, at_most=False)
            if batch == 1:
                report(f"{label}/times_the_floor", p50 / floor, 2.0, at_most=True)


if __name__ == "__main__":
    main()
