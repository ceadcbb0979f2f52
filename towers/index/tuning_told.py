"""What tuning found, as JSON, as a table and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from towers.errors import ConfigError
from towers.index.tuning import Candidate

COLUMNS = ("index", "verdict", "settings", "recall", "one query, ms", "queries/s of 256", "bytes an item", "built, s")
_COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#66a182", "#8d96a3", "#7b2d8b", "#2e4057", "#b5651d", "#00798c")


def facts(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """What JSON can hold of the candidates, with their curves."""
    return [
        {
            "kind": c.kind, "verdict": c.verdict, "items": c.items, "settings": settings(c), "recall": c.recall,
            "single_ms": None if c.speed is None else c.speed.single_ms,
            "batch_qps": None if c.speed is None else c.speed.batch_qps,
            "bytes_per_item": c.bytes_per_item, "build_s": c.build_s,
            "curve": [
                {"settings": _settings(p.recipe), "recall": p.recall, "single_ms": p.speed.single_ms,
                 "batch_qps": p.speed.batch_qps}
                for p in c.curve
            ],
        }
        for c in candidates
    ]  # fmt: skip


def settings(candidate: Candidate) -> dict[str, int]:
    """The search settings by name; none where no setting keeps the recall."""
    return {} if candidate.recipe is None else _settings(candidate.recipe)


def _settings(recipe: Any) -> dict[str, int]:
    knob = {"nprobe": recipe.nprobe} if recipe.is_ivf else {"ef_search": recipe.ef_search}
    return ({} if recipe.kind == "flat" else knob) | ({"rescore": recipe.rescore} if recipe.lossy else {})


def rows(candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """A row of cells under ``COLUMNS`` for each candidate."""
    out: list[tuple[str, ...]] = []
    for c in candidates:
        told = ", ".join(f"{k} {v}" for k, v in settings(c).items())
        speed = ("", "") if c.speed is None else (f"{c.speed.single_ms:.3g}", f"{c.speed.batch_qps:,.0f}")
        size = f"{c.bytes_per_item:,.0f}" if c.bytes_per_item else ""
        recall, built = f"{c.recall:.4f}" if c.recipe else "", f"{c.build_s:,.1f}" if c.items else ""
        out.append((c.kind, c.verdict, told, recall, *speed, size, built))
    return out


def markdown(candidates: Sequence[Candidate]) -> str:
    """The table for a README."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(candidates)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(candidates: Sequence[Candidate], min_recall: float, recall_at: int) -> str:
    """The recall-speed curves as SVG; equal measurements give equal files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError as e:
        raise ConfigError("the curve's picture needs matplotlib: pip install 'towers[train]'") from e
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    both: Any = figure.subplots(1, 2, sharex=True)
    for axes, what in zip(
        both, ("queries per second, one at a time", "queries per second, batches of 256"), strict=True
    ):
        for c, colour in zip(candidates, _COLOURS, strict=False):
            qps = [1e3 / p.speed.single_ms if axes is both[0] else p.speed.batch_qps for p in c.curve]
            wide = 2.5 if c.verdict == "chosen" else 1.0
            axes.plot([p.recall for p in c.curve], qps, marker="o", markersize=3, linewidth=wide, color=colour,
                      label=c.kind + (" (chosen)" if c.verdict == "chosen" else ""))  # fmt: skip
            if c.recipe is not None and c.speed is not None:
                chosen = 1e3 / c.speed.single_ms if axes is both[0] else c.speed.batch_qps
                axes.plot([c.recall], [chosen], marker="*", markersize=11, color=colour)
        axes.axvline(min_recall, color="#999999", linewidth=0.8, linestyle="--")
        axes.set(xlabel=f"recall@{recall_at} against exact search", ylabel=what, yscale="log", xlim=(0.5, 1.005))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(fontsize=7, frameon=False)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "towers"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
