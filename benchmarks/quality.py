"""Measured quality on the real protocols: each committed experiment, from the raw log to test metrics.

``python -m benchmarks.quality [PROTOCOL …] [--quick]`` prepares, trains and evaluates through the verbs, in a scratch
folder, so that nothing from an earlier run helps. The experiment's validation chooses the epoch; where the
protocol's reference rows are refitted, ``train.py refit=RUN`` follows. Test is read once, and the predictions
are scored a second time by the protocol's own ``evaluate.py``, where that is there.

``--quick`` trains one epoch: it shows that the way works, and records nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.line import report

RESULTS = Path(__file__).parent / "results"
SECONDS = 900  # on two cores, from the raw log to test metrics
AGREEMENT = 1e-6  # with the protocol's evaluator
SHOWN = ("recall@10", "recall@20", "recall@100", "ndcg@10", "ndcg@20")
THEIRS = {"recall": "Recall", "ndcg": "NDCG", "hr": "HitRate"}


@dataclass(frozen=True)
class Protocol:
    """What is run and what is asked of it.

    Attributes:
        folder: of the protocol, below ``protocols/``; None: the split is made by the data config.
        tasks: evaluated on test.
        refit: whether the reported row is trained once more on train + validation.
        goals: metrics (``TASK/METRIC``) with the values that they should reach.
    """

    folder: str | None
    tasks: tuple[str, ...] = ("test",)
    refit: bool = True
    goals: dict[str, float] = field(default_factory=dict)


# Goals: an untuned item-kNN, a tuned tf-idf. Published rows of the sequences are not refitted, hence ours neither.
PROTOCOLS = {
    "xing16": Protocol("xing16-warm", goals={"test/recall@100": 0.2181, "test/ndcg@20": 0.0623}),
    "xing16_coldjob": Protocol(
        "xing16-coldjob", ("cold", "all"), goals={"cold/recall@20": 0.2121, "cold/ndcg@20": 0.1156}
    ),
    "jobviews": Protocol("jobviews-next"),
    "esco_skills": Protocol("esco-skills-isco"),
    "gowalla": Protocol("gowalla"),
    "amazon_cds": Protocol("amazon-cds"),
    "amazon_beauty": Protocol("s3rec-beauty", refit=False),
    "amazon_sports": Protocol("s3rec-sports", refit=False),
    "ml_100k": Protocol(None),
}


def measure(name: str, scratch: Path, shared: Path, *, quick: bool) -> dict[str, Any]:
    """Run one experiment; return its row."""
    protocol = PROTOCOLS[name]
    places = [f"shared={shared}", f"var={scratch}/var", f"runs={scratch}/runs"]
    tasks = f"evaluate=[{','.join(protocol.tasks)}]"
    latest = scratch / "runs" / name / "latest"
    commands = [["train.py", f"experiment={name}", *(["trainer.max_epochs=1"] if quick else [])]]
    if protocol.refit:
        commands.append(["train.py", f"refit={latest}", tasks])
    else:
        commands += [["eval.py", f"run={latest}", f"task={task}"] for task in protocol.tasks]
    start = time.perf_counter()
    chosen = ""
    for command in commands:
        verb(*command, *places)
        chosen = chosen or str(latest.resolve())
    seconds = time.perf_counter() - start
    run = latest.resolve()
    chose = json.loads((Path(chosen) / "metrics.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    return {
        "experiment": name,
        "protocol": protocol.folder or "by time",
        "refitted": protocol.refit,
        "seconds": round(seconds, 1),
        "valid": {"metric": chose["monitor"], "value": chose["best"], "epochs": chose["best_epoch"]},
        "tasks": {task: _task(run, task, protocol, shared) for task in protocol.tasks},
        "commands": [" ".join(["python", *c]).replace(f"{scratch}/", "") for c in commands],
        "git_sha": provenance["git_sha"],
        "git_dirty": provenance["git_dirty"],
        "dataset_sha256": provenance["dataset_sha256"],
        "seed": provenance["seed"],
    }


def verb(script: str, *overrides: str) -> None:
    """One of the root verbs, as a user would run it."""
    subprocess.run([sys.executable, script, *overrides], cwd=Path(__file__).parents[1], check=True)


def _task(run: Path, task: str, protocol: Protocol, shared: Path) -> dict[str, Any]:
    folder = run / "eval" / task
    mine = json.loads((folder / "metrics.json").read_text())
    return {
        "queries": mine["queries"],
        "metrics": mine["metrics"],
        "disagreement": disagreement(mine["metrics"], folder / "predictions.parquet", protocol, task, shared),
    }


def disagreement(
    metrics: dict[str, Any], predictions: Path, protocol: Protocol, task: str, shared: Path
) -> float | None:
    """The largest difference between our metrics and the protocol's evaluator; None where there is no evaluator."""
    evaluator = shared / "protocols" / "evaluate.py"
    if protocol.folder is None or not evaluator.is_file():
        print(f"{task}: not scored a second time, there is no evaluator for this split")
        return None
    command = [sys.executable, str(evaluator), str(predictions), protocol.folder, "--task", task, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs: dict[str, float] = next(iter(json.loads(done.stdout).values()))  # the first are all targets together
    names = {
        key: f"{THEIRS[metric]}@{k}" for key in metrics for metric, _, k in [key.partition("@")] if metric in THEIRS
    }
    return max(abs(float(metrics[key]["value"]) - theirs[name]) for key, name in names.items() if name in theirs)


def judge(row: dict[str, Any]) -> None:
    """One line for each goal."""
    name = row["experiment"]
    for key, goal in PROTOCOLS[name].goals.items():
        task, metric = key.split("/")
        report(f"quality/{name}/{key}", row["tasks"][task]["metrics"][metric]["value"], goal, at_most=False)
    judge_the_way(row)


def judge_the_way(row: dict[str, Any]) -> None:
    """The goals that do not depend on how well the model was trained."""
    name = row["experiment"]
    for task, result in row["tasks"].items():
        if result["disagreement"] is not None:
            report(f"quality/{name}/{task}/disagreement", result["disagreement"], AGREEMENT, at_most=True)
    report(f"quality/{name}/seconds", row["seconds"], SECONDS, at_most=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, the 95 % intervals after the values."""
    head = ["experiment", "protocol, task", "refitted", *SHOWN, "validation", "epochs", "seconds", "commit"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        for task, result in row["tasks"].items():
            cells = [
                f"{m['value']:.4f} ({m['low']:.4f} to {m['high']:.4f})"
                for m in (result["metrics"][key] for key in SHOWN)
            ]
            valid, commit = row["valid"], row["git_sha"][:7] + (" (changed)" if row["git_dirty"] else "")
            lines.append(
                f"| `{row['experiment']}` | {row['protocol']}, {task} | {'yes' if row['refitted'] else 'no'} | "
                + " | ".join(cells)
                + f" | {valid['metric']} {valid['value']:.4f} | {valid['epochs']} | {row['seconds']:.0f} | {commit} |"
            )
    return "\n".join(lines)


def record(rows: list[dict[str, Any]], what: str) -> Path:
    """Write ``results/quality_WHAT_DATE.json`` and ``.md``; a row replaces the same day's row of its experiment."""
    date = datetime.now(UTC).date().isoformat()
    stem = RESULTS / f"quality_{what}_{date}"
    old = json.loads(stem.with_suffix(".json").read_text())["rows"] if stem.with_suffix(".json").exists() else []
    latest = {row["experiment"]: row for row in [*old, *rows]}
    rows = [latest[name] for name in PROTOCOLS if name in latest]
    command, machine = "python -m benchmarks.quality", f"{platform.machine()}, 2 threads"
    versions = {n: importlib.metadata.version(n) for n in ("torch", "pytorch-lightning", "numpy", "duckdb")}
    provenance = {"command": command, "date": date, "machine": machine, "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(
        json.dumps({**provenance, "versions": versions, "rows": rows}, indent=1) + "\n"
    )
    with_versions = ", ".join(f"{k} {v}" for k, v in versions.items())
    commands = "\n".join("    " + c for row in rows for c in row["commands"])
    text = f"""# Quality on the real protocols

One run of each experiment, seed {rows[0]["seed"]}; everything was chosen on validation. Full ranking; recall is
hits / number of targets; 95 % bootstrap intervals over queries. Seconds: preparing, training, refitting and evaluating.

{table(rows)}

Command `{command} [PROTOCOL …]`, {date}; {machine}; Python {platform.python_version()}, {with_versions}. It runs:

{commands}
"""
    stem.with_suffix(".md").write_text(text)
    return stem.with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=f"of {', '.join(PROTOCOLS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one epoch each; nothing is recorded")
    parser.add_argument("--what", default="cpu", help="goes into the name of the record")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the protocols")
    a = parser.parse_args()
    if unknown := sorted(set(a.protocols) - set(PROTOCOLS)):
        parser.error(f"unknown protocols {unknown}; there are {', '.join(PROTOCOLS)}")
    shared = a.shared.resolve()
    if not (shared / "protocols").is_dir():
        print(f"skipped: {shared} holds no protocols; pass --shared FOLDER")
        return
    rows = []
    for name in a.protocols or PROTOCOLS:
        with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
            rows.append(measure(name, Path(scratch), shared, quick=a.quick))
        if not a.quick:
            print(f"recorded in {record(rows, a.what)}")
    if not a.quick:
        print(table(rows))
    for row in rows:
        judge_the_way(row) if a.quick else judge(row)


if __name__ == "__main__":
    main()
