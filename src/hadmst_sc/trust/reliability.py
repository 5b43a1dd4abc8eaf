"""Which genes to believe: every spot is predicted from the others, and compared with what was counted there.

The closed form predicts a held-out spot exactly and without a refit (:mod:`hadmst_sc.regression.additive`), so the
evidence is free. It is evidence about spots: nothing here can tell what is right within one.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hadmst_sc.distillation.genes import Distilled
from hadmst_sc.section.observation import RELIABILITY

LEVEL = 0.9  # of the intervals
N_RESAMPLES = 200
BLOCK_PITCHES = 4  # spots are drawn in squares of this edge: neighbours are alike, and no independent witnesses
MIN_BLOCKS = 12  # where there are fewer, squares are smaller
REACHES = (0, 1, 2)  # pitches within which counts are taken together, finest first
SUPPORT = 0.5  # correlation that the lower end of the interval must reach: a quarter of the variance
MIN_GAIN = 0.01  # less is not worth being called help
TINY = 1e-20


def reliability(distilled: Distilled, *, seed: int = 0) -> dict[str, np.ndarray]:
    """How far the estimate of each gene can be believed, by spots that it did not see.

    Parameters
    ----------
    distilled
        The section.
    seed
        Of the resampling behind the intervals.

    Returns
    -------
    Columns ``(genes,)``:

    - ``reliability``: Pearson correlation over spots of log1p counts with those foretold from all other spots and the
      image; ``reliability_low`` and ``reliability_high`` bound it at 90 %, over blocks of spots drawn again.
    - ``gain_over_interpolation``: by how much that is above what the other spots foretell without the image.
    - ``image_helps``: whether that gain is beyond chance: its 5 % quantile is above 0.01, and the lower bound above 0.
    - ``finest_um``: finest width at which the gene is supported, its lower bound at least 0.5: the diameter of a spot;
      the distance of the spots where the image does not help, so that the map is an interpolation; for genes too rare
      for single spots the width of a neighbourhood whose counts together would do. NaN where not even that does: such
      a map is a guess.
    """
    section, measurement = distilled.section, distilled.measurement
    spots = measurement.centres / measurement.pitch
    weights = _resampled(spots, seed)
    neighbours = _neighbours(spots)
    diameter, pitch = measurement.diameter * section.bin_um, measurement.pitch * section.bin_um
    found: dict[str, list[np.ndarray]] = {name: [] for name in RELIABILITY}
    for genes in distilled.panel.blocks():
        counts = distilled.panel.counts[:, genes].astype(float)
        joint, space = (_correlations(weights, counts, distilled.held_out(genes, one)) for one in ("joint", "space"))
        low, high = np.quantile(joint[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        helps = (np.quantile(joint[1:] - space[1:], (1 - LEVEL) / 2, axis=0) > MIN_GAIN) & (low > 0)
        finest = np.full(len(low), np.nan)
        for reach in reversed(REACHES):
            finest[_taken_together(low, counts, neighbours, reach) >= SUPPORT] = diameter + 2 * reach * pitch
        finest[~helps] = np.maximum(finest[~helps], pitch)
        values = (joint[0], low, high, joint[0] - space[0], helps, finest)
        for name, column in zip(RELIABILITY, values, strict=True):
            found[name].append(column)
    return {name: np.concatenate(columns) for name, columns in found.items()}


def _resampled(spots: np.ndarray, seed: int) -> np.ndarray:
    """How often each spot counts, ``(1 + N_RESAMPLES, spots)``: once in the first row, then blocks drawn again."""
    for edge in range(BLOCK_PITCHES, 0, -1):
        block = np.unique(np.floor((spots - spots.min(0)) / edge), axis=0, return_inverse=True)[1].ravel()
        n = int(block.max()) + 1
        if n >= MIN_BLOCKS:
            break
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_RESAMPLES)
    return np.concatenate([np.ones((1, len(spots))), times[:, block]])


def _neighbours(spots: np.ndarray) -> sparse.csr_matrix:
    """Means over the neighbours of each spot, itself left out, ``(spots, spots)``; zero where there is none."""
    tree = cKDTree(spots)
    near = sparse.csr_matrix(tree.sparse_distance_matrix(tree, 1.25, output_type="coo_matrix") > 0).astype(float)
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(np.asarray(near.sum(1)).ravel(), 1)) @ near)


def _taken_together(
    correlation: np.ndarray, counts: np.ndarray, neighbours: sparse.csr_matrix, reach: int
) -> np.ndarray:
    """What correlations ``(genes,)`` with single spots would be with the counts within ``reach`` pitches.

    The tissue's part of the variance is what a spot has in common with its neighbours, whose counting noise is their
    own. Averages of the predictions would not do: these have seen the neighbours' noise.
    """
    if reach == 0:
        return correlation
    centred, n = counts - counts.mean(0), 1 + 3 * reach * (reach + 1)  # spots of a hexagonal lattice
    tissue = (centred * (neighbours @ centred)).mean(0).clip(0)
    together = np.maximum(tissue + counts.mean(0) / n, TINY)
    return np.minimum(correlation * np.sqrt(centred.var(0) / together), np.sqrt(tissue / together))


def _correlations(weights: np.ndarray, counts: np.ndarray, foretold: np.ndarray) -> np.ndarray:
    """Pearson correlation of log1p values under each row of weights, ``(rows, genes)``; 0 where one is constant."""
    x, y = (values - values.mean(0) for values in (np.log1p(counts), np.log1p(np.maximum(foretold, 0))))
    share = weights / weights.sum(1, keepdims=True)
    (mx, my), (xx, yy, xy) = (share @ a for a in (x, y)), (share @ a for a in (x * x, y * y, x * y))
    variance = (xx - mx**2).clip(0) * (yy - my**2).clip(0)
    return np.where(variance > TINY, (xy - mx * my) / np.sqrt(np.maximum(variance, TINY)), 0.0)
