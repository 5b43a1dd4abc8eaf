"""The gate: how far each gene's map goes from the closed form to the network, as held-out spots of this section decide.

A network that was trained on other tissue can be wrong on this one, and nobody but the section's own spots can tell. So
a part of them is hidden, both maps foretell it, and each gene takes the mix of the two that was right: with few spots
mostly what is best for all genes together, with many what is best for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from hadmst_sc.contract import Observation
from hadmst_sc.measurement import degrade

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the network, in the logarithm
N_FOLDS, FOLDS_USED = 4, 2  # half of the spots judge; a quarter is hidden at a time, as in our benchmarks
PRIOR_SPOTS = 200  # what all genes together say weighs as much as this many spots
MIN_SPOTS = 24  # fewer cannot tell: the network is trusted


class Gate(NamedTuple):
    """What held-out spots decided."""

    share: np.ndarray  # (genes,) of the network, 0 to 1
    gain: np.ndarray  # (genes,) deviance at held-out spots, relative to the closed form's: below 1 is better
    n_spots: int  # that judged


def fit_gate(obs: Observation, maps_of: Callable[[Observation], tuple[np.ndarray, np.ndarray]], seed: int) -> Gate:
    """Judge closed form and network by spots that both did not see.

    Parameters
    ----------
    obs
        The section.
    maps_of
        Gives closed form and network of a section with fewer spots, ``(genes, ny, nx)`` counts per bin.
    seed
        Of the folds.
    """
    n_genes, n_spots = len(obs.genes), len(obs.spots)
    if n_spots < MIN_SPOTS:
        return Gate(np.ones(n_genes), np.ones(n_genes), 0)
    fold = np.random.default_rng(seed).permutation(n_spots) % N_FOLDS
    errors = np.zeros((len(SHARES), n_genes))
    for k in range(FOLDS_USED):
        hidden = obs.measurement.subset(fold == k)
        closed, network = maps_of(obs.subset_spots(fold != k))
        for index, share in enumerate(SHARES):
            errors[index] += _deviance(obs.counts[fold == k], degrade(_mixed(closed, network, share), hidden))
    return decide(errors, int((fold < FOLDS_USED).sum()))


def decide(errors: np.ndarray, n_spots: int) -> Gate:
    """Shares from ``(len(SHARES), genes)`` deviances over ``n_spots`` held-out spots."""
    relative = (errors + 1e-9) / (errors[0] + 1e-9)
    own = n_spots / (n_spots + PRIOR_SPOTS)
    score = own * relative + (1 - own) * relative.mean(1, keepdims=True)
    best = score.argmin(0)
    return Gate(np.array(SHARES)[best], relative[best, np.arange(len(best))], n_spots)


def _mixed(closed: np.ndarray, network: np.ndarray, share: float) -> np.ndarray:
    if share in (0.0, 1.0):
        return network if share else closed
    return np.maximum(closed, 0) ** (1 - share) * np.maximum(network, 0) ** share


def _deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Half the Poisson deviance of each gene, summed over ``(spots, genes)``."""
    expected = np.maximum(expected, 1e-6)
    return (special.xlogy(counts, counts / expected) - counts + expected).sum(0)
