"""What the maps of a run depend on, as one string: runs with the same key can continue each other."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from hadmst_sc.contract import Observation
from hadmst_sc.models import HadmstModel


def run_key(obs: Observation, how: Mapping[str, Any]) -> str:
    """One string for a section and all else that changes its maps: arguments of ``predict``, the package's version.

    What cannot be compared, such as a callable, gives another string each time.
    """
    matrix = obs.measurement.matrix
    arrays = (obs.he, obs.counts, obs.inside, matrix.data, matrix.indices, matrix.indptr, obs.measurement.centres)
    section = [repr((obs.grid, obs.he_um, obs.genes, obs.spots)), *(_named(array) for array in arrays)]
    digest = hashlib.sha256(repr(section).encode()).hexdigest()
    return json.dumps({"section": digest} | {name: _named(how[name]) for name in sorted(how)})


def _named(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() + repr((value.shape, value.dtype.str))
    if isinstance(value, HadmstModel):  # by what it holds: weights can be trained further after they were loaded
        parts = ((name, _named(tensor.cpu().numpy())) for name, tensor in sorted(value.state_dict().items()))
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()
    return value if value is None or isinstance(value, str | int | float) else uuid.uuid4().hex
