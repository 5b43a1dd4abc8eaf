"""Extremely randomised trees from the H&E features (Geurts et al. 2006).

To components of the genes, by squared error; and to the counts of all genes at once, by Poisson deviance.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from rivals.section import Fit, Section, best, features, shared

SEED = 0
N_TREES = 300
LEAVES = (3, 8, 20)  # least spots in a leaf
RANK = 20  # principal components of the standardised genes
POISSON_TREES = 150


@shared
def extra_trees(section: Section) -> Fit:
    """Trees on bootstrap samples: a spot is predicted by those that have not seen it. The size of leaves per gene."""
    bins, spots = features(section)
    values = section.rates
    mean, sd = values.mean(0), np.maximum(values.std(0), 1e-9)
    left, singular, loadings = np.linalg.svd((values - mean) / sd, full_matrices=False)
    rank = min(RANK, int((singular > 1e-6).sum()))
    if not rank:  # every gene is the same at all spots
        return Fit(np.tile(mean, (len(bins), 1)), np.tile(mean, (len(spots), 1)))
    components, loadings = (left * singular)[:, :rank], loadings[:rank] * sd
    target = components if rank > 1 else components[:, 0]
    leaves = [leaf for leaf in LEAVES if 2 * leaf <= len(spots)] or LEAVES[:1]
    forests = [_forest(leaf).fit(spots, target) for leaf in leaves]
    unseen = [np.nan_to_num(forest.oob_prediction_.reshape(len(spots), rank)) for forest in forests]
    chosen, held_out = best(np.stack([one @ loadings + mean for one in unseen]), values)
    out = np.empty((len(bins), values.shape[1]))
    for i in np.unique(chosen):
        genes = chosen == i
        out[:, genes] = forests[i].predict(bins).reshape(len(bins), rank) @ loadings[:, genes] + mean[genes]
    return Fit(out, held_out)


@shared
def poisson_trees(section: Section) -> Fit:
    """Trees whose splits lower the Poisson deviance of all genes; a leaf's mean is the most likely rate.

    The size of leaves is chosen per gene by the deviance at the spots that trees have not seen.
    """
    bins, spots = features(section)
    values = np.maximum(section.rates, 0)
    held_out, out = np.zeros_like(values), np.zeros((len(bins), values.shape[1]), np.float32)
    counted = np.flatnonzero(values.sum(0) > 0)
    if not len(counted):
        return Fit(out, held_out)
    rates, weight = values[:, counted], section.area[:, 0]
    leaves = [leaf for leaf in LEAVES if 2 * leaf <= len(spots)] or LEAVES[:1]
    target = rates if len(counted) > 1 else rates[:, 0]
    forests = [_poisson_forest(leaf).fit(spots, target, sample_weight=weight) for leaf in leaves]
    unseen = np.stack([np.nan_to_num(forest.oob_prediction_.reshape(rates.shape)) for forest in forests])
    deviance = ((unseen - rates * np.log(np.maximum(unseen, 1e-3))) * weight[:, None]).mean(1)
    chosen = deviance.argmin(0)
    held_out[:, counted] = np.take_along_axis(unseen, chosen[None, None], 0)[0]
    for i in np.unique(chosen):
        genes = chosen == i
        out[:, counted[genes]] = forests[i].predict(bins).reshape(len(bins), -1)[:, genes]
    return Fit(out, held_out)


def _poisson_forest(leaf: int) -> ExtraTreesRegressor:
    return ExtraTreesRegressor(
        POISSON_TREES,
        criterion="poisson",
        min_samples_leaf=leaf,
        max_features=0.5,
        bootstrap=True,
        oob_score=True,
        random_state=SEED,
    )


def _forest(leaf: int) -> ExtraTreesRegressor:
    # Without `bootstrap` no spot would be unseen, and nothing could be chosen honestly.
    return ExtraTreesRegressor(
        N_TREES, min_samples_leaf=leaf, max_features=0.5, bootstrap=True, oob_score=True, random_state=SEED
    )
