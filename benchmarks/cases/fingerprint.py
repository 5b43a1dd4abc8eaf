"""Fingerprints of a case: where two versions of the code agree in them, results of the one hold for the other."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from cases.case import Case
from hadmst_sc.section.observation import Observation, Prediction


def fingerprint(case: Case) -> str:
    """Digest of the sections that a method is given and of the scores of a map of random numbers."""
    found = hashlib.sha256()
    for obs in case.given:
        for part in _arrays(obs):
            found.update(np.ascontiguousarray(part).tobytes())
        found.update(json.dumps([*obs.genes, *obs.spots, *map(float, obs.grid.shape)]).encode())
    found.update(json.dumps(_rounded(case.score([_probe(obs) for obs in case.given])), sort_keys=True).encode())
    return found.hexdigest()[:16]


def _arrays(obs: Observation) -> list[np.ndarray]:
    """Arrays of an observation; places and areas to five decimals, because machines round the last ones differently."""
    matrix = obs.measurement.matrix
    measured = [matrix.data, obs.measurement.centres]
    exact = [obs.counts, obs.he, obs.inside, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)]
    return [*exact, *(np.round(values.astype(float), 5) for values in measured)]


def _probe(obs: Observation) -> Prediction:
    rng = np.random.default_rng(0)
    level = (obs.counts.sum(0) / max(obs.measurement.area.sum(), 1e-12))[:, None, None]
    draws = (level * rng.gamma(2.0, 0.5, (3, *level.shape[:1], *obs.grid.shape)) * obs.inside).astype(np.float32)
    draws[..., : obs.grid.shape[1] // 2] = 0  # what scores do with zeros is seen too
    return Prediction(
        obs.grid, obs.genes, draws.mean(0), None, obs.inside, obs.measurement.coverage, draws=draws, provenance={}
    )


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return np.round(np.nan_to_num(np.asarray(values, float)), 4).tolist()
