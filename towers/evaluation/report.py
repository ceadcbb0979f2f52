"""``report.html``: one evaluation as one file that needs nothing else, to be read, kept and mailed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from towers.evaluation import pictures
from towers.evaluation.examples import Example
from towers.evaluation.results import Evaluation, Scores, replacing

TITLES = {
    "recall": ("Recall", "hits / targets"),
    "ndcg": ("NDCG", "hits, weighted by place; 1 is the best possible order"),
    "hr": ("Hit rate", "queries with any hit"),
    "precision": ("Precision", "hits / places"),
    "mrr": ("MRR", "1 / place of the first hit"),
    "map": ("MAP", "precision at each hit, divided by min(K, targets)"),
    "coverage": ("Coverage", "candidates that anyone was shown / candidates"),
    "auc": ("AUC", "share of (target, other) pairs in order"),
}
_STYLE = """
:root {
  --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --page: #f8fafc; --card: #fff; --accent: #2563eb;
  --hit: #dcfce7; --hit-ink: #166534;
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .4rem 0; } .soft, small { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin-top: 1.5rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: 1.1rem 1.25rem; margin: 0 0 1rem; overflow-x: auto;
}
.tiles .card { margin: 0; } .tiles b { display: block; font-size: 1.9rem; line-height: 1.25; color: var(--accent); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--soft); font-weight: 500; font-size: .875rem; }
td small { display: block; font-size: .78rem; } img { display: block; width: 100%; max-width: 46rem; height: auto; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .5rem 2rem; }
ol, ul { margin: 0; padding-left: 1.3rem; }
.hit { background: var(--hit); color: var(--hit-ink); border-radius: .3rem; padding: 0 .35rem; }
.score { color: var(--soft); font-size: .85rem; } code { font-size: .875rem; overflow-wrap: anywhere; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


def write_report(
    path: Path, evaluation: Evaluation, examples: Sequence[Example] = (), provenance: Mapping[str, object] | None = None
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the file, by custom ``report.html``.
        evaluation: what to show.
        examples: from ``draw_examples``.
        provenance: what to know about where the numbers come from: run, commit, dataset, selection rule …

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with replacing(path) as temporary:
        temporary.write_text(page(evaluation, examples, provenance or {}), encoding="utf-8")


def page(evaluation: Evaluation, examples: Sequence[Example], provenance: Mapping[str, object]) -> str:
    """The page as text."""
    name = escape(evaluation.task.name)
    sections = [
        _header(evaluation),
        _section("All metrics", _metrics(evaluation)),
        _section("Over the length of the list", _picture(pictures.curves(evaluation), "Recall and NDCG over K")),
        _section("Slices", "".join(_slice(evaluation, s, parts) for s, parts in evaluation.slices.items())),
        _section("Examples, drawn at random", "".join(_example(x, evaluation.task.retrieve) for x in examples)),
        _section("Provenance", _facts(provenance)),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation: {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def leading(evaluation: Evaluation) -> str | None:
    """The metric that pictures and summaries show: the first one, at the middle cut-off; None if there is none."""
    names = list(evaluation.per_query)
    middle = f"@{evaluation.ks[len(evaluation.ks) // 2]}"
    return next((n for n in names if n.endswith(middle)), names[0] if names else None)


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>\n" if body else ""


def _card(body: str) -> str:
    return f'<div class="card">{body}</div>\n'


def _picture(svg: str, alt: str) -> str:
    """As an image of its own, because the ids inside several inlined SVGs would collide."""
    data = base64.b64encode(svg.encode()).decode()
    return _card(f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">')


def _label(metric: str) -> str:
    name, _, k = metric.partition("@")
    return escape(TITLES[name][0] + (f"@{k}" if k else ""))


def _header(e: Evaluation) -> str:
    middle = f"@{e.ks[len(e.ks) // 2]}"
    tiles = [n for n in e.values if n.endswith(middle)][:4]
    counts = (
        f"{len(e.task):,} queries · {e.scores.targets:,} targets · {len(e.task.candidates):,} candidates, "
        f"ranked exactly in {e.seconds:,.1f} s"
    )
    cards = "".join(_card(f"<b>{e.values[n]:.4f}</b>{_label(n)}{_bounds(e.scores, n)}") for n in tiles)
    return (
        f"<header>\n<h1>Evaluation: {escape(e.task.name)}</h1>\n"
        f'<p class="soft">{counts}</p>\n<div class="tiles">{cards}</div>\n</header>\n'
    )


def _bounds(scores: Scores, metric: str) -> str:
    interval = scores.intervals.get(metric)
    return f"<br><small>{interval.low:.4f} to {interval.high:.4f}</small>" if interval else ""


def _metrics(e: Evaluation) -> str:
    """A row for each metric, a column for each cut-off."""
    rows = []
    for name in dict.fromkeys(n.partition("@")[0] for n in e.values):
        title, meaning = TITLES[name]
        cells = "".join(_cell(e, f"{name}@{k}") for k in (*e.ks, "all"))
        if name in e.values:  # without a cut-off
            cells = "<td></td>" * len(e.ks) + _cell(e, name)
        rows.append(f"<tr><th>{title}<br><small>{meaning}</small></th>{cells}</tr>")
    head = "".join(f"<th>@{k}</th>" for k in e.ks) + "<th>whole ranking</th>"
    text = '<p class="soft">Means over queries; below, 95 % percentile bootstrap intervals.</p>'
    return _card(f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>") + text


def _cell(e: Evaluation, metric: str) -> str:
    if metric not in e.values:
        return "<td></td>"
    return f"<td>{e.values[metric]:.4f}{_bounds(e.scores, metric).replace('<br>', '')}</td>"


def _slice(e: Evaluation, name: str, parts: Mapping[str, Scores]) -> str:
    metric = leading(e)
    if metric is None or not parts:
        return ""
    shown = {label: (len(s.queries), s.intervals[metric]) for label, s in parts.items()}
    picture = pictures.bars(shown, e.values[metric], _label(metric))
    return _picture(picture, f"{_label(metric)} by {name}").replace(
        '<div class="card">', f'<div class="card"><h3>By {escape(name)}</h3>'
    )


_HEADS = {
    "items": ("History, the newest first", "Recommended; targets are marked"),
    "users": ("Taken before by", "Matched; targets are marked"),
}


def _example(x: Example, retrieve: str) -> str:
    before, now = _HEADS[retrieve]
    answers = _items(
        "ol",
        (
            f'<span{" class=hit" if a.hit else ""}>{escape(a.title)}</span> <span class="score">{a.score:.3f}</span>'
            for a in x.answers
        ),
    )
    found = {0: "beyond the list"}
    wanted = _items("ul", (f"{escape(t)} <small>{found.get(p, f'place {p}')}</small>" for t, p in x.targets))
    history = _items("ul", map(escape, x.history))
    return _card(
        f'<h3>{escape(x.query)}</h3><div class="columns">'
        f"<div><small>{before}</small>{history}</div>"
        f"<div><small>{now}</small>{answers}</div>"
        f"<div><small>To be found</small>{wanted}</div></div>"
    )


def _items(tag: str, lines: Iterable[str]) -> str:
    body = "".join(f"<li>{line}</li>" for line in lines)
    return f"<{tag}>{body}</{tag}>" if body else '<p class="soft">none</p>'


def _facts(facts: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(str(v))}</code></td></tr>" for k, v in facts.items())
    return _card(f"<table><tbody>{rows}</tbody></table>") if rows else ""
