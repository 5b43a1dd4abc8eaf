"""Quantiles and mean logarithms of many Gamma distributions at once, from tables.

The quantile of a Gamma distribution over its mean depends on its shape alone. scipy searches for each one anew, which
takes most of the time where there are millions, as of the genes of all cells. The mean of log1p is an integral that
depends on mean and shape.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special
from scipy.interpolate import CubicSpline, RectBivariateSpline

from hadmst_sc.trust.intervals import SHAPES, gamma_shape

N_SHAPES = 4096  # entries; a quantile is then exact to 1e-8 of itself
LEAST = 1e-300  # smaller ones are zero, whose logarithm is not finite
MEANS = (1e-12, 1e9)  # log1p is linear below, and no bin has more counts
STEP = 0.2  # of the table of log1p, in logarithms of mean and shape; it is then exact to 2e-6 of itself


def rate_quantiles(mean: np.ndarray, std: np.ndarray, quantile: float) -> np.ndarray:
    """As :func:`hadmst_sc.trust.intervals.rate_quantile`, for millions of rates."""
    return np.exp(_of_mean_one(quantile)(np.log(gamma_shape(mean, std)))) * mean


@lru_cache(maxsize=16)
def _of_mean_one(quantile: float) -> CubicSpline:
    """Logarithm of the quantile of a Gamma distribution of mean one, over the logarithm of its shape."""
    shape = np.geomspace(*SHAPES, N_SHAPES)
    return CubicSpline(np.log(shape), np.log(np.maximum(special.gammaincinv(shape, quantile) / shape, LEAST)))


def mean_log1p(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Expectation of log1p of Gamma distributed rates; at most log1p of the mean, and equal to it where ``std`` is 0.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of the same shape.
    """
    place = np.log(np.clip(mean, *MEANS)), np.log(gamma_shape(mean, std))
    return np.asarray(np.minimum(_over_log1p_of_mean().ev(*place), 1.0) * np.log1p(mean))


@lru_cache(maxsize=1)
def _over_log1p_of_mean() -> RectBivariateSpline:
    """Expectation of log1p over log1p of the mean, over the logarithms of mean and shape.

    As log(1 + x) is the integral of exp(-t) (1 - exp(-x t)) / t over all t > 0, its expectation needs only that of
    exp(-x t), which is (1 + t mean / shape) ** -shape. With t = exp(u) the trapezoidal rule is exact to 1e-10.
    """
    mean, shape = (np.geomspace(low, high, 1 + int(np.log(high / low) / STEP)) for low, high in (MEANS, SHAPES))
    m, k = mean[:, None], shape[None]
    u, step = np.linspace(-45.0, 4.0, 124, retstep=True)
    total = sum(-np.exp(-t) * np.expm1(-k * np.log1p(t * m / k)) for t in np.exp(u))
    return RectBivariateSpline(np.log(mean), np.log(shape), step * total / np.log1p(m))
