"""A synthetic job market with a known truth: raw logs like a job network's, and what produced them.

How an event comes about::

    member m ──opens the site──▶ a page at time t: ten places, each filled on its own by the
      │                          LOGGING POLICY with a job that is live (posted ≤ t < expires):
      │                            P(shown j | m, t) = affinity[m's field and place, j's] · weight_j / Z(m, t)
      │                          which is written into the log as `propensity`
      ▼
    impression ──────────────▶   VIEW, unless m has opened j before:
                                   P(view | shown) = sigmoid(bias + U_m · V_j)
                                     └──▶ SAVE and APPLICATION, each with sigmoid(its bias + U_m · V_j),
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

from data import market_text as text
from data.market_truth import Floats, Ints, Oracle, Truth, sigmoid
from towers.errors import ConfigError

__all__ = ["ACTIONS", "MarketConfig", "Oracle", "Truth", "generate"]

VERSION = 1
ACTIONS = ("impression", "view", "save", "apply")
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000  # microseconds
START = 20_150 * DAY  # Monday, 3 March 2025
TIME = pa.timestamp("us", tz="UTC")
PAGE = 10  # jobs on a page
LIFE = (7, 28)  # days that a job stays live

# How much each part of the world weighs. Chosen so that a ranking by the truth finds about two thirds of the
# views among its first hundred jobs, popularity a tenth, and content a good part of the way.
SKILL_DIM, TASTE_DIM = 16, 6
SKILLS, TASTE, SENIORITY, PLACE, SPONSOR, QUALITY, SALARY = 4.0, 1.8, 0.8, 0.8, 2.0, 0.5, 0.4
POPULARITY = 0.4  # spread of the log of the policy weight
EMPLOYER_SHARE, ROLE_SHARE = 0.75, 0.7  # variance of a taste that the employer (the role) explains
FIELD_CLOSENESS = (1.0, 0.12, 0.03)  # the same field, a related one, any other
PLACE_REACH, PLACE_FLOOR, REMOTE_CLOSENESS = 250.0, 0.1, 0.6  # kilometres; closeness of the farthest city
SAVE_BIAS, APPLY_BIAS = -1.6, -1.8

# Seeds of the independent random streams; the days of the log are streams of their own.
_WORLD, _MEMBERS, _JOBS, _CALIBRATION, _EVENTS = range(5)


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
    """

    users: int = 20_000
    jobs: int = 12_000
    impressions: int = 3_000_000
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
        ConfigError: the folder holds something that is not a market.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "market.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"market: {folder} holds something else; choose an empty or a new folder")
    tell = progress or (lambda _stage, _share: None)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "events").mkdir(parents=True)

    tell("members and jobs", 0.0)
    world = _World(config)
    truth, members, jobs, activity = _people_and_jobs(config, world)
    pq.write_table(members, partial / "members.parquet")
    pq.write_table(jobs, partial / "jobs.parquet")
    truth.save(partial)
    tell("members and jobs", 1.0)

    counts = np.zeros(len(ACTIONS), np.int64)
    for day, events in enumerate(_days(config, truth, activity)):
        pq.write_table(_event_table(truth, events), partial / "events" / f"part-{day:05d}.parquet")
        counts += np.bincount(events["action"], minlength=len(ACTIONS))
        tell("events", (day + 1) / config.days)

    about = {
        "version": VERSION,
        "config": asdict(config),
        "seed": config.seed,
        "counts": {"members": config.users, "jobs": config.jobs, **dict(zip(ACTIONS, counts.tolist(), strict=True))},
        "start": START,
        "end": START + config.days * DAY,
    }
    (partial / "market.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class _World:
    """What members and jobs have in common: closeness, skill vectors, tastes, shares."""

    def __init__(self, config: MarketConfig) -> None:
        rng = config.random(_WORLD)
        fields, roles, cities = len(text.FIELDS), len(text.ROLES), len(text.CITIES)
        self.role_field = np.array([r.field for r in text.ROLES])
        self.field_share = _shares(fields, 0.5)
        self.city_share = _shares(cities, 0.7)

        ring = np.abs(np.arange(fields)[:, None] - np.arange(fields))
        ring = np.minimum(ring, fields - ring)  # neighbours in the list (round the end) are related
        self.field_closeness = np.select([ring == 0, ring == 1], FIELD_CLOSENESS[:2], FIELD_CLOSENESS[2])  # [F, F]
        at = np.array(list(text.PLACES.values()), np.float64)
        km = np.linalg.norm(at[:, None] - at, axis=-1)
        near = np.exp(-km / PLACE_REACH) + PLACE_FLOOR
        self.place_closeness = np.hstack([near, np.full((cities, 1), REMOTE_CLOSENESS)])  # [city, city or remote]

        # Skill vectors: field, role and skill each add their part.
        per_role, general = len(text.ROLES[0].skills), len(text.GENERAL_SKILLS)
        normal = lambda n: rng.standard_normal((n, SKILL_DIM))  # noqa: E731
        of_role = normal(fields)[self.role_field] + 0.8 * normal(roles)
        special = np.repeat(of_role, per_role, axis=0) + 0.5 * normal(roles * per_role)
        self.skill_vector = np.vstack([special, 0.3 * normal(general)])  # [S, D]
        # How likely a role is to list a skill: its own, those of its field, the general ones, any.
        owner = np.repeat(np.arange(roles), per_role)
        same_field = self.role_field[owner] == self.role_field[:, None]
        own = owner == np.arange(roles)[:, None]
        listed = np.select([own, same_field], [1.0, 0.15], 0.003)
        self.skill_chance = np.hstack([listed, np.full((roles, general), 0.12)])  # [R, S]

        self.role_taste = rng.standard_normal((roles, len(text.SENIORITY), TASTE_DIM))

    def skills(self, rng: np.random.Generator, roles: Ints, least: int, most: int) -> tuple[pa.Array, Floats]:
        """For each of ``[n]`` roles a list of distinct skills (list<string>) and their direction ``[n, D]``."""
        many = rng.integers(least, most + 1, len(roles))
        chosen = np.empty((len(roles), most), np.int64)
        for start in range(0, len(roles), 1 << 14):  # Gumbel top-k draws without replacement
            chance = np.log(self.skill_chance[roles[start : start + (1 << 14)]])
            keys = chance + rng.gumbel(size=chance.shape)
            chosen[start : start + (1 << 14)] = np.argsort(-keys, axis=1)[:, :most]
        kept = np.arange(most) < many[:, None]
        total = np.einsum("nk,nkd->nd", kept.astype(np.float64), self.skill_vector[chosen])
        offsets = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
        names = pa.array(text.SKILLS).take(pa.array(chosen[kept]))
        return pa.ListArray.from_arrays(offsets, names), total / np.linalg.norm(total, axis=1, keepdims=True)

    def affinity(self) -> Floats:
        """``[G, C]``: group = field · cities + city; cell = field · (cities + 1) + city or remote."""
        return np.kron(self.field_closeness, self.place_closeness)


def _people_and_jobs(config: MarketConfig, world: _World) -> tuple[Truth, pa.Table, pa.Table, Floats]:
    """The truth, the members' and the jobs' tables, and the members' activity ``[M]``."""
    cities, levels = len(text.CITIES), len(text.SENIORITY)

    rng, n = config.random(_MEMBERS), config.users
    role = _choose(rng, np.repeat(world.field_share, 3), n)
    city = _choose(rng, world.city_share, n)
    level = _choose(rng, np.array([0.3, 0.35, 0.25, 0.1]), n)
    needs = _choose(rng, np.array([0.75, 0.13, 0.12]), n)
    years = np.round(rng.gamma(2.0, 0.5 + level**1.6), 1)
    skills, direction = world.skills(rng, role, 4, 8)
    own = rng.standard_normal((n, TASTE_DIM))
    taste = np.sqrt(ROLE_SHARE) * world.role_taste[role, level] + np.sqrt(1 - ROLE_SHARE) * own
    activity = rng.gamma(0.6, 1.0, n) * rng.lognormal(0.0, 0.5, n)
    member_id = np.char.add("m", np.char.zfill(np.arange(n).astype(np.str_), 7))
    member = np.hstack(
        [direction, taste, np.eye(levels)[level], np.eye(cities)[city], (needs == 2)[:, None], np.ones((n, 1))]
    )
    group = world.role_field[role] * cities + city
    members = pa.table(
        {
            "member_id": pa.array(member_id),
            "field": pa.array(list(text.FIELDS)).take(pa.array(world.role_field[role])),
            "skills": skills,
            "seniority": pa.array(text.SENIORITY).take(pa.array(level)),
            "place": pa.array(text.CITIES).take(pa.array(city)),
            "work_authorisation": pa.array(text.AUTHORISATIONS).take(pa.array(needs)),
            "years": pa.array(years, mask=rng.random(n) < 0.1),
        }
    )

    rng, n = config.random(_JOBS), config.jobs
    life = rng.integers(LIFE[0] * DAY, LIFE[1] * DAY, n)
    # Steady from the first day: life overlaps the log in proportion to its length.
    posted = START - life + (rng.random(n) * (config.days * DAY + life)).astype(np.int64)
    order = np.argsort(posted, kind="stable")
    life, posted = life[order] // SECOND * SECOND, posted[order] // SECOND * SECOND

    firms = max(10, n // 40)
    firm = _choose(rng, _shares(firms, 0.6), n)
    home_field, home_city = _choose(rng, world.field_share, firms), _choose(rng, world.city_share, firms)
    firm_taste, firm_quality = rng.standard_normal((firms, TASTE_DIM)), rng.standard_normal(firms)
    job_field = np.where(rng.random(n) < 0.6, home_field[firm], _choose(rng, world.field_share, n))
    role = job_field * 3 + rng.integers(0, 3, n)
    city = np.where(rng.random(n) < 0.6, home_city[firm], _choose(rng, world.city_share, n))
    place = np.where(rng.random(n) < 0.1, cities, city)  # `cities` stands for remote
    level = _choose(rng, np.array([0.25, 0.4, 0.25, 0.1]), n)
    sponsors = rng.random(n) < 0.3
    premium = rng.standard_normal(n)
    usual = np.log(32_000) + 0.28 * level + 0.15 * np.sin(job_field)
    salary = np.round(np.exp(usual + 0.12 * premium), -2)
    unnamed = rng.random(n) < 0.25
    skills, direction = world.skills(rng, role, 4, 7)
    own = rng.standard_normal((n, TASTE_DIM))
    taste = np.sqrt(EMPLOYER_SHARE) * firm_taste[firm] + np.sqrt(1 - EMPLOYER_SHARE) * own
    quality = np.sqrt(0.5) * (firm_quality[firm] + rng.standard_normal(n))
    popularity = POPULARITY * (rng.standard_normal(n) + 0.5 * quality)
    job_id = 1_000_000 + np.cumsum(rng.integers(1, 10, n))
    job = np.hstack(
        [
            SKILLS * direction,
            TASTE / np.sqrt(TASTE_DIM) * taste,
            -SENIORITY * np.abs(level[:, None] - np.arange(levels)),
            PLACE * world.place_closeness[:, place].T,
            -SPONSOR * ~sponsors[:, None],
            (QUALITY * quality + SALARY * np.where(unnamed, 0.0, premium))[:, None],
        ]
    )
    titles = [
        text.title(*row) for row in zip(role.tolist(), level.tolist(), rng.integers(0, 2, n).tolist(), strict=True)
    ]
    jobs = pa.table(
        {
            "job_id": pa.array(job_id),
            "title": pa.array(titles),
            "skills": skills,
            "employer": pa.array([text.employer(i) for i in range(firms)]).take(pa.array(firm)),
            "place": pa.array([*text.CITIES, text.REMOTE]).take(pa.array(place)),
            "salary": pa.array(salary, mask=unnamed),
            "sponsors_visa": pa.array(sponsors),
            "posted": pa.array(posted, TIME),
            "expires": pa.array(posted + life, TIME),
        }
    )

    truth = Truth(
        member_id=member_id,
        job_id=job_id,
        group=group,
        cell=job_field * (cities + 1) + place,
        affinity=world.affinity(),
        weight=np.maximum(1, np.round(1000 * np.exp(popularity))).astype(np.int64),
        posted=posted,
        expires=posted + life,
        member=member.astype(np.float32),
        job=job.astype(np.float32),
        bias=np.array(0.0),
    )
    return _calibrated(config, truth, activity), members, jobs, activity


def _calibrated(config: MarketConfig, truth: Truth, activity: Floats) -> Truth:
    """The truth with the bias that gives ``view_rate`` on a sample of impressions."""
    ends = truth.expires[(truth.expires > START) & (truth.expires < START + config.days * DAY)]
    gaps = truth.live_weight(np.append(ends, START)).sum(1) == 0
    if gaps.any():
        raise ConfigError(f"market: with {config.jobs} jobs there are moments without a live job; set jobs higher")
    rng = config.random(_CALIBRATION)
    members = _choose(rng, activity / activity.sum(), 20_000)
    times = START + (rng.random(len(members)) * config.days * DAY).astype(np.int64)
    jobs = truth.draw(rng, truth.group[members], times)
    preference = np.einsum("nd,nd->n", truth.member[members], truth.job[jobs])
    low, high = -50.0, 50.0
    while high - low > 1e-6:  # bisection: the rate grows with the bias
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(middle + preference).mean() < config.view_rate else (low, middle)
    return replace(truth, bias=np.array(low))


_Events = dict[str, NDArray[Any]]  # member, job (rows), time, action, propensity: columns of one length
_HOURS = np.array([1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 9, 9, 10, 9, 9, 8, 8, 9, 9, 10, 9, 7, 4, 2], np.float64)
_WEEK = np.array([1.15, 1.15, 1.1, 1.05, 0.95, 0.7, 0.9])  # Monday first


def _days(config: MarketConfig, truth: Truth, activity: Floats) -> Iterator[_Events]:
    """The events of each day, sorted by time; what follows an impression may fall on a later day."""
    days = np.arange(config.days)
    many = config.random(_EVENTS).multinomial(config.impressions, _WEEK[days % 7] / _WEEK[days % 7].sum())
    end = START + config.days * DAY
    opened = np.empty(0, np.int64)  # member · J + job, sorted
    later: _Events | None = None
    for day in days.tolist():
        rng = config.random(_EVENTS, day)
        members, times = _visits(config, rng, activity, START + day * DAY, int(many[day]), end)
        jobs = truth.draw(rng, truth.group[members], times) if len(times) else np.empty(0, np.int64)
        shown = {"member": members, "job": jobs, "time": times, "action": np.zeros(len(times), np.int64)}
        shown["propensity"] = truth.propensity(truth.group[members], jobs, times)
        followed, opened = _followed(rng, truth, shown, opened, end)
        events = _concatenate([shown, followed] + ([later] if later else []))
        events = _take(events, np.argsort(events["time"], kind="stable"))
        cut = (
            len(events["time"]) if day == config.days - 1 else np.searchsorted(events["time"], START + (day + 1) * DAY)
        )
        later = _take(events, slice(cut, None))
        yield _take(events, slice(None, cut))


def _visits(
    config: MarketConfig, rng: np.random.Generator, activity: Floats, midnight: int, many: int, end: int
) -> tuple[Ints, Ints]:
    """Member and time of each of ``many`` impressions of a day, sorted by time: pages, a few seconds a job."""
    pages = -(-many // PAGE)
    members = _choose(rng, activity / activity.sum(), pages)
    opened = midnight + ((_choose(rng, _HOURS / _HOURS.sum(), pages) + rng.random(pages)) * HOUR).astype(np.int64)
    reading = np.cumsum(rng.integers(SECOND // 2, 4 * SECOND, (pages, PAGE)), axis=1)
    times = np.minimum(opened[:, None] + reading, end - 1).ravel()[:many]
    order = np.argsort(times, kind="stable")
    return np.repeat(members, PAGE)[:many][order], times[order]


def _followed(rng: np.random.Generator, truth: Truth, shown: _Events, opened: Ints, end: int) -> tuple[_Events, Ints]:
    """Views, saves and applications that follow from impressions, and the pairs opened so far."""
    members, jobs = shown["member"], shown["job"]
    chance = truth.view_probability(members, jobs)
    hit = np.flatnonzero(rng.random(len(members)) < chance)
    pair = members[hit] * len(truth.job_id) + jobs[hit]
    _, first = np.unique(pair, return_index=True)  # impressions are in order of time: the earliest wins
    first = np.sort(first)
    at = np.minimum(np.searchsorted(opened, pair[first]), max(len(opened) - 1, 0))
    fresh = first if not len(opened) else first[opened[at] != pair[first]]
    hit, opened = hit[fresh], np.sort(np.concatenate([opened, pair[fresh]]), kind="stable")

    until = np.minimum(truth.expires[jobs], end)

    def after(rows: Ints, action: int, since: Ints, median: int, spread: float) -> _Events:
        delay = (median * rng.lognormal(0.0, spread, len(rows))).astype(np.int64)
        time = since + np.minimum(delay, (until[rows] - 1 - since) // 2)  # before the job, or the log, ends
        none = np.full(len(rows), np.nan)
        codes = np.full(len(rows), action)
        return {"member": members[rows], "job": jobs[rows], "time": time, "action": codes, "propensity": none}

    views = after(hit, 1, shown["time"][hit], 6 * SECOND, 0.8)
    logit = np.log(chance[hit]) - np.log1p(-chance[hit])
    saved = rng.random(len(hit)) < sigmoid(SAVE_BIAS + logit)
    applied = rng.random(len(hit)) < sigmoid(APPLY_BIAS + logit)
    saves = after(hit[saved], 2, views["time"][saved], 90 * SECOND, 1.0)
    applications = after(hit[applied], 3, views["time"][applied], HOUR // 2, 1.5)
    return _concatenate([views, saves, applications]), opened


def _event_table(truth: Truth, events: _Events) -> pa.Table:
    """Events as they are written."""
    names = pa.DictionaryArray.from_arrays(pa.array(events["action"].astype(np.int8)), pa.array(ACTIONS))
    return pa.table(
        {
            "member_id": pa.array(truth.member_id[events["member"]]),
            "job_id": pa.array(truth.job_id[events["job"]]),
            "time": pa.array(events["time"], TIME),
            "action": names.cast(pa.string()),
            "propensity": pa.array(events["propensity"], mask=events["action"] != 0),
        }
    )


def _concatenate(parts: list[_Events]) -> _Events:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _take(events: _Events, rows: Ints | slice) -> _Events:
    return {name: column[rows] for name, column in events.items()}


def _choose(rng: np.random.Generator, shares: Floats, n: int) -> Ints:
    """``[n]`` draws with the given probabilities."""
    steps = np.cumsum(shares)
    return np.searchsorted(steps[:-1] / steps[-1], rng.random(n), side="right")


def _shares(n: int, steepness: float) -> Floats:
    """``[n]`` probabilities that fall like a power of the rank (Zipf)."""
    weight = np.arange(1, n + 1, dtype=np.float64) ** -steepness
    return weight / weight.sum()
