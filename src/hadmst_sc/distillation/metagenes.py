"""Metagenes: non-negative factors of the counts, with each counted molecule assigned to them in proportion.

Poisson factorisation, ``counts ≈ amounts @ shares``: non-negative matrix factorisation with the Kullback–Leibler
divergence (Lee & Seung 2001), whose factors are the metagenes of Brunet et al. 2004. The counts of a gene at a spot are
divided among the metagenes in proportion to their expectations, so metagene counts add up to the spot's total counts.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from hadmst_sc.distillation.components import Panel

ITERATIONS = 60  # for the factors; ten more reduce the deviance by less than a thousandth
ITERATIONS_OF_GENES = 20  # for the shares of each gene with the amounts fixed: a convex problem


class Metagenes(NamedTuple):
    """Metagenes of one section.

    Parameters
    ----------
    counts
        ``(spots, K)`` float32: counts of each metagene; sums over K equal sums over genes.
    shares
        ``(genes, K)`` float32: share of each gene in a metagene's counts; columns sum to one.
    """

    counts: np.ndarray
    shares: np.ndarray


def metagenes(panel: Panel, n: int) -> Metagenes:
    """Factorise the counts of a panel.

    Parameters
    ----------
    panel
        Counts at the spots.
    n
        Number of metagenes, at most the number of spots and of genes.
    """
    # Imported here because it sets an environment variable.
    from sklearn.decomposition import NMF, non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    settings = {"solver": "mu", "beta_loss": "kullback-leibler", "n_components": n, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is fixed on purpose
        model = NMF(init="nndsvda", random_state=0, max_iter=ITERATIONS, **settings)
        amounts = model.fit_transform(panel.counts[:, panel.basis()]).astype(np.float32)
        shares = np.zeros((panel.counts.shape[1], n), np.float32)
        for block in panel.blocks():
            shares[block] = non_negative_factorization(
                np.ascontiguousarray(panel.counts[:, block].T),
                H=np.ascontiguousarray(amounts.T),
                update_H=False,
                max_iter=ITERATIONS_OF_GENES,
                **settings,
            )[0]
    counts = np.zeros_like(amounts)
    for block in panel.blocks():
        expected = np.maximum(amounts @ shares[block].T, 1e-9)
        counts += (panel.counts[:, block] / expected) @ shares[block]
    return Metagenes(amounts * counts, shares / np.maximum(shares.sum(0), 1e-12))
