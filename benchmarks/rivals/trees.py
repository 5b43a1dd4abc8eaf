"""Extremely randomised trees from the H&E features to components of the genes (Geurts et al. 2006)."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from rivals.section import Fit, Section, best, features, shared

SEED = 0
N_TREES = 300
LEAVES = (3, 8, 20)  # least spots in a leaf
RANK = 20  # principal components of the standardised genes


@shared
def extra_trees(section: Section) -> Fit:
    """Trees on bootstrap samples: a spot is predicted by those that have not seen it. The size of leaves per gene."""
    bins, spots = features(section)
    values = section.rates
    mean, sd = values.mean(0), np.maximum(values.std(0), 1e-9)
    left, singular, loadings = np.linalg.svd((values - mean) / sd, full_matrices=False)
    rank = min(RANK, int((singular > 1e-6).sum()))
    components, loadings = (left * singular)[:, :rank], loadings[:rank] * sd
    forests = [_forest(leaf).fit(spots, components) for leaf in LEAVES if 2 * leaf <= len(spots)]
    unseen = [np.nan_to_num(forest.oob_prediction_.reshape(len(spots), rank)) for forest in forests]
    chosen, held_out = best(np.stack([one @ loadings + mean for one in unseen]), values)
    out = np.empty((len(bins), values.shape[1]))
    for i in np.unique(chosen):
        genes = chosen == i
        out[:, genes] = forests[i].predict(bins).reshape(len(bins), rank) @ loadings[:, genes] + mean[genes]
    return Fit(out, held_out)


def _forest(leaf: int) -> ExtraTreesRegressor:
    # Without `bootstrap` no spot would be unseen, and nothing could be chosen honestly.
    return ExtraTreesRegressor(
        N_TREES, min_samples_leaf=leaf, max_features=0.5, bootstrap=True, oob_score=True, random_state=SEED
    )
