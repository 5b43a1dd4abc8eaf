"""Gaussian processes and ridge on H&E and space, tuned per gene by exact leave-one-out.

Everything works on *rates*, counts per bin of footprint over the gene's mean, so that genes weigh alike and partial
footprints are comparable. A hold-out needs no second loop: what is tuned is tuned on the spots that were given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hadmst_sc.section.features import he_features
from hadmst_sc.section.observation import Observation

LENGTHS_UM = (80.0, 200.0, 500.0)
NOISES = tuple(10.0 ** np.arange(-2, 2.1, 0.5))  # noise over signal variance, the ridge penalty of the H&E kernels
N_RANDOM = 256  # random Fourier features
FLOOR = 0.02  # of the gene's mean: regressions go below zero, expected counts do not
SPREAD_UM = 50.0  # half the pitch of Visium: how far a spot's ratio reaches into the gaps


class Terms(NamedTuple):
    """Weights of the three kernels, each scaled to a mean variance of one, and the length of the last."""

    linear: float
    random: float
    space: float
    length_um: float = 0.0


LINEAR = (Terms(1, 0, 0),)
SPACE = tuple(Terms(0, 0, 1, length) for length in LENGTHS_UM)
ADDITIVE = (
    *LINEAR,
    Terms(0.5, 0.5, 0),
    *SPACE,
    *(Terms(0.25, 0.25, 0.5, length) for length in LENGTHS_UM),
    Terms(0.5, 0, 0.5, 200.0),
    Terms(0.1, 0.1, 0.8, 200.0),
)


@dataclass(frozen=True, eq=False)
class Section:
    """An observation as rates on points in µm, bins restricted to the tissue."""

    obs: Observation
    rates: np.ndarray  # (spots, genes), mean one
    mean: np.ndarray  # (genes,) counts per bin
    spots_um: np.ndarray  # (spots, 2)
    bins_um: np.ndarray  # (bins, 2)
    matrix: sparse.csr_matrix  # (spots, bins) area fractions

    @classmethod
    def of(cls, obs: Observation) -> Section:
        """Rates and points of an observation."""
        inside = np.flatnonzero(obs.inside)
        area = np.maximum(obs.measurement.area, 1e-12)[:, None]
        mean = obs.counts.sum(0, dtype=float) / area.sum()
        rates = obs.counts / area / np.maximum(mean, 1e-12)
        um = obs.grid.bin_um
        matrix = obs.measurement.matrix[:, inside]
        return cls(obs, rates, mean, obs.measurement.centres * um, obs.grid.centres()[inside] * um, matrix)

    @property
    def area(self) -> np.ndarray:
        """``(spots, 1)`` footprint in bins."""
        return np.maximum(self.obs.measurement.area, 1e-12)[:, None]

    def maps(self, rates: np.ndarray) -> np.ndarray:
        """``(bins, genes)`` rates to ``(genes, ny, nx)`` expected counts per bin."""
        out = np.zeros((rates.shape[1], *self.obs.grid.shape), np.float32)
        out[:, self.obs.inside] = (np.maximum(rates, 0) * self.mean).T
        return out


# --- Gaussian processes -----------------------------------------------------------------------------------------------


class Kernel:
    """Covariances between spots and from spots to bins: a constant, linear H&E, random-feature H&E, Matérn-3/2 space.

    H&E enters as the average over each footprint (the measurement operator), space by the centres. The constant is the
    uncertainty of the mean, so that a held-out spot is not predicted through the mean that it was part of.
    """

    def __init__(self, section: Section, candidates: Sequence[Terms], seed: int = 0) -> None:
        self.section = section
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []  # (bins, f) and (spots, f) of the two H&E kernels
        if any(terms.linear or terms.random for terms in candidates):
            bins = _standardised_he(section)
            rng = np.random.default_rng(seed)
            frequencies = rng.standard_normal((bins.shape[1], N_RANDOM)) / np.sqrt(bins.shape[1])
            waves = np.cos(bins @ frequencies + rng.uniform(0, 2 * np.pi, N_RANDOM)).astype(np.float32)
            self.parts = [self._scaled(bins), self._scaled(waves)]

    def _scaled(self, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spots = self.section.matrix @ bins / self.section.area
        centre = spots.mean(0)
        # Mean variance one over the spots; an image that shows nothing stays at nothing.
        scale = max(np.sqrt(np.mean(((spots - centre) ** 2).sum(1))), 1e-6)
        return ((bins - centre) / scale).astype(np.float32), (spots - centre) / scale

    def decompose(self, terms: Terms) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ``(r,)`` and vectors ``(spots, r)`` of the covariance between spots; the others are zero."""
        n_spots = len(self.section.spots_um)
        columns = [np.ones((n_spots, 1))]
        columns += [
            np.sqrt(weight) * spots for weight, (_, spots) in zip(terms[:2], self.parts, strict=False) if weight
        ]
        factor = np.concatenate(columns, 1)
        if not terms.space:
            vectors, singular, _ = np.linalg.svd(factor, full_matrices=False)
            return singular**2, vectors
        space = terms.space * _matern(self.section.spots_um, self.section.spots_um, terms.length_um)
        # Single precision halves the time; its error, 1e-4 at worst, stays far below the least noise.
        eigenvalues, vectors = np.linalg.eigh((factor @ factor.T + space).astype(np.float32))
        return np.maximum(eigenvalues, 0), vectors

    def to_bins(self, candidates: Sequence[Terms], weights: np.ndarray, block: int = 8192) -> np.ndarray:
        """``(spots, genes)`` dual weights, each gene with its own terms, to ``(bins, genes)`` values."""
        section = self.section
        out = np.broadcast_to(weights.sum(0), (len(section.bins_um), weights.shape[1])).copy()
        shares, lengths = np.array(candidates)[:, :3], np.array(candidates)[:, 3]  # per gene
        for share, (bins, spots) in zip(shares.T[:2], self.parts, strict=False):
            out += bins @ (spots.T @ (weights * share)).astype(np.float32)
        origin = section.spots_um.mean(0)  # single precision resolves a slide better from its middle
        bins_um, spots_um = ((points - origin).astype(np.float32) for points in (section.bins_um, section.spots_um))
        for length in np.unique(lengths[shares[:, 2] > 0]):
            genes = lengths == length
            scaled = (weights[:, genes] * shares[genes, 2]).astype(np.float32)
            for start in range(0, len(out), block):  # bins × spots does not fit in memory at once
                rows = slice(start, start + block)
                out[rows, genes] += _matern(bins_um[rows], spots_um, length) @ scaled
        return out


def _standardised_he(section: Section) -> np.ndarray:
    """``(bins, f)`` H&E features with mean 0 and s.d. 1 over the spots, outliers held at six s.d."""
    bins = he_features(section.obs)[:, section.obs.inside].T
    spots = section.matrix @ bins / section.area
    return np.clip((bins - spots.mean(0)) / (spots.std(0) + 1e-6), -6, 6)


def _matern(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    r = np.sqrt(np.maximum(squared, 0)) * float(np.sqrt(3) / length)
    return (1 + r) * np.exp(-r)


class Fit(NamedTuple):
    """Values that a regression predicts for the bins, and for each spot from all the others."""

    bins: np.ndarray  # (bins, genes)
    held_out: np.ndarray  # (spots, genes)


def fit(section: Section, candidates: Sequence[Terms], values: np.ndarray | None = None) -> Fit:
    """Gaussian-process regression with terms and noise chosen per gene by exact leave-one-out error.

    One eigendecomposition per candidate serves all noises and genes. With ``w = (K + noise)⁻¹ y`` the leave-one-out
    error at a spot is ``w / diag((K + noise)⁻¹)`` (Rasmussen & Williams, Eq. 5.12). ``values`` are ``(spots, genes)``;
    ``None`` takes the rates.
    """
    values = section.rates if values is None else values
    mean = values.mean(0)
    values = values - mean
    kernel = Kernel(section, candidates)
    best = np.full(values.shape[1], np.inf)
    chosen = np.zeros(values.shape[1], int)
    weights, held_out = np.zeros_like(values), np.zeros_like(values)
    for index, terms in enumerate(candidates):
        eigenvalues, vectors = kernel.decompose(terms)
        rotated, squares = vectors.T @ values.astype(vectors.dtype), vectors**2
        for noise in NOISES:
            gain = 1 / (eigenvalues + noise) - 1 / noise  # the inverse is 1 / noise beside the decomposed directions
            w = vectors @ (gain[:, None] * rotated) + values / noise
            error = w / (squares @ gain + 1 / noise)[:, None]
            loss = (error**2).mean(0)
            better = loss < best
            best[better], chosen[better] = loss[better], index
            weights[:, better], held_out[:, better] = w[:, better], (values - error)[:, better]
    return Fit(kernel.to_bins([candidates[index] for index in chosen], weights) + mean, held_out + mean)


def ridge(section: Section) -> Fit:
    """Ridge regression on the H&E features."""
    return fit(section, LINEAR)


def kriging(section: Section) -> Fit:
    """Gaussian process on space alone."""
    return fit(section, SPACE)


def additive(section: Section) -> Fit:
    """Gaussian process on H&E and space together."""
    return fit(section, ADDITIVE)


def ridge_and_kriging(section: Section) -> Fit:
    """Ridge on H&E, then kriging of what it leaves."""
    image = fit(section, LINEAR)
    rest = fit(section, SPACE, section.rates - image.held_out)
    return Fit(image.bins + rest.bins, image.held_out + rest.held_out)


# --- consistency ------------------------------------------------------------------------------------------------------


def soft(section: Section, found: Fit, *, spread: bool = False) -> np.ndarray:
    """Gamma–Poisson consistency: multiply measured bins by ``(y + k) / (mu + k)``; ``(bins, genes)`` rates.

    ``k`` per gene by moments from the left-out predictions. With ``spread`` the smoothed log-ratio of the spots around
    fills the gaps between them; without it they keep the regression.
    """
    rates = np.maximum(found.bins, FLOOR)
    unit = np.maximum(section.mean, 1e-12)
    counts = section.obs.counts
    k = gamma_shape(counts, np.maximum(found.held_out, FLOOR) * section.area * unit)
    ratio = (counts + k) / ((section.matrix @ rates) * unit + k)
    coverage = np.asarray(section.matrix.sum(0)).ravel()[:, None]
    measured = section.matrix.T @ ratio / np.maximum(coverage, 1e-9)
    between = np.exp(_spread_weights(section) @ np.log(np.maximum(ratio, 1e-3))) if spread else 1.0
    share = np.minimum(coverage, 1)
    return rates * (share * measured + (1 - share) * between)


def gamma_shape(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """``(genes,)`` shape ``k`` of ``counts ~ Poisson(expected · Gamma(k, 1/k))``, by moments; large if Poisson."""
    excess = ((counts - expected) ** 2 - expected).sum(0)
    return np.clip((expected**2).sum(0) / np.maximum(excess, 1e-9), 0.05, 1e6)


def _spread_weights(section: Section, n_neighbours: int = 12) -> sparse.csr_matrix:
    n_spots, n_bins = len(section.spots_um), len(section.bins_um)
    distance, index = cKDTree(section.spots_um).query(section.bins_um, k=range(1, min(n_neighbours, n_spots) + 1))
    weight = np.exp(-0.5 * (distance / SPREAD_UM) ** 2) + 1e-12
    weight /= weight.sum(1, keepdims=True)
    rows = np.repeat(np.arange(n_bins), index.shape[1])
    return sparse.csr_matrix((weight.ravel(), (rows, index.ravel())), shape=(n_bins, n_spots))


def in_log(section: Section, fitter: Callable[[Section], Fit]) -> Fit:
    """Regress log1p of counts per whole footprint; the sums lost to the logarithm return as a factor (Duan 1983)."""
    depth = np.maximum(section.mean * np.median(section.area), 1e-12)
    found = fitter(replace(section, rates=np.log1p(section.rates * depth)))
    bins, held_out = (np.maximum(np.expm1(part) / depth, 0) for part in found)
    factor = section.rates.sum(0) / np.maximum(held_out.sum(0), 1e-9)
    return Fit(bins * factor, held_out * factor)
