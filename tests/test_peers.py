"""Training against other libraries: the log that is made, the pace that is taken, what is said of failures."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import pace
from benchmarks.peers.pace import Enough, Job, Pace


def test_the_log_has_every_user_and_every_item_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        peers.make_log(tmp_path / f"{name}.parquet", users=30, items=10, events=200)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 200
    assert set(table["user"].to_numpy()) == set(range(30))
    assert set(table["item"].to_numpy()) == set(range(10))
    assert table.equals(pq.read_table(tmp_path / "b.parquet"))


def job(seconds: float) -> Job:
    ids = np.arange(5)
    return Job(ids, ids[:3], batch=4, dim=2, hidden=2, threads=1, seconds=seconds, warm_up=2)


def test_the_clock_starts_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([1.0, 10.0, 13.0, 15.0, 20.0])  # ends of the steps; the second ends the warm-up
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(times))
    clock = Pace(job(seconds=9.0))
    for _ in range(4):
        clock.step()
    with pytest.raises(Enough):
        clock.step()
    clock.tell(["numpy"], "nothing")
    told = json.loads(capsys.readouterr().out)
    assert told["examples"] == 3 * 4
    assert told["seconds"] == 10.0
    assert told["versions"] == {"numpy": np.__version__}


def test_a_training_that_ends_before_the_clock_starts_is_no_figure() -> None:
    clock = Pace(job(seconds=1.0))
    clock.step(), clock.step()
    with pytest.raises(RuntimeError, match="2 of them to warm up"):
        clock.tell([], "")


def test_users_and_items_are_counted_from_the_largest_id() -> None:
    assert (job(1).users, job(1).items) == (5, 3)


def test_a_peer_is_asked_in_its_own_process_and_its_line_of_json_is_read(tmp_path: Path) -> None:
    script = tmp_path / "fake.py"
    script.write_text(
        "import os\nprint('chatter')\n"
        'print(\'{"examples": %s, "seconds": 2, "keras": %s}\' % (os.environ[\'OMP_NUM_THREADS\'], '
        "os.environ['TF_USE_LEGACY_KERAS']))\nprint('the bar goes on')\n"
    )
    assert peers.told([sys.executable, str(script)], threads=6) == {"examples": 6, "seconds": 2, "keras": 1}


def test_a_peer_that_fails_is_told_by_its_error(tmp_path: Path) -> None:
    script = tmp_path / "fake.py"
    script.write_text("raise ValueError('no such layer')")
    assert peers.told([sys.executable, str(script)], 1) == {"error": "ended with 1: ValueError: no such layer"}
    script.write_text("print('no figure')")
    assert peers.told([sys.executable, str(script)], 1) == {"error": "it tells no pace: 'no figure'"}
    assert "nowhere" in peers.told(["/nowhere/python"], 1)["error"]


def test_ratios_are_medians_over_turns_and_failures_stay_in_the_summary() -> None:
    def row(examples: int) -> peers.Told:
        return {"examples": examples, "seconds": 2.0, "versions": {}, "differs": ""}

    rounds = [
        {"towers": row(60), "fast": row(20), "broken": {"error": "no wheel"}},
        {"towers": row(80), "fast": row(40), "broken": {"error": "no wheel"}},
        {"towers": row(20), "fast": row(2), "broken": {"error": "no wheel"}},
    ]
    found = peers.summary(rounds)
    assert found["fast"]["ours_over_it"] == 3.0  # of 3, 2 and 10
    assert (found["fast"]["examples_per_s"], found["fast"]["low"], found["fast"]["high"]) == (10.0, 1.0, 20.0)
    assert "ours_over_it" not in found["towers"]
    assert found["broken"] == {"error": "no wheel"}


def test_the_lines_name_the_fastest_peer_and_every_failure(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [
        {
            "towers": {"examples": 8, "seconds": 1.0, "differs": "", "ratios": [0.9, 0.98, 1.1]},
            "slow": {"examples": 1, "seconds": 1.0, "differs": ""},
            "fast": {"examples": 2, "seconds": 1.0, "differs": ""},
            "broken": {"error": "no wheel"},
        }
    ]
    peers.lines(peers.summary(rounds), rounds, 4096)
    out = capsys.readouterr().out
    assert "name=peers/over_fastest value=4 goal=3 holds=yes" in out
    assert "name=peers/over_plain_loop_4096 value=0.98 goal=0.97 holds=yes" in out
    assert "broken: no figure: no wheel" in out


def test_each_peer_has_a_script_and_an_environment() -> None:
    shell = (peers.HERE / "make_env.sh").read_text()
    args = Namespace(environments=Path("e"), peers=peers.PEERS, batch=1, dim=1, hidden=1, threads=1,
                     seconds=1, warm_up=1, blocks=1, clock="wall")  # fmt: skip
    for peer, command in list(peers.commands(Path("log"), args).items())[1:]:
        assert Path(command[1]).is_file(), peer
        assert f"\n{peer})\n" in shell
