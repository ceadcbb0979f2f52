"""New items and known ones on one scale, in one inner product.

Shapes: ``B`` users, ``N`` items, ``D`` width before calibration.

    score = a ⟨query, candidate⟩ + b  for a new item,      ⟨query, candidate⟩  for a known one
    query' = [query, 1]                candidate' = [a candidate, b] or [candidate, 0]

A known item's vector holds its content and what its own clicks say; a new item's the content alone, so that it is
shorter, and the best known items of a catalogue of any size stand before all new ones, wanted or not. No loss of
training corrects that: new items are in no training example. An order among new items is the same for any ``a > 0``
and ``b``, and an order among known ones too: only where the two lists meet is a matter of calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.features import FIRST, FeatureInfo, Kind


@dataclass(frozen=True)
class CalibrationSettings:
    """What is done to the scores of items whose id training never saw.

    Attributes:
        scale: ``a``; below 1: strong matches of new items gain less on weak ones.
        offset: ``b``, in units of the score; above 0: new items rise.
        id: the item feature of kind ``id`` that is unknown for a new item; None: the only one there is.
    """

    scale: float = 1.0
    offset: float = 0.0
    id: str | None = None


class Calibration(nn.Module):
    """Scale and offset for new items, as one more dimension of both sides.

    When to use it: one catalogue of known and new items, and a user's list should hold both. Choose ``offset`` (and
    ``scale``) on a validation with targets of both kinds, by what share of the known items' recall new ones may cost:
    ``python -m benchmarks.tradeoff`` draws the curve. It is a part of the item tower: an item added to a served index,
    which is new too, is treated alike.

    Source: the offset is the prior of a new item against a known one in a score of log-odds, as in case-control
    sampling (King and Zeng, "Logistic Regression in Rare Events Data", 2001); here it is chosen, since what is wanted
    of new items is a decision and not an estimate.

    Args:
        settings: see ``CalibrationSettings``.
        item_infos: the item features that the model reads.

    Raises:
        ConfigError: no such id, none or several to choose from, or a scale that would turn the order round.
    """

    def __init__(self, settings: CalibrationSettings, item_infos: Sequence[FeatureInfo]) -> None:
        super().__init__()
        ids = [i.name for i in item_infos if i.kind is Kind.ID]
        if settings.id not in ids and (settings.id is not None or len(ids) != 1):
            found = "none" if settings.id is None else repr(settings.id)
            raise ConfigError(
                f"model.calibration.id is {found}, and the item tower reads the ids {ids}; name the one that is "
                "unknown for a new item"
            )
        if not (settings.scale > 0 and math.isfinite(settings.scale) and math.isfinite(settings.offset)):
            raise ConfigError(
                f"model.calibration: scale={settings.scale}, offset={settings.offset}; set scale above 0, and both to "
                "finite numbers"
            )
        self.id = settings.id or ids[0]
        self.scale, self.offset = settings.scale, settings.offset

    def users(self, queries: Tensor) -> Tensor:
        """``[B, D]`` → ``[B, D + 1]``."""
        return torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)

    def items(self, candidates: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """Candidates → calibrated ones.

        Args:
            candidates: ``[N, D]``.
            features: ``[N]`` or ``[N, w]`` encoded item features by name.

        Returns:
            ``[N, D + 1]``.
        """
        new = (features[self.id] < FIRST).unsqueeze(1).to(candidates.dtype)  # [N, 1]
        return torch.cat([candidates * (1.0 + (self.scale - 1.0) * new), self.offset * new], dim=1)
