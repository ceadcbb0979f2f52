"""A small job market whose answers can be worked out by hand, with ONNX towers made node by node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from towers.features import Action, Feature, Featurizer, Kind, Ragged, Schema
from towers.index.bundle import BundleContents
from towers.index.golden import Golden
from towers.index.recipes import IndexRecipe, build_index
from towers.index.requests import KnownUsers
from towers.index.similarity import Similarity

HOUR = 3_600_000_000
END = 1_700_000_000_000_000  # microseconds: 2023-11-14T22:13:20Z
FIELDS = ["nursing", "law", "physics"]
DIM, WIDTH = 8, 6


def user_tower(fields: np.ndarray, mix: np.ndarray) -> bytes:
    """embedding = fields[user.field] + (Σ mask · exp(-age) · vectors) @ mix."""
    f32 = TensorProto.FLOAT
    nodes = [
        helper.make_node("Gather", ["fields", "user.field"], ["own"]),
        helper.make_node("Cast", ["history.mask"], ["present"], to=f32),
        helper.make_node("Neg", ["history.age"], ["negative"]),
        helper.make_node("Exp", ["negative"], ["fade"]),
        helper.make_node("Mul", ["present", "fade"], ["weight"]),
        helper.make_node("Unsqueeze", ["weight", "last"], ["weights"]),
        helper.make_node("Mul", ["history.vectors", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "middle"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "mix"], ["past"]),
        helper.make_node("Add", ["own", "past"], ["embedding"]),
    ]
    inputs = [
        helper.make_tensor_value_info("user.field", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("history.vectors", f32, ["B", "L", mix.shape[0]]),
        helper.make_tensor_value_info("history.mask", TensorProto.BOOL, ["B", "L"]),
        helper.make_tensor_value_info("history.age", f32, ["B", "L"]),
    ]
    constants = {
        "fields": fields.astype(np.float32),
        "mix": mix.astype(np.float32),
        "last": np.array([2], np.int64),
        "middle": np.array([1], np.int64),
    }
    return _model(nodes, inputs, ["embedding"], constants)


def own_field_tower(market: Market) -> bytes:
    """embedding = fields[user.field]: a model without histories."""
    nodes = [helper.make_node("Gather", ["fields", "user.field"], ["embedding"])]
    inputs = [helper.make_tensor_value_info("user.field", TensorProto.INT32, ["B"])]
    return _model(nodes, inputs, ["embedding"], {"fields": market.fields.astype(np.float32)})


def item_tower(titles: np.ndarray, past: np.ndarray | None = None) -> bytes:
    """embedding = titles[item.place], and with ``past`` history_input = past[item.place]."""
    tables = {"embedding": titles} | ({} if past is None else {"history_input": past})
    nodes = [helper.make_node("Gather", [f"table of {out}", "item.place"], [out]) for out in tables]
    inputs = [helper.make_tensor_value_info("item.place", TensorProto.INT32, ["N"])]
    return _model(nodes, inputs, list(tables), {f"table of {k}": v.astype(np.float32) for k, v in tables.items()})


def _model(nodes: list[Any], inputs: list[Any], outputs: list[str], constants: dict[str, np.ndarray]) -> bytes:
    widths = {"embedding": DIM, "history_input": WIDTH}
    out = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["rows", widths[o]]) for o in outputs]
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "tower", inputs, out, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Market:
    """Items and users with a known truth, and the reference answers, computed the slow way."""

    def __init__(self, n: int = 60, *, strings: bool = False, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        numbers = np.arange(n) * 7 - 21  # -21, -14, …: negative ids too
        self.item_ids = pa.array([f"job-{i}" for i in numbers]) if strings else pa.array(numbers, pa.int64())
        self.ids = self.item_ids.to_pylist()
        self.embeddings = rng.standard_normal((n, DIM)).astype(np.float32)
        self.inputs = rng.standard_normal((n, WIDTH)).astype(np.float32)
        self.fields = rng.standard_normal((6, DIM)).astype(np.float32)
        self.mix = rng.standard_normal((WIDTH, DIM)).astype(np.float32)
        self.past = rng.standard_normal((6, WIDTH)).astype(np.float32)
        self.place = [["Berlin", "Paris", "Rome", None][i % 4] for i in range(n)]
        self.salary = [None if i % 11 == 0 else 1000.0 * i for i in range(n)]
        self.posted = [None if i % 3 else END - i * HOUR for i in range(n)]
        self.expires = [None if i % 5 else END + (i - 10) * HOUR for i in range(n)]
        stamp = pa.timestamp("us", tz="UTC")
        self.attributes = pa.table(
            {
                "place": self.place,
                "salary": self.salary,
                "skills": [[["python"], ["python", "sql"], [], None][i % 4] for i in range(n)],
                "posted": pa.array(self.posted, stamp),
                "expires": pa.array(self.expires, stamp),
            }
        )
        schema = Schema(
            users=(Feature("field", Kind.CATEGORICAL, ("field",)),),
            items=(Feature("place", Kind.CATEGORICAL, ("place",)),),
            actions=(Action("impression", 0.0, history=False), Action("click"), Action("apply", 3.0)),
            clock="time",
            item_id="string" if strings else "int64",
            user_id="string" if strings else "int64",
            history_length=4,
        )
        self.schema = schema
        fields = pa.table({"field": FIELDS})
        self.users = Featurizer.fit(schema.users, fields, np.array([3, 2, 1]))
        self.items = Featurizer.fit(schema.items, self.attributes.select(["place"]), np.ones(n, np.int64))
        self.context = Featurizer.fit((), pa.table({"x": [1]}), np.ones(1, np.int64))
        self.user_ids = pa.array(["ann", "bob", "eve"]) if strings else pa.array([11, -5, 30], pa.int64())
        self.known = KnownUsers(
            ids=self.user_ids,
            features=self.users.encode(fields),
            histories=Ragged(np.array([0, 2, 2, 8]), np.array([3, 4, 0, 1, 2, 3, 4, 5])),
            actions=np.array([1, 2, 1, 1, 1, 2, 1, 1]),
            times=END - np.array([5, 1, 30, 25, 20, 15, 10, 0]) * HOUR,
            exclusions=Ragged(np.array([0, 2, 2, 5]), np.array([3, 4, 7, 8, 9])),
        )

    def vector(self, field: str, rows: list[int], ages: list[float]) -> np.ndarray:
        """The user tower by hand; ``ages`` in hours."""
        own = self.fields[self.users.encode_rows([{"field": field}])["field"][0]]
        fade = [np.exp(-np.log1p(a)) for a in ages]
        past = sum((w * self.inputs[r] for w, r in zip(fade, rows, strict=True)), np.zeros(WIDTH))
        return (own + past @ self.mix).astype(np.float32)

    def item_vector(self, place: str | None) -> np.ndarray:
        """The item tower by hand."""
        return self.fields[self.items.encode_rows([{"place": place}])["place"][0]]

    def live(self, row: int, at: int) -> bool:
        posted, expires = self.posted[row], self.expires[row]
        return (posted is None or posted <= at) and (expires is None or at < expires)

    def contents(self, recipe: IndexRecipe | None = None, **changes: Any) -> BundleContents:
        recipe = recipe or IndexRecipe("flat")
        similarity = Similarity("dot", 0.1)
        golden = [
            Golden({"field": "law", "history": [self.ids[5]]}, self.vector("law", [5], [0.0]), END),
            Golden(self.user_ids[0].as_py(), self.vector("nursing", [4, 3], [1, 5]), END),
        ]
        contents = BundleContents(
            schema=self.schema,
            users=self.users,
            items=self.items,
            context=self.context,
            similarity=similarity,
            item_ids=self.item_ids,
            attributes=self.attributes,
            embeddings=self.embeddings,
            index=build_index(self.embeddings, recipe, similarity),
            recipe=recipe,
            user_tower=user_tower(self.fields, self.mix),
            item_tower=item_tower(self.fields, self.past),
            golden=golden,
            history_inputs=self.inputs,
            known_users=self.known,
            data_start=END - 1000 * HOUR,
            data_end=END,
            provenance={"run": "runs/test", "git": "abc"},
            measured={"index/recall@100": 1.0, "index/search_p99_ms": 0.5},
        )
        return replace(contents, **changes)
