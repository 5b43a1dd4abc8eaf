"""Intervals from an estimate and its standard deviation, calibrated at held-out spots.

A rate is modelled as Gamma distributed with this mean and standard deviation, a count as Poisson distributed around the
rate (together negative binomial). The samples' spread comes from training. Held-out spots show the real errors, so the
spread is rescaled to match them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.9  # level of the intervals that are calibrated
FACTORS = 20.0 ** np.linspace(-1, 1, 61)  # candidate factors of the standard deviation; 1 in the middle
SURE = 2.0  # standard errors at which the counts contradict a factor
WIDE = 2.0  # largest over smallest of the factors that fit: above this, no factor is identified
SHAPES = (1e-3, 1e7)  # bounds of the Gamma shape: anything narrower is a point
STEPS = 8  # bisections between two candidate factors: to 0.04 %


class Calibration(NamedTuple):
    """Calibration of the standard deviation at held-out spots."""

    factor: float  # for the standard deviation
    coverage_before: float  # coverage of 90 % intervals without the factor, at the spots that chose it
    coverage: float  # coverage with the factor
    n_spots: int
    refused: str = ""  # why the intervals are not calibrated; empty if they are


def rate_quantile(mean: np.ndarray, std: np.ndarray, quantile: float) -> np.ndarray:
    """Quantile of the true rate, in the unit of ``mean``; 0 where the mean is 0.

    Parameters
    ----------
    mean, std
        Estimate and its standard deviation, of the same shape.
    quantile
        Between 0 and 1.
    """
    shape = _shape(mean, std)
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
    prediction, however small the counts.

    Parameters
    ----------
    counts
        Measured counts.
    mean, std
        Expected counts and standard deviation of the expectation, without counting noise; of the shape of ``counts``.
    level
        Level of the interval.
    """
    shape = _shape(mean, std)
    success = shape / (shape + np.maximum(mean, 1e-12))
    below = np.where(counts > 0, special.betainc(shape, np.maximum(counts, 1), success), 0.0)
    upto = special.betainc(shape, counts + 1.0, success)
    low, high = _tails(level)
    within = np.minimum(upto, high) - np.maximum(below, low)
    return np.clip(within / np.maximum(upto - below, 1e-300), 0, 1)


def calibrate(counts: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> Calibration:
    """Find the smallest factor of the standard deviation with which intervals contain ``level`` of held-out counts.

    Coverage grows with the factor up to a peak and then falls, because a very wide Gamma distribution has most of its
    mass at zero. So factors are tried from the smallest up. If a wide range of factors fits, as with counts far below
    1, the likelihood of the counts narrows the range. If the counts still do not identify a factor, the one nearest to
    1 that they do not contradict is used, and ``refused`` says why.

    Coverage afterwards is at least the level or the coverage before, whichever is less, up to twice its standard error.

    Parameters
    ----------
    counts, mean, std
        ``(spots, genes)`` at held-out spots. Entries that are not finite are ignored.
    level
        Level of the intervals.
    """
    known = np.isfinite(counts) & np.isfinite(mean) & np.isfinite(std)
    rows = known.any(1)
    n_spots = int(rows.sum())
    if n_spots < 2:
        return Calibration(1.0, float("nan"), float("nan"), n_spots, "fewer than two held-out spots have finite values")
    spots = _Spots(*(values[rows] for values in (counts, mean, std, known)))
    coverage, error = np.transpose([spots.coverage(factor, level) for factor in FACTORS])
    best, refused = _choose(spots, coverage, SURE * error, level)
    factor = float(FACTORS[best])
    if not refused and best and coverage[best - 1] < level <= coverage[best]:
        factor = _crossing(spots, float(FACTORS[best - 1]), factor, level)
    before, after = (spots.coverage(one, level)[0] for one in (1.0, factor))
    return Calibration(factor, before, after, n_spots, refused)


def doubt(provenance: Mapping[str, Any]) -> str:
    """Reason why the standard deviation of a result is not calibrated; empty if it is.

    Parameters
    ----------
    provenance
        Provenance of the result.
    """
    record = provenance.get("calibration", {})
    if isinstance(record, Mapping):
        return str(record.get("refused", ""))
    return "fewer than two samples" if int(provenance["n_samples"]) < 2 else "no gate, or too few spots for it"


class _Spots(NamedTuple):
    """Held-out spots; each array is ``(spots, genes)``."""

    counts: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    known: np.ndarray  # bool

    def coverage(self, factor: float, level: float) -> tuple[float, float]:
        """Share of the counts within their intervals, and its standard error (at least one count out of all).

        The error is computed over spots, because the errors of the genes of one spot may be correlated.
        """
        within = covered(self.counts, self.mean, factor * self.std, level)
        shares = np.where(self.known, within, 0).sum(1) / self.known.sum(1)
        return float(shares.mean()), max(float(shares.std(ddof=1)) / len(shares) ** 0.5, 1 / int(self.known.sum()))

    def log_likelihood(self, factor: float) -> np.ndarray:
        """Negative binomial log-likelihood ``(spots,)``, up to a constant; counts may be fractional."""
        shape, mean = _shape(self.mean, factor * self.std), np.maximum(self.mean, 1e-12)
        ways = special.gammaln(self.counts + shape) - special.gammaln(shape)
        each = ways + special.xlogy(self.counts, mean / (mean + shape)) - shape * np.log1p(mean / shape)
        return np.where(self.known, each, 0).sum(1)


def _choose(spots: _Spots, coverage: np.ndarray, error: np.ndarray, level: float) -> tuple[int, str]:
    """Index of the factor in ``FACTORS``, and the reason if it does not calibrate the intervals."""
    level = max(level, coverage[0])  # if even the smallest spread covers more, aim for its coverage
    reaching = coverage >= level - error
    if not reaching.any():
        best = _nearest_to_one(np.flatnonzero(coverage >= coverage.max()))
        return best, f"no factor reaches {level:.0%}; the best has {coverage[best]:.0%}"
    fitting = _fitting(coverage, error, level, int(reaching.argmax()))
    if _ratio(fitting) <= WIDE:
        near = slice(fitting[0], fitting[-1] + 2)  # one more: it may be the first to reach the level
        return int(fitting[0] + np.minimum(coverage[near], level).argmax()), ""
    likelihood = np.stack([spots.log_likelihood(factor) for factor in FACTORS[fitting]])
    best, fitting = int(fitting[likelihood.sum(1).argmax()]), fitting[_alike(likelihood)]
    if _ratio(fitting) <= WIDE:
        return best, ""
    low, high = FACTORS[fitting[[0, -1]]]
    return _nearest_to_one(fitting), f"the counts fit any factor from {low:.2g} to {high:.2g}"


def _alike(likelihood: np.ndarray) -> np.ndarray:
    """Mask of the ``(factors, spots)`` log-likelihoods that are not significantly below the highest.

    Uses the likelihood ratio and, in case the model is wrong, its variation from spot to spot (Vuong 1989).
    """
    loss = likelihood[likelihood.sum(1).argmax()] - likelihood
    return loss.sum(1) <= np.maximum(SURE**2 / 2, SURE * loss.std(1, ddof=1) * np.sqrt(loss.shape[1]))


def _fitting(coverage: np.ndarray, error: np.ndarray, level: float, first: int) -> np.ndarray:
    """Indices from the first factor that may reach the level to the last before coverage clearly leaves it.

    Coverage leaves the level from above only if it exceeds it by twice the error: a lower peak may belong to a curve
    that falls again at once.
    """
    left = (coverage > level + 2 * error) | (coverage < level - error)
    stop = first + int(left[first:].argmax()) if left[first:].any() else len(coverage)
    within = np.flatnonzero(coverage[:stop] <= level + error[:stop])
    return np.arange(first, max(first, within[-1] if len(within) else first) + 1)


def _ratio(fitting: np.ndarray) -> float:
    return float(FACTORS[fitting[-1]] / FACTORS[fitting[0]])


def _nearest_to_one(fitting: np.ndarray) -> int:
    return int(fitting[np.abs(np.log(FACTORS[fitting])).argmin()])


def _crossing(spots: _Spots, low: float, high: float, level: float) -> float:
    """Bisect for the factor at which coverage reaches the level, between one that does not and one that does."""
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if spots.coverage(middle, level)[0] < level else (low, middle)
    return high


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _shape(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Shape of a Gamma distribution with this mean and standard deviation."""
    return np.square(mean / np.maximum(std, 1e-12)).clip(*SHAPES)
