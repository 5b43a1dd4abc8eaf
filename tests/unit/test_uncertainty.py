"""Intervals hold where they are true, and calibration finds by how much a spread is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hadmst_sc.trust.intervals import FACTORS, LEVEL, calibrate, covered, doubt, rate_interval

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


@pytest.mark.parametrize("wrong", [0.25, 1.0, 3.0])
def test_calibration_finds_by_how_much_the_spread_is_wrong(wrong):
    counts, _, mean, std = section(20.0)
    found = calibrate(counts, mean, std * wrong)
    assert found.factor == pytest.approx(1 / wrong, rel=0.06) and found.n_spots == len(counts)
    assert found.coverage == pytest.approx(LEVEL, abs=0.005)
    assert (found.coverage_before < LEVEL - 0.05) == (wrong < 1)


def test_where_counting_noise_is_all_there_is_the_spread_is_the_widest_that_fits():
    rng = np.random.default_rng(0)
    mean = np.full(SHAPE, 2.0)
    found = calibrate(rng.poisson(mean).astype(float), mean, np.full(SHAPE, 1.0))
    assert found.factor < 0.3 and found.coverage == pytest.approx(LEVEL, abs=0.005)
    assert found.refused.startswith("the counts fit any factor from 0.05 to 0.")  # the widest of these is taken


def gamma_poisson(cv: float, depth: float, seed: int = 0, shape=(300, 20)) -> tuple[np.ndarray, np.ndarray]:
    """Counts of rates that are Gamma distributed with this coefficient of variation, and the rates' means."""
    rng = np.random.default_rng(seed)
    mean = depth * rng.gamma(2.0, 0.5, shape)
    return rng.poisson(rng.gamma(1 / cv**2, cv**2 * mean)).astype(float), mean


# Below, counts cannot tell: counting noise is all that is seen of a rate that is known to 30 % at one count in ten.
TOLD = {(cv, depth) for cv in (0.3, 0.5, 1.0, 1.5, 2.0, 3.0) for depth in (3.0, 30.0)}
TOLD |= {(cv, 0.5) for cv in (1.0, 1.5, 2.0, 3.0)}


@pytest.mark.parametrize("short", [0.4, 0.8, 1.4])
@pytest.mark.parametrize("depth", [0.1, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("cv", [0.3, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_the_factor_is_right_or_refused_at_every_width_and_depth(cv, depth, short):
    counts, mean = gamma_poisson(cv, depth)
    found = calibrate(counts, mean, short * cv * mean)
    near = abs(np.log(found.factor * short)) < 0.15
    if found.refused:  # then it stays between nothing done and right
        assert (cv, depth) not in TOLD
        assert near or abs(np.log(found.factor * short)) < abs(np.log(short)) + 0.01
    else:
        assert near
    error = np.sqrt(LEVEL * (1 - LEVEL) / counts.size)
    assert found.coverage >= min(found.coverage_before, LEVEL) - 2 * error
    assert found.refused or found.coverage == pytest.approx(LEVEL, abs=3 * error)


def test_of_two_factors_that_reach_the_level_the_smaller_is_taken():
    counts, mean = gamma_poisson(1.0, 3.0)
    for short in (0.5, 6.0):  # the other is about 6 times the right one
        found = calibrate(counts, mean, short * mean)
        assert found.factor == pytest.approx(1 / short, rel=0.1) and not found.refused


def test_counts_that_no_factor_reaches_are_refused_with_the_best():
    """A third of the counts is far from what was predicted, whatever the spread."""
    counts, mean = gamma_poisson(0.5, 30.0)
    counts[np.random.default_rng(1).random(counts.shape) < 0.3] = 1e5
    found = calibrate(counts, mean, 0.2 * mean)
    assert "no factor reaches 90%; the best has 7" in found.refused
    tried = [covered(counts, mean, factor * 0.2 * mean).mean() for factor in FACTORS]
    assert found.coverage == pytest.approx(max(tried)) and found.coverage > found.coverage_before


@pytest.mark.parametrize(
    ("counts", "mean", "std"),
    [
        pytest.param(np.zeros((50, 4)), np.zeros((50, 4)), np.zeros((50, 4)), id="all zero"),
        pytest.param(np.zeros((50, 4)), np.full((50, 4), 1e-3), np.full((50, 4), 1e-3), id="nothing counted"),
        pytest.param(gamma_poisson(1.0, 30.0)[0], np.full((300, 20), 30.0), np.zeros((300, 20)), id="no spread"),
        pytest.param(np.full((50, 4), 500.0), np.full((50, 4), 2.0), np.full((50, 4), 2e-3), id="out of reach"),
        pytest.param(np.full((50, 4), np.nan), np.ones((50, 4)), np.ones((50, 4)), id="NaN"),
        pytest.param(np.ones((1, 4)), np.ones((1, 4)), np.ones((1, 4)), id="one spot"),
        pytest.param(np.ones((0, 4)), np.ones((0, 4)), np.ones((0, 4)), id="no spot"),
    ],
)
def test_what_tells_nothing_leaves_the_spread_as_it_is(counts, mean, std):
    with np.errstate(all="raise", under="ignore"):
        found = calibrate(counts, mean, std)
    assert found.factor == 1.0 and found.refused
    np.testing.assert_equal(found.coverage, found.coverage_before)


def test_few_spots_shift_the_spread_no_further_than_they_can_tell():
    counts, mean = gamma_poisson(0.5, 3.0, shape=(8, 5))
    found = calibrate(counts, mean, 0.5 * mean)
    assert found.refused.startswith("the counts fit any factor from ") and found.factor == pytest.approx(1, rel=0.1)


def test_entries_that_are_not_finite_do_not_count():
    counts, mean = gamma_poisson(1.0, 3.0)
    known = calibrate(counts[:, :15], mean[:, :15], 0.5 * mean[:, :15])
    counts[:, 15], std = np.nan, 0.5 * mean
    std[:, 16], mean[:, 17:] = np.inf, np.nan
    found = calibrate(counts, mean, std)
    np.testing.assert_allclose(found[:4], known[:4])
    assert found.refused == known.refused == ""
    counts[:10] = np.nan
    assert calibrate(counts, mean, std).n_spots == len(counts) - 10


def test_a_result_says_why_its_spread_is_not_calibrated():
    assert doubt({"calibration": {"factor": 1.2, "refused": ""}, "n_samples": 4}) == ""
    assert doubt({"calibration": {"factor": 1.2}, "n_samples": 4}) == ""  # of a version that never refused
    assert doubt({"calibration": {"factor": 1.0, "refused": "why"}, "n_samples": 4}) == "why"
    assert doubt({"calibration": "off", "n_samples": 1}) == "fewer than two samples"
    assert doubt({"calibration": "off", "n_samples": 4}) == "no gate, or too few spots for it"
