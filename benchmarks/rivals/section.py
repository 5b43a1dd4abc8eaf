"""A section as rates on points, what a regression returns, and how its maps are made consistent with the spots."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import NamedTuple

import joblib
import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hadmst_sc.section.features import he_features
from hadmst_sc.section.measurement import pool
from hadmst_sc.section.observation import Observation

FLOOR = 0.02  # of the gene's mean: regressions go below zero, expected counts do not
SPREAD = 0.5  # of the pitch: how far a spot's ratio reaches into the gaps


@dataclass(frozen=True, eq=False)
class Section:
    """An observation as rates on points in µm, bins restricted to the tissue."""

    obs: Observation
    rates: np.ndarray  # (spots, genes), mean one
    mean: np.ndarray  # (genes,) counts per bin
    spots_um: np.ndarray  # (spots, 2)
    bins_um: np.ndarray  # (bins, 2)
    matrix: sparse.csr_matrix  # (spots, bins) area fractions

    @classmethod
    def of(cls, obs: Observation) -> Section:
        """Rates and points of an observation."""
        inside = np.flatnonzero(obs.inside)
        area = np.maximum(obs.measurement.area, 1e-12)[:, None]
        mean = obs.counts.sum(0, dtype=float) / area.sum()
        rates = obs.counts / area / np.maximum(mean, 1e-12)
        um = obs.grid.bin_um
        matrix = obs.measurement.matrix[:, inside]
        return cls(obs, rates, mean, obs.measurement.centres * um, obs.grid.centres()[inside] * um, matrix)

    @property
    def area(self) -> np.ndarray:
        """``(spots, 1)`` footprint in bins."""
        return np.maximum(self.obs.measurement.area, 1e-12)[:, None]

    @property
    def pitch_um(self) -> float:
        """Distance between neighbouring spots."""
        return self.obs.measurement.pitch * self.obs.grid.bin_um

    def maps(self, rates: np.ndarray) -> np.ndarray:
        """``(bins, genes)`` rates to ``(genes, ny, nx)`` expected counts per bin."""
        out = np.zeros((rates.shape[1], *self.obs.grid.shape), np.float32)
        out[:, self.obs.inside] = (np.maximum(rates, 0) * self.mean).T
        return out


class Fit(NamedTuple):
    """Values that a regression predicts for the bins, and for each spot from all the others."""

    bins: np.ndarray  # (bins, genes)
    held_out: np.ndarray  # (spots, genes)


Fitter = Callable[[Section], Fit]
# Regressions that several methods of one section share are fitted once per run; what that saves is added to the cost.
_memory = joblib.Memory(os.environ.get("HADMST_BENCHMARK_CACHE"), verbose=0)
saved_seconds = 0.0


def shared(fitter: Fitter) -> Fitter:
    """The same regression, fitted once for all methods of a run that need it."""

    def measured(obs: Observation, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        started = time.perf_counter()
        found = fitter(replace(Section.of(obs), rates=rates))
        return found.bins.astype(np.float32), found.held_out, time.perf_counter() - started

    measured.__name__ = measured.__qualname__ = fitter.__name__
    measured.__module__ = fitter.__module__
    once = _memory.cache(measured)

    @wraps(fitter)
    def fitted(section: Section) -> Fit:
        global saved_seconds
        started = time.perf_counter()
        bins, held_out, seconds = once(section.obs, section.rates)
        saved_seconds += max(0.0, seconds - (time.perf_counter() - started))
        return Fit(bins, held_out)

    return fitted


def features(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """H&E features of the bins ``(bins, f)`` and, averaged over the footprints, of the spots ``(spots, f)``."""
    maps = he_features(section.obs)
    return maps[:, section.obs.inside].T, pool(maps, section.obs.measurement).astype(np.float32)


def best(candidates: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and values of the one of ``(candidates, spots, genes)`` with the least error, per gene."""
    chosen = ((candidates - values) ** 2).mean(1).argmin(0)
    return chosen, np.take_along_axis(candidates, chosen[None, None], 0)[0]


def soft(section: Section, found: Fit, *, spread: bool = False) -> np.ndarray:
    """Gamma–Poisson consistency: multiply measured bins by ``(y + k) / (mu + k)``; ``(bins, genes)`` rates.

    ``k`` per gene by moments from the left-out predictions. With ``spread`` the smoothed log-ratio of the spots around
    fills the gaps between them; without it they keep the regression.
    """
    rates = np.maximum(found.bins, FLOOR)
    unit = np.maximum(section.mean, 1e-12)
    counts = section.obs.counts
    k = gamma_shape(counts, np.maximum(found.held_out, FLOOR) * section.area * unit)
    ratio = (counts + k) / ((section.matrix @ rates) * unit + k)
    coverage = np.asarray(section.matrix.sum(0)).ravel()[:, None]
    measured = section.matrix.T @ ratio / np.maximum(coverage, 1e-9)
    between = np.exp(_spread_weights(section) @ np.log(np.maximum(ratio, 1e-3))) if spread else 1.0
    share = np.minimum(coverage, 1)
    return rates * (share * measured + (1 - share) * between)


def gamma_shape(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """``(genes,)`` shape ``k`` of ``counts ~ Poisson(expected · Gamma(k, 1/k))``, by moments; large if Poisson."""
    excess = ((counts - expected) ** 2 - expected).sum(0)
    return np.clip((expected**2).sum(0) / np.maximum(excess, 1e-9), 0.05, 1e6)


def _spread_weights(section: Section, n_neighbours: int = 12) -> sparse.csr_matrix:
    n_spots, n_bins = len(section.spots_um), len(section.bins_um)
    distance, index = cKDTree(section.spots_um).query(section.bins_um, k=range(1, min(n_neighbours, n_spots) + 1))
    weight = np.exp(-0.5 * (distance / (SPREAD * section.pitch_um)) ** 2) + 1e-12
    weight /= weight.sum(1, keepdims=True)
    rows = np.repeat(np.arange(n_bins), index.shape[1])
    return sparse.csr_matrix((weight.ravel(), (rows, index.ravel())), shape=(n_bins, n_spots))


def in_log(section: Section, fitter: Callable[[Section], Fit]) -> Fit:
    """Regress log1p of counts per whole footprint; the sums lost to the logarithm return as a factor (Duan 1983)."""
    depth = np.maximum(section.mean * np.median(section.area), 1e-12)
    found = fitter(replace(section, rates=np.log1p(section.rates * depth)))
    bins, held_out = (np.maximum(np.expm1(part) / depth, 0) for part in found)
    factor = section.rates.sum(0) / np.maximum(held_out.sum(0), 1e-9)
    return Fit(bins * factor, held_out * factor)
