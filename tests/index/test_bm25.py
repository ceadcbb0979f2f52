"""BM25 against the formula, worked out term by term."""

import math
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.index.bm25 import Bm25, Terms

WORDS = Terms(words=(1,), chars=(), b=0.75)
TITLES = ["nurse", "ward nurse", "ward ward clerk", "", None]
TEXT = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=6).map(" ".join)


def by_the_formula(query: str, texts: list[str | None], k1: float, b: float) -> list[float]:
    documents = [(t or "").split() for t in texts]
    n, mean = len(documents), sum(map(len, documents)) / len(documents) or 1.0
    out = []
    for d in documents:
        score = 0.0
        for t in (t for t in query.split() if t in d):
            having = sum(t in other for other in documents)
            idf = math.log(1 + (n - having + 0.5) / (having + 0.5))
            tf = d.count(t)
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(d) / mean))
        out.append(score)
    return out


def test_one_title_by_hand() -> None:
    # five titles of 0 to 3 words, 1.2 in the mean; "nurse" is in two: idf = log(1 + 3.5 / 2.5)
    scores = Bm25(TITLES, WORDS).scores(["nurse"])[0]
    idf = math.log(2.4)
    np.testing.assert_allclose(scores[0], idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 / 1.2)), rtol=1e-6)
    np.testing.assert_allclose(scores[1], idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / 1.2)), rtol=1e-6)
    assert scores[2:].tolist() == [0, 0, 0]


@given(
    texts=st.lists(st.none() | TEXT, min_size=1, max_size=12), query=TEXT, k1=st.sampled_from([0.0, 1.2, 3.0]),
    b=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_titles(texts: list[str | None], query: str, k1: float, b: float) -> None:
    ours = Bm25(texts, Terms(words=(1,), chars=(), k1=k1, b=b)).scores([query, None])
    np.testing.assert_allclose(ours[0], by_the_formula(query, texts, k1, b), rtol=1e-5, atol=1e-6)
    assert not ours[1].any()


@given(texts=st.lists(TEXT, min_size=1, max_size=12), query=TEXT.filter(bool))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_relative_to_a_title_of_exactly_the_words(texts: list[str], query: str) -> None:
    with_it = Bm25([*texts, query], WORDS)
    plain, relative = with_it.scores([query]), with_it.scores([query], relative=True)
    assert abs(relative[0, -1] - 1) < 1e-5
    np.testing.assert_allclose(relative * plain[0, -1], plain, rtol=1e-5)


def test_words_that_no_title_has_make_a_match_less_sure() -> None:
    titles = Bm25(TITLES, WORDS)
    assert titles.scores(["nurse of Bern"], relative=True)[0, 0] < titles.scores(["nurse"], relative=True)[0, 0]
    assert (titles.scores(["nurse of Bern"]) == titles.scores(["nurse"])).all()
    assert not titles.scores(["pilot"], relative=True).any()


def test_character_n_grams_match_what_words_do_not() -> None:
    assert Bm25(["nurse", "cook"], WORDS).scores(["Nurses"])[0].tolist() == [0, 0]
    scores = Bm25(["nurse", "cook"], Terms()).scores(["Nurses"])[0]
    assert scores[0] > scores[1] == 0


def test_terms_are_counted() -> None:
    found: Any = Terms(words=(1, 2), chars=()).of("ward ward clerk")
    assert found == Counter({"ward": 2, "clerk": 1, "ward ward": 1, "ward clerk": 1})


def test_an_empty_catalogue_has_no_scores() -> None:
    assert Bm25([]).scores(["nurse"]).shape == (1, 0)
    assert not Bm25(["", None]).scores(["nurse"]).any()
