"""A synthetic job market with a known truth: raw logs like a job network's, and what produced them.

How an event comes about::

    member m ──opens the site──▶ a page at time t: ten places, each filled on its own by the
      │                          LOGGING POLICY with a job that is live (posted ≤ t < expires):
      │                            P(shown j | m, t) = affinity[m's field and place, j's] · weight_j / Z(m, t)
      │                          which is written into the log as `propensity`
      ▼
    impression ──────────────▶   VIEW, unless m has opened j before:
                                   P(view | shown) = sigmoid(bias + U_m · V_j)
                                     └──▶ SAVE and APPLICATION, each with sigmoid(its own bias + bias + U_m · V_j),
                                          seconds to hours later, before the job expires

Who is shown what: ``affinity`` is (closeness of the fields) · (closeness of the places), never 0, so
that every live job can be shown to everyone; ``weight`` is the job's popularity; ``Z`` sums over the jobs
live at that moment. All of it is in closed form: the propensities are exact.

Who likes what: preference is itself a dot product of two planted towers,
``U_m · V_j = skills + taste + seniority + place + work authorisation + quality + salary``:

- *skills*: every skill has a vector, near those of its role and field; a member (a job) is the
  direction of the sum of its skills, so that overlap is a cosine;
- *taste*: a few dimensions that no column shows. A job's taste is mostly its employer's, a member's is
  mostly that of the members of the same role and seniority; the rest is the job's (member's) own and
  can only be learnt from who opened what;
- *seniority*: a price for each step between the member's and the job's; *place*: closeness; *work
  authorisation*: a price if the member needs a sponsor and the job does not offer one;
- *quality*: the employer's and the job's own appeal, and a salary above the usual, if it is named.

Members differ in activity by orders of magnitude; jobs are posted throughout, so that the last days
show jobs that no earlier log has seen. ``bias`` is set so that about ``view_rate`` of the impressions
are opened. ``Oracle`` ranks by the truth.

Files in the market's folder (all times are timestamp[us, UTC])::

    members.parquet      member_id, field, skills, seniority, place, work_authorisation, years
    jobs.parquet         job_id, title, skills, employer, place, salary, sponsors_visa, posted, expires
    events/part-*.parquet  member_id, job_id, time, action, propensity; a part for each day, sorted by time
    truth/truth.npz      see ``Truth``
    market.json          config, counts, seed, version; written last

The same config gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.market_truth import DAY, HOUR, SECOND, Floats, Ints, Oracle, Truth, sigmoid
from data.market_world import LIFE, TIME, World, choose
from towers.errors import ConfigError

__all__ = ["ACTIONS", "MarketConfig", "Oracle", "Truth", "generate"]

VERSION = 1  # of the world: another one, other bytes for the same config
ACTIONS = ("impression", "view", "save", "apply")
START = 20_150 * DAY  # Monday, 3 March 2025
PAGE = 10  # jobs on a page
SAVE_BIAS, APPLY_BIAS = -1.8, -2.4  # log-odds, on top of those of the view
_HOURS = np.array([1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 9, 9, 10, 9, 9, 8, 8, 9, 9, 10, 9, 7, 4, 2], np.float64)
_WEEK = np.array([1.15, 1.15, 1.1, 1.05, 0.95, 0.7, 0.9])  # Monday first
_WORLD, _MEMBERS, _JOBS, _CALIBRATION, _EVENTS = range(5)  # independent random streams

_Events = dict[str, NDArray[Any]]  # member, job (rows), time, action (code), propensity: columns of one length


@dataclass(frozen=True)
class MarketConfig:
    """How large a market, for how long, and which one.

    Attributes:
        users: members.
        jobs: jobs over the whole period; about a fifth of them is live at a time.
        impressions: jobs shown; some 12 % more events follow from them.
        days: length of the log.
        view_rate: share of impressions of jobs not opened before that are opened.
        seed: another seed, another market.

    Raises:
        ConfigError: a number is out of its range, or leaves moments without a live job.
    """

    users: int = 20_000
    jobs: int = 12_000
    impressions: int = 4_000_000
    days: int = 60
    view_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings together, each error naming the cure."""
        for name in ("users", "impressions", "days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"market: {name} is {getattr(self, name)}; set it to at least 1")
        if self.seed < 0:
            raise ConfigError(f"market: seed is {self.seed}; set it to 0 or more")
        if self.jobs < self.days + LIFE[1]:
            raise ConfigError(
                f"market: {self.jobs} jobs over {self.days} days leave moments without a live job; "
                f"set jobs to at least days + {LIFE[1]} = {self.days + LIFE[1]}"
            )
        if not 0.005 <= self.view_rate <= 0.5:
            raise ConfigError(f"market: view_rate is {self.view_rate}; set it between 0.005 and 0.5")

    @property
    def end(self) -> int:
        """First microsecond after the log."""
        return START + self.days * DAY

    def random(self, *stream: int) -> np.random.Generator:
        """An independent random stream of this market."""
        return np.random.default_rng([self.seed, *stream])


def generate(config: MarketConfig, folder: Path, progress: Callable[[str, float], None] | None = None) -> None:
    """Write the market into ``folder``, which appears under its name only when complete.

    Args:
        config: which market.
        folder: where; a market that is there already is replaced.
        progress: told the stage and its share done, from 0 to 1.

    Raises:
        ConfigError: the folder holds something that is not a market, or the market is too small.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "market.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"market: {folder} holds something else; choose an empty or a new folder")
    tell = progress or (lambda _stage, _share: None)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "events").mkdir(parents=True)

    tell("members and jobs", 0.0)
    truth, activity = _write_members_and_jobs(config, partial)
    tell("members and jobs", 1.0)
    counts = np.zeros(len(ACTIONS), np.int64)
    for day, events in enumerate(_days(config, truth, activity)):
        pq.write_table(_event_table(truth, events), partial / "events" / f"part-{day:05d}.parquet")
        counts += np.bincount(events["action"], minlength=len(ACTIONS))
        tell("events", (day + 1) / config.days)

    counted = {"members": config.users, "jobs": config.jobs, **dict(zip(ACTIONS, counts.tolist(), strict=True))}
    about = {"version": VERSION, "config": asdict(config), "seed": config.seed, "counts": counted}
    about |= {"start_us": START, "end_us": config.end}
    (partial / "market.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_members_and_jobs(config: MarketConfig, folder: Path) -> tuple[Truth, Floats]:
    """The truth, and the members' activity ``[M]``."""
    world = World.make(config.random(_WORLD))
    members = world.members(config.random(_MEMBERS), config.users)
    jobs = world.jobs(config.random(_JOBS), config.jobs, START, config.end)
    truth = Truth(
        member_id=members.id,
        job_id=jobs.id,
        group=members.group,
        cell=jobs.cell,
        affinity=world.affinity(),
        weight=jobs.weight,
        posted=jobs.posted,
        expires=jobs.expires,
        member=members.tower.astype(np.float32),
        job=jobs.tower.astype(np.float32),
        bias=np.array(0.0),
    )
    truth = replace(truth, bias=_bias(config, truth, members.activity))
    pq.write_table(members.table, folder / "members.parquet")
    pq.write_table(jobs.table, folder / "jobs.parquet")
    truth.save(folder)
    return truth, members.activity


def _bias(config: MarketConfig, truth: Truth, activity: Floats) -> Floats:
    """The bias that gives ``view_rate`` on a sample of impressions."""
    ends = truth.expires[(truth.expires > START) & (truth.expires < config.end)]
    if not truth.live_weight(np.append(ends, START)).sum(axis=1).all():
        raise ConfigError(f"market: with {config.jobs} jobs there are moments without a live job; set jobs higher")
    rng = config.random(_CALIBRATION)
    members = choose(rng, activity, 20_000)
    times = START + (rng.random(len(members)) * (config.end - START)).astype(np.int64)
    jobs = truth.draw(rng, truth.group[members], times)
    preference = np.einsum("nd,nd->n", truth.member[members], truth.job[jobs])
    low, high = -50.0, 50.0
    while high - low > 1e-6:  # bisection: the rate grows with the bias
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(middle + preference).mean() < config.view_rate else (low, middle)
    return np.array(low)


def _days(config: MarketConfig, truth: Truth, activity: Floats) -> Iterator[_Events]:
    """The events of each day, sorted by time; what follows an impression may fall on a later day."""
    week = _WEEK[np.arange(config.days) % 7]
    impressions = config.random(_EVENTS).multinomial(config.impressions, week / week.sum())
    opened = np.empty(0, np.int64)  # pairs so far: member · J + job, sorted
    later: list[_Events] = []
    for day, many in enumerate(impressions.tolist()):
        rng, midnight = config.random(_EVENTS, day), START + day * DAY
        shown = _impressions(rng, truth, activity, midnight, many, config.end)
        followed, opened = _followed(rng, truth, shown, opened, config.end)
        events = _concatenate([shown, followed, *later])
        events = _take(events, np.argsort(events["time"], kind="stable"))
        tomorrow = midnight + DAY if midnight + DAY < config.end else None
        cut = len(events["time"]) if tomorrow is None else int(np.searchsorted(events["time"], tomorrow))
        later = [_take(events, slice(cut, None))]
        yield _take(events, slice(None, cut))


def _impressions(
    rng: np.random.Generator, truth: Truth, activity: Floats, midnight: int, many: int, end: int
) -> _Events:
    """``many`` impressions of a day, sorted by time: pages, a few seconds for each job."""
    pages = -(-many // PAGE)
    readers = choose(rng, activity, pages)
    begin = midnight + ((choose(rng, _HOURS, pages) + rng.random(pages)) * HOUR).astype(np.int64)
    reading = np.cumsum(rng.integers(SECOND // 2, 4 * SECOND, (pages, PAGE)), axis=1)
    times = np.minimum(begin[:, None] + reading, end - 1).ravel()[:many]
    order = np.argsort(times, kind="stable")
    members, times = np.repeat(readers, PAGE)[order], times[order]
    groups = truth.group[members]
    jobs = truth.draw(rng, groups, times)
    propensity = truth.propensity(groups, jobs, times)
    return {"member": members, "job": jobs, "time": times, "action": np.zeros_like(jobs), "propensity": propensity}


def _followed(rng: np.random.Generator, truth: Truth, shown: _Events, opened: Ints, end: int) -> tuple[_Events, Ints]:
    """Views, saves and applications that follow from impressions, and the pairs opened so far."""
    members, jobs = shown["member"], shown["job"]
    until = np.minimum(truth.expires[jobs], end)

    def after(rows: Ints, action: int, since: Ints, median: int, spread: float) -> _Events:
        delay = (median * rng.lognormal(0.0, spread, len(rows))).astype(np.int64)
        time = since + np.minimum(delay, (until[rows] - 1 - since) // 2)  # before the job, or the log, ends
        unshown = np.full(len(rows), np.nan)
        codes = np.full(len(rows), action)
        return {"member": members[rows], "job": jobs[rows], "time": time, "action": codes, "propensity": unshown}

    chance = truth.view_probability(members, jobs)
    hits = np.flatnonzero(rng.random(len(chance)) < chance)
    pairs, earliest = np.unique(members[hits] * len(truth.job_id) + jobs[hits], return_index=True)
    at = np.searchsorted(opened, pairs)
    new = np.append(opened, -1)[at] != pairs
    hits, opened = np.sort(hits[earliest[new]]), np.insert(opened, at[new], pairs[new])

    views = after(hits, 1, shown["time"][hits], 6 * SECOND, 0.8)
    logit = np.log(chance[hits]) - np.log1p(-chance[hits])
    saved = rng.random(len(hits)) < sigmoid(SAVE_BIAS + logit)
    applied = rng.random(len(hits)) < sigmoid(APPLY_BIAS + logit)
    saves = after(hits[saved], 2, views["time"][saved], 90 * SECOND, 1.0)
    applications = after(hits[applied], 3, views["time"][applied], HOUR // 2, 1.5)
    return _concatenate([views, saves, applications]), opened


def _event_table(truth: Truth, events: _Events) -> pa.Table:
    """Events as they are written."""
    return pa.table(
        {
            "member_id": pa.array(truth.member_id).take(pa.array(events["member"])),
            "job_id": pa.array(truth.job_id[events["job"]]),
            "time": pa.array(events["time"], TIME),
            "action": pa.array(ACTIONS).take(pa.array(events["action"])),
            "propensity": pa.array(events["propensity"], mask=events["action"] != 0),
        }
    )


def _concatenate(parts: list[_Events]) -> _Events:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _take(events: _Events, rows: Ints | slice) -> _Events:
    return {name: column[rows] for name, column in events.items()}
