"""The two towers as ONNX graphs, for serving without torch.

User tower, inputs (``B`` users, ``L`` history length; both free):

==================  =======================================  =========================================
``user.NAME``       int32 ``[B]`` or ``[B, W]``, f32 ``[B, w]``  each encoded user feature that it reads
``context.NAME``    likewise                                 each context feature
``history.vectors`` f32 ``[B, L, H]``                        rows of the history-input table
``history.mask``    bool ``[B, L]``                          true where there is an event
``history.action``  int64 ``[B, L]``                         action codes, 0 elsewhere
``history.age``     f32 ``[B, L]``                           log1p of hours, 0 elsewhere
==================  =======================================  =========================================

Output ``embedding`` ``[B, D]``. The history inputs exist only if the model reads histories.

Item tower: inputs ``item.NAME``, output ``embedding`` ``[N, D]``, and ``history_input`` ``[N, H]`` if the model reads
histories: with it, a job added later can stand in a history, and no graph grows with the catalogue.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from towers.errors import BundleError
from towers.features import FeatureInfo
from towers.model.history import HistoryInputs
from towers.model.two_tower import RetrievalModel

OPSET = 17
LIMIT = 2**31 - 1  # bytes in one protobuf message
_HISTORY = ("history.vectors", "history.mask", "history.action", "history.age")
Arrays = dict[str, NDArray[Any]]


class _Graph(nn.Module):
    """A tower whose inputs come one after the other, in the order of ``names``."""

    names: tuple[str, ...]
    outputs: tuple[str, ...]


class UserGraph(_Graph):
    """The user tower as the exporter wants it."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model
        features = [f"user.{n}" for n in model.user_features] + [f"context.{n}" for n in model.context_features]
        self.names = (*features, *(_HISTORY if model.history_dim else ()))
        self.outputs = ("embedding",)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs in the order of ``names`` → ``[B, D]``."""
        by_name = dict(zip(self.names, inputs, strict=True))
        history = HistoryInputs(*(by_name[n] for n in _HISTORY)) if self.model.history_dim else None
        return self.model.embed_users(_side(by_name, "user."), history, _side(by_name, "context."))


class ItemGraph(_Graph):
    """The item tower as the exporter wants it."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(f"item.{n}" for n in model.item_features)
        self.outputs = ("embedding", *(("history_input",) if model.history_dim else ()))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs in the order of ``names`` → ``[N, D]``, and ``[N, H]`` if the model reads histories."""
        features = _side(dict(zip(self.names, inputs, strict=True)), "item.")
        embedding = self.model.embed_items(features)
        return (embedding,) if not self.model.history_dim else (embedding, self.model.history_inputs(features))


def _side(by_name: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in by_name.items() if k.startswith(prefix)}


def export_user_tower(model: RetrievalModel) -> bytes:
    """The user tower as one ONNX file, checked against torch.

    Raises:
        BundleError: it is too large for one file, or ONNX Runtime computes something else than torch.
    """
    return _checked(UserGraph(model), model)


def export_item_tower(model: RetrievalModel) -> bytes:
    """The item tower as one ONNX file, checked against torch.

    Raises:
        BundleError: it is too large for one file, or ONNX Runtime computes something else than torch.
    """
    return _checked(ItemGraph(model), model)


def _checked(graph: _Graph, model: RetrievalModel) -> bytes:
    was = model.training
    device = next(model.parameters()).device
    graph.eval().cpu()
    try:
        file = _export(graph, model)
        parity(graph, model, file)
    finally:
        model.to(device).train(was)
    return file


def _export(graph: _Graph, model: RetrievalModel) -> bytes:
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    if size > LIMIT:
        raise BundleError(
            f"the towers hold {size / 2**30:.1f} GiB of weights, and one ONNX file holds 2; lower model.dim, or "
            "max_size or buckets of the largest features in the data config"
        )
    example = random_inputs(graph, model, rows=3, length=2, seed=0)
    axes = {name: {0: "rows", **({1: "length"} if name.startswith("history.") else {})} for name in graph.names}
    axes |= {name: {0: "rows"} for name in graph.outputs}
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        # The TorchScript exporter is deprecated, and still the one that keeps free dimensions of size 0 and 1 free.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph, tuple(torch.from_numpy(example[n]) for n in graph.names), path, dynamo=False, opset_version=OPSET,
            input_names=list(graph.names), output_names=list(graph.outputs), dynamic_axes=axes,
        )  # fmt: skip
        return _with_all_inputs(path.read_bytes(), example)


def _with_all_inputs(file: bytes, example: Arrays) -> bytes:
    """Declare the inputs that a graph does not read (a mean ignores ages), so that all models are fed alike."""
    model = onnx.load_from_string(file)
    declared = {i.name for i in model.graph.input}
    for name, array in example.items():
        if name not in declared:
            shape = ["rows", "length", *array.shape[2:]] if name in _HISTORY else ["rows", *array.shape[1:]]
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    out: bytes = model.SerializeToString()
    return out


def parity(graph: _Graph, model: RetrievalModel, file: bytes, tolerance: float = 1e-5) -> float:
    """Compare ONNX Runtime with torch on random inputs: one row and many, histories of length 0, 1 and long.

    Args:
        graph: what was exported.
        model: the towers, in evaluation mode.
        file: the ONNX file.
        tolerance: largest difference allowed, relative to the largest entry of the output (at least 1e-3).

    Returns:
        The largest relative difference.

    Raises:
        BundleError: they differ by more.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, (rows, length) in enumerate([(1, 0), (1, 1), (7, 1), (33, 50), (5, 0)]):
        inputs = random_inputs(graph, model, rows, length, seed)
        with torch.no_grad():
            wanted = graph(*(torch.from_numpy(inputs[n]) for n in graph.names))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for name, want, got in zip(graph.outputs, wanted, session.run(None, inputs), strict=True):
            scale = max(float(want.abs().max()), 1e-3)
            difference = float(np.abs(want.numpy() - got).max()) / scale if got.shape == tuple(want.shape) else np.inf
            if not difference <= tolerance:
                raise BundleError(
                    f"{type(graph).__name__}: ONNX Runtime and torch differ by {difference:.1e} in {name!r}, "
                    f"for {rows} rows and histories of length {length}; allowed is {tolerance:.0e}. Use the torch and "
                    "onnxruntime versions of constraints.txt; if it persists, please report a defect of the exporter"
                )
            worst = max(worst, difference)
    return worst


def random_inputs(graph: _Graph, model: RetrievalModel, rows: int, length: int, seed: int) -> Arrays:
    """Plausible inputs of a graph: every kind of feature, lists with padding, histories with gaps and empty ones."""
    rng = np.random.default_rng(seed)
    by_name: dict[str, FeatureInfo] = {}
    sides: Sequence[tuple[str, Sequence[FeatureInfo]]] = (
        ("user.", model.user_infos),
        ("item.", model.item_infos),
        ("context.", model.context_infos),
    )
    for prefix, infos in sides:
        by_name |= {prefix + i.name: i for i in infos}
    out = {n: _random(by_name[n], rows, rng) for n in graph.names if n not in _HISTORY}
    if model.history_dim and "history.mask" in graph.names:
        mask = np.arange(length) < rng.integers(0, length + 1, (rows, 1))  # some users have none
        actions = model.n_actions
        out["history.vectors"] = rng.standard_normal((rows, length, model.history_dim)).astype(np.float32)
        out["history.mask"] = mask
        out["history.action"] = np.where(mask, rng.integers(0, actions, (rows, length)), 0)
        out["history.age"] = np.where(mask, rng.exponential(3, (rows, length)), 0).astype(np.float32)
    return out


def _random(info: FeatureInfo, rows: int, rng: np.random.Generator) -> NDArray[Any]:
    if not info.cardinality:
        return rng.standard_normal((rows, info.width)).astype(np.float32)
    if not info.width:
        return rng.integers(1, info.cardinality, rows).astype(np.int32)
    ids = rng.integers(1, info.cardinality, (rows, info.width))
    lengths = rng.integers(1, info.width + 1, (rows, 1))
    return np.where(np.arange(info.width) < lengths, ids, 0).astype(np.int32)
