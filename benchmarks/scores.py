"""From maps to numbers: one score per gene, or one for all genes together; nothing is averaged here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse, special

from hadmst_sc import metrics

# (genes,) each, or one number for all genes together; "resampled" holds scores of resampled sections
Scores = dict[str, Any]
LEAST = 1e-3  # of the gene's mean: deviance is infinite where nothing was expected and something found
N_RESAMPLED, TILES = 200, 6  # resampled sections; tiles per side of a section


def of_rates(predicted: np.ndarray, rate: np.ndarray, inside: np.ndarray) -> Scores:
    """Scores of expected counts per bin against the true ones, ``(genes, ny, nx)`` both.

    ``pcc``, ``rmse`` and ``deviance`` are those of :mod:`hadmst_sc.metrics`. ``pcc_rate``, on rates as they are, and
    ``rmse_mean``, on log1p of the rate over the gene's mean, do not depend on the depth of sequencing.
    """
    mean = np.maximum(rate[:, inside].mean(1), 1e-12)[:, None]
    relative, truth = predicted[:, inside] / mean, rate[:, inside] / mean
    return of_counts(predicted, rate, inside) | {
        "pcc_rate": _correlation(relative, truth),
        "rmse_mean": np.sqrt(((np.log1p(relative) - np.log1p(truth)) ** 2).mean(1)),
    }


def of_counts(predicted: np.ndarray, counts: np.ndarray, inside: np.ndarray) -> Scores:
    """Scores of expected counts against those measured, in spots or bins; arguments as in :mod:`hadmst_sc.metrics`.

    For the deviance a prediction is at least ``LEAST`` of the gene's mean, for every method.
    """
    least = LEAST * counts[:, inside].mean(1).reshape(-1, *[1] * inside.ndim)
    return {
        "pcc": metrics.pearson(predicted, counts, inside),
        "rmse": metrics.rmse(predicted, counts, inside),
        "deviance": metrics.deviance(np.maximum(predicted, least), counts, inside),
    }


def resampled(predicted: np.ndarray, truth: np.ndarray, places: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Means over genes of ``pcc``, ``rmse`` and ``deviance``, ``(N_RESAMPLED,)`` each, were section and panel others.

    Tiles of the section and genes are drawn with replacement. What is drawn depends on places and seed alone, so that
    two methods are compared draw by draw.

    Parameters
    ----------
    predicted, truth
        ``(genes, n)`` counts in spots or bins.
    places
        ``(n, 2)`` where they lie, in any unit.
    """
    low = places.min(0)
    tile = np.floor((places - low) / (np.ptp(places, axis=0) + 1e-9) * TILES).astype(int) @ [TILES, 1]
    _, tile = np.unique(tile, return_inverse=True)
    tile = tile.ravel()
    n_tiles, n_genes = int(tile.max()) + 1, len(truth)
    rng = np.random.default_rng(seed)
    of_tiles = rng.multinomial(n_tiles, np.full(n_tiles, 1 / n_tiles), N_RESAMPLED).T  # (tiles, resampled)
    of_genes = rng.multinomial(n_genes, np.full(n_genes, 1 / n_genes), N_RESAMPLED).T / n_genes

    in_tiles = sparse.csr_matrix((np.ones(len(tile)), (np.arange(len(tile)), tile)), (len(tile), n_tiles))

    def total(values: np.ndarray) -> np.ndarray:
        return (values @ in_tiles) @ of_tiles  # (genes, resampled)

    truth = truth.astype(float)
    mu = np.maximum(predicted, LEAST * truth.mean(1, keepdims=True)).astype(float)
    p, t = np.log1p(np.maximum(predicted, 0)).astype(float), np.log1p(truth)
    n = total(np.ones_like(truth))
    mp, mt = total(p) / n, total(t) / n
    vp, vt = total(p * p) / n - mp**2, total(t * t) / n - mt**2
    both = total(p * t) / n - mp * mt
    counts = total(truth)
    left = total(special.xlogy(truth, truth)) - total(special.xlogy(truth, np.maximum(mu, 1e-12)))
    left += total(mu) - counts
    nothing = total(special.xlogy(truth, truth)) - special.xlogy(counts, np.maximum(counts / n, 1e-12))
    found = {
        "pcc": np.where((vp > 1e-12) & (vt > 1e-12), both / np.sqrt(np.maximum(vp * vt, 1e-24)), 0.0),
        "rmse": np.sqrt(np.maximum(vp + vt + (mp - mt) ** 2 - 2 * both, 0) / np.maximum(vt, 1e-12)),
        "deviance": left / np.maximum(nothing, 1e-12),
    }
    usable = (vt > 1e-12) & (nothing > 1e-9)  # a gene without counts in the tiles drawn says nothing
    weight = np.where(usable, of_genes, 0.0)
    weight /= np.maximum(weight.sum(0), 1e-12)
    return {name: (np.where(usable, values, 0.0) * weight).sum(0) for name, values in found.items()}


def coherence(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Gene coherence; 0 where there are too few genes to speak of it."""
    return metrics.gene_coherence(predicted, truth, inside) if len(truth) >= 3 else 0.0


def split_half_ceiling(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(genes,)`` PCC of a perfect prediction of ``(cells, genes)`` counts: ``sqrt(2 r / (1 + r))``.

    ``r`` is that of two binomial halves. Spearman–Brown gives the reliability of the whole from it; its root is the
    correlation with the truth.
    """
    half = np.random.default_rng(seed).binomial(counts.astype(int), 0.5)
    r = np.maximum(metrics.pearson(half.T, (counts - half).T, np.ones(len(counts), bool)), 0)
    return np.sqrt(2 * r / (1 + r))


def in_blocks(maps: np.ndarray, edge: int) -> np.ndarray:
    """``(genes, ny, nx)`` summed over blocks of ``edge`` × ``edge`` bins; an incomplete last block is left out."""
    ny, nx = (side // edge for side in maps.shape[1:])
    return maps[:, : ny * edge, : nx * edge].reshape(len(maps), ny, edge, nx, edge).sum((2, 4))


def whole_blocks(inside: np.ndarray, edge: int) -> np.ndarray:
    """Blocks of ``edge`` × ``edge`` bins that lie wholly inside, ``(ny // edge, nx // edge)`` bool."""
    return in_blocks(inside[None].astype(int), edge)[0] == edge**2


def tertiles(depth: Sequence[float]) -> np.ndarray:
    """``(genes,)`` 0, 1 or 2: the scarcest, middle and most abundant third."""
    rank = np.argsort(np.argsort(depth, kind="stable"), kind="stable")
    return rank * 3 // max(len(rank), 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (values - values.mean(1, keepdims=True, dtype=float) for values in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norm > 1e-20, (a * b).sum(1) / np.maximum(norm, 1e-20), 0.0)
