"""Corrupted bundles: none is accepted, none crashes the process, each error names the file.

python -m benchmarks.corruption                       # 10,000 bundles, and 2,500 fuzzed ones (10 minutes)
python -m benchmarks.corruption --bundles 400 --seed 1

Half are spoilt by accident (bits, stretches, ends, names, missing and added files, links, pipes), half by design, with
hashes that fit: hostile manifests, arrays, tables, JSON, FAISS indexes of every kind, ONNX graphs. Every bundle is
reproducible from the seed and its number.

The fuzzed ones have a number anywhere in a file replaced, with hashes that fit. Such a bundle may be no worse than
another (a skill spelt otherwise), so that it may be accepted; then it is asked, and must not crash either.

Workers open the bundles, one process for many; when one dies or hangs, its bundle is counted and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.damage import ACCIDENTS, Damage
from benchmarks.hostility import DESIGNS, fuzz
from benchmarks.line import report
from tests.index.small_market import END, Market
from towers.errors import BundleError, TowersError
from towers.index.bundle import write_bundle
from towers.index.recipes import KINDS, IndexRecipe
from towers.index.retriever import Retriever

ITEMS = 300  # the fewest that every kind of index learns from
PATIENCE = 120.0  # seconds until a bundle counts as one that hangs
BIG = 1000  # megabytes at which a bundle is mentioned
ADDRESSES = 8 << 30  # bytes a worker may ask for, so that a claim of terabytes does not take the machine along


def prepare(folder: Path) -> None:
    """A sound bundle with each kind of index."""
    for kind in KINDS:
        write_bundle(Market(ITEMS).contents(IndexRecipe(kind)), folder / kind)


def spoil(folder: Path, seed: int, number: int, *, fuzzed: bool = False) -> tuple[Path, Damage, str]:
    """A copy of a sound bundle, spoilt.

    Returns:
        Its path, what was done to it, and the pattern that an error must match.
    """
    rng = Random(f"{seed}/{number}/{fuzzed}")
    ways = (fuzz,) if fuzzed else ACCIDENTS if number % 2 else DESIGNS
    damage = ways[number // 2 % len(ways)]
    shutil.rmtree(folder / "work", ignore_errors=True)
    root = Path(shutil.copytree(folder / KINDS[rng.randrange(len(KINDS))], folder / "work/bundle"))
    return root, damage, damage(root, rng)


def outcome(root: Path, pattern: str) -> tuple[str, str]:
    """``refused``, ``unnamed`` (refused, and the file is not named), ``accepted``, or ``raised``; and the error."""
    try:
        retriever = Retriever.open(root, threads=1)
    except BundleError as e:
        return ("refused" if re.search(pattern, str(e)) else "unnamed"), str(e)
    except Exception as e:
        return "raised", f"{type(e).__name__}: {e}"
    try:
        ask(retriever)
    except TowersError as e:  # a query that fails, and says why
        return "accepted", str(e)
    except Exception as e:
        return "accepted", f"{type(e).__name__}: {e}"
    return "accepted", ""


def ask(retriever: Retriever) -> None:
    """Every way to search."""
    known = retriever.bundle.known
    if known is not None:
        retriever.recommend(known.ids.to_pylist(), 100, at=END)
        retriever.recommend(known.ids.to_pylist(), 5, filter="salary > 100000", at=END)
    retriever.recommend({"field": "law", "history": [0, 7]}, 20, filter="place == 'Rome'", at=END)
    retriever.search(retriever.bundle.search.embeddings[:20], 100, at=END)


def work(folder: Path, seed: int, start: int, stop: int, *, fuzzed: bool) -> None:
    """Open bundles ``start`` … ``stop - 1`` and print a line about each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they think of a file

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=out, flush=True)

    for number in range(start, stop):
        root, damage, pattern = spoil(folder, seed, number, fuzzed=fuzzed)
        tell(number=number, damage=damage.__name__)  # said before, if it is the last word
        what, error = outcome(root, pattern)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tell(number=number, damage=damage.__name__, outcome=what, error=error[:500], mb=peak)


def supervised(folder: Path, seed: int, bundles: int, *, fuzzed: bool) -> Iterator[dict[str, Any]]:
    """What became of each bundle; ``crashed`` and ``hung`` are told here, by the one who is left."""
    start = 0
    while start < bundles:
        command = [sys.executable, "-m", "benchmarks.corruption", "--worker", str(folder), str(start), str(bundles)]
        worker = subprocess.Popen(
            [*command, "--seed", str(seed), *(["--fuzzed-worker"] if fuzzed else [])],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        assert worker.stdout is not None
        last, ending = {"number": start, "damage": "?"}, "crashed"
        try:
            while True:
                if not select.select([worker.stdout], [], [], PATIENCE)[0]:
                    ending = "hung"
                    break
                if not (line := worker.stdout.readline()):
                    break
                last = json.loads(line)
                if "outcome" in last:
                    start = last["number"] + 1
                    yield last
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        if start < bundles:
            yield {**last, "number": start, "outcome": ending, "error": f"exit status {worker.returncode}"}
            start += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=10_000)
    parser.add_argument("--fuzzed", type=int, default=2_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--fuzzed-worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, start, stop = args.worker
        return work(Path(folder), args.seed, int(start), int(stop), fuzzed=args.fuzzed_worker)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        told = table("corrupted", supervised(folder, args.seed, args.bundles, fuzzed=False))
        fuzzed = table("fuzzed", supervised(folder, args.seed, args.fuzzed, fuzzed=True))
    report("corruption/bundles", told.total(), args.bundles, at_most=False)
    report("corruption/accepted", told["accepted"], 0, at_most=True)
    report(
        "corruption/crashed_or_hung", sum(t[k] for t in (told, fuzzed) for k in ("crashed", "hung")), 0, at_most=True
    )
    report("corruption/other_errors", sum(t["raised"] for t in (told, fuzzed)), 0, at_most=True)
    report("corruption/errors_without_file", told["unnamed"], 0, at_most=True)
    return None


def table(title: str, results: Iterator[dict[str, Any]]) -> Counter[str]:
    """Print what became of the bundles, and whatever was not refused as it should be; return the counts."""
    counts: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    peak = 0.0
    for r in results:
        counts.setdefault(r["damage"], Counter())[r["outcome"]] += 1
        total[r["outcome"]] += 1
        if r.get("mb", 0.0) > max(peak, BIG):
            print(f"{title} {r['number']} {r['damage']}: {r['mb']:,.0f} MB {r['error']}", flush=True)
        peak = max(peak, r.get("mb", 0.0))
        if r["outcome"] != "refused" and (
            title != "fuzzed" or r["outcome"] in ("crashed", "hung", "raised") or r["error"]
        ):
            print(f"{title} {r['number']} {r['damage']}: {r['outcome']} {r['error']}", flush=True)
    for damage, found in sorted(counts.items()):
        print(f"{title} {damage:15} {dict(found)}")
    print(f"{title}: {total.total():,} bundles, {dict(total)}, at most {peak:,.0f} MB", flush=True)
    return total


if __name__ == "__main__":
    main()
