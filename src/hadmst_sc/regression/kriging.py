"""Gaussian processes in space with local neighbourhoods: linear in the number of spots, shared by all genes.

Kriging weights and the precision of the spots depend on kernel and nugget, not on the values, so one sparse matrix
serves every gene or component.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from hadmst_sc.runtime import side_by_side

N_NEIGHBORS = 32  # preceding neighbours of a spot in the precision
N_KRIGED = 64  # neighbours of a spot in maps
BLOCK = 256  # spots per block, to limit memory
ORDER_SEED = 20_261_125
# Correlation lengths in spot pitches (80, 200 and 500 µm on Visium) as (weight, length) sums, and noise-to-signal
# ratios.
KERNELS: tuple[tuple[tuple[float, float], ...], ...] = (((1.0, 0.8),), ((1.0, 2.0),), ((0.5, 0.8), (0.5, 5.0)))
NUGGETS = (0.1, 0.5, 2.5, 12.0)


@dataclass(frozen=True)
class Kernel:
    """Sum of Matérn-3/2 kernels with unit variance, plus a nugget."""

    terms: tuple[tuple[float, float], ...]
    nugget: float

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """Covariance at ``distance`` (in pitches), without the nugget."""
        return np.sum([np.float32(weight) * _matern(distance, length) for weight, length in self.terms], axis=0)


CANDIDATES = tuple(Kernel(terms, nugget) for terms in KERNELS for nugget in NUGGETS)


def _matern(distance: np.ndarray, length: float) -> np.ndarray:
    r = distance * np.float32(np.sqrt(3.0) / length)
    return (1 + r) * np.exp(-r)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance between points whose last axis is (y, x); several times faster than a norm over an axis of two."""
    return np.sqrt(np.square(a[..., 0] - b[..., 0]) + np.square(a[..., 1] - b[..., 1]))


def _distances(spots: np.ndarray, targets: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each target to its spots, ``(targets, n)``, and between these, ``(targets, n, n)``."""
    spots, targets = spots.astype(np.float32), targets.astype(np.float32)  # precise enough for weights
    near = spots[index]
    return _distance(near, targets[:, None]), _distance(near[:, :, None], near[:, None])


class SpotPrecision:
    """Sparse precision of the spots' values under any kernel, ``(K + nugget)⁻¹``, by nearest neighbours.

    The joint density of all spots is the product of the densities of each given the preceding ones. Conditioning on the
    nearest of these only (Vecchia 1988) gives a sparse triangular root. The order is random but fixed, so that both
    near and far spots precede (Guinness 2018).

    Parameters
    ----------
    spots
        ``(spots, 2)`` positions in pitches.
    """

    def __init__(self, spots: np.ndarray) -> None:
        order = np.random.default_rng(ORDER_SEED).permutation(len(spots))
        rank = np.argsort(order)
        n = min(N_NEIGHBORS, len(spots))
        self.index = np.zeros((len(spots), n), int)
        self.used = np.zeros((len(spots), n), bool)
        stop = len(spots)
        while stop:
            # For the later half of the spots, half of the nearest neighbours precede: 4 n candidates are enough.
            start = stop // 2 if stop > 4 * n else 0
            own, nearest = order[start:stop], min(stop, 4 * n)
            near = cKDTree(spots[order[:stop]]).query(spots[own], nearest)[1].reshape(len(own), nearest)
            near = order[near]
            before = rank[near] < rank[own][:, None]
            first = np.argsort(~before, axis=1, kind="stable")[:, :n]
            self.index[own] = np.take_along_axis(near, first, 1)
            self.used[own] = np.take_along_axis(before, first, 1)
            stop = start
        self.to_spot, self.between = _distances(spots, spots, self.index)

    def root(self, kernel: Kernel) -> sparse.csr_matrix:
        """Root ``L`` of the precision ``LᵀL``, ``(spots, spots)``."""
        spots, n = self.index.shape
        covariance = kernel(self.between) * (self.used[:, :, None] & self.used[:, None])
        covariance[:, np.arange(n), np.arange(n)] = 1 + kernel.nugget
        cross = kernel(self.to_spot) * self.used
        weights = np.linalg.solve(covariance, cross[..., None])[..., 0].astype(float)
        rest = 1 + kernel.nugget - (weights * cross).sum(1)  # variance given the neighbours
        rows = np.repeat(np.arange(spots), n)
        known = sparse.csr_matrix((weights.ravel(), (rows, self.index.ravel())), shape=(spots, spots))
        return sparse.csr_matrix(sparse.diags(1 / np.sqrt(rest)) @ (sparse.eye(spots) - known))


class Neighbourhoods:
    """Simple kriging (mean zero) of targets, each from the neighbours of its nearest spot.

    There is one linear system per spot, not per target, so more neighbours are affordable and maps have fewer seams.

    Parameters
    ----------
    spots
        ``(spots, 2)`` positions in pitches.
    targets
        ``(targets, 2)`` positions in pitches.
    """

    def __init__(self, spots: np.ndarray, targets: np.ndarray) -> None:
        tree = cKDTree(spots)
        nearest = tree.query(targets)[1]
        self._order = np.argsort(nearest, kind="stable")
        self._cells, starts = np.unique(nearest[self._order], return_index=True)
        self._edges = np.append(starts, len(targets))  # boundaries of the cells in this order
        n = min(N_KRIGED, len(spots))
        self._near = tree.query(spots[self._cells], n)[1].reshape(-1, n)
        self._spots, self._targets = spots.astype(np.float32), targets[self._order].astype(np.float32)

    def __call__(self, kernel: Kernel, values: np.ndarray) -> np.ndarray:
        """Krige values ``(spots, c)`` to ``(targets, c)`` float32."""
        out = np.empty((len(self._targets), values.shape[1]), np.float32)
        values, n = values.astype(np.float32), self._near.shape[1]

        def krige(first: int) -> None:
            near, edges = self._near[first : first + BLOCK], self._edges[first : first + BLOCK + 1]
            places = self._spots[near]
            covariance = kernel(_distance(places[:, :, None], places[:, None]))
            covariance[:, np.arange(n), np.arange(n)] += kernel.nugget
            weighted = np.linalg.solve(covariance, values[near])
            own = np.repeat(np.arange(len(near)), np.diff(edges))
            cross = kernel(_distance(self._targets[edges[0] : edges[-1], None], places[own]))
            kriged = np.empty((len(cross), values.shape[1]), np.float32)
            for cell, (start, stop) in enumerate(pairwise((edges - edges[0]).tolist())):
                np.matmul(cross[start:stop], weighted[cell], out=kriged[start:stop])
            out[self._order[edges[0] : edges[-1]]] = kriged

        side_by_side(krige, range(0, len(self._cells), BLOCK))
        return out


class Lattice:
    """Kriging onto a lattice with a third of the pitch, then interpolation to bins; kriged maps are smooth.

    Parameters
    ----------
    centres
        ``(spots, 2)`` in bins.
    pitch
        Distance between neighbouring spots in bins.
    active
        ``(ny, nx)`` bool: bins at which maps are evaluated.
    """

    def __init__(self, centres: np.ndarray, pitch: float, active: np.ndarray) -> None:
        self.step = max(1, int(pitch / 3))
        self.active = active
        counts = tuple(-(-side // self.step) + 1 for side in active.shape)
        near = np.zeros(counts, bool)
        y, x = np.nonzero(active)
        ends = (0, 1) if self.step > 1 else (0,)
        for dy in ends:
            for dx in ends:  # a bin between nodes needs all four
                near[y // self.step + dy, x // self.step + dx] = True
        self.nodes = near
        # Node n sits on the centre of bin n * step.
        self._kriged = Neighbourhoods(centres / pitch, (np.argwhere(near) * self.step + 0.5) / pitch)

    def krige(self, kernel: Kernel, values: np.ndarray) -> np.ndarray:
        """Krige values ``(spots, c)`` to maps ``(c, active bins)`` float32."""
        at_nodes = self._kriged(kernel, values)
        if self.step == 1:  # the nodes are the bins
            return np.ascontiguousarray(at_nodes.T)
        at_bins = np.argwhere(self.active).T / self.step
        dense = np.zeros(self.nodes.shape)
        out = np.empty((values.shape[1], at_bins.shape[1]), np.float32)
        for channel, column in enumerate(at_nodes.T):
            dense[self.nodes] = column
            out[channel] = ndimage.map_coordinates(dense, at_bins, order=1)
        return out
