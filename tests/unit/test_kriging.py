"""Neighbourhoods stand for all spots: weights, precision and the lattice against their dense definitions."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.regression.kriging import (
    CANDIDATES,
    N_NEIGHBORS,
    Kernel,
    Lattice,
    Neighbourhoods,
    SpotPrecision,
)
from hadmst_sc.section.measurement import spacing


def hexagonal(n: int = 8) -> np.ndarray:
    return np.array([(0.866 * i, j + 0.5 * (i % 2)) for i in range(n) for j in range(n)])


def covariance(spots: np.ndarray, kernel: Kernel) -> np.ndarray:
    distance = np.linalg.norm(spots[:, None] - spots, axis=-1)
    return kernel(distance) + kernel.nugget * np.eye(len(spots))


def test_kriging_without_nugget_returns_the_values_at_the_spots():
    spots, kernel = hexagonal(), Kernel(((1.0, 0.8),), 1e-6)
    values = np.random.default_rng(0).standard_normal((len(spots), 3))
    np.testing.assert_allclose(Neighbourhoods(spots, spots.copy())(kernel, values), values, atol=1e-3)


def test_kriging_weights_equal_those_of_all_spots_when_all_are_neighbours():
    spots, kernel = hexagonal(5), Kernel(((1.0, 2.0),), 0.5)
    target = np.array([[1.3, 2.1]])
    dense = np.linalg.solve(covariance(spots, kernel), kernel(np.linalg.norm(spots - target, axis=1)))
    np.testing.assert_allclose(Neighbourhoods(spots, target)(kernel, np.eye(len(spots)))[0], dense, atol=1e-5)


@pytest.mark.parametrize("kernel", CANDIDATES)
def test_precision_is_the_inverse_covariance_when_all_spots_are_neighbours(kernel):
    spots = hexagonal(5)
    assert len(spots) <= N_NEIGHBORS
    root = SpotPrecision(spots).root(kernel)
    np.testing.assert_allclose((root.T @ root).toarray() @ covariance(spots, kernel), np.eye(len(spots)), atol=1e-4)


@pytest.mark.parametrize("kernel", CANDIDATES)
def test_leave_one_out_with_the_sparse_precision_is_that_of_the_dense_one(kernel):
    spots = hexagonal(25)
    dense = np.linalg.inv(covariance(spots, kernel))
    values = np.random.default_rng(0).multivariate_normal(np.zeros(len(spots)), covariance(spots, kernel))
    root = SpotPrecision(spots).root(kernel)
    exact = dense @ values / dense.diagonal()
    sparse = (root.T @ (root @ values)) / np.asarray(root.power(2).sum(0)).ravel()
    # A thousandth of the squared error is what a choice between kernels turns on.
    assert np.mean((sparse - exact) ** 2) < 5e-3 * np.mean(exact**2)
    assert np.mean(sparse**2) == pytest.approx(np.mean(exact**2), rel=0.01)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_spots_are_finite(n):
    spots = hexagonal()[:n]
    assert np.isfinite(Neighbourhoods(spots, spots)(CANDIDATES[0], np.ones((n, 1)))).all()
    assert np.isfinite(SpotPrecision(spots).root(CANDIDATES[0]).toarray()).all()


def test_coincident_spots_have_a_precision():
    spots = np.repeat(hexagonal(3), 2, axis=0)
    root = SpotPrecision(spots).root(CANDIDATES[0])
    np.testing.assert_allclose((root.T @ root).toarray() @ covariance(spots, CANDIDATES[0]), np.eye(18), atol=1e-4)


def test_lattice_interpolation_is_close_to_kriging_every_bin():
    spots = hexagonal(6) * 10 + 5
    active = np.ones((50, 60), bool)
    values = np.random.default_rng(0).standard_normal((len(spots), 1))
    kernel = Kernel(((1.0, 2.0),), 0.5)
    coarse = Lattice(spots, 10.0, active).krige(kernel, values)[0]
    exact = Neighbourhoods(spots / 10, (np.argwhere(active) + 0.5) / 10)(kernel, values)
    assert np.abs(coarse - exact[:, 0]).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("kernel", CANDIDATES)
def test_kriged_maps_are_those_of_all_spots(kernel):
    spots = hexagonal(25)
    total = covariance(spots, kernel)
    values = np.random.default_rng(0).multivariate_normal(np.zeros(len(spots)), total)[:, None]
    targets = np.random.default_rng(1).uniform(2, 20, (500, 2))
    cross = kernel(np.linalg.norm(targets[:, None] - spots, axis=-1))
    exact = cross @ np.linalg.solve(total, values)
    # In standard deviations of the field. Long and noisy maps are the hardest, and hardly more than a constant.
    assert np.sqrt(np.mean((Neighbourhoods(spots, targets)(kernel, values) - exact) ** 2)) < 0.1


def test_pitch_is_the_distance_of_neighbours():
    assert spacing(hexagonal() * 7) == pytest.approx(7, rel=1e-3)
