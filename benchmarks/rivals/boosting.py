"""Gradient boosting from the H&E features: on components of the genes.

Constants are the best of a few that were tried on the simulated spots of the breast crop, its truth included: what bias
that leaves is in favour of this rival.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from rivals.section import Fit, Section, best, features, shared

SEED = 0
N_FOLDS = 5
RANKS = (1, 3, 6, 12)  # principal components that a gene is put together from
TREES = (15, 30, 60, 120)


class _Boosted:
    """One booster per principal component of the standardised genes, from the spots in ``rows`` alone."""

    def __init__(self, values: np.ndarray, spots: np.ndarray, rows: np.ndarray) -> None:
        values = values[rows]
        self.mean, sd = values.mean(0), values.std(0)
        self.sd = np.where(sd > 1e-9, sd, 1.0)
        left, singular, loadings = np.linalg.svd((values - self.mean) / self.sd, full_matrices=False)
        rank = min(RANKS[-1], int((singular > 1e-6).sum()))
        self.loadings = loadings[:rank]
        self.boosters = [self._booster().fit(spots[rows], score) for score in (left * singular).T[:rank]]

    @staticmethod
    def _booster() -> HistGradientBoostingRegressor:
        # Small trees, few features per split and coarse bins: some hundred noisy spots do not carry more.
        return HistGradientBoostingRegressor(
            learning_rate=0.08,
            max_iter=TREES[-1],
            max_leaf_nodes=6,
            min_samples_leaf=10,
            max_bins=64,
            max_features=0.2,
            l2_regularization=3.0,
            early_stopping=False,
            random_state=SEED,
        )

    def scores(self, features: np.ndarray) -> np.ndarray:
        """``(len(TREES), n, rank)`` components after each number of trees."""
        out = np.zeros((len(TREES), len(features), len(self.boosters)))
        for component, booster in enumerate(self.boosters):
            for n_trees, predicted in enumerate(booster.staged_predict(features), 1):
                if n_trees in TREES:
                    out[TREES.index(n_trees), :, component] = predicted
        return out

    def values(self, scores: np.ndarray, rank: int) -> np.ndarray:
        """``(n, genes)`` from the first ``rank`` of ``(n, components)``."""
        return scores[:, :rank] @ self.loadings[:rank] * self.sd + self.mean


@shared
def gradient_boosting(section: Section) -> Fit:
    """Boosted trees from the H&E to principal components of the genes, and back to the genes.

    A model per gene would take minutes and see that gene's noise alone. Rank and number of trees are chosen per gene by
    the error out of fold; means, components and trees of a fold have not seen its spots.
    """
    bins, spots = features(section)
    values, n_spots = section.rates, len(section.rates)
    fold = np.random.default_rng(SEED).permutation(n_spots) % N_FOLDS
    grid = [(trees, rank) for trees in range(len(TREES)) for rank in RANKS]
    candidates = np.empty((len(grid), *values.shape))
    for out_of_fold in (fold == i for i in np.unique(fold)):
        boosted = _Boosted(values, spots, ~out_of_fold)
        scores = boosted.scores(spots[out_of_fold])
        for j, (trees, rank) in enumerate(grid):
            candidates[j, out_of_fold] = boosted.values(scores[trees], rank)
    chosen, held_out = best(candidates, values)
    boosted = _Boosted(values, spots, np.ones(n_spots, bool))
    scores = boosted.scores(bins)
    out = np.empty((len(bins), values.shape[1]))
    for j in np.unique(chosen):
        trees, rank = grid[j]
        out[:, chosen == j] = boosted.values(scores[trees], rank)[:, chosen == j]
    return Fit(out, held_out)
