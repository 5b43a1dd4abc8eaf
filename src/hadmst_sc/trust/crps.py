"""Continuous ranked probability score of estimate and standard deviation, under the laws of `trust/intervals.py`.

The score is ``E|X - y| - E|X - X'| / 2`` for a truth ``y`` and independent ``X`` and ``X'`` of the law. Both terms have
closed forms (Wei & Held 2014; Möller & Scheuerer 2015), so nothing is sampled. That of two counts takes most of the
time and comes from a table.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special
from scipy.interpolate import RectBivariateSpline

from hadmst_sc.trust.intervals import SHAPES, gamma_shape
from hadmst_sc.trust.table import STEP

MOST = 1e4  # largest shape: scipy's hypergeometric function fails above, where the law of counts is a Poisson law
MEANS = (1e-12, 1e7)  # of counts; it fails above, too


def crps_of_counts(counts: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Score of each measured count; the law is negative binomial.

    Parameters
    ----------
    counts
        Measured counts; they need not be whole.
    mean, std
        Expected counts and standard deviation of the expectation, without counting noise; of the shape of ``counts``.
    """
    mean = np.clip(mean, *MEANS)
    shape = np.minimum(gamma_shape(mean, std), MOST)
    success = shape / (shape + mean)
    upto = special.betainc(shape, np.floor(counts) + 1, success)
    # Share of the expectation up to the count: the distribution function of one shape more, at one count less.
    last = np.maximum(np.floor(counts), 1)
    share = np.where(counts >= 1, special.betainc(shape + 1, last, success), 0.0)
    error = counts * (2 * upto - 1) - mean * (2 * share - 1)
    return np.asarray(error - _difference().ev(np.log(mean), np.log(shape)) * mean)


@lru_cache(maxsize=1)
def _difference() -> RectBivariateSpline:
    """Half of the mean difference of two counts over their mean, over the logarithms of mean and shape."""
    mean, shape = (
        np.geomspace(low, high, 1 + int(np.log(high / low) / STEP)) for low, high in (MEANS, (SHAPES[0], MOST))
    )
    theta = mean[:, None] / shape
    terms = special.hyp2f1(0.5, 1 - shape, 2, 4 * theta * (1 + theta) / (1 + 2 * theta) ** 2)
    return RectBivariateSpline(np.log(mean), np.log(shape), (1 + theta) / (1 + 2 * theta) * terms)


def crps_of_rates(rates: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Score of each true expected count; the law is a Gamma law.

    Parameters
    ----------
    rates
        True expected counts, without counting noise.
    mean, std
        Expected counts and their standard deviation, of the shape of ``rates``.
    """
    mean = np.maximum(mean, 1e-12)
    shape = gamma_shape(mean, std)
    place = rates * shape / mean
    error = rates * (2 * special.gammainc(shape, place) - 1) - mean * (2 * special.gammainc(shape + 1, place) - 1)
    return np.asarray(error - mean / shape * np.exp(-special.betaln(0.5, shape)))
