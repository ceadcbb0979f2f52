"""The record of measured quality (``results/quality.json``), and the page made of it (``docs/results.md``)."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.protocols import METHODS, PROTOCOLS

RESULTS = Path(__file__).parent / "results" / "quality.json"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
README = Path(__file__).parents[1] / "README.md"
MARKS = "<!-- chosen methods: written by `python benchmarks/quality.py --table` -->\n", "<!-- end -->\n"
KINDS = ("baseline", "closed form", "trained")

Row = dict[str, Any]
_HEAD = """# Results

Every method on every protocol, measured by `python benchmarks/quality.py [PROTOCOL …] [--all] [--seeds N]` from the
committed experiment of that name. Everything was chosen on validation; test was read for the numbers alone. Full
ranking; recall is hits / number of targets. Brackets: the 95 % bootstrap interval over queries, averaged over seeds;
±: the standard deviation over seeds. Rows of protocols with an evaluator of their own were scored by it too (largest
difference {difference:.0e}). Seconds are for preparing, training, refitting and evaluating, on 2 cores or, where it
says so, on one of two that were both busy. In **bold** the method that is chosen for the protocol. Commands, versions
and data hashes: [`benchmarks/results/quality.json`](../benchmarks/results/quality.json). Rows of the first settings are
in [`quality_cpu_2026-11-22.md`](../benchmarks/results/quality_cpu_2026-11-22.md), what each ingredient is worth in
[ablations.md](ablations.md), what was tried in [lab-notes.md](lab-notes.md).
"""


def read() -> list[Row]:
    """All recorded rows."""
    rows: list[Row] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    return rows


def record(rows: list[Row]) -> Path:
    """Add rows to the record, each in place of an older one of its experiment, seed and variant; rewrite the tables."""
    latest = {_key(row): row for row in [*read(), *rows]}
    order = list(PROTOCOLS)
    kept = sorted(latest.values(), key=lambda r: (order.index(r["protocol"]), r["quick"], KINDS.index(r["kind"]),
                                                  r["experiment"], r["seed"]))  # fmt: skip
    RESULTS.write_text(json.dumps({"rows": kept}, indent=1) + "\n")
    PAGE.write_text(page(kept))
    before, _, rest = README.read_text().partition(MARKS[0])
    README.write_text(before + MARKS[0] + summary(kept) + MARKS[1] + rest.partition(MARKS[1])[2])
    return PAGE


def _key(row: Row) -> tuple[Any, ...]:
    return row["protocol"], row["experiment"], row["seed"], row["quick"]


def page(rows: list[Row]) -> str:
    """The rows as Markdown, a table for each protocol."""
    differences = [t["disagreement"] for r in rows for t in r["tasks"].values() if t["disagreement"] is not None]
    parts = [_HEAD.format(difference=max(differences, default=0.0)), _goals(rows)]
    parts += filter(None, [_quick(rows), _references(rows)])
    for name, protocol in PROTOCOLS.items():
        mine = [r for r in rows if r["protocol"] == name]
        if not mine:
            continue
        how = "refitted on train + validation" if protocol.refit else "not refitted"
        parts.append(f"## `{name}` ({protocol.folder or 'by time'}; {how})\n")
        for task in protocol.tasks:
            if len(protocol.tasks) > 1:
                parts.append(f"Task `{task}`:\n")
            parts.append(_table(mine, task, protocol.shown) + "\n")
    return "\n".join(parts)


def summary(rows: list[Row]) -> str:
    """What the README shows: the chosen methods beside the strongest of others."""
    lines = ["| experiment | protocol | test | strongest known |", "|---" * 4 + "|"]
    for name, protocol in PROTOCOLS.items():
        chosen = [r for r in rows if r["protocol"] == name and _chosen(r) and not r["quick"]]
        if chosen and protocol.goals:
            values = ", ".join(
                f"{key.removeprefix('test/').removeprefix('published/')} {mean(chosen, key):.4f}"
                for key, _ in protocol.goals
            )
            cells = [f"`{chosen[0]['experiment']}`", f"`{name}`", values, protocol.known]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean(rows: list[Row], key: str) -> float:
    """A metric (``TASK/METRIC``; ``TASK:PART/METRIC`` of one part of the targets), averaged over seeds."""
    task, metric = key.split("/")
    task, _, part = task.partition(":")
    found = [r["tasks"][task] for r in rows]
    return statistics.mean(t["targets"][part][metric] if part else t["metrics"][metric]["value"] for t in found)


def _chosen(row: Row) -> bool:
    """Whether the row's experiment is the one that is chosen today."""
    return any(m.chosen for m in METHODS[row["protocol"]] if m.experiment == row["experiment"])


def _goals(rows: list[Row]) -> str:
    lines = [
        "## What was asked, and what came out\n",
        "| protocol | metric | value | goal | reached | stretch | seeds |",
    ]
    lines.append("|---" * 7 + "|")
    for name, protocol in PROTOCOLS.items():
        chosen = [r for r in rows if r["protocol"] == name and _chosen(r) and not r["quick"]]
        stretch = dict(protocol.stretch)
        goals = dict(protocol.goals)
        for key in dict.fromkeys([*goals, *stretch]) if chosen else ():
            value = mean(chosen, key)
            cells = [f"`{name}`", key, f"{value:.4f}"]
            cells += [f"{goals[key]:g}", "yes" if value >= goals[key] else "no"] if key in goals else ["", ""]
            cells.append(f"{stretch[key]:g} ({'yes' if value >= stretch[key] else 'no'})" if key in stretch else "")
            lines.append("| " + " | ".join([*cells, str(len(chosen))]) + " |")
    return "\n".join(lines) + "\n"


def _table(rows: list[Row], task: str, shown: tuple[str, ...]) -> str:
    apart = "recall@20" in shown and any(len(r["tasks"][task].get("targets", {})) > 1 for r in rows)
    head = ["experiment", "kind", *shown, *(["recall@20 by target"] if apart else []), "valid", "seeds", "seconds",
            "commit"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["experiment"], row["quick"]].append(row)
    measured = {experiment for experiment, _ in groups}
    absent = [m for m in METHODS[rows[0]["protocol"]] if m.experiment not in measured]
    for (experiment, quick), seeds in groups.items():
        first = seeds[0]
        name = f"**`{experiment}`**" if _chosen(first) else f"`{experiment}`"
        labels = first["tasks"][task].get("targets", {})
        parts = {
            label: statistics.mean(r["tasks"][task]["targets"][label]["recall@20"] for r in seeds)
            for label in (labels if apart else ())
        }
        cells = [
            name + (" (quick)" if quick else ""),
            first["kind"],
            *(_cell([r["tasks"][task]["metrics"][metric] for r in seeds]) for metric in shown),
            *([", ".join(f"{label} {value:.4f}" for label, value in parts.items())] if apart else []),
            _valid(seeds),
            str(len(seeds)),
            _seconds(seeds),
            first["git_sha"][:7] + (" (changed)" if any(r["git_dirty"] for r in seeds) else ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| `{m.experiment}` | {m.kind} |" + " not measured |" + " |" * (len(head) - 3) for m in absent]
    return "\n".join(lines)


def _references(rows: list[Row]) -> str:
    """Baselines beside the protocols' own rows of them."""
    lines = [
        "## Baselines beside the protocols' own rows\n",
        "Made by other code on the same data; formulas may differ, and a ratio below .98 is told in the",
        "[lab notes](lab-notes.md).\n",
        "| experiment | protocol | metric | here | there | ratio |",
        "|---" * 6 + "|",
    ]
    for name, methods in METHODS.items():
        for method in methods:
            mine = [r for r in rows if (r["protocol"], r["experiment"], r["quick"]) == (name, method.experiment, False)]
            for key, reference in method.reference if mine else ():
                value = mean(mine, key)
                cells = [f"`{method.experiment}`", f"`{name}`", key, f"{value:.4f}", f"{reference:.4f}"]
                lines.append("| " + " | ".join([*cells, f"{value / reference:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


def _seconds(rows: list[Row]) -> str:
    """Wall time of the rows that were measured from the raw log on; of all of them where none was."""
    whole = [r for r in rows if not r.get("data_kept")] or rows
    notes = (
        " (one core)" if " 1 threads" in whole[0]["machine"] else "",
        " (vectors kept)" if whole[0].get("vectors_kept") else "",
        " (data kept)" if whole[0].get("data_kept") else "",
    )
    return f"{statistics.mean(r['seconds'] for r in whole):.0f}" + "".join(notes)


def _quick(rows: list[Row]) -> str:
    """What the quick variants of the chosen methods keep of the whole ones."""
    lines = [
        "## Quick variants\n",
        "| experiment | protocol | metric | quick | share kept | seconds |",
        "|---" * 6 + "|",
    ]
    for name, protocol in PROTOCOLS.items():
        chosen = [r for r in rows if r["protocol"] == name and _chosen(r)]
        quick, whole = ([r for r in chosen if r["quick"] is which] for which in (True, False))
        for key, _ in protocol.goals if quick and whole else ():
            value = mean(quick, key)
            cells = [f"`{quick[0]['experiment']}`", f"`{name}`", key, f"{value:.4f}"]
            lines.append("| " + " | ".join([*cells, f"{value / mean(whole, key):.3f}", _seconds(quick)]) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 3 else ""


def _cell(metrics: list[dict[str, float]]) -> str:
    value, low, high = (statistics.mean(m[key] for m in metrics) for key in ("value", "low", "high"))
    spread = f" ± {statistics.stdev(m['value'] for m in metrics):.4f}" if len(metrics) > 1 else ""
    return f"{value:.4f}{spread} ({low:.4f} to {high:.4f})"


def _valid(rows: list[Row]) -> str:
    values = [r["valid"]["value"] for r in rows if r["valid"]["value"] is not None]
    return f"{rows[0]['valid']['metric']} {statistics.mean(values):.4f}" if values else ""
