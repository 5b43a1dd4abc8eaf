"""Standard deviation and samples against the truth, in bins and in sums over blocks: as wide as they are wrong?

Intervals of single bins cover whatever their width where bins hold a fraction of a count. So sums over blocks are
judged too, and beside each coverage stands what it would be if the spread were halved or doubled: where those agree,
the test has no power.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scores
from scipy import sparse
from scipy.stats import spearmanr
from switches import N_DRAWS

from cases.case import ByScale, Case
from cases.cells import pseudo_spots, where_known
from cases.phantom import simulated
from hadmst_sc import metrics
from hadmst_sc.section.observation import Observation, Prediction
from hadmst_sc.trust.intervals import covered, gamma_shape, rate_interval
from hadmst_sc.trust.spread import Spread

SEED = 0
Covers = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def draws_of_cells(
    *, section: str, n_genes: int, bin_um: float, blocks: Sequence[int], pitch_um: float = 100.0
) -> Case:
    """Truth: counts of molecules that no spot has seen."""
    obs, truth, cells = pseudo_spots(section, n_genes, bin_um, pitch_um)
    return _case(obs, truth, where_known(obs, cells), blocks, covered, counts=True)


def draws_of_phantom(*, seed: int, style: str, blocks: Sequence[int], **options: Any) -> Case:
    """Truth: the rate, before counting noise."""
    made = simulated(seed, style, **options)
    obs = made.observation
    return _case(obs, made.rate, obs.inside, blocks, _rates_covered, counts=False)


def _rates_covered(rates: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    low, high = rate_interval(mean, std)
    return ((low <= rates) & (rates <= high)).astype(float)


def _case(
    obs: Observation, truth: np.ndarray, window: np.ndarray, blocks: Sequence[int], covers: Covers, *, counts: bool
) -> Case:
    def score(found: Sequence[Prediction]) -> ByScale:
        (one,) = found
        return {
            f"{edge * obs.grid.bin_um:g} µm": _of_blocks(one, obs, truth, window, edge, covers, counts=counts)
            for edge in blocks
        }

    return Case(obs, (obs,), score)


def _of_blocks(
    one: Prediction,
    obs: Observation,
    truth: np.ndarray,
    window: np.ndarray,
    edge: int,
    covers: Covers,
    *,
    counts: bool,
) -> scores.Scores:
    """Scores per gene, ``(genes,)``, of sums over blocks that lie wholly in the window."""
    rng = np.random.default_rng(SEED)
    whole = scores.whole_blocks(window, edge)
    mean, true = (scores.in_blocks(maps, edge)[:, whole].astype(float) for maps in (one.mean, truth))
    if one.draws is None:  # the law that a user is told of
        std = _std_of_blocks(one, obs, whole, edge)
        shape = gamma_shape(mean, std)
        draws = rng.gamma(shape, mean / shape, (N_DRAWS, *mean.shape))
    else:
        draws = np.stack([scores.in_blocks(draw, edge)[:, whole] for draw in one.draws]).astype(float)
        std = draws.std(0, ddof=1)
    found = {
        name: covers(true, mean, width * std).mean(1)
        for name, width in (("covered", 1.0), ("covered, half as wide", 0.5), ("covered, twice as wide", 2.0))
    }
    # Counts are the rate and counting noise; samples are of the rate.
    noisy = rng.poisson(draws).astype(float) if counts else draws
    everywhere = np.ones(true.shape[1], bool)
    error = np.abs(true - mean)
    return found | {
        "crps": metrics.crps(noisy, true, everywhere) / np.maximum(true.mean(1), 1e-9),
        "rank of std": _rank(std, error),
        "rank of mean": _rank(mean, error),
        "power": _power(draws, true, counts=counts),
    }


def _std_of_blocks(one: Prediction, obs: Observation, whole: np.ndarray, edge: int) -> np.ndarray:
    """Standard deviation of the sums over some blocks, ``(genes, blocks)``, as ``tl.regions`` computes it."""
    ny, nx = (edge * side for side in whole.shape)
    block = np.where(whole, np.cumsum(whole).reshape(whole.shape) - 1, -1).repeat(edge, 0).repeat(edge, 1)
    y, x = np.nonzero(block >= 0)
    weights = sparse.csr_array((np.ones(len(y)), (block[y, x], np.arange(len(y)))))
    spread = Spread(one.gene_stats["dispersion"], obs.measurement.pitch)
    mean = np.asarray(one.mean, float)[:, :ny, :nx][:, y, x].T
    return spread.of_sums(mean, weights, np.c_[y, x]).T


def _rank(values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Spearman correlation per gene; 0 where one is constant."""
    found = [spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in zip(values, error, strict=True)]
    return np.nan_to_num(np.array(found, float))


def _power(draws: np.ndarray, true: np.ndarray, *, counts: bool) -> np.ndarray:
    """Variance of a sample's sums over that of the true ones, counting noise taken off; 1 is right."""
    noise = true.mean(1) if counts else 0.0
    return draws.var(2).mean(0) / np.maximum(true.var(1) - noise, 1e-9)
