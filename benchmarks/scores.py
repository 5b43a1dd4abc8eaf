"""From maps to numbers: one score per gene, or one for all genes together; nothing is averaged here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hadmst_sc import metrics

Scores = dict[str, "np.ndarray | float"]  # (genes,) each, or one number for all genes together


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
    """Scores of expected counts against those measured, in spots or bins; arguments as in :mod:`hadmst_sc.metrics`."""
    scores = {"pcc": metrics.pearson, "rmse": metrics.rmse, "deviance": metrics.deviance}
    return {name: score(predicted, counts, inside) for name, score in scores.items()}


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


def tertiles(depth: Sequence[float]) -> np.ndarray:
    """``(genes,)`` 0, 1 or 2: the scarcest, middle and most abundant third."""
    rank = np.argsort(np.argsort(depth, kind="stable"), kind="stable")
    return rank * 3 // max(len(rank), 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (values - values.mean(1, keepdims=True, dtype=float) for values in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norm > 1e-20, (a * b).sum(1) / np.maximum(norm, 1e-20), 0.0)
