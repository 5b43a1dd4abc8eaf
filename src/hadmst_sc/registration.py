"""Registration of the H&E to the spots: the shift at which the image best predicts what the spots measured.

An image that is 20 µm off is no better than none, and the counts can tell: pooled to footprints in the right place, the
features of the image explain the leading metagenes of the left-out spots best. Only translations within reach of a
footprint are sought; rotation, scale and deformation are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import linalg, ndimage, sparse

from hadmst_sc.additive import Solution
from hadmst_sc.contract import Observation
from hadmst_sc.features import he_features
from hadmst_sc.measurement import Measurement

MIN_SPOTS = 40
N_METAGENES = 8
RIDGES = (0.02, 0.1, 0.5, 2.0, 8.0)
# Gain over no shift, in standard errors. Strict: to move what is right does more harm than to leave what is wrong.
# `python benchmarks/registration.py` counts what it lets through by chance, and what it misses.
MIN_SIGMAS = 3.0

Bins = tuple[int, int]


@dataclass(frozen=True)
class Shift:
    """How far the H&E lies from where the spots say it should.

    Parameters
    ----------
    dy_um, dx_um
        The image shows at ``p + (dy_um, dx_um)`` what the spots saw at ``p``; to be undone by :func:`shift_image`.
        Zero unless ``applied``.
    score_here, score_there
        Leave-one-out R² of the metagenes without a shift, and at the best whole number of bins. Both zero where there
        is nothing to tell by.
    applied
        Whether the gain is more than chance.
    """

    dy_um: float
    dx_um: float
    score_here: float
    score_there: float
    applied: bool


def estimate_shift(obs: Observation, *, max_um: float = 60.0) -> Shift:
    """Find the shift of the H&E against the spots.

    Metagenes are regressed on the image's features under the footprints, moved by whole bins, from coarse to fine; a
    quadratic through the scores around the best gives the fraction of a bin. What is already right is not moved: a
    shift is applied only if the score peaks there and the errors of the spots (paired, so that hard spots cancel) fall
    by more than ``MIN_SIGMAS`` standard errors.

    Parameters
    ----------
    obs
        The section.
    max_um
        Longest shift that is found, µm.

    Returns
    -------
    The shift, not applied when there are fewer than ``MIN_SPOTS`` spots or the image does not vary.

    Raises
    ------
    ValueError
        If ``max_um`` is not a positive length.
    """
    if not 0 < max_um < np.inf:
        raise ValueError(
            f"`max_um` needs a positive length in µm, but is {max_um}. It bounds the search. Pass `max_um=60`."
        )
    none = Shift(0.0, 0.0, 0.0, 0.0, False)
    if len(obs.spots) < MIN_SPOTS:
        return none
    values = _metagenes(obs)
    total = float((values**2).sum())
    if total < 1e-12:
        return none
    pooled = _Pooled(obs.measurement, he_features(obs))

    @cache
    def errors(shift: Bins) -> np.ndarray:
        return _loo_errors(pooled(shift), values)

    def score(shift: Bins) -> float:
        return 1 - float(errors(shift).sum()) / total

    spot = 2 * np.sqrt(np.median(obs.measurement.area) / np.pi)  # diameter in bins
    # One bin further than asked: the peak of a shift just within reach may lie on the bin beyond.
    best = _search(score, max_um / obs.grid.bin_um + 1, max(1, round(spot / 2)))
    around = np.array([[score((best[0] + y, best[1] + x)) for x in (-1, 0, 1)] for y in (-1, 0, 1)])
    none = replace(none, score_here=score((0, 0)), score_there=score(best))
    if score(best) < around.max() or not _surely_less(errors(best), errors((0, 0))):
        return none
    found = (np.array(best) + _peak(around)) * obs.grid.bin_um
    dy, dx = found * min(1, max_um / np.hypot(*found))
    return replace(none, dy_um=float(dy), dx_um=float(dx), applied=True)


def shift_image(obs: Observation, shift: Shift) -> Observation:
    """Undo a shift: the observation with its H&E moved back under the spots, all else as it was.

    Parameters
    ----------
    obs
        The section.
    shift
        As :func:`estimate_shift` finds it. Pixels are interpolated linearly, those that come from beyond the border
        repeat it.
    """
    if not (shift.dy_um or shift.dx_um):
        return obs
    px = np.array([shift.dy_um, shift.dx_um]) / (obs.grid.bin_um / obs.he_per_bin)
    moved = np.empty_like(obs.he)
    for channel, plane in enumerate(obs.he):
        moved[channel] = np.rint(ndimage.shift(plane, -px, np.float32, order=1, mode="nearest"))
    return replace(obs, he=moved)


def _metagenes(obs: Observation) -> np.ndarray:
    """Leading principal components of the square-root rates, ``(spots, N_METAGENES)``: mean zero, own variances."""
    area = obs.measurement.area[:, None]
    # Counting noise of sqrt(counts) is 1/2 for every gene; the mean area keeps it so.
    roots = np.sqrt(obs.counts / area * area.mean())
    roots = roots - roots.mean(0)
    wide = roots.shape[1] > roots.shape[0]
    gram = (roots @ roots.T if wide else roots.T @ roots).astype(float)
    n = len(gram)
    variance, vectors = linalg.eigh(gram, subset_by_index=[max(0, n - N_METAGENES), n - 1])
    return vectors * np.sqrt(variance.clip(0)) if wide else roots @ vectors


class _Pooled:
    """Features under footprints moved by whole bins; what is beyond the border repeats it."""

    def __init__(self, measurement: Measurement, maps: np.ndarray) -> None:
        matrix = measurement.matrix
        self._shape, self._indptr, self._size = measurement.shape, matrix.indptr, matrix.shape
        self._y, self._x = np.divmod(matrix.indices, measurement.shape[1])
        self._weights = matrix.data / np.repeat(measurement.area, np.diff(matrix.indptr))
        self._maps = np.ascontiguousarray(maps.reshape(len(maps), -1).T)  # (bins, features)

    def __call__(self, shift: Bins) -> np.ndarray:
        (ny, nx), (dy, dx) = self._shape, shift
        bins = np.clip(self._y + dy, 0, ny - 1) * nx + np.clip(self._x + dx, 0, nx - 1)
        return sparse.csr_matrix((self._weights, bins, self._indptr), self._size) @ self._maps


def _loo_errors(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared leave-one-out errors of ridge regression, ``(spots,)`` summed over columns, best of ``RIDGES``."""
    x = features - features.mean(0)
    x = x / np.sqrt(max((x**2).sum(1).mean(), 1e-12))  # unit mean squared norm: a ridge means the same at every shift
    solution = Solution(None, np.concatenate([np.ones((len(x), 1)), x], 1), values)
    return min(((solution.errors(ridge) ** 2).sum(1) for ridge in RIDGES), key=np.sum)


def _surely_less(errors: np.ndarray, reference: np.ndarray) -> bool:
    """Whether squared errors are below others of the same spots by more than ``MIN_SIGMAS``."""
    gain = np.sqrt(reference) - np.sqrt(errors)  # roots, as squares have heavy tails
    return bool(gain.mean() > MIN_SIGMAS * gain.std() / np.sqrt(len(gain)))


def _search(score: Callable[[Bins], float], reach: float, step: int) -> Bins:
    """Best shift within ``reach`` bins of none: a lattice of ``step`` bins, then neighbours at ever smaller steps."""

    def best_of(candidates: list[Bins], so_far: Bins) -> Bins:
        within = [c for c in candidates if np.hypot(*c) <= reach + 1e-9]
        return max([so_far, *within], key=score)  # the first of equals: a tie moves nothing

    ticks = [step * i for i in range(-int(reach // step), int(reach // step) + 1)]
    best = best_of([(y, x) for y in ticks for x in ticks], (0, 0))
    while True:
        better = best_of([(best[0] + step * y, best[1] + step * x) for y in (-1, 0, 1) for x in (-1, 0, 1)], best)
        if better == best and step == 1:
            return best
        step = step if better != best else (step + 1) // 2
        best = better


def _peak(scores: np.ndarray) -> np.ndarray:
    """Offset (y, x) of the top of the least-squares quadratic through ``(3, 3)`` scores, at most half a bin."""
    low, high = scores[0].sum() - 2 * scores[1].sum() + scores[2].sum(), scores[:, 0] - 2 * scores[:, 1] + scores[:, 2]
    slope = np.array([scores[2].sum() - scores[0].sum(), scores[:, 2].sum() - scores[:, 0].sum()]) / 6
    mixed = (scores[2, 2] + scores[0, 0] - scores[0, 2] - scores[2, 0]) / 4
    curvature = np.array([[low / 3, mixed], [mixed, high.sum() / 3]])
    if not (np.linalg.eigvalsh(curvature) < 0).all():
        return np.zeros(2)
    return np.clip(-np.linalg.solve(curvature, slope), -0.5, 0.5)
