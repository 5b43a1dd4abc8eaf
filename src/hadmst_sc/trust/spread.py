"""Spread of the estimate: how far expected counts are from the true ones, in a bin and in sums over many bins.

At held-out spots, counts scatter more than counting noise alone would make them, and the excess grows with the
expected count itself: its variance is a multiple of the expected count, the *dispersion* of the gene. On tissue whose
cells were measured, the same holds in bins and in blocks of any width, with a factor that grows slowly with the area.
Two terms describe it: the part of single cells, which no spot resolves and which is independent between bins, and a
part that neighbouring bins share. Nothing else that a section shows (distance to spots, disagreement of predictions,
samples of the diffusion) tells better where the error is large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.spatial.distance import cdist

# Covariance of the errors of two bins with expected counts m and n at a distance of d pitches:
# dispersion * sqrt(m n) * (OWN if they are one bin + SHARED * area of a bin in square pitches * exp(-d / REACH)).
# Tuned on Xenium of breast and mouse brain and MERFISH of the hippocampus, in blocks of 20 to 320 µm, at a pitch of 100
# and of 50 µm; `benchmarks/benchmark.toml`, task `draws`.
OWN, SHARED, REACH = 0.6, 1.4, 0.6
LEAST = 0.05  # smallest dispersion: nothing is known to a twentieth of counting noise
FEW_BINS, MANY_PAIRS = 16, 100_000  # sums of few bins are computed together, so many pairs of bins at a time
MANY_BINS = 1000  # above this, pairs of bins are summed by a Fourier transform
FAR = 20.0  # reaches at which nothing is shared, to a billionth
PRIOR_SPOTS = 10  # spots whose weight the median of all genes has in the dispersion of each


def excess(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Sums over spots of the squared error beyond counting noise, and of the expected counts, ``(2, genes)``.

    Parameters
    ----------
    counts, expected
        ``(spots, genes)``: measured counts and their held-out predictions.
    """
    return np.stack([((counts - expected) ** 2 - expected).sum(0), np.maximum(expected.sum(0), 1e-9)])


def dispersion(sums: np.ndarray, n_spots: int) -> np.ndarray:
    """Variance of the error over expected counts in a spot.

    Parameters
    ----------
    sums
        ``(2, genes)`` of :func:`excess`.
    n_spots
        Number of spots in the sums.

    Returns
    -------
    ``(genes,)``, shrunken towards the median of the genes, at least ``LEAST``.
    """
    beyond, total = sums
    median, prior = max(float(np.median(beyond / total)), LEAST), PRIOR_SPOTS / n_spots
    return np.maximum((beyond / total + prior * median) / (1 + prior), LEAST)


class Spread(NamedTuple):
    """Spread of all genes of a section.

    Parameters
    ----------
    dispersion
        ``(genes,)`` variance over expected counts in a spot that the estimate has not seen. Where it has seen the spot,
        the two terms of the covariance add up to about 0.8 of that.
    pitch
        Distance of the spots, bins.
    """

    dispersion: np.ndarray
    pitch: float

    @property
    def of_bin(self) -> np.ndarray:
        """Variance over expected counts in a single bin, ``(genes,)``."""
        return self.dispersion * (OWN + SHARED / self.pitch**2)

    def of_sums(self, mean: np.ndarray, weights: sparse.csr_array, places: np.ndarray) -> np.ndarray:
        """Standard deviation of sums over bins.

        Parameters
        ----------
        mean
            ``(bins, genes)`` expected counts.
        weights
            ``(sums, bins)`` share of each bin that belongs to each sum.
        places
            ``(bins, 2)`` row and column of each bin on the grid.

        Returns
        -------
        ``(sums, genes)``.
        """
        shared = np.zeros((weights.shape[0], mean.shape[1]))
        n_bins = np.diff(weights.indptr)
        small = np.flatnonzero((n_bins > 0) & (n_bins <= FEW_BINS))
        for some in np.array_split(small, 1 + (n_bins[small] ** 2).sum() // MANY_PAIRS):
            shared[some] = self._of_few(weights[some], mean, places)
        for number in np.flatnonzero(n_bins > FEW_BINS):
            start, stop = weights.indptr[number : number + 2]
            bins = weights.indices[start:stop]
            roots = weights.data[start:stop, None] * np.sqrt(np.maximum(mean[bins], 0.0))
            shared[number] = self._shared(roots, places[bins])
        own = weights @ np.maximum(mean, 0.0)
        return np.sqrt(self.dispersion * (OWN * own + SHARED / self.pitch**2 * shared))

    def _of_few(self, weights: sparse.csr_array, mean: np.ndarray, places: np.ndarray) -> np.ndarray:
        """As :meth:`_shared`, for many sums of a few bins each, ``(sums, genes)``."""
        n = np.diff(weights.indptr)
        first = np.repeat(np.arange(weights.nnz), np.repeat(n, n))
        number = np.arange(len(first)) - np.repeat(np.cumsum(n**2) - n**2, n**2)
        second = np.repeat(weights.indptr[:-1], n**2) + number % np.repeat(n, n**2)
        one, two = weights.indices[first], weights.indices[second]
        near = np.exp(-np.hypot(*(places[one] - places[two]).T) / (REACH * self.pitch))
        factor = weights.data[first] * weights.data[second] * near
        sums = sparse.csr_array((factor, np.arange(len(first)), np.r_[0, np.cumsum(n**2)]), (len(n), len(first)))
        roots = np.sqrt(np.maximum(mean, 0.0))
        return np.asarray(sums @ (roots[one] * roots[two]))

    def _shared(self, roots: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Sum over all pairs of bins of the product of their roots ``(bins, genes)`` and of what the two share."""
        reach = REACH * self.pitch
        if len(places) <= MANY_BINS:
            return np.asarray((roots * (np.exp(-cdist(places, places) / reach) @ roots)).sum(0))
        # The same as a convolution, on the rectangle around the bins and a border beyond which nothing is shared.
        y, x = (places - places.min(0)).T
        border = int(np.ceil(FAR * reach))
        ny, nx = (next_fast_len(int(side.max()) + 1 + min(border, int(side.max())), real=True) for side in (y, x))
        dy, dx = (np.minimum(np.arange(side), side - np.arange(side)) for side in (ny, nx))
        kernel = rfft2(np.exp(-np.hypot(dy[:, None], dx) / reach))
        found = np.empty(roots.shape[1])
        for gene, values in enumerate(roots.T):
            field = np.zeros((ny, nx))
            field[y, x] = values
            found[gene] = (values * irfft2(rfft2(field) * kernel, (ny, nx))[y, x]).sum()
        return found
