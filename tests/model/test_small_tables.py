"""A small table is an ``nn.Embedding`` whose gradient is summed in another way."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from towers.model.small_tables import SmallTable


@given(rows=st.integers(1, 9), width=st.integers(1, 5), seed=st.integers(0, 10**6), padding=st.none() | st.just(0),
       shape=st.lists(st.integers(0, 7), min_size=1, max_size=3))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=60)
def test_values_and_gradients_are_those_of_an_embedding(
    rows: int, width: int, seed: int, padding: int | None, shape: list[int]
) -> None:
    torch.manual_seed(seed)
    ours, theirs = SmallTable(rows, width, padding_idx=padding), nn.Embedding(rows, width, padding_idx=padding)
    theirs.load_state_dict(ours.state_dict())
    at, gradient = torch.randint(0, rows, shape), torch.randn(*shape, width)
    for table in (ours, theirs):
        out = table(at)
        assert torch.equal(out, theirs(at))
        out.backward(gradient)
    assert ours.weight.grad is not None
    assert theirs.weight.grad is not None
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_exact() -> None:
    table = SmallTable(4, 2).double()
    at = torch.tensor([[0, 1, 1], [3, 1, 0]])
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(table, {"weight": w}, (at,)), table.weight)


@pytest.mark.parametrize("how", [{"sparse": True}, {}])
def test_where_torch_is_as_good_it_is_left_alone(how: dict[str, Any]) -> None:
    """Sparse gradients stay sparse; without training nothing is recorded that an export would not know."""
    table = SmallTable(4, 2, **how)
    copied = copy.deepcopy(table).eval()
    table(torch.tensor([1, 1])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse == bool(how)
    assert copied(torch.tensor([1])).grad_fn.name() == "EmbeddingBackward0"
