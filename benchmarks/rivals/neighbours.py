"""Nearest neighbours in the features of the H&E.

Constants are the best of a few that were tried on the simulated spots of the breast crop, its truth included: what bias
that leaves is in favour of this rival.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from rivals.section import Fit, Section, best, features, shared

NEIGHBOURS = (3, 6, 12, 25, 50, 100)


@shared
def nearest_neighbours(section: Section) -> Fit:
    """Mean of the spots that look most alike, as many as leave the least error at a held-out spot, per gene.

    Weights are inverse squares of the distance: on the breast crop that error is 2 % lower than with a plain mean.
    """
    bins, spots = features(section)
    values, n_spots = section.rates, len(section.rates)
    numbers = sorted({min(number, n_spots - 1) for number in NEIGHBOURS})
    search = NearestNeighbors(n_neighbors=numbers[-1], algorithm="brute").fit(spots)
    to_spots = search.kneighbors()  # without an argument no spot is its own neighbour
    chosen, held_out = best(np.stack([_mean_of(*to_spots, k, n_spots) @ values for k in numbers]), values)
    to_bins = search.kneighbors(bins)
    out = np.empty((len(bins), values.shape[1]))
    for i in np.unique(chosen):
        out[:, chosen == i] = _mean_of(*to_bins, numbers[i], n_spots) @ values[:, chosen == i]
    return Fit(out, held_out)


def _mean_of(distance: np.ndarray, index: np.ndarray, k: int, n_spots: int) -> sparse.csr_matrix:
    weights = 1 / np.maximum(distance[:, :k], 1e-3) ** 2
    weights /= weights.sum(1, keepdims=True)
    ends = np.arange(0, weights.size + 1, k)
    return sparse.csr_matrix((weights.ravel(), index[:, :k].ravel(), ends), (len(index), n_spots))
