"""Rates from mean roots of counts: exact for Poisson counts, and nothing is lost on the way back to rates."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.distillation.roots import LAST, rates_of_roots


def mean_root(mean: float) -> float:
    """Mean square root of Poisson counts, summed over the law."""
    counts = np.arange(0, int(mean + 20 * np.sqrt(mean) + 40))
    log = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    return float((np.sqrt(counts) * np.exp(counts * np.log(mean) - mean - log)).sum())


@pytest.mark.parametrize("mean", [1e-4, 0.01, 0.3, 1.0, 7.0, 60.0, 99.0, 101.0, 400.0])
@pytest.mark.parametrize("depth", [0.05, 1.0, 30.0])
def test_the_mean_of_poisson_counts_comes_back_from_their_mean_root(mean, depth):
    roots = np.array([mean_root(mean) / np.sqrt(depth)])
    np.testing.assert_allclose(rates_of_roots(roots, np.array([depth])) * depth, mean, rtol=2e-4, atol=1e-6)


def test_rates_grow_with_their_roots_and_negative_roots_are_zero():
    roots = np.linspace(-1, 2 * LAST, 50_000, dtype=np.float32)
    rates = rates_of_roots(roots[None], np.ones((1, 1)))[0]
    assert (rates[roots <= 0] == 0).all() and (np.diff(rates[roots > 0]) > 0).all()
    assert rates.dtype == np.float32


def test_any_order_in_memory_gives_the_same():
    roots = np.random.default_rng(0).random((30, 40_000)) * 12
    depth = np.geomspace(0.01, 50, 30)[:, None]
    np.testing.assert_array_equal(rates_of_roots(roots, depth), rates_of_roots(np.asfortranarray(roots), depth))
