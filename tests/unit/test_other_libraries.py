"""The same equations in well-kept libraries give the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
from scipy import sparse
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Kernel, Matern

from hadmst_sc import metrics
from hadmst_sc.regression import kriging
from hadmst_sc.regression.additive import Solution

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # the logarithm of `sigma_0=0`

N = 120
KERNELS = [kriging.CANDIDATES[0], kriging.CANDIDATES[5], kriging.CANDIDATES[11]]  # each sum of terms, three nuggets


def theirs(kernel: kriging.Kernel) -> Kernel:
    """The kernel as scikit-learn writes it, without the nugget."""
    terms = [ConstantKernel(weight) * Matern(length, nu=1.5) for weight, length in kernel.terms]
    return sum(terms[1:], start=terms[0])


class Of(Kernel):
    """A kernel of some columns; scikit-learn has none."""

    def __init__(self, kernel: Kernel, first: int, stop: int) -> None:
        self.kernel, self.first, self.stop = kernel, first, stop

    def __call__(self, x, y=None, eval_gradient=False):
        columns = slice(self.first, self.stop)
        return self.kernel(x[:, columns], None if y is None else y[:, columns])

    def diag(self, x):
        return self.kernel.diag(x[:, self.first : self.stop])

    def is_stationary(self) -> bool:
        return False


def fitted(kernel, nugget: float, x: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(kernel, alpha=nugget, optimizer=None).fit(x, values)


def left_out(kernel, nugget: float, x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Errors at each spot of the regression that was fitted without it."""
    rest = [np.arange(len(x)) != one for one in range(len(x))]
    predicted = [fitted(kernel, nugget, x[keep], values[keep]).predict(x[~keep])[0] for keep in rest]
    return values - np.array(predicted)


@pytest.fixture
def every_spot_is_a_neighbour(monkeypatch):
    monkeypatch.setattr(kriging, "N_KRIGED", N)
    monkeypatch.setattr(kriging, "N_NEIGHBORS", N)


@pytest.fixture
def spots() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 10, (N, 2))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N, 2))


@pytest.mark.usefixtures("every_spot_is_a_neighbour")
@pytest.mark.parametrize("kernel", KERNELS)
def test_kriging_is_the_gaussian_process_of_scikit_learn(spots, values, kernel):
    targets = np.random.default_rng(2).uniform(0, 10, (300, 2))
    ours = kriging.Neighbourhoods(spots, targets)(kernel, values)
    expected = fitted(theirs(kernel), kernel.nugget, spots, values).predict(targets)
    np.testing.assert_allclose(ours, expected, atol=2e-5)  # ours is in single precision


@pytest.mark.usefixtures("every_spot_is_a_neighbour")
@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_of_kriging_left_out_are_those_of_scikit_learn(spots, values, kernel):
    root = kriging.SpotPrecision(spots).root(kernel)
    precision = (root.T @ root).toarray()
    ours = precision @ values / np.diag(precision)[:, None]
    np.testing.assert_allclose(ours, left_out(theirs(kernel), kernel.nugget, spots, values), atol=2e-5)


@pytest.mark.parametrize("ridge", [0.2, 6.0])
def test_errors_of_ridge_regression_left_out_are_those_of_scikit_learn(values, ridge):
    design = np.random.default_rng(3).standard_normal((N, 7))
    ours = Solution(None, design, values).errors(ridge)
    linear = ConstantKernel(1 / ridge) * DotProduct(sigma_0=0)
    np.testing.assert_allclose(ours, left_out(linear, 1.0, design, values), atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_of_additive_regression_left_out_are_those_of_scikit_learn(spots, values, kernel):
    ridge = 2.0
    design = np.random.default_rng(3).standard_normal((N, 7))
    space = theirs(kernel)(spots) + kernel.nugget * np.eye(N)
    root = sparse.csr_matrix(np.linalg.cholesky(np.linalg.inv(space)).T)  # LᵀL is the precision
    linear = ConstantKernel(1 / ridge) * DotProduct(sigma_0=0)
    both = Of(theirs(kernel), 0, 2) + Of(linear, 2, 9)
    expected = left_out(both, kernel.nugget, np.c_[spots, design], values)
    np.testing.assert_allclose(Solution(root, design, values).errors(ridge), expected, atol=1e-6)


def test_crps_is_the_fair_one_of_scoringrules():
    rng = np.random.default_rng(4)
    draws, truth = rng.gamma(2.0, 3.0, (9, 3, 6, 5)), rng.poisson(6.0, (3, 6, 5)).astype(float)
    inside = rng.random((6, 5)) < 0.7
    expected = scoringrules.crps_ensemble(truth, draws, m_axis=0, estimator="fair")[:, inside].mean(1)
    np.testing.assert_allclose(metrics.crps(draws, truth, inside), expected, rtol=1e-12)
