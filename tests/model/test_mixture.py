"""A mixture of logits against its formula, in training and as a second stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.model.helpers import full_model
from tests.model.test_module import fit, loader, mf, plain, retrieval, trainer, weights
from tests.model.test_vector_losses import contrast
from towers.errors import ConfigError
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.history import HistorySettings
from towers.model.losses import sampled_softmax
from towers.model.mixture import MixtureOfLogits, MixtureSettings, Reranked

# Lightning 2.6 asks torch 2.13's pytree in a way that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

D = 6


def mixture(**changes: Any) -> MixtureOfLogits:
    torch.manual_seed(0)
    return MixtureOfLogits(
        MixtureSettings(**{"query_parts": 2, "item_parts": 3, "width": 4, "hidden": 5, **changes}), D
    )


def by_hand(m: MixtureOfLogits, q: torch.Tensor, c: torch.Tensor) -> float:
    """One query, one candidate, component by component."""
    parts_q, parts_c = m.query(q).view(2, 4), m.item(c).view(3, 4)
    cosines = torch.stack([F.cosine_similarity(parts_q[p], parts_c[r], dim=0) for p in range(2) for r in range(3)])
    gate = torch.softmax(m.query_gate(q) * m.item_gate(c) + m.pair_gate(cosines), 0)
    return float((gate * cosines).sum().detach() / 0.05)


def test_scores_by_the_formula_shared_and_own() -> None:
    m, q, c = mixture(), torch.randn(3, D), torch.randn(5, D)
    wanted = torch.tensor([[by_hand(m, x, y) for y in c] for x in q])
    assert torch.allclose(m.shared(q, c), wanted, atol=1e-4)
    own = torch.randn(3, 4, D)
    assert torch.allclose(
        m.own(q, own), torch.tensor([[by_hand(m, x, y) for y in o] for x, o in zip(q, own, strict=True)]), atol=1e-4
    )


def test_one_component_on_each_side_is_a_cosine_between_projections() -> None:
    m, q, c = mixture(query_parts=1, item_parts=1, temperature=1.0), torch.randn(3, D), torch.randn(5, D)
    wanted = F.normalize(m.query(q), dim=1) @ F.normalize(m.item(c), dim=1).T
    assert torch.allclose(m.shared(q, c), wanted, atol=1e-6)


def test_the_step_adds_its_softmax_over_the_same_draw() -> None:
    one, losses = plain([0, 2], [1, 4]), {}
    for with_mixture in (False, True):
        module = mf(3, 5)
        if with_mixture:
            torch.manual_seed(1)
            module.model.mixture = MixtureOfLogits(MixtureSettings(2, 2, 4, 5), 16)
        module.trainer = trainer(Path(), log_every_n_steps=99)
        losses[with_mixture] = module.training_step(one, 0)
    e = module.embedder()
    (queries,) = e.embed_queries([one])
    assert module.model.mixture is not None
    second = F.cross_entropy(module.model.mixture.shared(queries, e.embed_items()), one.item)
    assert torch.allclose(losses[True], losses[False] + second, atol=1e-5)


def test_a_model_with_a_second_stage_trains_and_is_exported_without_it(tmp_path: Path) -> None:
    model = full_model(history=HistorySettings(pooling="mean"), mixture=MixtureSettings(2, 2, 4, 5))
    export_user_tower(model)
    export_item_tower(model)
    module = retrieval()
    module.model.mixture = MixtureOfLogits(MixtureSettings(2, 2, 4, 5), module.model.dim)
    before = weights(module)
    fit(module, tmp_path, loader(2))
    moved = [n for n, p in module.model.mixture.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {"query.weight", "item.weight", "pair_gate.0.weight", "item_gate.0.weight"} <= set(moved)
    assert not torch.equal(before, weights(module))


def test_reranked_puts_what_the_dot_product_retrieves_in_the_mixtures_order_above_the_rest() -> None:
    m, q, c, n = mixture(), torch.randn(100, D), torch.randn(30, D), 7
    scorer, out = Reranked(q, c, m, n), torch.empty(80, 30)
    asked = np.arange(90, 10, -1)
    with torch.no_grad():
        scorer.write(asked, out)
        first, second = (q @ c.T)[asked], m.shared(q, c)[asked]
    assert len(scorer) == 100
    for got, dot, mix in zip(out, first, second, strict=True):
        top = dot.topk(n).indices
        rest = [j for j in dot.argsort(descending=True).tolist() if j not in top.tolist()]
        assert got.argsort(descending=True).tolist() == top[mix[top].argsort(descending=True)].tolist() + rest


def test_reranking_more_than_there_are_is_reranking_all() -> None:
    m, q, c = mixture(), torch.randn(4, D), torch.randn(5, D)
    out = torch.empty(4, 5)
    with torch.no_grad():
        Reranked(q, c, m, 99).write(np.arange(4), out)
        assert torch.equal(out.argsort(1), m.shared(q, c).argsort(1))


def test_masks_and_corrections_hold_for_the_mixture_too() -> None:
    torch.manual_seed(0)
    m = MixtureOfLogits(MixtureSettings(2, 2, 4, 5), 4)
    dot = contrast(9, 2)
    c = replace(dot, mixture=m)
    s = c.negative_logits()
    assert torch.equal(s.isinf(), dot.negative_logits().isinf())
    assert dot.own is not None
    plain_scores = torch.cat([m.shared(c.query, c.candidates) - c.draw.log_q, m.own(c.query, dot.own.vectors) + 0.5], 1)
    assert torch.allclose(s[~s.isinf()], plain_scores[~s.isinf()], atol=1e-5)
    assert sampled_softmax(c.positive_logits(), s, c.weight).isfinite()


@pytest.mark.parametrize("bad", [{"query_parts": 0}, {"width": 0}, {"temperature": 0.0}])
def test_settings_that_cannot_work(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"model.mixture.{next(iter(bad))}"):
        mixture(**bad)
