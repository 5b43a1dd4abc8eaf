"""Clusters of bins against annotated layers and against the regions of phantoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import downstream
import numpy as np
import pandas as pd

from cases.case import ByScale, Case, abundant
from cases.phantom import simulated
from hadmst_sc.datasets.public import load, observe
from hadmst_sc.section.observation import Observation, Prediction

DOMAIN_SEEDS = (0, 1, 2)  # of the clustering; their mean is scored
SPOTS = "spots"


def _annotated(section: str, n_genes: int, bin_um: float) -> tuple[Observation, pd.Series]:
    table = load(section).tables["table"]
    obs = observe(section, genes=abundant(table, n_genes), bin_um=bin_um)
    return obs, table.obs["layer"].astype(object)


def layers(*, section: str, n_genes: int, bin_um: float) -> Case:
    """Clusters of bins against the annotated layers of the spots."""
    obs, layer = _annotated(section, n_genes, bin_um)
    annotated = layer.reindex(list(obs.spots)).to_numpy()
    n_domains = len({one for one in annotated if isinstance(one, str)})
    return _domains(obs, n_domains, "spots", lambda found: downstream.domain_ari_spots(found, obs, annotated))


def phantom_domains(*, seed: int, style: str, **options: Any) -> Case:
    """Clusters of bins against the true regions of a phantom."""
    made = simulated(seed, style, **options)
    obs, regions = made.observation, made.regions
    scored = obs.inside & (regions >= 0)
    n_domains = len(np.unique(regions[scored]))
    case = _domains(obs, n_domains, "bins", lambda found: downstream.domain_ari_bins(found, regions, scored))
    truth = Prediction(obs.grid, obs.genes, made.rate, None, obs.inside, obs.measurement.coverage)
    true_rate = {"true rate": lambda: case.score([truth])}
    return replace(case, kinds=made.kinds, references={**case.references, **true_rate})


def _domains(obs: Observation, n_domains: int, scale: str, ari: Callable[[np.ndarray], float]) -> Case:
    """Domains, ``(ny, nx)``, found in maps; for reference in the spots, each bin being of its nearest spot's domain."""

    def mean(found: Callable[[int], np.ndarray]) -> ByScale:
        return {scale: {"ari": float(np.mean([ari(found(seed)) for seed in DOMAIN_SEEDS]))}}

    def of_spots(seed: int) -> np.ndarray:
        return downstream.domains_to_bins(downstream.domains_of_spots(obs.counts, n_domains, seed), obs)

    def score(found: Sequence[Prediction]) -> ByScale:
        return mean(lambda seed: downstream.domains(found[0].mean, obs.inside, n_domains, seed))

    return Case(obs, (obs,), score, (), {SPOTS: lambda: mean(of_spots)})
