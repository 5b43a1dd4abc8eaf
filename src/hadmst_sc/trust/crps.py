"""Continuous ranked probability score of estimate and standard deviation, under the laws of `trust/intervals.py`.

The score is ``E|X - y| - E|X - X'| / 2`` for a truth ``y`` and independent ``X`` and ``X'`` of the law. Both terms have
closed forms (Wei & Held 2014; Möller & Scheuerer 2015), so nothing is sampled.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from hadmst_sc.trust.intervals import gamma_shape

MOST = 1e4  # largest shape: scipy's hypergeometric function fails above, where the law of counts is a Poisson law


def crps_of_counts(counts: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Score of each measured count; the law is negative binomial.

    Parameters
    ----------
    counts
        Measured counts; they need not be whole.
    mean, std
        Expected counts and standard deviation of the expectation, without counting noise; of the shape of ``counts``.
    """
    mean = np.maximum(mean, 1e-12)
    shape = np.minimum(gamma_shape(mean, std), MOST)
    theta = mean / shape
    success = 1 / (1 + theta)
    upto = special.betainc(shape, np.floor(counts) + 1, success)
    # Share of the expectation up to the count: the distribution function of one shape more, at one count less.
    last = np.maximum(np.floor(counts), 1)
    share = np.where(counts >= 1, special.betainc(shape + 1, last, success), 0.0)
    error = counts * (2 * upto - 1) - mean * (2 * share - 1)
    spread = 4 * theta * (1 + theta) / (1 + 2 * theta) ** 2
    pairs = mean * (1 + theta) / (1 + 2 * theta) * special.hyp2f1(0.5, 1 - shape, 2, spread)
    return np.asarray(error - pairs)


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
