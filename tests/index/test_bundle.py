"""A bundle is exactly what was exported, or it is refused: by name, and before anything parses it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.index.small_market import Market, user_tower
from towers.errors import BundleError, ConfigError
from towers.features import Featurizer, Ragged, Schema
from towers.index.bundle import write_bundle
from towers.index.faiss_setup import faiss
from towers.index.golden import Golden
from towers.index.manifest import MANIFEST, SEAL, write_manifest
from towers.index.recipes import IndexRecipe, build_index
from towers.index.retriever import Retriever
from towers.index.similarity import Similarity

FILES = [
    "README.md", "golden.json", "item_tower/1/model.onnx", "items/attributes.parquet", "items/embeddings.npy",
    "items/history_inputs.npy", "items/ids.parquet", "items/index.faiss", "manifest.json", "manifest.sha256",
    "schema.json", "user_tower/1/model.onnx", "users/exclusion_items.npy", "users/exclusion_offsets.npy",
    "users/feature.field.npy", "users/history_actions.npy", "users/history_items.npy", "users/history_offsets.npy",
    "users/history_times.npy", "users/ids.parquet", "vocab/context.json", "vocab/items.json",
    "vocab/items.place.parquet", "vocab/users.field.parquet", "vocab/users.json",
]  # fmt: skip


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From here on, calling any parser fails the test; ``json`` too if asked."""

    def arm(*, json_too: bool = False) -> None:
        def called(*_: Any, **__: Any) -> Any:
            pytest.fail("a parser saw a file that should have been refused")

        for where, name in [
            (np.lib.format, "open_memmap"), (pq, "ParquetFile"), (faiss, "read_index"),
            (onnxruntime, "InferenceSession"),
            (Featurizer, "load"), (Schema, "from_json"), *([(json, "loads")] if json_too else []),
        ]:  # fmt: skip
            monkeypatch.setattr(where, name, called)

    return arm


def reseal(root: Path, **changes: Any) -> None:
    """A hostile or careless hand: hashes recomputed, so that only checks and replays are left."""
    facts = json.loads((root / MANIFEST).read_text())
    for name in ("files", "format", "format_version"):
        facts.pop(name, None)
    (root / MANIFEST).unlink()
    (root / SEAL).unlink()
    write_manifest(root, facts | changes)


def rewrite_manifest(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The manifest changed at will, and its seal with it."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest = change(manifest) or manifest
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (root / MANIFEST).write_bytes(text)
    (root / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def test_the_files_are_these(bundle: Path) -> None:
    assert sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_refused_before_it_is_parsed(copy: Path, no_parser: Any, name: str) -> None:
    no_parser(json_too=name in (MANIFEST, SEAL))
    good = (copy / name).read_bytes()
    every = len(good) if len(good) <= 100 else 12  # the seal: all of it; others: ends, and evenly between
    for position in sorted({0, len(good) - 1, *np.linspace(0, len(good) - 1, every).astype(int).tolist()}):
        for mask in (0x01, 0x80):
            bad = bytearray(good)
            bad[position] ^= mask
            (copy / name).write_bytes(bad)
            with pytest.raises(BundleError, match=name if name not in (MANIFEST, SEAL) else "manifest"):
                Retriever.open(copy)
    (copy / name).write_bytes(good)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "emptied", "link", "folder"])
def test_every_damaged_file_is_refused_before_it_is_parsed(
    copy: Path, tmp_path: Path, no_parser: Any, name: str, damage: str
) -> None:
    no_parser(json_too=name in (MANIFEST, SEAL))
    path, good = copy / name, (copy / name).read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(good[:-1])
    elif damage == "longer":
        path.write_bytes(good + b"\0")
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(good)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(BundleError, match=name if name not in (MANIFEST, SEAL) else "manifest"):
        Retriever.open(copy)


def test_verify_off_still_checks_names_and_sizes(copy: Path) -> None:
    Retriever.open(copy, verify=False)
    with (copy / "items/embeddings.npy").open("ab") as f:
        f.write(b"\0")
    with pytest.raises(BundleError, match=r"items/embeddings\.npy"):
        Retriever.open(copy, verify=False)


def test_swapped_files_are_refused(copy: Path, no_parser: Any) -> None:
    no_parser()
    a, b = copy / "users/history_actions.npy", copy / "users/history_times.npy"
    a.rename(copy / "x")
    b.rename(a)
    (copy / "x").rename(b)
    with pytest.raises(BundleError, match=r"users/history_"):
        Retriever.open(copy)


@pytest.mark.parametrize("name", ["extra", "items/extra", ".hidden", "empty/", "vocab/deep/"])
def test_extra_files_and_folders_are_refused(copy: Path, no_parser: Any, name: str) -> None:
    no_parser()
    if name.endswith("/"):
        (copy / name).mkdir(parents=True)
    else:
        (copy / name).write_text("x")
    with pytest.raises(BundleError, match=name.rstrip("/")):
        Retriever.open(copy)


def test_a_linked_folder_is_refused(copy: Path, tmp_path: Path, no_parser: Any) -> None:
    no_parser()
    (copy / "users").rename(tmp_path / "users")
    (copy / "users").symlink_to(tmp_path / "users", target_is_directory=True)
    with pytest.raises(BundleError, match="users: a symbolic link"):
        Retriever.open(copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Retriever.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        Retriever.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "items/../../outside", "./schema.json", "items//ids.parquet", "a\\b", "", "."]
)
def test_names_that_lead_elsewhere_are_refused(copy: Path, no_parser: Any, name: str) -> None:
    no_parser()
    (copy.parent / "outside").write_bytes(b"")
    entry = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    rewrite_manifest(copy, lambda m: m["files"].update({name: entry}))
    with pytest.raises(BundleError, match="not the name of a file inside"):
        Retriever.open(copy)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        *outer, last = path.split("/")
        for key in outer:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("format_version", 99), _set("format_version", True), _set("format", "other"), _set("files", []),
        _set("files", None), _set("counts", 5), _set("counts/items", 1 << 60), _set("counts/items", -1),
        _set("counts/items", 61), _set("counts/items", "60"), _set("counts/items", True), _set("counts/items", 0),
        _set("counts/users", 4), _set("counts/users", 1.0), _set("counts/history_dim", 7), _set("counts/more", 1),
        _set("dim", 9), _set("dim", 0), _set("dim", 1 << 40), _set("dim", "8"), _set("similarity", "dot"),
        _set("similarity/kind", "l2"), _set("similarity/temperature", "x"), _set("similarity/temperature", 0),
        _set("similarity/temperature", 10**400), _set("similarity/temperature", True), _set("measured/x", 10**400),
        _set("data/start", -(10**400)),
        _set("index/kind", "hnsw"), _set("index/kind", 3), _set("index/more", 3), _set("schema_hash", "0" * 64),
        _set("more", 1), _set("created", None), lambda m: m.pop("dim") and None,
        _set("files/schema.json", "x"), _set("files/schema.json", {"size": 1}), _set("data/end", "now"),
        _set("files/schema.json", {"size": -1, "sha256": "0" * 64}), lambda m: b"[]", lambda m: b"{",
        lambda m: b'{"format": 1, "format": 2}', lambda m: b'{"dim": NaN}', lambda m: b"[" * 100_000,
        lambda m: b"\xff\xfe", lambda m: b"{}",
    ],
)  # fmt: skip
def test_hostile_manifests_are_refused(copy: Path, change: Any) -> None:
    rewrite_manifest(copy, change)
    with pytest.raises(BundleError, match=r"manifest\.json|items/|users/|schema\.json"):
        Retriever.open(copy)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("items/embeddings.npy", np.zeros((60, 8), np.float64)),
        ("items/embeddings.npy", np.zeros((59, 8), np.float32)),
        ("items/embeddings.npy", np.zeros(480, np.float32)),
        ("items/embeddings.npy", np.array([{}] * 60, object)),
        ("users/history_items.npy", np.array([3, 4, 0, 1, 2, 3, 4, 60])),
        ("users/history_items.npy", np.array([3, 4, 0, 1, 2, 3, 4, -1])),
        ("users/history_offsets.npy", np.array([0, 2, 2, 9])),
        ("users/history_offsets.npy", np.array([0, 8, 2, 8])),
        ("users/history_actions.npy", np.zeros(7, np.int64)),
        ("users/feature.field.npy", np.zeros((3, 2), np.int32)),
        ("items/history_inputs.npy", np.zeros((60, 6), np.float16)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_whatever_their_hash(copy: Path, name: str, values: Any) -> None:
    np.save(copy / name, values, allow_pickle=True)
    reseal(copy)
    with pytest.raises(BundleError, match=name):
        Retriever.open(copy)


@pytest.mark.parametrize(
    "name", ["schema.json", "golden.json", "items/ids.parquet", "items/attributes.parquet", "items/index.faiss",
             "user_tower/1/model.onnx", "vocab/users.json", "vocab/users.field.parquet", "items/embeddings.npy"]
)  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\x00" * 200])
def test_garbage_is_refused_whatever_its_hash(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    reseal(copy)
    with pytest.raises(BundleError, match=r"schema|golden|items|user_tower|vocab"):
        Retriever.open(copy)


@pytest.mark.parametrize(
    "change", [{"name": "../../etc/passwd"}, {"name": ""}, {"name": 3}, {"kind": "other"}, {"more": 1}]
)
def test_a_hostile_schema_is_refused(copy: Path, change: dict[str, Any]) -> None:
    schema = json.loads((copy / "schema.json").read_text())
    schema["users"][0] |= change
    (copy / "schema.json").write_text(json.dumps(schema))
    reseal(copy)
    with pytest.raises(BundleError, match=r"schema\.json"):
        Retriever.open(copy)


# The replay: right hashes over wrong parts.


def test_the_replay_catches_another_user_tower(copy: Path, market: Market) -> None:
    (copy / "user_tower/1/model.onnx").write_bytes(user_tower(market.fields + 0.02, market.mix))
    reseal(copy)
    with pytest.raises(BundleError, match=r"another vector than the trained model.*user tower"):
        Retriever.open(copy)


def test_the_replay_catches_ids_in_another_order(copy: Path, market: Market) -> None:
    pq.write_table(pa.table({"item": market.item_ids.take(pa.array(range(59, -1, -1)))}), copy / "items/ids.parquet")
    reseal(copy)
    with pytest.raises(BundleError, match="golden"):
        Retriever.open(copy)


def test_the_replay_catches_the_index_of_other_embeddings(copy: Path, market: Market) -> None:
    other = build_index(market.embeddings[::-1].copy(), IndexRecipe("flat"), Similarity("dot"))
    faiss.write_index(other, str(copy / "items/index.faiss"))
    reseal(copy)
    with pytest.raises(BundleError, match=r"items/index\.faiss.*not those of items/embeddings\.npy"):
        Retriever.open(copy)
    with pytest.raises(BundleError, match="not the index of these embeddings"):
        Retriever.open(copy, verify=False)


def test_an_index_by_distance_is_refused(copy: Path, market: Market) -> None:
    index = faiss.IndexFlatL2(8)
    index.add(market.embeddings)
    faiss.write_index(index, str(copy / "items/index.faiss"))
    reseal(copy)
    with pytest.raises(BundleError, match=r"items/index\.faiss.*metric"):
        Retriever.open(copy)


def test_an_export_that_disagrees_with_the_model_is_never_published(market: Market, tmp_path: Path) -> None:
    wrong = user_tower(market.fields, market.mix * 1.1)
    with pytest.raises(BundleError, match="another vector"):
        write_bundle(market.contents(user_tower=wrong), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# What write_bundle refuses.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": pa.table({"a": [1]})}, "1 rows of attributes for 60 items"),
        ({"item_ids": pa.array(["x"] * 60)}, "schema says int64"),
        ({"embeddings": np.zeros((59, 8), np.float32)}, r"expected float32 \[60, D\]"),
        ({"golden": []}, "no golden queries"),
        ({"history_inputs": np.zeros((59, 6), np.float32)}, "history inputs"),
        ({"similarity": Similarity("cosine")}, "norm"),
        ({"golden": [Golden({"field": {1}}, np.zeros(8, np.float32))]}, "JSON"),
    ],
)
def test_parts_that_do_not_belong_together(
    market: Market, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_bundle(market.contents(**changes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": None}, "clock is time"),
        ({"features": {}}, "features"),
        ({"actions": np.zeros(1, np.int64)}, "actions"),
        ({"exclusions": Ragged(np.array([0, 0, 0, 1]), np.array([60]))}, "exclusions.*outside"),
        ({"histories": Ragged(np.array([0, 9]), np.arange(8))}, "histories.*offsets"),
        ({"ids": pa.array(["a", "b", "c"])}, "schema says int64"),
    ],
)
def test_known_users_that_do_not_fit(market: Market, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        market.contents(known_users=replace(market.known, **changes))


def test_times_of_items_must_be_utc_microseconds(market: Market) -> None:
    naive = market.attributes.set_column(3, "posted", pa.array([None] * 60, pa.timestamp("us")))
    with pytest.raises(ConfigError, match=r"posted.*timestamp"):
        market.contents(attributes=naive)


# What a bundle says of itself, and optional parts.


def test_the_readme_says_what_it_is(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    for words in ("dot product", "recall@100 | 1", "2023-11-14", "known users | 3", "items | 60", "Retriever.open"):
        assert words in text


def test_the_seal_is_what_sha256sum_reads(bundle: Path) -> None:
    digest, name = (bundle / SEAL).read_text().split()
    assert (digest, name) == (hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest(), MANIFEST)


def test_nothing_in_it_is_a_pickle(bundle: Path) -> None:
    for path in bundle.rglob("*.npy"):
        np.load(path, allow_pickle=False)


def test_without_known_users_ids_are_refused_and_raw_users_served(fresh: Any, market: Market) -> None:
    golden = market.contents().golden[:1]
    retriever = Retriever.open(fresh(known_users=None, golden=golden))
    assert len(retriever.recommend({"field": "law"}, 5).ids) == 5
    with pytest.raises(Exception, match="no known users"):
        retriever.recommend(11)


def test_an_existing_bundle_is_never_overwritten(bundle: Path, market: Market) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        write_bundle(market.contents(), bundle)
