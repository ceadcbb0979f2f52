from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.model.helpers import batch, contexts, full_model, infos, table
from tests.model.test_module import ITEMS, USERS, retrieval, trainer
from towers.errors import ConfigError
from towers.features import FeatureInfo, Kind
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.memory import GIB, MemoryReport, Part, Step, activation_bytes, report, saved_bytes, size
from towers.model.module import Retrieval, TrainingData
from towers.model.negatives import Full
from towers.model.optimisers import OptimiserSettings, build
from towers.model.tower import TowerSettings
from towers.model.two_tower import RetrievalModel, TwoTower

STEP = Step(examples=10, candidates=20, histories=5)


def ids(users: int, items: int, dim: int, sparse_above: int | None = None) -> TwoTower:
    tower = TowerSettings(fusion="sum", body="none", encoders=EncoderSettings(sparse_above=sparse_above))
    features = [[FeatureInfo("id", Kind.ID, 0, n)] for n in (users, items)]
    return TwoTower(*features, dim=dim, user=tower, item=tower, history=HistorySettings(pooling="none"))


def test_by_hand() -> None:
    """1,000 users and 100 items in 8 float32 dimensions; users are sparse, 10 rows of them a step."""
    found = report(ids(1000, 100, 8, 500), OptimiserSettings(), STEP, features=7, activations=9)
    users, items, rest = found.parts
    assert users == Part("user id", (1000, 8), 32_000, 3 * 10 * (32 + 8), 4_000)
    assert items == Part("item id", (100, 8), 3_200, 3_200, 6_400)
    assert rest.total == 0
    assert found.total == users.total + items.total + 7 + 9
    with_data = report(ids(1000, 100, 8, 500), OptimiserSettings(), STEP, features=7, activations=9, data=5)
    assert with_data.total == found.total + 5
    adam = report(ids(1000, 100, 8, 500), OptimiserSettings(table_optimiser="sparse_adam"), STEP)
    assert adam.parts[0].state == 64_000


def test_of_a_sharded_table_a_share_is_counted() -> None:
    """1,000 rows on three processes: 334 on the first. What a step looks up is each process's own, as it was."""
    found = report(ids(1000, 100, 8, 50), OptimiserSettings(), STEP, shard_above=500, world=3)
    users, items, _ = found.parts
    assert users == Part("user id", (334, 8), 334 * 32, 5 * 10 * (32 + 8), 334 * 4)
    assert items == report(ids(1000, 100, 8, 50), OptimiserSettings(), STEP).parts[1], "100 rows are not above 500"


def test_several_processes_hold_a_copy_of_the_dense_gradients() -> None:
    """DDP's buckets: 3,200 bytes of items once more. Sparse tables are averaged row by row."""
    (users, items, _), (sparse, dense, _) = (
        report(ids(1000, 100, 8, 500), OptimiserSettings(), STEP, world=world).parts for world in (1, 2)
    )
    assert sparse == users
    assert dense == Part("item id", (100, 8), 3_200, 2 * 3_200, 6_400)
    assert items.gradients == 3_200


@pytest.mark.parametrize("table_optimiser", ["rowwise_adagrad", "sparse_adam"])
@pytest.mark.parametrize("sparse_above", [None, 5])
def test_weights_gradients_and_state_are_those_of_a_step(table_optimiser: str, sparse_above: int | None) -> None:
    settings = OptimiserSettings(table_optimiser=table_optimiser)  # type: ignore[arg-type]
    module = retrieval(sparse=sparse_above is not None, optimiser=settings)
    optimiser = build(module.model, settings)
    module.trainer = trainer(None, log_every_n_steps=99)  # type: ignore[arg-type]
    module.training_step(batch(8, ITEMS, USERS), 0).backward()
    optimiser.step()
    found = report(module.model, settings, STEP)
    weights = [p for p in module.model.parameters() if p.requires_grad]
    assert sum(p.weights for p in found.parts) == sum(p.nbytes for p in module.model.parameters())
    dense = sum(p.grad.nbytes for p in weights if p.grad is not None and not p.grad.is_sparse)
    told = sum(p.gradients for p in found.parts)
    assert told == dense if sparse_above is None else told > dense
    state = sum(x.nbytes for p in weights for x in optimiser.state[p].values() if torch.is_tensor(x) and x.numel() > 1)
    assert sum(p.state for p in found.parts) == pytest.approx(state, abs=8 * len(weights))  # numbers hold two of theirs


def test_without_storage_it_is_the_same() -> None:
    with torch.device("meta"):
        there = ids(1000, 100, 8)
    assert report(there, OptimiserSettings(), STEP) == report(ids(1000, 100, 8), OptimiserSettings(), STEP)


def test_saved_bytes_by_hand() -> None:
    """``sin`` keeps its input, a product with a weight its input too, which is the same storage, and nothing else."""
    linear = nn.Linear(4, 2, bias=False)
    x = torch.rand(3, 4, requires_grad=True)
    assert saved_bytes(linear, lambda: linear(x) + x.sin().sum()) == 3 * 4 * 4 + 3 * 2 * 4  # x, and what comes out


def test_activations_are_near_what_a_step_keeps() -> None:
    """With every item as a candidate; the step's own count is of real tensors, unsampled logits included."""
    b, items, length = 64, 200, 6

    def make() -> RetrievalModel:
        return full_model(user=TowerSettings(width=64), item=TowerSettings(width=64), dim=32)

    estimate = activation_bytes(make, Step(b, items, items, length, b * items))
    tables = table(infos(), USERS), table(infos(), items, 1)
    module = Retrieval(make(), TrainingData(*tables, np.ones(items, np.int64), context_table=contexts()), sampler=Full)
    module.trainer = trainer(None, log_every_n_steps=99)  # type: ignore[arg-type]
    one = batch(b, items, USERS, length=length)
    measured = saved_bytes(module.model, lambda: module.training_step(one, 0))
    assert 0.7 < estimate / measured < 1.6


def test_chunks_bound_what_the_towers_keep() -> None:
    make = partial(full_model, user=TowerSettings(width=64))
    whole, parts = (activation_bytes(make, Step(4096, 4096, 4096, 4, 0, chunk)) for chunk in (None, 64))
    assert parts < whole / 10


def refused(part: Part, activations: int = 0) -> str:
    with pytest.raises(ConfigError) as e:
        MemoryReport((part, Part("other weights", (), 0, 0, 0)), 0, activations, free=GIB).check()
    return str(e.value)


def test_what_cannot_fit_is_refused_with_the_cure() -> None:
    dense = Part("item id", (10**9, 4), GIB, GIB, GIB)
    assert "memory 3.0 GiB of 1.0 GiB free" in refused(dense)
    assert "set sparse_above below 1000000000" in refused(dense)
    assert "table=hashed" in refused(Part("item id", (10**9, 4), 2 * GIB, 10, GIB))
    assert "lower batch_size" in refused(dense, 9 * GIB)
    assert "lower model.dim" in refused(Part("other weights", (), GIB, GIB, GIB))
    with pytest.raises(ConfigError, match=r"cure: set data\.memory_budget to less than 5,368,709,120 bytes"):
        MemoryReport((dense,), data=5 * GIB, free=4 * GIB).check()
    MemoryReport((dense,), free=4 * GIB).check()
    MemoryReport((dense,), free=None).check()


def test_it_reads_as_one_line() -> None:
    line = str(report(ids(1000, 100, 8), OptimiserSettings(), STEP, activations=None, free=2 * GIB))
    assert line.startswith("memory 0.1 MiB of 2.0 GiB free: weights 0.0 MiB,")
    assert line.endswith("activations unknown; user id 1,000 x 8 0.1 MiB, item id 100 x 8 0.0 MiB")
    assert [size(n) for n in (0, 5 * 2**20, GIB // 2)] == ["0.0 MiB", "5.0 MiB", "0.5 GiB"]


def test_names_of_tables_say_side_and_feature() -> None:
    found = {p.name for p in report(full_model(), OptimiserSettings(), STEP).parts}
    assert {"user id", "item title_en", "item title_en weights", "user context_type"} <= found
    assert {i.name for i in infos()} >= {"id", "title.en"}
