"""torch.compile for the towers: what lies between tables and scores becomes a few fused kernels.

Only that: tables are gathers, which a compiler cannot improve, and sparse gradients are nothing that it can trace.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from towers.errors import ConfigError
from towers.model.tower import Tower


def compiler() -> str | None:
    """The C++ compiler that torch would call for a CPU, by path; None if there is none."""
    asked = os.environ.get("CXX")
    return next((path for name in (asked, "g++", "clang++") if name and (path := shutil.which(name))), None)


def compile_towers(model: nn.Module) -> int:
    """Compile the layers of every tower, when it first runs, for any number of rows.

    The modules stay what they are, and so do the names in their state dict: a checkpoint of a compiled model loads
    into one that is not, and the other way round. Results differ by rounding alone, but for dropout, whose random
    numbers are others. Does it pay? ``python -m benchmarks.training --compile``.

    Args:
        model: the towers; changed in place.

    Returns:
        The number of towers.

    Raises:
        ConfigError: there is nothing to compile, or no C++ compiler (a GPU brings its own).
    """
    towers = [m for m in model.modules() if isinstance(m, Tower) and next(m.parameters(), None) is not None]
    if not towers:
        raise ConfigError("compile=true, but the towers of this model have no layers: leave compile out, or take a "
                          "model that has some, such as model=two_tower")  # fmt: skip
    if compiler() is None and not torch.cuda.is_available():
        raise ConfigError("compile=true needs a C++ compiler, and none is found: install g++, name one by CXX, or "
                          "leave compile out")  # fmt: skip
    for tower in towers:
        tower.compile(dynamic=True)
    return len(towers)
