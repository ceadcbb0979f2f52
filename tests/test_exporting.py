"""From a run to a bundle: the index chosen and why, cut and compressed vectors with what they lose, bounded memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.console import Console

from pipeline.exporting import export, tuning_table
from pipeline.runs import Run
from pipeline.training import train
from towers.errors import ConfigError
from towers.index import Retriever
from towers.index.recipes import IndexRecipe
from towers.index.sweeping import Speed
from towers.index.tuning import Candidate

ROOT = Path(__file__).parents[1]


def config(name: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("exporting")
    small = ["data.generate.users=200", "data.generate.jobs=600", "data.generate.impressions=8000", "threads=1",
             "model=hybrid", "model.dim=16", "matryoshka=[8]", "negatives=uniform", "negatives.n=64", "evaluate=[]",
             "batch_size=512", "trainer.max_epochs=1", "logger=none",
             f"var={folder}/var", f"runs={folder}/runs"]  # fmt: skip
    train(config("train", *small), folder / "run")
    return Run(folder / "run")


def test_auto_chooses_and_the_bundle_says_why(run: Run, tmp_path: Path) -> None:
    bundle = export(
        config("export", f"run={run.folder}", f"bundle={tmp_path}/auto", "index=auto",
               "index.kinds=[flat,ivf_flat,ivf_sq8]", "index.recall_at=10", "match=false")
    )  # fmt: skip
    told = json.loads((bundle / "index_tuning.json").read_text())
    assert {c["kind"] for c in told} == {"flat", "ivf_flat", "ivf_sq8"}
    assert [c["verdict"] for c in told].count("chosen") == 1
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["index"]["kind"] == told[0]["kind"]
    assert told[0]["verdict"] == "chosen"
    readme = (bundle / "README.md").read_text()
    assert "## Why this index" in readme
    assert f"| {told[1]['kind']} | {told[1]['verdict']} |" in readme
    assert "(index_tuning.svg)" in readme
    assert (bundle / "index_tuning.svg").read_text().lstrip().startswith("<?xml")
    assert len(Retriever.open(bundle)) == manifest["counts"]["items"]


def test_the_terminal_shows_why() -> None:
    chosen = IndexRecipe("ivf_flat", nlist=100, nprobe=12)
    fast = Candidate("ivf_flat", "chosen", 1000, chosen, 0.9612, Speed(0.25, 9000), 300, 1.5)
    console = Console(file=io.StringIO(), width=250)
    console.print(tuning_table([fast, Candidate("hnsw", "not built: 800 bytes [an item], 400 allowed")], chosen))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the fastest index with recall@100 of at least 0.95: ivf_flat" in told
    assert re.search(r"ivf_flat.*chosen.*nprobe 12.*0\.9612.*0\.25.*9,000.*300.*1\.5", told)
    assert "bytes [an" in told


@pytest.mark.parametrize(("storage", "size"), [("float16", 2), ("int8", 1)])
def test_cut_and_compressed_vectors_tell_what_they_lose(run: Run, tmp_path: Path, storage: str, size: int) -> None:
    bundle = export(
        config("export", f"run={run.folder}", f"bundle={tmp_path}/small", "index=flat", "dim=8",
               f"index.storage={storage}", "index.recall_at=10")
    )  # fmt: skip
    manifest = json.loads((bundle / "manifest.json").read_text())
    codes = np.load(bundle / "items/embeddings.npy")
    assert codes.shape[1] == manifest["dim"] == 8
    assert codes.itemsize == size
    measured = manifest["measured"]
    assert 0 < measured["index/dim_recall@10"] < 1
    assert 0.9 < measured["index/storage_recall@10"] <= 1
    assert "index/storage_recall@10" in (bundle / "README.md").read_text()
    retriever = Retriever.open(bundle)
    ids, scores = retriever.recommend(retriever.bundle.known.ids[:8], k=5, at="export")  # type: ignore[union-attr]
    assert ids.shape == scores.shape
    assert np.isfinite(scores).all()
    assert np.isfinite(retriever.similar(ids[0][0], k=3, at="export").scores).all()
    assert not list(tmp_path.glob(".small*"))  # nothing is left beside it


def test_a_prefix_of_all_dimensions_loses_nothing(run: Run, tmp_path: Path) -> None:
    bundle = export(config("export", f"run={run.folder}", f"bundle={tmp_path}/whole", "dim=16", "match=false"))
    assert json.loads((bundle / "manifest.json").read_text())["measured"]["index/dim_recall@100"] == 1.0


def test_a_budget_that_nothing_keeps_says_what_each_kind_needs(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)no index keeps recall@100 of 0\.99 in 3 bytes.*flat: not built: 64 byt"
    ):
        export(
            config("export", f"run={run.folder}", f"bundle={tmp_path}/none", "index=auto", "index.min_recall=0.99",
                   "index.max_bytes_per_item=3")
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


BOUNDED = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from towers.index.embed import write_blocks
from towers.index.recipes import IndexRecipe, build_index
from towers.index.similarity import Similarity

n, dim, block = 80_000, 64, 2048
def blocks():
    rng = np.random.default_rng(0)
    for start in range(0, n, block):
        yield rng.standard_normal((min(block, n - start), dim), np.float32)
tracemalloc.start()
vectors = write_blocks(blocks(), n, Path(sys.argv[1]))
written = tracemalloc.get_traced_memory()[1]
tracemalloc.reset_peak()
index = build_index(vectors, IndexRecipe("ivf_flat", nlist=16, nprobe=4), Similarity("dot"))
built = tracemalloc.get_traced_memory()[1]
assert vectors.shape == (n, dim) and index.ntotal == n
assert np.array_equal(vectors[:block], next(blocks()))
print(written / (4 * dim * n), built / (4 * dim * n))
"""


def test_a_catalogue_is_embedded_and_indexed_without_being_in_memory(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path / "embeddings.npy")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    written, built = map(float, out.stdout.split())
    assert written < 0.1  # two blocks of forty
    assert built < 0.5  # what the clustering learns from, not the catalogue
