from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.model.helpers import batch, contexts, full_model, infos, table
from towers.evaluation.task import Task
from towers.features import Ragged
from towers.index import embed
from towers.model.embedder import Embedder
from towers.model.history import HistoryInputs

USERS, ITEMS = 5, 11


def embedder(block: int = 4, **changes: object) -> Embedder:
    return Embedder(full_model(**changes), table(infos(), USERS), table(infos(), ITEMS, 1), block, contexts())


def test_blocks_change_nothing_and_rows_choose() -> None:
    e = embedder()
    every = e.embed_items()
    assert every.shape == (ITEMS, 8)
    whole = Embedder(e.model, e.users, e.items, block=100, contexts=e.contexts).embed_items()
    assert torch.allclose(every, whole, atol=1e-6)
    rows = np.array([7, 0, 9])
    assert torch.allclose(e.embed_items(rows), every[rows], atol=1e-6)
    assert not every.requires_grad


def test_queries_by_the_history_table_equal_queries_worked_out_one_by_one() -> None:
    e = embedder()
    b = batch(6, ITEMS, USERS)
    (ours,) = e.embed_queries([b])
    e.model.eval()
    for i in range(6):
        rows = b.history[i][b.history[i] >= 0]
        n = len(rows)
        history = HistoryInputs(
            e.model.history_inputs(e.items(rows))[None] if n else torch.zeros(1, 0, e.model.history_dim),
            torch.ones(1, n, dtype=torch.bool),
            b.history_action[i, :n][None],
            b.history_age[i, :n][None],
        )
        one = e.model.embed_users(e.users(b.user[i : i + 1]), history, e.contexts(b.context[i : i + 1]))
        assert torch.allclose(ours[i], one[0], atol=1e-5)


def test_a_user_and_an_item_score_alike_whichever_of_them_asks() -> None:
    e, six, items = embedder(), [batch(4, ITEMS, USERS), batch(2, ITEMS, USERS, seed=1)], np.array([1, 5, 9])
    asked = Task("asked", np.arange(6), six, nothing(6, 1), items, nothing(6, 0))  # type: ignore[arg-type]
    asking = Task("asking", items, six, nothing(3, 1), np.arange(6), nothing(3, 0), retrieve="users")  # type: ignore[arg-type]
    (users, candidates), (queries, found) = e.sides(asked), e.sides(asking)
    table = torch.cat(list(users)) @ candidates.T
    assert table.shape == (6, 3)
    assert torch.equal(torch.cat(list(queries)) @ found.T, table.T)


def nothing(queries: int, each: int) -> Ragged:
    return Ragged(np.arange(queries + 1) * each, np.zeros(queries * each, np.int64))


def test_numpy_batches_are_taken_as_they_come() -> None:
    e = embedder()
    b = batch(6, ITEMS, USERS)
    (a,), (c,) = e.embed_queries([b]), e.embed_queries([b.map(lambda x: x.numpy())])
    assert torch.equal(a, c)


def test_the_model_is_left_in_its_mode_and_random_numbers_alone() -> None:
    e = embedder()
    e.model.train()
    before = torch.get_rng_state()
    blocks = e.item_blocks()
    next(blocks)
    assert e.model.training
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(e.embed_items(), e.embed_items())  # no dropout, no id-dropout


def test_export_streams_float32_arrays(tmp_path: Path) -> None:
    e = embedder()
    blocks = list(embed.item_blocks(e))
    assert [len(b) for b in blocks] == [4, 4, 3]
    every = embed.item_embeddings(e)
    assert every.dtype == np.float32
    assert np.array_equal(every, np.concatenate(blocks))
    queries = embed.query_embeddings(e, [batch(3, ITEMS, USERS)] * 2)
    assert queries.shape == (6, 8)
    history = embed.map_history(e, tmp_path / "history.npy")
    assert isinstance(history, np.memmap)
    assert np.array_equal(history, Embedder(e.model, e.users, e.items, 4, e.contexts).history_table().numpy())
    assert np.allclose(embed.query_embeddings(e, [batch(3, ITEMS, USERS)] * 2), queries, atol=1e-6)  # read from there


def test_an_item_is_moved_towards_the_mean_of_its_group() -> None:
    e = embedder()
    plain = e.embed_items()
    groups = torch.tensor([7, 7, 7, *range(100, 100 + ITEMS - 3)])  # three of a kind, the others alone
    pooled = Embedder(e.model, e.users, e.items, 4, e.contexts, groups, group_weight=2.0)
    mean = torch.nn.functional.normalize(plain[:3].mean(0), dim=-1)
    wanted = torch.nn.functional.normalize(plain[:3] + 2.0 * mean, dim=-1)
    assert torch.allclose(pooled.embed_items()[:3], wanted, atol=1e-6)
    assert torch.allclose(pooled.embed_items()[3:], plain[3:], atol=1e-6)  # alone: its own mean
    rows = np.array([9, 1, 0])
    assert torch.equal(pooled.embed_items(rows), pooled.embed_items()[rows])
    assert torch.equal(Embedder(e.model, e.users, e.items, 4, e.contexts, groups).embed_items(), plain)  # weight 0
