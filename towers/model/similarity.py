"""How a query and a candidate are compared: said once, here, and written into every bundle."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.errors import ConfigError

_COLDEST = math.log(1e-3)  # a learned temperature stays above this, else one noisy label decides a batch


class Similarity(nn.Module):
    """Dot product or cosine, divided by a temperature in training.

    The towers' last step is ``normalise``, so that for either kind the similarity *is* the inner product
    of what the towers return; the temperature changes no ranking and is not needed to serve.

    Args:
        kind: ``dot`` or ``cosine``.
        temperature: divisor of the scores in the softmax. A cosine wants a small one (0.05, say).
        learn_temperature: make it a parameter that starts there.

    Raises:
        ConfigError: an unknown kind, or a temperature that is not positive.
    """

    def __init__(
        self, kind: Literal["dot", "cosine"] = "dot", temperature: float = 1.0, learn_temperature: bool = False
    ) -> None:
        super().__init__()
        if kind not in ("dot", "cosine"):
            raise ConfigError(f"similarity kind {kind!r}; set model.similarity.kind to dot or cosine")
        if not temperature > 0:
            raise ConfigError(f"similarity temperature {temperature}; set model.similarity.temperature above 0")
        self.kind = kind
        self._fixed = temperature
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None

    def normalise(self, x: Tensor) -> Tensor:
        """``[*, D]`` → ``[*, D]``: unit length for a cosine, unchanged for a dot product."""
        return F.normalize(x, dim=-1) if self.kind == "cosine" else x

    def cool(self, query: Tensor) -> Tensor:
        """``[B, D]`` queries divided by the temperature: the same as dividing all ``[B, N]`` scores, and cheaper."""
        if self.log_temperature is not None:
            return query * torch.exp(-self.log_temperature.clamp(min=_COLDEST))
        return query if self._fixed == 1.0 else query / self._fixed

    @property
    def temperature(self) -> float:
        """The present temperature."""
        if self.log_temperature is None:
            return self._fixed
        return float(self.log_temperature.detach().clamp(min=_COLDEST).exp())

    def to_manifest(self) -> dict[str, Any]:
        """What the index builder and the retriever check."""
        return {"kind": self.kind, "temperature": self.temperature}
