"""What each ingredient of the chosen recipes is worth: the quick variant, each ingredient taken out once.

    python -m benchmarks.ablations [EXPERIMENT …] [--seeds 1] [--threads 2]

Validation alone is read. Rows go to ``benchmarks/results/ablations.json``, the page to ``docs/ablations.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/ablations.py` works as well

from benchmarks.ingredients import ABLATIONS, Ablation  # noqa: E402
from benchmarks.protocols import METHODS  # noqa: E402
from benchmarks.quality import verb  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
PAGE = ROOT / "docs" / "ablations.md"
WHOLE = "everything"
_HEAD = """# What each ingredient is worth

The quick variants of the chosen recipes, each ingredient taken out once (`python -m benchmarks.ablations`).
**Validation** metrics, hence not comparable with [results.md](results.md); in brackets the 95 % bootstrap interval over
queries. Worth: how much ndcg falls without it, relative to the whole recipe; below zero, the quick variant would be
better off without it. Overrides of each row: [`ablations.json`](../benchmarks/results/ablations.json).
"""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"of {', '.join(ABLATIONS)}; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="of each row, from 42 on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="only the ablations of these labels")
    parser.add_argument(
        "--vectors", type=Path, help="sentence vectors kept by an earlier preparation: VAR/text_vectors"
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the protocols")
    parser.add_argument("--table", action="store_true", help="only write the page from the recorded rows")
    a = parser.parse_args()
    if unknown := sorted(set(a.experiments) - set(ABLATIONS)):
        parser.error(f"unknown experiments {unknown}; there are {', '.join(ABLATIONS)}")
    if a.table:
        record([])
        return
    shared = a.shared.resolve()
    if not (shared / "protocols").is_dir():
        print(f"skipped: {shared} holds no protocols; pass --shared FOLDER")
        return
    for experiment in a.experiments or ABLATIONS:
        wanted = [Ablation(WHOLE), *ABLATIONS[experiment]]
        with tempfile.TemporaryDirectory(prefix="ablations-") as scratch:  # the data is prepared once for all rows
            if a.vectors is not None:
                (Path(scratch) / "var").mkdir()
                (Path(scratch) / "var" / "text_vectors").symlink_to(a.vectors.resolve())
            for ablation in (w for w in wanted if not a.only or w.label in a.only):
                for seed in range(42, 42 + a.seeds):
                    row = measure(experiment, ablation, seed, Path(scratch), shared, a.threads)
                    record([row])
                    value = row["metrics"][deciding(row)]["value"]
                    print(
                        f"name=ablations/{experiment}/{ablation.label.replace(' ', '_')} value={value:.4f}", flush=True
                    )
    print(f"recorded in {RESULTS} and {PAGE}")
    if idle := unchanged(json.loads(RESULTS.read_text())["rows"]):
        raise SystemExit(f"overrides that changed nothing, hence no ablations: {idle}; see benchmarks/ingredients.py")


def unchanged(rows: list[Row]) -> list[str]:
    """Ablations whose metrics are those of the whole recipe to the last digit: nothing read their overrides."""
    whole = {(r["experiment"], r["seed"]): r["metrics"] for r in rows if r["label"] == WHOLE}
    return [
        f"{r['experiment']}: {r['label']}"
        for r in rows
        if r["label"] != WHOLE and r["metrics"] == whole.get((r["experiment"], r["seed"]))
    ]


def measure(experiment: str, ablation: Ablation, seed: int, scratch: Path, shared: Path, threads: int) -> Row:
    """Train the quick variant with these overrides; return its validation row."""
    quick = next(m.quick for methods in METHODS.values() for m in methods if m.experiment == experiment)
    command = ["train.py", f"experiment={experiment}", *quick, *ablation.overrides, f"seed={seed}"]
    verb(
        *command,
        "name=ablation",
        f"shared={shared}",
        f"var={scratch}/var",
        f"runs={scratch}/runs",
        f"threads={threads}",
    )
    run = (scratch / "runs" / "ablation" / "latest").resolve()
    task = next((run / "eval").iterdir())
    mine = json.loads((task / "metrics.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    return {
        "experiment": experiment,
        "label": ablation.label,
        "seed": seed,
        "task": task.name,
        "queries": mine["queries"],
        "metrics": {
            key: mine["metrics"][key]
            for key in ("recall@20", "recall@100", "mrr@1000", "map@1000", "ndcg@20", "ndcg@100")
            if key in mine["metrics"] and (key != "ndcg@100" or "ndcg@20" not in mine["metrics"])
        },
        "command": " ".join(["python", *command]),
        "git_sha": provenance["git_sha"],
        "git_dirty": provenance["git_dirty"],
    }


def deciding(row: Row) -> str:
    """The metric that says what an ingredient is worth: ndcg, the last of a row's."""
    return next(reversed(row["metrics"]))


def record(rows: list[Row]) -> None:
    """Add rows to the record, each in place of an older one of its kind; rewrite the page."""
    older: list[Row] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    latest = {(r["experiment"], r["label"], r["seed"]): r for r in [*older, *rows]}
    RESULTS.write_text(json.dumps({"rows": list(latest.values())}, indent=1) + "\n")
    PAGE.write_text(page(list(latest.values())))


def page(rows: list[Row]) -> str:
    """The rows as Markdown, a table for each recipe."""
    parts = [_HEAD]
    for experiment, ablations in ABLATIONS.items():
        labels = [WHOLE, *(a.label for a in ablations)]
        found = {label: [r for r in rows if (r["experiment"], r["label"]) == (experiment, label)] for label in labels}
        if not found[WHOLE]:
            continue
        metrics = list(found[WHOLE][0]["metrics"])
        lines = [
            f"## `{experiment}`\n",
            "| without | " + " | ".join(metrics) + " | worth |",
            "|---" * (len(metrics) + 2) + "|",
        ]
        ndcg = deciding(found[WHOLE][0])
        whole = _mean(found[WHOLE], ndcg)
        for label, mine in found.items():
            if mine:
                worth = "" if label == WHOLE else f"{1 - _mean(mine, ndcg) / whole:+.1%}"
                name = "(the whole recipe)" if label == WHOLE else label
                lines.append("| " + " | ".join([name, *(_cell(mine, metric) for metric in metrics), worth]) + " |")
            else:
                lines.append(f"| {label} | not measured |" + " |" * len(metrics))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _mean(rows: list[Row], metric: str, key: str = "value") -> float:
    return statistics.mean(r["metrics"][metric][key] for r in rows)


def _cell(rows: list[Row], metric: str) -> str:
    return f"{_mean(rows, metric):.4f} ({_mean(rows, metric, 'low'):.4f} to {_mean(rows, metric, 'high'):.4f})"


if __name__ == "__main__":
    main()
