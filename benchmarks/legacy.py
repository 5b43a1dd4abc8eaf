"""Scores as published tables compute them (Diff-ST, C3-Diff), to stand beside those tables and nowhere else.

Every function takes ``predicted`` and ``truth``, ``(genes, ny, nx)`` in one unit, and ``inside``, ``(ny, nx)`` bool,
and returns one number per gene. Published code scores whole maps that are zero off the tissue, so the background is
part of the score: here, what lies outside ``inside`` is set to zero in both maps and then counted as any other bin.

For numbers that mean something see :mod:`hadmst_sc.metrics`.
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity


def legacy_rmse(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``(genes,)`` root mean squared error after the min–max of each map by itself, over the whole map.

    Misleads: each map is divided by its own largest bin, so neither level nor contrast counts and one bright bin of the
    truth pushes all others towards 0. A map of zeros then has the error of the truth's own size, often less than a good
    prediction has, and an empty background dilutes every error.
    """
    a, b = _scaled_pair(predicted, truth, inside)
    return np.sqrt(((a - b) ** 2).mean((1, 2)))


def legacy_ssim(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``(genes,)`` structural similarity (uniform window of 7 bins, range 1) after the min–max of each map by itself.

    Misleads: where both maps are empty the similarity is 1, so sparse genes and much background score high whatever is
    predicted; the min–max hides level and contrast.
    """
    pairs = zip(*_scaled_pair(predicted, truth, inside), strict=True)
    return np.array([structural_similarity(a, b, data_range=1.0) for a, b in pairs])


def legacy_pcc(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``(genes,)`` absolute value of the Pearson correlation over the whole map; 0 where a map is constant.

    Misleads: the opposite of the truth scores 1, chance scores above 0, and an empty background agrees by itself.
    """
    a, b = (maps.reshape(len(maps), -1) for maps in _scaled_pair(predicted, truth, inside))
    a, b = (np.where(np.ptp(x, axis=1, keepdims=True) > 0, x - x.mean(1, keepdims=True), 0.0) for x in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.abs((a * b).sum(1) / np.where(norm > 0, norm, 1.0))


def _scaled_pair(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ``(genes, ny, nx)``, zero outside, then each map from 0 to 1 by itself; constant maps become zero."""
    if predicted.shape != truth.shape or truth.shape[1:] != inside.shape or inside.dtype != bool:
        raise ValueError(
            f"`predicted` and `truth` need one shape (genes, *{inside.shape}) and `inside` bool, but they have "
            f"{predicted.shape}, {truth.shape} and {inside.dtype}. Whole maps are compared."
        )
    return _min_max(np.where(inside, predicted, 0.0)), _min_max(np.where(inside, truth, 0.0))


def _min_max(maps: np.ndarray) -> np.ndarray:
    low, high = (pick(maps, axis=(1, 2), keepdims=True) for pick in (np.min, np.max))
    return (maps - low) / np.where(high > low, high - low, 1.0)


SCORES = {"legacy_rmse": legacy_rmse, "legacy_pcc": legacy_pcc, "legacy_ssim": legacy_ssim}
