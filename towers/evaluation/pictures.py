"""Pictures of an evaluation, as SVG text. The one module of this room that needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.evaluation import metrics as m
from towers.evaluation.intervals import Interval
from towers.evaluation.results import Evaluation

INK, ACCENT, SECOND, FAINT = "#1f2937", "#2563eb", "#d97706", "#e5e7eb"
CURVES = {"recall": ("Recall@K", ACCENT), "ndcg": ("NDCG@K", SECOND)}
_GRID = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)


def curves(evaluation: Evaluation) -> str:
    """Recall@K and NDCG@K over K, as far as the ranking goes; the cut-offs of the evaluation are dots."""
    depth = evaluation.ranking.items.shape[1]
    grid = np.array(sorted({k for k in (*_GRID, *evaluation.ks, depth) if k <= depth}))
    figure, axes = _figure(7.0, 3.4)
    for name, (label, color) in CURVES.items():
        heights = curve(evaluation, name, grid)
        axes.plot(grid, heights, color=color, linewidth=2, label=label)
        dots = np.isin(grid, evaluation.ks)
        axes.plot(grid[dots], heights[dots], "o", color=color, markersize=5)
    axes.set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= depth]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("K, places of the list")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")
    return _svg(figure)


def bars(parts: Mapping[str, tuple[int, Interval]], overall: float, label: str) -> str:
    """One bar for each part of a slice, with its interval; the line is the value over all queries.

    Args:
        parts: part → number of queries, and the value with its bounds.
        overall: the value over all queries.
        label: what the bars measure.
    """
    figure, axes = _figure(7.0, 0.9 + 0.36 * len(parts))
    rows = np.arange(len(parts))
    values = [i.value for _, i in parts.values()]
    errors = [[i.value - i.low for _, i in parts.values()], [i.high - i.value for _, i in parts.values()]]
    axes.barh(rows, values, height=0.62, color=ACCENT, alpha=0.85)
    axes.errorbar(values, rows, xerr=np.maximum(errors, 0), fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    axes.axvline(overall, color=SECOND, linewidth=1.4, linestyle="--")
    axes.set_yticks(rows, [f"{name}  (n = {n:,})" for name, (n, _) in parts.items()], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{label}; dashed: all queries")
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def curve(evaluation: Evaluation, name: str, grid: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """``[len(grid)]`` means of a metric at every cut-off."""
    targets = evaluation.task.targets
    count = np.diff(targets.offsets)
    query = np.repeat(np.arange(len(count)), count)
    place = m.places(evaluation.ranking.items, targets)
    hit = m.hits(place, query, len(count), evaluation.ranking.items.shape[1])
    return np.array([m.AT_K[name](hit, count, int(k)).mean() for k in grid])


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError as e:
        raise ConfigError("the report's pictures need matplotlib: pip install 'towers[train]'") from e
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, colors=INK)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    """The picture without date or random ids, so that equal results give equal files."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": "towers"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return out.getvalue()
