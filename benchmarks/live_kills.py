"""A writer killed at random moments: is everything there that was acknowledged, and nothing back that was deleted?

python -m benchmarks.live --kills 200

A process of its own upserts, deletes and expires a few items at a time, says what it is about to do, and says when the
call has returned. It is killed with SIGKILL at a random moment; then the store is opened and held against what had been
acknowledged. The write that was under way may be there or not, but wholly. All kills fall upon one file.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from towers.index.live_store import Item, LiveStore

_ITEMS = 40  # few, so that most writes replace and most deletes hit
State = dict[int, tuple[Any, ...]]  # item → (fields, expires), or () once it is deleted


class Verdict(NamedTuple):
    """What came of it.

    Attributes:
        kills: times that the writer was killed.
        acknowledged: writes that had returned.
        lost: of those, states of items that are not there.
        returned: items that are back, though their delete had returned.
        torn: writes under way of which a part is there.
    """

    kills: int
    acknowledged: int
    lost: int
    returned: int
    torn: int


def applied(state: State, write: dict[str, Any]) -> State:
    """The state after a write."""
    out = dict(state)
    for item in write["items"]:
        before = out.get(item)
        if write["kind"] == "upsert":
            out[item] = (write["fields"], None)
        elif write["kind"] == "delete":
            out[item] = ()
        elif before:
            out[item] = (before[0], write["expires"])
    return out


def found(path: Path) -> State:
    """The state that the file holds. An expiry of what was never upserted says nothing of what is there."""
    with closing(LiveStore(path)) as store:
        changes, _ = store.changes(0)
    return {x.item: () if x.deleted else (x.fields, x.expires) for x in changes if x.set_at is not None}  # type: ignore[misc]


def killed(kills: int, seed: int = 0) -> Verdict:
    """Kill a writer so many times, and compare after each."""
    rng = random.Random(seed)
    state: State = {}
    lost = returned = torn = acknowledged = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue.sqlite"
        for kill in range(kills):
            writes, under_way = _killed_once(path, rng, seed * 1_000_000 + kill)
            for write in writes:
                state = applied(state, write)
            acknowledged += len(writes)
            is_there = found(path)
            possible = [state] if under_way is None else [state, applied(state, under_way)]
            if is_there not in possible:
                moved = set() if under_way is None else set(under_way["items"])
                wrong = {i for i in state.keys() | is_there.keys() if is_there.get(i) != state.get(i)}
                returned += sum(state.get(i) == () for i in wrong - moved)
                lost += sum(state.get(i) != () for i in wrong - moved)
                torn += bool(wrong & moved)
            state = is_there
    return Verdict(kills, acknowledged, lost, returned, torn)


def _killed_once(path: Path, rng: random.Random, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Writes that were acknowledged before the kill, and the one under way."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.live_kills", str(path), str(seed)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        begun = b""
        if rng.random() < 0.9:  # else perhaps while the file is being opened
            begun = os.read(writer.stdout.fileno(), 1 << 16)
        time.sleep(rng.uniform(0, 0.15))
        writer.kill()
        lines = (begun + writer.stdout.read()).split(b"\n")[:-1]  # a line that was cut off was not said
    said = [json.loads(line) for line in lines]
    asked = [s for s in said if s != "done"]
    done = len(said) - len(asked)
    return asked[:done], asked[done] if len(asked) > done else None


def _writes(seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    while True:
        kind = rng.choice(["upsert", "upsert", "delete", "expire"])
        items = rng.sample(range(_ITEMS), rng.randint(1, 5))
        yield {"kind": kind, "items": items, "fields": f"{seed}/{rng.random()}", "expires": rng.randint(0, 10**9)}


def _main() -> None:
    """The writer, until it is killed."""
    store = LiveStore(sys.argv[1])
    for write in _writes(int(sys.argv[2])):
        os.write(1, json.dumps(write).encode() + b"\n")
        if write["kind"] == "upsert":
            store.upsert([Item(i, write["fields"], b"", None, "") for i in write["items"]])
        elif write["kind"] == "delete":
            store.delete(write["items"])
        else:
            store.expire(write["items"], write["expires"])
        os.write(1, b'"done"\n')


if __name__ == "__main__":
    _main()
