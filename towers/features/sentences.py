"""Pretrained sentence encoders: text → one vector that carries what it means.

Hashed n-grams know that "nurse" and "nursing" share letters, a pretrained encoder that "RN" is one of them. It is an
optional extra (``pip install 'towers[text]'``), hidden behind one small protocol, and opened when the first text needs
it: whoever asks for known ids only never loads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError


class TextEncoder(Protocol):
    """What a feature of kind ``sentence`` needs of an encoder.

    Attributes:
        dim: length of its vectors.
        hash: equal for two encoders only if they give the same vectors: of the weights and the vocabulary, not of a
            name, which may mean another model tomorrow.
    """

    dim: int
    hash: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[N, dim]`` float32 vectors of length 1, the same for a text in any company."""
        ...


Encoders: TypeAlias = Callable[[str], TextEncoder]  # by the name that a data config gives


@lru_cache(maxsize=4)
def open_encoder(name: str) -> TextEncoder:
    """The sentence-transformers model of a name.

    Args:
        name: of a model on the Hugging Face Hub (``sentence-transformers/all-MiniLM-L6-v2``), or its folder.

    Raises:
        ConfigError: the package is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as e:
        raise ConfigError(
            f"the text encoder {name!r} needs sentence-transformers, which cannot be imported ({e}); "
            "pip install 'towers[text]'"
        ) from e
    try:
        return _SentenceTransformer(SentenceTransformer(name))
    except (OSError, ValueError, RuntimeError) as e:
        raise ConfigError(
            f"the text encoder {name!r} cannot be loaded: {str(e).splitlines()[0] if str(e) else e!r}; expected a "
            "model of the Hugging Face Hub, which is downloaded once, or the folder of one"
        ) from e


class _SentenceTransformer:
    def __init__(self, model: Any) -> None:
        self._model = model
        self.dim = int(model.encode(["one"]).shape[1])
        self.hash = _fingerprint(model)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[N, dim]``."""
        vectors = self._model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32).reshape(len(texts), self.dim)


def _fingerprint(model: Any) -> str:
    """SHA-256 of the weights, of what cuts a text into tokens, and of where it is cut off."""
    sha = hashlib.sha256(repr(model.max_seq_length).encode())
    for token, number in sorted(model.tokenizer.get_vocab().items()):
        sha.update(f"{token}\0{number}\0".encode())
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name}{list(weight.shape)}".encode())
        sha.update(weight.float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
