"""Two processes with half of a batch each make the step of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.model.ranks import WORLDS, module
from towers.model.gathering import Ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and losses of both."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for processes in ("1", "2"):
        command = [sys.executable, "-m", "tests.model.ranks", processes, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_two_halves_are_one_whole(trained: Path, name: str) -> None:
    (one, loss), (two, loss_of_two) = (torch.load(trained / f"{name}.{n}.pt") for n in (1, 2))
    start = module(**{k: v for k, v in WORLDS[name].items() if k != "accumulate"}).model.state_dict()
    assert loss_of_two == pytest.approx(float(loss), rel=1e-5)
    moved = torch.cat([(one[k] - start[k]).flatten() for k in one]).norm()
    apart = torch.cat([(one[k] - two[k]).flatten() for k in one]).norm()
    assert moved > 0.1
    assert apart < 1e-3 * moved


def test_shares_cover_all_rows_in_order() -> None:
    for n in (1, 2, 3, 7, 8):
        shares = [Ranks(r, (2, 2, 1)).share(torch.arange(n) + 10) for r in range(3)]
        assert len({len(s) for s in shares}) == 1
        assert torch.cat(shares)[:n].tolist() == list(range(10, 10 + n))


def test_own_examples_are_where_the_processes_before_end() -> None:
    every = torch.arange(8)
    assert [Ranks(r, (3, 1, 4)).own(every).tolist() for r in range(3)] == [[0, 1, 2], [3], [4, 5, 6, 7]]


def test_alone_nothing_is_asked_and_nothing_copied() -> None:
    x = torch.rand(3, 2)
    ranks = Ranks.of(torch.ones(3))
    assert (ranks.world, ranks.sizes, ranks.scale) == (1, (3,), 1.0)
    assert ranks.examples(x) is ranks.own(x) is ranks.share(x) is ranks.join(x, 3) is x
