"""The protocols on real data: counts agree with their READMEs, and our rules give the splits that they give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from data.prepare import prepare
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from data.tasks import build_task

ROOT = Path(__file__).parents[2]
SHARED = (ROOT / ".." / "shared").resolve()
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not (SHARED / "protocols").is_dir(), reason=f"the real data are not at {SHARED}"),
]


def config(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("prepare", [f"data={name}", f"shared={SHARED}"])
    out: dict[str, Any] = OmegaConf.to_container(composed.data, resolve=True)  # type: ignore[assignment]
    return out


def prepared(name: str, folder: Path, **changes: Any) -> PreparedDataset:
    return PreparedDataset(prepare(DatasetSpec.parse({**config(name), **changes}), folder / name))


def test_jobviews_counts_masks_and_groups(tmp_path: Path) -> None:
    data = prepared("jobviews", tmp_path)
    protocol = SHARED / "protocols" / "jobviews-next"
    said = json.loads((protocol / "protocol.json").read_text())["counts"]
    counts = data.info["counts"]
    assert (
        counts["positives"]
        == {k: said[k] for k in ("train", "valid", "test")}
        == {"train": 6023, "valid": 1029, "test": 1721}
    )
    assert (counts["users"], counts["items"]) == (said["users"], said["items"])
    assert data.info["rejected"] == {}
    task = build_task(data, "test", history_length=50)
    assert len(task) == 1721
    mask = pq.read_table(protocol / "mask_test.parquet")
    asked = set(data.ids("user").take(task.query).to_pylist())
    pairs = {(u, i) for u, i in zip(mask["user"].to_pylist(), mask["item"].to_pylist(), strict=True) if u in asked}
    assert len(task.exclude.values) == len(pairs)


def test_leave_last_out_with_groups_gives_the_jobviews_split(tmp_path: Path) -> None:
    """The protocol's README states our rule; only ties in time, which it breaks by file row, can differ."""
    protocol = SHARED / "protocols" / "jobviews-next"
    parts = {name: pq.read_table(protocol / f"{name}.parquet") for name in ("train", "valid", "test")}
    files = {"files": [f"{n}.parquet" for n in parts], "time": {"column": "time", "unit": "s"}}
    ours = prepared(
        "jobviews",
        tmp_path,
        events=files,
        split={"rule": "leave_last_out", "min_items": 2},
        tasks={"valid": {}, "test": {}},
    )
    users, items = ours.ids("user"), ours.ids("item")
    times = {}
    for name, table in parts.items():
        for u, t in zip(table["user"].to_pylist(), table["time"].to_pylist(), strict=True):
            times.setdefault(u, []).append((t, name))
    clear = {
        u for u, seen in times.items() if len({t for t, _ in seen}) == len(seen) and any(n == "valid" for _, n in seen)
    }
    assert len(clear) > 500
    for name in ("valid", "test"):
        e = ours.examples(name)
        mine = dict(zip(users.take(e.user).to_pylist(), items.take(e.item).to_pylist(), strict=True))
        theirs = dict(zip(parts[name]["user"].to_pylist(), parts[name]["item"].to_pylist(), strict=True))
        assert {u: mine[u] for u in clear} == {u: theirs[u] for u in clear}


def test_ml_100k_by_time(tmp_path: Path) -> None:
    data = prepared("ml_100k", tmp_path)
    raw = pq.read_table(SHARED / "data" / "ml-100k" / "ratings.parquet")
    time = np.sort(raw["ts"].to_numpy())
    valid, test = (b // 1_000_000 for b in data.info["split"]["boundaries_us"])
    assert test == time[90_000]  # the last tenth of all events, ties included
    before = time[time < test]
    assert valid == before[len(before) - 10_000]
    rating, ts = raw["rating"].to_numpy(), raw["ts"].to_numpy()
    liked = rating >= 4
    assert data.info["counts"]["positives"] == {
        "train": int((liked & (ts < valid)).sum()),
        "valid": int((liked & (ts >= valid) & (ts < test)).sum()),
        "test": int((liked & (ts >= test)).sum()),
    }
    assert data.info["counts"]["history"] == liked.sum()
    assert data.info["counts"]["examples"] == 100_000


@pytest.mark.parametrize(("name", "folder"), [("amazon_beauty", "s3rec-beauty")])
def test_given_splits_agree_with_their_files(tmp_path: Path, name: str, folder: str) -> None:
    data = prepared(name, tmp_path)
    for split in ("train", "valid", "test"):
        assert (
            data.info["counts"]["positives"][split]
            == pq.read_metadata(SHARED / "protocols" / folder / f"{split}.parquet").num_rows
        )
