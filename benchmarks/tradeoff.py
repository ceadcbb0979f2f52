"""Recall of new jobs against recall of known ones, as the calibration of new jobs moves; and a point on the curve.

    python train.py experiment=xing16_coldjob data=xing16_coldjob_mixed
    python -m benchmarks.tradeoff RUN [--task mixed] [--keep 0.97] [--scales 1 2] [--users 2000] [--picture PNG]

Run it on a validation with targets of both kinds. What it prints goes into the experiment, ``model.calibration``; the
chosen point is the one of the largest joint recall at which known jobs keep ``--keep`` of their own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from data.tasks import build_task
from pipeline.datasets import dataset_of
from pipeline.evaluating import load
from pipeline.runs import Run
from towers.evaluation.pictures import ACCENT, FAINT, INK, SECOND
from towers.evaluation.tradeoff import Point, Tradeoff, choose
from towers.model.blocks import Blocks

PICTURE = Path("docs/pictures/cold-warm.png")


def measure(path: str, name: str, users: int, k: int = 20) -> Tradeoff:
    """The scores of some of a task's users, by a run's model without its calibration."""
    run = Run.open(path)
    dataset = dataset_of(run)
    module = load(run, dataset, device="cpu")
    if isinstance(module.model, Blocks):
        module.model.calibration = None
    task = build_task(dataset, name, history_length=dataset.schema.history_length)
    rows = np.sort(np.random.default_rng(0).permutation(len(task))[:users])
    embedder = module.embedder()
    queries = torch.cat(list(embedder.embed_queries(task.batches)))
    new = dataset.events("item")[task.candidates] == 0
    return Tradeoff(task, queries, embedder.embed_items(task.candidates), new, k=k, rows=rows)


def draw(curves: Sequence[Sequence[Point]], plain: Point, chosen: Point, path: Path, k: int = 20) -> None:
    """Recall of new jobs over that of known ones, and joint recall beside it."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 4.0), sharex=True)
    for curve, colour in zip(curves, (INK, ACCENT, SECOND, "#059669"), strict=False):
        known, label = [p.known for p in curve], f"scale {curve[0].scale:g}"
        left.plot(known, [p.new for p in curve], color=colour, label=label)
        right.plot(known, [p.joint for p in curve], color=colour, label=label)
    for axes, of in ((left, "new"), (right, "joint")):
        axes.plot(plain.known, getattr(plain, of), "o", color=INK, label="no calibration")
        axes.plot(chosen.known, getattr(chosen, of), "*", color=SECOND, markersize=14, label="chosen")
        axes.set(xlabel=f"recall@{k}, known jobs", ylabel=f"recall@{k}, {'new jobs' if of == 'new' else 'all targets'}")
        axes.grid(color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, choose, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--task", default="mixed")
    parser.add_argument("--keep", type=float, default=0.97, help="share of the known jobs' recall that must stay")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0], help="up to four")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tradeoff = measure(given.run, given.task, given.users)
    curves = [tradeoff.curve(scale) for scale in given.scales]
    plain, chosen = tradeoff.at(), choose(curves, given.keep)
    print("scale   offset  joint   new    known  share of the list")
    for point in (*(choose([curve], given.keep) for curve in curves), plain, chosen):
        numbers = (point.joint, point.new, point.known, point.share)
        print(f"{point.scale:5.2f} {point.offset:8.2f}  " + "  ".join(f"{x:.4f}" for x in numbers))
    print(f"model.calibration.scale={chosen.scale:g} model.calibration.offset={chosen.offset:.2f}")
    draw(curves, plain, chosen, given.picture)


if __name__ == "__main__":
    main()
