from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.model.helpers import full_model, infos
from towers.errors import BundleError
from towers.index import towers_onnx
from towers.index.towers_onnx import ItemGraph, UserGraph, export_item_tower, export_user_tower, parity
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.tower import TowerSettings


def inputs_of(file: bytes) -> dict[str, tuple[str, list[object]]]:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return {i.name: (i.type, i.shape) for i in session.get_inputs()}


def test_the_contract_of_the_user_tower() -> None:
    model = full_model()
    session = ort.InferenceSession(export_user_tower(model), providers=["CPUExecutionProvider"])
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    assert inputs["user.id"] == ("tensor(int32)", ["rows"])
    assert inputs["user.title.en"] == ("tensor(int32)", ["rows", 5])
    assert inputs["user.vec"] == ("tensor(float)", ["rows", 9])
    assert inputs["context.skills"] == ("tensor(int32)", ["rows", 4])
    assert inputs["history.vectors"] == ("tensor(float)", ["rows", "length", 12])
    assert inputs["history.mask"] == ("tensor(bool)", ["rows", "length"])
    assert inputs["history.action"] == ("tensor(int64)", ["rows", "length"])
    assert inputs["history.age"] == ("tensor(float)", ["rows", "length"])
    assert len(inputs) == len(infos()) + 2 + 4
    assert [o.name for o in session.get_outputs()] == ["embedding"]


def test_the_contract_of_the_item_tower() -> None:
    for pooling, outputs in (("mean", ["embedding", "history_input"]), ("none", ["embedding"])):
        file = export_item_tower(full_model(history=HistorySettings(pooling=pooling)))  # type: ignore[arg-type]
        assert set(inputs_of(file)) == {f"item.{i.name}" for i in infos()}
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == outputs
        onnx.checker.check_model(onnx.load_from_string(file))


@pytest.mark.parametrize("info", infos(), ids=lambda i: f"{i.kind}-{i.width}")
def test_every_kind_of_feature_alone(info: object) -> None:
    only = TowerSettings(include=[info.name], encoders=EncoderSettings(numeric="periodic"))  # type: ignore[attr-defined]
    model = full_model(user=only, item=only)
    for graph, export in ((UserGraph, export_user_tower), (ItemGraph, export_item_tower)):
        assert parity(graph(model.eval()), model, export(model)) < 1e-5


@pytest.mark.parametrize("pooling", ["none", "mean", "decay", "lags", "attention", "ridge"])
@pytest.mark.parametrize("body", ["none", "mlp", "dense", "cross"])
def test_every_pooling_and_body(pooling: str, body: str) -> None:
    """`export_*` itself checks parity: one row and many, histories of length 0, 1 and long."""
    tower = TowerSettings(width=12, body=body, layers=2, dropout=0.3, id_dropout=0.3)  # type: ignore[arg-type]
    history = HistorySettings(pooling=pooling, table="separate", length=6)  # type: ignore[arg-type]
    model = full_model(user=tower, item=tower, history=history)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_user_tower(model)
        export_item_tower(model)
    assert model.training  # left in the mode in which it was


def test_an_empty_history_is_finite_and_batches_do_not_mix() -> None:
    model = full_model()
    session = ort.InferenceSession(export_user_tower(model), providers=["CPUExecutionProvider"])
    inputs = towers_onnx.random_inputs(UserGraph(model), model, rows=4, length=3, seed=5)
    inputs["history.mask"][:] = False
    (four,) = session.run(None, inputs)
    assert np.isfinite(four).all()
    (one,) = session.run(None, {k: v[2:3] for k, v in inputs.items()})
    assert np.allclose(four[2], one[0], atol=1e-6)


def test_a_graph_that_disagrees_is_refused() -> None:
    model, other = full_model(), full_model()
    file = export_item_tower(other)
    with pytest.raises(BundleError, match="differ by"):
        parity(ItemGraph(model.eval()), model, file)


def test_a_graph_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers_onnx, "LIMIT", 1000)
    with pytest.raises(BundleError, match=r"lower model\.dim"):
        export_item_tower(full_model())


def test_export_leaves_weights_and_gradients_alone() -> None:
    model = full_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_user_tower(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
