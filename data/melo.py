"""Job-title search on public data: MELO's queries and corpus, with O*NET's alternate titles to learn from.

MELO (Retyk et al., "MELO: An Evaluation Benchmark for Multilingual Entity Linking of Occupations", 2024) asks for the
ESCO labels of a national occupation title; its set for the United States has O*NET titles as queries, and the truth
is the official crosswalk. It has no training split. What is learnt from is written as pairs of titles, so that a row
of results can say what its model has seen::

    strict.parquet    titles of one O*NET occupation, of occupations that no query is about
    titles.parquet    of all occupations: alternate titles of what is asked for are known, the crosswalk is not
    aliases.parquet   what else the occupation of a query is called: the query's history
    concepts.parquet  and labels of one ESCO concept: the grouping of the corpus is known besides
    valid.parquet     a third of the queries, by hash, to choose settings by
    test.parquet      the other queries
    items.parquet     corpus strings with their concepts, and the titles that are learnt from
    corpus.parquet    the corpus strings: what is ranked
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.folders import atomic_folder
from data.writer import write_json
from towers.errors import ConfigError, DataError

_MATCH, _ALIAS = "match", "alias"  # actions
Groups = Mapping[str, list[str]]  # name → titles of one meaning
RECORD = "melo-2.json"  # files of version 1 lack actions and aliases


@dataclass(frozen=True)
class MeloConfig:
    """What to write.

    Attributes:
        melo: folder with MELO's ``queries``, ``corpus`` and ``qrels`` as Parquet.
        onet: folder with O*NET's ``occupation_data``, ``alternate_titles`` and ``sample_of_reported_titles``.
        dataset: which of MELO's sets; its queries must be O*NET titles.
        partners: pairs that each title is the query of.
        valid: one in so many queries is for validation.
        seed: of the pairs.

    Raises:
        ConfigError: a number leaves nothing.
    """

    melo: str
    onet: str
    dataset: str = "usa_q_en_c_en"
    partners: int = 4
    valid: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing."""
        if self.partners < 1 or self.valid < 2:
            raise ConfigError(f"partners={self.partners}, valid={self.valid}; set at least 1, and at least 2")


def generate(config: MeloConfig, folder: Path, progress: Callable[[str, float], None]) -> None:
    """Write the files; the folder appears when it is complete.

    Raises:
        DataError: a file is not there, or is not what it should be.
    """
    progress("reading MELO and O*NET", 0.0)
    queries, corpus, truth = (_melo(config, name) for name in ("queries", "corpus", "qrels"))
    occupations, codes = _occupations(Path(config.onet))
    asked = {codes[text] for text in queries["text"].to_pylist() if text in codes}
    if not asked:
        raise DataError(
            "no query is an O*NET title", where=f"dataset {config.dataset}", cure="set generate.dataset=usa_q_en_c_en"
        )
    concepts = _concepts(corpus)
    logs = {
        "strict": {code: titles for code, titles in occupations.items() if code not in asked},
        "titles": occupations,
        "concepts": {**occupations, **concepts},
    }
    titles = dict.fromkeys(t for group in occupations.values() for t in group)
    ids = {t: f"title-{i:06d}" for i, t in enumerate(titles)}
    own: dict[str, str] = {}  # label → the corpus string that stands for it in training
    for cid, text in zip(corpus["cid"].to_pylist(), corpus["text"].to_pylist(), strict=True):
        own.setdefault(text, cid)
    with atomic_folder(folder) as out:
        for i, (name, groups) in enumerate(logs.items()):
            progress("pairing titles", 0.2 + 0.2 * i)
            rng = np.random.default_rng(config.seed)
            pq.write_table(_pairs(groups, {**own, **ids}, config.partners, rng), out / f"{name}.parquet")
        asking = zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)
        aliases = {qid: _others(occupations[codes[text]], text) for qid, text in asking if text in codes}
        pq.write_table(_aliases(aliases, ids), out / "aliases.parquet")
        progress("writing queries and items", 0.9)
        texts = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
        held = pa.array([crc32(q.encode()) % config.valid == 0 for q in truth["qid"].to_pylist()])
        rows = pa.table(
            {
                "user": truth["qid"],
                "query": [texts[q] for q in truth["qid"].to_pylist()],
                "item": truth["cid"],
                "action": [_MATCH] * len(truth),
            }
        )
        pq.write_table(rows.filter(held), out / "valid.parquet")
        pq.write_table(rows.filter(pc.invert(held)), out / "test.parquet")
        pq.write_table(_items(corpus, ids), out / "items.parquet")
        pq.write_table(pa.table({"item": corpus["cid"]}), out / "corpus.parquet")
        write_json(out / RECORD, {"config": asdict(config)})


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError as e:
        raise DataError("no such file", where=str(path), cure="set shared=PATH to the folder of the real data") from e


def _melo(config: MeloConfig, name: str) -> pa.Table:
    table = _read(Path(config.melo) / f"{name}.parquet")
    return table.filter(pc.field("dataset") == config.dataset)


def _occupations(onet: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Code → distinct titles of the occupation, its own first; and own title → code."""
    own = _read(onet / "occupation_data.parquet")
    codes = dict(zip(own["Title"].to_pylist(), own["O*NET-SOC Code"].to_pylist(), strict=True))
    found: dict[str, dict[str, None]] = {code: {title: None} for title, code in codes.items()}
    for file, columns in (
        ("alternate_titles", ("Alternate Title", "Short Title")),
        ("sample_of_reported_titles", ("Reported Job Title",)),
    ):
        table = _read(onet / f"{file}.parquet")
        for column in columns:
            for code, title in zip(table["O*NET-SOC Code"].to_pylist(), table[column].to_pylist(), strict=True):
                if title:
                    found[code][title] = None
    return {code: list(titles) for code, titles in found.items()}, codes


def _concepts(corpus: pa.Table) -> dict[str, list[str]]:
    """Concept → its distinct labels. A corpus id is CONCEPT_LANGUAGE_NUMBER."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for cid, text in zip(corpus["cid"].to_pylist(), corpus["text"].to_pylist(), strict=True):
        found[cid.split("_")[0]][text] = None
    return {name: list(labels) for name, labels in found.items()}


def _pairs(groups: Groups, ids: Mapping[str, str], partners: int, rng: np.random.Generator) -> pa.Table:
    """Each title as a query with some others of its group, drawn without repetition; groups of one have no pair.

    The group is the user: what else it holds is then known to be wanted, and is no negative.
    """
    users: list[str] = []
    queries: list[str] = []
    items: list[str] = []
    for name, titles in groups.items():
        n = len(titles)
        for i, title in enumerate(titles):
            others = rng.choice(n - 1, min(partners, n - 1), replace=False)
            for j in others + (others >= i):
                users.append(name)
                queries.append(title)
                items.append(ids[titles[j]])
    return pa.table({"user": users, "query": queries, "item": items, "action": [_MATCH] * len(users)})


def _others(titles: list[str], own: str) -> list[str]:
    return [t for t in titles if t != own]


def _aliases(aliases: Groups, ids: Mapping[str, str]) -> pa.Table:
    """Each query's other titles as events of its own, which nobody asked for and nothing is learnt from."""
    users = [qid for qid, titles in aliases.items() for _ in titles]
    nothing = pa.nulls(len(users), pa.string())
    items = [ids[t] for titles in aliases.values() for t in titles]
    return pa.table({"user": users, "query": nothing, "item": items, "action": [_ALIAS] * len(users)})


def _items(corpus: pa.Table, titles: Mapping[str, str]) -> pa.Table:
    """Corpus strings, and the titles that are learnt from, which are of no concept."""
    ids, texts = corpus["cid"].to_pylist(), corpus["text"].to_pylist()
    concepts: list[str | None] = [cid.split("_")[0] for cid in ids]
    return pa.table(
        {
            "item": ids + list(titles.values()),
            "title": texts + list(titles),
            "concept": pa.array(concepts + [None] * len(titles), pa.string()),
        }
    )
