"""Killed without warning: what was acknowledged is there, wholly."""

from __future__ import annotations

from benchmarks.live_kills import applied, killed


def test_a_killed_writer_loses_nothing_that_it_acknowledged() -> None:
    verdict = killed(20, seed=1)
    assert verdict.acknowledged > 20
    assert (verdict.kills, verdict.lost, verdict.returned, verdict.torn) == (20, 0, 0, 0)


def test_the_state_after_writes() -> None:
    state = applied({}, {"kind": "upsert", "items": [1, 2], "fields": "a"})
    state = applied(state, {"kind": "expire", "items": [1, 3], "expires": 5})
    state = applied(state, {"kind": "delete", "items": [2]})
    assert state == {1: ("a", 5), 2: ()}
