"""Uses of a super-resolved table: tissue domains, spatially variable genes, neighbouring cell types.

Maps are ``(genes, ny, nx)`` counts per bin, as everywhere. Clustering is on purpose the plain recipe of the field, not
aware of space, and the same for bins of any method and for spots, so that what differs is the table and not the tool.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from hadmst_sc.section.measurement import Measurement
from hadmst_sc.section.observation import Observation

# --- tissue domains ---------------------------------------------------------------------------------------------------

N_COMPONENTS = 15  # as in BayesSpace (Zhao et al. 2021)
TARGET = 1e4  # counts per bin or spot after normalisation: one number for both, so that the size of a bin is no matter
FLOOR = 0.1  # of the median total: emptier bins fade to zero, where division would blow up their noise
N_STARTS = 10
MOST_FITTED = 20_000  # clusters are fitted to no more bins than this, drawn at random, then all are assigned


def domains(maps: np.ndarray, inside: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """``(ny, nx)`` int domain of each bin, -1 outside.

    Counts over their total, log1p, principal components of the centred genes, k-means: the plainest recipe in use. A
    Gaussian mixture with one covariance (mclust's "EEE") is as common, but its result depends much more on the seed.
    """
    labels = np.full(inside.shape, -1)
    labels[inside] = domains_of_spots(maps[:, inside].T, n_domains, seed)
    return labels


def domains_of_spots(counts: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """``(spots,)`` int domain of each spot from ``(spots, genes)`` counts, by the recipe of :func:`domains`."""
    from sklearn.cluster import KMeans

    components = fitted = _components(_normalised(counts))
    if len(components) > MOST_FITTED:
        fitted = np.random.default_rng(seed).choice(components, MOST_FITTED, replace=False)
    return KMeans(n_domains, n_init=N_STARTS, random_state=seed).fit(fitted).predict(components)


def _normalised(counts: np.ndarray) -> np.ndarray:
    """``(n, genes)`` log1p of counts per ``TARGET``."""
    counts = np.ascontiguousarray(counts, float)  # in one order, so that sums round alike
    total = counts.sum(1, keepdims=True)
    return np.log1p(TARGET * counts / np.maximum(total, max(FLOOR * np.median(total), 1e-12)))


def _components(values: np.ndarray) -> np.ndarray:
    """``(n, N_COMPONENTS)`` principal components of ``(n, genes)``, from the covariance and so without chance."""
    centred = values - values.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, : -N_COMPONENTS - 1 : -1]  # the largest come last


def domains_to_bins(labels: np.ndarray, obs: Observation) -> np.ndarray:
    """``(ny, nx)`` int: each bin inside gets the label of the nearest spot, -1 outside; ``labels`` is ``(spots,)``."""
    bins = obs.grid.centres()[obs.inside.ravel()]
    found = np.full(obs.inside.shape, -1)
    found[obs.inside] = labels[cKDTree(obs.measurement.centres).query(bins)[1]]
    return found


def domains_in_spots(labels: np.ndarray, measurement: Measurement) -> np.ndarray:
    """``(spots,)`` int: the label with the largest area in each footprint, the smallest of equals; -1 for none."""
    flat = labels.ravel()
    areas = measurement.matrix @ (flat[:, None] == np.arange(max(flat.max() + 1, 1))).astype(float)
    return np.where(areas.max(1) > 0, areas.argmax(1), -1)


def domain_ari_spots(labels: np.ndarray, obs: Observation, truth: Sequence[object] | np.ndarray) -> float:
    """Adjusted Rand index of the bins' majority in each spot against the annotation; 1 is perfect, 0 chance.

    ``labels`` are those of :func:`domains`, ``truth`` has a name per spot; spots without one are not scored.
    """
    return _ari(domains_in_spots(labels, obs.measurement), truth)


def domain_ari_bins(labels: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Adjusted Rand index over the bins inside, ``(ny, nx)`` int both; a truth of -1 is no annotation, not scored."""
    scored = inside & (truth >= 0)
    return _ari(labels[scored], truth[scored])


def _ari(labels: np.ndarray, truth: Sequence[object] | np.ndarray) -> float:
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    code, _ = pd.factorize(np.asarray(truth, object))  # -1 for what is missing
    if len(code) != len(labels):
        raise ValueError(f"`truth` needs one name for each of {len(labels)} spots, but has {len(code)}.")
    if not (code >= 0).any():
        raise ValueError("`truth` needs at least one name, but all are missing. There is nothing to score.")
    return float(adjusted_rand_score(code[code >= 0], labels[code >= 0]))


# --- spatially variable genes -----------------------------------------------------------------------------------------


def morans_i(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``(genes,)`` Moran's I of log1p counts per bin, neighbours across an edge (rook), weights 0 or 1.

    1 is smooth, ``-1 / (bins - 1)`` noise, -1 a chessboard. A constant map has no pattern and gets 0; pairs with a bin
    outside do not count.
    """
    values = np.log1p(maps[:, inside].astype(float))
    varies = np.ptp(values, axis=1) > 0
    centred = np.zeros(maps.shape)
    centred[:, inside] = np.where(varies[:, None], values - values.mean(1, keepdims=True), 0.0)
    pairs = (inside[1:] & inside[:-1]).sum() + (inside[:, 1:] & inside[:, :-1]).sum()
    # Zero outside, so that products across the border vanish.
    products = (centred[:, 1:] * centred[:, :-1]).sum((1, 2)) + (centred[..., 1:] * centred[..., :-1]).sum((1, 2))
    squares = (centred**2).sum((1, 2))
    return inside.sum() / max(pairs, 1) * products / np.where(squares > 0, squares, 1.0)


def moran_agreement(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Spearman correlation over genes of predicted and true Moran's I: would the same genes be called variable?

    0 if all genes tie in either. Level is not scored: a smooth prediction may have a higher I throughout.
    """
    return _correlation(*(rankdata(morans_i(maps, inside)) for maps in (predicted, truth)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 1e-12 else 0.0


# --- cell types that lie together -------------------------------------------------------------------------------------

BREAST_MARKERS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("breast_markers.toml").read_text())


def colocalisation(
    predicted: np.ndarray,
    truth: np.ndarray,
    inside: np.ndarray,
    genes: Sequence[str],
    markers: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Do the cell types lie together in the prediction that do so in truth?

    A type's score in a bin is the mean of its markers' log1p counts in standard deviations; types with no marker among
    ``genes`` are left out. Types are compared by the correlation of their scores over bins.

    Returns
    -------
    Of predicted and true correlations of all pairs of types: their ``correlation`` (0 if either are all the same), and
    their root mean squared difference ``rms``, which also sees correlations that are all too high; and ``n_types``.
    """
    rows = [[i for i, gene in enumerate(genes) if gene in set(names)] for names in markers.values()]
    rows = [own for own in rows if own]
    if len(rows) < 3:
        raise ValueError(
            f"`genes` need markers of at least 3 cell types, but have those of {len(rows)}. Pairs are compared."
        )
    ours, true = (_pairs_of_types(maps[:, inside], rows) for maps in (predicted, truth))
    rms = float(np.sqrt(((ours - true) ** 2).mean()))
    return {"correlation": _correlation(ours, true), "rms": rms, "n_types": float(len(rows))}


def _pairs_of_types(values: np.ndarray, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Correlations of the scores of all pairs of types from ``(genes, bins)`` counts; 0 where a score is constant."""
    scores = _standardised(np.stack([_standardised(np.log1p(values[own].astype(float))).mean(0) for own in rows]))
    return (scores @ scores.T / scores.shape[1])[np.triu_indices(len(rows), 1)]


def _standardised(rows: np.ndarray) -> np.ndarray:
    centred = np.where(np.ptp(rows, axis=1, keepdims=True) > 1e-12, rows - rows.mean(1, keepdims=True), 0.0)
    spread = centred.std(1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1.0)
