"""Intervals hold where the law is true, and a result says when they may not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hadmst_sc.trust.intervals import LEVEL, covered, doubt, rate_interval, rate_quantile
from hadmst_sc.trust.table import rate_quantiles

SHAPE = (4000, 5)


def section(depth: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, the rates behind them, and what is known of these: mean and standard deviation."""
    rng = np.random.default_rng(seed)
    mean = depth * rng.gamma(2.0, 0.5, SHAPE)
    std = 0.5 * mean
    rate = rng.gamma((mean / std) ** 2, std**2 / mean)
    return rng.poisson(rate).astype(float), rate, mean, std


def test_ends_are_quantiles_of_the_gamma_distribution():
    mean, std = np.array([0.1, 3.0, 50.0]), np.array([0.2, 1.0, 1.0])
    low, high = rate_interval(mean, std, 0.8)
    law = stats.gamma((mean / std) ** 2, scale=std**2 / mean)
    np.testing.assert_allclose([low, high], [law.ppf(0.1), law.ppf(0.9)], rtol=1e-6)


def test_a_spread_of_zero_is_a_point_and_a_mean_of_zero_stays():
    low, high = rate_interval(np.array([2.0, 0.0]), np.array([0.0, 0.0]))
    np.testing.assert_allclose([low, high], [[2, 0], [2, 0]], rtol=2e-3)
    assert np.isfinite(covered(np.array([0.0, 3.0]), np.zeros(2), np.zeros(2))).all()


@pytest.mark.parametrize("quantile", [0.001, 0.05, 0.5, 0.95])
def test_quantiles_from_the_table_are_those_of_scipy(quantile):
    mean = np.r_[0.0, np.geomspace(1e-4, 1e4, 2000)]
    std = np.r_[1.0, mean[1:] / np.sqrt(np.geomspace(1e-4, 1e8, 2000)[::-1])]  # shapes beyond both ends of the table
    expected = rate_quantile(mean, std, quantile)
    np.testing.assert_allclose(rate_quantiles(mean, std, quantile), expected, rtol=1e-7, atol=1e-30)


@pytest.mark.parametrize("depth", [0.02, 0.5, 20.0])
def test_a_true_spread_covers_rates_and_counts_at_every_depth(depth):
    counts, rate, mean, std = section(depth)
    low, high = rate_interval(mean, std)
    assert ((low <= rate) & (rate <= high)).mean() == pytest.approx(LEVEL, abs=0.01)
    assert covered(counts, mean, std).mean() == pytest.approx(LEVEL, abs=0.01)


def test_counts_within_and_outside_are_told_apart():
    mean, std = np.full(3, 100.0), np.full(3, 1e-6)
    np.testing.assert_allclose(covered(np.array([100.0, 60.0, 150.0]), mean, std), [1, 0, 0])
    # Of a Poisson law of mean 100: the count on the edge is shared out.
    edge = stats.poisson(100).ppf(0.05)
    assert 0 < covered(np.array([edge]), mean[:1], std[:1])[0] < 1


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"coverage": 0.9, "n_spots": 200}, ""),
        ({"coverage": 0.86, "n_spots": 200}, ""),
        ({"coverage": 0.84, "n_spots": 200}, "90% intervals hold 84% of the counts at held-out spots"),
        ({"coverage": 0.96, "n_spots": 200}, "90% intervals hold 96% of the counts at held-out spots"),
        ({"coverage": 0.9, "n_spots": 23}, "23 spots are too few to know the error"),
        ({"factor": 1.2, "refused": ""}, ""),  # of an earlier version
        ({"factor": 1.0, "refused": "why"}, "why"),
        ("off", "it was made by an earlier version, without a test at held-out spots"),
        (None, "it was made by an earlier version, without a test at held-out spots"),
    ],
)
def test_a_result_says_why_its_intervals_are_doubtful(record, why):
    assert doubt({"calibration": record}) == why


@pytest.mark.parametrize("depth", [0.05, 1.0, 20.0])
def test_abundances_that_are_not_whole_are_covered_as_often_as_counts(depth):
    """Estimates scatter around the counts and are rarely 0, as those of a deconvolution."""
    counts, _, mean, std = section(depth)
    estimates = np.random.default_rng(1).gamma(counts / 0.02 + 0.5, 0.02)
    assert covered(estimates, mean, std).mean() == pytest.approx(LEVEL, abs=0.02)
