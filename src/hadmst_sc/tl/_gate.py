"""The gate: how far the estimate goes from the closed form to the network, as held-out spots of this section decide.

A network that was trained on other tissue can be wrong on this one, and nobody but the section's own spots can tell. So
a part of them is hidden, both maps of some genes foretell it, and the section takes the mix of the two that was right.
One share for all genes: a gene's own spots are too few to choose one for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from hadmst_sc.contract import Observation
from hadmst_sc.measurement import degrade

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the network, in the logarithm
UNKNOWN = 0.75  # the share where nothing can be judged
N_FOLDS, FOLDS_USED = 4, 2  # a quarter of the spots is hidden at a time, as in our benchmarks; half of them judge,
MANY_SPOTS = 500  # or a quarter, where that is so many
MAX_GENES = 40  # that judge: more would say the same
MIN_SPOTS = 24  # fewer cannot tell


class Gate(NamedTuple):
    """What held-out spots decided."""

    share: float  # of the network, 0 to 1
    deviance: float  # at held-out spots, relative to the closed form's, mean over genes: below 1 is better
    n_spots: int  # that judged


def judges(obs: Observation) -> np.ndarray:
    """Columns of the genes that judge: evenly spaced from the most to the least abundant, whatever their order."""
    total = obs.counts.sum(0)
    ranked = sorted(range(len(obs.genes)), key=lambda gene: (-total[gene], obs.genes[gene]))
    return spaced(np.array(ranked), MAX_GENES)


def spaced(ranked: np.ndarray, n: int) -> np.ndarray:
    """At most ``n`` of what is ranked, evenly from the first to the last."""
    return ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int)]


def fit_gate(obs: Observation, maps_of: Callable[[Observation, np.ndarray], list[np.ndarray]]) -> list[Gate]:
    """Judge the closed form and what there is beside it by spots that none of them saw.

    Parameters
    ----------
    obs
        The section.
    maps_of
        Gives maps of some genes (columns) of a section with fewer spots, each ``(genes, ny, nx)`` counts per bin: the
        closed form, then the others, such as the network.

    Returns
    -------
    One gate for each of the others; a single one of ``n_spots`` 0 where there are too few spots to judge.
    """
    n_spots, genes = len(obs.spots), judges(obs)
    if n_spots < MIN_SPOTS:
        return [Gate(UNKNOWN, 1.0, 0)]
    fold = np.random.default_rng(0).permutation(n_spots) % N_FOLDS
    errors: dict[int, np.ndarray] = {}
    used = folds_used(n_spots)
    for k in range(used):
        hidden = obs.measurement.subset(fold == k)
        counts = obs.counts[fold == k][:, genes]
        closed, *others = maps_of(obs.subset_spots(fold != k), genes)
        for number, other in enumerate(others):
            mixes = (degrade(_mixed(closed, other, share), hidden) for share in SHARES)
            errors[number] = errors.get(number, 0) + np.stack([_deviance(counts, mix) for mix in mixes])
    return [decide(found, int((fold < used).sum())) for found in errors.values()]


def folds_used(n_spots: int) -> int:
    """How often spots are hidden: not at all where they are too few to judge."""
    if n_spots < MIN_SPOTS:
        return 0
    return 1 if n_spots // N_FOLDS >= MANY_SPOTS else FOLDS_USED


def decide(errors: np.ndarray, n_spots: int) -> Gate:
    """The share with the least of ``(len(SHARES), genes)`` deviances over ``n_spots`` held-out spots."""
    relative = ((errors + 1e-9) / (errors[0] + 1e-9)).mean(1)
    best = int(relative.argmin())
    return Gate(SHARES[best], float(relative[best]), n_spots)


def _mixed(closed: np.ndarray, network: np.ndarray, share: float) -> np.ndarray:
    if share in (0.0, 1.0):
        return network if share else closed
    return np.maximum(closed, 0) ** (1 - share) * np.maximum(network, 0) ** share


def _deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Half the Poisson deviance of each gene, summed over ``(spots, genes)``."""
    expected = np.maximum(expected, 1e-6)
    return (special.xlogy(counts, counts / expected) - counts + expected).sum(0)
