"""Bootstrap intervals: against the normal theory where it holds, and what users with many queries change."""

import numpy as np
import pytest

from towers.evaluation import intervals
from towers.evaluation.intervals import bootstrap, paired_difference


def test_of_a_large_sample_is_the_normal_interval():
    x = np.random.default_rng(0).exponential(size=(4000, 1))
    found = bootstrap(x, resamples=4000)[0]
    error = x.std() / np.sqrt(len(x))
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(x.mean() + 1.96 * error, abs=0.15 * error)


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = [bootstrap(rng.binomial(1, 0.3, (150, 1)).astype(float), level=0.9, resamples=300)[0] for _ in range(300)]
    assert 0.84 <= np.mean([s.low <= 0.3 <= s.high for s in samples]) <= 0.95


def test_equal_seeds_give_equal_bounds_however_they_are_drawn(monkeypatch):
    x = np.random.default_rng(0).random((50, 2))
    whole = bootstrap(x, seed=3)
    assert whole == bootstrap(x, seed=3)
    assert whole != bootstrap(x, seed=4)
    monkeypatch.setattr(intervals, "_DRAWN", 50 * 7)
    assert whole == bootstrap(x, seed=3)


def test_a_constant_has_no_width():
    assert bootstrap(np.full((5, 1), 0.25)) == [(0.25, 0.25, 0.25)]


def test_queries_of_one_user_are_drawn_together():
    """A hundred users with nine equal queries each tell as much as a hundred queries."""
    by_user = np.random.default_rng(0).random(100)
    groups = np.tile(np.arange(100), 9)
    values = by_user[groups][:, None]
    one = bootstrap(by_user[:, None])[0]
    together, apart = bootstrap(values, groups)[0], bootstrap(values)[0]
    assert together == pytest.approx(one)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)  # three times, by theory


def test_a_paired_difference_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    theirs = rng.random(500)
    ours = theirs + 0.01 + rng.normal(0, 0.02, 500)
    a, b = bootstrap(ours[:, None])[0], bootstrap(theirs[:, None])[0]
    assert a.low < b.high  # the intervals overlap
    found = paired_difference(ours, theirs)
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx((ours - theirs).mean())


def test_only_runs_over_the_same_queries_are_paired():
    with pytest.raises(ValueError, match="same queries"):
        paired_difference(np.zeros(3), np.zeros(4))
