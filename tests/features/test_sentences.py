"""Texts by a pretrained sentence encoder: encoded alike in training and serving, by one and the same model."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.features.fake_encoder import FakeEncoder
from towers.errors import ConfigError, DataError
from towers.features import Encoders, Feature, Featurizer, Kind, Schema, open_encoder, share_vocabularies

MEANING = Feature("meaning", Kind.SENTENCE, ("title", "summary"), encoder="fake", dim=4)
TABLE = pa.table({"title": ["ward nurse", None, "cook", "  "], "summary": ["looks after people", None, None, None]})


def by_name(**encoders: FakeEncoder) -> Encoders:
    return lambda name: encoders[name]


def fitted(encoder: FakeEncoder, feature: Feature = MEANING, table: pa.Table = TABLE) -> Featurizer:
    return Featurizer.fit((feature,), table, np.ones(len(table), np.int64), encoders=by_name(fake=encoder))


def test_columns_are_read_as_sentences_and_missing_texts_are_marked() -> None:
    encoder = FakeEncoder()
    got = fitted(encoder).encode(TABLE)["meaning"]
    assert got.dtype == np.float32
    want = np.zeros((4, 5), np.float32)
    want[0, :4] = encoder.one("ward nurse. looks after people")
    want[2, :4] = encoder.one("cook")
    want[[1, 3], 4] = 1
    np.testing.assert_array_equal(got, want)
    assert encoder.asked == [["ward nurse. looks after people", "cook"]], "missing texts are not encoded"


def test_a_model_is_told_the_width_and_no_vocabulary() -> None:
    (info,) = fitted(FakeEncoder()).infos
    assert (info.kind, info.width, info.cardinality) == (Kind.SENTENCE, 5, 0)


def test_a_request_is_encoded_as_training_was(tmp_path: Path) -> None:
    fitted(FakeEncoder()).save(tmp_path, "user")
    loaded = Featurizer.load(tmp_path, "user", (MEANING,), by_name(fake=FakeEncoder()))
    np.testing.assert_array_equal(
        loaded.encode_rows([{"title": "cook"}])["meaning"], fitted(FakeEncoder()).encode(TABLE)["meaning"][2:3]
    )


def test_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    fitted(FakeEncoder(seed=0)).save(tmp_path, "user")
    other = Featurizer.load(tmp_path, "user", (MEANING,), by_name(fake=FakeEncoder(seed=7)))
    with pytest.raises(ConfigError, match=r"fake is another model here \(070707070707\).*trained on \(000000000000\)"):
        other.encode_rows([{"title": "cook"}])
    with pytest.raises(ConfigError, match="another model"):
        other.check_encoders()


def test_no_encoder_is_opened_where_there_is_no_text(tmp_path: Path) -> None:
    fitted(FakeEncoder()).save(tmp_path, "user")

    def never(name: str) -> FakeEncoder:
        raise AssertionError(name)

    bare = Featurizer.load(tmp_path, "user", (MEANING,), never)
    assert bare.encode_rows([{}])["meaning"].tolist() == [[0, 0, 0, 0, 1]]


def test_a_featurizer_says_which_encoders_it_was_fitted_with() -> None:
    assert fitted(FakeEncoder(seed=3)).text_encoders == {"meaning": {"encoder": "fake", "sha256": "03" * 32}}


def test_the_length_of_the_vectors_is_checked() -> None:
    with pytest.raises(ConfigError, match="fake gives vectors of length 6; set dim"):
        fitted(FakeEncoder(dim=6))


def test_only_strings_are_texts() -> None:
    with pytest.raises(DataError, match="'title' is int64; text wants strings"):
        fitted(FakeEncoder()).encode(pa.table({"title": [1], "summary": ["x"]}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "sentence", "dim": 4}, "set encoder"),
        ({"kind": "sentence", "encoder": "fake"}, "set dim"),
        ({"kind": "sentence", "encoder": "fake", "dim": 4, "column": []}, "at least one column"),
        ({"kind": "sentence", "encoder": "fake", "dim": 4, "fit": "all"}, "fit all is not of kind sentence"),
        ({"kind": "text", "encoder": "fake"}, "encoder is of kind sentence, not of text"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Feature.parse("meaning", settings)


def test_a_schema_with_sentences_reads_back_and_one_without_keeps_its_hash() -> None:
    schema = Schema(users=(MEANING,), items=())
    assert Schema.from_json(schema.to_json()) == schema
    assert Schema((), ()).hash != schema.hash


def test_sharing_needs_no_vocabulary() -> None:
    mine = Feature("query", Kind.SENTENCE, ("title",), encoder="fake", dim=4, vocabulary="items.meaning")
    items, queries = fitted(FakeEncoder()), fitted(FakeEncoder(), mine)
    share_vocabularies(items, [queries])
    assert queries.infos[0].vocabulary == "items.meaning", "the towers share their projection by it"


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="the package is there")
def test_a_missing_package_is_said_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"sentence-transformers.*pip install 'towers\[text\]'"):
        open_encoder("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None or "TOWERS_TEXT_ENCODER" not in os.environ,
    reason="needs sentence-transformers, and the folder of a model in TOWERS_TEXT_ENCODER",
)
def test_a_real_encoder_knows_what_letters_do_not() -> None:
    encoder = open_encoder(os.environ["TOWERS_TEXT_ENCODER"])
    nurse, medical, driver = vectors = encoder.encode(["registered nurse", "hospital caregiver", "truck driver"])
    assert vectors.shape == (3, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert nurse @ medical > nurse @ driver + 0.1
    alone = encoder.encode(["truck driver"])[0]
    np.testing.assert_allclose(alone, driver, atol=1e-5)
