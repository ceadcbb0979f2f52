"""What the measurement of a GPU counts, by hand; how it tells stages apart; and that it runs where there is no card."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ceilings, gpu, stopwatch
from benchmarks.ceilings import Ceilings, Shapes, Work
from benchmarks.gpu_workload import Log, Sizes, linears, model, module, shapes
from benchmarks.stopwatch import Stopwatch

SMALL = Sizes(users=50, items=40, dim=8, events=6, length=4, negatives=10, logged=30)


def test_the_larger_of_the_two_bounds_the_time() -> None:
    limit = Ceilings(bandwidth=100.0, arithmetic=10.0)
    assert Work(bytes=200, flops=5).seconds(limit) == 2.0
    assert Work(bytes=200, flops=50).seconds(limit) == 5.0
    assert Work(1, 2) + Work(3, 4) * 2 == Work(7, 10)


def test_bytes_and_operations_by_hand() -> None:
    # 3 rows of 5 float32 numbers, read and written
    assert ceilings.lookup(3, 5) == Work(2 * 3 * 5 * 4)
    # [3, 5] @ [5, 2] in bfloat16: 15 + 6 + 10 numbers; 2 operations for each of 3 * 5 * 2 products
    assert ceilings.linear(3, 5, 2, size=2) == Work(62, 60)
    # 2 users, 7 events, vectors of 3
    assert ceilings.pooled(2, 7, 3) == Work((21 + 6) * 4, 42)
    # 2 examples, 5 negatives, vectors of 3 in bfloat16; 10 scores in float32 written and read
    assert ceilings.scores(2, 5, 3, size=2) == Work((2 + 5) * 3 * 2 + 2 * 10 * 4, 60)
    # scores read, their gradient written, then read for each of two products, each of which reads one side's vectors
    # and writes the other's gradient
    assert ceilings.scores_backward(2, 5, 3, size=2) == Work(2 * 40 + 2 * (40 + 2 * 7 * 3 * 2), 120)
    # 9 looked-up gradients of 4 numbers read; 6 sums written and read, 6 rows and 6 accumulators read and written
    assert ceilings.row_updates(9, 6, 4) == Work((36 + 2 * 24 + 2 * 24 + 2 * 6) * 4)
    assert ceilings.adam_updates(10) == Work(280)


def test_a_step_is_the_sum_of_its_stages() -> None:
    s = Shapes(
        examples=2, candidates=7, negatives=5, length=3, histories=4, users=2, items=9, dim=3, linears=[(2, 6, 3)]
    )
    work = ceilings.step(s)
    assert list(work) == ["gather", "towers", "logits", "backward", "optimiser"]
    assert work["gather"] == ceilings.lookup(2 + 7 + 4, 3)
    assert work["towers"] == ceilings.linear(2, 6, 3, 4) + ceilings.pooled(2, 6, 3)
    assert work["logits"] == ceilings.scores(2, 5, 3, 4) + ceilings.scores_backward(2, 5, 3, 4)
    assert work["backward"].flops == 2 * work["towers"].flops - 2 * 6 * 3
    assert work["optimiser"] == ceilings.row_updates(13, 11, 3) + ceilings.adam_updates(18)


def test_linear_layers_are_counted_with_the_rows_that_pass_them() -> None:
    """Users pass the fusion of id and history; items of histories the item tower's fusion and not its body."""
    found = sorted(linears(model(SMALL), users=4, items=7, histories=9))
    block = [(8, 8)] * 3  # two layers of the residual block, and the projection
    assert found == sorted([(4, 16, 8), *((4, *io) for io in block), (16, 8, 8), *((7, *io) for io in block)])


def test_the_counted_shapes_are_those_that_the_towers_see() -> None:
    """Every linear layer, by what it was given in a step."""
    log, seen = Log(SMALL), []
    learner = module(SMALL, log.item_events, torch.device("cpu"))
    one = next(log.batches(6, 1, torch.device("cpu")))
    for layer in learner.model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda m, x, _: seen.append((len(x[0]), m.in_features, m.out_features)))
    learner.training_step(one, 0)
    counted = shapes(one, learner, SMALL, 4)
    absent = bool((one.history < 0).any())  # stands for padding, one row more
    together: dict[tuple[int, int], int] = {}
    for rows, inputs, outputs in seen:
        together[inputs, outputs] = together.get((inputs, outputs), 0) + rows
    for rows, inputs, outputs in counted.linears:
        together[inputs, outputs] -= rows
    assert set(together.values()) <= {0, int(absent)}


def test_the_log_gives_each_event_once_and_only_the_past() -> None:
    log, found = Log(SMALL), []
    batches = log.batches(25, 2, torch.device("cpu"))
    for _ in range(-(-30 * 6 // 25)):
        one = next(batches)
        for user, item, history in zip(one.user.tolist(), one.item.tolist(), one.history.tolist(), strict=True):
            events = log.history.item[user * 6 : user * 6 + 6].tolist()
            past = [x for x in history if x >= 0]
            place = next(i for i in range(6) if events[i] == item and events[max(0, i - 4) : i][::-1] == past)
            found.append((user, place))
    assert len(found) == 30 * 6
    assert sum(log.item_events) == 30 * 6
    task = log.task(10)
    assert (np.diff(task.exclude.offsets) == 5).all()
    assert task.targets.values.tolist() == log.history.item[5:60:6].tolist()


class Hands:
    """A clock that is moved by hand."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_an_inner_stage_is_no_part_of_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    monkeypatch.setattr(stopwatch, "time", hands)
    watch = Stopwatch(torch.device("cpu"))
    with watch.stage("towers"):
        hands.now = 2.0
        with watch.stage("gather"):
            hands.now = 5.0
        hands.now = 6.0
    hands.now = 10.0
    with watch.stage("gather"):
        hands.now = 10.5
    assert watch.seconds() == {"other": 4.0, "towers": 3.0, "gather": 3.5}


def test_the_command_runs_without_a_card(capsys: Any) -> None:
    assert gpu.main(["--device", "cpu", "--smoke"]) == 0
    said = capsys.readouterr().out
    for stage in ("draw", "gather", "towers", "logits", "backward", "optimiser"):
        assert f"  {stage}" in said
    assert "a smoke run: no figure" in said
    assert "name=" not in said, "figures of a smoke run mean nothing"


def test_without_a_card_it_says_what_is_missing_and_leaves_no_figure(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no figure: --device cuda is a CUDA device" in said.err
    assert "python -m benchmarks.gpu --device cpu --smoke" in said.err
    assert len(said.err.splitlines()) == 1
