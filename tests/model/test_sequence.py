from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.helpers import full_model
from towers.errors import ConfigError
from towers.index.towers_onnx import UserGraph, export_user_tower, parity
from towers.model.history import HistorySettings
from towers.model.sequence import SequenceEncoder, SequenceSettings
from towers.model.sequence_blocks import AGES, AttentionBlock, Block, HstuBlock, Seen, age_bucket, block

BLOCKS = ["sasrec", "ligr", "hstu"]
W, K = 8, 2


def jittered(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Away from initial values that are zero or one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return module.eval()


def events(mask: list[list[int]], width: int = W, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors (zero where masked), mask, actions and ages that grow with the position."""
    g = torch.Generator().manual_seed(seed)
    m = torch.tensor(mask, dtype=torch.bool)
    age = torch.rand(m.shape, generator=g).cumsum(1)
    vectors = torch.randn(*m.shape, width, generator=g).masked_fill(~m.unsqueeze(-1), 0.0)
    return vectors, m, torch.randint(0, 3, m.shape, generator=g), age


def encoder(kind: str, layers: int = 2, **settings: object) -> SequenceEncoder:
    torch.manual_seed(0)
    s = SequenceSettings(block=kind, layers=layers, heads=K, length=5, dropout=0.0, **settings)  # type: ignore[arg-type]
    out = jittered(SequenceEncoder(s, W, n_actions=3))
    assert isinstance(out, SequenceEncoder)
    return out


def test_an_event_sees_itself_and_older_ones_and_no_padding() -> None:
    seen = Seen.of(torch.tensor([[True, True, False]]), torch.zeros(1, 3))
    assert seen.allowed[0].int().tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]  # padding sees itself: never an empty softmax
    assert seen.distance.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]
    assert seen.newest().allowed[0].int().tolist() == [[1, 1, 0]]


def test_gaps_are_the_hours_between_two_events_on_a_logarithmic_scale() -> None:
    hours = torch.tensor([[1.0, 25.0, 1.0e4]])
    seen = Seen.of(torch.ones(1, 3, dtype=torch.bool), torch.log1p(hours))
    assert seen.gap[0, 0].tolist() == [0, int(2 * math.log1p(24)), int(2 * math.log1p(9999))]
    assert torch.equal(seen.gap, seen.gap.transpose(1, 2))
    assert age_bucket(torch.tensor([0.0, 0.49, 0.5, 1e9])).tolist() == [0, 0, 1, AGES - 1]


def test_softmax_attention_is_that_of_torch() -> None:
    layer = AttentionBlock(W, K, 0.0, gated=False)
    x, mask, _, age = events([[1, 1, 1, 1], [1, 1, 0, 0]])
    seen = Seen.of(mask, age)
    q, k, v = (f(x).unflatten(-1, (K, W // K)).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.allowed.unsqueeze(1))
    assert torch.allclose(layer.attend(x, x, seen), layer.mix(wanted.transpose(1, 2).flatten(2)), atol=1e-6)


def test_open_gates_make_ligr_the_plain_block() -> None:
    plain, gated = AttentionBlock(W, K, 0.0, gated=False), AttentionBlock(W, K, 0.0, gated=True)
    gated.load_state_dict(plain.state_dict(), strict=False)
    x, mask, _, age = events([[1, 1, 1]])
    seen = Seen.of(mask, age)
    assert not torch.allclose(gated(x, seen), plain(x, seen), atol=1e-2)
    with torch.no_grad():
        for gate in gated.gates:
            assert isinstance(gate, torch.nn.Linear)
            gate.weight.zero_()
            gate.bias.fill_(50.0)
    assert torch.allclose(gated(x, seen), plain(x, seen), atol=1e-6)
    with torch.no_grad():
        for gate in gated.gates:
            assert isinstance(gate, torch.nn.Linear)
            gate.bias.fill_(-50.0)
    assert torch.allclose(gated(x, seen), x, atol=1e-6)


def test_hstu_is_its_equation_event_by_event() -> None:
    layer = jittered(HstuBlock(W, K, length=3, dropout=0.0))
    assert isinstance(layer, HstuBlock)
    x, mask, _, age = events([[1, 1, 1, 1]])
    seen = Seen.of(mask, age)
    n = layer.norm_in(x[0])
    u, v, q, k = (F.silu(f(n)) for f in (layer.gate, layer.value, layer.query, layer.key))
    w = W // K
    for i in range(4):
        heads = []
        for h in range(K):
            part = slice(h * w, (h + 1) * w)
            total = torch.zeros(w)
            for j in range(i, 4):
                bias = layer.by_position.weight[min(j - i, 2), h] + layer.by_time.weight[seen.gap[0, i, j], h]
                total = total + F.silu(q[i, part] @ k[j, part] / w**0.5 + bias) * v[j, part]
            heads.append(total / (4 - i))
        wanted = x[0, i] + layer.mix(layer.norm_out(torch.cat(heads)) * u[i])
        assert torch.allclose(layer(x, seen)[0, i], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_newest_position_alone_is_what_it_is_among_all(kind: str) -> None:
    layer = jittered(block(kind, W, SequenceSettings(heads=K)))
    assert isinstance(layer, Block)
    x, mask, _, age = events([[1, 1, 1], [1, 0, 0]])
    seen = Seen.of(mask, age)
    assert torch.allclose(layer(x, seen, newest=True), layer(x, seen)[:, :1], atol=1e-6)


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_event_sees_a_newer_one(kind: str) -> None:
    layer = jittered(block(kind, W, SequenceSettings(heads=K)))
    x, mask, _, age = events([[1, 1, 1]])
    other = x.clone()
    other[:, 0] += 1.0
    before, after = layer(x, Seen.of(mask, age)), layer(other, Seen.of(mask, age))
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-3)


@pytest.mark.parametrize("kind", BLOCKS)
def test_padding_changes_nothing(kind: str) -> None:
    e = encoder(kind)
    vectors, mask, action, age = events([[1, 1, 0], [1, 0, 0]])
    short = e(vectors[:, :2], mask[:, :2], action[:, :2], age[:, :2])
    assert torch.allclose(e(vectors, mask, action, age + 9 * ~mask), short, atol=1e-6)


@pytest.mark.parametrize("kind", BLOCKS)
def test_order_actions_and_gaps_are_seen_and_what_lies_beyond_the_length_is_not(kind: str) -> None:
    e = encoder(kind)
    vectors, mask, action, age = events([[1] * 7])
    base = e(vectors, mask, action, age)
    swapped = vectors[:, [0, 2, 1, 3, 4, 5, 6]]
    assert not torch.allclose(e(swapped, mask, action, age), base, atol=1e-3)
    assert not torch.allclose(e(vectors, mask, (action + 1) % 3, age), base, atol=1e-3)
    assert not torch.allclose(e(vectors, mask, action, 2 * age), base, atol=1e-3)
    vectors[:, 5:] = 100.0
    assert torch.equal(e(vectors, mask, action, age), base)


@pytest.mark.parametrize("kind", BLOCKS)
def test_its_vectors_start_with_a_length_near_one_whatever_the_width(kind: str) -> None:
    for dim, width in ((64, None), (64, 16)):
        torch.manual_seed(0)
        e = SequenceEncoder(SequenceSettings(block=kind, width=width, dropout=0.0), dim, 3)  # type: ignore[arg-type]
        out = e(*events([[1, 1, 1]] * 200, width=dim)).detach()
        assert 0.8 < float(out.square().sum(1).mean()) < 1.25


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads that divide the width"):
        block("sasrec", 9, SequenceSettings(heads=2))


@pytest.mark.parametrize("pooling", ["sequence", "lags"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_exported_tower_computes_the_same(kind: str, pooling: str) -> None:
    """`parity` compares one row and many, histories of length 0, 1 and long."""
    sequence = SequenceSettings(block=kind, width=6, length=7)  # type: ignore[arg-type]
    model = full_model(history=HistorySettings(pooling=pooling, sequence=sequence))  # type: ignore[arg-type]
    jittered(model)
    assert parity(UserGraph(model), model, export_user_tower(model)) < 1e-5
