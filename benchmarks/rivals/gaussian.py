"""Gaussian processes and ridge on H&E and space, tuned per gene by exact leave-one-out.

Everything works on *rates*, counts per bin of footprint over the gene's mean, so that genes weigh alike and partial
footprints are comparable. A hold-out needs no second loop: what is tuned is tuned on the spots that were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hadmst_sc.section.features import he_features
from rivals.section import Fit, Fitter, Section, shared

LENGTHS = (0.8, 2.0, 5.0)  # of the Matérn kernel, in pitches
NOISES = tuple(10.0 ** np.arange(-2, 2.1, 0.5))  # noise over signal variance, the ridge penalty of the H&E kernels
N_RANDOM = 256  # random Fourier features


class Terms(NamedTuple):
    """Weights of the three kernels, each scaled to a mean variance of one, and the length of the last in pitches."""

    linear: float
    random: float
    space: float
    length: float = 0.0


LINEAR = (Terms(1, 0, 0),)
SPACE = tuple(Terms(0, 0, 1, length) for length in LENGTHS)
ADDITIVE = (
    *LINEAR,
    Terms(0.5, 0.5, 0),
    *SPACE,
    *(Terms(0.25, 0.25, 0.5, length) for length in LENGTHS),
    Terms(0.5, 0, 0.5, 2.0),
    Terms(0.1, 0.1, 0.8, 2.0),
)


class Kernel:
    """Covariances between spots and from spots to bins: a constant, linear H&E, random-feature H&E, Matérn-3/2 space.

    H&E enters as the average over each footprint (the measurement operator), space by the centres. The constant is the
    uncertainty of the mean, so that a held-out spot is not predicted through the mean that it was part of.
    """

    def __init__(self, section: Section, mixes: Sequence[Terms], seed: int = 0) -> None:
        self.section = section
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []  # (bins, f) and (spots, f) of the two H&E kernels
        if any(mix.linear or mix.random for mix in mixes):
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

    def decompose(self, mix: Terms) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ``(r,)`` and vectors ``(spots, r)`` of the covariance between spots; the others are zero."""
        n_spots = len(self.section.spots_um)
        columns = [np.ones((n_spots, 1))]
        columns += [np.sqrt(weight) * spots for weight, (_, spots) in zip(mix[:2], self.parts, strict=False) if weight]
        factor = np.concatenate(columns, 1)
        if not mix.space:
            vectors, singular, _ = np.linalg.svd(factor, full_matrices=False)
            return singular**2, vectors
        space = mix.space * _matern(self.section.spots_um, self.section.spots_um, mix.length * self.section.pitch_um)
        # Single precision halves the time; its error, 1e-4 at worst, stays far below the least noise.
        eigenvalues, vectors = np.linalg.eigh((factor @ factor.T + space).astype(np.float32))
        return np.maximum(eigenvalues, 0), vectors

    def to_bins(self, mixes: Sequence[Terms], weights: np.ndarray, block: int = 8192) -> np.ndarray:
        """``(spots, genes)`` dual weights, each gene with its own mix, to ``(bins, genes)`` values."""
        section = self.section
        out = np.broadcast_to(weights.sum(0), (len(section.bins_um), weights.shape[1])).copy()
        shares, lengths = np.array(mixes)[:, :3], np.array(mixes)[:, 3]  # per gene
        for share, (bins, spots) in zip(shares.T[:2], self.parts, strict=False):
            out += bins @ (spots.T @ (weights * share)).astype(np.float32)
        origin = section.spots_um.mean(0)  # single precision resolves a slide better from its middle
        bins_um, spots_um = ((points - origin).astype(np.float32) for points in (section.bins_um, section.spots_um))
        for length in np.unique(lengths[shares[:, 2] > 0]):
            genes = lengths == length
            scaled = (weights[:, genes] * shares[genes, 2]).astype(np.float32)
            for start in range(0, len(out), block):  # bins × spots does not fit in memory at once
                rows = slice(start, start + block)
                out[rows, genes] += _matern(bins_um[rows], spots_um, length * section.pitch_um) @ scaled
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


def fit(section: Section, mixes: Sequence[Terms], values: np.ndarray | None = None) -> Fit:
    """Gaussian-process regression with mix and noise chosen per gene by exact leave-one-out error.

    One eigendecomposition per mix serves all noises and genes. With ``w = (K + noise)⁻¹ y`` the error at a spot left
    out is ``w / diag((K + noise)⁻¹)`` (Rasmussen & Williams, Eq. 5.12). ``values`` are ``(spots, genes)``; ``None``
    takes the rates.
    """
    values = section.rates if values is None else values
    mean = values.mean(0)
    values = values - mean
    kernel = Kernel(section, mixes)
    best = np.full(values.shape[1], np.inf)
    chosen = np.zeros(values.shape[1], int)
    weights, held_out = np.zeros_like(values), np.zeros_like(values)
    for index, mix in enumerate(mixes):
        eigenvalues, vectors = kernel.decompose(mix)
        rotated, squares = vectors.T @ values.astype(vectors.dtype), vectors**2
        for noise in NOISES:
            gain = 1 / (eigenvalues + noise) - 1 / noise  # the inverse is 1 / noise beside the decomposed directions
            w = vectors @ (gain[:, None] * rotated) + values / noise
            error = w / (squares @ gain + 1 / noise)[:, None]
            loss = (error**2).mean(0)
            better = loss < best
            best[better], chosen[better] = loss[better], index
            weights[:, better], held_out[:, better] = w[:, better], (values - error)[:, better]
    return Fit(kernel.to_bins([mixes[index] for index in chosen], weights) + mean, held_out + mean)


@shared
def ridge(section: Section) -> Fit:
    """Ridge regression on the H&E features."""
    return fit(section, LINEAR)


@shared
def kriging(section: Section) -> Fit:
    """Gaussian process on space alone."""
    return fit(section, SPACE)


@shared
def additive(section: Section) -> Fit:
    """Gaussian process on H&E and space together."""
    return fit(section, ADDITIVE)


def and_kriging(fitter: Fitter) -> Fitter:
    """A regression, then kriging of what it leaves at held-out spots."""

    def both(section: Section) -> Fit:
        image = fitter(section)
        rest = fit(section, SPACE, section.rates - image.held_out)
        return Fit(image.bins + rest.bins, image.held_out + rest.held_out)

    return both
