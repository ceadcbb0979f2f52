"""The synthetic job market: the logs follow from the truth, and the oracle is the truth."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.market import ACTIONS, START, MarketConfig, Oracle, Truth, generate
from data.market_truth import DAY, TRUTH
from towers.errors import ConfigError, DataError

UTC = pa.timestamp("us", tz="UTC")
SMALL = MarketConfig(users=200, jobs=100, impressions=4_000, days=20, seed=3)


class Market:
    """A generated market, read back as row numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth = Truth.load(folder)
        self.members = pq.read_table(folder / "members.parquet")
        self.jobs = pq.read_table(folder / "jobs.parquet")
        self.events = pa.concat_tables(pq.read_table(p) for p in sorted((folder / "events").iterdir()))
        self.member = pc.index_in(self.events["member_id"], self.members["member_id"].combine_chunks()).to_numpy()
        self.job = pc.index_in(self.events["job_id"], self.jobs["job_id"].combine_chunks()).to_numpy()
        self.member, self.job = self.member.astype(np.int64), self.job.astype(np.int64)
        self.time = self.events["time"].cast(pa.int64()).to_numpy()
        self.action = np.array(self.events["action"].to_pylist())
        self.propensity = self.events["propensity"].to_numpy()
        self.pair = self.member * len(self.truth.job_id) + self.job


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Large enough for frequencies: 300,000 impressions, a second to make."""
    folder = tmp_path_factory.mktemp("market") / "market"
    generate(MarketConfig(users=2_000, jobs=1_000, impressions=300_000, days=30, seed=1), folder)
    return Market(folder)


# ---- files ----------------------------------------------------------------------------------------


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_config_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "a")
    generate(SMALL, tmp_path / "b")
    generate(replace(SMALL, seed=4), tmp_path / "c")
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_columns_have_the_types_of_a_raw_log(market: Market) -> None:
    strings = pa.list_(pa.string())
    assert market.members.schema.remove_metadata() == pa.schema(
        {
            "member_id": pa.string(),
            "field": pa.string(),
            "skills": strings,
            "seniority": pa.string(),
            "place": pa.string(),
            "work_authorisation": pa.string(),
            "years": pa.float64(),
        }
    )
    assert market.jobs.schema.remove_metadata() == pa.schema(
        {
            "job_id": pa.int64(),
            "title": pa.string(),
            "skills": strings,
            "employer": pa.string(),
            "place": pa.string(),
            "salary": pa.float64(),
            "sponsors_visa": pa.bool_(),
            "posted": UTC,
            "expires": UTC,
        }
    )
    assert market.events.schema.remove_metadata() == pa.schema(
        {"member_id": pa.string(), "job_id": pa.int64(), "time": UTC, "action": pa.string(), "propensity": pa.float64()}
    )


def test_only_years_salary_and_propensity_have_nulls_and_ids_are_unique(market: Market) -> None:
    for table in (market.members, market.jobs, market.events):
        with_nulls = {name for name in table.column_names if table[name].null_count}
        assert with_nulls == {"years", "salary", "propensity"} & set(table.column_names)
    assert pc.count_distinct(market.members["member_id"]).as_py() == len(market.members) == 2_000
    assert pc.count_distinct(market.jobs["job_id"]).as_py() == len(market.jobs) == 1_000
    assert all(
        len(set(s)) == len(s) > 0 for s in market.members["skills"].to_pylist() + market.jobs["skills"].to_pylist()
    )


def test_market_json_counts_what_the_files_hold(market: Market) -> None:
    about = json.loads((market.folder / "market.json").read_text())
    assert {a: about["counts"][a] for a in ACTIONS} == {a: int((market.action == a).sum()) for a in ACTIONS}
    assert MarketConfig(**about["config"]) == MarketConfig(
        users=2_000, jobs=1_000, impressions=300_000, days=30, seed=1
    )
    assert about["counts"]["impression"] == 300_000
    assert market.time.min() >= about["start_us"]
    assert market.time.max() < about["end_us"]


def test_a_part_holds_the_events_of_one_day_in_order_of_time(market: Market) -> None:
    parts = sorted((market.folder / "events").iterdir())
    assert [p.name for p in parts] == [f"part-{day:05d}.parquet" for day in range(30)]
    for day, part in enumerate(parts):
        time = pq.read_table(part)["time"].cast(pa.int64()).to_numpy()
        assert (np.diff(time) >= 0).all()
        assert ((time - START) // DAY == day).all()


def test_the_truth_survives_the_disk_and_needs_no_pickle(tmp_path: Path, market: Market) -> None:
    market.truth.save(tmp_path)
    again = Truth.load(tmp_path)
    for name, array in vars(market.truth).items():
        np.testing.assert_array_equal(getattr(again, name), array, strict=True)
    with np.load(tmp_path / TRUTH, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "iufU" for name in arrays)


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    generate(SMALL, tmp_path / "market", lambda stage, share: told.append((stage, share)))
    assert told[:2] == [("members and jobs", 0.0), ("members and jobs", 1.0)]
    assert told[2:] == [("events", (day + 1) / 20) for day in range(20)]


def test_a_market_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "market")
    generate(replace(SMALL, days=10), tmp_path / "market")
    assert len(list((tmp_path / "market" / "events").iterdir())) == 10
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds something else; choose an empty or a new folder"):
        generate(SMALL, other)
    assert [p.name for p in other.iterdir()] == ["chapter.tex"]
    assert {p.name for p in tmp_path.iterdir()} == {"market", "thesis"}


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"users": 0}, "users is 0; set it to at least 1"),
        ({"impressions": 0}, "impressions is 0; set it to at least 1"),
        ({"days": 0}, "days is 0; set it to at least 1"),
        ({"seed": -1}, "seed is -1; set it to 0 or more"),
        ({"jobs": 40}, r"set jobs to at least days \+ 28 = 48"),
        ({"view_rate": 0.0}, "set it between 0.005 and 0.5"),
        ({"view_rate": float("nan")}, "set it between 0.005 and 0.5"),
    ],
)
def test_a_config_that_cannot_work_names_the_cure(change: dict[str, float], cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        MarketConfig(**{**asdict(SMALL), **change})


@pytest.mark.parametrize("size", [{"users": 1}, {"impressions": 1}, {"days": 1}, {"jobs": 48}])
def test_the_smallest_sizes_work(tmp_path: Path, size: dict[str, int]) -> None:
    config = replace(SMALL, **size)
    generate(config, tmp_path / "market")
    small = Market(tmp_path / "market")
    assert (small.action == "impression").sum() == config.impressions
    assert len(list((tmp_path / "market" / "events").iterdir())) == config.days


# ---- events follow from the truth -----------------------------------------------------------------


def test_every_job_is_live_when_something_happens_to_it(market: Market) -> None:
    posted, expires = (market.jobs[c].cast(pa.int64()).to_numpy() for c in ("posted", "expires"))
    assert (posted[market.job] <= market.time).all()
    assert (market.time < expires[market.job]).all()
    np.testing.assert_array_equal(posted, market.truth.posted)
    np.testing.assert_array_equal(expires, market.truth.expires)


def test_views_follow_impressions_and_saves_and_applications_follow_views_once_each(market: Market) -> None:
    first = {}
    for action in ACTIONS:
        chosen = market.action == action
        pairs, at = np.unique(market.pair[chosen], return_index=True)
        first[action] = dict(zip(pairs.tolist(), market.time[chosen][at].tolist(), strict=True))
        assert action == "impression" or len(pairs) == chosen.sum() > 0
    assert all(first["impression"][pair] <= time for pair, time in first["view"].items())
    for later in ("save", "apply"):
        assert all(first["view"][pair] <= time for pair, time in first[later].items())


def test_activity_differs_by_orders_of_magnitude(market: Market) -> None:
    shown = np.bincount(market.member[market.action == "impression"], minlength=2_000)
    assert np.quantile(shown, 0.99) > 10 * np.median(shown)
    assert (shown <= 10).sum() > 50  # at most one page


def test_propensities_of_a_market_small_enough_to_work_out_by_hand() -> None:
    """Three jobs in two cells: affinity · weight is 1·1, 1·2 and 0.5·4; the first job is posted later."""
    truth = Truth(
        member_id=np.array(["m"]),
        job_id=np.array([10, 11, 12]),
        group=np.array([0]),
        cell=np.array([0, 0, 1]),
        affinity=np.array([[1.0, 0.5]]),
        weight=np.array([1, 2, 4]),
        posted=np.array([100, 0, 0]),
        expires=np.array([200, 200, 200]),
        member=np.ones((1, 1), np.float32),
        job=np.array([[0.0], [1.0], [-1.0]], np.float32),
        bias=np.array(0.0),
    )
    jobs, group = np.arange(3), np.zeros(3, np.int64)
    for time, expected in ((99, [0, 0.5, 0.5]), (100, [0.2, 0.4, 0.4]), (199, [0.2, 0.4, 0.4])):
        np.testing.assert_allclose(truth.propensity(group, jobs, np.full(3, time)), expected)
        drawn = truth.draw(np.random.default_rng(0), np.zeros(30_000, np.int64), np.full(30_000, time))
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 30_000, expected, atol=0.012)  # 4 deviations
    np.testing.assert_array_equal(truth.propensity(group, jobs, np.full(3, 200)), [0, 0, 0])
    np.testing.assert_allclose(truth.view_probability(group, jobs), [0.5, 0.7311, 0.2689], atol=1e-4)


def brute_propensity(truth: Truth, member: int, time: int) -> np.ndarray:
    """[J] the formula of the module's docstring, job by job."""
    chance = np.zeros(len(truth.job_id))
    for j in range(len(chance)):
        if truth.posted[j] <= time < truth.expires[j]:
            chance[j] = truth.affinity[truth.group[member], truth.cell[j]] * truth.weight[j]
    return chance / chance.sum()


def test_the_logged_propensity_is_that_of_the_formula(market: Market) -> None:
    shown = np.flatnonzero(market.action == "impression")
    np.testing.assert_array_equal(np.isnan(market.propensity), market.action != "impression")
    for i in shown[:: len(shown) // 20]:
        expected = brute_propensity(market.truth, market.member[i], market.time[i])[market.job[i]]
        assert market.propensity[i] == pytest.approx(expected, rel=1e-9)


def test_jobs_are_drawn_as_often_as_their_propensity_says(market: Market) -> None:
    truth, draws = market.truth, 200_000
    member, time = 7, START + 11 * DAY + 12_345
    # Half of the draws belong to another moment, so that the pool holds jobs that are not live at the first.
    groups = np.full(draws, truth.group[member])
    times = np.where(np.arange(draws) % 2 == 0, time, time + DAY)
    drawn = truth.draw(np.random.default_rng(0), groups, times)
    for moment in (time, time + DAY):
        expected = brute_propensity(truth, member, moment) * draws / 2
        seen = np.bincount(drawn[times == moment], minlength=len(expected))
        assert seen[expected == 0].sum() == 0
        often = expected >= 5
        chi2 = ((seen - expected)[often] ** 2 / expected[often]).sum()
        assert abs(chi2 - often.sum()) < 4 * np.sqrt(2 * often.sum())  # mean k, variance 2k


def test_impressions_are_opened_as_often_as_planted(market: Market) -> None:
    # A pair that was shown once was opened with its probability, whatever else happened.
    shown = market.action == "impression"
    pairs, at, times = np.unique(market.pair[shown], return_index=True, return_counts=True)
    once, at = pairs[times == 1], at[times == 1]
    opened = np.isin(once, market.pair[market.action == "view"])
    planted = market.truth.view_probability(market.member[shown][at], market.job[shown][at])
    edges = [0, 0.01, 0.03, 0.1, 0.3, 0.6, 1]
    for low, high in itertools.pairwise(edges):
        bin_ = (planted >= low) & (planted < high)
        spread = np.sqrt((planted[bin_] * (1 - planted[bin_])).sum())
        assert bin_.sum() > 100
        assert abs(opened[bin_].sum() - planted[bin_].sum()) < 4 * spread


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3])
def test_view_rate_is_what_the_config_says(tmp_path: Path, rate: float) -> None:
    generate(replace(SMALL, users=2_000, jobs=400, impressions=40_000, view_rate=rate), tmp_path / "market")
    market = Market(tmp_path / "market")
    shown = market.action == "impression"
    mean = market.truth.view_probability(market.member[shown], market.job[shown]).mean()
    assert mean == pytest.approx(rate, rel=0.1)


def test_preference_follows_the_columns(market: Market) -> None:
    """What the story says of skills, sponsorship and seniority can be seen in the tables."""
    members, jobs = market.members.to_pylist(), market.jobs.to_pylist()
    rng = np.random.default_rng(0)
    m, j = rng.integers(0, len(members), 40_000), rng.integers(0, len(jobs), 40_000)
    preference = np.einsum("nd,nd->n", market.truth.member[m], market.truth.job[j])
    common = np.array([len(set(members[a]["skills"]) & set(jobs[b]["skills"])) for a, b in zip(m, j, strict=True)])
    assert preference[common >= 3].mean() > preference[common == 1].mean() > preference[common == 0].mean()
    needs = np.array([members[a]["work_authorisation"] == "needs sponsorship" for a in m])
    sponsors = np.array([jobs[b]["sponsors_visa"] for b in j])
    gain = lambda who: preference[who & sponsors].mean() - preference[who & ~sponsors].mean()  # noqa: E731
    assert gain(needs) - gain(~needs) == pytest.approx(2.0, abs=0.3)
    lead = np.array([members[a]["seniority"] == "lead" for a in m])
    junior_job = np.array([jobs[b]["title"].startswith(("Junior", "Graduate")) for b in j])
    assert preference[lead & ~junior_job].mean() > preference[lead & junior_job].mean()


# ---- the oracle -----------------------------------------------------------------------------------


def test_oracle_scores_are_the_log_of_shown_times_viewed(market: Market) -> None:
    truth, oracle = market.truth, Oracle.open(market.folder)
    members, times = np.array([5, 900, 5]), START + np.array([2, 15, 29]) * DAY
    jobs = np.arange(len(truth.job_id))[::-1]
    scores = oracle.scores(pa.array(truth.member_id[members]), truth.job_id[jobs], times)
    assert scores.shape == (3, len(jobs))
    assert scores.dtype == np.float32
    for row, member, time in zip(scores, members, times, strict=True):
        view = 1 / (1 + np.exp(-truth.bias - truth.job @ truth.member[member]))
        expected = brute_propensity(truth, member, time) * view
        np.testing.assert_allclose(np.exp(row), expected[jobs], rtol=1e-4)
        assert (np.isneginf(row) == (expected[jobs] == 0)).all()


def test_scores_do_not_depend_on_the_block_they_are_computed_in(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, truth = Oracle.open(market.folder), market.truth
    times = START + np.arange(20) * DAY
    whole = oracle.scores(truth.member_id[:20].tolist(), truth.job_id.tolist(), times)
    monkeypatch.setattr("data.market_truth._BLOCK", 7)
    np.testing.assert_allclose(oracle.scores(truth.member_id[:20].tolist(), truth.job_id, times), whole, rtol=1e-5)


def recall_at(k: int, scores: np.ndarray, target: np.ndarray) -> float:
    own = scores[np.arange(len(target)), target]
    return float(((scores > own[:, None]).sum(axis=1) < k).mean())


def test_no_other_ranking_finds_as_many_views_as_the_oracle(market: Market) -> None:
    truth, oracle = market.truth, Oracle.open(market.folder)
    views = np.flatnonzero(market.action == "view")[-3_000:]
    member, target, time = market.member[views], market.job[views], market.time[views]
    live = truth.live(np.arange(len(truth.job_id)), time[:, None])
    rank = lambda scores: recall_at(20, np.where(live, scores, -np.inf), target)  # noqa: E731
    best = rank(oracle.scores(pa.array(truth.member_id[member]), truth.job_id, time))
    shuffled = np.random.default_rng(0).permutation(member)
    popular = np.bincount(market.job[market.action == "view"], minlength=len(truth.job_id))
    policy = truth.affinity[truth.group[member]][:, truth.cell] * truth.weight
    preference = truth.member[member] @ truth.job.T
    others = {
        "another member": oracle.scores(pa.array(truth.member_id[shuffled]), truth.job_id, time),
        "popularity": np.broadcast_to(popular, live.shape),
        "policy": policy,
        "preference": preference,
    }
    found = {name: rank(scores) for name, scores in others.items()}
    assert all(best > recall + 0.02 for recall in found.values()), (best, found)
    assert best > 3 * max(found["another member"], found["popularity"]), (best, found)


def test_the_last_days_have_views_of_jobs_that_nobody_viewed_before(market: Market) -> None:
    boundary = START + 25 * DAY
    viewed = market.action == "view"
    before, after = market.job[viewed & (market.time < boundary)], market.job[viewed & (market.time >= boundary)]
    assert 0.1 < (~np.isin(after, before)).mean() < 0.3


def test_unknown_ids_and_a_missing_market_are_refused(market: Market, tmp_path: Path) -> None:
    oracle = Oracle.open(market.folder)
    with pytest.raises(DataError, match="1 member ids that this market does not have, m9999999"):
        oracle.scores(["m0000001", "m9999999"], [1], np.array([START, START]))
    with pytest.raises(DataError, match="1 job ids that this market does not have, 1 "):
        oracle.scores(["m0000001"], [1], np.array([START]))
    with pytest.raises(DataError, match="no synthetic market here"):
        Oracle.open(tmp_path)
