"""Measured quality on the real protocols: committed experiments, from the raw log to test metrics.

    python -m benchmarks.quality [PROTOCOL …] [--all] [--seeds 3] [--quick]

Each experiment is prepared, trained and evaluated through the verbs, in a scratch folder, so that nothing from an
earlier run helps. Its validation chooses the epoch; where the protocol's reference rows are refitted, ``train.py
refit=RUN`` follows. Test is read once, and the predictions are scored a second time by the protocol's own
``evaluate.py``, where that is there. Rows go to ``benchmarks/results/quality.json``, the table to ``docs/results.md``.

By default the chosen experiment of each protocol is run; ``--all`` runs every method, ``--quick`` quick variants.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/quality.py` works as well

from benchmarks.line import report  # noqa: E402
from benchmarks.protocols import METHODS, PROTOCOLS, Method, Protocol  # noqa: E402
from benchmarks.quality_table import RESULTS, mean, read, record  # noqa: E402

SECONDS = 2400  # on two cores, from the raw log to test metrics
QUICK_SECONDS = 300
AGREEMENT = 1e-6  # with the protocol's evaluator
QUICK_SHARE = 0.95  # of what the whole recipe reaches
REFERENCE = 0.98  # of the protocol's own row of a baseline: formulas may differ a little
THEIRS = {"recall": "Recall", "ndcg": "NDCG", "hr": "HitRate"}
PACKAGES = ("torch", "pytorch-lightning", "numpy", "scipy", "duckdb")


def measure(
    name: str,
    method: Method,
    seed: int,
    scratch: Path,
    shared: Path,
    *,
    quick: bool,
    threads: int,
    vectors: Path | None = None,
    var: Path | None = None,
) -> dict[str, Any]:
    """Run one experiment; return its row."""
    protocol = PROTOCOLS[name]
    if vectors is not None:
        (scratch / "var").mkdir()
        (scratch / "var" / "text_vectors").symlink_to(vectors.resolve())
    places = [f"shared={shared}", f"var={var or scratch / 'var'}", f"runs={scratch}/runs", f"threads={threads}"]
    tasks = f"evaluate=[{','.join(protocol.tasks)}]"
    latest = scratch / "runs" / method.name / "latest"
    # validation has chosen by then: a report of it would say no more
    settings = [f"seed={seed}", *(method.quick if quick else ()), "evaluate=[]"]
    start = time.perf_counter()
    commands = [["train.py", f"experiment={method.experiment}", f"name={method.name}", *settings]]
    verb(*commands[0], *places)
    chosen = latest.resolve()
    if protocol.refit:
        commands.append(["train.py", f"refit={latest}", f"seed={seed}", tasks])
    else:
        commands += [["eval.py", f"run={latest}", f"task={task}"] for task in protocol.tasks]
    for command in commands[1:]:
        verb(*command, *places)
    seconds = time.perf_counter() - start
    run = latest.resolve()
    chose = json.loads((chosen / "metrics.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    return {
        "protocol": name,
        "experiment": method.experiment,
        "kind": method.kind,
        "quick": quick,
        "refitted": protocol.refit,
        "seed": seed,
        "seconds": round(seconds, 1),
        "vectors_kept": vectors is not None,
        "data_kept": var is not None,
        "valid": {"metric": chose["monitor"], "value": chose["best"], "epochs": chose["best_epoch"]},
        "tasks": {task: _task(run, task, protocol, shared) for task in protocol.tasks},
        "commands": [" ".join(["python", *c]).replace(f"{scratch}/", "") for c in commands],
        "git_sha": provenance["git_sha"],
        "git_dirty": provenance["git_dirty"],
        "dataset_sha256": provenance["dataset_sha256"],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {threads} threads",
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in PACKAGES},
    }


def verb(script: str, *overrides: str) -> None:
    """One of the root verbs, as a user would run it."""
    subprocess.run([sys.executable, script, *overrides], cwd=ROOT, check=True)


def _task(run: Path, task: str, protocol: Protocol, shared: Path) -> dict[str, Any]:
    folder = run / "eval" / task
    mine = json.loads((folder / "metrics.json").read_text())
    parts = {label: part["metrics"] for label, part in mine["slices"].get("target", {}).items()}
    return {
        "queries": mine["queries"],
        "metrics": mine["metrics"],
        "targets": {label: {key: value["value"] for key, value in metrics.items()} for label, metrics in parts.items()},
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


def judge(rows: list[dict[str, Any]]) -> None:
    """One line for each goal of one method's rows; with several seeds the mean counts.

    A quick variant is held against the recorded rows of the whole recipe.
    """
    row, protocol = rows[0], PROTOCOLS[rows[0]["protocol"]]
    name = row["experiment"] + (".quick" if row["quick"] else "")
    for method in METHODS[row["protocol"]]:
        if method.experiment == row["experiment"] and not row["quick"]:
            for key, goal in protocol.goals if method.chosen else ():
                report(f"quality/{name}/{key}", mean(rows, key), goal, at_most=False)
            for key, value in method.reference:
                report(f"quality/{name}/{key}/of_reference", mean(rows, key) / value, REFERENCE, at_most=False)
    whole = [r for r in read() if _kind(r) == (row["protocol"], row["experiment"], False)]
    for key, _ in protocol.goals if row["quick"] and whole else ():
        report(f"quality/{name}/{key}/of_whole", mean(rows, key) / mean(whole, key), QUICK_SHARE, at_most=False)
    for task in row["tasks"]:
        differences = [r["tasks"][task]["disagreement"] for r in rows]
        if None not in differences:
            report(f"quality/{name}/{task}/disagreement", max(differences), AGREEMENT, at_most=True)
    bound = QUICK_SECONDS if row["quick"] else SECONDS
    report(f"quality/{name}/seconds", max(r["seconds"] for r in rows), bound, at_most=True)


def _kind(row: dict[str, Any]) -> tuple[str, str, bool]:
    return row["protocol"], row["experiment"], row["quick"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=f"of {', '.join(PROTOCOLS)}; default: all")
    parser.add_argument("--all", action="store_true", help="every method, not only the chosen ones")
    parser.add_argument("--method", help="only the experiment of this name")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each")
    parser.add_argument("--first-seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2, help="of each verb; 1 to run two of these side by side")
    parser.add_argument(
        "--vectors", type=Path, help="sentence vectors kept by an earlier preparation: VAR/text_vectors"
    )
    parser.add_argument(
        "--var", type=Path, help="folder where prepared data are kept from row to row; seconds then lack preparing"
    )
    parser.add_argument("--quick", action="store_true", help="the quick variants")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the protocols")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the recorded rows")
    a = parser.parse_args()
    if unknown := sorted(set(a.protocols) - set(PROTOCOLS)):
        parser.error(f"unknown protocols {unknown}; there are {', '.join(PROTOCOLS)}")
    if a.var and a.vectors:
        parser.error("--var and --vectors exclude each other: vectors are kept below VAR already")
    if a.table:
        print(f"wrote {record([])}")
        return
    shared = a.shared.resolve()
    if not (shared / "protocols").is_dir():
        print(f"skipped: {shared} holds no protocols; pass --shared FOLDER")
        return
    chosen = [
        (name, method)
        for name in a.protocols or PROTOCOLS
        for method in METHODS[name]
        if (method.experiment == a.method if a.method else a.all or method.chosen)
    ]
    if not chosen:
        parser.error(f"no experiment {a.method!r} among {[m.experiment for ms in METHODS.values() for m in ms]}")
    done = []
    for name, method in chosen:
        if method.needs and importlib.util.find_spec(method.needs) is None:
            print(f"skipped: {method.experiment} needs the package {method.needs}")
            continue
        rows = []
        for seed in range(a.first_seed, a.first_seed + a.seeds):
            with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
                row = measure(
                    name,
                    method,
                    seed,
                    Path(scratch),
                    shared,
                    quick=a.quick,
                    threads=a.threads,
                    vectors=a.vectors,
                    var=a.var and a.var.resolve(),
                )
                rows.append(row)
            print(f"recorded in {RESULTS} and {record(rows[-1:])}")
        done.append(rows)
    for rows in done:
        judge(rows)
    print(f"{len(read())} rows in {RESULTS}")


if __name__ == "__main__":
    main()
