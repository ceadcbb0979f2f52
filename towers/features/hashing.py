"""Integers → fixed pseudo-random integers, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mixed(x: NDArray[np.uint64], seed: int = 0) -> NDArray[np.uint64]:
    """``[n]`` integers each bit of which depends on all bits of ``[n]`` others (SplitMix64, Steele et al., 2014)."""
    z = x + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
