"""Fusion with BM25 and contexts in requests: brute force over every item, and what a retriever makes of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.index.small_market import DIM, END, Market
from towers.errors import BundleError, ConfigError, DataError
from towers.features import Feature, Featurizer, Kind, Ragged
from towers.index import Fusion, Retriever
from towers.index.bitmaps import rows_where
from towers.index.bm25 import Bm25, Terms
from towers.index.bundle import write_bundle
from towers.index.fusion import reciprocal_ranks, search_fused
from towers.index.golden import Golden

TITLES = ["ward nurse", "nurse", "cook", "head cook", "pilot"]


@given(
    scores=st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=12), depth=st.integers(1, 12)
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_rank_is_one_more_than_how_many_are_better(scores: list[float], depth: int) -> None:
    ours = reciprocal_ranks(np.array([scores], np.float32), depth)[0]
    better = [sum(other > s for other in scores) for s in scores]
    wanted = [1 / (61 + n) if n < depth and s > -np.inf else 0.0 for s, n in zip(scores, better, strict=True)]
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_fused_by_rank_by_hand() -> None:
    bm25 = Bm25(TITLES, Terms(words=(1,), chars=()))
    tower = np.array([[0.1, 0.9, 0.5, -np.inf, 0.2]], np.float32)  # places 4, 1, 2, -, 3
    fused = Fusion("rrf", weight=2.0).scores(tower, bm25, ["nurse"])[0]  # BM25: "nurse" first, "ward nurse" second
    np.testing.assert_allclose(fused[:3], [1 / 64 + 2 / 62, 1 / 61 + 2 / 61, 1 / 62], rtol=1e-6)
    assert fused[3] == -np.inf
    np.testing.assert_allclose(fused[4], 1 / 63, rtol=1e-6)


def test_fused_by_score_adds_what_bm25_says_relative_to_a_perfect_match() -> None:
    bm25 = Bm25(TITLES, Terms(words=(1,), chars=()))
    tower = np.array([[0.1, 0.2, 0.3, 0.4, -np.inf]], np.float32)
    fused = Fusion("sum", weight=0.5).scores(tower, bm25, ["nurse"])[0]
    assert abs(fused[1] - (0.2 + 0.5)) < 1e-6
    assert fused[2:4].tolist() == pytest.approx([0.3, 0.4])
    assert fused[4] == -np.inf


@given(seed=st.integers(0, 50), k=st.integers(1, 8), method=st.sampled_from(["rrf", "sum"]))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_search_is_the_brute_force_over_what_may_be_shown(seed: int, k: int, method: Any) -> None:
    rng = np.random.default_rng(seed)
    embeddings, vectors = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    allowed, exclude = rng.random(5) < 0.7, Ragged(np.array([0, 1, 1]), np.array([1]))
    bm25, fusion, texts = Bm25(TITLES), Fusion(method, weight=0.7), ["nurse", "head cook"]
    rows, scores = search_fused(
        vectors, texts, [embeddings[:2], embeddings[2:]], bm25, fusion, k, allowed=rows_where(allowed), exclude=exclude
    )  # fmt: skip
    for q in range(2):
        eligible = [r for r in range(5) if allowed[r] and not (q == 0 and r == 1)]
        tower = np.full((1, 5), -np.inf, np.float32)
        tower[0, eligible] = embeddings[eligible] @ vectors[q]
        every = fusion.scores(tower, bm25, [texts[q]])[0]
        wanted = sorted(eligible, key=lambda r: (-every[r], r))[:k]
        assert rows[q].tolist() == wanted + [-1] * (k - len(wanted))
        np.testing.assert_allclose(scores[q, : len(wanted)], every[wanted], rtol=1e-5)
        assert (scores[q, len(wanted) :] == -np.inf).all()


@pytest.mark.parametrize("settings_", [{"method": "mean"}, {"weight": -1}, {"weight": float("inf")}, {"depth": 0}])
def test_what_is_no_fusion_is_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Fusion(**settings_)


# A market that is searched: embedding = fields[user.field] + Σ words[context.query].
QUERY = Feature("query", Kind.TEXT, ("query",), words=(1,), chars=(), buckets=1 << 18, max_length=4)


def searched(market: Market) -> dict[str, Any]:
    titles = pa.array([TITLES[i % 5] for i in range(market.n)])
    featurizer = Featurizer.fit([QUERY], pa.table({"query": TITLES}), np.ones(5, np.int64))
    words = np.random.default_rng(3).standard_normal((featurizer.infos[0].cardinality, DIM)).astype(np.float32)
    words[0] = 0
    nodes = [
        helper.make_node("Gather", ["fields", "user.field"], ["own"]),
        helper.make_node("Gather", ["words", "context.query"], ["each"]),
        helper.make_node("ReduceSum", ["each", "middle"], ["asked"], keepdims=0),
        helper.make_node("Add", ["own", "asked"], ["embedding"]),
    ]
    inputs = [
        helper.make_tensor_value_info("user.field", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("context.query", TensorProto.INT32, ["B", 4]),
    ]
    constants = {"fields": market.fields, "words": words, "middle": np.array([1], np.int64)}
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    out = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", DIM])]
    graph = helper.make_graph(nodes, "tower", inputs, out, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)

    def vector(field: str | None, query: str | None) -> np.ndarray:
        own = market.fields[market.users.encode_rows([{"field": field}])["field"][0]]
        return own + words[featurizer.encode_rows([{"query": query}])["query"][0]].sum(0)

    return {
        "vector": vector,
        "titles": titles.to_pylist(),
        "contents": market.contents(
            context=featurizer,
            attributes=market.attributes.append_column("title", titles),
            user_tower=model.SerializeToString(),
            history_inputs=None,
            golden=[
                Golden({"query": "ward nurse"}, vector(None, "ward nurse"), END),
                Golden(11, vector("nursing", None), END),
                Golden(-5, vector("law", "cook"), END, {"query": "cook"}),
            ],
        ),
    }


@pytest.fixture(scope="module")
def world(market: Market, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    parts = searched(market)
    path = write_bundle(parts["contents"], tmp_path_factory.mktemp("searched") / "bundle")
    return {**parts, "retriever": Retriever.open(path), "path": path}


def test_a_query_needs_no_user(world: dict[str, Any]) -> None:
    vector = world["retriever"].vector({"query": "head cook"})
    np.testing.assert_allclose(vector, world["vector"](None, "head cook"), rtol=1e-5)


def test_a_known_user_may_ask_something(world: dict[str, Any]) -> None:
    r = world["retriever"]
    np.testing.assert_allclose(r.vector(11), world["vector"]("nursing", None), rtol=1e-5)
    asked = r.vector(11, context={"query": "cook"})
    np.testing.assert_allclose(asked, world["vector"]("nursing", "cook"), rtol=1e-5)
    many = r.vector([11, -5], context=[{"query": "cook"}, {}])
    np.testing.assert_allclose(many[0], asked, rtol=1e-5)
    np.testing.assert_allclose(many[1], world["vector"]("law", None), rtol=1e-5)


@pytest.mark.parametrize(
    ("users", "context", "said"),
    [
        ({"query": "cook"}, {"query": "cook"}, "their own fields"),
        ([11, -5], [{"query": "cook"}], "1 contexts for 2 users"),
        ([11], {"query": "cook"}, "1 contexts"),
        (11, {"qeury": "cook"}, "unknown fields ['qeury']"),
        (11, {"query": "cook", "history": []}, "unknown fields ['history']"),
    ],
)
def test_contexts_that_belong_to_no_request_are_refused(
    world: dict[str, Any], users: Any, context: Any, said: str
) -> None:
    with pytest.raises(DataError) as e:
        world["retriever"].recommend(users, context=context, at=END)
    assert said in str(e.value)


@pytest.mark.parametrize("method", ["rrf", "sum"])
def test_a_fused_answer_keeps_to_filters_exclusions_and_what_is_live(
    world: dict[str, Any], market: Market, method: Any
) -> None:
    r, fusion = world["retriever"], Fusion(method)
    got = r.recommend(11, market.n, context={"query": "ward nurse"}, filter="place == 'Berlin'", at=END, fuse=fusion)
    eligible = [i for i in range(market.n) if market.place[i] == "Berlin" and market.live(i, END) and i not in (3, 4)]
    tower = np.full((1, market.n), -np.inf, np.float32)
    tower[0, eligible] = market.embeddings[eligible] @ world["vector"]("nursing", "ward nurse")
    every = fusion.scores(tower, Bm25(world["titles"]), ["ward nurse"])[0]
    wanted = sorted(eligible, key=lambda i: -every[i])
    assert sorted(got.ids.tolist()) == sorted(market.ids[i] for i in wanted)
    np.testing.assert_allclose(got.scores, every[wanted], rtol=1e-4)


def test_fusion_brings_what_the_words_say_to_the_front(world: dict[str, Any]) -> None:
    ids, _ = world["retriever"].recommend({"query": "pilot"}, 5, at=END, fuse=Fusion("sum", weight=100.0))
    assert set(world["retriever"].attributes(ids)["title"].to_pylist()) == {"pilot"}


def test_a_fusion_without_words_or_text_says_what_to_name(world: dict[str, Any]) -> None:
    r = world["retriever"]
    with pytest.raises(DataError, match="needs the query's words"):
        r.recommend(11, fuse=Fusion(), at=END)
    with pytest.raises(ConfigError, match="no text 'salary'"):
        r.recommend({"query": "cook"}, fuse=Fusion(text="salary"), at=END)


def test_a_golden_query_of_a_known_user_asks_what_it_asked(market: Market, tmp_path: Path) -> None:
    parts = searched(market)
    wrong = [Golden(-5, parts["vector"]("law", "cook"), END, {"query": "pilot"})]
    with pytest.raises(BundleError, match="another vector than the trained model"):
        write_bundle(replace(parts["contents"], golden=wrong), tmp_path / "bundle")


def test_the_opened_bundle_still_describes_itself(world: dict[str, Any]) -> None:
    assert (Path(world["path"]) / "vocab/context.json").is_file()
    assert [f.name for f in world["retriever"].bundle.schema.context] == ["query"]
