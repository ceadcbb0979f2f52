"""The README of a bundle, written by the program."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from towers.index import layout, tuning_told
from towers.index.tuning import Candidate


def readme(name: str, facts: Mapping[str, Any], sizes: Mapping[str, int], tuning: Sequence[Candidate] = ()) -> str:
    """What this bundle is, for whoever finds it on a disk.

    Args:
        name: folder name.
        facts: the manifest's fields.
        sizes: bytes of each file.
        tuning: the kinds of index that were measured to choose this one, if any were.
    """
    similarity, counts, recipe = facts["similarity"], facts["counts"], facts["index"]
    kind = {"dot": "dot product", "cosine": "cosine (vectors have norm 1)"}[similarity["kind"]]
    settings = ", ".join(f"{k}={recipe[k]}" for k in _SHOWN[recipe["kind"]])
    rows = [
        ("items", f"{counts['items']:,}"),
        ("known users", f"{counts['users']:,}" if counts["users"] else "none: ask with raw features"),
        ("data window", f"{_day(facts['data']['start'])} to {_day(facts['data']['end'])}"),
        ("similarity", f"{kind}; trained at temperature {similarity['temperature']:g}, scores are undivided"),
        ("dimensions", str(facts["dim"])),
        ("index", recipe["kind"] + (f" ({settings})" if settings else "")),
        ("embeddings", recipe["storage"]),
        *((key, f"{value:,.4g}") for key, value in sorted(facts["measured"].items())),
        *((key, _line(value)) for key, value in sorted(facts["provenance"].items())),
        ("written", f"{facts['created']} by towers {facts['versions']['towers']}"),
    ]
    table = "\n".join(f"| {k} | {v} |" for k, v in rows)
    files = "\n".join(f"| `{k}` | {v:,} |" for k, v in sizes.items())
    return f"""# {name}: a job-retrieval bundle

A two-tower model ready to serve: the item index, the exported towers, the vocabularies that encode a request, and
queries with known answers. `manifest.json` lists the SHA-256 of every file, `manifest.sha256` that of the manifest.
Recall is measured against exact search with this model's own user vectors; `index/recall@K` of 1 loses nothing.

| what | value |
|---|---|
{table}
{_chosen(tuning)}
## Open it

```python
from towers.index import Retriever  # pip install 'towers[cpu]'; no torch needed

retriever = Retriever.open("{name}")  # checks every hash, replays the known answers
ids, scores = retriever.recommend({{"history": []}}, k=10)  # raw user features, or the id of a known user
```

## Files

| file | bytes |
|---|---|
{files}
"""


_SHOWN = {
    "flat": (),
    "ivf_flat": ("nlist", "nprobe"),
    "ivf_fp16": ("nlist", "nprobe", "rescore"),
    "ivf_sq8": ("nlist", "nprobe", "rescore"),
    "ivf_pq": ("nlist", "nprobe", "m", "rescore"),
    "ivf_pq4": ("nlist", "nprobe", "m", "rescore"),
    "ivf_rabitq": ("nlist", "nprobe", "rescore"),
    "hnsw": ("m", "ef_construction", "ef_search"),
    "hnsw_sq8": ("m", "ef_construction", "ef_search", "rescore"),
}


def _chosen(tuning: Sequence[Candidate]) -> str:
    if not tuning:
        return ""
    return f"""
## Why this index

Each kind was built once and its search settings swept, on held-out users. Stars: the quickest settings that keep the
recall; thick: the kind that was chosen. Recall is of users who did not choose the settings.

![recall against speed]({layout.CURVE})

{tuning_told.markdown(tuning)}
"""


def _day(moment: int | None) -> str:
    if moment is None:
        return "unknown"
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=moment)).strftime("%Y-%m-%d")


def _line(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
