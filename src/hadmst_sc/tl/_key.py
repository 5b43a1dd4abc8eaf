"""What the maps of a run depend on, as one string: runs with the same key can continue each other."""

from __future__ import annotations

import hashlib
import json

from hadmst_sc.contract import Observation
from hadmst_sc.tl._settings import Settings, digest


def run_key(obs: Observation, settings: Settings, version: str) -> str:
    """One string for a section, the settings that change its maps, and the package's version."""
    matrix = obs.measurement.matrix
    arrays = (obs.he, obs.counts, obs.inside, matrix.data, matrix.indices, matrix.indptr, obs.measurement.centres)
    section = [repr((obs.grid, obs.he_um, obs.genes, obs.spots)), *(digest(array) for array in arrays)]
    named = hashlib.sha256(repr(section).encode()).hexdigest()
    return json.dumps({"section": named, "version": version} | settings.key())
