"""bfloat16 and bounded memory, for every loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import training
from tests.model.helpers import batch, full_model
from tests.model.test_module import ITEMS, LEARNERS, USERS, mf, plain, retrieval, trainer
from towers.model import fused_softmax
from towers.model.fused_softmax import SampledSoftmax
from towers.model.history import HistorySettings
from towers.model.losses import sampled_softmax
from towers.model.negatives import Full


@pytest.mark.parametrize("name", [*LEARNERS, "prefixes"])
def test_bfloat16_gives_the_loss_and_direction_of_float32(name: str) -> None:
    settings: dict[str, Any] = LEARNERS.get(name, {"matryoshka": [4]})
    found = []
    for on in (False, True):
        m = retrieval(**settings).eval()
        m.trainer = trainer(Path(), log_every_n_steps=99)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = m.training_step(batch(16, ITEMS, USERS), 0)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])))
    (loss, gradient), (low, direction) = found
    assert loss == pytest.approx(low, rel=0.03)
    assert direction.dtype == torch.float32
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.98


@pytest.mark.parametrize("pooling", ["mean", "decay", "lags", "attention", "ridge"])
def test_every_pooling_takes_bfloat16_vectors(pooling: Any) -> None:
    """Under autocast a linear layer makes the items' vectors bfloat16, and a softmax the events' weights float32."""
    found = []
    for on in (False, True):
        m = retrieval()
        torch.manual_seed(0)
        m.model = full_model(history=HistorySettings(pooling=pooling)).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            query = m.embed_users(batch(16, ITEMS, USERS))
        query.sum().backward()
        found.append(query.detach().float())
    assert torch.cosine_similarity(*found).min() > 0.99


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cuda", "bf16-mixed", "high"), ("cuda", "32-true", "highest"), ("cpu", "bf16-mixed", "highest")],
)
def test_tf32_stands_beside_bfloat16_on_a_card_and_ends_with_training(
    device: str, precision: str, expected: str
) -> None:
    on = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)
    with training._tensor_cores(on):  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == "highest"


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_the_softmax_never_holds_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 examples over 2,000 items in 16 dimensions: neither scores, masks nor gradients of 64 x 2,000."""
    b, items = 64, 2000
    monkeypatch.setattr(fused_softmax, "block_rows", lambda n, device: 5)
    found = {}
    for name, loss in (("whole", sampled_softmax), ("blocks", SampledSoftmax())):
        m = mf(4, items, Full, loss=loss)
        m.trainer = trainer(Path(), log_every_n_steps=99)
        one = plain([i % 4 for i in range(b)], list(range(b)), [[1, 2, 3]] * b)
        with Largest() as largest:
            m.training_step(one, 0).backward()
        found[name] = largest.elements
    assert found["whole"] >= b * items
    assert found["blocks"] == (items + 3) * 16 < b * items  # the table
