"""Square roots of counts, whose noise is the same at every depth, and the way back."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import stats

MANY = 40.0  # counts; from here on the series is exact to a thousandth


def mean_of_counts(root: np.ndarray) -> np.ndarray:
    """The mean of Poisson counts whose square roots have the mean ``root`` (non-negative), any shape.

    Not the square: roots of few counts are mostly zeros and ones, and their mean goes with the mean count itself. Of
    many it is ``root² + 1/4``, as the variance of their roots is a quarter.
    """
    roots, means = _table()
    return np.where(root < roots[-1], np.interp(root, roots, means), root**2 + 0.25).astype(root.dtype)


@cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Mean square roots of Poisson counts, rising, and the means of the counts."""
    means = np.concatenate([[0.0], np.geomspace(1e-4, MANY, 1000)])
    counts = np.arange(MANY + 10 * MANY**0.5)
    return stats.poisson.pmf(counts, means[:, None]) @ np.sqrt(counts), means
