"""Intervals from an estimate and its standard deviation, and the factor that makes them hold at spots left out.

A rate is taken for Gamma distributed with that mean and that deviation, a count for Poisson distributed around the rate
(together negative binomial). Draws of a network are as wide as its training made them; how wide errors are on this
section, its own spots know.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.9  # of the intervals that are calibrated
FACTORS = (0.05, 20.0)  # of the standard deviation, between which the right one is sought
SHAPES = (1e-3, 1e7)  # of the Gamma distribution: narrower is a point
STEPS = 20


class Calibration(NamedTuple):
    """What spots left out say about the spread."""

    factor: float  # of the standard deviation
    coverage_before: float  # of 90 % intervals without it, at the spots that chose it
    coverage: float  # and with it
    n_spots: int


def rate_quantile(mean: np.ndarray, std: np.ndarray, quantile: float) -> np.ndarray:
    """The rate below which the true one lies with this probability, in the unit of ``mean``; 0 where the mean is 0.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of one shape.
    quantile
        Between 0 and 1.
    """
    shape = _shape(mean, std)
    return special.gammaincinv(shape, quantile) * mean / shape


def rate_interval(mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central interval of a rate, in the unit of ``mean``.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of one shape.
    level
        Probability that the rate lies within.
    """
    low, high = (rate_quantile(mean, std, tail) for tail in _tails(level))
    return low, high


def covered(counts: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Probability, 0 to 1, that each count lies within the central interval of its prediction.

    Counts are whole numbers and seldom hit a probability exactly; what a count shares with the outside of the interval
    is shared out, as by a randomised probability integral transform (Czado et al. 2009). The mean of this is the level
    for a calibrated prediction, however small the counts.

    Parameters
    ----------
    counts
        What was counted.
    mean, std
        Expected counts and standard deviation of the expectation, without counting noise; of the shape of ``counts``.
    level
        Of the interval.
    """
    shape = _shape(mean, std)
    success = shape / (shape + np.maximum(mean, 1e-12))
    below = np.where(counts > 0, special.betainc(shape, np.maximum(counts, 1), success), 0.0)
    upto = special.betainc(shape, counts + 1.0, success)
    low, high = _tails(level)
    within = np.minimum(upto, high) - np.maximum(below, low)
    return np.clip(within / np.maximum(upto - below, 1e-300), 0, 1)


def calibrate(counts: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> Calibration:
    """The factor of the standard deviation with which the intervals of a level hold at spots left out.

    Parameters
    ----------
    counts, mean, std
        ``(spots, genes)`` at spots that the prediction had not seen.
    level
        Of the intervals.
    """

    def coverage(factor: float) -> float:
        return float(covered(counts, mean, factor * std, level).mean())

    low, high = np.log(FACTORS)
    for _ in range(STEPS):  # coverage grows with the factor
        middle = (low + high) / 2
        low, high = (middle, high) if coverage(np.exp(middle)) < level else (low, middle)
    factor = float(np.exp((low + high) / 2))
    return Calibration(factor, coverage(1.0), coverage(factor), len(counts))


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _shape(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Of a Gamma distribution with this mean and standard deviation."""
    return np.square(mean / np.maximum(std, 1e-12)).clip(*SHAPES)
