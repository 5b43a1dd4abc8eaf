"""Quantiles of many Gamma distributions at once, from a table.

The quantile of a Gamma distribution over its mean depends on its shape alone. scipy searches for each one anew, which
takes most of the time where there are millions, as of the genes of all cells.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special
from scipy.interpolate import CubicSpline

from hadmst_sc.trust.intervals import SHAPES, gamma_shape

N_SHAPES = 4096  # entries; a quantile is then exact to 1e-8 of itself
LEAST = 1e-300  # smaller ones are zero, whose logarithm is not finite


def rate_quantiles(mean: np.ndarray, std: np.ndarray, quantile: float) -> np.ndarray:
    """As :func:`hadmst_sc.trust.intervals.rate_quantile`, for millions of rates."""
    return np.exp(_of_mean_one(quantile)(np.log(gamma_shape(mean, std)))) * mean


@lru_cache(maxsize=16)
def _of_mean_one(quantile: float) -> CubicSpline:
    """Logarithm of the quantile of a Gamma distribution of mean one, over the logarithm of its shape."""
    shape = np.geomspace(*SHAPES, N_SHAPES)
    return CubicSpline(np.log(shape), np.log(np.maximum(special.gammaincinv(shape, quantile) / shape, LEAST)))
