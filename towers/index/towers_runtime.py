"""The exported towers, run by onnxruntime.

``B`` users, ``N`` items, ``L`` history length, ``H`` width of a history input, ``D`` embedding dimension.

===================  ====================  ==========================================================
user tower           array                 content
===================  ====================  ==========================================================
``user.NAME``        ``[B]``, ``[B, W]``   an encoded user feature, as ``Featurizer.encode`` gives it
``context.NAME``     likewise              an encoded context feature
``history.vectors``  ``[B, L, H]`` f32     history inputs of past items, the newest first; 0 if masked
``history.mask``     ``[B, L]`` bool       whether there is an event
``history.action``   ``[B, L]`` int64      its action code
``history.age``      ``[B, L]`` f32        log1p of the hours since; 0 where the log has no clock
→ ``embedding``      ``[B, D]`` f32        normalised if the similarity is cosine
item tower
``item.NAME``        ``[N]``, ``[N, W]``   an encoded item feature
→ ``embedding``      ``[N, D]`` f32        likewise
→ ``history_input``  ``[N, H]`` f32        what the item contributes to a history, if there is one
===================  ====================  ==========================================================

``L`` is at least 1: an empty history is one masked position. A graph has only the inputs that it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from towers.errors import BundleError

_TYPES = {
    "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bool)": np.bool_,
}  # fmt: skip
Inputs = Mapping[str, NDArray[Any]]


class Tower:
    """One exported tower. Safe in threads.

    Args:
        path: an ONNX file.
        threads: of one run; None: as onnxruntime likes.

    Raises:
        BundleError: the graph has no output ``embedding``.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors come as exceptions
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        self.inputs = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: o.shape for o in self._session.get_outputs()}
        if "embedding" not in self.outputs:
            raise BundleError(f"{self.name}: no output 'embedding'; there are {sorted(self.outputs)}")

    def run(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """All outputs by name. What the graph does not read is left out.

        Raises:
            BundleError: the graph wants an input that is not given, or of another type.
        """
        if lacking := sorted(set(self.inputs) - set(inputs)):
            raise BundleError(f"{self.name}: wants {lacking}; the bundle's schema gives {sorted(inputs)}")
        feed = {name: np.ascontiguousarray(inputs[name]) for name in self.inputs}
        for name, (kind, _) in self.inputs.items():
            if _TYPES.get(kind) != feed[name].dtype:
                raise BundleError(f"{self.name}: {name} is {kind} in the graph, {feed[name].dtype} by the schema")
        names = list(self.outputs)
        try:
            return dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as e:  # onnxruntime's own classes derive from Exception only
            raise BundleError(f"{self.name}: {e}") from e
