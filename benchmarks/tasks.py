"""The two tasks: phantoms with known truth, and real sections with whole spots held out.

A task yields one :class:`Row` per method and section with a score per gene; nothing is averaged here. All seeds are
fixed, so that only the seconds change from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from baselines import Method

from hadmst_sc import metrics
from hadmst_sc.contract import Observation
from hadmst_sc.measurement import degrade

FIRST_TEST_SEED = 900_000  # training draws its phantoms from seeds below 100,000
FOLD_SEED = 0
N_FOLDS = 4
MIN_PREVALENCE = 0.05  # of the spots, for a gene to be scored


@dataclass(frozen=True)
class Row:
    """Scores of one method on one section (or one set of phantoms)."""

    task: str  # "in distribution", "held-out styles", or the name of a section
    section: str
    method: str
    seconds: float
    genes: tuple[str, ...]
    kinds: tuple[str, ...]  # what drives each gene; "real" where nobody knows
    depth: np.ndarray  # (genes,) mean counts per spot
    scores: dict[str, np.ndarray]  # (genes,) each
    n_spots: int
    overall: dict[str, float] = field(default_factory=dict)  # scores of all genes together


# --- phantoms ---------------------------------------------------------------------------------------------------------


def phantom_plan(n_seeds: int, *, first: int = FIRST_TEST_SEED, apart: int = 10_000) -> list[tuple[str, int, str]]:
    """``(set, seed, style)`` of each test phantom: ``n_seeds`` per set from ``first`` on, styles in turn."""
    from hadmst_sc.datasets.simulate import HELD_OUT_STYLES, TRAIN_STYLES

    sets = {"in distribution": TRAIN_STYLES, "held-out styles": HELD_OUT_STYLES}
    return [
        (name, first + apart * number + i, styles[i % len(styles)])
        for number, (name, styles) in enumerate(sets.items())
        for i in range(n_seeds)
    ]


def phantoms(methods: Mapping[str, Method], n_seeds: int, *, size_um: float, n_genes: int) -> Iterator[Row]:
    """Score each method's maps against the true rate of held-out phantoms, before counting noise."""
    from hadmst_sc.datasets.simulate import simulate

    for name, seed, style in phantom_plan(n_seeds):
        phantom = simulate(seed, style=style, size_um=size_um, n_genes=n_genes)
        obs = phantom.observation
        for method, predict in {**methods, "true rate": lambda _, truth=phantom.rate: truth}.items():
            started = time.perf_counter()
            predicted = predict(obs)
            seconds = time.perf_counter() - started
            scores = map_scores(predicted, phantom.rate, obs.inside)
            depth = obs.counts.mean(0)
            section = f"{style} {seed}"
            overall = {"coherence": coherence(predicted, phantom.rate, obs.inside)}
            yield Row(name, section, method, seconds, obs.genes, phantom.kinds, depth, scores, len(obs.spots), overall)


def map_scores(predicted: np.ndarray, rate: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of expected counts per bin against the true ones.

    ``pcc``, ``rmse`` and ``deviance`` are those of :mod:`hadmst_sc.metrics`. ``pcc_rate``, on rates as they are, and
    ``rmse_mean``, on log1p of the rate over the gene's mean, do not depend on the depth of sequencing.
    """
    mean = np.maximum(rate[:, inside].mean(1), 1e-12)[:, None]
    relative, truth = predicted[:, inside] / mean, rate[:, inside] / mean
    return {
        "pcc": metrics.pearson(predicted, rate, inside),
        "rmse": metrics.rmse(predicted, rate, inside),
        "deviance": metrics.deviance(predicted, rate, inside),
        "pcc_rate": _correlation(relative, truth),
        "rmse_mean": np.sqrt(((np.log1p(relative) - np.log1p(truth)) ** 2).mean(1)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (values - values.mean(1, keepdims=True, dtype=float) for values in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norm > 1e-20, (a * b).sum(1) / np.maximum(norm, 1e-20), 0.0)


# --- real sections, spots held out ------------------------------------------------------------------------------------


def folds(n_spots: int, n_folds: int = N_FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """``(spots,)`` fold of each spot: a random partition into equal parts (± one spot)."""
    return np.random.default_rng(seed).permutation(n_spots) % n_folds


def abundant_genes(counts: np.ndarray, n_genes: int) -> np.ndarray:
    """Columns of ``(spots, genes)`` with the most counts, of those seen in enough spots; most abundant first."""
    seen = np.flatnonzero((counts > 0).mean(0) >= MIN_PREVALENCE)
    return seen[np.argsort(-counts[:, seen].sum(0), kind="stable")][:n_genes]


def load_section(name: str, n_genes: int, bin_um: float) -> Observation:
    """A public section with its most abundant genes."""
    from hadmst_sc.datasets import load
    from hadmst_sc.io.read import read_observation

    sdata = load(name)
    counts = sdata.tables["table"].X
    columns = abundant_genes(np.asarray(counts.todense() if hasattr(counts, "todense") else counts), n_genes)
    genes = sdata.tables["table"].var_names[columns].tolist()
    return read_observation(sdata, f"{name}_full_image", genes=genes, bin_um=bin_um)


def holdout(methods: Mapping[str, Method], name: str, obs: Observation, n_folds: int) -> Iterator[Row]:
    """Score spot sums, through ``A``, of maps that never saw those spots; folds are pooled before scoring."""
    fold = folds(len(obs.spots))
    scored = fold < n_folds
    for method, predict in methods.items():
        predicted = np.zeros_like(obs.counts)
        seconds = 0.0
        for k in range(n_folds):
            given = obs.subset_spots(fold != k)
            started = time.perf_counter()
            maps = predict(given)
            seconds += time.perf_counter() - started
            predicted[fold == k] = degrade(maps, obs.measurement.subset(fold == k))
        of_spots = predicted[scored].T, obs.counts[scored].T, np.ones(scored.sum(), bool)
        scores, overall = cell_scores(*of_spots), {"coherence": coherence(*of_spots)}
        kinds, depth, n = ("real",) * len(obs.genes), obs.counts.mean(0), len(obs.spots)
        yield Row(name, name, method, seconds / n_folds, obs.genes, kinds, depth, scores, n, overall)
    yield _ceiling(name, obs)


def cell_scores(predicted: np.ndarray, counts: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of expected counts against those measured, in spots or bins; arguments as in :mod:`hadmst_sc.metrics`."""
    scores = {"pcc": metrics.pearson, "rmse": metrics.rmse, "deviance": metrics.deviance}
    return {name: score(predicted, counts, inside) for name, score in scores.items()}


def coherence(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Gene coherence; 0 where there are too few genes to speak of it."""
    return metrics.gene_coherence(predicted, truth, inside) if len(truth) >= 3 else 0.0


def split_half_ceiling(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """``(genes,)`` PCC of a perfect prediction: ``sqrt(2 r / (1 + r))``, where ``r`` is that of two binomial halves.

    Spearman–Brown gives the reliability of the whole from that of its halves; its root is the correlation with the
    truth.
    """
    half = np.random.default_rng(seed).binomial(counts.astype(int), 0.5)
    r = np.maximum(metrics.pearson(half.T, (counts - half).T, np.ones(len(counts), bool)), 0)
    return np.sqrt(2 * r / (1 + r))


def _ceiling(name: str, obs: Observation) -> Row:
    scores = {"pcc": split_half_ceiling(obs.counts)}
    kinds = ("real",) * len(obs.genes)
    return Row(name, name, "split-half ceiling", 0.0, obs.genes, kinds, obs.counts.mean(0), scores, len(obs.spots))


def tertiles(depth: Sequence[float]) -> np.ndarray:
    """``(genes,)`` 0, 1 or 2: the scarcest, middle and most abundant third."""
    rank = np.argsort(np.argsort(depth, kind="stable"), kind="stable")
    return rank * 3 // max(len(rank), 1)
