"""Training examples/s, side by side with other libraries: one log, one batch size, two cores, in turns.

    for p in tfrs librecommender replay_rec rectools_dssm; do sh benchmarks/peers/make_env.sh $p var/peers; done
    python -m benchmarks.peers --environments var/peers

The log is made once: ids only, 10 M events of 1 M users on 200 k jobs. Each side is a process of its own that reads
it, warms up, trains for a while and tells its pace; a peer runs in its own environment, by
``benchmarks/peers/PEER.py``, which says how it is set up. Sides take turns, ``--repeats`` times: the ratio to a peer is
the median over turns of ours to its. A plain torch loop takes turns with ours within our process. A peer that cannot
run is shown with its error. ``--clock cpu --threads 1`` counts seconds of the processor instead, which other work on
the machine hardly lengthens.

The log, the environments and what was prepared stay under ``--environments``, for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.line import report

HERE = Path(__file__).parent
PEERS = ("tfrs", "librecommender", "replay_rec", "rectools_dssm")
OURS = "towers"
LIMIT = 1200  # seconds after which a side is given up

Told = dict[str, Any]


def make_log(path: Path, users: int, items: int, events: int, seed: int = 0) -> None:
    """Events in random order over 60 days: every user and item has one, popular items are popular.

    Columns: user, item (0 …), time (epoch seconds).
    """
    rng = np.random.default_rng(seed)
    user = np.concatenate([np.arange(users), rng.integers(0, users, events - users)])
    item = np.concatenate([np.arange(items), (rng.random(events - items) ** 2 * items).astype(np.int64)])
    time = 1_700_000_000 + rng.integers(0, 60 * 86400, events)
    table = pa.table({"user": rng.permutation(user), "item": rng.permutation(item), "time": time})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def told(command: list[str], threads: int) -> Told:
    """What a side tells in its last line of JSON, or ``{"error": …}``."""
    here = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TF_NUM_INTRAOP_THREADS": str(threads)}
    keras = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=os.environ | here | keras, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if done.returncode:
        return {"error": f"ended with {done.returncode}: {_last(done.stderr)}"}
    line = _last(done.stdout, "{")  # progress bars may come after it
    if not line:
        return {"error": f"it tells no pace: {_last(done.stdout)!r}"}
    found: Told = json.loads(line)
    return found


def commands(log: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """How each side is started; ours first."""
    shape = [f"--batch={args.batch}", f"--dim={args.dim}", f"--hidden={args.hidden}", f"--threads={args.threads}",
             f"--clock={args.clock}"]  # fmt: skip
    clock = [f"--seconds={args.seconds}", f"--warm-up={args.warm_up}"]
    ours = [sys.executable, "-m", "benchmarks.peers.ours", str(log), *shape, f"--blocks={args.blocks}"]
    return {OURS: ours} | {
        peer: [str(args.environments / peer / "bin/python"), str(HERE / f"{peer}.py"), str(log), *shape, *clock]
        for peer in args.peers
    }


def pace(row: Told) -> float:
    """Examples/s."""
    return float(row["examples"] / row["seconds"])


def summary(rounds: list[dict[str, Told]]) -> dict[str, Told]:
    """Of each side: median, lowest and highest pace, and the median over rounds of ours to its; or its error."""
    out: dict[str, Told] = {}
    for side in rounds[0]:
        failed = [r[side]["error"] for r in rounds if "error" in r[side]]
        if failed:
            out[side] = {"error": failed[0]}
            continue
        paces = [pace(r[side]) for r in rounds]
        known = {name: rounds[0][side].get(name) for name in ("versions", "differs")}
        out[side] = {"examples_per_s": statistics.median(paces), "low": min(paces), "high": max(paces), **known}
        if side != OURS and not any("error" in r[OURS] for r in rounds):
            out[side]["ours_over_it"] = statistics.median(pace(r[OURS]) / pace(r[side]) for r in rounds)
    return out


def main() -> None:
    """Rounds of all sides, a table, the lines, the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=PEERS, help="which, of " + ", ".join(PEERS))
    parser.add_argument("--environments", type=Path, default=Path("var/peers"))
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where the machine is busy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of a peer's turn, after the warm-up")
    parser.add_argument("--warm-up", type=int, default=5, help="steps of a peer before its clock starts")
    parser.add_argument("--blocks", type=int, default=8, help="of 10 steps, of ours and of the plain loop, in a turn")
    parser.add_argument("--record", type=Path, default=HERE.parent / "results/peers.json")
    args = parser.parse_args()
    log = args.environments / f"log-{args.users}-{args.items}-{args.events}.parquet"
    if not log.exists():
        make_log(log, args.users, args.items, args.events)
    rounds: list[dict[str, Told]] = []
    for turn in range(args.repeats):
        rounds.append({})
        for side, command in commands(log, args).items():
            if turn and "error" in rounds[0][side]:
                rounds[turn][side] = rounds[0][side]
                continue
            rounds[turn][side] = row = told(command, args.threads)
            shown = row["error"] if "error" in row else f"{pace(row):,.0f} examples/s"
            print(f"turn {turn + 1}, {side}: {shown}", flush=True)
    found = summary(rounds)
    record = {
        "command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": os.getloadavg(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "summary": found,
        "rounds": rounds,
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n")
    lines(found, rounds, args.batch, args.clock)


def lines(found: dict[str, Told], rounds: list[dict[str, Told]], batch: int, clock: str = "wall") -> None:
    """Each side's pace or error, then what was asked."""
    unit = {"wall": "examples/s", "cpu": "examples per second of the processor"}[clock]
    for side, row in found.items():
        if "error" in row:
            print(f"{side}: no figure: {row['error']}")
            continue
        over = f", ours {row['ours_over_it']:.2f} times that" if "ours_over_it" in row else ""
        print(f"{side}: {row['examples_per_s']:,.0f} {unit} ({row['low']:,.0f} to {row['high']:,.0f}){over}; "
              f"{row['differs']}")  # fmt: skip
    ratios = [row["ours_over_it"] for row in found.values() if "ours_over_it" in row]
    if ratios:
        report("peers/over_fastest", min(ratios), 3.0, at_most=False)
    plain = [x for r in rounds for x in r[OURS].get("ratios", ())]
    if plain:
        report(f"peers/over_plain_loop_{batch}", statistics.median(plain), 0.97, at_most=False)


def _last(text: str, start: str = "") -> str:
    """The last line that is not empty and starts so."""
    return next((line for line in reversed(text.splitlines()) if line.strip() and line.startswith(start)), "")


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
