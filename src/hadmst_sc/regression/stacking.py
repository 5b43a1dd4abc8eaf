"""A second look at components: learners that are not linear, averaged with the first look by held-out spots.

The first look (:mod:`hadmst_sc.regression.additive`) adds a smooth map and a sum over features. Here, trees and kernel
regressions learn what depends on both at once, from the features of single bins and from the first look's own
predictions. At the spots these predictions are leave-one-out ones, so a learner sees them as good as they are in the
gaps. All are averaged with non-negative weights that fit the held-out predictions best (stacking; Breiman 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from hadmst_sc.runtime import cores, side_by_side

# All constants were tuned at held-out spots of five sections of breast (Spatial Transcriptomics) and four of the mouse
# olfactory bulb; the gain is flat around them.
MIN_SPOTS = 60  # with fewer, the learners and their weights are too uncertain
N_STACKED = 20  # leading components that are looked at again; later ones are mostly noise
N_TREES, LEAF, FEATURES_PER_SPLIT = 200, 3, 0.33
N_FOURIER = 512
SEED = 20_261_130  # fixed: the closed form is a function of the section alone
WIDTHS = (0.35, 0.5, 0.7, 1.0)  # frequencies in units of 1 / sqrt(inputs): the first is nearly linear
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TO_EQUAL = 0.1  # pull of the weights towards equal ones, in units of the variance that is explained
LIMIT = 4.0  # standard deviations at which inputs of the kernel regressions are clipped
BINS_AT_ONCE = 2**13


class Inputs(NamedTuple):
    """Inputs of a learner.

    ``at_spots`` is ``(spots, f)``. ``in_bins`` are one or more arrays ``(f_i, bins)``, together ``f`` rows.
    """

    at_spots: np.ndarray
    in_bins: tuple[np.ndarray, ...]

    def block(self, bins: slice) -> np.ndarray:
        """Inputs of some bins, ``(n, f)``."""
        return np.concatenate([part[:, bins] for part in self.in_bins]).T

    def beside(self, other: Inputs) -> Inputs:
        """The inputs of both."""
        return Inputs(np.concatenate([self.at_spots, other.at_spots], 1), self.in_bins + other.in_bins)


class Learned(NamedTuple):
    """Predictions of a learner: ``(spots, K)`` without each spot itself, and a function of ``(n, f)`` inputs."""

    held_out: np.ndarray
    predict: Callable[[np.ndarray], np.ndarray]


class Stacked(NamedTuple):
    """Weighted average of all predictions: maps ``(K, bins)`` float32, and held-out predictions ``(spots, K)``."""

    maps: np.ndarray
    held_out: np.ndarray


def stacked(
    values: np.ndarray, first: Sequence[tuple[np.ndarray, np.ndarray]], features: Inputs, predictions: Inputs
) -> Stacked:
    """Look again at values at the spots, and average all predictions.

    Parameters
    ----------
    values
        ``(spots, K)``, mean zero; their scale says how much each column counts.
    first
        Predictions of the first look: held-out ``(spots, K)`` and maps ``(K, bins)``.
    features
        Image features, averaged over the footprints and in single bins.
    predictions
        Predictions of the first look as inputs: held-out ones at the spots.
    """
    both = features.beside(predictions)
    second = [
        (forest(values, both), both),
        (kernel_regression(values, predictions), predictions),
        (kernel_regression(values, both), both),
    ]
    held_out = [one for one, _ in first] + [learned.held_out for learned, _ in second]
    weights = weights_of(held_out, values)
    maps = np.zeros((values.shape[1], first[0][1].shape[1]), np.float32)
    for weight, (_, known) in zip(weights, first, strict=False):
        maps += np.float32(weight) * known
    for weight, (learned, inputs) in zip(weights[len(first) :], second, strict=True):
        _add_in_blocks(maps, weight, learned, inputs)
    return Stacked(maps, np.tensordot(weights, held_out, 1))


def weights_of(held_out: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Non-negative weights of held-out predictions ``(spots, K)`` of ``values``, drawn towards equal ones."""
    n = len(held_out)
    pull = np.sqrt(TO_EQUAL * (values**2).sum())
    design = np.concatenate([np.stack([one.ravel() for one in held_out], 1), pull * np.eye(n)])
    return nnls(design, np.concatenate([values.ravel(), np.full(n, pull / n)]))[0]


def forest(values: np.ndarray, inputs: Inputs) -> Learned:
    """Extremely randomised trees (Geurts et al. 2006), each grown on a bootstrap sample of the spots.

    A spot's held-out prediction is the mean of the trees that were grown without it.
    """
    from sklearn.ensemble import ExtraTreesRegressor  # slow to import

    trees = ExtraTreesRegressor(
        N_TREES,
        min_samples_leaf=LEAF,
        max_features=FEATURES_PER_SPLIT,
        bootstrap=True,
        oob_score=True,
        random_state=SEED,
        n_jobs=cores(),
    )
    trees.fit(_steady(inputs.at_spots).astype(np.float32), _steady(values))
    trees.n_jobs = 1  # blocks of bins are predicted side by side

    def predict(found: np.ndarray) -> np.ndarray:
        return np.asarray(trees.predict(found.astype(np.float32))).reshape(len(found), -1)

    return Learned(trees.oob_prediction_.reshape(values.shape), predict)


def _steady(values: np.ndarray) -> np.ndarray:
    """Values rounded to about a millionth of the largest: splits of a tree often tie, and rounding would decide.

    The unit is a power of two, so that sums over spots are exact in any order.
    """
    unit = 2.0 ** np.floor(np.log2(1e-6 * max(np.abs(values).max(), 1e-12)))
    rounded = np.round(values / unit) * unit
    return rounded.ravel() if rounded.shape[1] == 1 else rounded


class _Fourier(NamedTuple):
    """Random Fourier features of a Gaussian kernel (Rahimi & Recht 2007), of standardised inputs."""

    mean: np.ndarray
    std: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    def __call__(self, inputs: np.ndarray, width: float) -> np.ndarray:
        standard = ((inputs - self.mean) / self.std).clip(-LIMIT, LIMIT)
        return (2 / N_FOURIER) ** 0.5 * np.cos(standard @ (width * self.frequency) + self.phase)

    def single(self) -> _Fourier:
        """The same in single precision."""
        return _Fourier(*(part.astype(np.float32) for part in self))


def _fourier(inputs: np.ndarray) -> _Fourier:
    rng = np.random.default_rng(SEED)
    n = inputs.shape[1]
    std = inputs.std(0)
    frequency = rng.standard_normal((n, N_FOURIER)) / np.sqrt(n)
    return _Fourier(inputs.mean(0), np.where(std > 1e-6, std, np.inf), frequency, rng.uniform(0, 2 * np.pi, N_FOURIER))


def kernel_regression(values: np.ndarray, inputs: Inputs) -> Learned:
    """Ridge regression on random Fourier features; width and penalty of each column by its leave-one-out error.

    Leave-one-out predictions are exact, as those of :mod:`hadmst_sc.regression.additive`, the intercept included.
    """
    n, n_columns = values.shape
    fourier = _fourier(inputs.at_spots)
    best, error = np.zeros_like(values), np.full(n_columns, np.inf)
    weights = np.zeros((len(WIDTHS), 1 + N_FOURIER, n_columns))
    for number, width in enumerate(WIDTHS):
        design = fourier(inputs.at_spots, width)
        middle = design.mean(0)
        eigenvalues, vectors = np.linalg.eigh((design - middle).T @ (design - middle))
        rotated = (design - middle) @ vectors
        projected = rotated.T @ values
        for ridge in RIDGES:
            shrunk = 1 / (eigenvalues.clip(0) + ridge)
            fitted = values.mean(0) + rotated @ (shrunk[:, None] * projected)
            own = np.minimum(1 / n + rotated**2 @ shrunk, 1 - 1e-3)  # the bound guards against rounding
            loo = values - (values - fitted) / (1 - own)[:, None]
            found = ((values - loo) ** 2).mean(0)
            better = found < error * (1 - 1e-3)  # as in `additive.Choice`: rounding does not decide near-ties
            error[better], best[:, better] = found[better], loo[:, better]
            slopes = vectors @ (shrunk[:, None] * projected[:, better])
            weights[:, :, better] = 0
            weights[number][:, better] = np.concatenate([values.mean(0)[None, better] - middle @ slopes, slopes])
    single = fourier.single()
    used = [
        (width, some[0].astype(np.float32), some[1:].astype(np.float32))
        for width, some in zip(WIDTHS, weights, strict=True)
        if some.any()
    ]

    def predict(found: np.ndarray) -> np.ndarray:
        out = np.zeros((len(found), n_columns), np.float32)
        for width, intercept, slopes in used:
            out += intercept + single(found, width) @ slopes
        return out

    return Learned(best, predict)


def _add_in_blocks(maps: np.ndarray, weight: float, learned: Learned, inputs: Inputs) -> None:
    """Add weighted predictions to maps ``(K, bins)``, block by block, because all inputs need much memory."""
    if weight == 0:
        return

    def add(start: int) -> None:
        here = slice(start, start + BINS_AT_ONCE)
        maps[:, here] += np.float32(weight) * learned.predict(inputs.block(here)).T.astype(np.float32)

    side_by_side(add, range(0, maps.shape[1], BINS_AT_ONCE))
