from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.helpers import batch
from tests.model.test_module import ITEMS, USERS, fit, loader, mf, retrieval, trainer, weights
from towers.errors import ConfigError
from towers.features import Ragged
from towers.model import grad_cache, module
from towers.model.memory import saved_bytes
from towers.model.mining import Mined
from towers.model.negatives import InBatch, Uniform
from towers.model.two_tower import TwoTower

# Lightning 2.6 asks torch 2.13's pytree in a way that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

B = 12


def gradients(size: int | None, sampler: Any, random: bool, sparse: bool = False, **changes: Any) -> dict[str, Tensor]:
    """Of one step, by weight, and the loss."""
    m = retrieval(sampler=sampler, grad_cache=size, sparse=sparse, **changes)
    if not random:
        m.eval()
    m.trainer = trainer(Path(), log_every_n_steps=99)
    loss = m.training_step(batch(B, ITEMS, USERS), 0)
    loss.backward()
    out = {n: p.grad.to_dense() for n, p in m.named_parameters() if p.grad is not None}
    return {**out, "loss": loss.detach()}


WORLDS: dict[str, dict[str, Any]] = {
    "in batch": {"sampler": InBatch},
    "uniform, sparse": {"sampler": partial(Uniform, n=7), "sparse": True},
    "mined": {"sampler": partial(Mined, base=InBatch, n=2, nearest=4, start=0)},
}


@pytest.mark.parametrize("size", [1, 5, B])
@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_those_of_the_whole_batch(world: str, size: int) -> None:
    whole, parts = (gradients(s, random=False, **WORLDS[world]) for s in (None, size))
    assert whole.keys() == parts.keys()
    for name, g in whole.items():
        assert torch.allclose(parts[name], g, atol=1e-6), name


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_dropped_the_first_time_is_dropped_the_second(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts embedded as usual, nothing again: the same gradients bit for bit, in spite of dropout."""
    cached = gradients(5, random=True, **WORLDS[world])
    monkeypatch.setattr(grad_cache, "_cached", lambda embed, part: embed(part))
    usual = gradients(5, random=True, **WORLDS[world])
    assert cached.keys() == usual.keys()
    for name, g in usual.items():
        assert torch.equal(cached[name], g), name
    monkeypatch.setattr(module.Retrieval, "_seed_of", lambda self, rank: 1)
    assert not torch.equal(gradients(5, random=True, **WORLDS[world])["loss"], usual["loss"]), "nothing was dropped"


def test_memory_is_that_of_one_part() -> None:
    """Autograd keeps the vectors and row numbers of all parts; what the towers need comes and goes with its part."""
    tower = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(20)])
    table = torch.rand(100, 8)
    rows = torch.arange(100)
    kept = [
        saved_bytes(tower, lambda s=s: grad_cache.embed_rows(lambda r: tower(table[r]), rows, s)) for s in (None, 5)
    ]
    assert kept[0] > 20 * 100 * 8 * 4
    assert kept[1] < kept[0] / 5


def test_parts_of_a_batch() -> None:
    one = batch(5, ITEMS, USERS)
    one.known = Ragged(torch.tensor([0, 2, 2, 3, 3, 6]), torch.arange(6))
    first, second, third = grad_cache.parts(one, 2)
    assert [len(p) for p in (first, second, third)] == [2, 2, 1]
    assert torch.equal(torch.cat([p.history for p in (first, second, third)]), one.history)
    assert [p.known.offsets.tolist() for p in (first, second, third)] == [[0, 2, 2], [0, 1, 1], [0, 3]]
    assert third.known.values.tolist() == [3, 4, 5]
    assert first.time is None


def test_a_run_trains_with_it(tmp_path: Path) -> None:
    m = retrieval(grad_cache=3, sparse=True)
    before = weights(m)
    fit(m, tmp_path, loader(2), precision="bf16-mixed", accumulate_grad_batches=2)
    assert weights(m).isfinite().all()
    assert not torch.equal(before, weights(m))


def test_models_whose_rows_hang_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set it to at least 1"):
        mf(2, 3, grad_cache=0)
    monkeypatch.setattr(TwoTower, "row_by_row", False)
    with pytest.raises(ConfigError, match="a TwoTower cannot; set it to null"):
        mf(2, 3, grad_cache=4)
