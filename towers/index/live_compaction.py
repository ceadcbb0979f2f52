"""Keeping the search of written items short: parts are merged, large ones indexed, replaced versions forgotten.

``M`` rows behind those of the bundle, ``D`` dimensions.

What is written lies in small parts, each searched by scoring all of it. A part that has grown to a quarter of the older
one beside it is merged with it (the size-tiered merging of log-structured stores: O'Neil et al., "The Log-Structured
Merge-Tree", 1996), so that 200,000 rows lie in about five parts; one of ``DENSE`` rows or more gets cells of its own.
All of it is made from a catalogue that does not change, beside the queries and the writes, and then put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.index.bitmaps import Rows
from towers.index.live_catalogue import Catalogue, Part
from towers.index.live_rows import TAIL, LiveRows, flat, part
from towers.index.probing import with_probe_growth
from towers.index.recall import recall_at
from towers.index.recipes import IndexRecipe, build_index
from towers.index.search import VectorSearch

DENSE = 32_768  # rows of a part from which on cells are scanned sooner than all of it
_RATIO = 4  # parts are merged once the newer ones have so large a share of the next older one
_QUERIES = 128  # with which nprobe is chosen
_SPARE = 0.2  # of the way from the recall asked for to 1: what other queries may need

Floats = NDArray[np.float32]


def due(rows: LiveRows) -> Sequence[Part] | Literal["replaced"]:
    """What is to be done next: parts to merge, or versions to forget; nothing: an empty list."""
    if rows.replaced > max(4 * TAIL, len(rows.ids) // 2):
        return "replaced"
    return _run([p for p in rows.parts[1:] if len(p) >= TAIL])


def merged(run: Sequence[Part], seen: Catalogue) -> Part:
    """Neighbours as one part, its attributes indexed as theirs are. What is dead ``LiveRows.merge`` looks up."""
    n, start, end = len(seen.bundle.items), run[0].start, run[-1].end
    assert seen.vectors is not None  # there are rows
    table = pa.concat_tables([p.attributes for p in run]).combine_chunks()
    new = part(start, dense(seen.vectors[start - n : end - n], seen), table, seen.parts[0], Rows())
    for name in {name for p in seen.parts for name in p.eligibility.indexed.names}:
        new.eligibility.indexed.column(name, lists=None)  # now, and not when the next request asks
    return new


def without_replaced(seen: Catalogue) -> LiveRows:
    """The newest versions of all items, deleted ones too (histories may name them), in rows of their own."""
    n = len(seen.bundle.items)
    m = seen.rows_in_all - n
    former = np.asarray(seen.former[:m], np.int64)
    keep = np.setdiff1d(np.arange(m), former[former >= n] - n) + n
    out = LiveRows(seen.bundle, seen.parts[0])
    _copy(keep, seen, out)
    out.kill(seen.ids[r - n] for r in keep.tolist() if not seen.alive(r))
    if len(out.parts) > 1:
        out.merge(merged(out.parts[1:], out.catalogue()))
    return out


def taken_over(done: LiveRows, before: Catalogue, after: Catalogue) -> LiveRows:
    """``done``, with what happened between two catalogues of the rows that it was made from."""
    n = len(before.bundle.items)
    fresh = {after.ids[r - n]: r for r in range(before.rows_in_all, after.rows_in_all)}  # of each item, the last
    _copy(np.asarray(list(fresh.values()), np.int64), after, done)
    done.bury(after.parts[0].dead)
    gone = [int(r) for r in _dead(after) - _dead(before)]
    newest = after.newest([after.ids[r - n] for r in gone]).tolist() if gone else []
    done.kill(after.ids[r - n] for r, now in zip(gone, newest, strict=True) if r == now)  # deleted, not replaced
    return done


def _copy(rows: NDArray[np.int64], seen: Catalogue, to: LiveRows) -> None:
    if not len(rows):
        return
    n = len(seen.bundle.items)
    assert seen.vectors is not None  # there are rows
    inputs = np.zeros((len(rows), 0), np.float32) if seen.inputs is None else seen.inputs[rows - n]
    table = seen.take(rows, seen.parts[-1].attributes.column_names)
    to.append([seen.ids[r - n] for r in rows.tolist()], seen.vectors[rows - n], inputs, table)


def _dead(catalogue: Catalogue) -> Rows:
    """Dead rows behind the bundle's."""
    return Rows().union(*(p.dead.shift(p.start) for p in catalogue.parts[1:]))


def dense(vectors: Floats, base: Catalogue) -> VectorSearch:
    """Search over many rows: by cells, with as many probes as the recall that the bundle promises wants."""
    bundle = base.bundle
    if len(vectors) < DENSE:
        return flat(vectors)
    told = bundle.search.recipe
    recipe = IndexRecipe(
        "ivf_flat", nlist=round(len(vectors) ** 0.5), nprobe=1, device="cpu", min_recall=told.min_recall,
        recall_at=told.recall_at,
    ).resolve(*vectors.shape)  # fmt: skip
    vectors = np.ascontiguousarray(vectors)
    index = build_index(vectors, recipe, bundle.similarity)
    queries = _queries(base)
    exact = flat(vectors).exact(queries, min(told.recall_at, len(vectors)))[1]
    enough = told.min_recall + _SPARE * (1 - told.min_recall)
    while True:
        search = VectorSearch(index, vectors, recipe)
        index.nprobe = recipe.nprobe  # type: ignore[attr-defined]  # not in the type stubs
        if recipe.nprobe >= recipe.nlist or recall_at(search.approximate(queries, exact.shape[1])[1], exact) >= enough:
            break
        recipe = replace(recipe, nprobe=min(recipe.nlist, recipe.nprobe * 3 // 2 + 1))
    return VectorSearch(index, vectors, with_probe_growth(recipe, index, vectors, queries))


def _queries(base: Catalogue) -> Floats:
    """``[Q, D]`` users, if the bundle knows any, and its golden queries."""
    known = base.bundle.known
    golden = np.asarray([q["vector"] for q in base.bundle.golden.get("queries", [])], np.float32)
    vectors = golden.reshape(-1, base.bundle.search.embeddings.shape[1])
    if known is not None and known.embeddings is not None:
        rows = np.linspace(0, len(known.embeddings) - 1, _QUERIES).astype(np.int64)
        vectors = np.concatenate([vectors, known.embeddings[np.unique(rows)]])
    if not len(vectors):  # a bundle made by hand
        vectors = np.asarray(base.bundle.search.embeddings[:_QUERIES], np.float32)
    return np.ascontiguousarray(vectors, np.float32)


def _run(parts: Sequence[Part]) -> Sequence[Part]:
    """The newest parts that are to be one, or one that is to be indexed, if there are any."""
    size, first = 0, len(parts)
    for i in range(len(parts) - 1, -1, -1):
        if size and _RATIO * size >= len(parts[i]):
            first = i
        size += len(parts[i])
    return parts[first:] or [p for p in parts if len(p) >= DENSE and p.search.index is None][:1]
