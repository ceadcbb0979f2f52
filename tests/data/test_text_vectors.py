"""Vectors of texts are computed once: across tables, datasets, and preparations that were stopped."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import text_vectors
from data.text_vectors import KeptEncoder, kept
from tests.features.fake_encoder import FakeEncoder

TEXTS = ["nurse", "truck driver", "cook", "nurse", "chief cook"]


def test_vectors_are_those_of_the_encoder_and_every_text_is_encoded_once(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    got = KeptEncoder(encoder, tmp_path).encode(TEXTS)
    np.testing.assert_array_equal(got, FakeEncoder().encode(TEXTS))
    assert encoder.asked == [["cook", "nurse", "chief cook", "truck driver"]], "distinct texts, the shortest first"


def test_a_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    first = KeptEncoder(FakeEncoder(), tmp_path).encode(TEXTS)
    again = FakeEncoder()
    np.testing.assert_array_equal(KeptEncoder(again, tmp_path).encode(TEXTS[::-1]), first[::-1])
    assert again.asked == []


def test_only_new_texts_are_encoded(tmp_path: Path) -> None:
    KeptEncoder(FakeEncoder(), tmp_path).encode(["nurse", "cook"])
    encoder = FakeEncoder()
    np.testing.assert_array_equal(KeptEncoder(encoder, tmp_path).encode(TEXTS), FakeEncoder().encode(TEXTS))
    assert encoder.asked == [["chief cook", "truck driver"]]


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    one, other = (KeptEncoder(FakeEncoder(seed=s), tmp_path).encode(["nurse"]) for s in (1, 2))
    assert not np.allclose(one, other)


def test_a_stopped_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_vectors, "_CHUNK", 2)

    class Stops(FakeEncoder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            if self.asked:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        KeptEncoder(Stops(), tmp_path).encode(TEXTS)
    encoder = FakeEncoder()
    np.testing.assert_array_equal(KeptEncoder(encoder, tmp_path).encode(TEXTS), FakeEncoder().encode(TEXTS))
    assert encoder.asked == [["chief cook", "truck driver"]]


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_vectors, "_CHUNK", 2)
    told: list[tuple[str, float]] = []
    encoders = kept(tmp_path, lambda what, share: told.append((what, share)), lambda name: FakeEncoder())
    encoders("fake").encode(TEXTS)
    assert told == [("encoding 4 texts", 0.0), ("encoding 4 texts", 0.5)]


def test_no_texts_give_no_vectors(tmp_path: Path) -> None:
    assert KeptEncoder(FakeEncoder(), tmp_path).encode([]).shape == (0, 4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text("abc ", min_size=1).filter(str.strip), max_size=6), max_size=4))
def test_any_sequence_of_questions_is_answered_as_if_nothing_were_kept(
    tmp_path_factory: pytest.TempPathFactory, questions: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("vectors")
    for texts in questions:
        got = KeptEncoder(FakeEncoder(), folder).encode(texts)
        np.testing.assert_array_equal(got, FakeEncoder().encode(texts))
