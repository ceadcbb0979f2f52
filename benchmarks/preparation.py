"""Preparing a 20 M-event log, beside DuckDB's bare sort of the same file.

    python -m benchmarks.preparation [--events 20000000] [--repeats 3]

Each run is a process of its own, so that its peak memory is its own. The reference reads the log, sorts it by
(user, time) and writes Parquet, with the same threads and memory limit. Preparation reads it, joins ids to rows, sorts,
splits, works out histories, writes examples and histories, fits and encodes, hashes every file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.line import report

THREADS, MEMORY = 2, "2GB"
SORT = "COPY (SELECT * FROM read_parquet('{log}') ORDER BY user, time) TO '{out}' (FORMAT parquet, COMPRESSION zstd)"


def make_log(path: Path, events: int) -> None:
    """Random events of events/20 users on events/100 items over 60 days; popular items are popular."""
    con = duckdb.connect(config={"threads": THREADS})
    con.execute(f"""COPY (
        SELECT (random() * {events // 20})::BIGINT AS user, (power(random(), 2) * {events // 100})::BIGINT AS item,
               1700000000000 + (random() * 60 * 86400e3)::BIGINT AS time,
               CASE WHEN random() < 0.8 THEN 'view' ELSE 'apply' END AS action
        FROM range({events})) TO '{path}' (FORMAT parquet, COMPRESSION zstd)""")


def sort(log: Path, out: Path) -> None:
    """The reference."""
    con = duckdb.connect(config={"threads": THREADS, "memory_limit": MEMORY, "temp_directory": f"{out}.spill"})
    con.execute(SORT.format(log=log, out=out))


def prepare(log: Path, out: Path) -> None:
    """Ours."""
    from data.prepare import prepare as run
    from data.spec import DatasetSpec

    spec = {
        "name": "bench",
        "events": {"files": str(log), "time": {"column": "time", "unit": "ms"}, "action": "action"},
        "actions": {"view": {"weight": 1}, "apply": {"weight": 2}},
        "users": {"features": {"user_id": {"kind": "id", "min_count": 2}}},
        "items": {"features": {"item_id": {"kind": "id"}}},
        "split": {"rule": "global_time", "valid": "3d", "test": "3d"},
    }
    run(DatasetSpec.parse(spec), out, threads=THREADS, memory=MEMORY)


def measured(what: str, log: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of one run in a fresh process."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.preparation", "--child", what, str(log), str(out)])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{what} failed")
    seconds = time.perf_counter() - start
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return seconds, usage.ru_maxrss / 2**20


def main() -> None:
    """Interleaved runs, medians, two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        what, log, out = args.child
        {"sort": sort, "prepare": prepare}[what](Path(log), Path(out))
        return
    with tempfile.TemporaryDirectory(dir="var" if Path("var").is_dir() else None) as folder:
        log = Path(folder) / "log.parquet"
        make_log(log, args.events)
        runs: dict[str, list[tuple[float, float]]] = {"sort": [], "prepare": []}
        for _ in range(args.repeats):
            for what, done in runs.items():
                done.append(measured(what, log, Path(folder) / what))
    print(json.dumps({what: [[round(s, 2), round(g, 2)] for s, g in done] for what, done in runs.items()}))
    ratio = statistics.median(p[0] / s[0] for p, s in zip(runs["prepare"], runs["sort"], strict=True))
    report("preparation/over_bare_sort", ratio, 2.0, at_most=True)
    report("preparation/peak_rss_gib", max(g for _, g in runs["prepare"]), 3.0, at_most=True)


if __name__ == "__main__":
    main()
