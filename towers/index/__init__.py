"""From item embeddings to a verified bundle, and from a bundle to answers.

>>> from towers.index import Retriever  # doctest: +SKIP
>>> ids, scores = Retriever.open("runs/demo/latest/bundle").recommend(42, k=10)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towers.index.filters import Attribute
    from towers.index.fusion import Fusion
    from towers.index.handle import RetrieverHandle
    from towers.index.results import Results
    from towers.index.retriever import Retriever
    from towers.index.watching import Watch

_HOMES = {
    "Attribute": "filters", "Fusion": "fusion", "Results": "results", "Retriever": "retriever",
    "RetrieverHandle": "handle", "Watch": "watching",
}  # fmt: skip
__all__ = ["Attribute", "Fusion", "Results", "Retriever", "RetrieverHandle", "Watch"]


def __getattr__(name: str) -> Any:
    """Import FAISS and onnxruntime only when somebody asks for a class that needs them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"towers.index.{_HOMES[name]}"), name)
