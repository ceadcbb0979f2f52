"""The encoded features of all users, or of all items, on the training device.

A batch carries row numbers; the towers gather their features here, so that nothing but integers
crosses from the loader to the device. Only an export of a large catalogue leaves them where they are, on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Features = dict[str, Tensor]


class FeatureTable(nn.Module):
    """Features by row number.

    The arrays follow the module from device to device, but are data and not weights: they are never
    part of a checkpoint.

    Args:
        encoded: ``[n]`` or ``[n, w]`` arrays by feature name, as a ``Featurizer`` makes them.
        rows: ``n``; needed only where there is no feature at all.
        stays: the arrays do not follow the module; what is gathered goes to the device that asks.
    """

    def __init__(self, encoded: Mapping[str, NDArray[Any] | Tensor], rows: int = 0, *, stays: bool = False) -> None:
        super().__init__()
        self.names, self.stays = tuple(encoded), stays
        self._rows = len(next(iter(encoded.values()))) if encoded else rows
        self._staying: dict[str, Tensor] = {}
        for i, array in enumerate(encoded.values()):
            if stays:
                self._staying[self.names[i]] = _tensor(array)
            else:
                self.register_buffer(f"column_{i}", _tensor(array), persistent=False)

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows

    def column(self, name: str) -> Tensor:
        """``[n]`` or ``[n, w]``: one feature of all rows."""
        return self._staying[name] if self.stays else self.get_buffer(f"column_{self.names.index(name)}")

    def select(self, names: Iterable[str]) -> FeatureTable:
        """A table of some of the features; it shares their memory."""
        return FeatureTable({name: self.column(name) for name in names}, len(self), stays=self.stays)

    def forward(self, rows: Tensor) -> Features:
        """Features of some rows.

        Args:
            rows: ``[*]`` row numbers.

        Returns:
            ``[*]`` or ``[*, w]`` arrays by feature name.
        """
        flat = rows.reshape(-1)
        there = flat.cpu() if self.stays else flat
        out = {name: self.column(name).index_select(0, there).to(rows.device) for name in self.names}
        return out if rows.dim() == 1 else {k: v.reshape(*rows.shape, *v.shape[1:]) for k, v in out.items()}


def _tensor(array: NDArray[Any] | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable else np.array(array))  # a tensor must own what it may write
