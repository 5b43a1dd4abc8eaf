"""Expectations under the laws of bins: mean logarithms and the CRPS, against samples, integrals and limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from hadmst_sc.trust.crps import crps_of_counts, crps_of_rates
from hadmst_sc.trust.table import mean_log1p

LAWS = [(0.3, 0.4), (3.0, 3.0), (200.0, 80.0), (0.01, 0.2), (50.0, 1e-3), (1e-3, 1e-3)]


@pytest.mark.parametrize(("mean", "std"), LAWS)
def test_mean_log1p_is_the_integral_over_the_quantiles(mean, std):
    law = stats.gamma((mean / std) ** 2, scale=std**2 / mean)
    x, weights = np.polynomial.legendre.leggauss(60)
    edges = np.concatenate([[0], 1 - np.geomspace(1, 1e-13, 60)[1:], [1 - 1e-14]])
    low, high = edges[:-1, None], edges[1:, None]
    tails = law.ppf((low + high) / 2 + (high - low) / 2 * x)
    expected = (np.log1p(tails) * weights * (high - low) / 2).sum()
    assert mean_log1p(np.array(mean), np.array(std)) == pytest.approx(expected, rel=3e-5)


def test_mean_log1p_has_its_two_limits():
    mean = np.array([1e-9, 0.1, 1.0, 30.0, 1e5])
    np.testing.assert_allclose(mean_log1p(mean, 0 * mean), np.log1p(mean), rtol=1e-6)
    np.testing.assert_allclose(mean_log1p(mean, 1e-5 * mean), np.log1p(mean), rtol=1e-6)
    np.testing.assert_array_equal(mean_log1p(np.zeros(3), np.array([0.0, 1.0, 100.0])), 0)


def test_mean_log1p_falls_with_the_spread_and_never_exceeds_the_logarithm_of_the_mean():
    mean, width = np.geomspace(1e-6, 1e4, 40)[:, None], np.geomspace(1e-3, 30, 50)
    found = mean_log1p(*np.broadcast_arrays(mean, mean * width))
    assert (np.diff(found, axis=1) <= 2e-6 * found[:, 1:]).all() and (found <= np.log1p(mean)).all()
    assert (found > 0).all()


@pytest.mark.parametrize(("mean", "std"), LAWS)
@pytest.mark.parametrize("count", [0.0, 1.0, 2.5, 40.0, 300.0])
def test_crps_of_counts_is_the_sum_over_the_distribution_function(mean, std, count):
    shape = min((mean / std) ** 2, 1e4)
    law = stats.nbinom(shape, shape / (shape + mean))
    k = np.arange(20_000)
    below, after = law.cdf(k), (k + 1 > count)
    parts = np.where(after, (1 - below) ** 2, below**2)
    at = int(count)  # the step from 0 to 1 is within this one
    parts[at] = (count - at) * below[at] ** 2 + (at + 1 - count) * (1 - below[at]) ** 2
    found = crps_of_counts(np.array(count), np.array(mean), np.array(std))
    assert found == pytest.approx(parts.sum(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("mean", "std"), LAWS[:3])
@pytest.mark.parametrize("rate", [0.1, 5.0, 150.0])
def test_crps_of_rates_is_the_integral_over_the_distribution_function(mean, std, rate):
    law = stats.gamma((mean / std) ** 2, scale=std**2 / mean)
    below, _ = integrate.quad(lambda x: law.cdf(x) ** 2, 0, rate, limit=200)
    above, _ = integrate.quad(lambda x: law.sf(x) ** 2, rate, max(rate, law.isf(1e-14)), limit=200)
    assert crps_of_rates(np.array(rate), np.array(mean), np.array(std)) == pytest.approx(below + above, rel=1e-5)


def test_crps_of_a_point_is_the_absolute_error():
    rates, mean = np.array([0.5, 3.0, 20.0]), np.array([1.0, 1.0, 1.0])
    np.testing.assert_allclose(crps_of_rates(rates, mean, 0 * mean), np.abs(rates - mean), atol=1e-3)
