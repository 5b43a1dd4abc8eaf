"""Metagenes: a few programmes of which every gene is a mixture, with each counted molecule shared out among them.

Poisson factorisation, ``counts ≈ amounts @ shares``: the non-negative matrix factorisation of the Kullback–Leibler
divergence (Lee & Seung 2001), whose factors are the metagenes of Brunet et al. 2004. What a spot counted of a gene is
shared out among the metagenes as they expect it, so that counts of metagenes are counts: they add up to the spot's.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from hadmst_sc.distillation.components import Panel

ITERATIONS = 60  # of all genes' factors; the deviance then falls by less than a thousandth of itself in ten more
ITERATIONS_OF_GENES = 20  # of a gene's shares with the amounts given: a convex problem


class Metagenes(NamedTuple):
    """Metagenes of one section.

    Parameters
    ----------
    counts
        ``(spots, K)`` float32: what was counted of each; sums over K are those over genes.
    shares
        ``(genes, K)`` float32: which part of a metagene's counts are of a gene; columns sum to one.
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
        Number of metagenes, at most that of spots and of genes.
    """
    # Imported where it is needed: it sets an environment variable.
    from sklearn.decomposition import NMF, non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    settings = {"solver": "mu", "beta_loss": "kullback-leibler", "n_components": n, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the rule
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
