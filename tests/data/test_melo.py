"""MELO with O*NET: what each file of pairs has seen, and that no file tells the crosswalk."""

from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.melo import MeloConfig, generate
from towers.errors import ConfigError, DataError

QUERIES = [f"Q{i:03d}" for i in range(30)]
CODE = "O*NET-SOC Code"


def write(folder: Path, name: str, **columns: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 occupations that are asked for, 5 that are not; three labels for each occupation's concept."""
    root = tmp_path_factory.mktemp("raw")
    codes = [f"{i:02d}-0000.00" for i in range(35)]
    titles = [f"Title {i}" for i in range(35)]
    write(root / "onet", "occupation_data", **{CODE: codes, "Title": titles})
    write(root / "onet", "alternate_titles", **{
        CODE: [c for c in codes for _ in range(4)],
        "Alternate Title": [f"Alternate {i} {j}" for i in range(35) for j in range(4)],
        "Short Title": [f"A{i}" if j == 0 else None for i in range(35) for j in range(4)],
    })  # fmt: skip
    write(root / "onet", "sample_of_reported_titles", **{CODE: codes, "Reported Job Title": titles})
    ids = [f"C{i:06d}_en_{j:03d}" for i in range(30) for j in range(3)]
    other = {"dataset": ["other"]}
    for name, columns in {
        "queries": {"qid": QUERIES, "text": titles[:30]},
        "corpus": {"cid": ids, "text": [f"label {i} {j}" for i in range(30) for j in range(3)]},
        "qrels": {"qid": [q for q in QUERIES for _ in range(3)], "cid": ids},
    }.items():
        rows = {"dataset": ["us"] * len(next(iter(columns.values()))) + other["dataset"]}
        write(root / "melo", name, **rows, **{k: [*v, "Q000" if k == "qid" else "x"] for k, v in columns.items()})
    return root


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("made") / "melo"
    generate(config(source), out, lambda what, share: None)
    return {p.stem: pq.read_table(p).to_pylist() for p in out.glob("*.parquet")}


def config(source: Path, **changes: Any) -> MeloConfig:
    return MeloConfig(**{"melo": str(source / "melo"), "onet": str(source / "onet"), "dataset": "us", **changes})


def texts(made: dict[str, list[dict[str, Any]]], name: str) -> list[tuple[str, str, str]]:
    """(group, query, title of the item) of a file of pairs."""
    title = {r["item"]: r["title"] for r in made["items"]}
    return [(r["user"], r["query"], title[r["item"]]) for r in made[name]]


def number(title: str) -> int:
    return int(title.removeprefix("A").replace("lternate", "").replace("Title", "").split()[0])


def test_strict_knows_nothing_of_the_occupations_that_are_asked_for(made: dict[str, Any]) -> None:
    pairs = texts(made, "strict")
    assert {user for user, _, _ in pairs} == {f"{i:02d}-0000.00" for i in range(30, 35)}
    assert all(number(t) >= 30 for _, q, i in pairs for t in (q, i))


def test_a_pair_is_two_titles_of_one_group_and_each_title_asks_for_some_others(made: dict[str, Any]) -> None:
    pairs = texts(made, "titles")
    assert all(number(q) == number(i) == int(user[:2]) for user, q, i in pairs)
    assert all(q != i for _, q, i in pairs)
    assert len(set(pairs)) == len(pairs) == 35 * 6 * 4  # own, four alternate and a short title, four partners each


def test_concepts_are_learnt_from_besides_but_never_the_crosswalk(made: dict[str, Any]) -> None:
    pairs = texts(made, "concepts")
    assert set(texts(made, "titles")) <= {p for p in pairs if "label" not in p[1]}
    labels = [(user, q, i) for user, q, i in pairs if "label" in q]
    assert len(labels) == 30 * 3 * 2
    assert all(q.split()[1] == i.split()[1] and "label" in i for _, q, i in labels)
    for name in ("strict", "titles", "concepts"):
        assert not any(("label" in q) != ("label" in i) for _, q, i in texts(made, name))


def test_aliases_are_what_else_the_occupation_of_a_query_is_called(made: dict[str, Any]) -> None:
    rows = texts(made, "aliases")
    assert len(set(rows)) == len(rows) == 30 * 5, "four alternate titles and a short one; its own is the query"
    assert all(number(title) == int(query[1:]) and "Title" not in title for query, _, title in rows)
    assert {r["query"] for r in made["aliases"]} == {None}
    assert {r["action"] for r in made["aliases"]} == {"alias"}
    assert {r["action"] for name in ("strict", "titles", "concepts", "valid", "test") for r in made[name]} == {"match"}


def test_queries_are_divided_by_hash_and_ask_for_their_labels(made: dict[str, Any]) -> None:
    held = {q for q in QUERIES if crc32(q.encode()) % 3 == 0}
    assert {r["user"] for r in made["valid"]} == held
    assert {r["user"] for r in made["test"]} == set(QUERIES) - held
    for r in made["valid"] + made["test"]:
        i = int(r["user"][1:])
        assert r["query"] == f"Title {i}"
        assert r["item"].startswith(f"C{i:06d}")


def test_the_corpus_is_what_is_ranked(made: dict[str, Any]) -> None:
    corpus = {r["item"] for r in made["corpus"]}
    assert len(corpus) == 90
    concepts = {r["item"]: r["concept"] for r in made["items"]}
    assert {i for i, c in concepts.items() if c} == corpus
    assert concepts["C000007_en_002"] == "C000007"


def test_the_same_settings_write_the_same_pairs(source: Path, made: dict[str, Any], tmp_path: Path) -> None:
    for seed in (0, 1):
        generate(config(source, seed=seed), tmp_path / str(seed), lambda what, share: None)
    assert pq.read_table(tmp_path / "0/titles.parquet").to_pylist() == made["titles"]
    assert pq.read_table(tmp_path / "1/titles.parquet").to_pylist() != made["titles"]


def test_what_is_missing_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        generate(config(source, onet=str(tmp_path)), tmp_path / "out", lambda what, share: None)
    with pytest.raises(DataError, match="no query is an O\\*NET title"):
        generate(config(source, dataset="aut"), tmp_path / "out", lambda what, share: None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="partners=0"):
        config(source, partners=0)
