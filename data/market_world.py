"""Members and jobs of the synthetic market: what their columns say, and their planted towers.

See ``data.market`` for the story. Shapes: ``F`` fields of study, ``R`` roles, ``S`` skills, ``n`` members or
jobs, ``G`` groups of members and ``C`` cells of jobs (both are (field, place) pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import market_text as text
from data.market_truth import DAY, SECOND, Floats, Ints

TIME = pa.timestamp("us", tz="UTC")
LIFE = (7, 28)  # days that a job stays live

# The weight of each part of the preference, in log-odds of a view. Together with the closeness below they
# are chosen so that a ranking by the truth finds about three quarters of the views among its first hundred jobs,
# popularity a tenth, and a small two-tower model close to 90 % of what the truth finds.
SKILLS, TASTE, SENIORITY, PLACE, SPONSOR, QUALITY, SALARY = 3.5, 1.6, 0.8, 0.8, 2.0, 0.5, 0.4
SKILL_DIM, TASTE_DIM = 16, 6
EMPLOYER_SHARE, ROLE_SHARE = 0.85, 0.9  # variance of a taste that the employer (the role) explains
FIELD_CLOSENESS = (1.0, 0.2, 0.06)  # the same field, a related one, any other
PLACE_REACH, PLACE_FLOOR, REMOTE_CLOSENESS = 350.0, 0.2, 0.8  # kilometres; the farthest city; remote work
POPULARITY = 0.4  # spread of the log of a job's weight in the logging policy

_CITIES, _LEVELS = len(text.CITIES), len(text.SENIORITY)
_REMOTE = _CITIES  # place code of remote jobs, after the cities


class Members(NamedTuple):
    """``[n]`` members: raw table, external ids, group, tower ``[n, D]`` and activity (a relative rate)."""

    table: pa.Table
    id: NDArray[np.str_]
    group: Ints
    tower: Floats
    activity: Floats


class Jobs(NamedTuple):
    """``[n]`` jobs in the order of posting: raw table, external ids, cell, tower ``[n, D]``, policy weight, life."""

    table: pa.Table
    id: Ints
    cell: Ints
    tower: Floats
    weight: Ints
    posted: Ints
    expires: Ints


@dataclass(frozen=True)
class World:
    """What members and jobs have in common.

    Attributes:
        role_field: ``[R]`` field of each role.
        field_closeness: ``[F, F]``.
        place_closeness: ``[cities, cities + 1]``; the last column is remote work.
        skill_vector: ``[S, SKILL_DIM]``, near those of the skill's role and field.
        skill_chance: ``[R, S]`` relative chance that one of the role lists a skill.
        role_taste: ``[R, levels, TASTE_DIM]`` mean taste of the members of a role and seniority.
        field_share: ``[F]`` share of members (and employers) by field.
        city_share: ``[cities]`` likewise.
    """

    role_field: Ints
    field_closeness: Floats
    place_closeness: Floats
    skill_vector: Floats
    skill_chance: Floats
    role_taste: Floats
    field_share: Floats
    city_share: Floats

    @classmethod
    def make(cls, rng: np.random.Generator) -> World:
        """A world of its own for each random stream."""
        fields, roles, general = len(text.FIELDS), len(text.ROLES), len(text.GENERAL_SKILLS)
        per_role = len(text.ROLES[0].skills)
        role_field = np.array([r.field for r in text.ROLES])

        ring = np.abs(np.arange(fields)[:, None] - np.arange(fields))
        ring = np.minimum(ring, fields - ring)  # neighbours in the list, round its end, are related
        at = np.array(list(text.PLACES.values()), np.float64)
        km = np.linalg.norm(at[:, None] - at, axis=-1)
        near = np.exp(-km / PLACE_REACH) + PLACE_FLOOR

        of_field = rng.standard_normal((fields, SKILL_DIM))
        of_role = of_field[role_field] + 0.8 * rng.standard_normal((roles, SKILL_DIM))
        special = np.repeat(of_role, per_role, axis=0) + 0.5 * rng.standard_normal((roles * per_role, SKILL_DIM))
        owner = np.repeat(np.arange(roles), per_role)
        own, same_field = owner == np.arange(roles)[:, None], role_field[owner] == role_field[:, None]
        return cls(
            role_field=role_field,
            field_closeness=np.select([ring == 0, ring == 1], FIELD_CLOSENESS[:2], FIELD_CLOSENESS[2]),
            place_closeness=np.hstack([near, np.full((_CITIES, 1), REMOTE_CLOSENESS)]),
            skill_vector=np.vstack([special, 0.3 * rng.standard_normal((general, SKILL_DIM))]),
            skill_chance=np.hstack([np.select([own, same_field], [1.0, 0.15], 0.003), np.full((roles, general), 0.12)]),
            role_taste=rng.standard_normal((roles, _LEVELS, TASTE_DIM)),
            field_share=_falling(fields, 0.5),
            city_share=_falling(_CITIES, 0.7),
        )

    def affinity(self) -> Floats:
        """``[G, C]`` of the logging policy: closeness of the fields times closeness of the places."""
        return np.asarray(np.kron(self.field_closeness, self.place_closeness))

    def members(self, rng: np.random.Generator, n: int) -> Members:
        """``n`` members."""
        role = choose(rng, np.repeat(self.field_share, len(text.ROLES) // len(text.FIELDS)), n)
        city = choose(rng, self.city_share, n)
        level = choose(rng, np.array([0.3, 0.35, 0.25, 0.1]), n)
        authorisation = choose(rng, np.array([0.75, 0.13, 0.12]), n)
        years = np.round(rng.gamma(2.0, 0.5 + level**1.6), 1)
        skills, direction = self._skills(rng, role, 4, 8)
        own = rng.standard_normal((n, TASTE_DIM))
        taste = np.sqrt(ROLE_SHARE) * self.role_taste[role, level] + np.sqrt(1 - ROLE_SHARE) * own
        activity = rng.gamma(0.6, 1.0, n) * rng.lognormal(0.0, 0.5, n)
        ids = np.char.add("m", np.char.zfill(np.arange(n).astype(np.str_), 7))
        sponsor = text.AUTHORISATIONS.index("needs sponsorship")
        table = {
            "member_id": pa.array(ids),
            "field": _named(tuple(text.FIELDS), self.role_field[role]),
            "skills": skills,
            "seniority": _named(text.SENIORITY, level),
            "place": _named(text.CITIES, city),
            "work_authorisation": _named(text.AUTHORISATIONS, authorisation),
            "years": pa.array(years, mask=rng.random(n) < 0.1),
        }
        parts = [direction, taste, np.eye(_LEVELS)[level], np.eye(_CITIES)[city]]
        tower = np.column_stack([*parts, authorisation == sponsor, np.ones(n)])
        return Members(pa.table(table), ids, self.role_field[role] * _CITIES + city, tower, activity)

    def jobs(self, rng: np.random.Generator, n: int, start: int, end: int) -> Jobs:
        """``n`` jobs, each live for some time between ``start`` and ``end`` (microseconds UTC).

        As many are live on the first day as on the last: those posted before ``start`` are there too.
        """
        life = rng.integers(LIFE[0] * DAY, LIFE[1] * DAY, n) // SECOND * SECOND
        posted = (start - life + (rng.random(n) * (end - start + life)).astype(np.int64)) // SECOND * SECOND
        order = np.argsort(posted, kind="stable")
        life, posted = life[order], posted[order]

        firms = max(10, n // 40)
        firm = choose(rng, _falling(firms, 0.6), n)
        home_field, home_city = choose(rng, self.field_share, firms), choose(rng, self.city_share, firms)
        firm_taste, firm_quality = rng.standard_normal((firms, TASTE_DIM)), rng.standard_normal(firms)
        field = np.where(rng.random(n) < 0.6, home_field[firm], choose(rng, self.field_share, n))
        per_field = len(text.ROLES) // len(text.FIELDS)
        role = field * per_field + rng.integers(0, per_field, n)
        place = np.where(rng.random(n) < 0.6, home_city[firm], choose(rng, self.city_share, n))
        place = np.where(rng.random(n) < 0.1, _REMOTE, place)
        level = choose(rng, np.array([0.25, 0.4, 0.25, 0.1]), n)
        sponsors = rng.random(n) < 0.3
        premium = rng.standard_normal(n)
        salary = np.round(32_000 * np.exp(0.28 * level + 0.15 * np.sin(field) + 0.12 * premium), -2)
        unnamed = rng.random(n) < 0.25
        skills, direction = self._skills(rng, role, 4, 7)
        own = rng.standard_normal((n, TASTE_DIM))
        taste = np.sqrt(EMPLOYER_SHARE) * firm_taste[firm] + np.sqrt(1 - EMPLOYER_SHARE) * own
        quality = (firm_quality[firm] + rng.standard_normal(n)) / np.sqrt(2)
        popularity = POPULARITY * (rng.standard_normal(n) + 0.5 * quality)
        ids = 1_000_000 + np.cumsum(rng.integers(1, 10, n))
        phrasing = rng.integers(0, 2, n)
        table = {
            "job_id": pa.array(ids),
            "title": pa.array([text.title(*x) for x in np.stack([role, level, phrasing], axis=1).tolist()]),
            "skills": skills,
            "employer": _named(tuple(text.employer(i) for i in range(firms)), firm),
            "place": _named((*text.CITIES, text.REMOTE), place),
            "salary": pa.array(salary, mask=unnamed),
            "sponsors_visa": pa.array(sponsors),
            "posted": pa.array(posted, TIME),
            "expires": pa.array(posted + life, TIME),
        }
        tower = np.column_stack(
            [
                SKILLS * direction,
                TASTE / np.sqrt(TASTE_DIM) * taste,
                -SENIORITY * np.abs(level[:, None] - np.arange(_LEVELS)),
                PLACE * self.place_closeness[:, place].T,
                -SPONSOR * ~sponsors,
                QUALITY * quality + SALARY * np.where(unnamed, 0.0, premium),
            ]
        )
        weight = np.maximum(1, np.round(1000 * np.exp(popularity))).astype(np.int64)
        return Jobs(pa.table(table), ids, field * (_CITIES + 1) + place, tower, weight, posted, posted + life)

    def _skills(self, rng: np.random.Generator, roles: Ints, least: int, most: int) -> tuple[pa.Array, Floats]:
        """For each of ``[n]`` roles a list of distinct skills (list<string>) and their direction ``[n, SKILL_DIM]``."""
        many = rng.integers(least, most + 1, len(roles))
        chosen = np.empty((len(roles), most), np.int64)
        for start in range(0, len(roles), 1 << 14):
            block = slice(start, start + (1 << 14))
            log_chance = np.log(self.skill_chance[roles[block]])
            # The largest of log-chance plus Gumbel noise: draws without replacement (Vieira, 2014).
            chosen[block] = np.argsort(-(log_chance + rng.gumbel(size=log_chance.shape)), axis=1)[:, :most]
        kept = np.arange(most) < many[:, None]
        total = np.einsum("nk,nkd->nd", kept.astype(np.float64), self.skill_vector[chosen])
        offsets = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(offsets, _named(text.SKILLS, chosen[kept]))
        return lists, total / np.linalg.norm(total, axis=1, keepdims=True)


def choose(rng: np.random.Generator, shares: Floats, n: int) -> Ints:
    """``[n]`` draws of a position with probability proportional to ``shares``."""
    steps = np.cumsum(shares)
    return np.searchsorted(steps[:-1] / steps[-1], rng.random(n), side="right")


def _falling(n: int, steepness: float) -> Floats:
    """``[n]`` shares that fall like a power of the rank (Zipf)."""
    return np.arange(1, n + 1, dtype=np.float64) ** -steepness


def _named(names: tuple[str, ...], codes: Ints) -> pa.Array:
    """Strings of codes."""
    return pa.array(names).take(pa.array(codes))
