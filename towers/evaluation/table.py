"""An evaluation as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from towers.evaluation.metrics import WITHOUT_CUT
from towers.evaluation.results import Evaluation, Scores


def table(evaluation: Evaluation) -> Table:
    """A row for each metric and a column for each cut-off, then the first metric of every part of every slice.

    Values come with 95 % bootstrap bounds where they are means over queries.
    """
    e = evaluation
    counts = f"{len(e.task):,} queries, {e.scores.targets:,} targets, {len(e.task.candidates):,} candidates"
    out = Table(title=escape(f"{e.task.name}: {counts}"), title_justify="left")
    out.add_column("metric", no_wrap=True)
    for k in e.ks:
        out.add_column(f"@{k}", justify="right", no_wrap=True)
    names = list(dict.fromkeys(n.partition("@")[0] for n in e.values if n not in WITHOUT_CUT))
    for name in names:
        out.add_row(name, *(_cell(e.scores, f"{name}@{k}") for k in e.ks))
    for name in (n for n in WITHOUT_CUT if n in e.values):
        out.add_row(name, _cell(e.scores, name))
    for title, parts in e.slices.items():
        out.add_section()
        out.add_row(escape(f"{names[0]} by {title}" if names else title), style="dim")
        for label, scores in parts.items():
            out.add_row(
                f"  {escape(label)} ({len(scores.queries):,})", *(_cell(scores, f"{names[0]}@{k}") for k in e.ks)
            )
    return out


def _cell(scores: Scores, metric: str) -> str:
    if metric not in scores.values:
        return ""
    bounds = scores.intervals.get(metric)
    return f"{scores.values[metric]:.4f}" + (f" [dim]{bounds.low:.4f}-{bounds.high:.4f}[/dim]" if bounds else "")
