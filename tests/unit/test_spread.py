"""The spread: the dispersion of counts, and what the errors of neighbouring bins share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from hadmst_sc.trust import spread
from hadmst_sc.trust.spread import LEAST, OWN, REACH, SHARED, Spread, dispersion, excess

PITCH = 5.0


@pytest.mark.parametrize("true", [0.3, 2.0, 8.0])
def test_the_dispersion_of_counts_is_found(true):
    rng = np.random.default_rng(0)
    expected = rng.uniform(5, 40, (20_000, 12))
    rate = rng.gamma(expected / true, true)  # variance: true times the mean
    found = dispersion(excess(rng.poisson(rate), expected), 20_000)
    np.testing.assert_allclose(found, true, rtol=0.2)


def test_counts_that_scatter_less_than_counting_noise_have_the_least():
    expected = np.full((50, 3), 9.0)
    np.testing.assert_array_equal(dispersion(excess(expected, expected), 50), LEAST)


def test_few_spots_are_shrunken_towards_the_median_of_the_genes():
    sums = np.array([[100.0, 100.0, 900.0], [100.0, 100.0, 100.0]])
    few, many = (dispersion(sums, n) for n in (10, 100_000))
    np.testing.assert_allclose(many, [1, 1, 9], rtol=1e-3)
    np.testing.assert_allclose(few, [1, 1, 5])


def test_neither_blocks_nor_order_of_genes_matter():
    rng = np.random.default_rng(0)
    expected = rng.uniform(1, 9, (60, 8))
    counts = rng.poisson(rng.gamma(expected / 2, 2.0))
    whole = dispersion(excess(counts, expected), 60)
    parts = [excess(counts[:, cut], expected[:, cut]) for cut in (slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(dispersion(np.concatenate(parts, 1), 60), whole)
    order = rng.permutation(8)
    np.testing.assert_allclose(dispersion(excess(counts[:, order], expected[:, order]), 60), whole[order])


@pytest.fixture
def grid():
    y, x = np.nonzero(np.ones((12, 10), bool))
    mean = np.random.default_rng(0).uniform(0.1, 2, (len(y), 3))
    return np.c_[y, x], mean, Spread(np.array([1.0, 2.0, 0.5]), PITCH)


def by_definition(spread_, mean, weights, places):
    pairs = np.exp(-cdist(places, places) / (REACH * PITCH)) * SHARED / PITCH**2
    found = []
    for one in weights.toarray():
        roots = one[:, None] * np.sqrt(mean)
        found.append(OWN * one @ mean + np.einsum("ig,ij,jg->g", roots, pairs, roots))
    return np.sqrt(spread_.dispersion * np.array(found))


def test_sums_share_what_the_formula_says(grid, monkeypatch):
    places, mean, one = grid
    rng = np.random.default_rng(1)
    weights = sparse.csr_array(np.where(rng.random((4, len(mean))) < 0.6, rng.random((4, len(mean))), 0))
    expected = by_definition(one, mean, weights, places)
    np.testing.assert_allclose(one.of_sums(mean, weights, places), expected, rtol=1e-9)
    monkeypatch.setattr(spread, "MANY_BINS", 5)  # the same by a Fourier transform
    np.testing.assert_allclose(one.of_sums(mean, weights, places), expected, rtol=1e-9)
    monkeypatch.setattr(spread, "FAR", 2.0)  # what is further away than this is not shared, or shared once more
    np.testing.assert_allclose(one.of_sums(mean, weights, places), expected, rtol=0.2)


def test_a_sum_over_one_bin_is_that_bin(grid):
    places, mean, one = grid
    found = one.of_sums(mean, sparse.eye_array(len(mean), format="csr"), places)
    np.testing.assert_allclose(found, np.sqrt(one.of_bin * mean))


def test_a_sum_is_less_certain_than_independent_bins_and_more_than_equal_ones(grid):
    places, mean, one = grid
    whole = one.of_sums(mean, sparse.csr_array(np.ones((1, len(mean)))), places)[0]
    of_bins = np.sqrt(one.of_bin * mean)
    assert (whole > 1.2 * np.sqrt((of_bins**2).sum(0))).all()
    assert (whole < 0.8 * of_bins.sum(0)).all()


def test_a_sum_without_bins_is_zero(grid):
    places, mean, one = grid
    assert (one.of_sums(mean, sparse.csr_array((2, len(mean))), places) == 0).all()
