"""Our side, and a plain torch loop in turns with it: what ``benchmarks.training`` measures, on the peers' log.

The same model on both: ids → 64 → 128 → 64, as the peers' towers are, with a gelu between. Softmax over the batch with
log q and the user's known jobs masked, row-wise Adagrad on the tables, AdamW on the rest. The plain loop has everything
gathered in memory before it starts; ours reads the prepared dataset and trains through Lightning, with the progress bar
and callbacks of a user's run.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from hydra import compose, initialize

import train  # noqa: F401  (registers the run_folder resolver)
from benchmarks.training import InMemory, turns
from data.prepare import prepare
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from pipeline import build

STEPS = 10  # of a block, after which the other side has its turn; its first does not count
SETTINGS = [
    "data=gowalla", "model=two_tower", "model.history.pooling=none", "model.similarity.kind=dot",
    "model.similarity.temperature=1", "model.user.dropout=0", "model.item.dropout=0", "model.item.id_dropout=0",
    "model.user.body=dense", "model.item.body=dense", "model.user.encoders.sparse_above=1000",
    "negatives=in_batch", "logger=none",
]  # fmt: skip


def prepared(log: Path) -> PreparedDataset:
    """The log, prepared once, beside itself."""
    out = log.with_suffix(".prepared")
    if not out.exists():
        spec = {
            "name": "peers",
            "events": {"files": str(log), "user": "user", "item": "item", "time": {"column": "time", "unit": "s"}},
            "users": {"features": {"user_id": {"kind": "id"}}},
            "items": {"features": {"item_id": {"kind": "id"}}},
            "split": {"rule": "global_time", "valid": 0.002, "test": 0.002},
        }
        prepare(DatasetSpec.parse(spec), out)
    return PreparedDataset(out)


def main() -> None:
    """Both sides' examples and seconds, as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    for name in ("batch", "dim", "hidden", "threads", "blocks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    now = time.process_time if args.clock == "cpu" else time.perf_counter
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    width = [f"model.dim={args.dim}", f"model.user.width={args.hidden}", f"model.item.width={args.hidden}"]
    with initialize("../../configs", version_base="1.3"):
        config = compose("train", [*SETTINGS, *width])
    torch.set_num_threads(args.threads)
    dataset = prepared(args.log)
    clock = turns(config, dataset, InMemory(build.datamodule(config, dataset)), args.batch, STEPS, args.blocks, now)
    told = {
        "examples": args.batch * (STEPS - 1) * args.blocks,
        "seconds": round(sum(clock.ours), 3),
        "plain_seconds": round(sum(clock.theirs), 3),
        "ratios": [round(b / a, 4) for a, b in zip(clock.ours, clock.theirs, strict=True)],
        "versions": {name: version(name) for name in ("torch", "pytorch-lightning")},
        "differs": "log q corrected, known jobs masked; tables: row-wise Adagrad",
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
