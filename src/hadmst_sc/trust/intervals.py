"""Intervals from an estimate and its standard deviation.

A rate is modelled as Gamma distributed with this mean and standard deviation, a count as Poisson distributed around the
rate (together negative binomial). Held-out spots test whether these intervals hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.9  # level of the intervals
MIN_SPOTS = 24  # fewer spots are too few to know the error
TOLERANCE = 0.05  # of the coverage at held-out spots, above which a warning appears
SHAPES = (1e-3, 1e7)  # bounds of the Gamma shape: anything narrower is a point


class Calibration(NamedTuple):
    """Test of the intervals at held-out spots."""

    coverage: float  # of 90 % intervals of counts
    n_spots: int


def rate_quantile(mean: np.ndarray, std: np.ndarray, quantile: float) -> np.ndarray:
    """Quantile of the true rate, in the unit of ``mean``; 0 where the mean is 0.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of the same shape.
    quantile
        Between 0 and 1.
    """
    shape = gamma_shape(mean, std)
    return special.gammaincinv(shape, quantile) * mean / shape


def rate_interval(mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central interval of the true rate, in the unit of ``mean``.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of the same shape.
    level
        Probability that the interval contains the rate.
    """
    low, high = (rate_quantile(mean, std, tail) for tail in _tails(level))
    return low, high


def covered(counts: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Probability, 0 to 1, that each count lies within the central interval of its prediction.

    Counts are discrete, so a count at the end of the interval is inside with a probability: the expectation of the
    randomised probability integral transform (Czado et al. 2009). Its mean equals the level for a calibrated
    prediction, however small the counts. For counts that are not whole, the distribution is interpolated.

    Parameters
    ----------
    counts
        Measured counts.
    mean, std
        Expected counts and standard deviation of the expectation, without counting noise; of the shape of ``counts``.
    level
        Level of the interval.
    """
    shape = gamma_shape(mean, std)
    success = shape / (shape + np.maximum(mean, 1e-12))
    below = np.where(counts > 0, special.betainc(shape, np.where(counts > 0, counts, 1), success), 0.0)
    upto = special.betainc(shape, counts + 1.0, success)
    low, high = _tails(level)
    within = np.minimum(upto, high) - np.maximum(below, low)
    return np.clip(within / np.maximum(upto - below, 1e-300), 0, 1)


def doubt(provenance: Mapping[str, Any]) -> str:
    """Reason to doubt the standard deviation of a result; empty if there is none.

    Parameters
    ----------
    provenance
        Provenance of the result.
    """
    record = provenance.get("calibration")
    if not isinstance(record, Mapping):
        return "it was made by an earlier version, without a test at held-out spots"
    if "refused" in record:  # of an earlier version
        return str(record["refused"])
    if int(record["n_spots"]) < MIN_SPOTS:
        return f"{record['n_spots']} spots are too few to know the error"
    if abs(float(record["coverage"]) - LEVEL) > TOLERANCE:
        return f"{LEVEL:.0%} intervals hold {float(record['coverage']):.0%} of the counts at held-out spots"
    return ""


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def gamma_shape(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Shape of a Gamma distribution with this mean and standard deviation."""
    return np.square(mean / np.maximum(std, 1e-12)).clip(*SHAPES)
