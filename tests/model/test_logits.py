from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.features import Ragged
from towers.model import logits

INF = float("inf")


def test_scores_by_hand() -> None:
    query = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, -1.0]])
    assert logits.positive_scores(query, candidates[:2]).tolist() == [1.0, 1.0]
    assert logits.candidate_scores(query, candidates).tolist() == [[1, 5, -2], [0, 1, -1]]


def test_scores_are_single_precision_even_of_bfloat16() -> None:
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert logits.positive_scores(x, x).dtype == logits.candidate_scores(x, x).dtype == torch.float32


def test_the_correction_lifts_what_is_rarely_drawn() -> None:
    corrected = logits.correct_log_q(torch.zeros(1, 2), torch.tensor([0.5, 0.01]).log())
    assert torch.allclose(corrected.exp(), torch.tensor([[2.0, 100.0]]))


def test_columns_of_a_draw() -> None:
    assert logits.item_columns(torch.tensor([4, 1]), 6).tolist() == [2, 1, 2, 2, 0, 2]


def test_known_positives_by_hand() -> None:
    """Two users; the draw is items 4, 1, 2. The first took 0 and 2, the second 1 (her own) and nothing else known."""
    columns = logits.item_columns(torch.tensor([4, 1, 2]), 6)
    known = Ragged(torch.tensor([0, 2, 2]), torch.tensor([0, 2]))
    known_pairs = logits.known_positives(columns, torch.tensor([0, 1]), known)
    assert _masked(2, 3, known_pairs).tolist() == [[False, False, True], [False, True, False]]


def _masked(b: int, n: int, pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return logits.mask(torch.zeros(b, n), pairs=pairs) == -INF


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.data())
def test_known_positives_like_the_definition(data: st.DataObject) -> None:
    items = st.integers(0, 9)
    rows = data.draw(st.lists(items, unique=True, min_size=1))
    positives = data.draw(st.lists(items, min_size=1, max_size=5))
    lists = [data.draw(st.lists(items, max_size=6)) for _ in positives]
    known = Ragged(
        torch.tensor([0, *map(len, lists)]).cumsum(0), torch.tensor([x for one in lists for x in one], dtype=torch.long)
    )
    columns = logits.item_columns(torch.tensor(rows), 10)
    pairs = logits.known_positives(columns, torch.tensor(positives), known)
    assert _masked(len(positives), len(rows), pairs).tolist() == [
        [j in one or j == i for j in rows] for i, one in zip(positives, lists, strict=True)
    ]


def test_a_job_is_live_from_its_posting_until_just_before_it_expires() -> None:
    time = torch.tensor([9, 10, 19, 20])
    posted, expires = torch.tensor([10]), torch.tensor([20])
    assert _column(logits.not_live(time, posted, expires)) == [True, False, False, True]
    assert _column(logits.not_live(time, posted, None)) == [True, False, False, False]
    assert _column(logits.not_live(time, None, expires)) == [False, False, False, True]
    assert logits.not_live(time, None, None) is None


def _column(mask: torch.Tensor | None) -> list[bool]:
    assert mask is not None
    return [bool(x) for x in mask[:, 0]]


def test_masked_candidates_get_no_probability_and_no_gradient() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    pairs = torch.tensor([0, 0, 0]), torch.tensor([1, 3, 1])  # one past the last masks nothing, twice is once
    masked = logits.mask(scores * 1, torch.tensor([[True, False, False]]), pairs)
    assert masked.tolist() == [[-INF, -INF, 0.0]]
    masked.softmax(1).square().sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, :2].tolist() == [0.0, 0.0]
