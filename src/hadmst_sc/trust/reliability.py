"""Reliability of each gene: every spot is predicted from the others and compared with its counts.

The closed form predicts a held-out spot exactly and without a refit (:mod:`hadmst_sc.regression.additive`), so this
test costs nothing. It is a test at the scale of spots: it cannot show what is right within a spot.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hadmst_sc.distillation.genes import Distilled
from hadmst_sc.section.observation import RELIABILITY

LEVEL = 0.9  # level of the intervals
N_RESAMPLES = 200
BLOCK_PITCHES = 4  # edge of the blocks of spots that are resampled together, because neighbours are not independent
MIN_BLOCKS = 12  # with fewer blocks, smaller ones are used
REACHES = (0, 1, 2)  # pitches within which counts are summed, finest first
SUPPORT = 0.5  # correlation that the lower end of the interval must reach: a quarter of the variance
MIN_GAIN = 0.01  # smaller gains in correlation are not reported as help
TINY = 1e-20


def reliability(distilled: Distilled, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Reliability of the estimate of each gene, from leave-one-out predictions at the spots.

    Parameters
    ----------
    distilled
        The section.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Columns ``(genes,)``:

    - ``reliability``: Pearson correlation over spots of log1p counts with those predicted from all other spots and the
      image; ``reliability_low`` and ``reliability_high`` are its 90 % interval from a block bootstrap over spots.
    - ``gain_over_interpolation``: ``reliability`` minus the same correlation without the image, from other spots alone.
    - ``image_helps``: True if this gain is significant: its 5 % quantile is above 0.01 and ``reliability_low`` above 0.
    - ``finest_um``: finest width in µm at which the gene is supported (``reliability_low`` at least 0.5). This is the
      diameter of a spot; the pitch if the image does not help, because the map is then an interpolation; for genes too
      rare for single spots, the width of a neighbourhood whose summed counts would suffice. NaN if even that does not
      suffice: such a map is a guess.
    """
    section, measurement = distilled.section, distilled.measurement
    spots = measurement.centres / measurement.pitch
    weights = block_bootstrap(spots, seed)
    neighbours = neighbour_means(spots)
    n_within = {reach: n_within_reach(spots, reach) if reach else 1 for reach in REACHES}
    diameter, pitch = measurement.diameter * section.bin_um, measurement.pitch * section.bin_um
    found: dict[str, list[np.ndarray]] = {name: [] for name in RELIABILITY}
    for genes in distilled.panel.blocks():
        counts = distilled.panel.counts[:, genes].astype(float)
        joint, space = (correlations(weights, counts, distilled.held_out(genes, one)) for one in ("joint", "space"))
        low, high = np.quantile(joint[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        helps = (np.quantile(joint[1:] - space[1:], (1 - LEVEL) / 2, axis=0) > MIN_GAIN) & (low > 0)
        finest = np.full(len(low), np.nan)
        for reach in reversed(REACHES):
            supported = summed_correlation(low, counts, neighbours, n_within[reach]) >= SUPPORT
            finest[supported] = diameter + 2 * reach * pitch
        finest[~helps] = np.maximum(finest[~helps], pitch)
        values = (joint[0], low, high, joint[0] - space[0], helps, finest)
        for name, column in zip(RELIABILITY, values, strict=True):
            found[name].append(column)
    return {name: np.concatenate(columns) for name, columns in found.items()}


def block_bootstrap(spots: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap weights of the spots, ``(1 + N_RESAMPLES, spots)``: ones in the first row, then resampled blocks."""
    for edge in range(BLOCK_PITCHES, 0, -1):
        block = np.unique(np.floor((spots - spots.min(0)) / edge), axis=0, return_inverse=True)[1].ravel()
        n = int(block.max()) + 1
        if n >= MIN_BLOCKS:
            break
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
    return np.concatenate([np.ones((1, len(spots))), times[:, block]])


def neighbour_means(spots: np.ndarray) -> sparse.csr_matrix:
    """Matrix ``(spots, spots)`` that averages the neighbours of each spot, without itself; zero rows without any."""
    tree = cKDTree(spots)
    near = sparse.csr_matrix(tree.sparse_distance_matrix(tree, 1.25, output_type="coo_matrix") > 0).astype(float)
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(np.asarray(near.sum(1)).ravel(), 1)) @ near)


def n_within_reach(spots: np.ndarray, reach: int) -> int:
    """Number of spots within ``reach`` pitches of a typical spot, itself included."""
    slack = 0.2  # pitches, for noise of positions; the next distance on a square lattice is 0.24 beyond two pitches
    return int(np.median(cKDTree(spots).query_ball_point(spots, reach + slack, return_length=True)))


def summed_correlation(
    correlation: np.ndarray, counts: np.ndarray, neighbours: sparse.csr_matrix, n: int
) -> np.ndarray:
    """Estimate the correlation ``(genes,)`` for counts summed over ``n`` spots, from that of single spots.

    The variance due to tissue is the covariance of a spot with its neighbours, whose counting noise is independent.
    Averaged predictions cannot be used: they have seen the neighbours' noise.
    """
    if n == 1:
        return correlation
    centred = counts - counts.mean(0)
    tissue = (centred * (neighbours @ centred)).mean(0).clip(0)
    together = np.maximum(tissue + counts.mean(0) / n, TINY)
    return np.minimum(correlation * np.sqrt(centred.var(0) / together), np.sqrt(tissue / together))


def correlations(weights: np.ndarray, counts: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation of log1p values under each row of weights, ``(rows, genes)``; 0 where one is constant."""
    x, y = (values - values.mean(0) for values in (np.log1p(counts), np.log1p(np.maximum(predicted, 0))))
    share = weights / weights.sum(1, keepdims=True)
    (mx, my), (xx, yy, xy) = (share @ a for a in (x, y)), (share @ a for a in (x * x, y * y, x * y))
    variance = (xx - mx**2).clip(0) * (yy - my**2).clip(0)
    return np.where(variance > TINY, (xy - mx * my) / np.sqrt(np.maximum(variance, TINY)), 0.0)
