"""A pretrained encoder the whole way: prepared once, trained upon, exported, and asked with raw text."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.exporting import export
from pipeline.training import train
from tests.data.test_melo import source  # noqa: F401  (a fixture)
from tests.features.fake_encoder import FakeEncoder
from tests.test_configs import composed
from towers.errors import ConfigError
from towers.features import open_encoder
from towers.index import Retriever


class FakeSentenceTransformer:
    """As much of the package as is used."""

    seed = 0
    encoded: list[str] = []  # noqa: RUF012  (shared on purpose: models are opened anew)

    def __init__(self, name: str) -> None:
        self.inner, self.max_seq_length = FakeEncoder(seed=self.seed), 128
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.full((2,), float(self.inner.seed))}

    def encode(self, texts: Sequence[str], **settings: Any) -> NDArray[np.float32]:
        self.encoded.extend(texts)
        return self.inner.encode(texts)


@pytest.fixture(scope="module")
def package(monkeypatch_module: pytest.MonkeyPatch) -> type[FakeSentenceTransformer]:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeSentenceTransformer  # type: ignore[attr-defined]
    monkeypatch_module.setitem(sys.modules, "sentence_transformers", module)
    open_encoder.cache_clear()
    return FakeSentenceTransformer


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    open_encoder.cache_clear()


@pytest.fixture(scope="module")
def bundle(package: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """MELO in miniature, by the committed experiment."""
    root = tmp_path_factory.mktemp("served")
    where = [f"var={root}/var", f"runs={root}/runs", "logger=none", "threads=1", "evaluate=[]"]
    made = [f"data.generate.{k}={source}/{k}" for k in ("melo", "onet")] + ["+data.generate.dataset=us"]
    small = [f"{k}=4" for k in ("data.items.features.meaning.dim", "data.context.features.query_meaning.dim",
                                "model.blocks.meaning.dim")]  # fmt: skip
    names = ["experiment=melo_sentences", "data.items.features.meaning.encoder=fake", "batch_size=8"]
    train(composed("train", *names, *small, *made, *where, "trainer.max_epochs=1"), root / "runs/one")
    config = composed("export", f"run={root}/runs/one", "index=flat")
    return export(config)


def test_raw_queries_are_encoded_as_the_catalogue_was(bundle: Path) -> None:
    retriever = Retriever.open(bundle)
    encoder = retriever.bundle.manifest["provenance"]["text_encoders"]["context.query_meaning"]
    assert encoder["encoder"] == "fake"
    assert len(encoder["sha256"]) == 64
    FakeSentenceTransformer.encoded.clear()
    ids, scores = retriever.recommend({"query": "label 7 1"}, k=3)
    assert FakeSentenceTransformer.encoded == ["label 7 1"]
    assert ids[0] == "C000007_en_001", "a title finds itself: both sides read it by one projection"
    assert scores[0] > scores[1]


def test_a_second_preparation_encodes_nothing(bundle: Path, source: Path) -> None:  # noqa: F811
    from pipeline.datasets import ensure_prepared  # as the verbs do

    root = bundle.parents[2]  # beside runs/one/bundle
    made = [f"data.generate.{k}={source}/{k}" for k in ("melo", "onet")] + ["+data.generate.dataset=us"]
    dims = ["data.items.features.meaning.dim=4", "data.context.features.query_meaning.dim=4"]
    config = composed("prepare", "data=melo_sentences", *made, *dims, f"var={root}/var",
                      "data.items.features.meaning.encoder=fake")  # fmt: skip
    open_encoder("fake")
    FakeSentenceTransformer.encoded.clear()
    ensure_prepared(config, force=True)
    assert FakeSentenceTransformer.encoded == []


def test_another_model_of_that_name_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSentenceTransformer, "seed", 5)
    open_encoder.cache_clear()
    with pytest.raises(ConfigError, match=r"'query_meaning': fake is another model here"):
        Retriever.open(bundle)
    open_encoder.cache_clear()


def test_a_missing_package_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    open_encoder.cache_clear()
    with pytest.raises(ConfigError, match=r"'fake' needs sentence-transformers.*pip install 'towers\[text\]'"):
        Retriever.open(bundle)
    open_encoder.cache_clear()


def test_an_encoder_of_ones_own_may_serve(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Retriever.open(bundle).recommend({"query": "label 3 0"}, k=5)
    mine = open_encoder("fake")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    open_encoder.cache_clear()
    got = Retriever.open(bundle, encoders=lambda name: mine).recommend({"query": "label 3 0"}, k=5)
    assert got.ids.tolist() == wanted.ids.tolist()
    open_encoder.cache_clear()
