"""One step of neighbourhood aggregation: by hand, by dense matrices, and the same in evaluation and in a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from pipeline.datasets import ensure_prepared
from pipeline.evaluating import evaluate_run, load
from pipeline.exporting import export
from pipeline.runs import Run
from pipeline.training import train
from tests.model.helpers import contexts, full_model, infos, table
from towers.errors import ConfigError
from towers.index import Retriever
from towers.model.aggregation import Aggregation, AggregationSettings
from towers.model.closed_form.interactions import Interactions
from towers.model.embedder import Embedder

CONFIGS = Path(__file__).parents[2] / "configs"
USERS, ITEMS = 8, 6
many = settings(derandomize=True, deadline=None, max_examples=25)


def log(pairs: list[tuple[int, int]], items: int = ITEMS) -> Interactions:
    user, item = np.array(pairs, np.int64).T
    return Interactions(user, item, np.ones(len(user), np.float32), USERS, items)


def random_pairs(seed: int, items: int = ITEMS) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(u, i) for u in range(USERS) for i in range(items) if rng.random() < 0.3] or [(0, 0)]


def test_two_items_of_one_user_by_hand() -> None:
    """Items 0 and 1 were clicked together, item 2 alone: it stays where it is."""
    x = log([(0, 0), (0, 1), (1, 2)], 3)
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    moved = Aggregation(x, AggregationSettings(0.25))(v)
    assert torch.allclose(moved, torch.tensor([[0.75, 0.25], [0.25, 0.75], [3.0, 3.0]]))


def test_popular_neighbours_count_less_by_the_power() -> None:
    """Item 0 meets items 1 (one click) and 2 (four clicks) once each."""
    x = log([(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2)], 3)
    shares = [Aggregation(x, AggregationSettings(1.0, power=p))(torch.eye(3))[0].tolist() for p in (0.0, 0.5, 1.0)]
    assert shares == [pytest.approx(s) for s in ([0, 1 / 2, 1 / 2], [0, 2 / 3, 1 / 3], [0, 4 / 5, 1 / 5])]


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1.5), st.integers(1, 8))
@many
def test_it_is_its_definition(seed: int, weight: float, power: float, neighbours: int) -> None:
    pairs = random_pairs(seed)
    r = np.zeros((USERS, ITEMS))
    r[tuple(np.array(pairs).T)] = 1.0
    v = np.random.default_rng(seed).standard_normal((ITEMS, 3))
    n_users, n_items = np.maximum(r.sum(1), 1), np.maximum(r.sum(0), 1)
    s = r.T @ np.diag(n_users**-0.5) @ r @ np.diag(n_items**-power)
    np.fill_diagonal(s, 0)
    wanted = v.copy()
    for i in range(ITEMS):
        order = sorted(range(ITEMS), key=lambda j: (-round(s[i, j], 6), j))[:neighbours]
        if total := s[i, order].sum():
            wanted[i] = (1 - weight) * v[i] + weight * s[i, order] @ v[order] / total
    got = Aggregation(log(pairs), AggregationSettings(weight, neighbours, power))(torch.from_numpy(v).float())
    if neighbours >= ITEMS - 1:  # whoever is cut off among equals is a matter of rounding
        assert np.allclose(got.numpy(), wanted, atol=1e-5)
    assert np.all(got.numpy() <= v.max(0) + 1e-5)  # a mean of vectors lies among them
    assert np.all(got.numpy() >= v.min(0) - 1e-5)


@given(st.integers(0, 1000), st.floats(0, 1))
@many
def test_equal_vectors_stay_equal_and_no_weight_changes_nothing(seed: int, weight: float) -> None:
    x = log(random_pairs(seed))
    same = torch.ones(ITEMS, 2)
    assert torch.allclose(Aggregation(x, AggregationSettings(weight))(same), same, atol=1e-6)
    v = torch.randn(ITEMS, 2)
    assert torch.equal(Aggregation(x, AggregationSettings(0.0))(v), v)


def test_an_embedder_moves_items_and_no_query() -> None:
    items = 11
    args = (full_model(), table(infos(), USERS), table(infos(), items, 1), 4, contexts())
    plain = Embedder(*args)
    aggregation = Aggregation(log(random_pairs(0, items), items), AggregationSettings(0.4))
    moved = Embedder(*args, aggregation=aggregation)
    wanted = torch.nn.functional.normalize(aggregation(plain.embed_items()), dim=-1)  # a cosine
    assert torch.allclose(moved.embed_items(), wanted, atol=1e-6)
    assert not torch.allclose(moved.embed_items(), plain.embed_items(), atol=1e-3)
    rows = np.array([9, 0, 4])
    assert torch.equal(moved.embed_items(rows), moved.embed_items()[rows])
    assert torch.equal(moved.history_table(), plain.history_table())


@pytest.mark.parametrize(
    ("values", "word"), [((-0.1,), "weight is -0.1"), ((1.1,), "weight"), ((0.5, 0), "neighbours")]
)
def test_settings_are_checked(values: tuple[float, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        AggregationSettings(*values)  # type: ignore[arg-type]


# As a run


def config(verb: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, list(overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("aggregation")
    small = ["data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000", "threads=1",
             "model=light_gcn", "model.dim=16", "model.item_include=[id,skills]", "negatives=uniform", "negatives.n=64",
             "batch_size=512", "trainer.max_epochs=1", "logger=none",
             f"var={folder}/var", f"runs={folder}/runs"]  # fmt: skip
    train(config("train", *small), folder / "run")
    return Run(folder / "run")


def test_a_run_is_evaluated_with_it_beside_its_own_numbers(run: Run) -> None:
    dataset = ensure_prepared(run.config)
    own = json.loads((run.folder / "eval" / "valid" / "metrics.json").read_text())
    metrics = evaluate_run(run, ["valid"], dataset=dataset, aggregate={"weight": 0.5})
    assert metrics["valid/ndcg@20"] != run.metrics["metrics"]["valid/ndcg@20"]
    assert json.loads((run.folder / "eval" / "valid" / "metrics.json").read_text()) == own
    assert (run.folder / "eval" / "valid-aggregate" / "report.html").is_file()
    again = evaluate_run(run, ["valid"], dataset=dataset, aggregate={"weight": 0.0})
    assert again["valid/ndcg@20"] == run.metrics["metrics"]["valid/ndcg@20"]


def test_a_bundle_holds_the_vectors_that_were_evaluated(run: Run) -> None:
    """Opening replays the golden queries: what the bundle answers is what the evaluated vectors say."""
    bundle = export(config("export", f"run={run.folder}", "aggregate.weight=0.5", "aggregate.neighbours=7"))
    retriever = Retriever.open(bundle)
    dataset = ensure_prepared(run.config)
    module = load(run, dataset, aggregate={"weight": 0.5, "neighbours": 7})
    assert module.aggregation is not None
    wanted = module.embedder().embed_items().numpy()
    assert np.allclose(np.load(bundle / "items" / "embeddings.npy"), wanted, atol=1e-6)
    assert not np.allclose(wanted, load(run, dataset).embedder().embed_items().numpy(), atol=1e-3)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["provenance"]["aggregate"] == {"weight": 0.5, "neighbours": 7, "power": 0.5}
    assert retriever is not None
