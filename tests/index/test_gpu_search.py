"""The benchmark of search on a GPU runs, on a small catalogue and the CPU, and finds everything."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu_search


def test_it_runs_and_finds_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = "--device cpu --items 3000 --dim 16 --k 20 --repeats 2 --passes 0.2 0.004 --batches 1 3"
    monkeypatch.setattr(sys, "argv", ["gpu_search", *said.split()])
    gpu_search.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "/recall@" in line]
    assert len(lines) == 4
    assert all("value=1 " in line for line in lines)
