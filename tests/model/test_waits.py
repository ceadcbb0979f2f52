"""In a training step the host waits for the device only where the size of something depends on the data.

Each such place holds up a card until all that it was given is done. On a processor they cost nothing and go unnoticed.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.helpers import batch
from tests.model.test_module import ITEMS, LEARNERS, USERS, retrieval, trainer

# Operations whose result, or its shape, must be known to the host.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "unique_consecutive"}
DISTINCT = {"_unique2"}
# A mask that chooses pairs; a memory that fills up. Both could be told in advance only by holding what is not there.
EXPECTED = {"multi-positive": {"nonzero"}, "cross-batch": {"_local_scalar_dense"}}


class Waits(TorchDispatchMode):
    """Counts operations for which a host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in WAITING | DISTINCT:
            self.found[name] += 1
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.found[name] += 1
        if name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1]):
            self.found[f"{name} by a mask"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["softmax", *LEARNERS])
def test_a_step_waits_for_the_distinct_rows_and_for_nothing_else(name: str) -> None:
    settings: dict[str, Any] = LEARNERS.get(name, {})
    m = retrieval(**settings)
    m.trainer = trainer(Path(), log_every_n_steps=99)
    found = m.configure_optimizers()
    optimiser = found["optimizer"] if isinstance(found, dict) else found
    for first in (True, False):  # a first step may set things up
        with Waits() as waits:
            m.training_step(batch(16, ITEMS, USERS), 0).backward()
            optimiser.step()
        if first:
            continue
        distinct = waits.found.pop("_unique2", 0)
        assert 1 <= distinct <= 3, "of the histories, of the draw's parts, of the draw"
        extra = {k for k in waits.found if not k.startswith("index")} if name in EXPECTED else set(waits.found)
        assert extra == EXPECTED.get(name, set())
