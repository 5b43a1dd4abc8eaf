"""The gate: held-out spots choose the blend of closed form and network for each section.

A network that was trained on other tissue can be wrong on this one, and only the section's own spots can show it. Some
spots are held out; closed form and network predict them, for some genes; the blend that predicts best, drawn towards
the closed form, is used for the section. All genes share one blend, because the spots of a single gene are too few to
choose one. Large sections are evaluated on parts with as many spots as a slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.spatial import cKDTree

from hadmst_sc.section.errors import logger
from hadmst_sc.section.measurement import degrade
from hadmst_sc.section.observation import Box, Observation

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the network that are evaluated, in log space
# Pull of the share towards the closed form: relative deviance that a share of one must gain for its own sake. Tuned at
# held-out spots of five sections, and on three whose cells are known: a quarter to a half was best on all but one.
PULL = 0.03
# Share if there are too few spots to choose one: then there is no second look, and the network helps more.
UNKNOWN = 0.75
N_FOLDS, FOLDS_USED = 4, 2  # a quarter of the spots is held out at a time, as in our benchmarks, in two folds,
MANY_SPOTS = 500  # or in one fold if it has this many spots
N_PARTS, PART_SPOTS = 2, 2500  # parts of a section with more spots than these hold, and spots of each
MAX_GENES = 32  # genes that are evaluated: more give the same result
MIN_SPOTS = 24  # fewer spots are too few to choose a share


class Gate(NamedTuple):
    """Share of the network, chosen at held-out spots."""

    share: float  # 0 (closed form) to 1 (network)
    deviance: float  # at held-out spots, relative to the closed form, mean over genes: below 1 is better
    n_spots: int  # held-out spots; 0 if the share is a default


def evaluated_genes(obs: Observation) -> np.ndarray:
    """Columns of the genes that are evaluated: evenly spaced from most to least abundant, for any gene order."""
    total = obs.counts.sum(0)
    ranked = sorted(range(len(obs.genes)), key=lambda gene: (-total[gene], obs.genes[gene]))
    return spaced(np.array(ranked), MAX_GENES)


def spaced(ranked: np.ndarray, n: int) -> np.ndarray:
    """At most ``n`` entries of ``ranked``, evenly spaced from the first to the last."""
    return ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int)]


def parts(obs: Observation) -> list[Box]:
    """Boxes that are evaluated: the whole section, or squares of at least ``PART_SPOTS`` spots around random spots."""
    centres, shape = obs.measurement.centres, obs.grid.shape
    if len(centres) <= N_PARTS * PART_SPOTS:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    tree, reach, boxes = cKDTree(centres), obs.measurement.pitch, []
    for middle in np.random.default_rng(0).choice(centres, N_PARTS, replace=False):
        near = centres[tree.query(middle, PART_SPOTS, p=np.inf)[1]]
        low, high = (near.min(0) - reach).clip(0).astype(int), np.minimum(near.max(0) + reach, shape).astype(int)
        boxes.append((slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))))
    return boxes


def distillations(n_spots: int) -> float:
    """Cost of the gate in units of one pass over the whole section, apart from the number of genes."""
    return folds_used(n_spots) * min(1.0, N_PARTS * PART_SPOTS / max(n_spots, 1))


def fit_gate(obs: Observation, maps_of: Callable[[Observation, np.ndarray, Box], Sequence[np.ndarray]]) -> list[Gate]:
    """Compare the closed form with other estimates at held-out spots.

    Parameters
    ----------
    obs
        The section.
    maps_of
        Predicts some genes (columns) in a box, from an observation without the held-out spots: maps
        ``(genes, ny, nx)`` in counts per bin of the closed form, then of the other estimates.

    Returns
    -------
    One gate for each estimate other than the closed form. With fewer than ``MIN_SPOTS`` spots, a single default gate of
    ``n_spots`` 0.
    """
    n_spots, genes = len(obs.spots), evaluated_genes(obs)
    if n_spots < MIN_SPOTS:
        logger.warning(
            "%d spots are too few to judge the network (at least %d are needed): the estimate is a blend with %.0f%% "
            "of it",
            *(n_spots, MIN_SPOTS, 100 * UNKNOWN),
        )
        return [Gate(UNKNOWN, 1.0, 0)]
    held_out = [one for box in parts(obs) for one in _at_held_out(obs, genes, box, maps_of)]
    counts = np.concatenate([one.counts for one in held_out])
    gates = []
    for number in range(len(held_out[0].blends)):
        blends = np.concatenate([one.blends[number] for one in held_out], 1)
        gates.append(decide(np.stack([_deviance(counts, blend) for blend in blends]), len(counts)))
    return gates


class _HeldOut(NamedTuple):
    """Held-out spots: their counts and the predictions."""

    counts: np.ndarray  # (spots, genes)
    blends: list[np.ndarray]  # (len(SHARES), spots, genes) each, from the closed form to another estimate


def _at_held_out(
    obs: Observation,
    genes: np.ndarray,
    box: Box,
    maps_of: Callable[[Observation, np.ndarray, Box], Sequence[np.ndarray]],
) -> Iterator[_HeldOut]:
    """Predictions at the held-out spots of a box, fold by fold."""
    part = obs.cropped(box)
    fold = np.random.default_rng(0).permutation(len(part.spots)) % N_FOLDS
    for k in range(folds_used(len(part.spots))):
        rows = fold == k
        measurement = part.measurement.subset(rows)
        closed, *others = maps_of(part.subset_spots(~rows), genes, box)
        blends = [np.stack([degrade(_blend(closed, one, share), measurement) for share in SHARES]) for one in others]
        yield _HeldOut(part.counts[rows][:, genes], blends)


def folds_used(n_spots: int) -> int:
    """Number of folds that are evaluated; 0 if there are too few spots."""
    if n_spots < MIN_SPOTS:
        return 0
    return 1 if n_spots // N_FOLDS >= MANY_SPOTS else FOLDS_USED


def decide(deviances: np.ndarray, n_spots: int) -> Gate:
    """Choose the share with the smallest penalised deviance; ``deviances`` are ``(len(SHARES), genes)``.

    The deviance is a parabola of the share, fitted to the evaluated ones, with a penalty on the share squared: the
    spots of one section are few, and the deviance at spots favours the network more than other scores do.
    """
    relative = ((deviances + 1e-9) / (deviances[0] + 1e-9)).mean(1)
    candidates = np.linspace(0, 1, 21)
    penalised = np.polyval(np.polyfit(SHARES, relative, 2), candidates) + PULL * candidates**2
    best = float(candidates[penalised.argmin()])
    return Gate(best, float(np.interp(best, SHARES, relative)), n_spots)


def _blend(closed: np.ndarray, network: np.ndarray, share: float) -> np.ndarray:
    if share in (0.0, 1.0):
        return network if share else closed
    return np.maximum(closed, 0) ** (1 - share) * np.maximum(network, 0) ** share


def _deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Half the Poisson deviance of each gene, summed over ``(spots, genes)``."""
    expected = np.maximum(expected, 1e-6)
    return (special.xlogy(counts, counts / expected) - counts + expected).sum(0)
