"""Ways to spoil a bundle by design: every hash is made anew, so that only checks and replays can tell.

As in ``damage``, each way changes a copy of a bundle in place and returns the pattern that an error must match.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.damage import SEALED, Damage, files, named, reseal
from towers.index.faiss_setup import faiss
from towers.index.manifest import MANIFEST, SEAL

_faiss: Any = faiss


def write_sealed(root: Path, manifest: bytes) -> None:
    """Any manifest, with the seal that fits it."""
    (root / MANIFEST).write_bytes(manifest)
    (root / SEAL).write_text(f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n")


# By design: manifests with a fitting seal.


def hostile_field(root: Path, rng: Random) -> str:
    """A field of another type, size or meaning."""
    manifest = json.loads((root / MANIFEST).read_text())
    wrong: dict[str, list[Any]] = {
        "format": [1, None, "other", [], True], "format_version": [True, 99, "2", -1, 10**400, 2.5],
        "created": [0, None, "", "yesterday", [], "9" * 5000], "schema_hash": ["0" * 64, 1, None, {}],
        "dim": [0, -1, 1 << 21, 1 << 63, 10**400, 8.5, "8", True, None, 9], "files": [[], None, 1, "x", {}],
        "counts/items": [0, -1, 1 << 60, 10**400, "300", True, None, 299, 301, 300.5, []],
        "counts/users": [-1, 1 << 60, "3", True, None, 2, 4, 3.5], "counts/history_dim": [-1, 1 << 60, 5, 7, "6", None],
        "counts/more": [1], "similarity/kind": ["l2", 1, None, []], "similarity/more": [1],
        "similarity/temperature": ["x", 0, -1, None, [], 10**400], "index/kind": ["other", 3, None, []],
        "index/nlist": [-1, 10**30, "x", 1.5], "index/nprobe": [0, -1, 10**30, "x", True],
        "index/ef_search": [0, 1 << 62, "x"], "index/rescore": [-1, 1 << 62, None], "index/more": [1],
        "index/probe_growth": [-1, "x", None, True], "data/end": ["now", 1.5, True, []], "data/more": [1],
        "measured/x": ["fast", None, [], True], "versions/x": [1, None], "more": [1], "measured": [[], 1, None],
        "provenance": [[], 1, None], "versions": [[], 1, None], "similarity": ["dot", [], None], "index": [[], "flat"],
    }  # fmt: skip
    path = rng.choice(sorted(wrong))
    *outer, last = path.split("/")
    inner = manifest
    for key in outer:
        inner = inner[key]
    inner[last] = rng.choice([v for v in wrong[path] if v != inner.get(last) or type(v) is not type(inner.get(last))])
    write_sealed(root, json.dumps(manifest).encode())
    return rf"{SEALED}|items/|users/|schema\.json|a folder that the manifest does not list"


def hostile_text(root: Path, rng: Random) -> str:
    """What some parsers read and others do not: NaN, keys that occur twice, depth, other encodings."""
    text = (root / MANIFEST).read_text()
    digits = "9" * 5000
    write_sealed(root, rng.choice([
        b"", b"[]", b"{", b"null", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe",
        text.encode("utf-16"),
        b"\xef\xbb\xbf" + text.encode(), text.encode() + b"}", text.encode() + b"\0", text.encode()[:-1],
        text.replace("{", '{"dim": 8, "dim": 8, ', 1).encode(), text.replace("{", '{"dim": 8, ', 1).encode(),
        re.sub(r'"dim": \d+', '"dim": NaN', text).encode(), re.sub(r'"dim": \d+', '"dim": 1e999', text).encode(),
        re.sub(r'"dim": \d+', f'"dim": {digits}', text).encode(), re.sub(r'"dim": \d+', '"dim": 8.0', text).encode(),
        re.sub(r'"temperature": [\d.]+', '"temperature": Infinity', text).encode(),
        text.replace('"provenance": {', '"provenance": {"x": ' + "[" * 50_000 + "]" * 50_000 + ",", 1).encode(),
        text.replace('"provenance": {', '"provenance": {"x": -Infinity, ', 1).encode(), b" " * (17 << 20),
    ]))  # fmt: skip
    return SEALED


def hostile_name(root: Path, rng: Random) -> str:
    """A listed file that lies outside, or an entry that is none."""
    manifest = json.loads((root / MANIFEST).read_text())
    (root.with_name("outside")).write_bytes(b"")
    entry: Any = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    name = rng.choice([
        "../outside", "/etc/passwd", "items/../../outside", "./schema.json", "items//ids.parquet", "a\\b", "", ".",
        "..",
        "items/", "a\0b", "C:x", MANIFEST, SEAL, "items/../schema.json", "/", "~/x/../y",
    ])  # fmt: skip
    if rng.random() < 0.3:
        name = rng.choice(sorted(manifest["files"]))
        size, digest = manifest["files"][name]["size"], manifest["files"][name]["sha256"]
        entry = rng.choice([
            None, [], "x", {}, {"size": size}, {"size": -1, "sha256": digest}, {"size": True, "sha256": digest},
            {"size": 1 << 62, "sha256": digest}, {"size": size, "sha256": None}, {"size": size, "sha256": "0" * 63},
            {"size": size, "sha256": "x" * 64}, {"size": size, "sha256": digest, "mode": "0777"},
            {"size": size + 1, "sha256": digest}, {"size": float(size), "sha256": digest},
        ])  # fmt: skip
        manifest["files"][name] = entry
        write_sealed(root, json.dumps(manifest).encode())
        return f"{SEALED}|{named(name)}"
    manifest["files"][name] = entry
    write_sealed(root, json.dumps(manifest).encode())
    return SEALED


# By design: contents, hashed anew.


def hostile_array(root: Path, rng: Random) -> str:
    """An array of another type, shape, order or range; or what numpy would open as an archive or a pickle."""
    name = rng.choice([n for n in files(root) if n.endswith(".npy")])
    good = np.load(root / name)
    header = (root / name).read_bytes()
    bad = good.astype(good.dtype)
    out = io.BytesIO()
    kind = rng.choice(("type", "endian", "rows", "flat", "value", "object", "archive", "pickle", "claim", "header"))
    if kind == "type":
        np.save(out, good.astype(np.float64 if good.dtype != np.float64 else np.float32))
    elif kind == "endian":
        np.save(out, good.astype(good.dtype.newbyteorder(">")))
    elif kind == "rows":
        np.save(out, good[:-1] if rng.random() < 0.5 else np.concatenate([good, good[-1:]]))
    elif kind == "flat":
        np.save(out, np.asfortranarray(good) if good.ndim > 1 and rng.random() < 0.5 else good[None])
    elif kind == "value":
        if "times" in name:  # any moment is one
            np.save(out, good[:-1])
        else:
            nothing = [np.nan, np.inf, -np.inf] if good.dtype.kind == "f" else [-1, np.iinfo(good.dtype).max, 1 << 20]
            bad.flat[rng.randrange(bad.size)] = rng.choice(nothing)
            np.save(out, bad)
    elif kind == "object":
        np.save(out, np.array([{}] * len(good), object), allow_pickle=True)
    elif kind == "archive":
        np.savez(out, good)
    elif kind == "pickle":
        pickle.dump(good, out)
    elif kind == "claim":  # more than there is, or less than nothing
        claim = rng.choice((str(1 << 40), str(1 << 62), "-1", str(10**30), "0"))
        changed = re.sub(rb"'shape': \(\d+", b"'shape': (" + claim.encode(), header, count=1)
        out.write(_length(changed))
    else:
        changed = header.replace(b"'fortran_order': False", rng.choice((b"'fortran_order': 1", b"'x': [0] * 10**9")), 1)
        out.write(_length(changed))
    (root / name).write_bytes(out.getvalue())
    reseal(root)
    return f"{named(name)}|users/"


def _length(content: bytes) -> bytes:
    """A changed header of numpy's format with its length corrected."""
    end = content.index(b"\n") + 1
    return content[:8] + (end - 10).to_bytes(2, "little") + content[10:]


def hostile_table(root: Path, rng: Random) -> str:
    """A table of other rows, columns or types; ids that are null, twice, or in another order."""
    name = rng.choice([n for n in files(root) if n.endswith(".parquet")])
    good = pq.read_table(root / name)
    column = good.column_names[0]
    ways: list[Callable[[], Any]] = [
        lambda: good.slice(1), lambda: pa.concat_tables([good, good.slice(0, 1)]), lambda: good.slice(0, 0),
        lambda: None,
    ]  # fmt: skip
    if not name.endswith("attributes.parquet"):
        nothing = pa.nulls(len(good), good[column].type)
        first = good[column].take(pa.array([0] * len(good)))
        ways += [
            lambda: good.rename_columns([f"x{i}" for i in range(good.num_columns)]),
            lambda: good.set_column(0, column, nothing), lambda: good.set_column(0, column, first),
            lambda: good.append_column("more", nothing), lambda: good.drop_columns([column]),
            lambda: good.set_column(0, column, pa.array([[1]] * len(good))),
        ]  # fmt: skip
    else:
        late = pc.cast(good["posted"], pa.timestamp("us"))
        ways += [lambda: good.set_column(good.schema.get_field_index("posted"), "posted", late)]
    if "ids" in name and len(good) > 2:
        ways.append(lambda: good.take(pa.array(range(len(good) - 1, -1, -1))))
    table = rng.choice(ways)()
    if (
        name.startswith("vocab")
        and table is not None
        and table.num_columns == 3
        and table.column_names == good.column_names
    ):
        table = None if table.num_rows != len(good) else table  # another vocabulary is a vocabulary
    if table is None:
        whole = (root / name).read_bytes()
        (root / name).write_bytes(rng.choice((b"", b"PAR1", whole[:-9], b"PAR1" + rng.randbytes(200) + b"PAR1")))
    else:
        pq.write_table(table, root / name)
    reseal(root)
    return rf"{named(name)}|golden\.json"


def hostile_json(root: Path, rng: Random) -> str:
    """Schema, golden queries or the state of features, of wrong form."""
    name = rng.choice(["schema.json", "golden.json", "vocab/users.json", "vocab/context.json"])
    text = (root / name).read_text()
    value = json.loads(text)
    ways: list[Any] = [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"null",
    ]
    if name == "schema.json":
        feature, top = value["users"][0], {"history_length": [-1, 1 << 40, "4", None, 1.5], "clock": ["x", 3, []],
            "user_id": ["float", 1], "item_id": ["bytes", None], "actions": [[], 1, [{}], [{"name": 1, "more": 2}]],
            "users": [None, [1], [[]]], "context": ["x", [{"name": "y"}]], "more": [1]}  # fmt: skip
        inner = {"name": ["../../x", "", 3, "a/b", "a\0b"], "kind": ["other", None, 1], "max_length": [1 << 40, 0, "1"],
                 "dim": [1 << 40, -1], "columns": [None, 3], "more": [1]}  # fmt: skip
        which, at = rng.choice([(value, top), (feature, inner)])
        key = rng.choice(sorted(at))
        which[key] = rng.choice(at[key])
        ways += [json.dumps(value).encode()] * 20
    elif name == "golden.json":
        query = value["queries"][0]
        wrong: dict[str, list[Any]] = {
            "vector": [[], None, "x", [0.0] * 8, [1e300] * 8, [[1.0] * 8], {}],
            "items": [[], None, ["x"], [1 << 70], [7]],
            "scores": [[], None, [0.0] * 10, "x"], "user": [None, [], 5.5, "nobody", {"nothing": 1}],
            "at": ["x", [], 1e300],
            "context": [1, {"nothing": 1}],
        }  # fmt: skip
        key = rng.choice(sorted(wrong))
        query[key] = rng.choice(wrong[key])
        ways += [json.dumps(value).encode()] * 20 + [b'{"queries": []}', b'{"queries": 1}', b"{}"]
    elif name == "vocab/users.json":
        fit: list[Any] = [
            None,
            3,
            [],
            {},
            {"vocabulary": True},
            {"vocabulary": False, "numbers": None, "columns": ["field"]},
        ]
        ways += [json.dumps({"field": f}).encode() for f in fit] + [b"{}", json.dumps(value | {"more": 1}).encode()]
    (root / name).write_bytes(rng.choice(ways))
    reseal(root)
    return rf"{named(name)}|schema\.json|golden\.json|{SEALED}|vocab/"


def hostile_index(root: Path, rng: Random) -> str:
    """An index of other vectors, another metric or kind, or with rows that no item has."""
    path = root / "items/index.faiss"
    index = _faiss.read_index(str(path))
    good = path.read_bytes()
    vectors = np.load(root / "items/embeddings.npy")
    n, dim = vectors.shape
    kind = rng.choice(("metric", "fewer", "dim", "other", "empty", "truncated", "count", "rows"))
    if kind == "metric":
        index = _faiss.IndexFlatL2(dim)
        index.add(vectors)
    elif kind in ("fewer", "dim", "other"):
        part = {"fewer": vectors[:-1], "dim": vectors[:, :-1], "other": vectors[::-1]}[kind]
        index = _faiss.IndexFlatIP(part.shape[1])
        index.add(np.ascontiguousarray(part))
    elif kind == "empty":
        index.reset()
    elif kind == "rows" and hasattr(index, "invlists"):  # one row twice, or one that no item has
        cell = next(i for i in range(index.nlist) if index.invlists.list_size(i) > 1)
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(cell), 2)
        ids[0] = rng.choice((ids[1], n, -1, 1 << 40))
    elif kind == "rows" and hasattr(index, "hnsw"):
        edges = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
        edges[rng.randrange(200)] = rng.choice((n, 1 << 30, -2))
    if kind in ("truncated", "count", "rows") and (
        kind != "rows" or not hasattr(index, "invlists") | hasattr(index, "hnsw")
    ):
        place = rng.choice((4, 8, 33, 37))  # dimension, count, and what follows
        size = rng.choice((-1, 0, 1, 1 << 20, 1 << 30, (1 << 31) - 1))
        changed = good[:place] + size.to_bytes(4, "little", signed=True) + good[place + 4 :]
        path.write_bytes(good[: rng.randrange(len(good))] if kind == "truncated" or changed == good else changed)
    else:
        _faiss.write_index(index, str(path))
    reseal(root)
    return r"items/index\.faiss|golden\.json"


def hostile_tower(root: Path, rng: Random) -> str:
    """A user tower that is another, or none."""
    import onnx  # a serving process has none

    path = root / "user_tower/1/model.onnx"
    good = path.read_bytes()
    model = onnx.load_from_string(good)
    weights = model.graph.initializer
    kind = rng.choice(("garbage", "truncated", "weights", "output", "input", "outside", "huge", "operator", "shape"))
    if kind == "garbage":
        path.write_bytes(rng.choice((b"", b"{}", rng.randbytes(300))))
    elif kind == "truncated":
        path.write_bytes(good[: rng.randrange(len(good) - 1)])
    else:
        if kind == "weights":
            weights[0].raw_data = bytes(len(weights[0].raw_data))
        elif kind == "output":
            model.graph.output[0].name = "other"
        elif kind == "input":
            model.graph.input[0].type.tensor_type.elem_type = 1
        elif kind == "outside":
            place = rng.choice(("../../items/embeddings.npy", "/etc/passwd", "../../../outside"))
            weights[0].ClearField("raw_data")
            weights[0].data_location = 1
            for key, value in {"location": place, "offset": "0", "length": "16"}.items():
                entry = weights[0].external_data.add()
                entry.key, entry.value = key, value
        elif kind == "huge":
            weights[0].dims[0] = 1 << 40
        elif kind == "operator":
            model.graph.node[0].op_type = "Nothing"
        else:
            weights[0].dims[0] += 1
        path.write_bytes(model.SerializeToString())
    reseal(root)
    return r"user_tower/1/model\.onnx|golden\.json"


def fuzz(root: Path, rng: Random) -> str:
    """A number anywhere in a file that a parser reads, hashed anew: maybe as good as another, but it must not crash."""
    read = [n for n in files(root) if n.endswith((".npy", ".parquet", ".faiss", ".json")) or "user_tower" in n]
    name = rng.choice(
        [*(n for n in read if n != MANIFEST), *["items/index.faiss"] * 8, *["user_tower/1/model.onnx"] * 4]
    )
    content = bytearray((root / name).read_bytes())
    size = len(content)
    start = rng.randrange(min(size, 400) if rng.random() < 0.6 else size)
    width = rng.choice((1, 1, 4, 8))
    number = rng.choice((0, -1, 1 << 30, (1 << 31) - 1, 1 << 40, (1 << 62), (1 << 63) - 1, rng.getrandbits(63)))
    content[start : start + width] = number.to_bytes(8, "little", signed=True)[:width]
    (root / name).write_bytes(content[:size] if rng.random() < 0.9 else content[: rng.randrange(size)])
    reseal(root)
    return named(name)


DESIGNS: tuple[Damage, ...] = (
    hostile_field, hostile_text, hostile_name, hostile_array, hostile_table, hostile_json, hostile_index, hostile_tower
)  # fmt: skip
