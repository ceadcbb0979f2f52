"""What the scores of a bundle mean: the model's similarity, named once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError

_BLOCK = 1 << 16  # vectors looked at together: they may be memory-mapped, or stored in fewer bytes
_UNIT = 1e-3  # how far from 1 the norm of a vector may be that a model calls normalised


@dataclass(frozen=True)
class Similarity:
    """The similarity a model was trained with. Search is by inner product for both kinds.

    Attributes:
        kind: ``dot``, or ``cosine``: then the towers give vectors of norm 1.
        temperature: what training divided scores by; scores are returned undivided.

    Raises:
        ConfigError: an unknown kind, or a temperature that is not positive.
    """

    kind: str
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no model of ours trains."""
        if self.kind not in ("dot", "cosine"):
            raise ConfigError(f"similarity is {self.kind!r}; expected 'dot' or 'cosine'")
        if isinstance(self.temperature, bool) or not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")

    def check(self, vectors: NDArray[np.float32], what: str, *, nothing: bool = False) -> None:
        """Refuse vectors that cannot come from a tower of this similarity.

        Args:
            vectors: ``[N, D]``.
            what: said in the error ("item embeddings").
            nothing: whether vectors of length 0 pass: those of users of whom nothing is known.

        Raises:
            ConfigError: entries that are not finite; for cosine, norms other than 1.
        """
        for start in range(0, len(vectors), _BLOCK):
            self._check(vectors[start : start + _BLOCK], start, what, nothing)

    def _check(self, block: NDArray[np.float32], start: int, what: str, nothing: bool) -> None:
        squares = np.einsum("nd,nd->n", block, block)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise ConfigError(f"{what}: row {row} is not finite; if a tower gave it, the training diverged")
        if self.kind != "cosine":
            return
        off = np.abs(np.sqrt(squares) - 1) > _UNIT
        if nothing:
            off &= squares > 0
        if off.any():
            row = int(np.flatnonzero(off)[0])
            raise ConfigError(
                f"{what}: row {start + row} has norm {float(np.sqrt(squares[row])):.4f}; similarity is cosine, so "
                "every norm must be 1. Normalise as the model does, or use similarity dot if that is what was trained"
            )
